"""Linears that transformers' own tensor-parallel plan has spread: their shards on this rank, as plain matrices.

The plan gives such a Linear a DTensor for a weight and two hooks: one makes a DTensor of the input, one a local tensor
of the result, with the collective that its style wants. Where the input is the same on every rank and each rank keeps
its columns (``colwise``), the hooks change nothing that this rank computes: several such Linears are one product with
their shards packed. Any other style runs the product on the local shard and hands it to the plan's own output hook, so
that its collective and its bias are the plan's. Hooks are known by the very function that they were made in.

Gradients go through DTensor: where they are wanted, everything is left to the modules.
"""

from __future__ import annotations

import sys
import weakref
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import modules
from . import packing

_PLAN = "transformers.integrations.tensor_parallel"
_ASYNC = "torch.distributed._functional_collectives"
_TENSORS = "torch.distributed.tensor"
KEY = "_amd_shards"
"""Where a module keeps its packed shards, in its ``__dict__``."""
GRADIENTS = "gradients go through the tensor-parallel plan"


class Style(NamedTuple):
    """What a plan's two hooks do: their partials' functions and layouts, and the mesh."""

    name: str
    mesh: Any
    ins: tuple[Any, ...]
    outs: tuple[Any, ...]
    output: Any


def style_of(linear: nn.Module) -> Style | None:
    """Return the style of a Linear that carries the two hooks of transformers' plan, and nothing else; else None."""
    state = linear.__dict__
    before, after = state["_forward_pre_hooks"], state["_forward_hooks"]
    if type(linear) is not nn.Linear or len(before) != 1 or len(after) != 1 or _PLAN not in sys.modules:
        return None
    if state["_backward_hooks"] or state["_backward_pre_hooks"] or "forward" in state or "_call_impl" in state:
        return None
    if state["_forward_hooks_with_kwargs"] or state["_forward_pre_hooks_with_kwargs"] or modules.watched_globally():
        return None
    ((first,), (second,)) = (tuple(before.values()), tuple(after.values()))
    incoming, outgoing = _partial(first, "input_fn"), _partial(second, "output_fn")
    if incoming is None or outgoing is None or modules.linears_patched():
        return None
    owner = incoming[0].func.__qualname__.partition(".")[0]
    if outgoing[0].func.__qualname__.partition(".")[0] != owner or incoming[1] is not outgoing[1]:
        return None
    return Style(owner, incoming[1], incoming[0].args, outgoing[0].args, second)


def _partial(hook: Any, name: str) -> tuple[Any, Any] | None:
    """Return the partial and the mesh that a hook of the plan's ``distribute_module`` closes over."""
    home = sys.modules[_PLAN]
    if type(hook) is not FunctionType or hook.__globals__ is not vars(home):
        return None
    if not hook.__qualname__.startswith("distribute_module.<locals>.") or hook.__code__.co_filename != home.__file__:
        return None
    closed = dict(zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True))
    if set(closed) != {name, "device_mesh"}:
        return None
    found = closed[name].cell_contents
    function = getattr(found, "func", None)
    if type(function) is not FunctionType or function.__globals__ is not vars(home):
        return None
    return found, closed["device_mesh"].cell_contents


def _local(parameter: Any, mesh: Any) -> Tensor | None:
    """Return this rank's plain part of a parameter, None where it is no DTensor of the mesh."""
    tensors = sys.modules.get(_TENSORS)
    if tensors is None or type(parameter) is not tensors.DTensor or parameter.device_mesh != mesh:
        return None
    found = parameter._local_tensor
    return found if type(found) is Tensor else None


def _keeps_columns(style: Style) -> bool:
    """Return True where the hooks change nothing: replicated in, this rank's columns out, as a plain tensor."""
    tensors = sys.modules[_TENSORS]
    (outs, local) = style.outs
    return (
        style.name == "ColwiseParallel"
        and all(layouts == (tensors.Replicate(),) for layouts in style.ins)
        and outs == (tensors.Shard(-1),)
        and local is True
    )


class Shards:
    """The packed shards of some Linears of one module; as `packing.Packed`, for DTensors."""

    __slots__ = ("bias", "owner", "parts", "sizes", "weight")

    def __init__(self, owner: nn.Module, linears: list[nn.Module], styles: list[Style]) -> None:
        keys = ("weight",) if linears[0].__dict__["_parameters"]["bias"] is None else ("weight", "bias")
        wholes = {}
        self.parts: list[tuple[Any, Any, tuple[Any, ...]]] = []
        for key in keys:
            locals_ = [
                _local(one.__dict__["_parameters"][key], style.mesh) for one, style in zip(linears, styles, strict=True)
            ]
            whole = wholes[key] = torch.cat([one for one in locals_ if one is not None])
            rows = whole.split_with_sizes([one.shape[0] for one in locals_ if one is not None])
            for linear, row in zip(linears, rows, strict=True):
                linear.__dict__["_parameters"][key]._local_tensor = row
        self.owner = id(owner)
        self.weight, self.bias = wholes["weight"], wholes.get("bias")
        self.sizes = [one.__dict__["_parameters"]["weight"]._local_tensor.shape[0] for one in linears]
        for linear, style in zip(linears, styles, strict=True):
            own = linear.__dict__["_parameters"]
            ids = tuple((key, id(own[key]), own[key]._local_tensor.data_ptr()) for key in keys)
            self.parts.append((weakref.ref(linear), style.output, ids))

    def fresh(self, owner: nn.Module, names: tuple[str, ...]) -> bool:
        """Return True while the packed matrix is what the Linears hold now, behind the same hooks."""
        if self.owner != id(owner):
            return False
        for name, (known, output, ids) in zip(names, self.parts, strict=True):
            linear = owner.__dict__["_modules"].get(name)
            if linear is None or linear is not known() or style_of(linear) is None:
                return False
            own = linear.__dict__["_parameters"]
            if output is not next(iter(linear.__dict__["_forward_hooks"].values())):
                return False
            if len(ids) == 1 and own["bias"] is not None:
                return False
            for key, parameter, address in ids:
                now = own.get(key)
                if id(now) != parameter or now._local_tensor.data_ptr() != address:
                    return False
        return True

    def release(self) -> None:
        """Give every shard that still lies in the packed matrix storage of its own again."""
        with torch.inference_mode(False), torch.no_grad():
            for known, _, ids in self.parts:
                linear = known()
                own = {} if linear is None else linear.__dict__["_parameters"]
                for key, parameter, address in ids:
                    now: Any = own.get(key)
                    if id(now) == parameter and now._local_tensor.data_ptr() == address:
                        now._local_tensor = now._local_tensor.clone()

    def differentiable(self, x: Tensor) -> list[nn.Parameter]:
        """Return nothing: a group is made and used only where no gradient is wanted."""
        return []


def group(owner: nn.Module, names: tuple[str, ...], x: Tensor) -> Shards | str | None:
    """Return the packed shards of ``owner``'s Linears ``names``; None where a plan has not spread them, or why not.

    x is the input, the same on every rank.
    """
    kept: Any = owner.__dict__.get(KEY)
    found = None if kept is None else kept.get(names)
    if found is not None:
        if found.fresh(owner, names):
            return GRADIENTS if torch.is_grad_enabled() else found
        del kept[names]
        found.release()
    linears = [owner.__dict__["_modules"].get(name) for name in names]
    if any(type(one) is not nn.Linear or not one.__dict__["_forward_pre_hooks"] for one in linears):
        return None
    present = [one for one in linears if one is not None]
    styles = [style_of(one) for one in present]
    known = [style for style in styles if style is not None]
    if len(known) != len(styles):
        return None
    if torch.is_grad_enabled():
        return GRADIENTS
    if not all(_keeps_columns(style) for style in known):
        return "the tensor-parallel plan gives these Linears a style other than columns of a replicated input"
    reason = _why_not(present, known, x)
    if reason:
        return reason
    with torch.inference_mode(False), torch.no_grad():
        made = Shards(owner, present, known)
    if kept is None:
        kept = owner.__dict__[KEY] = packing.States()  # empty in copies and pickles
    kept[names] = made
    return made


def _why_not(linears: list[nn.Module], styles: list[Style], x: Tensor) -> str:
    own = [one.__dict__["_parameters"] for one in linears]
    if len({parameters["bias"] is None for parameters in own}) != 1:
        return "only some of the Linears have a bias"
    shards = [_local(value, style.mesh) for parameters, style in zip(own, styles, strict=True)
              for value in parameters.values() if value is not None]  # fmt: skip
    plain = [one for one in shards if one is not None]
    if len(plain) != len(shards) or any(not one.is_contiguous() or one.is_inference() for one in plain):
        return "a shard is no plain matrix"
    if len({(one.dtype, one.device) for one in plain}) != 1 or plain[0].dtype is not x.dtype:
        return "the shards differ in dtype or device"
    if not all(packing.alone(one, one.untyped_storage()) for one in plain):
        return "a shard's storage is shared with another tensor"
    return ""


def product(linear: nn.Module, x: Tensor, run: Any) -> Tensor | None:
    """Return ``linear(x)`` by ``run(x, weight, bias)`` on the local shard and the plan's own output hook; None where a
    plan has not spread it, or gradients are wanted.
    """
    style = style_of(linear) if linear.__dict__["_forward_pre_hooks"] else None
    if style is None or torch.is_grad_enabled() or type(x) is not Tensor:
        return None
    tensors = sys.modules.get(_TENSORS)
    own = linear.__dict__["_parameters"]
    weight = _local(own["weight"], style.mesh)
    if tensors is None or weight is None or weight.dtype is not x.dtype:
        return None
    if style.name == "ColwiseParallel" and all(layouts == (tensors.Replicate(),) for layouts in style.ins):
        bias = None if own["bias"] is None else _local(own["bias"], style.mesh)
        if (bias is None) != (own["bias"] is None):
            return None
        placed = (tensors.Shard(-1),)
    elif style.name == "RowwiseParallel" and all(layouts == (tensors.Shard(-1),) for layouts in style.ins):
        if own["bias"] is not None:  # the plan's input hook takes it away at the first call of the module
            return None
        bias, placed = None, (tensors.Partial(),)
    else:
        return None
    if x.shape[-1] != weight.shape[-1]:
        return None
    outputs = tensors.DTensor.from_local(run(x, weight, bias), style.mesh, placed, run_check=False)
    result: Tensor = style.output(linear, (x,), outputs)
    return result


def settled(x: Tensor) -> Tensor:
    """Return the plain tensor of what a collective has yet to deliver, waiting for it as any statement on it would.

    One that autograd knows stays as it is: what lies inside has no history.
    """
    collectives = sys.modules.get(_ASYNC)
    if collectives is None or type(x) is not collectives.AsyncCollectiveTensor:
        return x
    if torch.is_grad_enabled() and x.requires_grad:
        return x
    waiting: Any = x
    result: Tensor = waiting.trigger_wait()
    return result
