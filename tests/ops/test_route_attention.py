"""route_attention against transformers' own attention functions."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amd_ops
from amd_ops.forward import attention as routing

pytest.importorskip("transformers")

from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped_eager
from transformers.models.llama.modeling_llama import eager_attention_forward as eager


class Attention(nn.Module):
    """What the interface functions read of an attention module."""

    def __init__(self, groups: int = 2, layer: int | None = 0) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.layer_idx = layer
        self.is_causal = True
        self.head_dim = 8
        self.config = types.SimpleNamespace(_attn_implementation="sdpa", output_attentions=False)


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, rows, 4, 8).to(dtype).transpose(1, 2)
    return q, torch.randn(2, 2, columns, 8).to(dtype), torch.randn(2, 2, columns, 8).to(dtype)


def causal(rows: int, columns: int, pads: tuple[int, int] = (0, 0), window: int | None = None) -> Tensor:
    key, own = torch.arange(columns), torch.arange(rows)[:, None] + columns - rows
    seen = (key <= own) & (key >= torch.tensor(pads)[:, None, None])
    return (seen if window is None else seen & (key > own - window))[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def cut(mask: Tensor | None, columns: int) -> Tensor | None:
    """A mask without what lies behind the keys: transformers 4 cuts it itself, transformers 5 makes no longer ones."""
    return None if mask is None else mask[..., :columns]


def routed(stock: Any, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return amd_ops.route_attention(module, stock)(module, *args, **kwargs)


def reasons() -> dict[str, int]:
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] == "route_attention":
            return {d["reason"]: d["calls"] for d in row["tiers"][0]["declined"]}
    return {}


SDPA_CASES = {
    "prefill": (6, 6, None),
    "decode": (1, 7, None),
    "chunk": (3, 7, causal(3, 7)),
    "left padded": (6, 6, causal(6, 6, (0, 3))),
    "padded decode": (1, 7, causal(1, 7, (0, 3))),
    "window": (6, 6, causal(6, 6, window=2)),
    "mask longer than the keys": (3, 7, torch.cat((causal(3, 7), torch.zeros(2, 1, 3, 4, dtype=torch.bool)), -1)),
    "additive": (6, 6, torch.randn(2, 1, 6, 6)),
}


@pytest.mark.parametrize("case", SDPA_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_sdpa_is_reproduced_bit_for_bit(case: str, dtype: torch.dtype, scaling: float | None) -> None:
    rows, columns, mask = SDPA_CASES[case]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    q, k, v = inputs(rows, columns, dtype)
    module = Attention()
    got, weights = routed(
        sdpa, module, q, k, v, mask, dropout=0.0, scaling=scaling, sliding_window=2, position_ids=None
    )
    want, _ = sdpa(module, q, k, v, cut(mask, columns), dropout=0.0, scaling=scaling)
    assert weights is None
    assert got.is_contiguous()
    if case == "padded decode" and not hasattr(sdpa_attention, "pack_gqa"):  # transformers 4 repeats the heads instead
        torch.testing.assert_close(got, want)
    else:
        assert torch.equal(got, want)
    assert reasons() == {}
    assert amd_ops.report().calls("attention", "torch") == 1


@pytest.mark.parametrize("case", SDPA_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_eager_is_reproduced(case: str, dtype: torch.dtype, softcap: float | None) -> None:
    rows, columns, mask = SDPA_CASES[case]
    if mask is not None:
        mask = additive(mask, dtype) if mask.dtype == torch.bool else mask.to(dtype)
    q, k, v = inputs(rows, columns, dtype)
    stock = eager if softcap is None else capped_eager
    options = {"scaling": 0.3, "dropout": 0.0, "softcap": softcap}
    module = Attention().eval()
    want, _ = stock(module, q, k, v, cut(mask, columns), **options)
    got, weights = routed(stock, module, q, k, v, mask, **options)
    assert weights is None
    assert got.is_contiguous()
    tolerance = 1e-5 if dtype is torch.float32 else 1.6e-2
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    with amd_ops.override(force_eager_attention=1):
        assert torch.equal(routed(stock, module, q, k, v, mask, **options)[0], want), "tier eager is the stock formula"
    assert reasons() == {}


def test_llama_eager_ignores_a_soft_cap_as_stock_does() -> None:
    q, k, v = inputs(6, 6)
    module = Attention().eval()
    want, _ = eager(module, q, k, v, None, scaling=0.3, softcap=0.01)
    got, _ = routed(eager, module, q, k, v, None, scaling=0.3, softcap=0.01)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_eager_without_a_mask_is_not_causal() -> None:
    q, k, v = inputs(4, 4)
    module = Attention().eval()
    got, _ = routed(eager, module, q, k, v, None, scaling=0.3)
    torch.testing.assert_close(got, eager(module, q, k, v, None, scaling=0.3)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 16), (5, 3)])
def test_sdpa_without_a_mask_counts_from_the_first_key(rows: int, columns: int) -> None:
    """transformers 5 fills an empty static cache so: the queries are the first ones, the other slots are not
    written.
    """
    q, k, v = inputs(rows, columns)
    k[:, :, rows:], v[:, :, rows:] = 1e4, 1e4
    module = Attention()
    got, _ = routed(sdpa, module, q, k, v, None, scaling=0.3)
    assert torch.equal(got, sdpa(module, q, k, v, None, scaling=0.3)[0])
    assert any("counted from the first key" in reason for reason in reasons())


def test_a_module_that_is_not_causal() -> None:
    q, k, v = inputs(4, 4)
    module = Attention()
    module.is_causal = False
    assert torch.equal(routed(sdpa, module, q, k, v, None, scaling=0.3)[0], sdpa(module, q, k, v, None, scaling=0.3)[0])
    module.is_causal = True
    got = routed(sdpa, module, q, k, v, None, scaling=0.3, is_causal=False)[0]
    assert torch.equal(got, sdpa(module, q, k, v, None, scaling=0.3, is_causal=False)[0])
    assert reasons() == {}


@pytest.mark.parametrize(
    ("stock", "options", "reason"),
    [
        (sdpa, {"softcap": 3.0}, "stock sdpa does not honour"),
        (sdpa, {"dropout": 0.1}, "dropout is on"),
        (eager, {"dropout": 0.1}, "dropout is on"),
        (eager, {"output_attentions": True}, "attention weights"),
        (sdpa, {"output_attentions": True}, "attention weights"),
        (sdpa, {"s_aux": torch.zeros(4)}, "sinks"),
        (capped_eager, {"scaling": None}, "no scaling"),
    ],
)
def test_what_is_left_to_stock(stock: Any, options: dict, reason: str) -> None:
    q, k, v = inputs(4, 4)
    module = Attention().eval()
    options = {"scaling": 0.3, **options}
    torch.manual_seed(5)
    try:
        want = stock(module, q, k, v, None, **options)
    except ValueError as refusal:  # transformers 5 refuses a soft cap under sdpa
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            routed(stock, module, q, k, v, None, **options)
    else:
        torch.manual_seed(5)
        got = routed(stock, module, q, k, v, None, **options)
        assert torch.equal(got[0], want[0])
        assert (got[1] is None) == (want[1] is None)
    assert any(reason in found for found in reasons())


def test_a_mask_and_is_causal_together_are_left_to_stock() -> None:
    """Some torch versions refuse the pair, others combine it from the first key: whatever stock does."""
    q, k, v = inputs(4, 4)
    outcomes = []
    for function in (sdpa, amd_ops.route_attention(Attention(), sdpa)):
        try:
            outcomes.append(function(Attention(), q, k, v, causal(4, 4), scaling=0.3, is_causal=True)[0])
        except RuntimeError as error:
            outcomes.append(str(error))
    same = torch.equal(*outcomes) if isinstance(outcomes[0], Tensor) else outcomes[0] == outcomes[1]
    assert same
    assert "sdpa was given a mask and is_causal together" in reasons()


def watched(how: str) -> Attention:
    module = Attention().eval()
    if how == "config":
        module.config.output_attentions = True
    if how == "recorder":
        module.forward = lambda *args: None  # type: ignore[method-assign]
    if how == "hook":
        module.register_forward_hook(lambda m, args, out: None)
    return module


@pytest.mark.parametrize("how", ["config", "recorder", "hook"])
def test_eager_keeps_its_weights_for_whoever_watches(how: str) -> None:
    q, k, v = inputs(4, 4)
    module = watched(how)
    got, weights = routed(eager, module, q, k, v, None, scaling=0.3)
    assert weights is not None
    assert torch.equal(got, eager(module, q, k, v, None, scaling=0.3)[0])


def test_a_bool_mask_in_eager_is_left_to_stock() -> None:
    """Stock adds True as 1.0 there: wrong, but the model's own arithmetic."""
    q, k, v = inputs(4, 4)
    module = Attention().eval()
    got, _ = routed(eager, module, q, k, v, causal(4, 4), scaling=0.3)
    assert torch.equal(got, eager(module, q, k, v, causal(4, 4), scaling=0.3)[0])
    assert any("the eager mask is torch.bool" in reason for reason in reasons())


def imitation(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return torch.zeros(1), None


def with_position_bias(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The eager function of T5 in transformers 5: only a parameter tells that it knows a bias."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("eager_attention_forward", "transformers.models.t5.modeling_t5"),
        ("sdpa_attention_forward", "transformers.integrations.sdpa_attention"),
    ],
)
def test_a_parameter_that_the_op_lacks_is_left_to_stock(name: str, home: str) -> None:
    """Dropping it would be another model: T5 of transformers 5.23 came out 5 % off."""
    names = {"co_name": name, **({"co_qualname": name} if sys.version_info >= (3, 11) else {})}
    code = with_position_bias.__code__.replace(**names)
    stock = types.FunctionType(code, {**globals(), "__name__": home}, name, (1.0, 0.0, None))
    stock.__module__ = home
    q, k, v = inputs(6, 6)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    module, bias = Attention(groups=1).eval(), torch.randn(1, 4, 6, 6)
    got, _ = routed(stock, module, q, k, v, None, scaling=0.3, position_bias=bias)
    assert torch.equal(got, with_position_bias(module, q, k, v, None, scaling=0.3, position_bias=bias)[0])
    assert reasons() == {"the model passes 'position_bias', which our op does not know": 1}
    module.is_causal = False
    routed(stock, module, q, k, v, None, scaling=0.3, position_bias=None)
    assert sum(reasons().values()) == 1, "without one the op takes the call"


def test_a_single_query_that_is_called_causal_is_left_to_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 lets it see the first key, 5 every key; a kernel would be right in one of them."""
    monkeypatch.setattr(type(routing.op), "can", lambda self, tier: True)
    q, k, v = inputs(1, 7)
    got, _ = routed(sdpa, Attention().eval(), q, k, v, None, scaling=0.3, is_causal=True)
    assert torch.equal(got, sdpa(Attention().eval(), q, k, v, None, scaling=0.3, is_causal=True)[0])
    assert [reason for reason in reasons() if reason.startswith("causality is counted from the first key")]


def test_a_trace_knows_the_parameters_of_this_transformers() -> None:
    assert set(routing._unknown_parameters(sdpa)) <= set(routing._UNKNOWN_TO_SDPA)


def test_other_implementations_are_called_as_they_are() -> None:
    module = Attention()
    module.config._attn_implementation = "flash_attention_2"
    assert amd_ops.route_attention(module, imitation) is imitation
    imitation.__name__ = "sdpa_attention_forward"
    assert amd_ops.route_attention(module, imitation) is imitation, "the name alone is not enough"
    (reason,) = reasons()
    assert "'flash_attention_2'" in reason
    assert reasons()[reason] == 2


@pytest.mark.parametrize(
    ("rows", "reason"), [(1, "need tier triton at a decode step"), (3, "need tier aiter in a prompt")]
)
def test_an_eager_function_with_sinks_stays_stocks_where_no_kernel_knows_them(rows: int, reason: str) -> None:
    stock = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss").eager_attention_forward
    module = Attention().eval()
    module.sinks = nn.Parameter(torch.randn(4), requires_grad=False)
    q, k, v = inputs(rows, 7)
    mask = additive(causal(rows, 7), torch.float32)
    want, _ = stock(module, q, k, v, mask, scaling=0.3)
    assert torch.equal(routed(stock, module, q, k, v, mask, scaling=0.3, s_aux=module.sinks)[0], want)
    assert [one for one in reasons() if reason in one]


@pytest.mark.parametrize("sinks", [None, torch.zeros(3), nn.Buffer(torch.zeros(4)), "sinks"])
def test_sinks_that_are_no_plain_parameter_stay_stocks(sinks: Any) -> None:
    assert "no plain parameter of one number per head" in routing._unsinkable(torch.zeros(1, 4, 1, 8), sinks)


@pytest.mark.parametrize("tier", ["aiter", "triton"])
def test_sinks_reach_the_op_whose_tier_is_live(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without either, the eager formula stands in for it."""
    stock = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss").eager_attention_forward
    monkeypatch.setattr(type(routing.op), "can", lambda self, name: name == tier)
    module = Attention().eval()
    module.sinks = nn.Parameter(torch.randn(4), requires_grad=False)
    rows = 1 if tier == "triton" else 3
    q, k, v = inputs(rows, 7)
    mask = additive(causal(rows, 7, (0, 2)), torch.float32)
    got, weights = routed(stock, module, q, k, v, mask, scaling=0.3, s_aux=module.sinks)
    assert weights is None
    torch.testing.assert_close(got, stock(module, q, k, v, mask, scaling=0.3)[0], rtol=1e-5, atol=1e-6)
    op = "sink_attention" if tier == "triton" else "attention"
    assert amd_ops.report().calls(op) == 1
    with pytest.MonkeyPatch.context() as again:
        again.setattr(module.sinks, "requires_grad", True)
        routed(stock, module, q, k, v, mask, scaling=0.3)
    assert [one for one in reasons() if "gradients of the attention sinks are wanted" in one]


def test_the_route_is_made_once() -> None:
    module = Attention()
    assert amd_ops.route_attention(module, sdpa) is amd_ops.route_attention(Attention(), sdpa)


def test_every_known_eager_form_is_recognised() -> None:
    """The eight architectures that are overlaid first."""
    import importlib

    for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "mixtral"):
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        kind = "eager with soft cap" if name == "gemma2" else "eager"
        assert routing._kind(nn.Identity(), module.eager_attention_forward) == kind


def test_gradients_flow_through_the_route() -> None:
    grads = []
    for function in (sdpa, amd_ops.route_attention(Attention(), sdpa)):
        torch.manual_seed(2)
        q, k, v = (x.detach().requires_grad_() for x in inputs(5, 5))
        function(Attention(), q, k, v, None, scaling=0.3)[0].square().sum().backward()
        grads.append((q.grad, k.grad, v.grad))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
