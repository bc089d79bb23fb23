"""Recipes are bound to roles: renaming every parameter and local of a stock file changes no site and no edit."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

import pytest
from rocm_overlay.install import catalog
from rocm_overlay.overlays import expected
from rocm_overlay.patchgen.engine import Result, generate

from tests.patchgen.renaming import opaque, rename, rotated, undo
from tests.patchgen.support import LINES, all_recipes

# One model of each shape.
CORE = ("llama", "gpt_oss", "qwen3_moe", "phi3", "olmo2")


def _stock(line: str, model: str) -> bytes:
    """The stock text of the line's last release, which the committed overlay leads back to."""
    entries = [one for one in catalog.load(line).files if one.model == model]
    return max(entries, key=lambda one: one.releases[-1]).stock_bytes()


# The newest line in the core set: it is what the next release will be renamed from.
NEWEST = [(LINES[-1], model) for model in CORE]
EVERY = [(line, model) for line in LINES for model in expected.SITES[line]]


def _sites(result: Result) -> Mapping[str, list[str]]:
    return {one.recipe: sorted(name for name, _ in one.sites) for one in result.outcomes}


def _code(result: Result) -> str:
    """The overlay as a tree, without what names the stock text."""
    text = result.overlay.decode("utf-8")
    return re.sub(r"sha256:[0-9a-f]{64}", "", text)


def _assert_same_sites(line: str, model: str, mapping: Callable[[bytes], dict[str, str]]) -> tuple[Result, Result]:
    data = _stock(line, model)
    names = mapping(data)
    assert len(names) > 20
    stock = generate(data, f"models/{model}/modeling_{model}.py", all_recipes())
    renamed = generate(rename(data, names), stock.path, all_recipes())
    assert renamed.stock != stock.stock
    assert _sites(renamed) == _sites(stock)
    return stock, renamed


def _assert_same_edits(line: str, model: str) -> None:
    stock, renamed = _assert_same_sites(line, model, opaque)
    back = undo(_code(renamed), opaque(stock.stock))
    assert ast.dump(ast.parse(back)) == ast.dump(ast.parse(_code(stock)))


@pytest.mark.parametrize(("line", "model"), NEWEST)
def test_names_without_a_meaning_change_no_edit(line: str, model: str) -> None:
    _assert_same_edits(line, model)


@pytest.mark.parametrize(("line", "model"), NEWEST[:2])
def test_names_that_say_the_wrong_thing_change_no_site(line: str, model: str) -> None:
    _assert_same_sites(line, model, rotated)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("line", "model"), EVERY)
def test_every_committed_model(line: str, model: str) -> None:
    _assert_same_edits(line, model)
    _assert_same_sites(line, model, rotated)


def test_the_mutation_renames_what_it_says() -> None:
    stock = b"""
def f(q, dim=1):
    \"\"\"q\"\"\"
    k = [q for q in q.dim]
    return torch.cat(k, dim=dim) + len(k)

class A:
    q: int = 0
    def forward(self, q):
        return f(q, dim=self.q) + self.norm(q=q) + g(q=f"{q}")
"""
    names = opaque(stock)
    assert sorted(names) == ["dim", "k", "q"]
    renamed = rename(stock, names).decode()
    assert undo(renamed, names) == stock.decode()
    dim, k, q = (names[name] for name in ("dim", "k", "q"))
    assert f"def f({q}, {dim}=1):" in renamed
    assert f"{k} = [{q} for {q} in {q}.dim]" in renamed
    assert f"torch.cat({k}, dim={dim})" in renamed
    assert f'f({q}, {dim}=self.q) + self.norm({q}={q}) + g(q=f"{{{q}}}")' in renamed
    assert "    q: int = 0" in renamed
