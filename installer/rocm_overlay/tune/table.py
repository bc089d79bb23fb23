"""Reading tuned tables of any age into rows that know where they came from. Nothing here changes a file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Finding, OverlayError, UsageError, from_finding
from . import cells, schema
from .cells import BadCell
from .device import Device, infer_gfx
from .files import MAX_BYTES, TextFile, read_text

MAX_ROWS = 2_000_000
# A file with thousands of broken lines says the same thing thousands of times.
MAX_FINDINGS = 50


class Key(NamedTuple):
    """aiter's lookup key of the newest releases, typed; older keys are a part of it."""

    gfx: str
    cu_num: int
    m: int
    n: int
    k: int
    bias: bool
    dtype: str
    outdtype: str
    scale_ab: bool
    bpreshuffle: bool

    @property
    def device(self) -> Device:
        return Device(self.gfx, self.cu_num)

    def shape_text(self) -> str:
        extra = "".join(
            f" {text}"
            for text, on in (("bias", self.bias), ("scaled", self.scale_ab), ("preshuffled", self.bpreshuffle))
            if on
        )
        return f"{self.gfx}:{self.cu_num} M={self.m} N={self.n} K={self.k} {self.dtype}->{self.outdtype}{extra}"


class Row(NamedTuple):
    """One tuned shape. ``us`` 0.0 means not measured; ``legacy`` that gfx was filled from the CU count.

    A named tuple, like Key, because a table has up to a million of them and both are made in its reading loop.
    """

    key: Key
    libtype: str
    solidx: int
    split_k: int
    us: float
    kernel: str
    err_ratio: float | None
    tflops: str
    bw: str
    path: str
    line: int
    legacy: bool = False

    @property
    def measured(self) -> bool:
        return self.us > 0

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Table:
    """A file that was read: usable rows, rows refused as ambiguous, and everything that was noticed."""

    path: Path
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    refused: tuple[Finding, ...]
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")


def records(file: TextFile) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of every line that is not blank; a broken quote is refused with its line."""
    reader = csv.reader(io.StringIO(file.text, newline=""), strict=True)
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                yield reader.line_num, row
    except csv.Error as error:
        finding = Finding(
            "error", "bad-csv", str(file.path), reader.line_num, f"is not valid CSV: {error}", "check the quotes"
        )
        raise from_finding(finding) from error


def header_of(file: TextFile, rows: Iterator[tuple[int, list[str]]], required: tuple[str, ...]) -> tuple[str, ...]:
    """Return the column names; an empty file, repeated or missing columns are refused."""
    try:
        line, names = next(rows)
    except StopIteration:
        finding = Finding(
            "error", "empty-file", str(file.path), 1, "is empty: not even a header", "delete it or write a header"
        )
        raise from_finding(finding) from None
    columns = tuple("us" if name.strip() == "soltimes" else name.strip() for name in names)
    missing = [name for name in required if name not in columns]
    if missing:
        message = f"has no column {', '.join(missing)} (found {', '.join(columns)})"
        remedy = "the first line must name aiter's columns: " + ",".join(required)
        raise from_finding(Finding("error", "missing-columns", str(file.path), line, message, remedy))
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        message = f"names column {', '.join(repeated)} twice"
        raise from_finding(Finding("error", "repeated-columns", str(file.path), line, message, "keep one of them"))
    return columns


class _Cache(dict[str, Any]):
    """Parsed cells by their text: a table repeats a few hundred texts on many lines. Errors are not kept."""

    def __init__(self, parse: Callable[[str], Any]) -> None:
        super().__init__()
        self.parse = parse

    def __missing__(self, text: str) -> Any:
        value = self.parse(text)
        if len(self) < 100_000:
            self[text] = value
        return value


class _Reader:
    """The state of reading one tuned table."""

    def __init__(self, file: TextFile, columns: tuple[str, ...]) -> None:
        self.path = str(file.path)
        self.at = {name: index for index, name in enumerate(columns)}
        self.width = len(columns)
        # Absent columns read the blank cell appended to each record.
        place = [self.at.get(name, self.width) for name in (*_CLASS, *_NUMBERS)]
        self.pick = itemgetter(*place)
        self.classes: dict[tuple[str, ...], tuple[str | None, int, bool, str, str, bool, bool]] = {}
        self.dims = tuple(_Cache(partial(cells.integer, column=name, minimum=1)) for name in ("M", "N", "K"))
        self.solidx = _Cache(partial(_whole_or_zero, column="solidx"))
        self.split = _Cache(partial(_whole_or_zero, column="splitK"))
        self.us = _Cache(partial(cells.microseconds, column="us"))
        self.err = _Cache(partial(cells.number, column="err_ratio"))
        self.tflops = _Cache(partial(_kept, column="tflops"))
        self.bw = _Cache(partial(_kept, column="bw"))
        self.libtype = _Cache(_libtype)
        self.kernel = _Cache(lambda text: "" if cells.is_blank(text) else text.strip())

    def _class(self, texts: tuple[str, ...]) -> tuple[str | None, int, bool, str, str, bool, bool]:
        gfx, cu_num, bias, dtype, outdtype, scale, shuffle = texts
        # aiter before v0.1.16 filled a missing gfx with 0: such a row is a legacy row too.
        named = None if cells.is_blank(gfx) or gfx.strip() == "0" else gfx.strip()
        if named is not None and not _GFX.fullmatch(named):
            raise BadCell(f"gfx is {gfx!r}, not a name like gfx942")
        found = self.classes[texts] = (
            named,
            0 if cells.is_blank(cu_num) else cells.integer(cu_num, "cu_num", 1),
            cells.truth(bias, "bias"),
            cells.dtype(dtype, "dtype"),
            cells.dtype(outdtype, "outdtype"),
            cells.truth(scale, "scaleAB"),
            "bpreshuffle" in self.at and cells.truth(shuffle, "bpreshuffle"),
        )
        return found

    def row(self, line: int, record: list[str]) -> Row | None:
        """Return the row, None when its device is ambiguous; raise BadCell when a cell is unusable."""
        if len(record) != self.width:
            raise BadCell(f"has {len(record)} cells, the header has {self.width}")
        record.append("")
        picked = self.pick(record)
        texts = picked[:7]
        gfx, cu_num, bias, dtype, outdtype, scale, shuffle = self.classes.get(texts) or self._class(texts)
        m, n, k, libtype, solidx, split, us, kernel, err, tflops, bw = picked[7:]
        dims = self.dims
        shape = dims[0][m], dims[1][n], dims[2][k]
        result = (
            self.libtype[libtype],
            self.solidx[solidx],
            self.split[split],
            self.us[us],
            self.kernel[kernel],
            self.err[err],
            self.tflops[tflops],
            self.bw[bw],
        )
        known = gfx or infer_gfx(cu_num)
        if known is None or cu_num == 0:
            return None
        key = Key(known, cu_num, *shape, bias, dtype, outdtype, scale, shuffle)
        return Row(key, *result, self.path, line, gfx is None)


_CLASS = ("gfx", "cu_num", "bias", "dtype", "outdtype", "scaleAB", "bpreshuffle")
_NUMBERS = ("M", "N", "K", *schema.RESULT)
_GFX = re.compile(r"gfx[0-9a-f]{3,5}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def _libtype(text: str) -> str:
    if not _NAME.fullmatch(text.strip()):
        raise BadCell(f"libtype is {text!r}, not a library name")
    return text.strip()


def _kept(text: str, column: str) -> str:
    return "0.0" if cells.number(text, column) is None else text.strip()


def _whole_or_zero(text: str, column: str) -> int:
    # A blank in one row turns the whole column into floats for pandas, and a kernel index of 5.0 is refused by C++.
    return 0 if cells.is_blank(text) else cells.integer(text, column)


def _too_long(path: Path, line: int) -> OverlayError:
    finding = Finding(
        "error", "too-many-rows", str(path), line, f"has more than {MAX_ROWS} rows", "split it by device or model"
    )
    return from_finding(finding)


def read_table(path: Path, *, limit: int = MAX_BYTES) -> Table:
    """Return a tuned table. Unusable files raise; broken lines become error findings, ambiguous ones ``refused``."""
    file = read_text(path, limit)
    lines = records(file)
    columns = header_of(file, lines, (*schema.REQUIRED, "us"))
    reader = _Reader(file, columns)
    rows: list[Row] = []
    refused: list[Finding] = []
    findings = list(file.findings)
    broken = 0
    for line, record in lines:
        if len(rows) >= MAX_ROWS:
            raise _too_long(path, line)
        try:
            row = reader.row(line, record)
        except BadCell as error:
            broken += 1
            if broken <= MAX_FINDINGS:
                findings.append(Finding("error", "bad-row", str(path), line, str(error), "correct or delete the line"))
            continue
        if row is None:
            refused.append(_ambiguous(path, line, reader, record))
        else:
            rows.append(row)
    if broken > MAX_FINDINGS:
        findings.append(
            Finding("error", "more-bad-rows", str(path), 0, f"has {broken - MAX_FINDINGS} more broken lines")
        )
    return Table(path, file.sha256, columns, tuple(rows), tuple(refused), tuple(findings))


def _ambiguous(path: Path, line: int, reader: _Reader, record: list[str]) -> Finding:
    index = reader.at.get("cu_num")
    count = "no cu_num" if index is None else f"cu_num {record[index].strip() or '(blank)'}"
    message = f"names no gfx and has {count}: which GPU was measured is not known"
    return Finding("warning", "ambiguous-device", str(path), line, message, "add a gfx column (and cu_num) to this row")


def read_usable(path: Path, *, limit: int = MAX_BYTES) -> Table:
    """Return a table without broken lines; raise OverlayError listing every broken line otherwise."""
    table = read_table(path, limit=limit)
    if table.broken:
        first = table.broken[0]
        raise UsageError(
            first.id,
            f"{path} has lines that cannot be used; nothing was written",
            remedy="correct or delete them; `overlay tune check` lists them",
            paths=(str(path),),
            findings=table.broken,
        )
    return table


def _values(row: Row) -> tuple[object, ...]:
    """Return a row's cells in the order of ``schema.COLUMNS``. Only a kernel name can need quotes."""
    kernel = row.kernel
    if not kernel.isidentifier() and any(character in kernel for character in ',"\r\n'):
        kernel = '"' + kernel.replace('"', '""') + '"'
    return (*row.key, row.libtype, row.solidx, row.split_k, row.us, kernel, row.err_ratio or 0.0, row.tflops, row.bw)


def render(rows: Iterable[Row], columns: tuple[str, ...]) -> bytes:
    """Return the rows as CSV in the given columns: UTF-8, LF, header first, no clock, order as given."""
    pick = itemgetter(*(schema.COLUMNS.index("us" if name == "soltimes" else name) for name in columns))
    lines = [",".join(columns)]
    lines += [",".join(map(str, pick(_values(row)))) for row in rows]
    return ("\n".join(lines) + "\n").encode()
