"""The shapes of a program's intermediate values, which is what a part of it needs as inputs."""

from __future__ import annotations

import sys
from typing import Any

import torch

from rocm_overlay.synth.sandbox import program


def trace(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``{"locals": {name: [shape, dtype]}, "calls": {attribute: [[shape, dtype], ...]}}`` of one forward.

    ``locals`` are the tensors that forward's names hold when it returns, ``calls`` the inputs of each submodule, by its
    whole name: ``blocks.0`` is the first of a list.
    """
    loaded = program.build(job["name"], job["source"], builtins)
    code = type(loaded.model).forward.__code__
    values: dict[str, Any] = {}
    calls: dict[str, Any] = {}

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is code:
            values.update({n: _described(v) for n, v in frame.f_locals.items() if isinstance(v, torch.Tensor)})

    for name, module in loaded.model.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: calls.update({name: list(map(_described, args))}))
    sys.setprofile(watch)
    try:
        program.run(loaded)
    finally:
        sys.setprofile(None)
    return {"locals": values, "calls": calls}


def _described(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    return [list(value.shape), str(value.dtype).removeprefix("torch.")]
