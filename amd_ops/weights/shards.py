"""Linears that transformers' own tensor-parallel plan has spread: their shards on this rank, as plain matrices.

The plan gives such a Linear a DTensor for a weight, and two hooks (transformers 4) or a forward of its own (5): one
part makes the input what the style wants, one the result, with the collective that belongs to it. Where the input is
the same on every rank and each rank keeps its columns (``colwise``), the plan changes nothing that this rank computes:
several such Linears are one product with their shards packed. Any other style runs the product on the local shard and
hands it to the plan's own output part, so that its collective and its bias are the plan's. Hooks and forwards are known
by the very function that they were made in.

Gradients go through DTensor: where they are wanted, everything is left to the modules.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import modules
from . import packing

_PLAN = "transformers.integrations.tensor_parallel"
_PLAN_OF_FORWARDS = "transformers.distributed.tensor_parallel"
"""Where transformers 5 has it; the other name is a list of its names there."""
_ASYNC = "torch.distributed._functional_collectives"
_TENSORS = "torch.distributed.tensor"
_FORWARD = "TensorParallelLayer.install_forward.<locals>.tp_forward"
_PARTS = ("transform_inputs_pre_forward", "context_around_forward", "transform_output_post_forward")
_LAYOUTS = {"input_layouts", "output_layouts", "use_local_output"}
KEY = "_amd_shards"
"""Where a module keeps its packed shards, in its ``__dict__``."""
GRADIENTS = "gradients go through the tensor-parallel plan"


class Style(NamedTuple):
    """What a plan does around a Linear: the layouts that it wants and gives, and the mesh."""

    name: str
    mesh: Any
    ins: tuple[Any, ...]
    outs: tuple[Any, ...]
    output: Any
    """The object that the plan put in place, by which it is known again."""
    finish: Callable[[nn.Module, Tensor, Tensor, Any], Tensor]
    """Gives the plan's result for a Linear, its input, this rank's product, and how that is placed."""
    adds_bias: bool
    """Whether the plan's output part adds the bias that is the same on every rank."""


def spread(linear: nn.Module | None) -> bool:
    """Return False where no plan can have spread a Linear. Cheap."""
    return type(linear) is nn.Linear and bool(linear.__dict__["_forward_pre_hooks"] or "forward" in linear.__dict__)


def style_of(linear: nn.Module) -> Style | None:
    """Return the style of a Linear that carries what transformers' plan put there, and nothing else; else None."""
    return _style_of_forward(linear) if "forward" in linear.__dict__ else _style_of_hooks(linear)


def _style_of_forward(linear: nn.Module) -> Style | None:
    home, state = sys.modules.get(_PLAN_OF_FORWARDS), linear.__dict__
    if home is None or type(linear) is not nn.Linear or modules.watched(state) or "_call_impl" in state:
        return None
    forward = state["forward"]
    if type(forward) is not FunctionType or forward.__globals__ is not vars(home):
        return None
    if forward.__qualname__ != _FORWARD or forward.__code__.co_filename != home.__file__:
        return None
    names = forward.__code__.co_freevars
    closed = {name: cell.cell_contents for name, cell in zip(names, forward.__closure__ or (), strict=True)}
    original: Any = closed.get("original_forward")
    layer: Any = closed.get("self")
    own = type(original) is MethodType and original.__self__ is linear and original.__func__ is nn.Linear.forward
    if set(closed) != {"self", "mesh", "module", "original_forward"} or closed["module"] is not linear or not own:
        return None
    name = type(layer).__name__
    if name not in ("ColwiseParallel", "RowwiseParallel") or type(layer) is not getattr(home, name):
        return None
    if vars(layer).keys() != _LAYOUTS or not all(_is_of(home, getattr(type(layer), part)) for part in _PARTS):
        return None
    if modules.watched_globally() or modules.linears_patched():
        return None

    def finish(linear: nn.Module, x: Tensor, found: Tensor, placed: Any) -> Tensor:
        result: Tensor = layer.transform_output_post_forward(linear, found, closed["mesh"])
        return result

    outs = ((layer.output_layouts,), layer.use_local_output)
    return Style(name, closed["mesh"], ((layer.input_layouts,),), outs, forward, finish, adds_bias=True)


def _is_of(home: Any, function: Any) -> bool:
    """Return True for a function that a module's own text defines, decorated or not."""
    return getattr(getattr(function, "__wrapped__", function), "__globals__", None) is vars(home)


def _style_of_hooks(linear: nn.Module) -> Style | None:
    state = linear.__dict__
    before, after = state["_forward_pre_hooks"], state["_forward_hooks"]
    if type(linear) is not nn.Linear or len(before) != 1 or len(after) != 1 or _PLAN not in sys.modules:
        return None
    if state["_backward_hooks"] or state["_backward_pre_hooks"] or "_call_impl" in state:
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
    mesh = incoming[1]

    def finish(linear: nn.Module, x: Tensor, found: Tensor, placed: Any) -> Tensor:
        distributed = sys.modules[_TENSORS].DTensor.from_local(found, mesh, placed, run_check=False)
        result: Tensor = second(linear, (x,), distributed)
        return result

    return Style(owner, mesh, incoming[0].args, outgoing[0].args, second, finish, adds_bias=False)


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
    """Return True where the plan changes nothing: replicated in, this rank's columns out, as a plain tensor."""
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
        """Return True while the packed matrix is what the Linears hold now, spread by the same plan."""
        if self.owner != id(owner):
            return False
        for name, (known, output, ids) in zip(names, self.parts, strict=True):
            linear = owner.__dict__["_modules"].get(name)
            style = None if linear is None or linear is not known() else style_of(linear)
            if linear is None or style is None or style.output is not output:
                return False
            own = linear.__dict__["_parameters"]
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
    if not all(map(spread, linears)):
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
    """Return ``linear(x)`` by ``run(x, weight, bias)`` on the local shard and the plan's own output part; None where a
    plan has not spread it, or gradients are wanted.
    """
    style = style_of(linear) if spread(linear) else None
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
        if own["bias"] is not None and not style.adds_bias:  # the input hook takes it away at the module's first call
            return None
        bias, placed = None, (tensors.Partial(),)
    else:
        return None
    if x.shape[-1] != weight.shape[-1]:
        return None
    return style.finish(linear, x, run(x, weight, bias), placed)


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
