"""Two gloo ranks: the overlay computes what stock does, each rank the same, and what cannot be fused is declined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.tiny_models import save_tiny
from tests.ranks import launch

# With a bias in o_proj stock itself cannot train under its own plan ("Cannot assign non-leaf Tensor to '_bias'").
OVERRIDES: dict[str, dict[str, Any]] = {"qwen3": {"attention_bias": False}}
Found = dict[str, Any]


def run(folder: Path, scenario: str, *architectures: str, planted: int | None = None) -> list[Found]:
    for architecture in architectures:
        save_tiny(architecture, folder / architecture, **OVERRIDES.get(architecture, {}))
    return launch.run(folder, scenario, *architectures, planted=planted)


def assert_equals_stock(ranks: list[Found]) -> None:
    """Every rank: bit for bit with toggles off, within the table on; all ranks alike; stock itself as one process."""
    assert len(ranks) == launch.RANKS
    for architecture, first in ranks[0].items():
        for rank, found in enumerate(ranks):
            assert found[architecture]["alone"] == [], (architecture, rank)
            for toggles in found[architecture].keys() - {"alone"}:
                mine = found[architecture][toggles]
                assert mine["deviating"] == [], (architecture, toggles, rank)
                assert mine["digests"] == first[toggles]["digests"], (architecture, toggles, rank)
                assert mine["digests"]


def calls(ranks: list[Found], architecture: str, toggles: str, op: str, tier: str) -> list[int]:
    """How often each rank ran ``op`` on ``tier``."""
    tables = [found[architecture][toggles]["ops"].get(op, []) for found in ranks]
    return [sum(row["calls"] for row in table if row["tier"] == tier) for table in tables]


def reasons(ranks: list[Found], architecture: str, op: str) -> set[str]:
    """Why an op's fast path was declined on any rank, everything on."""
    rows = [row for found in ranks for row in found[architecture]["on"]["ops"][op]]
    return {entry["reason"] for row in rows for entry in row["declined"]}


def assert_fused(ranks: list[Found], architecture: str, *ops: str) -> None:
    """At least nine of ten calls of these places, and of Linears alone, are ours, on every rank."""
    for op in (*ops, "apply_linear"):
        fast = calls(ranks, architecture, "on", op, "linear" if op == "apply_linear" else "fused")
        slow = calls(ranks, architecture, "on", op, "stock")
        for ours, stocks in zip(fast, slow, strict=True):
            assert ours >= 9 * stocks, (architecture, op, ours, stocks, reasons(ranks, architecture, op))
            assert ours > 0, (architecture, op)


def test_tensor_parallel_quickly(tmp_path: Path) -> None:
    ranks = run(tmp_path, "quick-tensor", "llama")
    assert_equals_stock(ranks)
    assert_fused(ranks, "llama", "qkv_proj", "gated_mlp", "add_norm")
    assert all(calls(ranks, "llama", "on", "attention", "torch"))


@pytest.mark.full
def test_a_wrong_rank_is_seen(tmp_path: Path) -> None:
    ranks = run(tmp_path, "quick-tensor", "llama", planted=1)
    assert ranks[1]["llama"]["on"]["deviating"]
    assert ranks[0]["llama"]["off"]["deviating"] == []
    with pytest.raises(AssertionError):
        assert_equals_stock(ranks)


@pytest.mark.full
def test_tensor_parallel(tmp_path: Path) -> None:
    """Projections hold DTensor shards behind the plan's hooks: their local parts are packed, but under autograd."""
    ranks = run(tmp_path, "tensor", "llama", "qwen3")
    assert_equals_stock(ranks)
    for architecture in ("llama", "qwen3"):
        for op in ("qkv_proj", "gated_mlp"):
            assert all(calls(ranks, architecture, "on", op, "fused")), op
            assert reasons(ranks, architecture, op) == {"gradients go through the tensor-parallel plan"}
        assert all(calls(ranks, architecture, "on", "add_norm", "fused"))
        assert reasons(ranks, architecture, "add_norm") <= {"the hidden states are a tensor subclass"}, "under autograd"
        # The sum over the ranks comes before the residual: there is no GEMM that could add it.
        assert calls(ranks, architecture, "on", "mlp_add", "fused") == [0, 0]
        assert "a hook is registered on the Linear" in reasons(ranks, architecture, "mlp_add")
        for op in ("attention", "rms_norm", "rope_into_cache"):
            assert all(calls(ranks, architecture, "on", op, "torch")), op


@pytest.mark.full
@pytest.mark.parametrize("scenario", ["ddp", "fsdp1", "fsdp2"])
def test_training(scenario: str, tmp_path: Path) -> None:
    """Three steps of SGD, each followed by an evaluation: DDP packs in both, FSDP's views are left alone."""
    ranks = run(tmp_path, scenario, "llama", "qwen3", "mixtral")
    assert_equals_stock(ranks)
    assert {"off", "on", "packed", "kernelized"} <= ranks[0]["llama"].keys()
    for architecture in ("llama", "qwen3"):
        fused = calls(ranks, architecture, "on", "qkv_proj", "fused")
        assert all(fused) if scenario == "ddp" else fused == [0, 0]
        assert bool(reasons(ranks, architecture, "qkv_proj")) == (scenario != "ddp")
        assert all(calls(ranks, architecture, "on", "attention", "torch"))


@pytest.mark.full
def test_mixtures_of_experts_and_packed_projections_under_tensor_parallelism(tmp_path: Path) -> None:
    """phi3's shards are plain tensors, gemma2's norms see what a collective has yet to deliver, experts are lists."""
    ranks = run(tmp_path, "tensor", "phi3", "gemma2", "mixtral")
    assert_equals_stock(ranks)
