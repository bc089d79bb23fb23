"""Finding our computes in classes that nobody registered: by attributes and the syntax tree of forward, never by name
alone.

What is found is put in place as a rewritten forward and proven at its first use (proof.py). When a class looks like
one of ours and is not surely it, it is left alone with a reason.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from . import formulas, forwards, ready, rewrite, rotary
from .errors import RegistrationError, unknown
from .proof import Place, Proof

COMPUTES = ("rms_norm", "activation", "gated_mlp", "qkv", "rope", "attention")
PREFIX = "amd_ops:"

Make = Callable[[Place], Callable[..., Any]]


@dataclass(frozen=True)
class Found:
    """What was found in a class. ``make(place)`` builds its new forward; None when nothing was sure enough."""

    computes: tuple[str, ...]
    source: str
    make: Make | None
    declined: tuple[str, ...] = ()


_found: WeakKeyDictionary[type[nn.Module], dict[frozenset[str], Found | None]] = WeakKeyDictionary()


def check_computes(names: Iterable[str]) -> None:
    """Raise RegistrationError for a compute that does not exist."""
    for name in names:
        if name not in COMPUTES:
            raise RegistrationError(f"kernelize: {unknown('compute', name, COMPUTES)}")


def rewritten(cls: type[nn.Module], computes: frozenset[str]) -> Found | None:
    """Look for the computes in a class; None when it has nothing of ours. Answers are kept per class."""
    if cls.__module__.partition(".")[0] == "torch" or cls.forward is nn.Module.forward:
        return None
    home = sys.modules.get(cls.__module__)
    if hasattr(home, "__amd_overlay__"):
        # An overlaid file calls us by itself, as its toggles say.
        return (
            Found((), "overlay", None, ("the installed file is an overlay: its toggles decide",))
            if _named(cls)
            else None
        )
    known = _found.setdefault(cls, {})
    if computes not in known:
        known[computes] = _look(cls, computes)
    return known[computes]


def _look(cls: type[nn.Module], computes: frozenset[str]) -> Found | None:
    try:
        node = rewrite.parse(cls.forward)
    except rewrite.Unreadable as error:
        # Only a class that its name puts among ours is worth the reason; the name alone never gets it replaced.
        return Found((), "source", None, (str(error),)) if _named(cls) else None
    if not node.args.args or not rewrite.body(node):
        return None
    if not node.decorator_list:
        for compute, look in (("rms_norm", _norm), ("activation", _activation), ("gated_mlp", _mlp)):
            if compute in computes:
                found = look(cls, node)
                if found is not None:
                    return found
    return _edits(cls, node, computes & {"qkv", "rope", "attention"})


def _named(cls: type[nn.Module]) -> bool:
    return any(word in cls.__name__.lower() for word in ("rmsnorm", "mlp", "attention"))


def _norm(cls: type[nn.Module], node: ast.FunctionDef) -> Found | None:
    if not formulas.looks_normalising(node):
        return None
    try:
        norm = formulas.match_norm(cls, node)
    except rewrite.Unreadable as error:
        norm = str(error)
    if isinstance(norm, str):
        declined = Found((), "rms_norm", None, (f"looks like an RMS norm: {norm}",))
        return declined if "norm" in cls.__name__.lower() else None
    eps = f"self.{norm.eps}" if isinstance(norm.eps, str) else repr(norm.eps)
    text = f"_op({norm.argument}, {{self}}.{norm.weight}, {eps.replace('self', '{self}', 1)}, form={norm.form!r})"
    return Found(
        ("rms_norm",), f"amd_ops.rms_norm({norm.form})", _whole(cls, node, text, norm.argument, "rms_norm", "rms_norm")
    )


def _activation(cls: type[nn.Module], node: ast.FunctionDef) -> Found | None:
    if not formulas.looks_gated(node):
        return None
    found = formulas.match_activation(cls, node)
    if isinstance(found, str):
        return Found((), "activation", None, (f"looks like a gated activation: {found}",))
    return Found(
        ("activation",),
        f"amd_ops.{found.op}",
        _whole(cls, node, f"_op({found.argument})", found.argument, found.op, "activation"),
    )


def _mlp(cls: type[nn.Module], node: ast.FunctionDef) -> Found | None:
    mlp = formulas.match_mlp(node)
    if mlp is None:
        return None
    names = f"gate={mlp.gate!r}, up={mlp.up!r}, down={mlp.down!r}, act={mlp.act!r}"
    text = f"_op({{self}}, {mlp.argument}, {names})"
    return Found(("gated_mlp",), "amd_ops.gated_mlp", _whole(cls, node, text, mlp.argument, "gated_mlp", "gated_mlp"))


def _whole(cls: type[nn.Module], node: ast.FunctionDef, text: str, argument: str, op: str, compute: str) -> Make:
    """Replace a whole forward by one expression in its parameters."""
    expression = text.replace("{self}", node.args.args[0].arg)

    def make(place: Place) -> Callable[..., Any]:
        names = {"_op": ready.op(op)}
        fast = forwards.plain_expression(cls.forward, expression, names)
        proof = Proof(compute, cls, fast, cls.forward, 1, place)
        home = forwards.Home(cls)
        return home.take(forwards.from_expression(home, expression, argument, {**names, "_proof": proof}))

    return make


@dataclass
class _Edited:
    node: ast.FunctionDef
    edits: list[rewrite.Edit] = field(default_factory=list)


def _edits(cls: type[nn.Module], node: ast.FunctionDef, computes: frozenset[str]) -> Found | None:
    """Change single calls inside a forward and keep the rest of it."""
    function = inspect.unwrap(cls.forward)
    edited = _Edited(node)
    if "qkv" in computes:
        edited.edits += filter(None, [rewrite.edit_qkv(node)])
    if "rope" in computes:
        edited.edits += filter(None, [rewrite.edit_rope(node, lambda name: _resolve(function, name), rotary.match)])
    if "attention" in computes:
        edited.edits += filter(None, [rewrite.edit_attention(node)])
    if not edited.edits:
        return None
    rewrite.begin_with_home(node)
    names = tuple(edit.compute for edit in edited.edits)

    def make(place: Place) -> Callable[..., Any]:
        home = forwards.Home(cls)
        space: dict[str, Any] = home.names(place.miss)
        for edit in edited.edits:
            space.update(_site(cls, edit, place))
        return home.take(rewrite.recompile(cls.forward, edited.node, space))

    try:
        make(Place("cpu", lambda reason: None))
    except rewrite.Unreadable as error:
        return Found((), "+".join(names), None, (str(error),))
    return Found(names, "amd_ops." + ", amd_ops.".join(names), make)


def _site(cls: type[nn.Module], edit: rewrite.Edit, place: Place) -> dict[str, Any]:
    """Return the name that an edit put into the tree, and what it runs."""
    if edit.compute == "qkv":
        fast, original = ready.qkv(edit.what)
        return {"_amd_qkv": Proof("qkv", cls, fast, original, 1, place)}
    if edit.compute == "rope":
        function, how = edit.what
        proof = Proof("rope", function, ready.rope(function, how), function, 0, place)
        return {"_amd_rope": proof, "_amd_same": ready.still(function)}
    if edit.what == "interface":
        return {"_amd_route": ready.op("route_attention")}
    fast, original = ready.sdpa()
    return {"_amd_sdpa": Proof("attention", cls, fast, original, 0, place)}


def _resolve(function: Any, name: str) -> Any:
    head, *rest = name.split(".")
    found = function.__globals__.get(head)
    for step in rest:
        found = getattr(found, step, None)
    return found
