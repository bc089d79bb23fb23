"""Patterns with holes: layout does not count, everything else does."""

from __future__ import annotations

import libcst as cst
import pytest
from rocm_overlay.patchgen.pattern import Expression, Pattern, same


def statements(code: str) -> tuple[cst.CSTNode, ...]:
    return tuple(cst.parse_module(code).body)


@pytest.mark.parametrize(
    "code",
    [
        "y = x.pow(2).mean(-1, keepdim=True)\n",
        "y=x . pow( 2 ) . mean(\n    -1,  # last\n    keepdim = True,\n)\n",
        "# a comment\ny = ((x).pow(2)).mean(-1, keepdim=True)  # fp32\n",
    ],
)
def test_layout_comments_and_parentheses_do_not_count(code: str) -> None:
    found = Pattern("__y = __x.pow(2).mean(-1, keepdim=True)").match(statements(code))
    assert found is not None
    assert {hole: node.value for hole, node in found.items() if isinstance(node, cst.Name)} == {"__y": "y", "__x": "x"}


@pytest.mark.parametrize(
    "code",
    [
        "y = x.pow(3).mean(-1, keepdim=True)\n",
        "y = x.pow(2).mean(-1, keepdim=False)\n",
        "y = x.pow(2).mean(1, keepdim=True)\n",
        "y = x.pow(2).mean(-1)\n",
        "y: int = x.pow(2).mean(-1, keepdim=True)\n",
        "y += x.pow(2).mean(-1, keepdim=True)\n",
        "y = x.pow(2).mean(-1, keepdim=True)\nz = 1\n",
        "y = x.pow(2).mean(-1, *keepdim)\n",
    ],
)
def test_other_code_does_not_match(code: str) -> None:
    assert Pattern("__y = __x.pow(2).mean(-1, keepdim=True)").match(statements(code)) is None


def test_one_hole_takes_one_thing() -> None:
    square = Expression("__x * __x")
    assert square.match(cst.parse_expression("a.b * a . b")) is not None
    assert square.match(cst.parse_expression("a * b")) is None


def test_precedence_counts_where_parentheses_change_it() -> None:
    pattern = Expression("__a * (__b + __c)")
    assert pattern.match(cst.parse_expression("x * (y + z)")) is not None
    assert pattern.match(cst.parse_expression("x * y + z")) is None
    assert pattern.match(cst.parse_expression("x * (y - z)")) is None


def test_a_hole_takes_an_attribute_name() -> None:
    found = Expression("self.__act(__x)").match(cst.parse_expression("self.act_fn(self.gate(x))"))
    assert found is not None
    act = found["__act"]
    assert isinstance(act, cst.Name)
    assert act.value == "act_fn"


def test_same_ignores_layout_only() -> None:
    assert same(cst.parse_expression("f( a , b )"), cst.parse_expression("(f)(a, b,)"))
    assert not same(cst.parse_expression("f(a, b)"), cst.parse_expression("f(b, a)"))
    assert not same(cst.parse_expression("x[1:2]"), cst.parse_expression("x[1:2:3]"))
