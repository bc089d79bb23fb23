"""What overlaid decoder layers call for their residual stream: an add with the norm that follows it, and the layer's
last add inside the down projection's GEMM.

Both take the sub-module whose work they do and look at it at every call. Where its forward is not of the form that the
overlaid text marks, or somebody watches or changed it, they return None and count why: the stock statements then run.
The input of the layer is never written to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import modes, toggles
from ..checks import TORCH_ERRORS, complaint, describe, same_place
from ..dispatch import Site, always
from ..modules import form_of, has_own_forward, why_not_plain, why_not_unwatched
from ..ops.linear import op as linear_op
from ..ops.norm import add_rms_norm
from ..ops.rope import nobody
from ..ops.tiers import make_op
from ..weights.shards import settled
from .projections import gated_hidden

NORM_MARK = "_amd_rms_norm"
"""forward._amd_rms_norm = (weight attribute, eps attribute, form): that forward is this RMS norm and nothing else."""
MLP_MARK = "_amd_gated_mlp"
"""forward._amd_gated_mlp = keywords of gated_mlp(): that forward is a gated MLP and nothing else."""

_compiling = torch.compiler.is_dynamo_compiling


_norm_site = Site("add_norm", "fused", nobody)
_mlp_site = Site("mlp_add", "fused", nobody)


def norm_form(norm: nn.Module) -> tuple[Tensor, float, str] | str:
    """Return (weight, eps, form) of an RMS norm that may be replaced by its arithmetic, or the reason why not."""
    form = form_of(norm, NORM_MARK)
    if form is None:
        return "the norm's forward is not one that the overlaid text marks as an RMS norm"
    reason = why_not_unwatched(norm)
    if reason:
        return reason
    weight = norm.__dict__["_parameters"].get(form[0])
    if type(weight) is not nn.Parameter or weight.dim() != 1:
        return "the norm's weight is not a plain nn.Parameter"
    return weight, getattr(norm, form[1]), form[2]


def add_norm(
    norm: nn.Module, x: Tensor, residual: Tensor, *, dropout: nn.Module | None = None
) -> tuple[Tensor, Tensor] | None:
    """Return (norm(residual + x), residual + x) in one op, or None where the stock statements must run.

    x and residual [..., D]; ``norm`` is the layer's module, ``dropout`` the one that stock puts around x. Neither
    tensor is written to.

    Examples:
        >>> class Norm(nn.Module):  # no RMSNorm of an overlaid file: stock's statements run
        ...     pass
        >>> amd_ops.add_norm(Norm(), torch.ones(2, 8), torch.ones(2, 8)) is None
        True
    """
    if _compiling():
        return None
    found = norm_form(norm)
    if isinstance(found, str):
        _norm_site.declined(found)
        return None
    weight, eps, form = found
    x, residual = settled(x), settled(residual)
    reason = modes.hidden() or _unlike(x, residual) or _drops(dropout)
    if reason:
        _norm_site.declined(reason)
        return None
    _norm_site.fast.calls += 1
    return add_rms_norm(x, residual, weight, eps, form=form)


def mlp_add(
    mlp: nn.Module, x: Tensor, residual: Tensor, owned: bool = False, *, dropout: nn.Module | None = None
) -> Tensor | None:
    """Return residual + mlp(x) with the add inside the down projection's GEMM, or None where the stock statements must
    run.

    x and residual [..., H]. ``owned`` says that nobody but the calling forward holds ``residual`` (it is an add_norm's
    sum): then it is written to, outside autograd. ``dropout`` is the module that stock puts around mlp(x).

    Examples:
        >>> class MLP(nn.Module):  # no gated MLP of an overlaid file: stock's statements run
        ...     pass
        >>> amd_ops.mlp_add(MLP(), torch.ones(2, 8), torch.ones(2, 8)) is None
        True
    """
    if _compiling():
        return None
    names = form_of(mlp, MLP_MARK)
    reason = (
        "the module's forward is not one that the overlaid text marks as a gated MLP"
        if names is None
        else modes.hidden() or why_not_unwatched(mlp) or _unlike(x, residual, owned) or _drops(dropout)
    )
    down = None if reason else mlp.__dict__["_modules"].get(names.get("down", "down_proj"))
    reason = reason or _why_not_down(down)
    if reason or down is None:
        _mlp_site.declined(reason)
        return None
    _mlp_site.fast.calls += 1
    if "down" in names:
        names = {role: name for role, name in names.items() if role != "down"}
    hidden = gated_hidden(mlp, x, **names)
    return linear_add(hidden, down.__dict__["_parameters"]["weight"], residual, owned=owned)


def _unlike(x: Tensor, residual: Tensor, of_add_norm: bool = False) -> str:
    """Return "" or why the two cannot be added; those that one add_norm returned can only differ in dtype."""
    if type(x) is not Tensor or type(residual) is not Tensor:
        return "the hidden states are a tensor subclass"
    same = of_add_norm or (x.shape == residual.shape and x.device == residual.device)
    if not same or x.dtype is not residual.dtype:
        return "the hidden states and the residual differ in shape, dtype or device"
    return ""


def _drops(dropout: nn.Module | None) -> str:
    """Return "" where the dropout is none, or changes nothing and nobody watches it."""
    if dropout is None:
        return ""
    if type(dropout) is not nn.Dropout:
        return "what stands for the dropout is not exactly nn.Dropout"
    if dropout.training and dropout.p:
        return "dropout is on"
    if not has_own_forward(dropout):
        return "the dropout's forward has been patched"
    return why_not_unwatched(dropout)


def _why_not_down(down: nn.Module | None) -> str:
    if down is None:
        return "the down projection is missing"
    reason = why_not_plain(down)
    if reason:
        return reason
    if down.__dict__["_parameters"]["bias"] is not None:
        return "the down projection has a bias"
    weight = down.__dict__["_parameters"]["weight"]
    if torch.is_autocast_enabled("cuda" if weight.is_cuda else weight.device.type):
        return "autocast chooses the dtype of the down projection"
    if toggles.on.linear and linear_op.can("aiter"):
        return "tier aiter of linear has no GEMM that adds a residual"
    return ""


def torch_linear_add(x: Tensor, weight: Tensor, residual: Tensor, owned: bool) -> Tensor:
    """One GEMM with beta = 1. On a GPU the out-of-place form copies the residual first, so an owned one is used up."""
    _fit(x, weight, residual)
    rows, sums = x.reshape(-1, x.shape[-1]), residual.reshape(-1, residual.shape[-1])
    needed = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or residual.requires_grad)
    if owned and not needed and residual.is_contiguous():
        return sums.addmm_(rows, weight.t()).view(residual.shape)
    return torch.addmm(sums, rows, weight.t()).view(residual.shape)


def eager_linear_add(x: Tensor, weight: Tensor, residual: Tensor, owned: bool) -> Tensor:
    """The stock order: the product is rounded before it is added."""
    _fit(x, weight, residual)
    return residual + F.linear(x, weight)


def _fit(x: Tensor, weight: Tensor, residual: Tensor) -> None:
    """Refuse what broadcasting and promotion would accept; the public function then names the argument."""
    if x.shape[:-1] != residual.shape[:-1] or residual.shape[-1] != weight.shape[0]:
        raise ValueError("shapes do not fit")
    if not x.dtype is weight.dtype is residual.dtype or not x.device == weight.device == residual.device:
        raise ValueError("dtypes or devices differ")


_linear_add = make_op("linear_add", "USE_OPTIMIZED_OPS", torch=always(torch_linear_add), eager=eager_linear_add)


@_linear_add.public
def linear_add(x: Tensor, weight: Tensor, residual: Tensor, *, owned: bool = False) -> Tensor:
    """Return residual + x @ weight.T. x [..., K], weight [N, K], residual [..., N], one dtype and device.

    With ``owned`` the result may be written into ``residual``, which the caller then no longer uses.

    Examples:
        >>> amd_ops.linear_add(torch.ones(1, 3), torch.ones(2, 3), torch.tensor([[0.0, 1.0]]))
        tensor([[3., 4.]])
    """
    if _compiling():
        return residual + F.linear(x, weight)
    _linear_add.calls += 1
    try:
        result: Tensor = _linear_add.call(x, weight, residual, owned)
    except TORCH_ERRORS:
        _diagnose(x, weight, residual)
        raise
    return result


def _diagnose(x: Tensor, weight: Tensor, residual: Tensor) -> None:
    same_place("linear_add", x=x, weight=weight, residual=residual)
    if weight.dim() != 2 or x.dim() < 1 or weight.shape[1] != x.shape[-1]:
        raise complaint("linear_add", "weight", describe(weight), f"[N, {x.shape[-1] if x.dim() else 'K'}]")
    wanted = (*x.shape[:-1], weight.shape[0])
    if residual.shape != wanted:
        raise complaint("linear_add", "residual", describe(residual), f"{list(wanted)}")
