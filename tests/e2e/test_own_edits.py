"""The whole circle on a user's own edit: adopt, prove, measure, export, revert; the edit stays what runs.

transformers 4.53.2 with a gemma that was edited by hand. With every toggle off, the outputs are bit for bit those of
the *edited* model; with toggles on they agree within a tolerance; and the argument that the edit adds takes effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rocm_overlay.install.patches import blob_id

from tests.e2e import edits
from tests.e2e.environments import Environment, digest, line_4_53, overlay

pytest.importorskip("libcst")

GEMMA = "models/gemma/modeling_gemma.py"
ON = {"USE_FUSED_PROJECTIONS": "1", "USE_OPTIMIZED_OPS": "1", "USE_AITER_ATTENTION": "1"}
RUN = """
import hashlib, json, sys
import torch
from transformers import GemmaConfig, GemmaForCausalLM
torch.manual_seed(0)
config = GemmaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
                     num_key_value_heads=2, vocab_size=128, max_position_embeddings=128, cond_dim=16)
model = GemmaForCausalLM(config).eval()
if len(sys.argv) > 1:
    model.save_pretrained(sys.argv[1])
ids, cond = torch.randint(0, 128, (2, 9)), torch.randn(2, 16)
with torch.inference_mode():
    plain, conditioned = model(ids).logits, model(ids, adarms_cond=cond).logits
print(json.dumps({
    "base": getattr(sys.modules["transformers.models.gemma.modeling_gemma"], "__amd_overlay__", None),
    "bits": [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in (plain, conditioned)],
    "plain": plain.flatten().tolist(), "conditioned": conditioned.flatten().tolist(),
}))
"""


@dataclass(frozen=True)
class Edited:
    """An environment whose gemma is edited, what it computed, and where a model of it was saved."""

    environment: Environment
    text: bytes
    ran: dict[str, object]
    model: Path

    def overlay(self, *arguments: str) -> tuple[int, dict[str, object]]:
        done = overlay(*arguments, "--python", str(self.environment.python), "--json")
        assert done.stdout, done.stderr[-3000:]
        return done.returncode, json.loads(done.stdout)


def edited(tmp_path: Path, wheel: Callable[[str], Path], edit: Callable[[str], str]) -> Edited:
    made = line_4_53(tmp_path, wheel)
    file = made.transformers / GEMMA
    text = edit(file.read_text()).encode()
    file.unlink()  # a hard link into the package cache
    file.write_bytes(text)
    model = tmp_path / "model"
    ran = made.run(RUN.replace("len(sys.argv) > 1", "True").replace("sys.argv[1]", repr(str(model))))
    assert ran["base"] is None
    assert difference(ran["plain"], ran["conditioned"]) > 1e-3, "the argument of the edit does something"
    return Edited(made, text, ran, model)


def difference(first: object, second: object) -> float:
    assert isinstance(first, list)
    assert isinstance(second, list)
    return max(abs(one - two) for one, two in zip(first, second, strict=True))


def adopt_and_run(it: Edited) -> None:
    """Install, and hold what runs against the edited model, toggles off and on."""
    code, refused = it.overlay("install", "--transformers", "4.53")
    assert (code, refused["error"]["id"]) == (4, "edited-files")  # type: ignore[index]
    assert "--adopt" in str(refused["error"]["remedy"])  # type: ignore[index]
    assert (it.environment.transformers / GEMMA).read_bytes() == it.text, "nothing was written"
    code, done = it.overlay("install", "--transformers", "4.53", "--models", "gemma", "--adopt")
    assert (code, done["adopted"]) == (0, [GEMMA])
    code, status = it.overlay("status", "--check")
    (file,) = status["files"]  # type: ignore[misc]
    assert (code, status["state"], file["state"], file["origin"]) == (0, "APPLIED", "overlay", "adopted")
    assert file["base"] != file["stock"], "an edited hash is never called stock"
    off = it.environment.run(RUN)
    assert str(off["base"]).endswith(file["base"])
    assert off["bits"] == it.ran["bits"], "off means the edited model, bit for bit"
    on = it.environment.run(RUN, **ON)
    assert difference(on["plain"], it.ran["plain"]) < 1e-4
    assert difference(on["conditioned"], it.ran["conditioned"]) < 1e-4
    assert difference(on["plain"], on["conditioned"]) > 1e-3, "the argument still does something"


def prove(it: Edited) -> None:
    code, report = it.overlay("verify", "--model", str(it.model), "--tiers", "torch", "--cases", "quick")
    assert code == 0, report
    (source,) = report["sources"]  # type: ignore[misc]
    assert (source["origin"], source["installed"]) == ("adopted", "overlay")
    code, attested = it.overlay("attest")
    assert [one["origin"] for one in attested["files"]] == ["adopted"]  # type: ignore[attr-defined]
    patch = overlay("export", "--models", "gemma", "--python", str(it.environment.python))
    assert (patch.returncode, "+__amd_overlay__" in patch.stdout) == (0, True)
    assert f"index {blob_id(it.text)}.." in patch.stdout, "the patch begins at the edited text"


def measure(it: Edited, folder: Path) -> None:
    model = ("--model", str(it.model), "--isl", "8")
    code, bench = it.overlay("bench", *model, "--rounds", "1", "--runs", "1", "--osl", "4", "-o", str(folder / "bench"))
    assert code == 0, bench
    code, profile = it.overlay("profile", *model, "--runs", "1", "--dtype", "float32", "-o", str(folder / "traces"))
    assert code == 0, profile


def revert(it: Edited) -> None:
    code, _ = it.overlay("revert")
    assert code == 0
    assert (it.environment.transformers / GEMMA).read_bytes() == it.text
    assert it.environment.run(RUN)["bits"] == it.ran["bits"]


def test_an_adaptive_norm_is_adopted_proved_and_reverted(tmp_path: Path, wheel: Callable[[str], Path]) -> None:
    it = edited(tmp_path, wheel, edits.adaptive_norm)
    before = digest(it.environment.transformers)
    adopt_and_run(it)
    prove(it)
    revert(it)
    assert digest(it.environment.transformers) == before


@pytest.mark.full
@pytest.mark.parametrize("edit", [edits.attention_bias, edits.scaled_mlp])
def test_an_edited_attention_and_an_edited_mlp(
    edit: Callable[[str], str], tmp_path: Path, wheel: Callable[[str], Path]
) -> None:
    it = edited(tmp_path, wheel, edit)
    before = digest(it.environment.transformers)
    adopt_and_run(it)
    prove(it)
    measure(it, tmp_path)
    revert(it)
    assert digest(it.environment.transformers) == before


@pytest.mark.full
def test_what_gen_makes_of_an_edit_is_installed_proved_and_measured(
    tmp_path: Path, wheel: Callable[[str], Path]
) -> None:
    it = edited(tmp_path, wheel, edits.adaptive_norm)
    folder = tmp_path / "generated"
    made = overlay("gen", "--all", "--models", "gemma", "--source", str(it.environment.transformers), "-o", str(folder))
    # Exit 1 names what the edit costs: the norm takes another argument now, so that recipe leaves it alone.
    assert (made.returncode, "GemmaRMSNorm.forward" in made.stderr) == (1, True), made.stderr
    assert (folder / GEMMA).is_file()
    code, done = it.overlay("install", "--transformers", "4.53", "--generated", str(folder))
    assert (code, done["adopted"]) == (0, [GEMMA]), done
    assert it.environment.run(RUN)["bits"] == it.ran["bits"]
    code, report = it.overlay("verify", "--model", str(it.model), "--tiers", "torch", "--cases", "quick")
    assert (code, report["sources"][0]["origin"]) == (0, "generated"), report  # type: ignore[index]
    measure(it, tmp_path)
    revert(it)
