"""Every overlay that is installed can be proved: generated ones of models that the bundle does not have, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from tests.e2e.environments import Environment, make, overlay, uv_install

pytest.importorskip("libcst")

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
QUICK = ("arcee", "seed_oss", "ernie4_5")
MORE = ("apertus", "bitnet", "diffllama", "exaone4", "hunyuan_v1_dense", "nemotron", "olmo3", "persimmon", "vaultgemma")
RELEASES = ("4.57.6", "5.24.0")


@pytest.fixture(scope="module")
def installed(wheel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Return ``installed(release)``: an environment with the generated overlays of all twelve models."""
    made: dict[str, Environment] = {}

    def find(release: str) -> Environment:
        if release not in made:
            folder = tmp_path_factory.mktemp(release)
            one = make(folder / "env")
            uv_install(one, wheel(release), folder / "cache", "copy")
            line = release.rpartition(".")[0]
            one.share(amd_ops=True, line="" if transformers.__version__.startswith(f"{line}.") else line)
            source, models = str(one.transformers), ",".join((*QUICK, *MORE))
            done = overlay("gen", "--all", "--models", models, "--source", source, "-o", str(folder / "made"))
            assert done.returncode == 0, done.stderr[-2000:]
            python = ("--python", str(one.python))
            done = overlay("install", "--transformers", release, "--generated", str(folder / "made"), *python)
            assert done.returncode == 0, done.stderr[-2000:]
            made[release] = one
        return made[release]

    return find


@pytest.mark.parametrize(
    ("release", "model"),
    [
        pytest.param(release, model, marks=() if (release, model in QUICK) == ("4.57.6", True) else pytest.mark.full)
        for release in RELEASES
        for model in (*QUICK, *MORE)
    ],
)
def test_a_generated_overlay_is_verified_as_it_is_installed(
    release: str, model: str, installed: Callable[[str], Environment], tmp_path: Path
) -> None:
    python = ("--python", str(installed(release).python))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": model, **SIZES}))
    done = overlay("verify", "--model", str(config), "--tiers", "torch", "--cases", "quick", "--json", *python)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-2000:])
    (source,) = json.loads(done.stdout)["sources"]
    assert (source["origin"], source["installed"]) == ("generated", "overlay")
