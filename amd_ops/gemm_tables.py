"""One private GEMM table for aiter, in place before its loader first reads the variable that names it.

aiter reads ``AITER_CONFIG_GEMM_BF16`` when ``aiter.tuned_gemm`` is imported, and never again. Unset, it merges its own
files into a folder that all users share; set to several files, it rewrites those files when a shape occurs twice. Set
to one file it only reads, and that is what happens here: `overlay tune merge` builds the file once per set of inputs,
in a program of its own, and later processes reuse it. Nothing here runs during a forward.

The environment is a parameter; its default comes from ``toggles.py``, the one file that reads the process's own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import device
from .folders import readable_folders, user_folder

VARIABLE = "AITER_CONFIG_GEMM_BF16"
LOADER = "aiter.tuned_gemm"
FORMAT = "amd-overlay.gemm-cache/1"
# Merging aiter's own tables takes a fifth of a second; a minute means that the disk or the machine hangs.
TIMEOUT_S = 60.0

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


@dataclass(frozen=True)
class _Inputs:
    """What goes into the merged file, in order of rank: the last user table wins."""

    aiter: Path
    shipped: tuple[Path, ...]
    user: tuple[Path, ...]

    def name(self, arch: str, cu_count: int) -> str:
        """Return the file name that these inputs have in the cache. `overlay tune env` computes the same one."""
        digest = hashlib.sha256(f"{FORMAT} {arch}:{cu_count}\n".encode())
        rules = self.aiter / "tuned_gemm.py"
        digest.update(f"rules {_sha256(rules) if rules.is_file() else 'none'}\n".encode())
        for role, paths in (("shipped", self.shipped), ("user", self.user)):
            for path in paths:
                digest.update(f"{role} {_sha256(path)}\n".encode())
        return f"{arch}_{cu_count}-{digest.hexdigest()[:20]}.csv"


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
    inputs = _inputs(arch, cu_count, environ, extra)
    if inputs is None:
        if extra:
            raise GemmTableError("aiter is not installed, so there is nothing that would read the table.")
        return GemmTable(None, "none", 0, "aiter is not installed")
    folder = _private_folder(_cache(environ))
    target = folder / inputs.name(arch, cu_count)
    how = "reused"
    if not _trusted(target):
        _build(inputs, target, f"{arch}:{cu_count}", environ)
        how = "built"
    environ[VARIABLE] = str(target)
    rows = _rows(target)
    missing = "" if rows else ": every product runs aiter's default"
    count = len(inputs.shipped) + len(inputs.user)
    return GemmTable(
        str(target), "merged", rows, f"{how} from {count} files, {rows} rows for {arch}:{cu_count}{missing}"
    )


def _inputs(arch: str, cu_count: int, environ: Mapping[str, str], extra: Sequence[Path]) -> _Inputs | None:
    package = _package("aiter")
    if package is None or not (package / "configs").is_dir():
        return None
    default = package / "configs" / "bf16_tuned_gemm.csv"
    models = (package / "configs" / "model_configs").glob("*bf16_tuned_gemm*.csv")
    shipped = [default] if default.is_file() else []
    shipped += sorted(path for path in models if path.is_file() and "untuned" not in path.name)
    tool = _package("rocm_overlay")
    if tool is not None:
        shipped += sorted((tool / "tuning_csv" / f"{arch}_{cu_count}").glob("*/bf16_tuned_gemm.csv"))
    user = [path for kept in readable_folders("config", environ) for path in sorted((kept / "gemm").glob("*.csv"))]
    return _Inputs(package, tuple(shipped), (*user, *extra))


def _package(name: str) -> Path | None:
    """Return a top-level package's folder without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _cache(environ: Mapping[str, str]) -> Path:
    folder = user_folder("cache", environ)
    if folder is None:
        raise GemmTableError("there is no home folder to keep the merged table in; set XDG_CACHE_HOME.")
    return folder / "gemm"


def _private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise GemmTableError(f"{path} is not a private folder of this user; chmod 700 it, or set XDG_CACHE_HOME.")
    return path


def _trusted(path: Path) -> bool:
    """True for a finished file that only this user can have written."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022


def _build(inputs: _Inputs, target: Path, gpu: str, environ: Mapping[str, str]) -> None:
    """Run the merge in a program of its own; raise GemmTableError with its own words when it refuses."""
    tool = _package("rocm_overlay")
    if tool is None or not sys.executable:
        raise GemmTableError("the overlay program is not installed beside amd_ops; install transformers-rocm-overlay.")
    command = [sys.executable, "-m", "rocm_overlay.tune", "merge", *map(str, inputs.shipped)]
    for path in inputs.user:
        command += ["--user", str(path)]
    command += ["-o", str(target), "--gpu", gpu, "--aiter", str(inputs.aiter), "--json"]
    places = [str(tool.parent), *filter(None, [environ.get("PYTHONPATH")])]
    # The folder a script happens to run in must not supply modules to the merge.
    child = {**environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            command, env=child, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GemmTableError(f"`overlay tune merge` did not end within {TIMEOUT_S:.0f} s.") from error
    if done.returncode or not _trusted(target):
        raise GemmTableError(
            f"`overlay tune merge` refused (status {done.returncode}): {_said(done.stdout, done.stderr)}"
        )


def _said(out: str, err: str) -> str:
    try:
        error = json.loads(out)["error"]
        places = "; ".join(f"{f['path']}:{f['line']}: {f['message']}" for f in error["findings"][:3])
        return " ".join(filter(None, [error["message"], places, error["remedy"]]))
    except (ValueError, KeyError, TypeError):
        return err.strip()[-400:] or "no output"


def _rows(path: Path) -> int:
    with path.open("rb") as stream:
        return max(0, sum(1 for line in stream if line.strip()) - 1)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
