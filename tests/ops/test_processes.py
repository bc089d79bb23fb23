"""Dispatch in threads and in forked processes."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

import pytest
import torch

import amd_ops
from amd_ops import dispatch
from amd_ops.backends import shuffled
from tests.doubles.aiter import fake_aiter
from tests.forking import fork

THREADS, CALLS = 8, 300


def in_threads(work: Callable[[int], None]) -> None:
    errors: list[str] = []

    def guarded(index: int) -> None:
        try:
            start.wait()
            work(index)
        except BaseException:  # noqa: BLE001 - shown below, in the thread of the test
            errors.append(traceback.format_exc())

    start = threading.Barrier(THREADS)
    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_threads_bind_an_op_together_and_no_call_is_lost() -> None:
    x = torch.randn(3, 16)
    want = amd_ops.silu_and_mul(x)
    amd_ops.refresh()
    amd_ops.reset_counters()
    in_threads(lambda _: [torch.testing.assert_close(amd_ops.silu_and_mul(x), want) for _ in range(CALLS)] and None)
    assert amd_ops.report().calls("silu_and_mul") == THREADS * CALLS
    assert amd_ops.report().calls("silu_and_mul", "torch") == THREADS * CALLS


def test_threads_probe_and_run_tier_aiter() -> None:
    with fake_aiter(), amd_ops.override(use_optimized_ops=1), torch.no_grad():
        x = torch.randn(3, 16).bfloat16()
        want = amd_ops.silu_and_mul(x)
        amd_ops.refresh()
        amd_ops.reset_counters()
        with amd_ops.override(use_optimized_ops=1):
            in_threads(
                lambda _: [torch.testing.assert_close(amd_ops.silu_and_mul(x), want) for _ in range(50)] and None
            )
            assert amd_ops.report().calls("silu_and_mul", "aiter") == THREADS * 50


def test_toggles_may_change_while_others_call() -> None:
    x, weight = torch.randn(3, 16), torch.randn(16)
    want = amd_ops.rms_norm(x, weight, 1e-6)

    def work(index: int) -> None:
        for _ in range(60):
            if index == 0:
                with amd_ops.override(tiers="eager"):
                    amd_ops.report()
            torch.testing.assert_close(amd_ops.rms_norm(x, weight, 1e-6), want)

    in_threads(work)


def test_a_forked_child_counts_and_binds_on_its_own() -> None:
    x = torch.randn(3, 16)
    want = amd_ops.silu_and_mul(x)

    def work() -> None:
        torch.testing.assert_close(amd_ops.silu_and_mul(x), want)
        assert amd_ops.report().calls("silu_and_mul") == 2
        with amd_ops.override(tiers="eager"):
            torch.testing.assert_close(amd_ops.silu_and_mul(x), want)
        amd_ops.refresh()
        amd_ops.silu_and_mul(x)

    assert fork(work) == 0
    assert amd_ops.report().calls("silu_and_mul") == 1


@pytest.mark.parametrize("module", ["packing", "shuffled", "dispatch"])
def test_a_fork_while_a_thread_holds_a_lock_does_not_hang_the_child(module: str) -> None:
    lock = {"packing": amd_ops.forward.projections.packing, "shuffled": shuffled, "dispatch": dispatch}[module]._lock
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:

        def work() -> None:
            fresh = {"packing": amd_ops.forward.projections.packing, "shuffled": shuffled, "dispatch": dispatch}[
                module
            ]._lock
            assert fresh.acquire(timeout=5)

        assert fork(work) == 0
    finally:
        done.set()
        thread.join()
