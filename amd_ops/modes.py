"""May Python-side state (packed matrices, plans, derived copies, choices by value) be used in this very call?

A trace records what happens once and replays it with other weights, other inputs and on other devices: whatever is
decided in Python from the tensors of today is baked in. Function transforms hand out tensors that stand for others.
Every route asks here, so that all of them agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

compiling = torch.compiler.is_dynamo_compiling

_jit: Callable[[], bool] = getattr(torch._C, "_is_tracing", None) or torch.jit.is_tracing  # type: ignore[attr-defined]
_dispatch_modes: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
_dispatch_mode: Callable[[Any], object] | None = getattr(torch._C, "_get_dispatch_mode", None)
_keys: Any = getattr(torch._C, "_TorchDispatchModeKey", None)
_transforms: Callable[[], Any] = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None)
_without_modes: Callable[[], contextlib.AbstractContextManager[Any]] = getattr(
    torch.utils._python_dispatch, "_disable_current_modes", contextlib.nullcontext
)
_INFRASTRUCTURE = tuple(getattr(_keys, name) for name in ("FAKE", "PROXY", "FUNCTIONAL") if hasattr(_keys, name))


def hidden() -> str:
    """Return "" in a plain call, else what makes it one whose tensors or decisions outlive it.

    torch.jit.trace; FakeTensor, make_fx and export; functorch transforms; forward-mode gradients. Dynamo is not asked
    about here: a route asks ``compiling()`` first, and dynamo would trace this function.
    """
    if _jit():
        return "the call is traced by torch.jit"
    if _dispatch_modes is None or _dispatch_mode is None or not _INFRASTRUCTURE:
        return "this torch does not say whether a call is traced"
    if _dispatch_modes() and any(_dispatch_mode(key) is not None for key in _INFRASTRUCTURE):
        return "the call is traced (fake tensors, make_fx or export)"
    if transformed():
        return "forward-mode gradients or a functorch transform is active"
    return ""


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Compute apart from what watches or changes the caller's own work: saved tensors, dispatch modes, autocast.

    Activation checkpointing counts the tensors that a forward saves, selective checkpointing the ops that it runs; what
    is done once only (a probe) would be missing from the recomputation.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda kept: kept))
        stack.enter_context(_without_modes())
        for kind in ("cuda", "cpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def transformed() -> bool:
    """Return True inside a functorch transform and inside forward-mode differentiation."""
    return getattr(forward_ad, "_current_level", -1) >= 0 or _transforms() is not None


def unlike(tensor: object) -> str:
    """Return "" for a plain tensor, else why no plan can be made with it (a proxy of a tracer, a subclass)."""
    kind = type(tensor)
    return "" if kind is Tensor or kind is nn.Parameter else f"{kind.__name__} is not a plain tensor"
