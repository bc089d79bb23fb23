"""A torch that lacks what a tier uses: the tier does without or is refused with a reason; no forward crashes."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amd_ops
from amd_ops import torch_features
from amd_ops.backends.triton import providers, target
from amd_ops.dispatch import Candidate, Refusal

from .reference import close

SOURCES = Path(amd_ops.__file__).parent
DOCUMENTED = ("torch._C", "torch.__version__", "torch._C.DisableTorchFunctionSubclass")
"""Not private for all their underscores: torch's notes on extending it tell how to use the last."""


def test_features_are_asked_by_name() -> None:
    assert torch_features.torch_takes("linear", "bias")
    assert not torch_features.torch_takes("linear", "enable_gqa")
    assert not torch_features.torch_takes("no_such_op", "bias")


def older_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.4: grouped heads are unknown, and naming them is an error."""
    real = F.scaled_dot_product_attention

    def sdpa(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        assert query.shape[1] == key.shape[1], "grouped heads"
        return real(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    monkeypatch.setattr(importlib.import_module("amd_ops.ops.attention"), "_TAKES_GROUPS", False)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_without_enable_gqa(rows: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(2, rows, 4, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
    mask = torch.rand(2, 4, rows, 7) > 0.3 if masked else None
    if mask is not None:
        mask[..., 0] = True
    with amd_ops.override(tiers="eager"):
        want = amd_ops.attention(q, k, v, is_causal=not masked, attention_mask=mask).double()
    older_sdpa(monkeypatch)
    amd_ops.reset_counters()
    close(amd_ops.attention(q, k, v, is_causal=not masked, attention_mask=mask), want, 4.0)
    assert amd_ops.report().calls("attention", "torch") == 1


@pytest.mark.parametrize("sizes", [(8, 16), (288, 288)])
def test_head_sizes_that_torch_groups_by_its_plain_formula_alone(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sdpa(*args: Any, **options: Any) -> Tensor:
        assert "enable_gqa" not in options
        return real(*args, **options)

    real = F.scaled_dot_product_attention
    q, k, v = torch.randn(1, 3, 4, sizes[0]), torch.randn(1, 3, 2, sizes[0]), torch.randn(1, 3, 2, sizes[1])
    with amd_ops.override(tiers="eager"):
        want = amd_ops.attention(q, k, v).double()
    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    close(amd_ops.attention(q, k, v), want, 4.0)


def test_a_tier_that_this_torch_does_not_carry_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.4: a norm that rounds on the way, and NaN for a query that sees no key. Asked once, at binding."""
    asked = []
    candidate = Candidate(lambda x: x)
    for answer, kind in ((True, Candidate), (False, Refusal)):
        offer = torch_features.tried(candidate, lambda answer=answer: asked.append(1) or answer, "it rounds otherwise")
        assert all(isinstance(offer(amd_ops.settings()), kind) for _ in range(2))
    assert len(asked) == 2
    assert offer(amd_ops.settings()) == Refusal("it rounds otherwise")


def test_the_trials_see_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa, norm = F.scaled_dot_product_attention, F.rms_norm

    def nan_rows(*args: Any, attn_mask: Tensor, **options: Any) -> Tensor:
        hidden = ~attn_mask.any(-1, keepdim=True)
        return sdpa(*args, attn_mask=attn_mask, **options).masked_fill(hidden, torch.nan)

    def twice(x: Tensor, shape: Any, weight: Any, eps: float) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        return x * scale.to(x.dtype)

    for name, change, trial in (
        ("scaled_dot_product_attention", nan_rows, torch_features.hides_whole_rows),
        ("rms_norm", twice, torch_features.rounds_norms_once),
    ):
        monkeypatch.setattr(F, name, change)
        assert not trial()
    monkeypatch.delattr(F, "rms_norm")
    assert not torch_features.rounds_norms_once()
    monkeypatch.setattr(F, "rms_norm", norm, raising=False)
    assert torch_features.rounds_norms_once()


def test_a_provider_whose_lookup_raises_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triton or liger that nobody here has seen may have lost any name that our modules use at their import."""

    def changed(name: str) -> Any:
        raise AttributeError("module 'triton.language' has no attribute 'rsqrt'")

    monkeypatch.setattr(providers, "_made", {})
    monkeypatch.setattr(importlib, "import_module", changed)
    offered = providers.offered("ours", "rms_norm", lambda *a: None, target.Target("cpu", "interpreter", 32, 1))
    assert isinstance(offered, Refusal)
    assert offered.unmet
    assert offered.reason == ("looking it up raised AttributeError: module 'triton.language' has no attribute 'rsqrt'")


def test_private_names_of_torch_are_looked_up_with_a_default() -> None:
    """torch._C and the like move without notice: ``getattr(..., default)`` or nothing."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.startswith(("torch._", "F._")) and text not in DOCUMENTED:
                found.append(f"{path.relative_to(SOURCES)}:{node.lineno} {text}")
    assert found == []
