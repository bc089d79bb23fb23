"""The low_rank recipe: both projections down asked for at once, stock's calls where they are not."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.low_rank import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

STOCK = """
class Attention(nn.Module):
    def __init__(self, config):
        self.rank = config.rank
        self.q_whole = None if self.rank is not None else nn.Linear(8, 8)
        self.q_down = nn.Linear(8, 4) if self.rank is not None else None
        self.kv_down = nn.Linear(8, 6)

    def forward(self, x):
        shape = (*x.shape[:-1], -1, 4)
        if self.rank is None:
            q = self.q_whole(x)
        else:
            q = self.q_up(self.q_norm(self.q_down(x)))
        q = q.view(shape).transpose(1, 2)
        still, turned = torch.split(q, [self.still, self.turned], dim=-1)

        kv = self.kv_down(x)
        return still, turned, kv
"""
QUESTION = """        _amd_down = None
        if _amd and _amd.on.qkv and self.rank is not None:
            _amd_down = list(_amd.qkv_proj(self, x, ("q_down", "kv_down")))
"""


def test_both_projections_down() -> None:
    first = "        if self.rank is None:\n"
    after = STOCK.replace(first, QUESTION + first)
    for name in ("q_down", "kv_down"):
        after = after.replace(f"self.{name}(x)", f"(_amd_down.pop(0) if _amd_down else self.{name}(x))")
    assert_edit(RECIPE, STOCK, after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kv = self.kv_down(x)", "kv = self.kv_down(q)"),
        ("if self.rank is None", "if self.rank"),
        ("self.q_norm(self.q_down(x))", "self.q_down(self.q_norm(x))[0]"),
        ("torch.split(q, [self.still, self.turned], dim=-1)", "torch.split(x, [self.still, self.turned], dim=-1)"),
    ],
)
def test_other_statements_are_no_candidate(old: str, new: str) -> None:
    assert STOCK.count(old) == 1
    assert_untouched(RECIPE, STOCK.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("self.kv_down = nn.Linear(8, 6)", "self.kv_down = nn.Conv1d(8, 6, 1)", "kv_down is not built as nn.Linear"),
        ("still, turned =", "x, turned =", "x is bound between the projections"),
        ("(x)", "(x.y)", "expected one plain name"),
    ],
)
def test_what_is_declined_and_why(old: str, new: str, reason: str) -> None:
    assert old in STOCK
    assert_untouched(RECIPE, STOCK.replace(old, new), reason)
