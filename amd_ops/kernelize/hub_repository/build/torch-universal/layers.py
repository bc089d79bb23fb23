"""Stateless layers by the names that models give to the kernels library."""

from __future__ import annotations

from amd_ops.kernelize.ready import GatedMLP, GeluAndMul, GemmaRMSNorm, RMSNorm, RotaryEmbedding, SiluAndMul

AmdRMSNorm = RMSNorm
AmdGemmaRMSNorm = GemmaRMSNorm
AmdSiluAndMul = SiluAndMul
AmdGeluAndMul = GeluAndMul
AmdGatedMLP = GatedMLP
AmdRotaryEmbedding = RotaryEmbedding

__all__ = [
    "AmdGatedMLP",
    "AmdGeluAndMul",
    "AmdGemmaRMSNorm",
    "AmdRMSNorm",
    "AmdRotaryEmbedding",
    "AmdSiluAndMul",
]
