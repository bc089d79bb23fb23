"""Bytes: what stays alive when the weights have left, what report() says is there, and what reading a mask takes."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops
from amd_ops import masks
from tests.doubles.aiter import fake_aiter
from tests.habits.memory import used
from tests.habits.test_writes import KINDS, ON, SHUFFLED, fresh, logits


def _offload(model: Any) -> None:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def _delete(model: Any) -> None:
    for module in model.modules():
        module._parameters.clear()


def _replace(model: Any) -> None:
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, nn.Linear(child.in_features, child.out_features, bias=child.bias is not None))


def _assign(model: Any) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


LEAVES: dict[str, Callable[[Any], Any]] = {
    "to another dtype": lambda model: model.to(torch.float64),
    "half": lambda model: model.half(),
    "offload": _offload,
    "deleted": _delete,
    "Linears replaced": _replace,
    "restore": amd_ops.restore,
    "share_memory": lambda model: model.share_memory(),
    "assigned": _assign,
}


def stated() -> dict[str, int]:
    """What report() says is alive: models of other tests of this process, too."""
    gc.collect()
    found: dict[str, int] = amd_ops.report().as_dict()["memory"]
    return found


def left(base: Any, on: dict[str, object], leave: Callable[[Any], Any], *, kernelized: bool = False) -> int:
    """Bytes of a copy of ``base`` that are alive after it was used, and then left by its weights."""
    kept = []

    def work() -> None:
        model = copy.deepcopy(base)
        kept.append(model)
        with amd_ops.override(**on):
            if kernelized:
                amd_ops.kernelize_model(model, mode="inference")
            if "use_preshuffle" in on:
                assert amd_ops.prepare(model).shuffling.copies
            logits(model, on)
            leave(model)

    return used(work).left


@pytest.mark.parametrize("route", ["overlaid", "kernelized", "shuffled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", LEAVES)
def test_the_bytes_go_when_the_parameters_do(leave: str, kind: str, route: str) -> None:
    before = stated()
    if route == "shuffled":
        with fake_aiter("v0.1.20.post1", "gfx942", 304, tolerate_violations=True):
            sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
            stock, ours = fresh(KINDS[kind], "bfloat16", **sizes)
            found = left(ours, SHUFFLED, LEAVES[leave])
    else:
        stock, ours = fresh(KINDS[kind])
        kernelized = route == "kernelized"
        found = left(stock if kernelized else ours, ON, LEAVES[leave], kernelized=kernelized)
    assert found == left(stock, {}, LEAVES[leave])
    assert {name: size for name, size in stated().items() if size > before[name]} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_states_all_bytes(kind: str) -> None:
    before = stated()
    with fake_aiter("v0.1.20.post1", "gfx942", 304, tolerate_violations=True):
        _, base = fresh(KINDS[kind], "bfloat16", hidden_size=64, intermediate_size=128, head_dim=16)
        found: list[Any] = []

        def prepared(**more: object) -> int:
            def work() -> None:
                found[:] = [copy.deepcopy(base)]
                found.append(amd_ops.prepare(found[0]))

            with amd_ops.override(**{**SHUFFLED, **more}):
                return used(work).left

        plain = prepared(use_preshuffle=0)
        found.clear()
        with amd_ops.override(**SHUFFLED):  # the copies go when the request is withdrawn
            added = prepared() - plain
            model, report = found
            now = stated()
            assert now["packed"] - before["packed"] == sum(one.nbytes for one in report.fused)
            assert now["shuffled"] - before["shuffled"] == report.shuffling.bytes_added == added > 0
            assert f"shuffled copies, beside their weights: {now['shuffled']} bytes" in str(amd_ops.report())
            amd_ops.restore(model)
            assert stated() == before


def test_the_report_states_what_masks_keep() -> None:
    masks._entries.clear()
    held = [padded(2, 16, torch.bool)]
    kept = used(lambda: masks.plan_for(held[0], 2, 16, 16, 0)).left
    assert amd_ops.report().as_dict()["memory"]["masks"] == kept > held[0].nbytes
    held.clear()
    assert amd_ops.report().as_dict()["memory"]["masks"] == 0


def padded(batch: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """A causal mask whose first row is padded on the left."""
    seen = torch.ones(batch, 1, length, length, dtype=torch.bool).tril_()
    seen[0, :, :, : length // 3] = False
    if dtype is torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32], ids=str)
def test_reading_a_mask_takes_less_than_the_mask(dtype: torch.dtype) -> None:
    mask = padded(4, 1024, dtype)
    spent = used(lambda: masks.analyse(mask, 4, 1024, 1024))
    assert spent.left == 0
    assert 0 < spent.peak < mask.nbytes


HEAP = """
import resource, torch
from amd_ops import masks
from tests.habits.test_memory import padded
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
mask = padded(2, 2048, torch.bfloat16)
masks.analyse(mask[:, :, :64, :64], 2, 64, 64)
before = most()
masks.analyse(mask, 2, 2048, 2048)
print((most() - before) / mask.nbytes)
"""


@pytest.mark.full
def test_reading_a_mask_does_not_tear_up_the_heap() -> None:
    """Small results that outlived each block kept glibc from using the block's room again: 7.9 times the mask."""
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 1
