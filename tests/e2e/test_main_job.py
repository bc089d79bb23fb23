"""The main job on real input: a real environment is overlaid, a model runs, the outputs are compared, all goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.environments import Environment, digest, make, overlay, uv_install

# A tiny seeded llama; prints what identifies its outputs bit for bit, its tokens, and which tier ran each op.
RUN = """
import hashlib, json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=128, max_position_embeddings=128)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(0, 128, (2, 9))
with torch.inference_mode():
    logits = model(ids).logits
    tokens = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
module = sys.modules["transformers.models.llama.modeling_llama"]
amd_ops = sys.modules.get("amd_ops")
amd_ops = amd_ops if getattr(amd_ops, "__file__", None) else None
print(json.dumps({
    "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    "tokens": tokens.tolist(),
    "base": getattr(module, "__amd_overlay__", None),
    "file": module.__file__,
    "amd_ops": amd_ops is not None,
    "report": amd_ops.report().as_dict() if amd_ops else None,
}))
"""
ON = {"USE_FUSED_PROJECTIONS": "1", "USE_OPTIMIZED_OPS": "1", "USE_AITER_ATTENTION": "1", "USE_AITER_GEMM": "1"}


@pytest.fixture
def environment(tmp_path: Path, wheel: Callable[[str], Path]) -> Environment:
    made = make(tmp_path / "env")
    uv_install(made, wheel("4.57.6"), tmp_path / "cache", "copy")
    made.share(amd_ops=True)
    return made


def test_install_run_off_and_on_and_revert(environment: Environment) -> None:
    stock = environment.run(RUN)
    assert stock["base"] is None
    before = digest(environment.purelib)

    installed = overlay("install", "--transformers", "4.57", "--python", str(environment.python), "--json")
    assert installed.returncode == 0, installed.stderr
    assert overlay("status", "--check", "--python", str(environment.python)).returncode == 0

    off = environment.run(RUN)
    assert off["base"] is not None
    assert Path(str(off["file"])).is_relative_to(environment.transformers)
    assert (off["logits"], off["tokens"]) == (stock["logits"], stock["tokens"])

    on = environment.run(RUN, **ON)
    assert on["tokens"] == stock["tokens"]
    rows = on["report"]["ops"]  # type: ignore[index]
    calls = {(row["op"], tier["tier"]): tier["calls"] for row in rows for tier in row["tiers"]}
    assert all(calls[op, "torch"] > 0 for op in ("attention", "linear", "rms_norm", "silu_and_mul", "apply_rope"))

    reverted = overlay("revert", "--python", str(environment.python), "--json")
    assert reverted.returncode == 0, reverted.stderr
    after = digest(environment.purelib)
    left = {path for path in after.keys() - before.keys() if not path.startswith(".amd-overlay/")}
    assert left == set()
    assert {path: entry for path, entry in after.items() if path in before} == before
    assert environment.run(RUN) == stock


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_model_runs_stock_when_amd_ops_is_uninstalled_under_a_left_behind_overlay(
    environment: Environment, left: str
) -> None:
    """pip leaves a folder behind where bytecode lies that it did not install: Python imports that as a namespace."""
    stock = environment.run(RUN)
    assert overlay("install", "--transformers", "4.57", "--python", str(environment.python)).returncode == 0
    environment.share(amd_ops=False)
    if left == "an empty folder":
        (environment.purelib / "amd_ops" / "__pycache__").mkdir(parents=True)
    alone = environment.run(RUN, **ON)
    assert alone["amd_ops"] is False
    assert alone["base"] is not None
    assert (alone["logits"], alone["tokens"]) == (stock["logits"], stock["tokens"])


def test_a_neighbour_that_shares_inodes_with_uvs_cache_is_untouched(
    tmp_path: Path, wheel: Callable[[str], Path]
) -> None:
    cache = tmp_path / "cache"
    ours, neighbour = make(tmp_path / "ours"), make(tmp_path / "neighbour")
    for environment in (ours, neighbour):
        uv_install(environment, wheel("4.57.6"), cache, "hardlink")
    llama = "models/llama/modeling_llama.py"
    if (ours.transformers / llama).stat().st_ino != (neighbour.transformers / llama).stat().st_ino:
        pytest.skip("uv did not hard-link here: cache and environments are on different file systems")
    before, inode = digest(neighbour.purelib), (neighbour.transformers / llama).stat().st_ino

    assert overlay("install", "--transformers", "4.57", "--python", str(ours.python)).returncode == 0
    assert digest(neighbour.purelib) == before
    assert overlay("revert", "--python", str(ours.python)).returncode == 0
    assert digest(neighbour.purelib) == before
    assert (neighbour.transformers / llama).stat().st_ino == inode
    assert (ours.transformers / llama).read_bytes() == (neighbour.transformers / llama).read_bytes()


@pytest.mark.parametrize("release", ["4.56.2", "5.23.0"])
def test_another_release_is_refused_and_nothing_is_written(
    release: str, tmp_path: Path, wheel: Callable[[str], Path]
) -> None:
    environment = make(tmp_path / "env")
    uv_install(environment, wheel(release), tmp_path / "cache", "copy")
    before = digest(environment.purelib)
    refused = overlay("install", "--transformers", "4.57", "--python", str(environment.python), "--json")
    assert refused.returncode == 3, refused.stderr
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == 3
    assert release in error["message"]
    assert "4.57" in error["message"]
    assert error["remedy"]
    assert digest(environment.purelib) == before
