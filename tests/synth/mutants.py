"""Planted faults, one per fuzzing target. Each is called in the process that runs the programs, before any of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any


def ops() -> None:
    """The torch tier of attention lets queries see later keys."""
    import amd_ops  # noqa: F401 - which holds a function under the module's name

    module: Any = sys.modules["amd_ops.ops.attention"]

    def sees_all(
        q: Any,
        k: Any,
        v: Any,
        scaling: Any,
        causal: Any,
        mask: Any,
        dropout: Any,
        window: Any,
        softcap: Any,
        sinks: Any,
        call: Any,
    ) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = repeat_heads(k, groups), repeat_heads(v, groups)  # type: ignore[name-defined] # noqa: F821
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)  # type: ignore[name-defined] # noqa: F821
        return out.transpose(1, 2).contiguous()

    module.torch_attention.__code__ = sees_all.__code__


def kernelize() -> None:
    """Every norm is taken for gemma's, and the proof believes everything."""
    from amd_ops.kernelize import formulas, proof, structure

    match = formulas.match_norm
    structure.formulas.match_norm = lambda cls, node: (  # type: ignore[attr-defined]
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
