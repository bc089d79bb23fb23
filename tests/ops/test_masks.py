"""What a mask amounts to: the analysis must give back exactly the mask it was shown, or refuse."""

from __future__ import annotations

import gc

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


def test_under_inference_mode_only_later_layers_share(counted: list[int]) -> None:
    """Inference tensors have no version: a mask buffer updated in place between forwards must be read again."""
    with torch.inference_mode():
        mask = built([(0, 4)], 4, 4, 0, True, None).clone()
        for layer in (0, 1, 2):
            masks.plan_for(mask, 1, 4, 4, layer)
        assert len(counted) == 1
        mask[..., 0] = False
        assert masks.plan_for(mask, 1, 4, 4, 0).keys is None
        assert len(counted) == 2
        masks.plan_for(mask, 1, 4, 4, 0)
        assert len(counted) == 3, "the same layer again is another forward"
        masks.plan_for(mask, 1, 4, 4, None)
        assert len(counted) == 4


def test_a_dead_mask_leaves_the_cache(counted: list[int]) -> None:
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    masks.plan_for(mask, 1, 4, 4, 0)
    assert masks._entries
    del mask
    gc.collect()
    assert not masks._entries


def test_nothing_is_analysed_while_a_stream_is_captured(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "capturing", lambda: True)
    mask = built([(0, 4)], 4, 4, 0, True, None).clone()
    assert "captured" in masks.plan_for(mask, 1, 4, 4, 0).reason
    assert counted == []
