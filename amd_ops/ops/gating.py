"""Gates by a sigmoid: of an attention's output, and of what a shared expert adds to the others (qwen3_next).

Tiers: triton (one launch each; inference) -> torch and eager (stock's own operations in stock's order).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import always
from .tiers import make_op

_compiling = torch.compiler.is_dynamo_compiling


def stock_gate(x: Tensor, gate: Tensor) -> Tensor:
    """The gate is brought to x's shape first, which copies it where it was cut from something wider."""
    return x * torch.sigmoid(gate.reshape(x.shape))


_gate = make_op("sigmoid_gate", "USE_OPTIMIZED_OPS", torch=always(stock_gate), eager=stock_gate)


@_gate.public
def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Return x * sigmoid(gate): x [..., N], a gate of as many numbers in the same order -> [..., N].

    Raises ArgumentError on unusable arguments.

    Examples:
        >>> amd_ops.sigmoid_gate(torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2, 1))
        tensor([[1., 2.]])
    """
    if _compiling():
        return stock_gate(x, gate)  # a compiler fuses the formula better than we can
    _gate.calls += 1
    try:
        result: Tensor = _gate.call(x, gate)
    except TORCH_ERRORS:
        for name, tensor in (("x", x), ("gate", gate)):
            if not isinstance(tensor, Tensor) or tensor.numel() != x.numel():
                wanted = "a tensor" if name == "x" else f"a tensor of {x.numel()} numbers"
                raise complaint("sigmoid_gate", name, describe(tensor), wanted) from None
        raise
    return result


def stock_shared(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """qwen2_moe's and qwen3_next's statements."""
    return experts + F.sigmoid(F.linear(hidden, weight)) * shared


_shared = make_op("add_shared", "USE_OPTIMIZED_OPS", torch=always(stock_shared), eager=stock_shared)


@_shared.public
def add_shared(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """Return experts + sigmoid(hidden @ weight^T) * shared, one gate per token: experts and shared [T, N], hidden
    [T, H], weight [1, H] -> [T, N].

    Raises ArgumentError on unusable arguments.

    Examples:
        >>> rows = torch.tensor([[2.0, 4.0]])
        >>> amd_ops.add_shared(rows, rows, rows, torch.zeros(1, 2))
        tensor([[3., 6.]])
    """
    _shared.calls += 1
    try:
        result: Tensor = _shared.call(experts, shared, hidden, weight)
    except TORCH_ERRORS:
        for name, tensor in (("experts", experts), ("shared", shared), ("hidden", hidden), ("weight", weight)):
            if not isinstance(tensor, Tensor) or tensor.dim() != 2:
                raise complaint("add_shared", name, describe(tensor), "a tensor of 2 dimensions") from None
        if shared.shape != experts.shape or hidden.shape[0] != experts.shape[0]:
            wanted = f"{list(experts.shape)} and [{experts.shape[0]}, H]"
            raise complaint(
                "add_shared", "shared and hidden", f"{describe(shared)} and {describe(hidden)}", wanted
            ) from None
        if weight.shape != (1, hidden.shape[1]):
            raise complaint("add_shared", "weight", describe(weight), f"[1, {hidden.shape[1]}]") from None
        raise
    return result
