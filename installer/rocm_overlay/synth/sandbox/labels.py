"""Which operators a program really calls, place by place: what its labels are made of.

A place is one call as it is written down, however often it runs: a torch module that is called, or a torch function, a
method of a tensor, a sign of arithmetic. What happens inside a torch module is that module's. A place whose result is
thrown away counts for nothing. Places inside a class or function that has the name of a compound operator belong to it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode, get_ignored_functions, get_overridable_functions
from torch.utils._pytree import tree_leaves

from . import graph
from .program import Failure, Loaded, run

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Signs and spellings of one function: whoever asks for torch.mul gets it from x * y, x.mul(y) and x.mul_(y), too.
_SIGNS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "__sub__": "sub", "__rsub__": "sub", "__isub__": "sub",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "__truediv__": "div", "__rtruediv__": "div",
    "__itruediv__": "div", "__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow",
    "__neg__": "neg", "__abs__": "abs", "__getitem__": "getitem", "__floordiv__": "floor_divide", "rsub": "sub",
    "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "negative": "neg", "absolute": "abs",
    "clip": "clamp", "concat": "cat", "concatenate": "cat", "swapdims": "swapaxes", "moveaxis": "movedim",
    "arctan": "atan", "arcsinh": "asinh",
}  # fmt: skip


@dataclass
class Place:
    """One call as written down: the operator's name, and the compound operator that it is part of, or ""."""

    name: str
    owner: str
    live: bool = True


@dataclass(frozen=True)
class Lists:
    """What the operator lists know: their names, those of compound operators, and of what these are made of."""

    names: tuple[str, ...] = ()
    compounds: frozenset[str] = frozenset()
    helpers: frozenset[str] = frozenset()


@dataclass
class _State:
    """What is on the way while the program runs."""

    file: str
    lists: Lists
    recorder: graph.Recorder
    places: dict[tuple[Any, ...], Place] = field(default_factory=dict)
    stack: list[tuple[Any, tuple[Any, ...], Any]] = field(default_factory=list)
    inside: int = 0
    """How many torch modules of the program's are running: what they call is theirs."""

    def enter(self, key: tuple[Any, ...], name: str, owner: str) -> Any:
        """Note a place and give it the nodes that are made from now on; return what was there before."""
        self.places.setdefault(key, Place(name, owner))
        before, self.recorder.site = self.recorder.site, key
        return before


def observe(loaded: Loaded, lists: Lists) -> tuple[Any, dict[str, Any]]:
    """Run a program once and return its result and ``{"operators", "inner", "calls", "graph", "torch"}``.

    ``operators`` are the names of its places in order, a compound one among them where its own code calls something;
    ``inner`` those that are part of a compound operator; ``calls`` the names of all, each once.
    """
    file = loaded.model.forward.__func__.__code__.co_filename  # type: ignore[attr-defined]
    recorder = graph.Recorder()
    state = _State(file, lists, recorder)
    hooks = [
        torch_module.register_module_forward_pre_hook(lambda module, args: _module_starts(state, module)),
        torch_module.register_module_forward_hook(lambda module, args, result: _module_ends(state, module)),
    ]

    def called(*values: Any) -> Any:
        for value in values:
            recorder.take(value)
        with recorder, _Functions(state):
            return loaded.model(*values)

    try:
        result = run(loaded, called)
    finally:
        for hook in hooks:
            hook.remove()
    ends = [recorder.node(one) for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
    _mark_dead(state, ends)
    return result, {**_names(state), "graph": graph.canonical(ends), "torch": torch.__version__}


def _mark_dead(state: _State, ends: list[graph.Node]) -> None:
    """A place that made nodes, none of which the results depend on, does nothing."""
    alive: set[Any] = set()
    made: set[Any] = set()
    needed = {id(node) for node in graph.live(ends)}
    for number, sites in state.recorder.sites.items():
        made |= sites
        alive |= sites if number in needed else set()
    for key, place in state.places.items():
        inner = [one for one in made if one is not None and one[: len(key)] == key]
        place.live = not inner or any(one in alive for one in inner)
    working = {place.owner for place in state.places.values() if place.live}
    for place in state.places.values():
        if place.name in state.lists.compounds and not place.owner:
            place.live = place.name in working  # a class of that name that calls nothing is not the operator


def _names(state: _State) -> dict[str, Any]:
    operators: list[str] = []
    inner: list[str] = []
    for place in state.places.values():
        if place.live:
            (inner if place.owner else operators).append(place.name)
    calls = sorted({*operators, *inner} - state.lists.compounds)
    return {"operators": operators, "inner": inner, "calls": calls}


def _module_starts(state: _State, module: nn.Module) -> None:
    kind = type(module)
    foreign = kind.__module__.startswith("torch.")
    frame, key, owner = _caller(state)
    parent = state.stack[-1] if state.stack else None
    if parent is not None and isinstance(parent[0], nn.Sequential):
        index = next((i for i, one in enumerate(parent[0]) if one is module), -1)
        key = (*parent[1], index)
    before = state.recorder.site
    if foreign and not isinstance(module, _CONTAINERS):
        if not state.inside and frame is not None:
            before = state.enter((*key, kind.__name__), f"nn.{kind.__name__}", owner)
        state.inside += 1
    elif not state.inside and kind.__name__ in state.lists.compounds:
        before = state.enter((*key, kind.__name__), kind.__name__, owner)
    state.stack.append((module, key, before))


def _module_ends(state: _State, module: nn.Module) -> None:
    while state.stack:
        last, _, before = state.stack.pop()
        if type(last).__module__.startswith("torch.") and not isinstance(last, _CONTAINERS):
            state.inside -= 1
        state.recorder.site = before
        if last is module:
            return


def _caller(state: _State) -> tuple[FrameType | None, tuple[Any, ...], str]:
    """Return the frame of the program that is calling, the place in it, and the compound operator around it.

    The operator around it is part of the place: a class may be asked for, and be part of another one as well.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != state.file:
        frame = frame.f_back
    if frame is None:
        return None, (), ""
    owner = _owner(frame, state)
    return frame, (owner, frame.f_code.co_firstlineno, frame.f_lasti), owner


def _owner(frame: FrameType | None, state: _State) -> str:
    """The outermost compound operator whose code runs in a frame or in those that called it, or ""."""
    owner = ""
    while frame is not None:
        if frame.f_code.co_filename == state.file:
            owner = _compound(frame, state) or owner
        frame = frame.f_back
    return owner


def _compound(frame: FrameType, state: _State) -> str:
    name = frame.f_code.co_name
    if name in state.lists.helpers:
        return name
    owner = frame.f_locals.get("self")
    kind = type(owner).__name__
    return kind if isinstance(owner, nn.Module) and kind in state.lists.helpers else ""


class _Functions(TorchFunctionMode):
    """Notes every torch function that the program itself calls."""

    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        state = self.state
        name = "" if state.inside else function_name(func, state.lists.names)
        if not name:
            return func(*args, **(kwargs or {}))
        frame, key, owner = _caller(state)
        if frame is None:
            return func(*args, **(kwargs or {}))
        if owner in state.lists.compounds and frame.f_code.co_name == owner:
            self._compound_function(frame, owner)
        before = state.enter((*key, name), name, owner)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            state.recorder.site = before

    def _compound_function(self, frame: FrameType, owner: str) -> None:
        """A compound operator that is a function is a place where it is called."""
        outside = frame.f_back
        while outside is not None and outside.f_code.co_filename != self.state.file:
            outside = outside.f_back
        if outside is not None:
            around = _owner(outside, self.state)
            key = (around, outside.f_code.co_firstlineno, outside.f_lasti, owner)
            self.state.places.setdefault(key, Place(owner, around))


@cache
def _known(preferred: tuple[str, ...]) -> dict[Any, str]:
    """The public name of each function of torch. Many have several; the one that the operator lists use goes first.

    A method of a tensor has the name of the function that it is, where it is one.
    """
    found = {function: name for name in preferred if (function := resolved(name)) is not None}
    for name, function in vars(torch._C._nn).items():  # what some functionals call before anybody can watch
        if callable(function) and hasattr(torch.nn.functional, name):
            found.setdefault(function, f"F.{name}")
    if "F.logsigmoid" in preferred:
        found.setdefault(torch._C._nn.log_sigmoid, "F.logsigmoid")
    for space, functions in get_overridable_functions().items():
        prefix = _SPACES.get(space) or f"{getattr(space, '__name__', '')}."
        for function in functions:
            name = getattr(function, "__name__", "")
            if name and (not name.startswith("_") or name in _SIGNS):
                found.setdefault(function, _named(prefix, _SIGNS.get(name, name), space))
    return found


_SPACES: dict[Any, str] = {torch.nn.functional: "F.", torch: "torch.", torch.Tensor: "torch."}


def _named(prefix: str, bare: str, space: Any) -> str:
    if prefix == "torch." and bare.endswith("_") and not bare.endswith("__"):
        bare = bare[:-1]
    if space is torch.Tensor and bare != "getitem" and not hasattr(torch, bare):
        return f"torch.Tensor.{bare}"
    return f"{prefix}{bare}"


def resolved(name: str) -> Any:
    """Return what a name of the operator lists means in torch, or None."""
    first, *rest = name.split(".")
    found: Any = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}.get(first)
    for word in rest:
        found = getattr(found, word, None)
    return found if rest else None


def function_name(function: Any, preferred: tuple[str, ...] = ()) -> str:
    """Return how a torch function is called in the lists, "" for what is no operator (reading a shape, a dtype)."""
    try:
        name = _known(preferred).get(function, "")
    except TypeError:  # not hashable: nothing of torch
        return ""
    bare = getattr(function, "__name__", "")
    return name or (f"torch.{_SIGNS[bare]}" if bare in _SIGNS and function not in get_ignored_functions() else "")


def check_names(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """The job that makes sure that torch has everything of a list of names.

    Raises:
        Failure: it lacks some.
    """
    unknown = [name for name in job["names"] if resolved(name) is None]
    if unknown:
        raise Failure("structure", f"torch has no {', '.join(unknown)}")
    return {}
