"""The splice engine alone: no Python, no LibCST."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocm_overlay.errors import EditConflict, InternalError
from rocm_overlay.patchgen.edits import AppliedEdit, Edit, find_conflict, splice, unsplice

TEXTS = st.text(alphabet=st.sampled_from("ab \n\r\tü🚨\ufeff"), max_size=60).map(lambda text: text.encode("utf-8"))


@st.composite
def texts_and_edits(draw: st.DrawFn) -> tuple[bytes, list[Edit]]:
    """A text (CRLF, non-ASCII, BOM, any end) and disjoint edits in any order."""
    stock = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + draw(TEXTS)
    cuts = draw(st.lists(st.integers(0, len(stock)), unique=True, max_size=12).map(sorted))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    spans += [(cut, cut) for cut in cuts[1::2] if draw(st.booleans())]
    edits = [Edit(start, end, draw(TEXTS), "r", "q") for start, end in spans]
    return stock, draw(st.permutations(edits))


@given(texts_and_edits())
def test_taking_the_edits_out_gives_stock_back(case: tuple[bytes, list[Edit]]) -> None:
    stock, edits = case
    overlay, applied = splice(stock, edits)
    assert unsplice(overlay, applied) == stock
    assert len(applied) == len(edits)
    for edit in applied:
        assert stock[slice(*edit.stock)] == edit.stock_text
    inserted = {(edit.stock, overlay[slice(*edit.overlay)]) for edit in applied}
    assert inserted == {((edit.start, edit.end), edit.text) for edit in edits}


@given(texts_and_edits())
def test_bytes_between_edits_are_stock_and_records_are_sorted_and_disjoint(case: tuple[bytes, list[Edit]]) -> None:
    stock, edits = case
    overlay, applied = splice(stock, edits)
    done_stock = done_overlay = 0
    for edit in applied:
        assert edit.stock[0] >= done_stock
        assert edit.overlay[0] >= done_overlay
        assert stock[done_stock : edit.stock[0]] == overlay[done_overlay : edit.overlay[0]]
        done_stock, done_overlay = edit.stock[1], edit.overlay[1]
    assert stock[done_stock:] == overlay[done_overlay:]


@given(texts_and_edits())
def test_the_order_in_which_edits_are_found_does_not_matter(case: tuple[bytes, list[Edit]]) -> None:
    stock, edits = case
    assert splice(stock, edits) == splice(stock, list(reversed(edits)))


def test_no_edit_is_the_identity() -> None:
    assert splice(b"stock", []) == (b"stock", ())
    assert unsplice(b"stock", ()) == b"stock"


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 4), (3, 5)), ((0, 4), (1, 2)), ((2, 2), (2, 2)), ((1, 4), (2, 2)), ((1, 3), (1, 3)), ((1, 2), (1, 3))],
)
def test_edits_that_claim_the_same_bytes_are_a_conflict(first: tuple[int, int], second: tuple[int, int]) -> None:
    one, two = Edit(*first, b"x", "norm", "A.f"), Edit(*second, b"y", "rope", "B.g")
    for edits in ([one, two], [two, one]):
        assert find_conflict(edits) is not None
        with pytest.raises(EditConflict, match=r"recipe (norm|rope) .* and recipe (norm|rope) .* both edit bytes"):
            splice(b"stock", edits)


@pytest.mark.parametrize(("first", "second"), [((0, 2), (2, 4)), ((1, 1), (1, 3)), ((1, 3), (3, 3))])
def test_edits_that_only_touch_are_both_made(first: tuple[int, int], second: tuple[int, int]) -> None:
    overlay, applied = splice(b"stock", [Edit(*second, b"2", "r", "q"), Edit(*first, b"1", "r", "q")])
    assert overlay.index(b"1") < overlay.index(b"2")
    assert unsplice(overlay, applied) == b"stock"


@pytest.mark.parametrize("span", [(-1, 0), (3, 2), (0, 6), (6, 6)])
def test_a_span_outside_the_text_is_a_bug(span: tuple[int, int]) -> None:
    with pytest.raises(InternalError, match="outside the text"):
        splice(b"stock", [Edit(*span, b"", "r", "q")])


def test_the_record_holds_both_spans() -> None:
    _, applied = splice(b"abcdef", [Edit(1, 3, b"XYZ", "r", "q"), Edit(4, 4, b"!", "r", "q")])
    assert applied == (
        AppliedEdit("r", "q", (1, 3), (1, 4), b"bc"),
        AppliedEdit("r", "q", (4, 4), (5, 6), b""),
    )
