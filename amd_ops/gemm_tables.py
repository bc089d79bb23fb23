"""One private GEMM table for aiter, in place before its loader first reads the variable that names it.

aiter reads ``AITER_CONFIG_GEMM_BF16`` when ``aiter.tuned_gemm`` is imported, and never again. Unset, it merges its own
files into a folder that all users share; set to several files, it rewrites those files when a shape occurs twice. Set
to one file it only reads, and that is what happens here: the merge of `overlay tune` builds the file once per set of
inputs, and later processes reuse it. Nothing here runs during a forward.

The environment is a parameter; its default comes from ``toggles.py``, the one file that reads the process's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import device

if TYPE_CHECKING:
    from rocm_overlay.errors import OverlayError

VARIABLE = "AITER_CONFIG_GEMM_BF16"
LOADER = "aiter.tuned_gemm"

Environment = MutableMapping[str, str]
_environment: Callable[[], Environment] | None = None


def use_environment(read: Callable[[], Environment]) -> None:
    """Say where the functions below find the environment when none is passed. ``toggles.py`` calls this once."""
    global _environment
    _environment = read


class GemmTableError(ValueError):
    """A table the caller named cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class GemmTable:
    """Which table aiter will read: ``source`` is user, merged or none; ``path`` and ``rows`` are empty for none."""

    path: str | None
    source: str
    rows: int
    reason: str


def ensure_merged_table(arch: str, cu_count: int, environ: Environment | None = None) -> GemmTable:
    """Make sure aiter reads a safe table for this GPU; call once, before anything imports ``aiter.tuned_gemm``.

    A variable the user has set is left alone. Otherwise the merged file is reused or built and the variable set in
    ``environ``. Never raises for what is wrong with files or folders: the reason says it, and aiter keeps its own way.
    """
    if environ is None:
        environ = _current_environment()
    stated = environ.get(VARIABLE)
    if stated:
        return _user_table(stated)
    if LOADER in sys.modules:
        return GemmTable(None, "none", 0, f"{LOADER} was imported before: aiter has read its tables already")
    try:
        return _merged_table(arch, cu_count, environ, ())
    except (OSError, GemmTableError) as error:
        return GemmTable(None, "none", 0, f"no merged table: {error}")


def extend_aiter_gemm_configs(
    path: str | os.PathLike[str], *, gpu: tuple[str, int] | None = None, environ: Environment | None = None
) -> GemmTable:
    """Add a table of your own to what aiter uses on this GPU: its rows win over every other one.

    No file named here or shipped with aiter is written. Tables that ``AITER_CONFIG_GEMM_BF16`` names already stay in
    force below yours. ``gpu`` is (architecture, CU count), by default those of the current device. Raises
    GemmTableError when the table cannot be used, and when it is too late because ``aiter.tuned_gemm`` was imported.

    Examples:
        >>> amd_ops.extend_aiter_gemm_configs("no_such.csv", gpu=("gfx942", 304))
        Traceback (most recent call last):
        amd_ops.gemm_tables.GemmTableError: ...
    """
    if LOADER in sys.modules:
        raise GemmTableError(f"{LOADER} is imported already and has read its tables: call this before the first GEMM.")
    if gpu is None:
        found = device.current()
        if found is None:
            raise GemmTableError(f"{device.why_none()}: pass gpu=(architecture, CU count).")
        gpu = found.arch, found.cu_count
    environ = _current_environment() if environ is None else environ
    own = Path(path)
    if not own.is_file():
        raise GemmTableError(f"{own} is not a file: name a tuned table in aiter's CSV format.")
    stated = [Path(part) for part in environ.get(VARIABLE, "").split(os.pathsep) if part]
    try:
        return _merged_table(*gpu, environ, (*(part for part in stated if part.is_file()), own))
    except OSError as error:
        raise GemmTableError(f"{own} could not be merged: {error}") from error


def _current_environment() -> Environment:
    if _environment is None:
        raise GemmTableError("no environment is known here: pass environ=, or import amd_ops first.")
    return _environment()


def _user_table(stated: str) -> GemmTable:
    paths = [part for part in stated.split(os.pathsep) if part]
    missing = [part for part in paths if not Path(part).is_file()]
    reason = f"{VARIABLE} is set by the user and respected"
    if missing:
        reason += f"; missing, so an empty table: {', '.join(missing)}"
    if len(paths) > 1:
        reason += (
            "; aiter merges several files itself, and rewrites them when a shape occurs twice: use one merged file"
        )
    rows = 0 if missing or len(paths) != 1 else _rows(Path(paths[0]))
    return GemmTable(stated, "user", rows, reason)


def _merged_table(arch: str, cu_count: int, environ: Environment, extra: Sequence[Path]) -> GemmTable:
    """Let the program's own merge make the file, or find it made: `overlay tune env` names the same one."""
    try:
        from rocm_overlay.errors import OverlayError
        from rocm_overlay.tune.cache import merged_for
    except ImportError as error:
        raise GemmTableError(f"{error}: install transformers-rocm-overlay, whose program merges tables.") from error
    gpu = f"{arch}:{cu_count}"
    try:
        made = merged_for(arch, cu_count, environ, extra)
    except OverlayError as error:
        raise GemmTableError(_said(error)) from error
    if made is None:
        if extra:
            raise GemmTableError("aiter is not installed, so there is nothing that would read the table.")
        return GemmTable(None, "none", 0, "aiter is not installed")
    environ[VARIABLE] = str(made.path)
    rows = _rows(made.path)
    missing = "" if rows else ": every product runs aiter's default"
    how = "built" if made.merged else "reused"
    reason = f"{how} from {made.sources} files, {rows} rows for {gpu}{missing}"
    return GemmTable(str(made.path), "merged", rows, reason)


def _said(error: OverlayError) -> str:
    places = "; ".join(f"{one.path}:{one.line}: {one.message}" for one in error.findings[:3])
    return " ".join(filter(None, (error.message, places, error.remedy)))


def _rows(path: Path) -> int:
    with path.open("rb") as stream:
        return max(0, sum(1 for line in stream if line.strip()) - 1)
