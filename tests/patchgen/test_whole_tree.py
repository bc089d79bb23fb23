"""Every PyTorch modeling file of a release: the null run, the recipes' reach, and a sample for the fast run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocm_overlay.patchgen.edits import unsplice
from rocm_overlay.patchgen.engine import Result, generate
from rocm_overlay.patchgen.recipe import RecipeSet, Status
from rocm_overlay.patchgen.source import Source
from rocm_overlay.patchgen.trees import Tree, open_tree

from tests.patchgen.support import all_recipes

NULL = RecipeSet((), "0" * 12)

# Sites of 4.57.6 that a change may not lose; (files, sites) per recipe.
REACH = {
    "rms_norm": (76, 80),
    "rope": (61, 61),
    "qkv": (111, 139),
    "attention": (164, 210),
    "gated_mlp": (70, 81),
    "linear": (96, 133),
}
FILES = 390
CHANGED = 194

NEVER = (
    "FrozenBatchNorm2d",
    "RMSNormGated",
    "CohereLayerNorm",
    "HeliumRMSNorm",
    "Olmo2RMSNorm",
    "GptOssRMSNorm",
    "Llama4TextRMSNorm",
)


@pytest.fixture(scope="module")
def tree(stock_tree: Callable[[str], Path]) -> Tree:
    return open_tree(stock_tree("4.57.6"))


def every(tree: Tree, step: int) -> Iterator[tuple[str, bytes]]:
    """Path and text of every ``step``-th modeling file."""
    for path in tree.modeling_files[::step]:
        yield path, tree.read(path)


def null_run(path: str, data: bytes) -> None:
    assert generate(data, path, NULL).overlay == data
    source = Source(data, path)
    assert source.module.code.encode("utf-8") == data.removeprefix(b"\xef\xbb\xbf")
    last = source.module.body[-1]
    start, end = source.span(last)
    assert 0 < start < end <= len(data)
    assert source.line_at(start) <= data.count(b"\n") + 1


def headers(text: bytes) -> list[bytes]:
    """The lines on which decorators, classes and functions begin."""
    return [line for line in text.split(b"\n") if line.lstrip().startswith((b"@", b"class ", b"def ", b"async "))]


def check_result(result: Result) -> None:
    """What must hold of every overlay, whichever file it is of."""
    assert unsplice(result.overlay, result.edits) == result.stock
    assert result.conflicts == ()
    assert not any(name in edit.qualname for edit in result.edits for name in NEVER)
    if result.changed:
        assert headers(result.overlay) == headers(result.stock)
        stock = set(result.stock.split(b"\n"))
        ours = [line for line in result.overlay.split(b"\n")[1:] if line not in stock]
        assert max(len(line.decode()) for line in ours) <= 119


def test_null_run_on_a_sample(tree: Tree) -> None:
    for path, data in every(tree, 40):
        null_run(path, data)


def test_the_recipes_on_a_sample(tree: Tree) -> None:
    results = [generate(data, path, all_recipes()) for path, data in every(tree, 40)]
    for result in results:
        check_result(result)
    assert sum(result.changed for result in results) >= 4


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["4.57.1", "4.57.3", "4.57.6"])
def test_null_run_on_every_file(version: str, stock_tree: Callable[[str], Path]) -> None:
    paths = 0
    for path, data in every(open_tree(stock_tree(version)), 1):
        null_run(path, data)
        paths += 1
    assert paths == FILES


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_recipes_on_every_file(tree: Tree) -> None:
    results = []
    for path, data in every(tree, 1):
        results.append(generate(data, path, all_recipes()))
        check_result(results[-1])
    files: Counter[str] = Counter()
    sites: Counter[str] = Counter()
    for result in results:
        for outcome in result.outcomes:
            files[outcome.recipe] += outcome.status is Status.APPLIED
            sites[outcome.recipe] += len(outcome.sites)
    assert {name: (files[name], sites[name]) for name in REACH} == REACH
    assert sum(result.changed for result in results) == CHANGED
