"""What kernelize did: one row per layer and per function, with the reason wherever a kernel does not run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "amd-ops.kernelize/1"


@dataclass(frozen=True)
class LayerRow:
    """A module that a kernel was looked for: its name in the model, its class, the kernel and its source.

    ``applied`` says whether it is kernelized now, ``reasons`` why not, or which state of it is not; ``fallbacks``
    counts calls that went back to the original forward (shared by the modules of one class in one model).
    """

    module: str
    cls: str
    kernel: str
    source: str
    applied: bool
    reasons: tuple[str, ...] = ()
    fallbacks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionRow:
    """A function that a kernel was looked for. ``unreached`` are references to the original that have no name to
    replace.
    """

    target: str
    source: str
    applied: bool
    reason: str = ""
    names: int = 0
    unreached: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.target}: {self.reason}"


@dataclass(frozen=True)
class KernelizeReport:
    """The report of one model (or of the process). ``str()`` is a table, ``as_dict()`` and ``to_json()`` carry a
    schema version.

    ``unused`` are registered kernels that no class of the model is bound to.
    """

    layers: tuple[LayerRow, ...]
    functions: tuple[FunctionRow, ...]
    unused: tuple[str, ...] = ()

    @property
    def applied(self) -> tuple[LayerRow, ...]:
        """The rows of modules that are kernelized now."""
        return tuple(row for row in self.layers if row.applied)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON-ready values."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self, indent: int | None = None) -> str:
        """Return the report as one JSON object."""
        return json.dumps(self.as_dict(), indent=indent)

    def __str__(self) -> str:
        lines = [
            f"kernelize: {len(self.applied)} of {len(self.layers)} candidate layers, "
            f"{sum(f.applied for f in self.functions)} of {len(self.functions)} functions"
        ]
        lines += _layer_lines(self.layers)
        for function in self.functions:
            state = f"replaced under {function.names} names" if function.applied else f"not applied: {function.reason}"
            lines.append(f"  {function.target:<40} {function.source:<28} {state}")
            lines += [f"    still held by {where}" for where in function.unreached]
        lines += [
            f"  kernel {name!r} is registered and no layer class of the model is bound to it" for name in self.unused
        ]
        return "\n".join(lines)


def _layer_lines(rows: tuple[LayerRow, ...]) -> list[str]:
    """Print modules that share everything but their name as one line."""
    groups: dict[tuple[Any, ...], list[LayerRow]] = {}
    for row in rows:
        groups.setdefault((row.cls, row.kernel, row.source, row.applied, row.reasons), []).append(row)
    lines = []
    for (cls, kernel, source, applied, reasons), members in groups.items():
        state = "applied" if applied else "not applied"
        names = members[0].module or "(root)"
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        lines.append(f"  {names + more:<40} {cls:<22} {kernel:<24} {state}  {source}".rstrip())
        lines += [f"    {reason}" for reason in reasons]
        lines += [f"    {count}x {reason}" for reason, count in members[0].fallbacks.items()]
    return lines
