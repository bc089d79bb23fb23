"""A captured decode: masks and lengths are what the buffers hold at each replay, never those of the capture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import amd_ops
from amd_ops import dispatch, plans
from tests.doubles.aiter import fake_aiter
from tests.parity import twins
from tests.plans.recording import Recording
from tests.plans.support import COUNTS_ITSELF, OFF, ON, assert_close, ran

ROOM, PROMPT = 24, 5
TIERS = {"torch": "torch,eager", "aiter": "aiter,torch,eager"}


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "torch":
        yield "torch"
        return
    with fake_aiter("v0.1.20.post1", "gfx942", 304):
        yield "aiter"


class Decoder:
    """A static cache behind a prompt, and buffers that a step reads: the token, its place, and a mask [B, 1, 1, L]."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch = model, batch
        self.cache = StaticCache(config=model.config, max_cache_len=ROOM)
        self.token, self.place = torch.zeros(batch, 1, dtype=torch.long), torch.tensor([PROMPT])
        self.mask = torch.zeros(batch, 1, 1, ROOM, dtype=torch.bool)
        ids = torch.arange(3, 3 + batch * PROMPT).view(batch, PROMPT)
        places = torch.arange(PROMPT)
        model(ids, past_key_values=self.cache, position_ids=places[None], **_at(places))

    def set(self, at: int, holes: tuple[int, ...]) -> None:
        """Fill the buffers for a step at place ``at``; ``holes``: how many of its first keys each row does not see."""
        self.token.fill_(7 + at)
        self.place.fill_(at)
        keys = torch.arange(ROOM)
        self.mask.copy_(torch.stack([(keys >= hole) & (keys <= at) for hole in holes])[:, None, None])

    def __call__(self) -> Tensor:
        given = _at(self.place)
        out = self.model(
            self.token, past_key_values=self.cache, position_ids=self.place[None], attention_mask=self.mask, **given
        )
        logits: Tensor = out.logits
        return logits


def _at(places: Tensor) -> dict[str, Tensor]:
    return {} if COUNTS_ITSELF else {"cache_position": places}


@contextlib.contextmanager
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    with monkeypatch.context() as patched, Recording() as graph:
        for module in (dispatch, plans):
            patched.setattr(module, "capturing", lambda: True)
        yield graph


STEPS = {1: [(PROMPT, (0,)), (6, (0,)), (7, (2,)), (15, (0,)), (16, (9,))], 2: [(5, (0, 0)), (6, (1, 3)), (12, (4, 0))]}


@pytest.mark.parametrize("batch", STEPS)
def test_a_captured_decode_follows_masks_and_lengths(tier: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = "bfloat16" if tier == "aiter" else "float32"
    with torch.no_grad():
        model = twins.new_pair("llama", dtype, num_hidden_layers=2).overlay
        with amd_ops.override(**OFF):
            stock = Decoder(model, batch)
        with amd_ops.override(**ON, tiers=TIERS[tier]):
            ours = Decoder(model, batch)
            ours.set(*STEPS[batch][0])
            ours()  # packs, binds, proves, and makes the plan
            amd_ops.reset_counters()
            with capturing(monkeypatch) as graph:
                logits = ours()
            assert ran() == 1, amd_ops.report()
        for at, holes in STEPS[batch]:
            ours.set(at, holes)
            stock.set(at, holes)
            if COUNTS_ITSELF:
                for decoder in (ours, stock):
                    for layer in decoder.cache.layers:
                        layer.cumulative_length.fill_(at)
            graph.replay()
            with amd_ops.override(**OFF):
                assert_close([logits], [stock()], 5e-2 if tier == "aiter" else 2e-5)
