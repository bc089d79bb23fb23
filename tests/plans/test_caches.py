"""A dynamic cache with room behind it hands out what stock's does, and copies itself once in a while only."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from amd_ops.plans import caches
from tests.plans.support import COUNTS_ITSELF


def new(rows: int = 5, batch: int = 2) -> Any:
    cache = DynamicCache()
    cache.update(torch.randn(batch, 3, rows, 8), torch.randn(batch, 3, rows, 8), 0)
    return cache.layers[0]


def one(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 1, 8), torch.randn(batch, 3, 1, 8)


def grow(layer: Any, k: Tensor, v: Tensor) -> bool:
    """Append as a plan does; return whether it was done in place."""
    before = layer.__dict__.get("_amd_slack")
    found = caches.room(layer, k, v)
    assert found is not None
    slack, rows = found
    slack.key_buffer.narrow(2, rows, 1).copy_(k)
    slack.value_buffer.narrow(2, rows, 1).copy_(v)
    caches.grown(layer, slack, rows + 1)
    return before is slack


def test_the_kinds_of_caches_are_known_by_their_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = new()
    cache = DynamicCache()
    cache.layers = [layer]
    assert caches.kinds(cache, 1) == ["dynamic"]
    monkeypatch.setattr(type(layer), "update", lambda self, *args: None)
    assert caches.kinds(cache, 1) == [""]
    monkeypatch.undo()
    layer.update = lambda *args: None
    assert caches.kinds(cache, 1) == [""]
    assert caches.kinds(object(), 1) == [""]


def test_growing_equals_concatenation_and_leaves_older_views_alone() -> None:
    layer = new()
    keys, values = layer.keys.clone(), layer.values.clone()
    seen = []
    for index in range(200):
        k, v = one()
        in_place = grow(layer, k, v)
        assert in_place or index in (0, 64, 65) or index > 64
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        seen.append((layer.keys, keys))
    for view, then in seen:
        assert torch.equal(view, then)


def test_copies_are_made_about_once_in_eighth_of_the_length() -> None:
    layer, copied = new(rows=2048), 0
    for _ in range(512):
        copied += not grow(layer, *one())
    assert copied <= 3
    held = layer.__dict__["_amd_slack"].key_buffer.numel() / layer.keys.numel()
    assert held <= 1.25


@pytest.mark.parametrize("how", ["crop", "select", "repeat", "older", "deepcopy", "copy", "pickle", "another dtype"])
def test_whoever_changes_the_layer_gets_stocks_answer(how: str) -> None:
    layer = new()
    grow(layer, *one())
    older = layer.keys, layer.values
    grow(layer, *one())
    shared = layer
    if how == "crop":
        layer.crop(-2 if COUNTS_ITSELF else 4)
    elif how == "select":
        layer.batch_select_indices(torch.tensor([1, 1]))
    elif how == "repeat":
        layer.batch_repeat_interleave(2)
    elif how == "older":
        layer.keys, layer.values = older
    elif how == "deepcopy":
        layer = copy.deepcopy(layer)
    elif how == "copy":
        layer = copy.copy(layer)
    elif how == "pickle":
        layer = pickle.loads(pickle.dumps(layer))
    kept = shared.keys.clone()
    keys, values = layer.keys.clone(), layer.values.clone()
    k, v = one(keys.shape[0])
    if how == "another dtype":
        assert caches.room(layer, k.double(), v.double()) is None
        return
    assert not grow(layer, k, v), "it was written into a buffer that may be somebody else's"
    assert torch.equal(layer.keys, torch.cat([keys, k], 2))
    assert torch.equal(layer.values, torch.cat([values, v], 2))
    if layer is not shared:
        assert torch.equal(shared.keys, kept)


def test_buffers_of_inference_mode_are_not_written_outside_of_it() -> None:
    layer = new()
    with torch.inference_mode():
        grow(layer, *one())
        assert grow(layer, *one())
    assert not grow(layer, *one())
