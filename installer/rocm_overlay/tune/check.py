"""What is wrong, doubtful or worth knowing in a tuned table, with the line and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Finding
from .device import GPUS, pair_problem
from .files import MAX_BYTES
from .installed import Aiter, Kernels
from .merge import NEEDS_KERNEL, meta_path
from .schema import ALL_LIBTYPES, COLUMNS, Rules
from .table import Key, Row, Table, read_table

ERR_RATIO = 0.05
MAX_PER_ID = 20


@dataclass(frozen=True)
class Checked:
    """A table's findings (the same id at most MAX_PER_ID times, with the true ``counts`` beside) and its row count."""

    path: str
    rows: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]

    @property
    def failed(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def doubtful(self) -> bool:
        return any(finding.severity != "info" for finding in self.findings)


def check_table(
    path: Path, rules: Rules, aiter: Aiter | None = None, err_ratio: float = ERR_RATIO, *, limit: int = MAX_BYTES
) -> Checked:
    """Check one table against the rules of the target aiter, and its kernels against the installed one."""
    table = read_table(path, limit=limit)
    findings = [*table.findings, *(replace(finding, severity="error") for finding in table.refused)]
    findings += _columns(table, rules)
    findings += _duplicates(table, rules)
    kernels = Kernels(aiter) if aiter else None
    for row in table.rows:
        findings += _row(row, rules, err_ratio)
        if kernels is not None and kernels.resolve(row) == "missing":
            findings.append(
                _at(
                    row,
                    "error",
                    "kernel-missing",
                    f"kernel {row.kernel or '(none)'} is not in the installed aiter",
                    "retune",
                )
            )
    if kernels is not None:
        findings += _unverifiable(table, kernels)
    findings += _provenance(path, aiter)
    return _limited(str(path), len(table.rows), findings)


def _limited(path: str, rows: int, findings: list[Finding]) -> Checked:
    counts: dict[str, int] = {}
    kept = []
    for finding in findings:
        counts[finding.id] = counts.get(finding.id, 0) + 1
        if counts[finding.id] <= MAX_PER_ID:
            kept.append(finding)
    order = {"error": 0, "warning": 1, "info": 2}
    return Checked(path, rows, tuple(sorted(kept, key=lambda f: (order[f.severity], f.line))), counts)


def _at(row: Row, severity: str, id_: str, message: str, remedy: str = "") -> Finding:
    assert severity in ("error", "warning", "info")
    return Finding(severity, id_, row.path, row.line, message, remedy)  # type: ignore[arg-type]


def _columns(table: Table, rules: Rules) -> Iterator[Finding]:
    path = str(table.path)
    columns = set(table.columns)
    for name in ("gfx", "bpreshuffle"):
        if name in rules.key and name not in columns:
            message = f"has no {name} column; used alone, aiter {rules.version} ends in KeyError at the first GEMM"
            yield Finding("error", f"no-{name}", path, 1, message, "overlay tune merge writes it")
    unknown = sorted(columns - set(COLUMNS))
    if unknown:
        yield Finding("info", "extra-columns", path, 1, f"has columns aiter does not use: {', '.join(unknown)}")
    if any(row.legacy for row in table.rows):
        number = sum(row.legacy for row in table.rows)
        yield Finding(
            "warning",
            "legacy-gfx",
            path,
            0,
            f"{number} rows name no gfx; it was inferred from cu_num",
            "overlay tune merge",
        )


def _target_key(key: Key, rules: Rules) -> tuple[object, ...]:
    names = dict(
        zip(("gfx", "cu_num", "M", "N", "K", "bias", "dtype", "outdtype", "scaleAB", "bpreshuffle"), key, strict=True)
    )
    return tuple(names[name] for name in rules.key)


def _duplicates(table: Table, rules: Rules) -> Iterator[Finding]:
    first: dict[tuple[object, ...], Row] = {}
    for row in table.rows:
        key = _target_key(row.key, rules)
        old = first.setdefault(key, row)
        if old is not row:
            other = (
                ""
                if old.key == row.key
                else f", and aiter {rules.version} cannot tell {old.key.device} from {row.key.device}"
            )
            message = f"repeats the shape of line {old.line}{other}: its loader raises, or rewrites the files it merges"
            yield _at(row, "error", "duplicate", message, "overlay tune merge keeps one row per shape")


def _row(row: Row, rules: Rules, err_ratio: float) -> Iterator[Finding]:
    pair = pair_problem(row.key.gfx, row.key.cu_num)
    if pair is not None:
        yield _at(
            row, "error" if pair[0] else "warning", "gfx-cu-pair", pair[1], "overlay doctor prints this machine's pair"
        )
    if row.libtype not in rules.libtypes:
        known = "" if row.libtype in ALL_LIBTYPES else " (and to every aiter)"
        yield _at(
            row,
            "error",
            "unknown-libtype",
            f"libtype {row.libtype!r} is unknown to aiter {rules.version}{known}",
            "retune",
        )
    elif row.libtype in NEEDS_KERNEL and not row.kernel:
        yield _at(row, "error", "no-kernel-name", f"a {row.libtype} row needs a kernel name", "retune")
    elif row.libtype == "torch":
        yield _at(row, "info", "torch-winner", "torch won: the shape is tuned and runs as F.linear all the same")
    if not row.measured:
        yield _at(row, "info", "not-measured", "us is 0.0: not measured", "overlay tune run measures it")
    elif (limit := _peak(row)) is not None:
        yield _at(row, "error", "impossible-time", limit, "the kernel does not compute the product: retune")
    if row.err_ratio is not None and row.err_ratio > err_ratio:
        yield _at(
            row,
            "error",
            "err-ratio",
            f"err_ratio {row.err_ratio} is above {err_ratio}: results are wrong too often",
            "retune",
        )


def peak_flops(key: Key) -> float | None:
    """Return the highest dense bf16 rate of the products with this device, None for other types and devices."""
    if key.dtype not in ("torch.bfloat16", "torch.float16"):
        return None
    return max((gpu.bf16 for gpu in GPUS if gpu.device == key.device), default=None)


def _peak(row: Row) -> str | None:
    peak = peak_flops(row.key)
    if peak is None:
        return None
    rate = 2 * row.key.m * row.key.n * row.key.k / (row.us * 1e-6)
    if rate <= peak * 1.02:
        return None
    return f"{row.us} us would be {rate / 1e12:.0f} TFLOPS, above the {peak / 1e12:.0f} of {row.key.device}"


def _unverifiable(table: Table, kernels: Kernels) -> Iterator[Finding]:
    names = sorted({row.libtype for row in table.rows if kernels.resolve(row) == "unknown"})
    for name in names:
        number = sum(row.libtype == name and kernels.resolve(row) == "unknown" for row in table.rows)
        message = f"{number} {name} rows name kernels that only a running aiter can confirm"
        yield Finding(
            "info", "kernel-unverified", str(table.path), 0, message, "overlay tune run --verify-only on the device"
        )


def _provenance(path: Path, aiter: Aiter | None) -> Iterator[Finding]:
    """Compare the aiter that measured the table (its meta.json) with the installed one."""
    meta = next((place for place in (meta_path(path), path.with_name("meta.json")) if place.is_file()), None)
    if meta is None or aiter is None:
        return
    try:
        value = json.loads(meta.read_text("utf-8"))
        measured = value.get("measured_with", {}) if isinstance(value, dict) else {}
        stated = measured.get("aiter_commit") or measured.get("aiter") or ""
    except (OSError, ValueError, AttributeError) as error:
        yield Finding(
            "warning", "bad-meta", str(meta), 0, f"cannot be read: {error}", "write it again with overlay tune run"
        )
        return
    installed = aiter.commit or aiter.version
    if stated and installed and not (stated.startswith(installed) or installed.startswith(stated)):
        message = f"was measured with aiter {stated}, installed is {installed}: kernels may have been renamed"
        yield Finding("warning", "stale-aiter", str(path), 0, message, "check the kernels, or retune")
