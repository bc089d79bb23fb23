"""The programs of examples/ do what their first lines say, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from examples import tiny_models
from tests.docs.worked import environ
from tests.e2e import environments

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HERE = Path(sys.executable)
HOOK = [str(HERE), "-m", "rocm_overlay", "run", "--python", str(HERE), "--"]
ON = {"USE_OPTIMIZED_OPS": "1", "USE_FUSED_PROJECTIONS": "1", "USE_AITER_ATTENTION": "1"}
ROOMS = os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES.parent / "installer")])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("llama", tmp_path_factory.mktemp("model"))


def run(command: list[str], python: Path = HERE, **variables: str) -> str:
    done = subprocess.run(
        command, env=environ(python, PYTHONPATH=ROOMS, PYTHONWARNINGS="ignore", **variables), capture_output=True,
        text=True, timeout=500, check=False, cwd=EXAMPLES.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def json_line(text: str) -> dict[str, object]:
    found = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def server(model: Path) -> Iterator[str]:
    command = [*HOOK, str(HERE), str(EXAMPLES / "serve.py"), "--model", str(model), "--port", "0"]
    variables = environ(HERE, PYTHONPATH=ROOMS, PYTHONWARNINGS="ignore", **ON)
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as one:
        try:
            assert one.stdout is not None
            yield one.stdout.readline().strip()
        finally:
            one.terminate()


def ask(url: str, content: dict[str, object] | None = None) -> dict[str, object]:
    data = json.dumps(content).encode() if content is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as answer:
        found = json.loads(answer.read())
        assert isinstance(found, dict)
        return found


def test_serve_answers_with_stocks_tokens_and_reports_what_ran(server: str, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(model).eval()
    prompt = torch.arange(3, 11).reshape(1, -1)
    wanted = stock.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    answer = ask(f"{server}/generate", {"tokens": prompt[0].tolist(), "max_new_tokens": 6})
    assert answer == {"tokens": wanted[0, 8:].tolist()}
    report = str(ask(f"{server}/report")["report"])
    assert "rms_norm" in report
    assert "qkv_proj" in report


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed: it is part of the extra dev")
def test_lora_learns_the_same_with_every_toggle_on() -> None:
    script = str(EXAMPLES / "peft_finetune.py")
    stock = run([str(HERE), script])
    assert "amd_ops" not in stock
    overlaid = run([*HOOK, str(HERE), script], **ON)
    before, after = json_line(stock), json_line(overlaid)
    torch.testing.assert_close(torch.tensor(after["losses"]), torch.tensor(before["losses"]), rtol=1e-5, atol=1e-5)
    losses = before["losses"]
    assert isinstance(losses, list)
    assert losses[-1] < 0.8 * losses[0]
    assert "add_norm             fused" in overlaid


@pytest.fixture(scope="module")
def line_4_53(
    wheel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], environments.Environment]:
    """Return a maker of an environment with transformers 4.53.2 and the tokenizers it insists on."""

    def make() -> environments.Environment:
        return environments.line_4_53(tmp_path_factory.mktemp("line-4.53"), wheel)

    return make


def test_the_policy_stack_on_the_line_that_openpi_pins(
    line_4_53: Callable[[], environments.Environment], tmp_path: Path
) -> None:
    made = line_4_53()

    def act(name: str, **toggles: str) -> tuple[torch.Tensor, str]:
        out = run([str(made.python), str(EXAMPLES / "policy_stack.py"), "--output", str(tmp_path / name)], made.python,
                  **toggles)  # fmt: skip
        return torch.load(tmp_path / name), out

    stock, out = act("stock")
    assert "amd_ops" not in out
    before = environments.digest(made.transformers)
    done = environments.overlay("install", "--transformers", "4.53", "--python", str(made.python))
    assert done.returncode == 0, done.stderr
    off, _ = act("off")
    assert torch.equal(off, stock)
    on, out = act("on", **ON)
    torch.testing.assert_close(on, stock, rtol=1e-4, atol=1e-5)
    assert "gated_mlp            fused        ran         12" in out  # 2 layers x 2 decoders x 3 steps
    assert "apply_rope" in out
    assert environments.overlay("revert", "--python", str(made.python)).returncode == 0
    assert environments.digest(made.transformers) == before


@pytest.mark.full
def test_two_ranks_give_what_one_process_gives(model: Path) -> None:
    script = [str(EXAMPLES / "tensor_parallel.py"), "--model", str(model)]
    one = json_line(run([str(HERE), *script]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = run([*HOOK, str(HERE), *torchrun, *script], **ON)
    two = json_line(out)
    assert (two["ranks"], two["next"]) == (2, one["next"])
    torch.testing.assert_close(torch.tensor(two["logits"]), torch.tensor(one["logits"]), rtol=1e-4, atol=1e-4)
    assert "rms_norm" in out


@pytest.mark.full
def test_qualify_writes_a_profile_and_a_run_uses_it(model: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    out = run([str(HERE), str(EXAMPLES / "qualify_and_run.py"), "--model", str(model), "--output", str(profile)])
    assert json_line(out) == {"same tokens": True, "profile": str(profile)}
    assert json.loads(profile.read_text())["schema"] == "amd-ops.profile/1"


def test_every_example_is_on_the_page_and_has_a_test() -> None:
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    helpers = {"tiny_models.py", "demo_run.py"}
    programs = {path.name for path in EXAMPLES.glob("*.py")} - helpers
    assert {name for name in programs if name not in page} == set()
