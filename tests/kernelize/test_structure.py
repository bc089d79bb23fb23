"""What is found by structure in models that nobody registered, what is declined, and that every replacement is
proven.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amd_ops
from amd_ops import DeclinedWarning
from amd_ops.kernelize import (
    KernelizeError,
    curated,
    curated_models,
    kernelize_model,
    kernelize_report,
    overlay_models,
    ready,
    structure,
    unkernelize_model,
)
from amd_ops.kernelize.structure import COMPUTES, rewritten

ALL = frozenset(COMPUTES)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The custom model and the launch counter of examples/kernelize_custom_model.py."""
    path = Path(__file__).resolve().parents[2] / "examples" / "kernelize_custom_model.py"
    spec = importlib.util.spec_from_file_location("kernelize_custom_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class LlamaForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16) + 0.5)
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(kind)


class MetaForm(LlamaForm):
    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x.float()).type_as(x) * self.weight


class GemmaForm(MetaForm):
    def forward(self, x: Tensor) -> Tensor:
        out = self._norm(x.float())
        out = out * (1.0 + self.weight.float())
        return out.type_as(x)


class OneRounding(LlamaForm):
    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * x).to(kind)


class LayerNormForm(LlamaForm):
    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class ClampedNorm(LlamaForm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)).clamp(-1, 1)


class BranchingNorm(LlamaForm):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return x
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class NameOnlyRMSNorm(LlamaForm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize(
    ("cls", "form"), [(LlamaForm, "llama"), (MetaForm, "llama"), (GemmaForm, "gemma"), (OneRounding, "fp32_weight")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_forms(cls: type[nn.Module], form: str, dtype: torch.dtype) -> None:
    layer = cls().to(dtype)
    x = torch.randn(5, 16, dtype=dtype)
    expected = layer(x)
    kernelize_model(layer)
    (row,) = kernelize_report(layer).layers
    assert row.source == f"amd_ops.rms_norm({form})"
    assert torch.equal(layer(x), expected), "the first call is the original's"
    amd_ops.reset_counters()
    assert torch.allclose(layer(x).float(), expected.float(), atol=1e-6 if dtype is torch.float32 else 2e-2)
    assert amd_ops.report().calls("rms_norm") == 1
    assert row.fallbacks == {}


@pytest.mark.parametrize("cls", [LayerNormForm, ClampedNorm, BranchingNorm, NameOnlyRMSNorm])
def test_norms_that_are_not_surely_ours(cls: type[nn.Module]) -> None:
    layer = cls()
    x = torch.randn(2, 16)
    expected = layer(x)
    kernelize_model(layer)
    assert type(layer) is cls
    assert torch.equal(layer(x), expected)


def test_a_decline_has_a_reason() -> None:
    assert "forward calls clamp" in str(kernelize_report(kernelize_model(ClampedNorm())))
    assert "forward has a if statement" in str(kernelize_report(kernelize_model(BranchingNorm())))
    assert "no form of RMS norm computes the same" in str(kernelize_report(kernelize_model(LayerNormForm())))


def test_a_decline_is_no_broken_request() -> None:
    kernelize_model(ClampedNorm(), use_fallback=False)


class HalfSilu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return F.silu(a) * b


class SecondHalfSilu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return a * F.silu(b)


class HalfGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return F.gelu(a, approximate="tanh") * b


def test_gated_activations() -> None:
    assert rewritten(HalfSilu, ALL).source == "amd_ops.silu_and_mul"
    assert rewritten(HalfGelu, ALL).source == "amd_ops.gelu_tanh_and_mul"
    declined = rewritten(SecondHalfSilu, ALL)
    assert declined.make is None
    assert "neither silu" in declined.declined[0]
    layer, x = kernelize_model(HalfSilu()), torch.randn(3, 8)
    for _ in range(2):
        assert torch.allclose(layer(x), HalfSilu()(x), atol=1e-6)


class OneLine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.a(x)) * self.b(x))


class ManyLines(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.act(self.a(x))
        up = self.b(x)
        hidden = up * gate
        return self.c(hidden)


class SameName(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.a(x)) * self.b(x)
        hidden = self.c(hidden)
        return hidden


class ReadTwice(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.act(self.a(x))
        return self.c(gate * self.b(x)) + 0 * gate.sum()


class Doubled(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.a(x)) * self.b(x)) * 2


class CallsSilu(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.silu(self.a(x)) * self.b(x))


class OtherInput(OneLine):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.a(x)) * self.b(x + 1))


@pytest.mark.parametrize(
    ("cls", "found"),
    [
        (OneLine, True),
        (ManyLines, True),
        (SameName, True),
        (CallsSilu, True),
        (ReadTwice, False),
        (Doubled, False),
        (OtherInput, False),
    ],
)
def test_gated_mlps(cls: type[nn.Module], found: bool) -> None:
    layer = cls().eval()
    x = torch.randn(3, 8)
    expected = layer(x)
    with torch.no_grad():
        kernelize_model(layer)
        assert (type(layer) is not cls) == found
        for _ in range(2):
            assert torch.allclose(layer(x), expected, atol=1e-5)


def test_a_gated_mlp_that_calls_silu_itself_runs_fused() -> None:
    layer = CallsSilu().eval()
    x = torch.randn(3, 8)
    expected = layer(x)
    with torch.no_grad(), amd_ops.override(use_fused_projections=1, use_optimized_ops=1):
        kernelize_model(layer)
        layer(x)  # the first call proves the replacement
        amd_ops.reset_counters()
        assert torch.allclose(layer(x), expected, atol=1e-5)
    assert (amd_ops.report().calls("gated_mlp", "fused"), amd_ops.report().calls("silu_and_mul")) == (1, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))


class Three(Attention):
    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.q_proj(h), self.k_proj(h), self.v_proj(h)
        return q + 2 * k + 3 * v


class Rebound(Attention):
    def forward(self, h: Tensor) -> Tensor:
        q = self.q_proj(h)
        h = h + 1
        k = self.k_proj(h)
        v = self.v_proj(h)
        return q + 2 * k + 3 * v


class Conditional(Attention):
    def forward(self, h: Tensor, cross: Tensor | None = None) -> Tensor:
        q = self.q_proj(h)
        k = self.k_proj(h) if cross is None else self.k_proj(cross)
        v = self.v_proj(h)
        return q + 2 * k + 3 * v


class CrossAttention(Attention):
    def forward(self, h: Tensor, other: Tensor) -> Tensor:
        q = self.q_proj(h)
        k = self.k_proj(other)
        v = self.v_proj(other)
        return q + 2 * k + 3 * v


class WithSuper(Three):
    def forward(self, h: Tensor) -> Tensor:
        q = self.q_proj(h)
        k = self.k_proj(h)
        v = self.v_proj(h)
        return super().forward(h) + q + k + v


@pytest.mark.parametrize(
    ("cls", "found"),
    [(Three, True), (Rebound, False), (Conditional, False), (CrossAttention, False), (WithSuper, True)],
)
def test_projections(cls: type[nn.Module], found: bool) -> None:
    assert (rewritten(cls, ALL) is not None) == found
    layer, h = cls().eval(), torch.randn(3, 8)
    arguments = (h, torch.randn(3, 8)) if cls is CrossAttention else (h,)
    expected = layer(*arguments)
    kernelize_model(layer)
    for _ in range(2):
        assert torch.allclose(layer(*arguments), expected, atol=1e-5)


class Sdpa(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=0.3, enable_gqa=True)


class SdpaByName(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query=q, key=k, value=v)


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_calls_keep_torchs_alignment(rows: int, causal: bool) -> None:
    """torch counts causality from the first key; with a cache (fewer queries than keys) ours may not be used."""
    layer, stock = kernelize_model(Sdpa()), Sdpa()
    q, k, v = torch.randn(2, 4, rows, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    for _ in range(2):
        assert torch.allclose(layer(q, k, v, causal=causal), stock(q, k, v, causal=causal), atol=1e-6)
    mask = torch.rand(2, 1, rows, 5) > 0.3
    mask[..., 0] = True
    for _ in range(2):
        assert torch.allclose(layer(q, k, v, mask), stock(q, k, v, mask), atol=1e-6)


def test_attention_calls_by_name_are_left_alone() -> None:
    assert rewritten(SdpaByName, ALL) is None


def test_a_disagreement_is_kept_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement that computes something else is found out at its first use and never used."""
    real = ready.op
    monkeypatch.setattr(
        ready, "op", lambda name: (lambda *a, **k: real(name)(*a, **k) * 1.01) if name == "rms_norm" else real(name)
    )
    layer, x = LlamaForm(), torch.randn(4, 16)
    expected = layer(x)
    kernelize_model(layer)
    with pytest.warns(
        DeclinedWarning, match=r"rms_norm in float32 is not proven: differs from the original by .* allowed"
    ):
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)
    (row,) = kernelize_report(layer).layers
    assert sum(row.fallbacks.values()) == 2


def test_an_op_that_raises_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(ready, "op", lambda name: broken)
    layer, x = LlamaForm(), torch.randn(4, 16)
    expected = layer(x)
    kernelize_model(layer)
    with pytest.warns(DeclinedWarning, match="raised RuntimeError: no kernel image"):
        assert torch.equal(layer(x), expected)


def test_the_proof_is_made_once_per_class_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = LlamaForm.forward

    def counted(self: Any, x: Tensor) -> Tensor:
        calls.append(x.dtype)
        return original(self, x)

    found = rewritten(LlamaForm, ALL)
    assert found is not None
    monkeypatch.setattr(LlamaForm, "forward", counted)
    pair = kernelize_model(nn.Sequential(LlamaForm(), LlamaForm()))
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(3):
            pair.to(dtype)(torch.randn(2, 16, dtype=dtype))
    assert calls == [torch.float32, torch.bfloat16]


def test_source_that_is_not_there() -> None:
    space: dict[str, Any] = {"nn": nn}
    exec("class SecretMLP(nn.Module):\n    def forward(self, x):\n        return x\n", space)
    layer = kernelize_model(space["SecretMLP"]())
    assert "the source of SecretMLP.forward is not available" in str(kernelize_report(layer))


def test_the_custom_model_gains_what_the_overlay_gains(example: ModuleType) -> None:
    """40 launches per layer and decode step in stock Llama, 13 with the overlay's six computes."""
    torch.manual_seed(0)
    with amd_ops.override(use_optimized_ops=1, use_fused_projections=1):
        stock, _ = example.per_layer(lambda layers: example.CustomModel(layers).to(torch.bfloat16), False)
        fast, _ = example.per_layer(lambda layers: example.CustomModel(layers).to(torch.bfloat16), True)
    assert stock.total() == 40
    assert fast.total() <= 13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_custom_model_computes_the_same(example: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stock = example.CustomModel().to(dtype).eval()
    with amd_ops.override(use_optimized_ops=1, use_fused_projections=1), torch.no_grad():
        fast = kernelize_model(copy.deepcopy(stock), mode="inference", use_fallback=False)
        ours, theirs = ([[], []] for _ in range(2))
        for ids in ([[1, 2, 3, 4]], [[5]], [[6]], [[7]]):
            got, expected = fast(torch.tensor(ids), ours), stock(torch.tensor(ids), theirs)
            assert torch.allclose(got.float(), expected.float(), atol=2e-5 if dtype is torch.float32 else 5e-2)
    report = kernelize_report(fast)
    assert {row.kernel for row in report.applied} == {
        "amd_ops:rms_norm",
        "amd_ops:gated_mlp",
        "amd_ops:qkv+rope+attention",
    }
    assert all(row.fallbacks == {} for row in report.layers)
    unkernelize_model(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in stock.modules()]


def test_a_proven_model_compiles_without_a_graph_break(example: ModuleType) -> None:
    torch.manual_seed(0)
    stock = example.CustomModel().eval()
    block = kernelize_model(copy.deepcopy(stock)).blocks[0]
    x = torch.randn(1, 3, 64)
    with torch.no_grad():
        for layer, original in ((block.before, stock.blocks[0].before), (block.feed, stock.blocks[0].feed)):
            layer(x)
            compiled = torch.compile(layer, backend="eager", fullgraph=True)
            assert torch.allclose(compiled(x), original(x), atol=1e-5)


def test_training_goes_through_and_gradients_agree(example: ModuleType) -> None:
    torch.manual_seed(0)
    stock = example.CustomModel().train()
    fast = kernelize_model(copy.deepcopy(stock))
    ids = torch.tensor([[1, 2, 3, 4]])
    for _ in range(2):
        for model in (stock, fast):
            model.zero_grad()
            model(ids, [[], []]).square().mean().backward()
        for (name, a), (_, b) in zip(fast.named_parameters(), stock.named_parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def everything_of(module: Any) -> dict[Any, dict[str, Any]]:
    """Every attribute of a module and of its classes."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return {owner: dict(vars(owner)) for owner in (module, *classes)}


def pair(name: str) -> tuple[Any, Any]:
    return getattr(amd_ops, f"apply_overlay_kernels_to_{name}"), getattr(amd_ops, f"revert_overlay_kernels_from_{name}")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral", "vit"])
def test_convenience_functions_change_and_revert(name: str) -> None:
    pytest.importorskip("transformers")
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    before = everything_of(module)
    apply, revert = pair(name)
    changed = apply()
    told = {compute for text in changed for compute in text.partition(": ")[2].split(", ")}
    assert told == set(curated_models.CURATED[name]) - told_only_by_another_release(name)
    assert apply() == changed
    others = dict.fromkeys(set(curated_models.CURATED[name]) - {"linear"}, False)
    only = apply(**others)
    assert only
    assert all(text.endswith(": linear") for text in only)
    assert [f"{row.cls}: linear" for row in kernelize_report(None).layers] == only
    assert revert()
    assert everything_of(module) == before, "not exactly what it was"
    assert revert() == []


def told_only_by_another_release(name: str) -> set[str]:
    """Computes that the text for the installed release does not have."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    text = curated.text_for(module)
    assert text is not None, "the bundle has no overlay for the installed release"
    return {compute for compute in curated_models.CURATED[name] if f"_amd.on.{compute}".encode() not in text}


def test_every_curated_model_has_a_function_with_its_computes() -> None:
    catalog = pytest.importorskip("rocm_overlay.install.catalog")
    from rocm_overlay.verify.switches import points_of

    found: dict[str, set[str]] = {}
    for entry in (entry for line in catalog.lines() for entry in catalog.load(line).files):
        found.setdefault(entry.model, set()).update(point.switch for point in points_of("", entry.overlay_bytes()))
    assert {name: set(computes) for name, computes in curated_models.CURATED.items()} == found
    for name, computes in curated_models.CURATED.items():
        apply, _ = pair(name)
        assert apply.__name__ in dir(amd_ops)
        assert list(inspect.signature(apply).parameters) == ["model", *computes]
        assert all(compute in apply.__doc__ for compute in computes)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ropes'"):
        pair("llama")[0](ropes=False)


def test_a_class_that_was_changed_again_is_left_and_named() -> None:
    module = importlib.import_module("transformers.models.llama.modeling_llama")
    before = everything_of(module)
    apply, revert = pair("llama")
    apply()
    module.LlamaMLP.forward = lambda self, x: x
    with pytest.raises(KernelizeError, match=r"replaced again since in LlamaMLP\.forward"):
        revert()
    module.LlamaMLP.forward = before[module.LlamaMLP]["forward"]
    assert everything_of(module) == before


def test_a_model_that_is_not_curated_takes_what_kernelize_finds() -> None:
    name = "ernie4_5_moe"
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    before = everything_of(module)
    changed = overlay_models.apply_overlay_kernels(name)
    assert any(text.endswith(": rms_norm") for text in changed)
    assert overlay_models.revert_overlay_kernels(name)
    assert everything_of(module) == before


def test_convenience_function_keeps_logits_and_tokens() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=99,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    logits = model(ids).logits
    overlay_models.apply_overlay_kernels("llama")
    try:
        amd_ops.reset_counters()
        for _ in range(2):
            assert torch.allclose(model(ids).logits, logits, atol=1e-4)
        assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), expected)
        report = amd_ops.report()
        assert report.calls("rms_norm") > 0
        assert report.calls("apply_rope") > 0
    finally:
        overlay_models.revert_overlay_kernels("llama")


def test_convenience_function_for_a_model_that_does_not_exist() -> None:
    pytest.importorskip("transformers")
    from amd_ops.kernelize import KernelUnavailable, RegistrationError

    with pytest.raises(RegistrationError, match="cannot be imported"):
        overlay_models.apply_overlay_kernels("lama")
    with pytest.raises(KernelUnavailable, match=r"nothing in .* can be replaced"):
        overlay_models.apply_overlay_kernels("clip", **dict.fromkeys(overlay_models.COMPUTES, False))
    with pytest.raises(AttributeError, match="apply_overlay_kernels_to_lama"):
        _ = overlay_models.apply_overlay_kernels_to_lama


def test_an_overlaid_file_is_left_to_its_toggles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert structure.rewritten(LlamaForm, ALL) is not None
    monkeypatch.setattr(sys.modules[LlamaForm.__module__], "__amd_overlay__", "sha256:0", raising=False)
    assert structure.rewritten(LlamaForm, ALL) is None
    assert "the installed file is an overlay: its toggles decide" in str(
        kernelize_report(kernelize_model(NameOnlyRMSNorm()))
    )
