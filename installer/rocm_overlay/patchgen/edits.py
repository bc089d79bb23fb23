"""Byte-span edits: splice them into a text, and take them out again.

Nothing here knows Python or LibCST. The two functions are each other's inverse, which is law 9: every byte outside
the recorded spans equals stock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import EditConflict, InternalError


@dataclass(frozen=True)
class Edit:
    """Replace ``stock[start:end]`` by ``text``; ``start == end`` inserts. Offsets count bytes of the stock file."""

    start: int
    end: int
    text: bytes
    recipe: str
    qualname: str


@dataclass(frozen=True)
class AppliedEdit:
    """An edit as it ended up: both spans in bytes, and the stock text that it replaced."""

    recipe: str
    qualname: str
    stock: tuple[int, int]
    overlay: tuple[int, int]
    stock_text: bytes


def in_order(edits: Iterable[Edit]) -> list[Edit]:
    """Sort by position; an insertion comes before a replacement that starts at the same byte."""
    return sorted(edits, key=lambda edit: (edit.start, edit.end))


def overlap(first: Edit, second: Edit) -> bool:
    """Say whether two edits in order claim the same bytes, or the same point (whose order would be arbitrary)."""
    if second.start < first.end:
        return True
    return first.start == second.start == first.end == second.end


def find_conflict(edits: Sequence[Edit]) -> tuple[Edit, Edit] | None:
    """Return the first pair of edits that cannot both be made, or None."""
    ordered = in_order(edits)
    for first, second in itertools.pairwise(ordered):
        if overlap(first, second):
            return first, second
    return None


def splice(stock: bytes, edits: Iterable[Edit]) -> tuple[bytes, tuple[AppliedEdit, ...]]:
    """Return the edited text and the record that ``unsplice`` needs to undo it.

    Raises:
        EditConflict: two edits overlap.
        InternalError: an edit lies outside the text.
    """
    ordered = in_order(edits)
    conflict = find_conflict(ordered)
    if conflict:
        first, second = conflict
        raise EditConflict(
            f"recipe {first.recipe} ({first.qualname}) and recipe {second.recipe} ({second.qualname}) "
            f"both edit bytes {second.start}..{max(first.end, second.end)}"
        )
    parts: list[bytes] = []
    applied: list[AppliedEdit] = []
    done = length = 0
    for edit in ordered:
        if not 0 <= edit.start <= edit.end <= len(stock):
            raise InternalError(f"recipe {edit.recipe}: span {edit.start}..{edit.end} is outside the text")
        parts += [stock[done : edit.start], edit.text]
        begin = length + edit.start - done
        length = begin + len(edit.text)
        done = edit.end
        span = (edit.start, edit.end)
        applied.append(AppliedEdit(edit.recipe, edit.qualname, span, (begin, length), stock[edit.start : edit.end]))
    parts.append(stock[done:])
    return b"".join(parts), tuple(applied)


def unsplice(overlay: bytes, applied: Iterable[AppliedEdit]) -> bytes:
    """Return the stock text: the overlay with every recorded overlay span replaced by its stock text."""
    parts: list[bytes] = []
    done = 0
    for edit in applied:
        begin, end = edit.overlay
        parts += [overlay[done:begin], edit.stock_text]
        done = end
    parts.append(overlay[done:])
    return b"".join(parts)
