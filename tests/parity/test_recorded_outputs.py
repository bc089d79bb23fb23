"""What callers ask for beside logits: attention weights, hidden states, a compiled model, a float mask of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rocm_overlay.verify.compare import judge

import amd_ops
from examples.tiny_models import ARCHITECTURES
from tests.parity import twins

ALL = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}


@pytest.fixture(autouse=True)
def everything_on() -> Iterator[None]:
    with amd_ops.override(tiers="torch,eager", **ALL):
        yield


@pytest.mark.parametrize("through", ["argument", "config"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_weights_are_returned(architecture: str, through: str) -> None:
    """A fused attention returns no weights: when they are asked for, eager must run."""
    pair = twins.new_pair(architecture, "float32")
    pair.set_implementation("eager")
    arguments = {"output_attentions": True} if through == "argument" else {}
    found = []
    for model in (pair.stock, pair.overlay):
        model.config.output_attentions = through == "config"
        with torch.no_grad():
            out = model(twins.INPUTS.ids, use_cache=False, **arguments)
        assert len(out.attentions) == 2
        found.append({f"weights{i}": weights for i, weights in enumerate(out.attentions)})
    verdict = judge(*found, tier="torch", dtype="float32", bitwise=False)
    assert verdict.ok, verdict.deviating


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_float_mask_of_the_caller_is_honoured(architecture: str) -> None:
    """A 4D additive mask passes through transformers untouched: here a bias per position, not only 0 and -inf."""
    pair = twins.pair(architecture, "float32")
    pair.set_implementation("eager")
    ids = twins.INPUTS.ids
    length = ids.shape[1]
    bias = torch.randn(ids.shape[0], 1, length, length, generator=torch.Generator().manual_seed(3))
    mask = bias.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), torch.finfo(torch.float32).min)
    found = []
    for model in (pair.stock, pair.overlay):
        with torch.no_grad():
            found.append({"logits": model(ids, attention_mask=mask, use_cache=False).logits})
    verdict = judge(*found, tier="torch", dtype="float32", bitwise=False)
    assert verdict.ok, verdict.deviating


def test_embeddings_as_inputs_get_a_gradient() -> None:
    """Frozen weights, input that needs a gradient: prompt tuning. Fusion must not cut the graph."""
    pair = twins.new_pair("llama", "float32")
    gradients = []
    for model in (pair.stock, pair.overlay):
        model.requires_grad_(False)
        embeddings = model.get_input_embeddings()(twins.INPUTS.ids).detach().requires_grad_(True)
        model(inputs_embeds=embeddings, use_cache=False).logits.square().mean().backward()
        assert embeddings.grad is not None
        gradients.append({"grad.inputs": embeddings.grad})
    verdict = judge(*gradients, tier="torch", dtype="float32", bitwise=False)
    assert verdict.ok, verdict.deviating


def test_a_compiled_model_gives_the_same_logits() -> None:
    """torch.compile must trace through the overlaid forward (aot_eager needs no C compiler)."""
    pair = twins.new_pair("llama", "float32")
    reference = {"logits": pair.stock(twins.INPUTS.ids, use_cache=False).logits.detach()}
    torch._dynamo.reset()
    compiled = torch.compile(pair.overlay, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):  # the first call fuses, the second runs what the first compiled
            found = {"logits": compiled(twins.INPUTS.ids, use_cache=False).logits}
            verdict = judge(reference, found, tier="torch", dtype="float32", bitwise=False)
            assert verdict.ok, verdict.deviating
    torch._dynamo.reset()
