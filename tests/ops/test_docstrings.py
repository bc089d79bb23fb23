"""Every public name of amd_ops has an example in its docstring, and what the example says is so."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops
from amd_ops.kernelize.registry import current_registry

NAMES = [*amd_ops.__all__, *amd_ops._KERNELIZE, *amd_ops._MODULE_API]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example registers or replaces does not reach other tests: a kernel for silu was once left behind."""
    with amd_ops.use_kernels():
        yield
    amd_ops.restore_function_kernels()
    monkeypatch.undo()
    amd_ops.refresh()


@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_example_of(name: str) -> None:
    text: Any = getattr(amd_ops, name).__doc__
    example = doctest.DocTestParser().get_doctest(text, {"amd_ops": amd_ops, "torch": torch, "nn": nn}, name, None, 0)
    assert example.examples, f"{name} has no example"
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=printed.append)
    assert printed == []


def test_an_example_leaves_no_kernel_behind() -> None:
    assert not current_registry().functions
