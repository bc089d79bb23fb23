"""How far an executed kernel may be from stock, and why: the bounds that the tests and the page of figures share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Answer, Case


@dataclass(frozen=True)
class Bound:
    """``ulps`` of the dtype at the size of the terms, and the share of elements that may differ at all."""

    ulps: float
    share: float
    reason: str


EXACT = Bound(0.0, 0.0, "every rounding is stock's")
_EDGE = "an fp32 that is an ulp or two off lies on the other side of a rounding edge"
_TWICE = "two roundings, each of which may fall on the other side of its edge"
_FP32 = "sums in another order, rcp, rsq and exp within 1 ulp, exp of x within |x| ulps"
BOUNDS: dict[tuple[str, bool], Bound] = {
    # (family, is it a 16-bit dtype)
    ("norm", True): Bound(1.0, 0.005, _EDGE),
    ("qk", True): Bound(2.0, 0.01, _EDGE),
    ("silu", True): Bound(2.0, 0.01, _TWICE),
    ("gelu", True): Bound(2.0, 1.0, f"{_TWICE}; stock's own tails are differences of nearly equal numbers"),
    ("backward", True): Bound(2.0, 1.0, "rounded once, stock's autograd at every step"),
    ("norm", False): Bound(8.0, 1.0, _FP32),
    ("qk", False): Bound(8.0, 1.0, _FP32),
    ("silu", False): Bound(16.0, 1.0, _FP32),
    ("gelu", False): Bound(16.0, 1.0, _FP32),
    ("backward", False): Bound(16.0, 1.0, _FP32),
    ("experts", True): Bound(2.0, 1.0, "the sum over a token's experts is rounded once, and its parts as stock's are"),
    ("experts", False): Bound(16.0, 1.0, _FP32),
    ("router", True): Bound(16.0, 1.0, f"fp32 whatever is read: {_FP32}"),
    ("router", False): Bound(16.0, 1.0, _FP32),
    ("sinks", True): Bound(1.0, 0.02, _EDGE),
    ("sinks", False): Bound(16.0, 1.0, _FP32),
    ("loss", True): Bound(2.0, 0.02, _TWICE),
    ("loss", False): Bound(64.0, 1.0, "exp of x within |x| ulps, and x, a difference, is as far as 40 below zero"),
    ("delta", True): Bound(2.0, 1.0, f"{_TWICE}; a state in fp32 has its sums in another order"),
    ("delta", False): Bound(16.0, 1.0, _FP32),
    ("gates", True): Bound(2.0, 0.01, _TWICE),
    ("gates", False): Bound(16.0, 1.0, _FP32),
    ("sum", True): Bound(4.0, 1.0, f"fp32 whatever is read: {_FP32}"),
    ("sum", False): Bound(4.0, 1.0, _FP32),
    ("rope", False): Bound(2.0, 1.0, "product and sum in one fma, where stock rounds the product"),
}


def bound(case: Case, answer: Answer) -> Bound:
    """The row that holds for an answer."""
    if answer.exact:
        return EXACT
    kind = case.name.split()[0]
    family = (
        "backward" if kind.endswith("_backward") and not kind.startswith("rope")
        else "gates" if kind == "gated_rms_norm"
        else "norm" if kind.endswith("rms_norm")
        else "qk" if kind.startswith("qk_") or ("into_cache plain" not in case.name and kind == "rope_into_cache")
        else "rope" if kind.startswith(("rope", "latent"))
        else "router" if kind in ("grouped_top_k", "router_logits")
        else "sinks" if kind == "sink_attention"
        else "delta" if kind in ("conv_step", "delta_step")
        else "gates" if kind in ("sigmoid_gate", "add_shared")
        else "sum" if answer.name == "log sum exp"
        else "loss" if kind == "cross_entropy"
        else "experts" if kind.endswith(("moe", "top_k", "top_k_softmax"))
        else kind.removesuffix("_tanh")
    )  # fmt: skip
    return BOUNDS[family, case.dtype is not torch.float32]


def distance(answer: Answer) -> tuple[float, float]:
    """Largest difference in ulps at the size of the terms, and the share of elements that differ."""
    want = answer.want.double()
    size = want.abs() if answer.size is None else torch.maximum(answer.size.double(), want.abs())
    info = torch.finfo(answer.want.dtype)
    unit = torch.exp2(torch.floor(torch.log2(size.clamp_min(info.tiny)))) * info.eps
    error = (answer.got.double() - want).abs() / unit
    worst = float(error.max()) if bool(torch.isfinite(error).all()) else float("inf")
    return worst, float((answer.got != answer.want).double().mean())


def wrong(case: Case, answer: Answer) -> str:
    """Say what is wrong with an answer; "" when it is within its bound."""
    if answer.got.shape != answer.want.shape or answer.got.dtype is not answer.want.dtype:
        return f"{answer.name}: {_kind(answer.got)}, stock has {_kind(answer.want)}"
    allowed, (ulps, share) = bound(case, answer), distance(answer)
    if ulps <= allowed.ulps and share <= allowed.share:
        return ""
    return f"{answer.name}: {ulps:.2f} ulps, {share:.2%} differ; allowed {allowed.ulps} and {allowed.share:.2%}"


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}"
