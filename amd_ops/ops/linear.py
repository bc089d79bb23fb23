"""x @ weight.T + bias, and the same for an nn.Linear that may be replaced by it.

Tiers: aiter (tuned bf16/fp16 GEMM) -> torch (F.linear) -> eager (matmul and add).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import toggles
from ..backends.shuffled import plain_of
from ..checks import TORCH_ERRORS, complaint, describe, same_place
from ..dispatch import Site, always
from ..frozen import is_plain
from ..modules import why_not_plain
from ..torch_compile import traced
from ..weights import preshuffle, shards
from .tiers import make_op

_compiling = torch.compiler.is_dynamo_compiling


def eager_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The plain formula."""
    product = torch.matmul(x, weight.t())
    return product if bias is None else product + bias


op = make_op("linear", "USE_AITER_GEMM", torch=always(F.linear), eager=eager_linear)
_traced = traced(
    op,
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    F.linear,
    lambda x, weight, bias: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
_site = Site("apply_linear", "linear", lambda settings: settings.asked("USE_AITER_GEMM"))


@op.public
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias. x [..., K], weight [N, K] (nn.Linear's layout), bias [N] or None, one dtype and
    device -> [..., N].

    Examples:
        >>> amd_ops.linear(torch.ones(1, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        tensor([[3., 4.]])
    """
    if _compiling():
        result: Tensor = _traced.call(x, weight, bias)
        return result
    op.calls += 1
    try:
        result = op.call(x, weight, bias)
    except TORCH_ERRORS:
        _diagnose(x, weight, bias)
        raise
    return result


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Run ``module(x)``, through ``linear`` where the module is exactly an nn.Linear that nobody watches or
    changed.

    A subclass (quantised, wrapped by an adapter), a hook, a patched forward or a parameter that is not plain means
    that the module itself is called, with the reason counted under ``apply_linear``.

    Examples:
        >>> amd_ops.apply_linear(nn.Linear(4, 2), torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    if _compiling():
        if _traced.opaque() and not why_not_plain(module):
            weight: Any = module.weight
            bias: Any = module.bias
            return linear(x, weight, bias)
        result: Tensor = module(x)
        return result
    reason = why_not_plain(module)
    if reason:
        spread = shards.product(module, x, linear) if type(module) is nn.Linear else None
        if spread is not None:
            _site.fast.calls += 1
            return spread
        _site.declined(reason)
        result = module(x)
        return result
    _site.fast.calls += 1
    return _linear_of(module, x)


def _linear_of(module: nn.Module, x: Tensor) -> Tensor:
    parameters: dict[str, Any] = module.__dict__["_parameters"]
    weight = parameters["weight"]
    if type(weight) is not nn.Parameter:
        weight = plain_of(weight)
    if toggles.on.preshuffle:
        preshuffle.count(weight, x)
    return linear(x, weight, parameters["bias"])


def plain_call(module: nn.Linear, x: Tensor) -> Tensor:
    """Run the arithmetic of an nn.Linear whose ``__call__`` is already on the stack, hooks included."""
    parameters: dict[str, Any] = module.__dict__["_parameters"]
    if _compiling() or not is_plain(parameters["weight"]):
        return linear(x, parameters["weight"], parameters["bias"])
    return _linear_of(module, x)


def _diagnose(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    same_place("linear", x=x, weight=weight, bias=bias)
    if x.dim() < 1:
        raise complaint("linear", "x", describe(x), "[..., K]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise complaint("linear", "weight", describe(weight), f"[N, {x.shape[-1]}]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise complaint("linear", "bias", describe(bias), f"[{weight.shape[0]}]")
