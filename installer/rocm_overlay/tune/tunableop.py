"""PyTorch TunableOp's files: results into aiter rows, shapes and rows into what TunableOp reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import Finding, OverlayError, UsageError, from_finding
from .device import Device
from .files import MAX_BYTES, read_text
from .shapes import Shape
from .table import Key, Row, records

TYPES = {"BFloat16": "torch.bfloat16", "Half": "torch.float16", "float": "torch.float32"}
NAMES = {value: key for key, value in TYPES.items()}
# F.linear on row-major tensors is, in BLAS's column-major terms, a product with the weight transposed: TN.
_OPERATION = re.compile(r"(GemmTunableOp|GemmAndBiasTunableOp)_(\w+?)_(TN|NN|NT|TT)")
_PROBLEM = re.compile(r"(tn|nn|nt|tt)_(\d+)_(\d+)_(\d+)(?:_ld_(\d+)_(\d+)_(\d+))?")
_HIPBLASLT = re.compile(r"Gemm_Hipblaslt_(?:TN_)?(\d+)")
VALIDATORS = ("PT_VERSION", "ROCM_VERSION", "HIPBLASLT_VERSION", "GCN_ARCH_NAME")


@dataclass(frozen=True)
class Results:
    """A TunableOp result file as aiter rows, what it was measured with, and the lines without a counterpart."""

    rows: tuple[Row, ...]
    validators: Mapping[str, str]
    skipped: tuple[Finding, ...]
    findings: tuple[Finding, ...]


def read_results(path: Path, device: Device, *, limit: int = MAX_BYTES) -> Results:
    """Return the rows of a result file measured on ``device``.

    Raises UsageError when the file carries no validators (TunableOp did not write it), names another architecture,
    or holds a line that cannot be read.
    """
    file = read_text(path, limit)
    validators: dict[str, str] = {}
    rows: dict[Key, Row] = {}
    skipped: list[Finding] = []
    broken: list[Finding] = []
    for line, cells in records(file):
        if cells[0] == "Validator":
            if len(cells) >= 3:
                validators[cells[1]] = ",".join(cells[2:])
            continue
        outcome = _result(str(path), line, cells, device)
        if isinstance(outcome, Row):
            rows[outcome.key] = outcome
        elif outcome.severity == "error":
            broken.append(outcome)
        else:
            skipped.append(outcome)
    if broken:
        message = f"{path} has lines that cannot be used; nothing was written"
        raise UsageError(
            "bad-row", message, remedy="correct or delete them", paths=(str(path),), findings=tuple(broken[:50])
        )
    _validate(path, validators, device)
    return Results(tuple(rows[key] for key in sorted(rows)), validators, tuple(skipped), file.findings)


def _validate(path: Path, validators: Mapping[str, str], device: Device) -> None:
    missing = [name for name in ("PT_VERSION", "GCN_ARCH_NAME") if name not in validators]
    if missing:
        message = f"has no Validator line for {', '.join(missing)}: what measured it is not known"
        finding = Finding("error", "no-validators", str(path), 0, message, "use the file that TunableOp wrote, whole")
        raise from_finding(finding)
    arch = validators["GCN_ARCH_NAME"].split(":")[0]
    if arch != device.gfx:
        message = f"was measured on {arch}, not on {device.gfx}"
        raise from_finding(Finding("error", "other-device", str(path), 0, message, f"use --gpu {arch}:CU"))


def _result(path: str, line: int, cells: list[str], device: Device) -> Row | Finding:
    if len(cells) < 4:
        return Finding("error", "bad-row", path, line, f"has {len(cells)} cells, a result has 4", "delete the line")
    operation, problem = _OPERATION.fullmatch(cells[0]), _PROBLEM.fullmatch(cells[1])
    if operation is None or problem is None:
        message = f"{cells[0]},{cells[1]} is not a plain matrix product (batched or scaled)"
        return Finding("info", "not-a-linear", path, line, message)
    if operation[3] != "TN":
        return Finding("info", "not-a-linear", path, line, f"{operation[3]} products are not nn.Linear's layout")
    dtype = TYPES.get(operation[2])
    if dtype is None:
        return Finding("info", "other-type", path, line, f"{operation[2]} is not a type of aiter's bf16 table")
    try:
        us = float(cells[3]) * 1000
    except ValueError:
        us = -1.0
    if not 0 <= us < float("inf"):
        return Finding(
            "error", "bad-row", path, line, f"time {cells[3]!r} is not a number of milliseconds", "delete the line"
        )
    n, m, k = int(problem[2]), int(problem[3]), int(problem[4])
    if min(n, m, k) < 1:
        return Finding("error", "bad-row", path, line, f"{cells[1]} has a dimension of 0", "delete the line")
    bias = operation[1] == "GemmAndBiasTunableOp"
    key = Key(device.gfx, device.cu_num, m, n, k, bias, dtype, dtype, False, False)
    match = _HIPBLASLT.fullmatch(cells[2])
    if match:
        return Row(key, "hipblaslt", int(match[1]), 0, round(us, 4), cells[2], None, "0.0", "0.0", path, line)
    if cells[2] == "Default":
        return Row(key, "torch", 0, 0, round(us, 4), "native", None, "0.0", "0.0", path, line)
    return Finding("info", "no-counterpart", path, line, f"aiter's table cannot name {cells[2]}")


def signature(shape: Shape) -> tuple[str, str]:
    """Return TunableOp's two names of a shape; raise OverlayError for types and layouts it has none for."""
    name = NAMES.get(shape.dtype)
    if name is None or shape.dtype != shape.outdtype or shape.scale_ab or shape.bpreshuffle:
        raise UsageError(
            "no-counterpart", f"TunableOp has no plain product for {shape.text()}", remedy="export bf16 or fp16 shapes"
        )
    operation = "GemmAndBiasTunableOp" if shape.bias else "GemmTunableOp"
    return f"{operation}_{name}_TN", f"tn_{shape.n}_{shape.m}_{shape.k}_ld_{shape.k}_{shape.k}_{shape.n}"


def render_untuned(shapes: Iterable[Shape]) -> tuple[bytes, tuple[Shape, ...]]:
    """Return a ``tunableop_untuned`` file, and the shapes left out because TunableOp has no name for them."""
    lines, left = [], []
    for shape in shapes:
        try:
            lines.append(",".join(signature(shape)))
        except OverlayError:
            left.append(shape)
    return ("\n".join(lines) + "\n" if lines else "").encode(), tuple(left)


def render_results(rows: Iterable[Row], validators: Mapping[str, str]) -> tuple[bytes, int]:
    """Return a result file TunableOp loads where the validators match, and how many rows have no counterpart there."""
    lines = [f"Validator,{name},{value}" for name, value in validators.items()]
    left = 0
    for row in rows:
        key = row.key
        shape = Shape(key.m, key.n, key.k, key.bias, key.dtype, key.outdtype, key.scale_ab, key.bpreshuffle)
        solution = {"hipblaslt": f"Gemm_Hipblaslt_{row.solidx}", "torch": "Default"}.get(row.libtype)
        if solution is None or key.scale_ab or key.bpreshuffle or key.dtype != key.outdtype or key.dtype not in NAMES:
            left += 1
            continue
        lines.append(",".join((*signature(shape), solution, f"{row.us / 1000:g}")))
    return ("\n".join(lines) + "\n").encode(), left


def read_validators(path: Path) -> dict[str, str]:
    """Return the Validator lines of a file that TunableOp wrote on the machine in question."""
    found = {
        cells[1]: ",".join(cells[2:])
        for _, cells in records(read_text(path))
        if cells[0] == "Validator" and len(cells) > 2
    }
    missing = [name for name in VALIDATORS if name not in found]
    if missing:
        message = f"{path} has no Validator line for {', '.join(missing)}"
        raise UsageError(
            "no-validators", message, remedy="use a file TunableOp wrote on the target machine", paths=(str(path),)
        )
    return found
