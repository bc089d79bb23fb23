"""Every PyTorch modeling file of a release: the null run, the recipes' reach, and a sample for the fast run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocm_overlay.patchgen.edits import unsplice
from rocm_overlay.patchgen.engine import Result, generate
from rocm_overlay.patchgen.recipe import RecipeSet
from rocm_overlay.patchgen.source import Source
from rocm_overlay.patchgen.trees import Tree, open_tree

from tests.patchgen.support import all_recipes

NULL = RecipeSet((), "0" * 12)

# Every release that is looked at, and how many PyTorch modeling files it has.
NULL_RELEASES = {
    "4.53.3": 342,
    "4.57.1": 390,
    "4.57.3": 390,
    "4.57.6": 390,
    "5.0.0": 396,
    "5.10.4": 462,
    "5.17.0": 501,
    "5.23.0": 530,
}

NEVER = (
    "FrozenBatchNorm2d",
    "RMSNormGated",
    "CohereLayerNorm",
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
        block = next(edit.overlay for edit in result.edits if edit.recipe == "import")  # the same everywhere
        text = result.overlay[: block[0]] + result.overlay[block[1] :]
        ours = [line for line in text.split(b"\n")[1:] if line not in stock]
        assert max(len(line.decode()) for line in ours) <= 119


@pytest.mark.parametrize("version", NULL_RELEASES)
def test_null_run_on_a_sample(version: str, wheel: Callable[[str], Path]) -> None:
    tree = open_tree(wheel(version))
    assert len(tree.modeling_files) == NULL_RELEASES[version]
    for path, data in every(tree, 60):
        null_run(path, data)


def test_the_recipes_on_a_sample(tree: Tree) -> None:
    results = [generate(data, path, all_recipes()) for path, data in every(tree, 40)]
    for result in results:
        check_result(result)
    assert sum(result.changed for result in results) >= 4


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", NULL_RELEASES)
def test_null_run_on_every_file(version: str, wheel: Callable[[str], Path]) -> None:
    tree = open_tree(wheel(version))
    paths = 0
    for path, data in every(tree, 1):
        null_run(path, data)
        paths += 1
    assert paths == NULL_RELEASES[version]
