# Every target makes what it needs: a fresh clone and Python 3.10+ are enough.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRANSFORMERS ?= transformers==4.57.6
TEST_RELEASES := 4.56.2 4.57.0 4.57.1 4.57.2 4.57.3 4.57.4 4.57.5 4.57.6 5.23.0
PYTEST_ARGS ?=

VENV := .venv
DEMO_VENV := .venv-demo
WHEELS := .cache/wheels
STAMP := .installed

# A ROCm torch that is already there is reused, never replaced.
HIP := $(shell $(PYTHON) -c "import torch; print(torch.version.hip or '')" 2>/dev/null)
VENV_FLAGS := $(if $(HIP),--system-site-packages)
TORCH_SPEC := $(if $(HIP),,$(TORCH))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
export HF_HUB_OFFLINE := 1
# Every core has a test process of its own: threads inside them would only fight.
export OMP_NUM_THREADS := 1
export OVERLAY_TEST_WHEELS := $(abspath $(WHEELS))

.PHONY: help demo test test-full lint format bench wheels overlays clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(VENV)/bin/pip install -c constraints.txt $(TORCH_SPEC) $(TRANSFORMERS) -e ".[dev]"
	touch $@

$(DEMO_VENV)/$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(DEMO_VENV)
	$(DEMO_VENV)/bin/pip install -c constraints.txt $(TORCH_SPEC) $(TRANSFORMERS) safetensors .
	touch $@

$(WHEELS)/$(STAMP): Makefile | $(VENV)/$(STAMP)
	mkdir -p $(WHEELS)
	for release in $(TEST_RELEASES); do \
	  ls $(WHEELS)/transformers-$$release-*.whl >/dev/null 2>&1 \
	  || $(VENV)/bin/pip download --no-deps --ignore-requires-python -d $(WHEELS) transformers==$$release || exit 1; \
	done
	touch $@

wheels: $(WHEELS)/$(STAMP) ## download the transformers wheels that the tests unpack

demo: $(DEMO_VENV)/$(STAMP) ## install, run a real model with toggles off and on, compare, revert
	$(DEMO_VENV)/bin/python examples/demo.py

test: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## the test suite (at most 15 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --durations=15 -m "not full" $(PYTEST_ARGS)

test-full: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## the test suite with the long matrices
	$(VENV)/bin/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/$(STAMP) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/$(STAMP) ## let ruff format the sources (never the generated overlays)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## benchmarks, printed as ratios against stock
	for script in benchmarks/bench_*.py; do $(VENV)/bin/python $$script || exit 1; done

clean: ## remove everything that make made
	rm -rf $(VENV) $(DEMO_VENV) .cache dist build demo-out
