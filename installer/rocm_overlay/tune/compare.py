"""Two tables side by side, and a table without the rows that do nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .device import Device
from .lookup import Level, padded_m
from .merge import faster
from .schema import Rules
from .shapes import Shape
from .table import Key, Row


@dataclass(frozen=True)
class Change:
    """A shape both tables have, with another winner or time."""

    key: Key
    old: Row
    new: Row

    @property
    def ratio(self) -> float | None:
        """New time over old, None when one of them was not measured."""
        return self.new.us / self.old.us if self.new.measured and self.old.measured else None

    @property
    def kernel(self) -> bool:
        a, b = self.old, self.new
        return (a.libtype, a.solidx, a.split_k, a.kernel) != (b.libtype, b.solidx, b.split_k, b.kernel)


@dataclass(frozen=True)
class Diff:
    added: tuple[Row, ...]
    removed: tuple[Row, ...]
    changed: tuple[Change, ...]
    same: int

    @property
    def empty(self) -> bool:
        return not (self.added or self.removed or self.changed)


def best_rows(rows: Iterable[Row]) -> dict[Key, Row]:
    """Return one row per key: the fastest measured one."""
    found: dict[Key, Row] = {}
    for row in rows:
        old = found.get(row.key)
        if old is None or faster(row, old):
            found[row.key] = row
    return found


def diff_rows(old: Iterable[Row], new: Iterable[Row]) -> Diff:
    before, after = best_rows(old), best_rows(new)
    added = tuple(after[key] for key in sorted(after.keys() - before.keys()))
    removed = tuple(before[key] for key in sorted(before.keys() - after.keys()))
    changes = []
    for key in sorted(before.keys() & after.keys()):
        change = Change(key, before[key], after[key])
        if change.kernel or change.old.us != change.new.us:
            changes.append(change)
    same = len(before.keys() & after.keys()) - len(changes)
    return Diff(added, removed, tuple(changes), same)


def diff_json(diff: Diff) -> dict[str, object]:
    return {
        "same": diff.same,
        "added": [_row_json(row) for row in diff.added],
        "removed": [_row_json(row) for row in diff.removed],
        "changed": [
            {
                "shape": c.key._asdict(),
                "old": _row_json(c.old),
                "new": _row_json(c.new),
                "ratio": c.ratio,
                "kernel": c.kernel,
            }
            for c in diff.changed
        ],
    }


def _row_json(row: Row) -> dict[str, object]:
    return {"shape": row.key._asdict(), "libtype": row.libtype, "us": row.us, "kernel": row.kernel, "place": row.place}


def diff_text(diff: Diff) -> str:
    lines = [f"- {row.key.shape_text()} {row.libtype} {row.us} us" for row in diff.removed]
    lines += [f"+ {row.key.shape_text()} {row.libtype} {row.us} us" for row in diff.added]
    for change in diff.changed:
        ratio = f" ({change.ratio:.2f}x time)" if change.ratio is not None else ""
        old, new = change.old, change.new
        lines.append(f"~ {change.key.shape_text()} {old.libtype} {old.us} us -> {new.libtype} {new.us} us{ratio}")
    lines.append(
        f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.changed)} changed, {diff.same} the same"
    )
    return "\n".join(lines)


@dataclass(frozen=True)
class Pruned:
    """The rows left, in file order, and how many went for which reason."""

    rows: tuple[Row, ...]
    dropped: dict[str, int]


def prune_rows(
    rows: Iterable[Row],
    *,
    device: Device | None = None,
    rules: Rules | None = None,
    shapes: Collection[Shape] | None = None,
    unmeasured: bool = False,
    torch_winners: bool = False,
) -> Pruned:
    """Return rows without duplicates (the fastest measured stays), and without what the options name.

    ``device``: keep only its rows. ``rules``: drop libraries that aiter does not know. ``shapes``: keep only these
    shapes, at any M that aiter would pad one of them to.
    """
    listed = list(rows)
    best = {id(row) for row in best_rows(listed).values()}
    wanted = None if shapes is None else _wanted(shapes)
    kept: list[Row] = []
    dropped: dict[str, int] = {}
    for row in listed:
        reason = _reason(row, best, device, rules, wanted, unmeasured, torch_winners)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append(row)
    return Pruned(tuple(kept), dropped)


def _wanted(shapes: Collection[Shape]) -> set[tuple[object, ...]]:
    levels: tuple[Level, ...] = ("exact", "fine", "coarse")
    return {
        (padded_m(s.m, s.n, level), s.n, s.k, s.bias, s.dtype, s.outdtype, s.scale_ab, s.bpreshuffle)
        for s in shapes
        for level in levels
    }


def _reason(
    row: Row,
    best: set[int],
    device: Device | None,
    rules: Rules | None,
    wanted: set[tuple[object, ...]] | None,
    unmeasured: bool,
    torch_winners: bool,
) -> str:
    if device is not None and row.key.device != device:
        return "other device"
    if rules is not None and row.libtype not in rules.libtypes:
        return "unknown library"
    if unmeasured and not row.measured:
        return "not measured"
    if torch_winners and row.libtype == "torch":
        return "torch won"
    if wanted is not None and tuple(row.key[2:]) not in wanted:
        return "not a shape of the model"
    if id(row) not in best:
        return "duplicate"
    return ""
