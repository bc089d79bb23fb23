"""Annotations that a release's ``auto_docstring`` cannot read: it looks at them while the module is imported.

Up to transformers 4 it asks every annotation that typing did not make for its ``__name__``, which ``A | B`` has not, so
a replacement written for 5 gives a file that does not import.
"""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator, Sequence

from ...errors import Place
from ..trees import Tree
from .patches import CodePatch, ConfigError, Patch

_HOMES = ("utils/auto_docstring.py", "utils/args_doc.py")
_DECORATOR = "auto_docstring"


def reads_unions(tree: Tree) -> bool:
    """Say whether the package's ``auto_docstring``, if it has one, knows the type of ``A | B``."""
    homes = [name for name in _HOMES if tree.has(name)]
    return all(b"UnionType" in tree.read(name) for name in homes)


def unreadable(output: str, patches: Sequence[Patch], path: str) -> list[ConfigError]:
    """Errors about documented parameters that are annotated with ``A | B``; ``path`` is the output, for messages."""
    tree = ast.parse(output)
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return []  # annotations stay text, which is read as it is
    errors = []
    for qualname, function in _documented(tree):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        for one in arguments:
            if _is_union(one.annotation):
                errors.append(_error(f"{one.arg}: {ast.unparse(one.annotation)}", qualname, one.lineno, patches, path))
    return errors


def _error(text: str, qualname: str, line: int, patches: Sequence[Patch], path: str) -> ConfigError:
    owner = qualname.partition(".")[0]
    mine = [one for one in patches if isinstance(one, CodePatch) and one.target in (qualname, owner)]
    return ConfigError(
        f"{_DECORATOR} of this release cannot read an annotation of {qualname}: the file would not import",
        place=mine[0].definition.place if mine else Place(path, line),
        expected="Optional[A] or Union[A, B]",
        found=text,
    )


def _documented(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function whose parameters the decorator documents: its own, and ``__init__`` of a decorated class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _is_decorated(node):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    documented = _is_decorated(inner) or (inner.name == "__init__" and _is_decorated(node))
                    yield from [(f"{node.name}.{inner.name}", inner)] if documented else []


def _is_decorated(node: ast.stmt) -> bool:
    for decorator in getattr(node, "decorator_list", ()):
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id == _DECORATOR:
            return True
    return False


def _is_union(annotation: ast.expr | None) -> typing.TypeGuard[ast.expr]:
    """``A | B`` of classes; with an operand of typing the whole is one of typing, too."""
    if not isinstance(annotation, ast.BinOp) or not isinstance(annotation.op, ast.BitOr):
        return False
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return not names & set(typing.__all__)
