"""Executors: the same jobs and answers in this process and on a Ray cluster of this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rocm_overlay import executor
from rocm_overlay.errors import TargetError, UsageError
from rocm_overlay.executor import Executor, answers, make_executor

from . import jobs

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the [ray] extra is not installed")


@pytest.fixture(params=["process", pytest.param("ray", marks=[needs_ray, pytest.mark.full])])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(request.param, 2)
    yield made
    made.close()


def test_every_job_is_answered_by_its_number(pool: Executor) -> None:
    found = dict(answers(pool, [(jobs.double, number) for number in range(7)]))
    assert {number: answer["value"] for number, answer in found.items()} == {n: 2 * n for n in range(7)}


def test_a_refusal_arrives_whole(pool: Executor) -> None:
    with pytest.raises(UsageError, match="no such thing") as caught:
        pool.submit((jobs.refuse, "no such thing")).result()
    assert (caught.value.id, caught.value.remedy, caught.value.paths) == ("refused", "ask for something else", ("a",))
    assert pool.submit((jobs.double, 1)).result()["value"] == 2


@needs_ray
@pytest.mark.full
def test_a_dead_actor_is_an_answer_and_is_replaced(tmp_path: Path) -> None:
    made = make_executor("ray", 1)
    try:
        first = made.submit((jobs.die_once, tmp_path / "mark")).result()
        assert (first["ok"], first["category"]) == (False, "crash")
        assert made.submit((jobs.die_once, tmp_path / "mark")).result()["ok"]
        assert made.submit((jobs.double, 4)).result()["pid"] != os.getpid()
    finally:
        made.close()


@needs_ray
@pytest.mark.full
def test_workers_whose_times_count_share_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one machine stand for two machines; each takes one worker, however many are asked for."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        made = make_executor("ray", 5, whole=True)
        try:
            found = dict(answers(made, [(jobs.wait, 0.5) for _ in range(4)]))
            assert len({answer["pid"] for answer in found.values()}) == 2
        finally:
            made.close()
    finally:
        cluster.shutdown()


@needs_ray
def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def nobody(**options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(TargetError, match="the Ray cluster at head:6379 could not be joined: nobody answers"):
        make_executor("ray", 1)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--executor is 'slurm'"):
        executor.check("slurm")
    with pytest.raises(UsageError, match="--workers is 0"):
        executor.check("process", 0)
    monkeypatch.setattr(executor, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="Ray, which is not installed"):
        executor.check("ray")
