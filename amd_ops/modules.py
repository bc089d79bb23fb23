"""When a module may be replaced by its arithmetic: a known formula, plain parameters, nobody watching."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as _registry

_STOCK_FORWARD = nn.Linear.forward
_STOCK_CALL = nn.Linear.__call__
_own_forward: object = _STOCK_FORWARD
_NO_ATTRIBUTES: dict[str, Any] = {}


def why_not_plain(module: nn.Module) -> str:
    """Return "" when ``module`` is an untouched nn.Linear, else the reason. Cheap: attribute reads only.

    PEFT and quantisers replace the type or the parameter's type (DTensor too), accelerate and recorders patch
    ``forward`` on the instance, tensor parallel plans and users add hooks.
    """
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} is not exactly nn.Linear"
    state = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    ):
        return "a hook is registered on the Linear"
    if "forward" in state or linears_patched():
        return "the Linear's forward has been patched"
    if watched_globally():
        return "a global module hook is registered"
    parameters = state["_parameters"]
    bias = parameters.get("bias")
    if type(parameters.get("weight")) is not nn.Parameter or (bias is not None and type(bias) is not nn.Parameter):
        return "a parameter of the Linear is not a plain nn.Parameter"
    return ""


def linears_patched() -> bool:
    """Return True when somebody else replaced nn.Linear's own methods."""
    forward = nn.Linear.forward
    return (forward is not _STOCK_FORWARD and forward is not _own_forward) or nn.Linear.__call__ is not _STOCK_CALL


def accept_forward(forward: object | None) -> None:
    """Tell which replacement of nn.Linear.forward is our own and computes the same (None: there is none)."""
    global _own_forward
    _own_forward = _STOCK_FORWARD if forward is None else forward


def watched_globally() -> bool:
    """Return True when a hook for all modules is registered."""
    return bool(
        _registry._global_forward_hooks
        or _registry._global_forward_pre_hooks
        or _registry._global_backward_hooks
        or _registry._global_backward_pre_hooks
    )


def is_patched(module: nn.Module) -> bool:
    """Return True when the instance carries a ``forward`` of its own that is not simply its class's, put back by a
    recorder.
    """
    own = module.__dict__.get("forward")
    if own is None:
        return False
    return getattr(own, "__func__", None) is not type(module).forward or getattr(own, "__self__", None) is not module


def why_not_unwatched(module: nn.Module) -> str:
    """Return "" when nobody can tell whether ``module`` itself or its arithmetic was run, else the reason.

    Hooks (on the module or on all), a ``forward`` put on the instance by accelerate, a hub kernel or a recorder.
    """
    state = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    ):
        return "a hook is registered on the module"
    if "forward" in state and is_patched(module):
        return "the module's forward has been patched"
    if watched_globally():
        return "a global module hook is registered"
    return ""


def form_of(module: nn.Module, mark: str) -> Any:
    """Return what the overlaid text says of the formula in ``module``'s forward under the name ``mark``, or None.

    The mark is an attribute of the function itself. So a subclass or a patch that replaces ``forward`` takes the mark
    away with it, and a wrapper that copies the attributes of what it wraps is known by ``__wrapped__``.
    """
    attributes: dict[str, Any] = getattr(type(module).forward, "__dict__", _NO_ATTRIBUTES)
    return None if "__wrapped__" in attributes else attributes.get(mark)
