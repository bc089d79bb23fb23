"""Look at the finished text: it is Python, every global name in it is bound, and an overlay keeps every stock name."""

from __future__ import annotations

import ast
import builtins
import symtable
import warnings
from collections.abc import Iterable, Mapping, Sequence

from ...errors import InternalError, Place
from .patches import CodePatch, ConfigError, DropImport, Exclude, Patch
from .snippet import global_names

_IMPLICIT = {*dir(builtins), "__name__", "__file__", "__doc__", "__package__", "__spec__", "__path__", "__class__"}


def check_python(text: str, path: str) -> None:
    """Raise InternalError unless the text compiles: the parts were checked one by one before."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise InternalError(
            "the generated file is not valid Python", place=Place(path, line), found=str(error)
        ) from error


def unbound(stock: str, output: str, patches: Sequence[Patch]) -> list[ConfigError]:
    """Errors about names that the output uses and nothing binds, unless stock does so too."""
    before, after = _Module(stock), _Module(output)
    if after.star:
        return []
    errors = []
    for name, line in sorted(after.unbound.items()):
        if name not in before.unbound:
            errors.append(_unbound(name, line, patches))
    return errors


def _unbound(name: str, line: int, patches: Sequence[Patch]) -> ConfigError:
    gone = next((one for one in patches if isinstance(one, (Exclude, DropImport)) and one.target == name), None)
    if gone is not None:
        return ConfigError(
            f"{name} is gone from the output but still used",
            place=gone.place,
            found=f"a use in line {line} of the output",
        )
    user = next((one for one in patches if isinstance(one, CodePatch) and _mentions(one, name)), None)
    return ConfigError(
        f"nothing in the generated file defines {name}",
        place=user.definition.place if user else (patches[0].place if patches else None),
        expected="a name of the stock module, an added import or a helper",
        found=f"a use in line {line} of the output",
        remedy=f"{_remedy(name, user)}",
    )


def _mentions(patch: CodePatch, name: str) -> bool:
    used = global_names(patch.definition)
    return name in used or any(name == value or value in name for value in patch.name_map.values() if value)


def _remedy(name: str, user: CodePatch | None) -> str:
    found = _import_in_config(name, user.definition.place.path) if user else None
    if found is None:
        return "config.add_import(...), config.add_helper(...) or config.add_post_import_block(...)"
    module, original = found
    if original is None:
        return f'config.add_import("{module}"' + ("" if name == module else f', alias="{name}"') + ")"
    text = original if original == name else f"{original} as {name}"
    return f'config.add_import("{module}", names=["{text}"])'


def _import_in_config(name: str, path: str) -> tuple[str, str | None] | None:
    """How the config file itself imports a name: (module, name in it or None for the module)."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                if isinstance(node, ast.Import):
                    return alias.name, None
                return (node.module or "", alias.name) if not node.level else None
    return None


def lost_names(stock: str, output: str) -> set[str]:
    """Module-level names that stock binds and the output does not."""
    return _Module(stock).bound - _Module(output).bound


class _Module:
    """Which names a module binds at its top level, and which it uses without anybody binding them."""

    def __init__(self, text: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(text, "<module>", "exec")
            tree = ast.parse(text)
        self.star = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
        self.bound = {
            symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()
        }
        tables = list(_tables(table))
        for one in tables:
            if one is not table:
                self.bound |= {
                    symbol.get_name()
                    for symbol in one.get_symbols()
                    if symbol.is_declared_global() and symbol.is_assigned()
                }
        self.unbound = _first_lines(tree, _unbound_names(table, tables, self.bound))


def _tables(table: symtable.SymbolTable) -> Iterable[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _unbound_names(module: symtable.SymbolTable, tables: Sequence[symtable.SymbolTable], bound: set[str]) -> set[str]:
    found: set[str] = set()
    for table in tables:
        for symbol in table.get_symbols():
            name = symbol.get_name()
            outer = symbol.is_global() or table is module
            if symbol.is_referenced() and outer and name not in bound and name not in _IMPLICIT:
                found.add(name)
    return found


def _first_lines(tree: ast.Module, names: set[str]) -> Mapping[str, int]:
    lines: dict[str, int] = dict.fromkeys(names, 1)
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]
    for node in sorted(uses, key=lambda one: -one.lineno):
        lines[node.id] = node.lineno
    return lines
