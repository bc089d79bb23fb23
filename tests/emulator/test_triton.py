"""Every Triton kernel of ours, compiled for a chip and executed: stock's numbers, no access out of bounds, no race.

The short list is every case in bfloat16 and the rotations in float16, with the cut that the host would choose, on one
Instinct and one Radeon chip. The long one is every dtype on five chips and every cut that tuning may pick, with jitter.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch

from amd_ops.backends.triton import kernels

triton = pytest.importorskip("triton", reason="triton is not installed: the extra `interpret` brings it")
if "amd" not in pytest.importorskip("triton.backends").backends or triton.knobs.runtime.interpret:
    pytest.skip("this triton has no AMD backend, or interprets kernels", allow_module_level=True)

from . import figures  # noqa: E402
from .case import CHIPS, DTYPES, Case, target_of  # noqa: E402
from .judging import wrong  # noqa: E402
from .launch import Options  # noqa: E402
from .triton_cases import SHORT_CHIPS, all_cases, cuts_of  # noqa: E402
from .triton_launch import on  # noqa: E402

CASES = all_cases()
SHORT = [c for c in CASES if c.dtype is torch.bfloat16 or (c.dtype is torch.float16 and c.name.startswith("rope"))]


def test_the_short_list_is_long_enough() -> None:
    assert len(SHORT) * len(SHORT_CHIPS) >= 60
    assert {case.name for case in SHORT} >= {case.name for case in CASES if case.dtype is torch.float32}


class Noting(on):
    """Notes which kernels are launched, and launches none."""

    def __init__(self, arch: str) -> None:
        super().__init__(arch)
        self.names: set[str] = set()

    def execute(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.names.add(kernel.fn.__qualname__)


def test_no_kernel_is_left_out() -> None:
    """Every kernel that a launcher can start is in a case, in every dtype."""
    names = [
        f"{kernels.__name__}.{one.name}" for one in pkgutil.iter_modules(kernels.__path__) if one.name != "numerics"
    ]
    modules = map(importlib.import_module, names)
    started = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and value.fn.__module__ == module.__name__
        and not name.startswith("_")
    }  # fmt: skip
    assert {"rms_norm", "gate_up", "softmax_top_k"} <= started
    for dtype in DTYPES:
        via = Noting("gfx942")
        for case in CASES:
            if case.dtype is dtype:
                case.answers(via, case.cuts(target_of("gfx942"))[0])
        assert via.names == started


@pytest.mark.parametrize("arch", SHORT_CHIPS)
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.id)
def test_a_kernel_gives_stocks_numbers(case: Case, arch: str) -> None:
    cut = case.cuts(target_of(arch))[0]
    via = on(arch)
    assert [reason for answer in case.answers(via, cut) if (reason := wrong(case, answer))] == []
    assert len(via.results) == case.launches


@pytest.mark.parametrize("arch", SHORT_CHIPS)
def test_approximations_one_ulp_off_stay_within_the_same_bounds(arch: str) -> None:
    """rcp, rsq, exp and log answer the other neighbour half of the time."""
    for case in SHORT:
        if case.name in ("silu 3x1000", "rms_norm llama 5x1000", "gelu_tanh_backward 2x300"):
            via = on(arch, Options(jitter=True))
            cut = case.cuts(target_of(arch))[0]
            assert [reason for answer in case.answers(via, cut) if (reason := wrong(case, answer))] == [], case.id


@pytest.mark.full
@pytest.mark.parametrize("arch", sorted(CHIPS))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_cut_that_tuning_may_pick(case: Case, arch: str) -> None:
    for number, cut in enumerate(cuts_of(case, arch)):
        via = on(arch, Options(jitter=number % 2 == 1, seed=number))
        assert [reason for answer in case.answers(via, cut) if (reason := wrong(case, answer))] == [], cut


def test_the_page_of_figures_is_what_was_seen_of_these_cases() -> None:
    """Executed by ``python -m tests.emulator.figures``; a case that is added or changed wants a new run."""
    assert figures.PAGE.read_text() == figures.page()
    page = figures.PAGE.read_text()
    assert figures.launches() >= 300
    assert f"**{figures.launches()} launches" in page
    assert "kinds, 0 unknown; no answers outside their" in page
    assert all(f"| {name} |" in page for name in (*figures.families(), *CHIPS))
