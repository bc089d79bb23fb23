"""May this kernel stand in for that layer or function? Every message names both."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from torch import nn

from .errors import SignatureError

# What a stateless kernel class may define beside forward: two flags of the kernels library.
FLAGS = ("can_torch_compile", "has_backward")
_ALLOWED = {*FLAGS, "forward"}


def check_stateless(kernel: Any, what: str) -> type[nn.Module]:
    """Check that a kernel is an nn.Module class that has a forward and nothing else.

    Its forward runs with the replaced module as ``self``: a constructor would never run, a member would not be found.
    Raises SignatureError.
    """
    if not isinstance(kernel, type) or not issubclass(kernel, nn.Module):
        raise SignatureError(f"kernel {what}: {kernel!r} is not an nn.Module class")
    if kernel.forward is nn.Module.forward:
        raise SignatureError(f"kernel {what}: class {kernel.__name__} defines no forward")
    if kernel.__init__ is not nn.Module.__init__ or kernel.__new__ is not nn.Module.__new__:
        raise SignatureError(
            f"kernel {what}: class {kernel.__name__} must not have a constructor; "
            "its forward gets the replaced module as self"
        )
    own = [name for base in kernel.__mro__[: kernel.__mro__.index(nn.Module)] for name in vars(base)]
    extra = sorted(
        {name for name in own if name not in _ALLOWED and not (name.startswith("__") and name.endswith("__"))}
    )
    if extra:
        raise SignatureError(
            f"kernel {what}: class {kernel.__name__} must not have members of its own, found {', '.join(extra)}"
        )
    return kernel


def check_layer(kernel: type[nn.Module], cls: type[nn.Module], what: str) -> None:
    """Check that a kernel class can take the calls of a layer class. Raises SignatureError."""
    check_signature(
        kernel.forward, cls.forward, f"kernel {what} ({kernel.__name__}.forward)", f"{cls.__name__}.forward"
    )


def check_signature(
    kernel: Callable[..., Any], original: Callable[..., Any], kernel_name: str, original_name: str
) -> None:
    """Compare two signatures: same number of parameters, same kinds, same names of keyword-only parameters.

    Positional parameters may be called otherwise: the bound forward keeps the original's names and passes by position.
    A default that the original has may not be missing from the call, so it is passed on explicitly.
    Callables without a signature (builtins) cannot be compared and pass.
    """
    try:
        ours = list(inspect.signature(kernel).parameters.values())
        theirs = list(inspect.signature(original).parameters.values())
    except ValueError:
        return
    if [p.kind for p in ours] == [Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD]:
        return
    head = f"{kernel_name} cannot replace {original_name}"
    if len(ours) != len(theirs):
        raise SignatureError(f"{head}: {_shape(ours)} has {len(ours)} parameters, {_shape(theirs)} has {len(theirs)}")
    for mine, other in zip(ours, theirs, strict=True):
        if mine.kind != other.kind:
            raise SignatureError(
                f"{head}: parameter {mine.name!r} is {mine.kind.description}, "
                f"{other.name!r} is {other.kind.description}"
            )
        if mine.kind is Parameter.KEYWORD_ONLY and mine.name != other.name:
            raise SignatureError(f"{head}: keyword-only parameter {mine.name!r} against {other.name!r}")


def _shape(parameters: list[Parameter]) -> str:
    return "(" + ", ".join(str(p.replace(annotation=Parameter.empty)) for p in parameters) + ")"


def flag(kernel: Any, name: str, default: bool) -> bool:
    """Read ``has_backward`` or ``can_torch_compile`` of a kernel class or function."""
    return bool(getattr(kernel, name, default))
