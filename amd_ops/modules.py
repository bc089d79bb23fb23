"""Whether what we would stand in for is still there: asked of the very object, never of what it is called.

A wrapper (functools.wraps, wrapt, a tracer) copies names, attributes and equality of what it wraps. What it cannot copy
is the code object that was compiled from a module's file and the globals which that code runs in. So a function is
*original* while it is a plain function whose code is that of its module's file, and the functions of that file which it
calls are original as well. What torch and nn.Module bring along is compared with what they had when we were imported.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as _registry

from .frozen import is_plain

_LINEAR_FORWARD = nn.Linear.forward
_FORWARD = nn.Module.forward
_CALL = nn.Module.__call__
_CALL_IMPL = nn.Module._call_impl
_FORWARDS = {cls: cls.forward for cls in (nn.SiLU, nn.GELU, nn.Dropout)}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_own_forward: object = _LINEAR_FORWARD


class _Known(NamedTuple):
    """A function that was original when it was first met, and what it depends on."""

    function: Any
    code: CodeType
    space: dict[str, Any]
    helpers: tuple[tuple[str, Any, CodeType | None], ...]


_known: dict[int, _Known] = {}


def original(function: Any, name: str) -> bool:
    """Return True while ``function`` is the function ``name`` of its module's own file, helpers of that file included.

    Examples:
        >>> original(inspect.signature, "signature")
        True
    """
    known: Any = _known.get(id(function)) or _learn(function, name)
    if known is None or known.function is not function or known.function.__code__ is not known.code:
        return False
    if known.code.co_name != name:
        return False
    space = known.space
    for helper, was, code in known.helpers:
        if space.get(helper) is not was or (code is not None and was.__code__ is not code):
            return False
    return True


def _learn(function: Any, name: str) -> _Known | None:
    if not _of_its_file(function, name):
        return None
    space = function.__globals__
    found = []
    for used in _globals_of(function.__code__):
        helper = space.get(used)
        if type(helper) is not FunctionType and not isinstance(helper, BuiltinFunctionType):
            if callable(helper) and not isinstance(helper, type):
                return None
            continue
        if not _belongs(helper, used, space):
            return None
        found.append((used, helper, getattr(helper, "__code__", None)))
    known = _Known(function, function.__code__, space, tuple(found))
    _known[id(function)] = known
    return known


def _belongs(helper: Any, used: str, space: dict[str, Any]) -> bool:
    """A helper is original in a file of the same package, or a built-in function under its own name."""
    if type(helper) is not FunctionType:
        return bool(helper.__name__ == used)
    return _package(helper.__globals__) == _package(space) and _of_its_file(helper, used)


def _package(space: dict[str, Any]) -> str:
    return str(space.get("__name__", "")).partition(".")[0]


def _globals_of(code: CodeType) -> Iterator[str]:
    """Names that a function looks up in its globals, its inner functions included."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_of(inner)


def _of_its_file(function: Any, name: str) -> bool:
    if type(function) is not FunctionType:
        return False
    code, label = function.__code__, function.__qualname__
    if code.co_name != name or code.co_filename != function.__globals__.get("__file__"):
        return False
    # Another function of the same file and name: its code knows better (from Python 3.11 on) than the copied label.
    return getattr(code, "co_qualname", label) == label and "__wrapped__" not in function.__dict__


def lives_in(function: Any, module: str) -> bool:
    """Return True when ``function`` was compiled from the file of ``module`` and runs in its globals, whatever its
    ``__module__`` says.
    """
    if type(function) is not FunctionType:
        return False
    space = function.__globals__
    return space.get("__name__") == module and function.__code__.co_filename == space.get("__file__")


def form_of(module: nn.Module, mark: str) -> Any:
    """Return what the overlaid text says of the formula in ``module``'s forward under the name ``mark``, or None.

    The mark is an attribute of the function itself: it counts while that function is original, and the methods of its
    class that it calls are.
    """
    cls: Any = type(module)
    forward = cls.forward
    if type(forward) is not FunctionType:
        return None
    value = forward.__dict__.get(mark)
    if value is None or not original(forward, "forward"):
        return None
    for name in _methods(forward.__code__):
        if name in module.__dict__ or not original(getattr(cls, name, None), name):
            return None
    return value


_methods_of: dict[CodeType, tuple[str, ...]] = {}
_PRIVATE_OF_MODULE = frozenset(dir(nn.Module))


def _methods(code: CodeType) -> tuple[str, ...]:
    """Names of helper methods (``_norm``) that a marked forward calls; attributes of nn.Module are not among them."""
    found = _methods_of.get(code)
    if found is None:
        names = (name for name in code.co_names if name.startswith("_") and not name.startswith("_amd"))
        found = _methods_of[code] = tuple(name for name in names if name not in _PRIVATE_OF_MODULE)
    return found


def watched(state: dict[str, Any]) -> bool:
    """Return True when a module's ``__dict__`` carries a hook."""
    return any(state[name] for name in _HOOKS)


def altered(state: dict[str, Any]) -> bool:
    """Return True when a module's ``__dict__`` carries a hook or a call of its own: somebody watches or replaced it."""
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or "_call_impl" in state
        or state.get("_compiled_call_impl") is not None
    )


def why_not_plain(module: nn.Module) -> str:
    """Return "" when ``module`` is an untouched nn.Linear, else the reason. Cheap: attribute reads only.

    PEFT and quantisers replace the type or the parameter's type (DTensor too), accelerate and recorders patch
    ``forward`` on the instance, tensor parallel plans and users add hooks.
    """
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} is not exactly nn.Linear"
    state = module.__dict__
    if altered(state):
        return _how_altered(state, "the Linear")
    if linears_patched():
        return "the Linear's forward has been patched"
    if watched_globally():
        return "a global module hook is registered"
    parameters = state["_parameters"]
    bias = parameters.get("bias")
    if not is_plain(parameters.get("weight")) or (bias is not None and not is_plain(bias)):
        return "a parameter of the Linear is not a plain nn.Parameter"
    return ""


def _how_altered(state: dict[str, Any], what: str) -> str:
    if watched(state):
        return f"a hook is registered on {what}"
    if state.get("_compiled_call_impl") is not None:
        return f"{what} was compiled by itself"
    return f"{what}'s forward has been patched"


def linears_patched() -> bool:
    """Return True when somebody else replaced nn.Linear's own methods, or the function that they call."""
    forward = nn.Linear.forward
    return (
        (forward is not _LINEAR_FORWARD and forward is not _own_forward)
        or nn.Linear.__call__ is not _CALL
        or nn.Linear._call_impl is not _CALL_IMPL
        or F.linear is not _LINEAR
    )


def accept_forward(forward: object | None) -> None:
    """Tell which replacement of nn.Linear.forward is our own and computes the same (None: there is none)."""
    global _own_forward
    _own_forward = _LINEAR_FORWARD if forward is None else forward


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

    Hooks (on the module or on all), a ``forward`` put on the instance by accelerate, a hub kernel or a recorder, a
    ``__call__`` of a subclass, ``module.compile()``.
    """
    state, cls = module.__dict__, type(module)
    if altered(state) and not _put_back(module):
        return _how_altered(state, "the module")
    if cls.__call__ is not _CALL or cls._call_impl is not _CALL_IMPL:
        return "the module's class has a call of its own"
    if watched_globally():
        return "a global module hook is registered"
    return ""


def _put_back(module: nn.Module) -> bool:
    """Return True when all that the instance carries is its class's own forward, left there by a recorder."""
    state = module.__dict__
    watched = any(state[name] for name in _HOOKS) or state.get("_compiled_call_impl") is not None
    return not watched and "_call_impl" not in state and not is_patched(module)


# -- functions of torch that stock's own statements call; None where somebody had replaced one before we came

_NATIVE: Any = getattr(torch._C, "_nn", None)
_LINEAR, _GELU, _SDPA = (getattr(_NATIVE, name, None) for name in ("linear", "gelu", "scaled_dot_product_attention"))
_SILU, _SOFTMAX, _DROPOUT, _CROSS_ENTROPY = (
    function if _of_its_file(function, name) else None
    for function, name in (
        (F.silu, "silu"),
        (F.softmax, "softmax"),
        (F.dropout, "dropout"),
        (F.cross_entropy, "cross_entropy"),
    )
)


def silu_is_torchs() -> bool:
    """Return True while F.silu is torch's own."""
    return F.silu is _SILU


def gelu_is_torchs() -> bool:
    """Return True while F.gelu is torch's own."""
    return F.gelu is _GELU


def cross_entropy_is_torchs() -> bool:
    """Return True while F.cross_entropy is torch's own."""
    return F.cross_entropy is _CROSS_ENTROPY


def attention_is_torchs() -> bool:
    """Return True while the functions are torch's own that stock's attention functions call."""
    return F.scaled_dot_product_attention is _SDPA and F.softmax is _SOFTMAX and F.dropout is _DROPOUT


def why_torch_is_altered() -> str:
    """Return "" while every function of torch's and nn.Module's that we look at is torch's own, else the reason."""
    if watched_globally():
        return "a global module hook is registered"
    own = silu_is_torchs() and gelu_is_torchs() and attention_is_torchs() and cross_entropy_is_torchs()
    return "" if own and not linears_patched() else "a function of torch's was replaced"


def defined_by_its_class(forward: Any, owner: type) -> bool:
    """Return True while ``forward`` is the function that the body of ``owner`` defined, wherever that was typed.

    Decorators of the class's own package and of torch may be around it.
    """
    if owner is nn.Module:
        return forward is _FORWARD
    packages = owner.__module__.partition(".")[0], "torch"
    while type(forward) is FunctionType and "__wrapped__" in forward.__dict__:
        if _package(forward.__globals__) not in packages:
            return False
        forward = forward.__dict__["__wrapped__"]
    if type(forward) is not FunctionType or forward.__globals__.get("__name__") != owner.__module__:
        return False
    code, label = forward.__code__, f"{owner.__qualname__}.{forward.__name__}"
    return code.co_name == forward.__name__ and getattr(code, "co_qualname", label) == label


def has_own_forward(module: nn.Module) -> bool:
    """Return True while the class of one of torch's activations or dropouts has the forward that it came with."""
    cls: Any = type(module)
    return cls.forward is _FORWARDS.get(cls)
