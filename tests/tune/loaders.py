"""Doubles of aiter's table loader, as strict as the real ones, without pandas.

Rules read from aiter's release tags v0.1.9.post1, v0.1.16 and v0.1.20.post1: ``aiter/tuned_gemm.py`` (how one file is
indexed and looked up) and ``aiter/jit/core.py`` (how several files are merged). The reading rules are those of
``pandas.read_csv``: a column is int, float, bool or text as a whole.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAGS = ("v0.1.9.post1", "v0.1.16", "v0.1.20.post1")
_KEY = ["cu_num", "M", "N", "K", "bias", "dtype", "outdtype", "scaleAB", "bpreshuffle"]
_UNTUNED = ["M", "N", "K", "bias", "dtype", "outdtype", "scaleAB", "bpreshuffle"]
_OLD_LIBRARIES = {"torch", "hipblaslt", "skinny", "asm", "triton"}
_NA = {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
_TRUE, _FALSE = {"True", "TRUE", "true"}, {"False", "FALSE", "false"}


class ParserError(ValueError):
    """pandas.errors.ParserError."""


class EmptyDataError(ValueError):
    """pandas.errors.EmptyDataError."""


def _column(texts: list[str]) -> list[Any]:
    """Return a column's values with pandas' inference: one type for all of them."""
    if not texts:
        return []
    try:
        if not any(text in _NA for text in texts):
            return [int(text) for text in texts]
    except ValueError:
        pass
    try:
        return [math.nan if text in _NA else float(text) for text in texts]
    except ValueError:
        pass
    if all(text in _TRUE | _FALSE for text in texts):
        return [text in _TRUE for text in texts]
    return [math.nan if text in _NA else text for text in texts]


@dataclass
class Frame:
    """As much of a DataFrame as the loader uses."""

    columns: list[str]
    rows: list[dict[str, Any]]


def read_csv(path: Path) -> Frame:
    text = path.read_bytes().decode("utf-8-sig")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines:
        raise EmptyDataError("No columns to parse from file")
    header, *body = lines
    for number, line in enumerate(body, 2):
        if len(line) > len(header):
            raise ParserError(f"Expected {len(header)} fields in line {number}, saw {len(line)}")
    padded = [line + [""] * (len(header) - len(line)) for line in body]
    columns = [_column([line[at] for line in padded]) for at in range(len(header))]
    return Frame(header, [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)])


def padded_m(m: int, n: int, gl: int) -> int:
    """getPaddedM of csrc/py_itfs_cu/gemm_common.cu."""
    if gl == 0:
        if m <= 256:
            return (m + 15) // 16 * 16
        if m <= 1024:
            return (m + 31) // 32 * 32
        if m <= 4096:
            return (m + 63) // 64 * 64
        return (m + 127) // 128 * 128
    if m > 8192 and n > 4096:
        return 8192
    power = 1
    while power < m:
        power *= 2
    return power


class Loader:
    """One release's loader for one GPU."""

    def __init__(self, tag: str, gfx: str, cu_num: int) -> None:
        assert tag in TAGS
        self.tag, self.gfx, self.cu_num = tag, gfx, cu_num
        self.key = _KEY if tag == "v0.1.9.post1" else ["gfx", *_KEY]
        self.libraries = _OLD_LIBRARIES if tag == "v0.1.9.post1" else _OLD_LIBRARIES | {"flydsl", "opus"}

    def load(self, path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
        """read_csv(...).drop_duplicates().set_index(key).to_dict('index')"""
        if not path.exists():
            return {}
        frame = read_csv(path)
        missing = [name for name in self.key if name not in frame.columns]
        if missing:
            raise KeyError(f"None of {missing} are in the columns")
        rows = list({repr(sorted(row.items())): row for row in frame.rows}.values())
        table: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            key = tuple(row[name] for name in self.key)
            if key in table:
                raise ValueError("DataFrame index must be unique for orient='index'.")
            table[key] = {name: value for name, value in row.items() if name not in self.key}
        return table

    def find(
        self, table: dict[tuple[Any, ...], dict[str, Any]], m: int, n: int, k: int, bias: bool = False
    ) -> dict[str, Any] | None:
        """get_GEMM_A16W16_config for bf16: exact M, then the two padded ones; then what dispatching the row demands."""
        for level in (None, 0, 1):
            at = m if level is None else padded_m(m, n, level)
            shape = (self.cu_num, at, n, k, bias, "torch.bfloat16", "torch.bfloat16", False, False)
            found = table.get(shape if len(self.key) == 9 else (self.gfx, *shape))
            if found is not None:
                self._dispatch(found)
                return found
        return None

    def _dispatch(self, row: dict[str, Any]) -> None:
        if row["libtype"] not in self.libraries:
            raise KeyError(row["libtype"])
        for name in ("solidx", "splitK"):
            if type(row[name]) is not int:
                raise TypeError(f"{name} is {row[name]!r}: the compiled kernel takes an int")
        if row["libtype"] in ("asm", "flydsl", "opus") and not isinstance(row["kernelName"], str):
            raise TypeError(f"kernelName is {row['kernelName']!r}: the compiled kernel takes a str")

    def merge(self, paths: list[Path]) -> list[dict[str, Any]]:
        """update_config_files: what happens when the variable names several files. May rewrite ``paths``."""
        frames = [read_csv(path) for path in paths if path.exists()]
        if self.tag == "v0.1.9.post1":
            for frame in frames:
                assert frame.columns == frames[0].columns, "Column mismatch"
            keys = [*_UNTUNED, "cu_num"]
            best: dict[tuple[Any, ...], dict[str, Any]] = {}
            for row in sorted((row for frame in frames for row in frame.rows), key=lambda row: row["us"]):
                best.setdefault(tuple(row[name] for name in keys), row)
            return list(best.values())
        return self._merge_or_rewrite(paths, frames)

    def _merge_or_rewrite(self, paths: list[Path], frames: list[Frame]) -> list[dict[str, Any]]:
        inferred = {256: "gfx950", 80: "gfx942", 304: "gfx942"}
        for frame in frames:
            for row in frame.rows:
                row.setdefault("gfx", inferred.get(row["cu_num"], self.gfx))
        keys = [*_UNTUNED, "cu_num", "gfx"]
        rows = [row for frame in frames for row in frame.rows]
        best: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row["us"]):
            best.setdefault(tuple(row[name] for name in keys), row)
        if len(best) == len(rows):
            return rows
        kept = {id(row) for row in best.values()}
        for path, frame in zip(paths, frames, strict=True):
            left = [row for row in frame.rows if id(row) in kept]
            if len(left) < len(frame.rows):
                columns = [*frame.columns, *(["gfx"] if "gfx" not in frame.columns else [])]
                text = "\n".join([",".join(columns), *(",".join(str(row[c]) for c in columns) for row in left)])
                path.write_text(text + "\n")
        raise RuntimeError("Found duplicate shape entries during merge. Please re-run.")
