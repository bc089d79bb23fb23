"""The real Dockerfile built by buildah, which needs no engine, and what is in the image.

``OVERLAY_TEST_BASE`` names the base: a local image with a ROCm torch, or the stand-in that ``stand_in.sh`` makes, whose
torch only says that it is one. Everything but the base is then what ``docker build`` would run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rocm_overlay

ROOT = Path(__file__).resolve().parents[2]
BASE = os.environ.get("OVERLAY_TEST_BASE")
BUILDAH = shutil.which("buildah")
IMAGE = "localhost/transformers-rocm-overlay-test"
ENVIRON = {"STORAGE_DRIVER": "vfs", **os.environ, "BUILDAH_ISOLATION": "chroot"}
# A small seeded model: its greedy tokens, and on stderr which tier ran what.
GENERATE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2)).eval()
prompt = torch.arange(3, 11).reshape(1, -1)
print(model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False).tolist())
print(sys.modules["amd_ops"].report(), file=sys.stderr)
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(BUILDAH is None, reason="buildah is not on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building in a chroot needs root"),
    pytest.mark.skipif(not BASE, reason="OVERLAY_TEST_BASE names no base image: tests/deploy/stand_in.sh makes one"),
    pytest.mark.timeout(1800),
]


def buildah(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["buildah", *words], env=ENVIRON, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"buildah {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@dataclass(frozen=True)
class Container:
    """One container of the image that was built."""

    name: str

    def run(self, *command: str, user: str = "10001:10001", **variables: str) -> subprocess.CompletedProcess[str]:
        more = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        return buildah("run", "--user", user, *more, self.name, "--", *command, check=False)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    buildah(
        "build", "--format", "docker", "-f", str(ROOT / "Dockerfile.rocm"), "-t", IMAGE, "--build-arg", f"BASE={BASE}",
        "--build-arg", "REVISION=0123abc", str(ROOT),
    )  # fmt: skip
    yield IMAGE
    buildah("rmi", IMAGE)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    name = buildah("from", image).stdout.strip()
    yield Container(name)
    buildah("rm", name)


@pytest.fixture(scope="module")
def told(image: str) -> dict[str, Any]:
    """The image's configuration, as an engine reads it."""
    found = json.loads(buildah("inspect", "--type", "image", image).stdout)["Docker"]["config"]
    assert isinstance(found, dict)
    return found


def test_an_engine_reads_user_entrypoint_health_check_and_labels(told: dict[str, Any]) -> None:
    assert told["User"] == "10001:10001"
    assert (told["Entrypoint"], told["Cmd"]) == (["overlay-entrypoint"], ["python3"])
    assert told["Healthcheck"]["Test"] == ["CMD", "overlay", "status", "--check"]
    labels = told["Labels"]
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    assert labels["org.opencontainers.image.version"] == rocm_overlay.__version__
    assert labels["transformers"] == "4.57.6"


def test_the_entrypoint_shows_doctor_and_is_then_the_command(container: Container) -> None:
    served = container.run("overlay-entrypoint", "sh", "-c", "echo served; exit 7")
    assert (served.returncode, served.stdout) == (7, "served\n")
    assert "state: APPLIED" in served.stderr
    assert "0 problems" in served.stderr
    quiet = container.run("overlay-entrypoint", "sh", "-c", "echo served", OVERLAY_QUIET="1")
    assert (quiet.returncode, quiet.stdout) == (0, "served\n")
    assert "APPLIED" not in quiet.stderr


def test_the_user_owns_a_place_for_kernels_and_nothing_of_the_environment(container: Container) -> None:
    script = 'id -u; touch "$AITER_JIT_DIR/kernel" && echo kernels; touch "$HOME/.cache/other" && echo cache'
    assert container.run("sh", "-c", script).stdout.split() == ["10001", "kernels", "cache"]
    package = "import transformers; print(transformers.__path__[0])"
    place = container.run("python3", "-c", package).stdout.strip()
    assert container.run("touch", f"{place}/models/llama/modeling_llama.py").returncode != 0


def test_the_health_check_passes_and_sees_an_edit(container: Container) -> None:
    assert container.run("overlay", "status", "--check").returncode == 0
    where = "import importlib.util as u; print(u.find_spec('transformers').submodule_search_locations[0])"
    path = container.run("python3", "-c", where).stdout.strip() + "/models/llama/modeling_llama.py"
    assert container.run("sh", "-c", f"cp -p {path} /tmp/kept && echo '# edit' >> {path}", user="0").returncode == 0
    assert container.run("overlay", "status", "--check").returncode == 1
    assert container.run("cp", "-p", "/tmp/kept", path, user="0").returncode == 0
    assert container.run("overlay", "status", "--check").returncode == 0


def test_nothing_of_the_build_is_left(container: Container) -> None:
    script = "ls -d /src /aiter /wheels/*/* /root/.cache 2>/dev/null; find / -xdev -path '*/pip/http*' -print -quit"
    assert container.run("sh", "-c", script, user="0").stdout == ""
    inside = "import rocm_overlay as r, amd_ops as a; print(r.__file__, a.__file__)"
    assert "site-packages" in container.run("python3", "-c", inside).stdout


def test_a_model_gives_stocks_tokens_with_the_images_toggles(container: Container) -> None:
    off = dict.fromkeys(("USE_AITER_ATTENTION", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS", "USE_AITER_GEMM"), "0")
    stock = container.run("python3", "-c", GENERATE, **off)
    forced = container.run("python3", "-c", GENERATE, **dict.fromkeys(off, "1"))
    asked = container.run("python3", "-c", GENERATE)
    assert stock.returncode == 0, stock.stderr
    assert stock.stdout == asked.stdout == forced.stdout != ""
    assert "rms_norm" in forced.stderr
    assert "rms_norm" not in stock.stderr
