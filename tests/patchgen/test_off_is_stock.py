"""Off is stock, statement by statement: with every question of ours answered "no", each generated file is stock's tree.

So the order in which modules are called, and with it dropout masks and the order of gradients' sums, is stock's.
"""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from rocm_overlay.patchgen import release

from .test_release import stock_of

LINES = sorted(folder.name for folder in release.OVERLAYS.iterdir() if (folder / "manifest.json").is_file())
NO = object()


def ours(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id.startswith("_amd")


def answer(node: ast.expr) -> Any:
    """What a test of ours gives when amd_ops is away: None for our names, NO where the test is not ours."""
    if ours(node):
        return None
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) and ours(node.values[0]):
        return None
    if isinstance(node, ast.Compare) and ours(node.left):
        return isinstance(node.ops[0], ast.Is)
    return NO


class Off(ast.NodeTransformer):
    """Takes out what never runs, and what only says what a forward computes."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        found = answer(node.test)
        chosen = node if found is NO else (node.body if found else node.orelse)
        return self.generic_visit(chosen) if chosen is node else self.visit(chosen)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if isinstance(node.op, ast.Or) and ours(node.values[0]):
            return self.visit(node.values[1])  # type: ignore[no-any-return]
        if isinstance(node.op, ast.And) and answer(node.values[0]) is True:  # stock's test, where we have no answer
            return self.visit(node.values[1])  # type: ignore[no-any-return]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:
        found = answer(node.test)
        if any(isinstance(one, ast.Name) and one.id == "_amd_spec" for one in ast.walk(node.test)):
            return None  # ... and goes on with what follows from it
        if found is NO:
            return self.generic_visit(node)
        assert not found
        return [self.visit(one) for one in node.orelse]

    def visit_Assign(self, node: ast.Assign) -> Any:
        target = node.targets[0]
        if ours(target) or (isinstance(target, ast.Name) and target.id == "__amd_overlay__"):
            return None
        if isinstance(target, ast.Attribute) and target.attr.startswith("_amd"):
            return None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """The import block begins with a look whether amd_ops is there ..."""
        return None if any((one.asname or "").startswith("_amd") for one in node.names) else node


def off(overlay: bytes) -> str:
    return ast.dump(Off().visit(ast.parse(overlay)))


@pytest.mark.parametrize(
    "line", [line if line == "4.57" else pytest.param(line, marks=pytest.mark.full) for line in LINES]
)
def test_every_generated_file_runs_stocks_statements_in_stocks_order(line: str) -> None:
    manifest = json.loads((release.OVERLAYS / line / "manifest.json").read_bytes())
    different = []
    for entry in manifest["files"]:
        overlay = (release.OVERLAYS / line / entry["payload"]).read_bytes()
        if off(overlay) != ast.dump(ast.parse(stock_of(line, entry))):
            different.append(entry["payload"])
    assert manifest["files"]
    assert different == []


def test_another_order_is_seen() -> None:
    stock = b"def f(self, x):\n    k = self.key(x)\n    q = self.query(x)\n"
    moved = b"def f(self, x):\n    q, k = (_amd.qkv(x) if _amd and _amd.on.qkv else (self.query(x), self.key(x)))\n"
    kept = b"""def f(self, x):
    _amd_qkv = list(_amd.qkv_proj(self, x)) if _amd and _amd.on.qkv else None
    k = (_amd_qkv.pop(0) if _amd_qkv else self.key(x))
    q = (_amd_qkv.pop(0) if _amd_qkv else self.query(x))
"""
    assert off(moved) != ast.dump(ast.parse(stock))
    assert off(kept) == ast.dump(ast.parse(stock))
