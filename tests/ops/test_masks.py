"""What a mask amounts to: the analysis must give back exactly the mask it was shown, or refuse."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_ops import dispatch, masks


def built(
    lengths: list[tuple[int, int]], rows: int, columns: int, offset: int, causal: bool, window: int | None
) -> Tensor:
    """[B, 1, rows, columns] as transformers builds it: padding, causality from ``offset``, window."""
    key = torch.arange(columns)
    own = torch.arange(rows)[:, None] + offset
    seen = torch.stack([(key >= start) & (key < stop) for start, stop in lengths])[:, None, None, :]
    seen = seen.expand(-1, 1, rows, -1)
    if causal:
        seen = seen & (key <= own)
    if window is not None:
        seen = seen & (key > own - window)
    return seen


def replayed(plan: masks.Plan, batch: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The mask that a flash kernel would apply under ``plan``, and which queries it answers."""
    seen = torch.zeros(batch, rows, columns, dtype=torch.bool)
    answered = torch.zeros(batch, rows, dtype=torch.bool)
    for index in range(batch):
        if plan.keys is not None:
            queries, keys = torch.arange(rows), torch.arange(*plan.keys)
        else:
            assert plan.queries_at is not None
            assert plan.keys_at is not None
            queries = plan.queries_at[1][plan.queries_at[0] == index]
            keys = plan.keys_at[1][plan.keys_at[0] == index]
        answered[index, queries] = True
        for position, query in enumerate(queries):
            for place, key in enumerate(keys):
                own = position + len(keys) - len(queries)
                hidden = plan.causal and place > own
                hidden = hidden or (plan.window is not None and place <= own - plan.window)
                seen[index, query, key] = not hidden
    return seen, answered


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    cached=st.integers(0, 4),
    unwritten=st.integers(0, 3),
    left=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    right=st.booleans(),
    causal=st.booleans(),
    window=st.sampled_from((None, 1, 2, 4)),
    additive=st.booleans(),
)
def test_a_plan_is_the_mask_or_a_refusal(
    rows: int,
    cached: int,
    unwritten: int,
    left: list[int],
    right: bool,
    causal: bool,
    window: int | None,
    additive: bool,
) -> None:
    """Prefill, chunked prefill and decode; dynamic and static caches; padding on either side."""
    columns, used = rows + cached + unwritten, rows + cached
    lengths = [(0, used - pad) if right else (pad, used) for pad in left]
    seen = built(lengths, rows, columns, cached, causal, window)
    mask = seen
    if additive:
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    plan = masks.analyse(mask, len(left), rows, columns)
    if plan.reason:
        return
    shown, answered = replayed(plan, len(left), rows, columns)
    for index, (start, stop) in enumerate(lengths):
        for row in range(rows):
            if answered[index, row]:
                assert torch.equal(shown[index, row], seen[index, 0, row])
            else:
                assert not start <= row + cached < stop, "only padding may go unanswered"


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("additive", [False, True])
def test_the_usual_masks_are_recognised(window: int | None, additive: bool) -> None:
    def plan_of(lengths: list[tuple[int, int]], rows: int, columns: int, offset: int) -> masks.Plan:
        mask = built(lengths, rows, columns, offset, True, window)
        if additive:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return masks.analyse(mask, len(lengths), rows, columns)

    dense = plan_of([(0, 6)] * 2, 6, 6, 0)
    assert (dense.reason, dense.causal, dense.window, dense.keys) == ("", True, window, (0, 6))
    chunk = plan_of([(0, 9)], 3, 9, 6)
    assert (chunk.reason, chunk.causal, chunk.window) == ("", True, window)
    static = plan_of([(0, 4)], 4, 16, 0)
    assert (static.reason, static.causal, static.keys) == ("", True, (0, 4))
    left = plan_of([(0, 6), (3, 6)], 6, 6, 0)
    assert (left.reason, left.causal, left.keys, left.longest_queries) == ("", True, None, 6)
    assert left.query_offsets is not None
    assert left.query_offsets.tolist() == [0, 6, 9]
    assert left.query_offsets.dtype is torch.int32
    right = plan_of([(0, 6), (0, 2)], 6, 6, 0)
    assert (right.reason, right.longest_keys) == ("", 6)
    decode = plan_of([(0, 6), (2, 6)], 1, 6, 5)
    assert (decode.reason, decode.causal) == ("", False)


def test_padding_without_causality_answers_every_query() -> None:
    plan = masks.analyse(built([(0, 5), (2, 5)], 5, 5, 0, False, None), 2, 5, 5)
    assert plan.reason == ""
    assert not plan.causal
    assert plan.longest_queries == 5
    assert plan.query_offsets is not None
    assert plan.query_offsets.tolist() == [0, 5, 10]


def packed_sequences() -> Tensor:
    index = torch.tensor([0, 0, 0, 1, 1])
    return (torch.ones(5, 5).tril().bool() & (index[:, None] == index))[None, None]


def with_hole() -> Tensor:
    mask = torch.ones(1, 1, 4, 4).tril().bool()
    mask[..., 1] = False
    return mask


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (packed_sequences(), "not padding with causality"),
        (with_hole(), "not padding with causality"),
        (torch.randn(1, 1, 4, 4), "additive bias"),
        (torch.ones(1, 2, 4, 4, dtype=torch.bool), "differs from head to head"),
        (torch.ones(1, 1, 3, 4, dtype=torch.bool), "not [B, 1, Sq, Sk]"),
        (torch.ones(4, 4, dtype=torch.bool), "not [B, 1, Sq, Sk]"),
        (torch.zeros(1, 1, 4, 4).requires_grad_(), "needs a gradient"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), "nothing but padding"),
    ],
)
def test_anything_else_is_refused(mask: Tensor, reason: str) -> None:
    rows = mask.shape[-2] if mask.shape[-2:] == (5, 5) else 4
    assert reason in masks.analyse(mask, 1, rows, mask.shape[-1]).reason


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    analyse = masks.analyse
    monkeypatch.setattr(masks, "analyse", lambda *args: (calls.append(1), analyse(*args))[1])
    masks._entries.clear()
    return calls


def test_a_mask_is_analysed_once(counted: list[int]) -> None:
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    plans = {id(masks.plan_for(mask, 1, 4, 4, layer)) for layer in (0, 1, 2, 0, None)}
    assert (len(plans), len(counted)) == (1, 1)


def test_a_change_in_place_is_noticed(counted: list[int]) -> None:
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    assert masks.plan_for(mask, 1, 4, 4, 0).keys == (0, 4)
    mask[..., 0] = False
    assert masks.plan_for(mask, 1, 4, 4, 1).keys is None
    assert len(counted) == 2


def without_the_first_key(mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[-1]) > 0)


def refilled(mask: Tensor) -> None:
    """Memory is given up and taken again, as offload does."""
    kept, storage = without_the_first_key(mask), mask.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    mask.data.copy_(kept)


def in_a_thread(change: Callable[[], Any]) -> None:
    thread = threading.Thread(target=torch.inference_mode()(change))
    thread.start()
    thread.join()


WRITES = {
    "in place": lambda mask: mask[..., 0].fill_(False),
    ".data": lambda mask: mask.data[..., 0].fill_(False),
    "detach": lambda mask: mask.detach()[..., 0].fill_(False),
    "a view made before": lambda mask: mask.held[..., 0].fill_(False),
    "numpy": lambda mask: mask.numpy()[..., 0].fill(False),
    "set_": lambda mask: mask.set_((mask.clone() & (torch.arange(mask.shape[-1]) > 0)).contiguous()),
    "dlpack": lambda mask: torch.from_dlpack(mask.view(torch.uint8))[..., 0].fill_(0),
    "storage": lambda mask: mask.untyped_storage().fill_(0),
    "under inference mode": lambda mask: torch.inference_mode()(lambda: mask[..., 0].fill_(False))(),
    ".data =": lambda mask: setattr(mask, "data", without_the_first_key(mask)),
    ".data[...] =": lambda mask: mask.data.__setitem__(..., without_the_first_key(mask)),
    ".data.copy_": lambda mask: mask.data.copy_(without_the_first_key(mask)),
    "one element": lambda mask: mask.data.view(-1)[0].logical_not_(),
    "&=": lambda mask: mask.logical_and_(torch.arange(mask.shape[-1]) > 0),
    "index_put_": lambda mask: mask.__setitem__((..., torch.tensor([0])), False),
    "masked_fill_": lambda mask: mask.masked_fill_(torch.arange(mask.shape[-1]) == 0, False),
    "copy_ of a broadcast": lambda mask: mask.copy_(torch.arange(mask.shape[-1]) > 0),
    "resize_(0) and back": refilled,
    "share_memory, then write": lambda mask: mask.share_memory_().data[..., 0].fill_(False),
    "a worker thread writes": lambda mask: in_a_thread(lambda: mask.data[..., 0].fill_(False)),
    "out=": lambda mask: torch.where(mask, without_the_first_key(mask), mask, out=mask),
}


@pytest.mark.parametrize("inference", [False, True], ids=["plain", "made under inference mode"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("how", WRITES)
def test_no_plan_survives_a_write(
    how: str, large: bool, inference: bool, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(masks, "_SMALL", 0)
    with torch.inference_mode(inference):
        mask = built([(0, 4)], 4, 4, 0, True, None).clone()
        mask.held = mask.view(mask.shape)
        for layer in (0, 1, 2):
            assert masks.plan_for(mask, 1, 4, 4, layer).keys == (0, 4)
        assert len(counted) == (3 if large else 1)
        WRITES[how](mask)
        want = masks.analyse(mask, 1, 4, 4)
        assert want.keys != (0, 4)
        for layer in (1, 2, 0, None):
            found = masks.plan_for(mask, 1, 4, 4, layer)
            assert (found.reason, found.keys, found.causal) == (want.reason, want.keys, want.causal)


def test_the_analysis_goes_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks are, the plan is the same."""
    mask = built([(0, 12), (3, 12), (0, 12)], 12, 12, 0, True, 5).clone()
    whole = masks.analyse(mask, 3, 12, 12)
    for block in (1, 36, 100):
        monkeypatch.setattr(masks, "_BLOCK", block)
        found = masks.analyse(mask, 3, 12, 12)
        assert (found.reason, found.causal, found.window, found.keys) == (
            whole.reason, whole.causal, whole.window, whole.keys,
        )  # fmt: skip


def test_a_dead_mask_leaves_the_cache(counted: list[int]) -> None:
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    masks.plan_for(mask, 1, 4, 4, 0)
    assert masks._entries
    del mask
    gc.collect()
    assert not masks._entries


def test_no_plan_is_served_or_made_while_a_stream_is_captured(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of the warm-up, baked into a graph, would hide from every replay the keys that come later."""
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    assert masks.plan_for(mask, 1, 4, 4, 0).keys == (0, 4)
    monkeypatch.setattr(dispatch, "capturing", lambda: True)
    for layer in (0, 1):
        assert "captured" in masks.plan_for(mask, 1, 4, 4, layer).reason
    assert "captured" in masks.plan_for(mask.clone(), 1, 4, 4, 0).reason
    assert len(counted) == 1
