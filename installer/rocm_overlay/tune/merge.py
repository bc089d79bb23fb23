"""Many tables into one for one device: user rows win, keys are unique under the target aiter, sources stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import Finding
from .device import Device
from .files import guard_output, json_bytes, write_atomic
from .schema import Rules
from .table import Key, Row, Table, read_usable, render

Role = Literal["shipped", "user"]
META_SCHEMA = "amd-overlay.tune.merged/1"
# Rows of these libraries name the kernel to launch; without the name the launch fails.
NEEDS_KERNEL = frozenset({"asm", "flydsl", "opus"})


@dataclass(frozen=True)
class Source:
    """An input and its rank: among shipped rows the fastest measured one wins, user rows beat all of them."""

    path: Path
    role: Role


@dataclass(frozen=True)
class Used:
    """What became of one input's rows."""

    path: str
    role: Role
    sha256: str
    rows: int
    kept: int
    other_device: int


@dataclass(frozen=True)
class Merged:
    """The result: rows in key order, and an account of every row that is not among them."""

    device: Device
    rules: Rules
    rows: tuple[Row, ...]
    sources: tuple[Used, ...]
    refused: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    replaced: int
    unmeasured: int

    def data(self) -> bytes:
        return render(self.rows, self.rules.columns)

    def as_json(self) -> dict[str, object]:
        return {
            "schema": META_SCHEMA,
            "gpu": str(self.device),
            "aiter": self.rules.version,
            "key": list(self.rules.key),
            "rows": len(self.rows),
            "user_rows": sum(used.kept for used in self.sources if used.role == "user"),
            "replaced": self.replaced,
            "unmeasured": self.unmeasured,
            "sources": [vars(used) for used in self.sources],
            "refused": [finding.as_json() for finding in self.refused],
            "notes": [finding.as_json() for finding in self.notes],
        }


def _refusal(row: Row, rules: Rules) -> Finding | None:
    if row.libtype not in rules.libtypes:
        message = f"libtype {row.libtype!r} is unknown to aiter {rules.version}, whose lookup would raise KeyError"
        return Finding("warning", "unknown-libtype", row.path, row.line, message, "retune the shape, or delete the row")
    if row.libtype in NEEDS_KERNEL and not row.kernel:
        message = f"a {row.libtype} row without a kernel name cannot be launched"
        return Finding("warning", "no-kernel-name", row.path, row.line, message, "retune the shape, or delete the row")
    if row.key.bpreshuffle and not rules.has_preshuffle:
        message = f"aiter {rules.version} has no bpreshuffle column and would use the row for plain weights"
        return Finding("warning", "no-preshuffle", row.path, row.line, message, "update aiter, or delete the row")
    return None


def faster(new: Row, old: Row) -> bool:
    """True when ``new`` is the better of two rows of one shape; 0.0 is not a time and loses to any measurement."""
    if new.measured != old.measured:
        return new.measured
    return new.us < old.us


@dataclass
class _Tally:
    """The growing result: shipped and user rows apart, until the end."""

    shipped: dict[Key, Row]
    user: dict[Key, Row]
    refused: list[Finding]
    notes: list[Finding]

    def add(self, row: Row, role: Role) -> None:
        if role == "shipped":
            old = self.shipped.get(row.key)
            if old is None or faster(row, old):
                self.shipped[row.key] = row
            return
        old = self.user.get(row.key)
        if old is not None and len(self.notes) < 1000:
            message = f"has the same shape as {old.place}; the later row is used ({row.key.shape_text()})"
            self.notes.append(
                Finding("info", "duplicate-user-row", row.path, row.line, message, "delete one of the two")
            )
        self.user[row.key] = row


def merge_tables(tables: Sequence[tuple[Table, Role]], device: Device, rules: Rules) -> Merged:
    """Return one table for ``device``. Later user rows win over earlier ones, all of them over shipped rows."""
    tally = _Tally({}, {}, [], [])
    other: list[int] = []
    for table, role in tables:
        tally.refused.extend(table.refused)
        tally.notes.extend(table.findings)
        elsewhere = 0
        for row in table.rows:
            key = row.key
            if key.gfx != device.gfx or key.cu_num != device.cu_num:
                elsewhere += 1
            elif (refusal := _refusal(row, rules)) is not None:
                tally.refused.append(refusal)
            else:
                tally.add(row, role)
        other.append(elsewhere)
    final = {**tally.shipped, **tally.user}
    rows = tuple(final[key] for key in sorted(final))
    kept: dict[str, int] = {}
    for row in rows:
        kept[row.path] = kept.get(row.path, 0) + 1
    used = tuple(
        Used(str(table.path), role, table.sha256, len(table.rows), kept.get(str(table.path), 0), elsewhere)
        for (table, role), elsewhere in zip(tables, other, strict=True)
    )
    return Merged(
        device,
        rules,
        rows,
        used,
        tuple(tally.refused),
        tuple(tally.notes),
        replaced=sum(key in tally.shipped for key in tally.user),
        unmeasured=sum(not row.measured for row in rows),
    )


def merge_files(sources: Sequence[Source], device: Device, rules: Rules) -> Merged:
    """Read and merge; a file with broken lines stops everything before anything is written."""
    return merge_tables([(read_usable(source.path), source.role) for source in sources], device, rules)


def meta_path(target: Path) -> Path:
    return target.with_name(target.name + ".meta.json")


def write_merged(merged: Merged, target: Path, sources: Sequence[Source]) -> None:
    """Write the table and its provenance beside it, private, each in one step; the table, which is used, last."""
    for written in (target, meta_path(target)):
        guard_output(written, [source.path for source in sources])
    data = merged.data()
    write_atomic(meta_path(target), json_bytes(merged.as_json()))
    write_atomic(target, data)
