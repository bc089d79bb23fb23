"""Planted faults, one per fuzzing target. Each is called in the process that runs the programs, before any of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def ops() -> None:
    """The torch tier of rms_norm forgets gemma's offset of one."""
    from amd_ops import norm

    def without_offset(x: Any, weight: Any, eps: float, form: str) -> Any:
        return F.rms_norm(x, weight.shape, weight, eps).to(x.dtype)  # type: ignore[name-defined] # noqa: F821

    norm.torch_rms_norm.__code__ = without_offset.__code__


def kernelize() -> None:
    """Every norm is taken for gemma's, and the proof believes everything."""
    from amd_ops.kernelize import norms, proof, structure

    match = norms.match
    structure.norms.match = lambda cls, node: (  # type: ignore[attr-defined]
        found if isinstance(found := match(cls, node), str) else replace(found, form="gemma")
    )
    proof.agreement.__code__ = (lambda got, expected: "").__code__


def recipes() -> None:
    """The rms_norm recipe writes every call in llama's form."""
    from rocm_overlay.overlays.recipes import rms_norm

    def always_llama(source: Any, site: Any) -> Any:
        norm = site.found
        call = f"_amd.rms_norm({norm.x}, self.{norm.weight}, self.{norm.eps})"
        return early_return(NAME, source, site.function, call)  # type: ignore[name-defined] # noqa: F821

    rms_norm.edit.__code__ = always_llama.__code__


def compiled() -> None:
    """The compiler takes silu for tanh."""
    import torch
    import torch.nn.functional as F
    from torch._dynamo.backends import registry

    right = registry.lookup_backend("aot_eager")

    def wrong(graph: Any, inputs: Any, **options: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is F.silu:
                node.target, node.kwargs = torch.tanh, {}
        graph.recompile()
        return right(graph, inputs, **options)

    registry._COMPILER_FNS["aot_eager"] = wrong
