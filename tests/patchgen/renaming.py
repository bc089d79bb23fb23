"""A mutation of stock files: every parameter and local is called something else, consistently.

What upstream does when it renames ``past_key_values`` to ``cache``, done to all names at once. Attributes, functions,
classes and imports keep their names. A recipe that is bound to roles finds the same sites.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Mapping, Sequence

import libcst as cst

_KEPT = frozenset(("self", "cls", "super"))


def locals_of(function: cst.FunctionDef) -> set[str]:
    """The parameters and locals of a function and of everything nested in it, ``self`` left out."""
    found: set[str] = set()
    kept = set(_KEPT)

    class Collect(cst.CSTVisitor):
        def visit_Param(self, node: cst.Param) -> None:
            found.add(node.name.value)

        def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
            found.update(_targets(node.target))

        def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
            found.update(_targets(node.target))

        def visit_AugAssign(self, node: cst.AugAssign) -> None:
            found.update(_targets(node.target))

        def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
            found.update(_targets(node.target))

        def visit_For(self, node: cst.For) -> None:
            found.update(_targets(node.target))

        def visit_CompFor(self, node: cst.CompFor) -> None:
            found.update(_targets(node.target))

        def visit_WithItem(self, node: cst.WithItem) -> None:
            if node.asname is not None:
                found.update(_targets(node.asname.name))

        def visit_ExceptHandler(self, node: cst.ExceptHandler) -> None:
            if node.name is not None:
                found.update(_targets(node.name.name))

        def visit_NameItem(self, node: cst.NameItem) -> None:  # global, nonlocal
            kept.add(node.name.value)

        def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
            if node is not function:
                kept.add(node.name.value)

        def visit_ImportAlias(self, node: cst.ImportAlias) -> None:
            kept.add(node.evaluated_alias or node.evaluated_name.split(".")[0])

    function.visit(Collect())
    return found - kept


def _targets(node: cst.CSTNode) -> Iterable[str]:
    if isinstance(node, cst.Name):
        yield node.value
    elif isinstance(node, (cst.Tuple, cst.List)):
        for element in node.elements:
            yield from _targets(element.value)


class _Rename(cst.CSTTransformer):
    """Exchange names inside functions; keywords where the callee is a function or a module of this file."""

    def __init__(self, names: Mapping[str, str], functions: Mapping[str, Sequence[str]], forwards: set[str]) -> None:
        self._names, self._functions, self._forwards = names, functions, forwards
        self._scopes: list[set[str]] = []

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self._scopes.append(set() if self._scopes else locals_of(node) & set(self._names))

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        self._scopes.pop()
        return updated.with_changes(name=original.name)

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        return True

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.Attribute:
        return updated.with_changes(attr=original.attr)

    def leave_Arg(self, original: cst.Arg, updated: cst.Arg) -> cst.Arg:
        return updated.with_changes(keyword=original.keyword)

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        known = self._known(original.func)
        arguments = [
            one.with_changes(keyword=cst.Name(self._names[one.keyword.value]))
            if one.keyword is not None and one.keyword.value in known and one.keyword.value in self._names
            else one
            for one in updated.args
        ]
        return updated.with_changes(args=arguments)

    def _known(self, callee: cst.BaseExpression) -> Iterable[str]:
        if isinstance(callee, cst.Name):
            return self._functions.get(callee.value, ())
        if isinstance(callee, cst.Attribute) and isinstance(callee.value, cst.Name) and callee.value.value == "self":
            return self._functions.get(callee.attr.value, self._forwards)
        return ()

    def leave_Name(self, original: cst.Name, updated: cst.Name) -> cst.Name:
        if self._scopes and original.value in self._scopes[0]:
            return updated.with_changes(value=self._names[original.value])
        return updated


def _functions(module: cst.Module) -> list[tuple[str | None, cst.FunctionDef]]:
    found: list[tuple[str | None, cst.FunctionDef]] = []

    class Find(cst.CSTVisitor):
        def __init__(self) -> None:
            self.owners: list[str] = []

        def visit_ClassDef(self, node: cst.ClassDef) -> None:
            self.owners.append(node.name.value)

        def leave_ClassDef(self, original_node: cst.ClassDef) -> None:
            self.owners.pop()

        def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
            found.append((self.owners[-1] if self.owners else None, node))
            return False

    module.visit(Find())
    return found


def _parameters(function: cst.FunctionDef) -> list[str]:
    return [one.name.value for one in (*function.params.params, *function.params.kwonly_params)]


def renameable(module: cst.Module) -> list[str]:
    """Every parameter and local of a file, but for those that are also a name of the module or of Python."""
    functions = _functions(module)
    free: set[str] = set(dir(builtins))
    for _, function in functions:
        mine = locals_of(function)
        free |= {node for node in _mentioned(function) if node not in mine}
    found: set[str] = set()
    for _, function in functions:
        found |= locals_of(function)
    return sorted(found - free)


def _mentioned(function: cst.FunctionDef) -> set[str]:
    found: set[str] = set()

    class Names(cst.CSTVisitor):
        def visit_Attribute(self, node: cst.Attribute) -> bool:
            node.value.visit(self)
            return False

        def visit_Arg(self, node: cst.Arg) -> bool:
            node.value.visit(self)
            return False

        def visit_Name(self, node: cst.Name) -> None:
            found.add(node.value)

    function.body.visit(Names())
    return found


def rename(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return the file with its parameters and locals renamed."""
    module = cst.parse_module(data)
    functions: dict[str, Sequence[str]] = {}
    forwards: set[str] = set()
    for owner, function in _functions(module):
        name = function.name.value
        if owner is None:
            functions[name] = _parameters(function)
        elif name == "__init__":
            functions[owner] = _parameters(function)
        elif name == "forward":
            forwards |= set(_parameters(function))
        else:
            functions.setdefault(name, _parameters(function))
    return module.visit(_Rename(names, functions, forwards)).bytes


def opaque(data: bytes) -> dict[str, str]:
    """Names without a meaning: ``zq0``, ``zq1``, ..."""
    return {name: f"zq{number}" for number, name in enumerate(renameable(cst.parse_module(data)))}


def rotated(data: bytes) -> dict[str, str]:
    """Every name is called as its neighbour was: names that say the wrong thing."""
    names = renameable(cst.parse_module(data))
    return dict(zip(names, names[1:] + names[:1], strict=True))


def undo(text: str, names: Mapping[str, str]) -> str:
    """Give names of :func:`opaque` back their old form."""
    back = {new: old for old, new in names.items()}
    return re.sub(r"\bzq\d+\b", lambda found: back[found.group()], text)
