"""A release of aiter moves, renames or deletes modules: what is lost is that module's ops alone, told and counted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import amd_ops
from amd_ops.backends import aiter, shuffled
from amd_ops.backends.aiter import library
from tests.aiter.support import BF16, ON, rand
from tests.aiter.test_declines import EXPECTED, OPS, _arguments
from tests.doubles import formulas
from tests.doubles.aiter import Faults, fake_aiter
from tests.doubles.aiter import catalog as catalogs
from tests.doubles.aiter.package import MODULES

NEWEST = catalogs.versions()[-1]
TRITON = sorted(catalogs.load(NEWEST).triton_modules)
LOST = {
    "aiter": set(OPS),
    "aiter.ops": set(OPS),
    "aiter.ops.mha": set(),  # aiter's Triton attention takes over
    "aiter.ops.activation": {"silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"},
    "aiter.ops.rmsnorm": {"rms_norm", "add_rms_norm"},
    "aiter.ops.rope": {"apply_rope"},
    "aiter.ops.shuffle": set(),
    "aiter.tuned_gemm": {"linear"},
    "aiter.fused_moe": set(),
    **{module: set() for module in TRITON},
}
"""Module -> the ops that leave tier aiter on gfx942 when it is gone."""
IN_TRITON = {"aiter.ops.triton", "aiter.ops.triton.attention", "aiter.ops.triton.attention.mha"}
"""The modules without which a Radeon has no attention of aiter's."""


def quietly(op: str, *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        result = getattr(amd_ops, op)(*args)
    return result[0] if isinstance(result, tuple) else result


def answers(ops: list[str]) -> set[str]:
    """The ops among these that tier aiter answers; each must be right, whoever answers, and each loss has a reason."""
    found = set()
    for op in ops:
        amd_ops.reset_counters()
        arguments = _arguments()[op]
        formulas.close(quietly(op, *arguments), EXPECTED[op](*arguments), 3.0)
        report = amd_ops.report()
        if report.calls(op, "aiter"):
            found.add(op)
        else:
            assert any(
                row["declined"]
                for line in report.as_dict()["ops"]
                if line["op"] == op
                for row in line["tiers"]
                if row["tier"].startswith("aiter")
            ), f"{op} was lost without a word"
    return found


def test_every_module_that_the_double_has_is_in_the_list() -> None:
    assert set(LOST) == {*MODULES, *TRITON}


@pytest.mark.parametrize("module", LOST)
@torch.no_grad()
def test_a_module_that_is_gone_takes_its_own_ops_with_it(module: str) -> None:
    with fake_aiter(NEWEST, "gfx942", faults=Faults(gone=frozenset({module}))), amd_ops.override(**ON):
        assert answers(OPS) == set(OPS) - LOST[module]


@pytest.mark.parametrize("module", [*LOST])
@torch.no_grad()
def test_attention_on_a_radeon_needs_its_own_module_alone(module: str) -> None:
    with fake_aiter(NEWEST, "gfx1100", 96, faults=Faults(gone=frozenset({module}))), amd_ops.override(**ON):
        needed = module in IN_TRITON or module in ("aiter", "aiter.ops")
        assert answers(["attention"]) == (set() if needed else {"attention"})


@torch.no_grad()
def test_a_module_that_raises_at_its_import_is_a_module_that_is_gone() -> None:
    for module in ("aiter.tuned_gemm", "aiter.ops.triton.attention.mha"):
        faults = Faults(module_errors={module: SyntaxError("invalid syntax")})
        with fake_aiter(NEWEST, "gfx942", faults=faults), amd_ops.override(**ON):
            assert answers(OPS) == set(OPS) - LOST[module]


@torch.no_grad()
def test_experts_need_their_own_module_alone() -> None:
    def run(kept: bool) -> int:
        hidden, w1, w2 = rand(3, 64), rand(4, 128, 64), rand(4, 64, 64)
        weight, ids = torch.full((3, 2), 0.5), torch.tensor([[0, 1], [1, 2], [3, 0]], dtype=torch.int32)
        amd_ops.reset_counters()
        if kept:
            # As prepare() does for a model; without aiter's shuffle there is nothing to make them with.
            assert [shuffled.keep(weight, aiter.shuffler()) for weight in (w1, w2)] == ["", ""]
        out = quietly("moe", hidden, w1, w2, weight, ids)
        assert out.dtype is BF16
        calls = amd_ops.report().calls("moe", "aiter")
        with amd_ops.override(tiers="eager"):
            formulas.close(out, amd_ops.moe(*(t.double() for t in (hidden, w1, w2)), weight, ids), 6.0)
        return calls

    for module in LOST:
        faults = Faults(gone=frozenset({module}))
        with fake_aiter(NEWEST, "gfx942", faults=faults), amd_ops.override(**ON, use_preshuffle=1):
            needed = module in ("aiter", "aiter.ops", "aiter.ops.shuffle", "aiter.fused_moe")
            assert run(kept=module not in ("aiter", "aiter.ops", "aiter.ops.shuffle")) == (0 if needed else 1), module


@torch.no_grad()
def test_a_gemm_that_looks_up_otherwise_still_reads_shuffled_weights() -> None:
    """The lookup is not public: where it is gone, whether shuffled weights are read is a matter of numbers."""
    faults = Faults(missing=frozenset({"get_GEMM_A16W16_config"}))
    with fake_aiter(NEWEST, "gfx942", faults=faults) as double, amd_ops.override(**ON, use_preshuffle=1):
        model = torch.nn.Linear(64, 64, bias=False).to(BF16)
        amd_ops.prepare(model)
        x = rand(256, 64)
        for _ in range(2):
            formulas.close(quietly("linear", x, model.weight), formulas.linear(x, model.weight), 3.0)
        assert any(getattr(call["B"], "shape", None) == (64, 64) for call in double.calls if call.name == "gemm_a16w16")


def test_functions_are_found_where_aiter_itself_has_them() -> None:
    """A module was renamed, and aiter still exports its function."""
    with fake_aiter(NEWEST, "gfx942", faults=Faults(gone=frozenset({"aiter.tuned_gemm"}))) as double:
        double.load().gemm_a16w16 = lambda A, B, bias=None: A @ B.T
        found, names = library.function_of("gemm_a16w16", "aiter.tuned_gemm")
        assert names == ("A", "B", "bias")
        assert found is double.load().gemm_a16w16
