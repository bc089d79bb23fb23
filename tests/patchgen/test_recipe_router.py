"""The router recipe: three forms of a choice of experts, and the endings that can be repeated."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.router import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

SOFTMAX = """
class Router(nn.Module):
    def forward(self, hidden_states):
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = F.linear(hidden_states, self.weight)
        probs = torch.nn.functional.softmax(router_logits.float(), dim=-1)
        top_value, indices = torch.topk(probs, self.top_k, dim=-1)  # (seq_len, top_k)
        top_value /= top_value.sum(dim=-1, keepdim=True)
        scores = top_value
        return router_logits, scores, indices
"""
SUM = "        top_value /= top_value.sum(dim=-1, keepdim=True)\n"
GUARD = """        if _amd and _amd.on.router:
            _amd_route = _amd.softmax_router(router_logits, self.top_k, {})
            if _amd_route is not None:
                top_value, indices = _amd_route
                scores = top_value
                return router_logits, scores, indices
"""
CHOSEN = """
class Router(nn.Module):
    def forward(self, hidden_states):
        logits = F.linear(hidden_states, self.weight, self.bias)
        value, indices = torch.topk(logits, self.top_k, dim=-1)
        value = torch.nn.functional.softmax(value, dim=1, dtype=value.dtype)
        scores = torch.zeros_like(logits).scatter_(1, indices, value)
        return scores, indices
"""
CHOICE = """        group_scores = (
            choice.view(-1, self.n_group, self.n // self.n_group)
            .topk(2, dim=-1)[0]
            .sum(dim=-1)
        )
        group_idx = torch.topk(group_scores, k=self.topk_group, dim=-1, sorted=False)[1]
        group_mask = torch.zeros_like(group_scores)
        group_mask.scatter_(1, group_idx, 1)
        score_mask = (
            group_mask.unsqueeze(-1)
            .expand(-1, self.n_group, self.n // self.n_group)
            .reshape(-1, self.n)
        )
        choice = choice.masked_fill(~score_mask.bool(), FILL)
        ids = torch.topk(choice, k=self.top_k, dim=-1, sorted=False)[1]
"""
WEIGHTS = """        weights = scores.gather(1, ids)
        if self.norm_topk_prob:
            denominator = weights.sum(dim=-1, keepdim=True) + 1e-20
            weights /= denominator
        weights = weights * self.scale
"""
LOGITS = """        logits = F.linear(h.type(torch.float32), self.weight.type(torch.float32))
        scores = logits.sigmoid()
"""
GROUPED = f"""
class Router(nn.Module):
    def forward(self, h):
        h = h.view(-1, self.size)
{LOGITS}        choice = scores + self.correction
{CHOICE.replace("FILL", 'float("-inf")')}{WEIGHTS}        return logits, weights, ids
"""
CALLED = f"""
class Router(nn.Module):
    @torch.no_grad()
    def best(self, scores):
        choice = scores.view(-1, self.n) + self.correction.unsqueeze(0)
{CHOICE.replace("FILL", "0.0")}        return ids

    def forward(self, h):
        h = h.view(-1, self.size)
{LOGITS}        ids = self.best(scores)
{WEIGHTS}        return ids, weights
"""
BY_GROUPS = """        if _amd and _amd.on.router:
            _amd_route = _amd.grouped_router(
                h, self.weight, self.correction,
                self.top_k, self.n_group, self.topk_group,
                self.norm_topk_prob, self.scale, {},
            )
            if _amd_route is not None:
                logits, weights, ids = _amd_route
                return {}
"""
FIRST = "        probs = torch.nn.functional.softmax("


def guarded(text: str, first: str, guard: str) -> str:
    assert text.count(first) == 1
    return text.replace(first, guard + first)


@pytest.mark.parametrize(
    ("edits", "arguments"),
    [
        ({}, "True, torch.float32"),
        ({SUM: ""}, "False, torch.float32"),
        ({SUM: f"        if self.norm:\n    {SUM}"}, "self.norm, torch.float32"),
        ({SUM: f"{SUM}        top_value = top_value.to(router_logits.dtype)\n"}, "True, router_logits.dtype"),
        ({"(router_logits.float(), dim=-1)": "(router_logits, dtype=torch.float, dim=-1)"}, "True, torch.float32"),
    ],
)
def test_softmax_then_the_largest(edits: dict[str, str], arguments: str) -> None:
    before = SOFTMAX
    for old, new in edits.items():
        assert old in before
        before = before.replace(old, new)
    assert_edit(RECIPE, before, guarded(before, FIRST, GUARD.format(arguments)))


def test_the_largest_then_their_softmax() -> None:
    guard = """        if _amd and _amd.on.router:
            _amd_route = _amd.top_k_router(logits, self.top_k, {})
            if _amd_route is not None:
                scores, indices = _amd_route
                return scores, indices
"""
    first = "        value, indices = torch.topk("
    assert_edit(RECIPE, CHOSEN, guarded(CHOSEN, first, guard.format("True")))
    short = CHOSEN.replace("        value = torch", "        scores = torch")
    short = short.replace("        scores = torch.zeros_like(logits).scatter_(1, indices, value)\n", "")
    assert_edit(RECIPE, short, guarded(short, first, guard.format("False")))


def test_groups_in_one_method_and_in_two() -> None:
    first = LOGITS.splitlines(keepends=True)[0]
    inline = BY_GROUPS.format('float("-inf")', "logits, weights, ids")
    assert_edit(RECIPE, GROUPED, guarded(GROUPED, first, inline))
    assert_edit(RECIPE, CALLED, guarded(CALLED, first, BY_GROUPS.format("0.0, self.best", "ids, weights")))


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (SOFTMAX, "dim=-1)\n        top_value, ind", "dim=0)\n        top_value, ind"),
        (SOFTMAX, "torch.topk(probs, self.top_k, dim=-1)", "torch.topk(probs, self.top_k, dim=-1, largest=False)"),
        (CHOSEN, "softmax(value, dim=1, dtype=value.dtype)", "softmax(value, dim=1, dtype=torch.float32)"),
        (GROUPED, ".topk(2, dim=-1)", ".topk(3, dim=-1)"),
        (GROUPED, "+ 1e-20", "+ 1e-10"),
        (CALLED, "def best", "def better"),
        (CALLED, "masked_fill(~score_mask.bool(), 0.0)", "masked_fill(score_mask.bool(), 0.0)"),
    ],
)
def test_another_choice_is_no_candidate(text: str, old: str, new: str) -> None:
    assert old in text
    assert_untouched(RECIPE, text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("return router_logits, scores", "return probs, scores", "reads probs, which is left behind"),
        ("        scores = top_value\n", "        for scores in (top_value,):\n            pass\n", "not one simple"),
    ],
)
def test_an_ending_that_cannot_be_repeated_is_declined(old: str, new: str, reason: str) -> None:
    assert old in SOFTMAX
    assert_untouched(RECIPE, SOFTMAX.replace(old, new), reason)


CAST = """
class Router(nn.Module):
    def forward(self, hidden_states):
        logits = F.linear(hidden_states, self.weight).float()
        value, indices = logits.topk(self.top_k, dim=-1)  # (num_tokens, top_k)
        weights = torch.softmax(value, dim=-1).type_as(hidden_states)
        return logits, weights, indices
"""


def test_the_largest_then_their_softmax_in_another_dtype() -> None:
    guard = """        if _amd and _amd.on.router:
            _amd_route = _amd.top_k_router(logits, self.top_k, False, hidden_states.dtype)
            if _amd_route is not None:
                weights, indices = _amd_route
                return logits, weights, indices
"""
    assert_edit(RECIPE, CAST, guarded(CAST, "        value, indices = logits.topk(", guard))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.softmax(value, dim=-1)", "torch.softmax(value, dim=0)"),
        ("torch.softmax(value, dim=-1)", "torch.softmax(logits, dim=-1)"),
        ("type_as(hidden_states)", "type_as(value)"),  # which our call has not made yet
        ("type_as(hidden_states)", "type_as(self.weight)"),
    ],
)
def test_other_ways_to_another_dtype_are_left_alone(old: str, new: str) -> None:
    assert CAST.count(old) == 1
    assert_untouched(RECIPE, CAST.replace(old, new))
