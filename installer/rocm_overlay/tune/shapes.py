"""GEMM shapes: a model's Linears times a ladder of M, in the untuned schema that aiter's tuner reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import Finding, UsageError
from . import cells
from .cells import BadCell
from .files import MAX_BYTES, read_text
from .models import Linear, Model
from .models.spec import FUSIONS
from .schema import UNTUNED
from .table import header_of, records

LADDERS = {
    "decode": tuple(1 << i for i in range(9)),
    "prefill": tuple(1 << i for i in range(9, 14)),
    "full": tuple(1 << i for i in range(13)),
    "all": tuple(1 << i for i in range(14)),
}
# Pictures in one batch: M of a vision tower is this times its patches.
PICTURES = (1, 2, 4, 8)
MAX_M = 1 << 24
DTYPES = {"bf16": "torch.bfloat16", "bfloat16": "torch.bfloat16", "fp16": "torch.float16", "float16": "torch.float16"}


class Shape(NamedTuple):
    """One matrix product as aiter's tuner is asked for it."""

    m: int
    n: int
    k: int
    bias: bool
    dtype: str
    outdtype: str
    scale_ab: bool = False
    bpreshuffle: bool = False

    def text(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.dtype.removeprefix('torch.')}{' bias' if self.bias else ''}"


@dataclass(frozen=True)
class Use:
    """A shape and the Linear it comes from."""

    shape: Shape
    linear: Linear


def parse_dtype(text: str) -> str:
    name = DTYPES.get(text.removeprefix("torch."))
    if name is None:
        raise UsageError("bad-dtype", f"{text!r} is not a dtype of aiter's table", remedy="use bf16 or fp16")
    return name


def parse_fused(text: str) -> frozenset[str]:
    """Return the groups of ``qkv,gate_up``; ``none`` is the empty set."""
    if text.strip() in ("none", ""):
        return frozenset()
    groups = frozenset(part.strip() for part in text.split(","))
    if not groups <= set(FUSIONS):
        raise UsageError(
            "bad-fused", f"--fused {text!r} names no known group", remedy="use qkv,gate_up or one of them, or none"
        )
    return groups


def parse_ladder(text: str) -> tuple[int, ...]:
    """Return the values of M: a named ladder, ``1,2,4``, or ``8x128``: 8 sequences of 128 tokens (M = 8 and 1024)."""
    found: set[int] = set()
    for part in text.split(","):
        part = part.strip()
        if part in LADDERS:
            found.update(LADDERS[part])
        elif match := re.fullmatch(r"(\d{1,8})x(\d{1,8})", part):
            batch, length = int(match[1]), int(match[2])
            found.update((batch, batch * length))
        elif re.fullmatch(r"\d{1,8}", part):
            found.add(int(part))
        else:
            names = ", ".join(LADDERS)
            raise UsageError(
                "bad-ladder",
                f"{part!r} is not a value of M",
                remedy=f"use {names}, numbers, or BATCHxLENGTH, comma-separated",
            )
    if not found or min(found) < 1 or max(found) > MAX_M:
        raise UsageError(
            "bad-ladder", f"--m-ladder {text!r} must hold values from 1 to {MAX_M}", remedy="for example 1,2,4,8"
        )
    return tuple(sorted(found))


def rows_of(linear: Linear, ladder: Sequence[int]) -> tuple[int, ...]:
    """Return the values of M a Linear meets: the ladder, or whole pictures for a vision tower of fixed size."""
    return tuple(linear.rows * count for count in PICTURES) if linear.kind == "image" else tuple(ladder)


def uses(model: Model, ladder: Sequence[int], dtype: str) -> Iterator[Use]:
    """Yield every Linear at every M, in the model's order; equal shapes of different roles are yielded apart."""
    for linear in model.linears:
        for m in rows_of(linear, ladder):
            yield Use(Shape(m, linear.n, linear.k, linear.bias, dtype, dtype), linear)


def unique(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    return tuple(sorted(set(shapes), key=lambda shape: (shape.n, shape.k, *shape)))


def render_untuned(shapes: Iterable[Shape]) -> bytes:
    """Return shapes as aiter's untuned CSV, LF, in the order given."""
    lines = [",".join(UNTUNED), *(",".join(map(str, shape)) for shape in shapes)]
    return ("\n".join(lines) + "\n").encode()


def read_untuned(path: Path, *, limit: int = MAX_BYTES) -> tuple[tuple[Shape, ...], tuple[Finding, ...]]:
    """Return the unique shapes of an untuned CSV in order, and warnings; raise UsageError listing broken lines."""
    file = read_text(path, limit)
    lines = records(file)
    columns = header_of(file, lines, UNTUNED[:-1])
    at = {name: index for index, name in enumerate(columns)}
    found: dict[Shape, None] = {}
    findings = list(file.findings)
    broken = []
    for line, record in lines:
        try:
            found.setdefault(_shape(record, at, len(columns)))
        except BadCell as error:
            broken.append(Finding("error", "bad-row", str(path), line, str(error), "correct or delete the line"))
    if broken:
        message = f"{path} has lines that cannot be used; nothing was written"
        raise UsageError(
            "bad-row", message, remedy="correct or delete them", paths=(str(path),), findings=tuple(broken[:50])
        )
    return tuple(found), tuple(findings)


def _shape(record: list[str], at: dict[str, int], width: int) -> Shape:
    if len(record) != width:
        raise BadCell(f"has {len(record)} cells, the header has {width}")
    shuffle = "bpreshuffle" in at and cells.truth(record[at["bpreshuffle"]], "bpreshuffle")
    return Shape(
        cells.integer(record[at["M"]], "M", 1),
        cells.integer(record[at["N"]], "N", 1),
        cells.integer(record[at["K"]], "K", 1),
        cells.truth(record[at["bias"]], "bias"),
        cells.dtype(record[at["dtype"]], "dtype"),
        cells.dtype(record[at["outdtype"]], "outdtype"),
        cells.truth(record[at["scaleAB"]], "scaleAB"),
        shuffle,
    )
