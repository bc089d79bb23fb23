"""The graph of a module without its computation: for reference problems, whose inputs may be as large as they like."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from . import graph
from .program import Failure, build


def canonical_of(name: str, source: str, builtins: dict[str, Any] | None) -> dict[str, Any]:
    """Return the canonical graph of a program; tensors have shapes and no memory.

    Raises:
        Failure: it cannot be built or run.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        loaded = build(name, source, builtins, most=None)
        recorder = graph.Recorder()
        for value in loaded.inputs:
            recorder.take(value)
        try:
            with recorder:
                result = loaded.model(*loaded.inputs)
        except Exception as error:
            raise Failure("runtime", f"{type(error).__name__}: {error}") from error
    ends = [recorder.node(one) for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
    return graph.canonical(ends)


def canonical(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """The job that asks for it."""
    return {"graph": canonical_of(job["name"], job["source"], builtins)}
