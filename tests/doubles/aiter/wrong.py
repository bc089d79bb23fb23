"""Kernels that answer without raising, and wrong: ``Faults.wrong`` (results) and ``Faults.altered`` (arguments)."""

from __future__ import annotations

from typing import Any

import torch


def slightly(result: torch.Tensor) -> torch.Tensor:
    """3 % off everywhere: several times what bfloat16 rounding explains."""
    return result * 1.03125


def badly(result: torch.Tensor) -> torch.Tensor:
    """Unrelated numbers of the same size: the rows in reverse order and negated."""
    return -result.flip(0).flip(-1)


def unwritten(result: torch.Tensor) -> torch.Tensor:
    """The kernel never wrote its output."""
    return torch.full_like(result, float("nan"))


def top_left(arguments: dict[str, Any]) -> dict[str, Any]:
    """Causality counted from the first key instead of the last: right only where q_len == k_len."""
    rows = arguments["q"].shape[1]
    return {key: arguments[key][:, :rows] for key in ("k", "v")} if arguments["is_causal"] else {}


def no_window(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"window_size_left": -1, "is_causal": True}


def no_soft_cap(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"logits_soft_cap": 0.0}


def no_sinks(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"sink_ptr": None}


def one_sequence(arguments: dict[str, Any]) -> dict[str, Any]:
    """Packed attention that forgets where sequences end."""
    ends = {key: arguments[key][[0, -1]] for key in ("cu_seqlens_q", "cu_seqlens_k")}
    totals = {"max_seqlen_q": arguments["q"].shape[0], "max_seqlen_k": arguments["k"].shape[0]}
    return {**ends, **totals}


def swapped_halves(arguments: dict[str, Any]) -> dict[str, Any]:
    """An activation kernel that expects up before gate."""
    return {"input": torch.cat(arguments["input"].chunk(2, -1)[::-1], -1)}


def interleaved(arguments: dict[str, Any]) -> dict[str, Any]:
    """The rotation of neighbouring pairs (GPT-J) instead of halves (NEOX)."""
    return {"rotate_style": 1}


def plain_weight(arguments: dict[str, Any]) -> dict[str, Any]:
    """A norm that does not know the offset of gemma's weight."""
    return {"gemma_norm": False}
