"""Which cells are measured: a build of the code, toggles, tiers and the shape of the work, each in its own process.

Every matrix has ``stock`` first, and ``stock again``: the same work under another name, which shows what this machine
calls a difference when there is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..fingerprint import sha256
from ..shared import folders
from ..verify.plan import ACCEPTED, SINGLE, TIERS, WITH_FALLBACK

STOCK = "stock"
AGAIN = "stock again"
MATRICES = ("onoff", "toggles", "tiers")
MODES = ("generate", "train", "forward")
CACHES = ("dynamic", "static")
COMPILES = ("no", "default", "graph")
_NAME = re.compile(r"[A-Za-z0-9 ._=+-]{1,60}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class Work:
    """What one measured run does. ``isl`` and ``osl`` are input and output lengths in tokens, per sequence; over
    several ranks the model is spread by transformers' tensor-parallel plan.
    """

    mode: str = "generate"
    batch: int = 1
    isl: int = 128
    osl: int = 16
    attn: str = "sdpa"
    cache: str = "dynamic"
    compile: str = "no"
    ranks: int = 1


@dataclass(frozen=True)
class Cell:
    """One row of the report. ``toggles`` are our environment variables, ``env`` any others the cell needs."""

    name: str
    build: str
    toggles: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    work: Work = Work()

    @property
    def against(self) -> str:
        """The name of the stock cell that does the same work."""
        return f"{STOCK} {shape_name(self.work)}"

    @property
    def id(self) -> str:
        """A name that is unique in a plan."""
        return f"{self.name} {shape_name(self.work)}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for a worker's job and the report."""
        return {"id": self.id, "against": self.against, **asdict(self)}


def shape_name(work: Work) -> str:
    """Say the shape of the work in a few characters, as in ``b1 i128 o16``."""
    parts = [f"b{work.batch}", f"i{work.isl}"]
    if work.mode == "generate":
        parts.append(f"o{work.osl}")
    else:
        parts.append(work.mode)
    parts += [part for part, usual in ((work.attn, "sdpa"), (work.cache, "dynamic")) if part != usual]
    parts += [f"compile-{work.compile}"] if work.compile != "no" else []
    return " ".join([*parts, f"tp{work.ranks}"] if work.ranks > 1 else parts)


def plan(matrix: str, works: Sequence[Work]) -> list[Cell]:
    """Return the cells of a named matrix or of a YAML file, for every shape of work.

    Raises UsageError for an unknown matrix, toggle, key or value.
    """
    for work in works:
        _check_work(work)
    sides = _sides(matrix)
    cells = [Cell(work=work, **side) for work in works for side in sides]
    names = [cell.id for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError("twice", f"two cells are called {', '.join(twice)}", remedy="give each cell a name of its own")
    return cells


def profiles(cells: Sequence[Cell], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the sha256 of every profile that a cell may read: what its AMD_OPS names, all of them for auto."""
    data = [folder / "profiles" for folder in folders().readable_folders("data", environ)]
    places = [Path(environ["AMD_OPS_PROFILES"])] if environ.get("AMD_OPS_PROFILES") else data
    named = {value for cell in cells for name, value in (*cell.toggles.items(), *cell.env.items()) if name == "AMD_OPS"}
    files = [Path(name) for name in named - {"off", "auto"}]
    files += [path for place in places for path in place.glob("*.json")] if "auto" in named else []
    return {str(path): sha256(path) for path in files if path.is_file()}


def _sides(matrix: str) -> list[dict[str, Any]]:
    stock: list[dict[str, Any]] = [{"name": STOCK, "build": "stock"}, {"name": AGAIN, "build": "stock"}]
    everything = dict.fromkeys(SINGLE, "1")
    if matrix == "onoff":
        return [*stock, _overlaid("all", everything)]
    if matrix == "toggles":
        alone = [_overlaid(f"only {name}", {name: "1"}) for name in SINGLE]
        without = [_overlaid(f"all but {name}", {other: "1" for other in SINGLE if other != name}) for name in SINGLE]
        return [*stock, _overlaid("off", {}), _overlaid("all", everything), *alone, *without]
    if matrix == "tiers":
        sets = [(tier, {**everything, "AMD_OPS_TIERS": WITH_FALLBACK[tier]}) for tier in TIERS]
        return [*stock, *(_overlaid(f"tier {tier}", toggles) for tier, toggles in sets)]
    path = Path(matrix)
    if path.suffix in (".yaml", ".yml"):
        return [*stock, *_read(path)]
    raise UsageError(
        "bad-matrix",
        f"--matrix is {matrix!r}, expected one of {', '.join(MATRICES)} or a YAML file",
        remedy="see `overlay bench --help`",
    )


def _overlaid(name: str, toggles: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "build": "overlay", "toggles": toggles}


def _read(path: Path) -> list[dict[str, Any]]:
    """Read ``cells: [{name, build, toggles, env}]``; the two stock cells are always there and need not be named."""
    try:
        import yaml
    except ModuleNotFoundError:
        message = f"{path} is YAML, and PyYAML is not installed"
        raise UsageError("no-yaml", message, remedy="run `pip install pyyaml`", paths=[path]) from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} cannot be read: {error}"
        raise UsageError("bad-matrix", message, remedy="see docs/bench.md for an example", paths=[path]) from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not cells:
        message = f"{path} holds no list under `cells:`"
        raise UsageError("bad-matrix", message, remedy="see docs/bench.md for an example", paths=[path])
    return [_side(path, index, cell) for index, cell in enumerate(cells)]


def _side(path: Path, index: int, cell: Any) -> dict[str, Any]:
    where = f"{path}, cell {index + 1}"

    def refuse(found: str) -> UsageError:
        return UsageError("bad-matrix", f"{where}: {found}", remedy="see docs/bench.md for an example", paths=[path])

    if not isinstance(cell, dict) or not isinstance(cell.get("name"), str) or not _NAME.fullmatch(cell["name"]):
        raise refuse("`name` must be a short text of letters, digits, blanks and ._=+-")
    unknown = sorted(set(cell) - {"name", "build", "toggles", "env"})
    if unknown:
        raise refuse(f"unknown key {unknown[0]!r}, expected name, build, toggles or env")
    build = cell.get("build", "overlay")
    if build not in ("stock", "overlay"):
        raise refuse(f"build is {build!r}, expected stock or overlay")
    toggles = _texts(cell.get("toggles") or {}, refuse, "toggles")
    for name in toggles:
        if name not in (*ACCEPTED, "AMD_OPS_TIERS", "AMD_OPS_TRITON_PROVIDERS", "AMD_OPS", "AMD_OPS_STRICT"):
            raise refuse(f"{name!r} is no toggle, expected one of {', '.join(ACCEPTED)}")
    env = _texts(cell.get("env") or {}, refuse, "env")
    bad = [name for name in env if not _VARIABLE.fullmatch(name)]
    if bad:
        raise refuse(f"{bad[0]!r} is no name of an environment variable")
    return {"name": cell["name"], "build": build, "toggles": toggles, "env": env}


def _texts(values: Any, refuse: Any, key: str) -> dict[str, str]:
    if not isinstance(values, dict):
        raise refuse(f"{key} must map names to values")
    return {str(name): str(value) for name, value in values.items()}


def _check_work(work: Work) -> None:
    for name, value, least in (("batch", work.batch, 1), ("isl", work.isl, 1), ("osl", work.osl, 2)):
        if value < least:
            raise UsageError("bad-length", f"--{name} is {value}", remedy=f"use {least} or more")
    for name, text, allowed in (
        ("mode", work.mode, MODES),
        ("cache", work.cache, CACHES),
        ("compile", work.compile, COMPILES),
    ):
        if text not in allowed:
            raise UsageError(f"bad-{name}", f"--{name} is {text!r}", remedy=f"use one of {', '.join(allowed)}")
