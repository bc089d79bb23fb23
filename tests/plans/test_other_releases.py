"""Releases that no overlay was committed for: what is not as a plan knows it is left to stock, and never an error."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import cache_utils

import amd_ops
from amd_ops import plans
from amd_ops.plans import caches
from overlays.recipes.plan import RUNS_WITH
from tests.parity import twins
from tests.plans.support import BEFORE_LAYERS, ON, assert_close, decode, ran, site

TEXT = """
import torch

class Cache:
    offloading = False

    def update(self, key_states, value_states, layer_idx, cache_kwargs=None):
        keys, values = self.layers[layer_idx].update(key_states, value_states, cache_kwargs)
        return keys, values

class DynamicLayer:
    def __init__(self):
        self.keys = self.values = torch.zeros(1, 1, 1, 1)

    def update(self, key_states, value_states, cache_kwargs=None):
        if self.keys is None:
            self.lazy_initialization(key_states)
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return self.keys, self.values
"""


@pytest.fixture
def model() -> Iterator[Any]:
    with torch.no_grad():
        yield twins.new_pair("llama", "float32").overlay


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The kinds of a cache whose module has this text."""

    def of(text: str) -> list[str]:
        path = tmp_path / f"caches_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(caches.HOME, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, caches.HOME, module)
        spec.loader.exec_module(module)
        cache = module.Cache()
        cache.layers = [module.DynamicLayer()]
        return caches.kinds(cache, 1)

    return of


def test_a_layer_that_does_not_write_down_that_it_has_begun(kinds: Callable[[str], list[str]]) -> None:
    assert kinds(TEXT) == ["dynamic"]
    assert kinds(TEXT.replace("= torch.zeros(1, 1, 1, 1)", "= None")) == [""]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("        return self.keys, self.values", "        self.seen = True\n        return self.keys, self.values"),
        ("[self.keys, key_states], dim=-2", "[self.keys, key_states.half()], dim=-2"),
        ("        keys, values = self", "        key_states = key_states * 2\n        keys, values = self"),
        ("        if self.keys is None:", "        if self.keys is None or self.full:"),
    ],
)
def test_an_update_that_does_more_than_to_write_is_asked(
    before: str, after: str, kinds: Callable[[str], list[str]]
) -> None:
    assert before in TEXT
    assert kinds(TEXT.replace(before, after)) == [""]


@pytest.mark.skipif(BEFORE_LAYERS, reason="caches of this release have no layers")
def test_the_caches_of_this_release_are_known() -> None:
    for name in ("Cache", "DynamicLayer", "StaticLayer"):
        assert caches._is_stocks(getattr(cache_utils, name), name), name


def test_an_installation_without_sources_asks_its_caches(
    kinds: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(function: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(caches.inspect, "getsource", missing)
    assert kinds(TEXT) == [""]


def test_a_rotation_that_is_an_object_is_left_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.0 to 5.15 has it beside the kernels library: a module around the function."""
    forward = type(model.model.layers[0].self_attn).forward
    mark = forward._amd_attention

    class Func(nn.Module):
        def forward(self, *args: Any) -> Any:
            return mark[0](*args)

    with amd_ops.override(use_optimized_ops=0):
        want = decode(model)
    monkeypatch.setattr(forward, "_amd_attention", (Func(), *mark[1:]))
    with amd_ops.override(**ON, tiers="torch,eager", strict=1):
        amd_ops.reset_counters()
        got = decode(model)
    assert ran() == 0
    assert "the rotation is an object" in str(site().fast.declined)
    assert_close(got, want)


@pytest.mark.parametrize("place", ["made", "started"])
def test_an_error_that_nobody_foresaw_leaves_the_layers_to_themselves(
    model: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise AttributeError("'DynamicLayer' object has no attribute 'is_initialized'")

    with amd_ops.override(use_optimized_ops=0):
        want = decode(model)
    if place == "made":
        monkeypatch.setattr(plans.steps, "read", broken)
    else:
        monkeypatch.setattr(plans.caches, "kinds", broken)
    with amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        with pytest.warns(amd_ops.DeclinedWarning, match="raised AttributeError"):
            got = decode(model)
        assert ran() == 0
        assert "raised AttributeError: 'DynamicLayer'" in str(site().fast.declined)
    assert_close(got, want)
    with amd_ops.override(**ON, tiers="torch,eager", strict=1), pytest.raises(AttributeError, match="is_initialized"):
        decode(model)


def test_the_recipe_and_the_plan_let_the_same_words_through() -> None:
    assert plans.WORDS == RUNS_WITH
