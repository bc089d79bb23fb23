"""From one patch to the changes that it makes in the stock text, or a reason why it cannot."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from .definition import DefinitionNode, accessor_of
from .init import modify_init
from .items import drop_aliases, drop_from_all
from .patches import (
    AddHelper,
    AddImport,
    CodePatch,
    ConfigError,
    DropImport,
    Exclude,
    External,
    ModifyInit,
    OverrideMethod,
    Patch,
    PostImportBlock,
    ReplaceClass,
    ReplaceFunction,
)
from .signature import lost_calls
from .snippet import indent, rename
from .stock import Stock, assigned


@dataclass(frozen=True)
class Change:
    """Replace bytes ``start`` to ``end`` of the stock file by ``text``, whose line ends are ``\\n``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Made:
    """What one patch does: its changes (none: already there), and the class or function that they are in."""

    changes: tuple[Change, ...]
    node: DefinitionNode | None = None
    already: str | None = None


@dataclass(frozen=True)
class Context:
    """What every patch of a config knows.

    ``renamed``: what other definitions of the config are called in the output; ``dropped``: stock names that go.
    """

    stock: Stock
    renamed: Mapping[str, str]
    dropped: frozenset[str] = frozenset()


def apply(patch: Patch, context: Context) -> Made:
    """Return the changes of one patch.

    Raises:
        MissingTargetError: the target is not there.
        ConfigError: the target is there and cannot be patched as asked.
    """
    return _MAKERS[type(patch)](patch, context)


def _replace(patch: ReplaceClass | ReplaceFunction, context: Context) -> Made:
    kind = "class" if isinstance(patch, ReplaceClass) else "function"
    stock = context.stock
    node = stock.one(patch.target, kind, patch.place)
    new = _single(_code(patch, patch.target, context), patch)
    if isinstance(new, ast.ClassDef) is not isinstance(node, ast.ClassDef):
        found = "a class" if isinstance(new, ast.ClassDef) else "a function"
        raise ConfigError(f"{patch.target} is a {kind}", place=patch.place, expected=f"a {kind}", found=found)
    _check_signatures(node, new, patch)
    return _swap(stock, node, _code(patch, patch.target, context), patch)


def _external(patch: External, context: Context) -> Made:
    node = context.stock.one(patch.target, "definition", patch.place)
    alias = "" if patch.name == patch.target else f" as {patch.target}"
    return _swap(context.stock, node, f"from {patch.module} import {patch.name}{alias}\n", patch)


def _override(patch: OverrideMethod, context: Context) -> Made:
    stock = context.stock
    class_name, name = patch.target.split(".")
    owner = stock.one(class_name, "class", patch.place)
    assert isinstance(owner, ast.ClassDef)
    text = _code(patch, name, context)
    new = _single(text, patch)
    if isinstance(new, ast.ClassDef):
        raise ConfigError(f"{patch.target} is a method", place=patch.place, expected="a function", found="a class")
    node = stock.method(owner, name, accessor_of(new), patch.place)
    if patch.add:
        if node is not None:
            raise ConfigError(
                f"{patch.target} exists already",
                place=patch.place,
                found=stock.place(node),
                remedy="leave out add=True",
            )
        return _add_method(stock, owner, text, patch)
    if node is None:
        raise stock.no_method(owner, name, patch.place)
    _check_signatures(node, new, patch)
    first = node.lineno if node.decorator_list and not new.decorator_list else None
    return _swap(stock, node, text, patch, owner=owner, first=first)


def _add_method(stock: Stock, owner: ast.ClassDef, text: str, patch: OverrideMethod) -> Made:
    last = owner.body[-1]
    if last.lineno == owner.lineno:
        # class X(Base): ...   - the suite shares the line with its header.
        start = stock.offset(last.lineno, last.col_offset)
        end = stock.lines(last.lineno, last.end_lineno or last.lineno)[1]
        prefix = " " * (owner.col_offset + 4)
        return Made((Change(start, end, f"\n{indent(text, prefix, patch.place)}"),), owner)
    offset = stock.lines(owner.lineno, stock.extent(owner)[1])[1]
    return Made((Change(offset, offset, "\n" + indent(text, " " * last.col_offset, patch.place)),), owner)


def _swap(
    stock: Stock,
    node: DefinitionNode,
    text: str,
    patch: Patch,
    *,
    owner: ast.ClassDef | None = None,
    first: int | None = None,
) -> Made:
    """Put ``text`` in the place of a definition; from line ``first`` where the decorators stay."""
    begin, last = stock.extent(node)
    start, end = stock.lines(first or begin, last)
    new = indent(text, _indent_of(stock, node), patch.place)
    old = stock.source.data[start:end].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    if old.rstrip("\n") == new.rstrip("\n"):
        return Made((), owner or node, already=f"{stock.place(node)} is this code already")
    return Made((Change(start, end, new),), owner or node)


def _indent_of(stock: Stock, node: DefinitionNode) -> str:
    begin = stock.offset(node.lineno)
    return stock.source.data[begin : begin + node.col_offset].decode("utf-8")


def _init(patch: ModifyInit, context: Context) -> Made:
    stock = context.stock
    owner = stock.one(patch.target, "class", patch.place)
    assert isinstance(owner, ast.ClassDef)
    node = stock.method(owner, "__init__", "", patch.place)
    if node is None:
        raise stock.no_method(owner, "__init__", patch.place)
    text = _code(patch, "__init__", context)
    new = _single(text, patch)
    if not isinstance(new, ast.FunctionDef) or not isinstance(node, ast.FunctionDef):
        raise ConfigError("modify_init needs a function", place=patch.place)
    renamed, wrapper = modify_init(stock, node, text, new, patch)
    if not patch.signature_change:
        arguments = copy(new.args)
        arguments.args = new.args.args[1:]
        _check_calls(node.args, arguments, patch)
    name_at, name_end = renamed
    end = stock.lines(node.lineno, stock.extent(node)[1])[1]
    inserted = "\n" + indent(wrapper, _indent_of(stock, node), patch.place)
    return Made((Change(name_at, name_end, "__original_init"), Change(end, end, inserted)), owner)


def _helper(patch: AddHelper, context: Context) -> Made:
    stock = context.stock
    taken = [node for node in stock.definitions if node.name == patch.target]
    if taken:
        raise ConfigError(
            f"the stock module defines {patch.target} already",
            place=patch.place,
            found=stock.place(taken[0]),
            remedy="give the helper another name, or replace that definition",
        )
    text = _code(patch, patch.target, context)
    if patch.after is None:
        offset = stock.offset(stock.after_imports)
        return Made((Change(offset, offset, f"\n\n{text}"),))
    node = stock.one(patch.after, "definition", patch.place)
    offset = stock.lines(node.lineno, stock.extent(node)[1])[1]
    return Made((Change(offset, offset, f"\n\n{indent(text, _indent_of(stock, node), patch.place)}"),))


def _add_import(patch: AddImport, context: Context) -> Made:
    stock = context.stock
    missing: list[str] = []
    _refuse_shadowed(patch, patch.bindings, context)
    for bound, text in patch.bindings.items():
        present = [one for one in stock.imports if one.bound == bound and bound not in context.dropped]
        if not present:
            missing.append(text)
        elif not any(_same_import(patch, text, one.statement) for one in present):
            raise ConfigError(
                f"the stock module imports {bound} from somewhere else",
                place=patch.place,
                found=f"{ast.unparse(present[-1].statement)[:80]} ({stock.place(present[-1].statement)})",
                remedy="import it under another name, or drop_import it first",
            )
    if not missing:
        return Made((), already=f"the stock module imports {', '.join(patch.bindings)} already")
    offset = stock.offset(stock.after_imports)
    line = f"from {patch.target} import {', '.join(missing)}\n" if patch.names else f"{missing[0]}\n"
    return Made((Change(offset, offset, line),))


def _refuse_shadowed(patch: Patch, bound: Iterable[str], context: Context) -> None:
    """A name bound among the imports and again by stock below would be lost without a word."""
    for node in context.stock.definitions:
        if node.name in bound and node.name not in context.dropped:
            raise ConfigError(
                f"the stock module defines {node.name} after its imports, so this one would be lost",
                place=patch.place,
                found=context.stock.place(node),
                remedy="use another name, or replace that definition: create_patch_from_external(...)",
            )


def _same_import(patch: AddImport, text: str, statement: ast.stmt) -> bool:
    wanted = ast.parse(f"from {patch.target} import {text}" if patch.names else text).body[0]
    if isinstance(statement, ast.Import) and isinstance(wanted, ast.Import):
        return any(ast.dump(alias) == ast.dump(wanted.names[0]) for alias in statement.names)
    if isinstance(statement, ast.ImportFrom) and isinstance(wanted, ast.ImportFrom):
        same = statement.module == wanted.module and statement.level == wanted.level
        return same and any(ast.dump(alias) == ast.dump(wanted.names[0]) for alias in statement.names)
    return False


def _exclude(patch: Exclude, context: Context) -> Made:
    stock = context.stock
    named = [node for node in stock.definitions if node.name == patch.target]
    node = stock.one(patch.target, "definition", patch.place) if named else stock.constant(patch.target, patch.place)
    spans = [stock.with_blank_lines(*stock.extent(node)), *drop_from_all(stock, patch.target)]
    return Made(tuple(Change(start, end, "") for start, end in spans))


def _block(patch: PostImportBlock, context: Context) -> Made:
    bound = {node.name for node in ast.parse(patch.text).body if isinstance(node, DefinitionNode)}
    bound |= {name for node in ast.parse(patch.text).body if (name := assigned(node))}
    _refuse_shadowed(patch, bound, context)
    offset = context.stock.offset(context.stock.after_imports)
    return Made((Change(offset, offset, f"\n{patch.text}"),))


def drop_imports(patches: list[DropImport], context: Context) -> list[tuple[DropImport, Made | ConfigError]]:
    """The changes of all ``drop_import`` patches together: names of one statement go in one step."""
    stock = context.stock
    found: dict[int, set[int]] = {}
    made: list[tuple[DropImport, Made | ConfigError]] = []
    seen: set[int] = set()
    for patch in patches:
        for one in stock.imports:
            if one.bound == patch.target:
                found.setdefault(id(one.statement), set()).add(one.index)
    for patch in patches:
        matching = [one.statement for one in stock.imports if one.bound == patch.target]
        if not matching:
            names = {one.bound for one in stock.imports}
            made.append(
                (patch, stock.missing(f"no top-level import of {patch.target}", patch.target, names, patch.place))
            )
            continue
        changes: list[Change] = []
        for statement in matching:
            if id(statement) not in seen:
                seen.add(id(statement))
                spans = drop_aliases(stock, statement, found[id(statement)])
                changes += [Change(start, end, "") for start, end in spans]
        made.append((patch, Made(tuple(changes))))
    return made


def _code(patch: CodePatch, name: str, context: Context) -> str:
    return rename(patch.definition, name, context.renamed, patch.name_map)


def _single(text: str, patch: CodePatch) -> DefinitionNode:
    node = ast.parse(text).body[0]
    assert isinstance(node, DefinitionNode), patch
    return node


def _check_signatures(old: DefinitionNode, new: DefinitionNode, patch: CodePatch) -> None:
    if patch.signature_change:
        return
    if isinstance(old, ast.ClassDef) and isinstance(new, ast.ClassDef):
        methods = {node.name: node for node in new.body if isinstance(node, ast.FunctionDef)}
        for node in old.body:
            if isinstance(node, ast.FunctionDef) and node.name in methods and not accessor_of(node):
                _check_calls(node.args, methods[node.name].args, patch, f"{patch.target}.{node.name}")
    elif not isinstance(old, ast.ClassDef) and not isinstance(new, ast.ClassDef):
        if type(old) is not type(new):
            raise ConfigError(
                f"{patch.target} and its replacement are not both async, or both not",
                place=patch.definition.place,
                remedy="pass signature_change=True where every caller is patched too",
            )
        _check_calls(old.args, new.args, patch)


def _check_calls(old: ast.arguments, new: ast.arguments, patch: CodePatch, name: str | None = None) -> None:
    lost = lost_calls(old, new)
    if lost:
        raise ConfigError(
            f"calls of {name or patch.target} that fit stock do not fit the replacement: {lost}",
            place=patch.definition.place,
            expected=f"({ast.unparse(old)})",
            found=f"({ast.unparse(new)})",
            remedy="keep the parameter, or pass signature_change=True where every caller is patched too",
        )


_MAKERS: dict[type[Patch], Callable[[Any, Context], Made]] = {
    ReplaceClass: _replace,
    ReplaceFunction: _replace,
    OverrideMethod: _override,
    ModifyInit: _init,
    External: _external,
    AddHelper: _helper,
    AddImport: _add_import,
    Exclude: _exclude,
    PostImportBlock: _block,
}
