"""Other texts of the same computation: what somebody may do to a problem of a test set."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable

Rewrite = Callable[[str], str]
NAME = "SynthModel_R"


def renamed(source: str) -> str:
    """Only the class is called something else."""
    return source.replace("class Model(", f"class {NAME}(").replace("super(Model,", f"super({NAME},")


def _changed(source: str, change: Callable[[ast.FunctionDef], None]) -> str:
    tree = ast.parse(renamed(source))
    main = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == NAME)
    change(next(node for node in main.body if isinstance(node, ast.FunctionDef) and node.name == "forward"))
    return ast.unparse(ast.fix_missing_locations(tree))


class _Names(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.names.get(node.arg, node.arg))


def variables_renamed(source: str) -> str:
    """Every value of forward, and every attribute, has another name."""

    def change(forward: ast.FunctionDef) -> None:
        stored = {n.id for n in ast.walk(forward) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {one.arg for one in forward.args.args[1:]}
        _Names({name: f"value_{number}" for number, name in enumerate(sorted(stored))}).visit(forward)

    tree = ast.parse(_changed(source, change))
    main = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == NAME)
    own = {n.attr for n in ast.walk(main) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(main):
        if isinstance(node, ast.Attribute) and node.attr in own and isinstance(node.value, ast.Name):
            node.attr = f"layer_{node.attr}"
    return ast.unparse(tree)


def reordered(source: str) -> str:
    """Sums and products read their parts the other way round; each value has a statement and a name of its own."""

    def change(forward: ast.FunctionDef) -> None:
        for node in ast.walk(forward):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
                node.left, node.right = node.right, node.left
        names: dict[str, str] = {}
        for number, statement in enumerate(forward.body):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            value = statement.value if isinstance(statement, ast.Assign | ast.Return) else None
            if value is not None:
                statement.value = _Names(names).visit(value)  # type: ignore[union-attr]
            if isinstance(target, ast.Name):
                names = {**names, target.id: f"step{number}"}
                target.id = f"step{number}"
        constants = [ast.parse("unused = 1.0 + 1.0").body[0]]
        forward.body = [*constants, *forward.body]

    return _changed(source, change)


def inlined(source: str) -> str:
    """One expression: what was kept for a residual is computed where it is used, as often as it is."""

    def change(forward: ast.FunctionDef) -> None:
        values: dict[str, ast.expr] = {}
        kept: list[ast.stmt] = []
        for statement in forward.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and not kept:
                values[statement.targets[0].id] = _Inline(values).visit(copy.deepcopy(statement.value))
            elif isinstance(statement, ast.Assign | ast.Return) and statement.value is not None:
                statement.value = _Inline(values).visit(copy.deepcopy(statement.value))
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                stored = {n.id for one in targets for n in ast.walk(one) if isinstance(n, ast.Name)}
                values = {name: value for name, value in values.items() if name not in stored}
                kept.append(statement)
        forward.body = kept

    return _changed(source, change)


class _Inline(ast.NodeTransformer):
    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return copy.deepcopy(self.values.get(node.id, node)) if isinstance(node.ctx, ast.Load) else node


ALL: tuple[Rewrite, ...] = (renamed, variables_renamed, reordered, inlined)
