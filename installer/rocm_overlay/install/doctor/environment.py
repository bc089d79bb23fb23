"""Checks on the environment as a whole: which one it is, its state, who else uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ...errors import ForeignError, TargetError
from ..hook import installed
from ..hook.running import VARIABLE, prefix_of, shebang_python
from ..state import FINDINGS
from ..target import HOOK, resolve
from ..transaction.place import JOURNAL
from ..transaction.states import BACK, FileState, State
from .context import Context
from .registry import Finding, finding

_STATES = {
    State.DRIFTED: "drifted",
    State.PARTIAL: "partial",
    State.WIPED: "wiped",
    State.ORPHANED: "orphaned",
    State.STALE: "stale-overlay",
    State.UNSUPPORTED: "unsupported",
}


def target(c: Context) -> Iterator[Finding]:
    """No target, an open transaction, or a state that asks for something."""
    if c.refusal is not None and not isinstance(c.refusal, ForeignError):
        yield finding("no-target", c.refusal.message, paths=c.refusal.paths, advice=c.refusal.remedy)
    if c.interrupted and c.place is not None:
        yield finding("interrupted", f"{c.place.tree.root / JOURNAL} exists")
    if c.status is None:
        return
    found, package = c.status, c.status.target.package
    wrong = [file for file in found.files if file.state not in (FileState.OVERLAY, *BACK)]
    if found.receipt is not None or found.mode == "hook":
        if found.state in _STATES and (found.mode, found.state) != ("hook", State.DRIFTED):
            evidence = [f"state {found.state.value}", *(f"{file.path} is {file.said}" for file in wrong)]
            if not wrong:
                evidence += list(found.notes)
            yield finding(_STATES[found.state], *evidence, paths=tuple(package / file.path for file in wrong))
        older = [file.path for file in found.receipt.files if file.made_from] if found.receipt is not None else []
        if older:
            yield finding("adopted-by-older-version", *older, paths=tuple(package / path for path in older))
        return
    if found.state is State.UNSUPPORTED and not any(file.state is FileState.UNSEEN for file in found.files):
        yield finding("unsupported", f"transformers {found.target.version} in {package}")
    kinds = dict.fromkeys(FINDINGS[file.state] for file in found.files if file.state in FINDINGS)
    for kind in kinds:
        concerned = [file for file in found.files if FINDINGS.get(file.state) == kind]
        said = [f"{file.path} is {file.said}" for file in concerned]
        yield finding(kind, *said, paths=tuple(package / file.path for file in concerned))
    lost = [file.path for file in found.files if file.state is FileState.OVERLAY]
    if lost:
        yield finding("receipt-lost", *lost, paths=tuple(package / path for path in lost))


def hook(c: Context) -> Iterator[Finding]:
    """A hook file that cannot work."""
    if c.place is None:
        return
    path = c.place.tree.root / HOOK
    try:
        found = installed.load(c.place)
    except ForeignError as error:
        yield finding("hook-broken", error.message, paths=(path,))
        return
    if found is not None:
        gone = [name for name in (found.start, found.bundle) if not Path(name).exists()]
        if gone:
            yield finding("hook-broken", f"{path} needs {', '.join(gone)}", paths=(path,))


def copies(c: Context) -> Iterator[Finding]:
    """Several copies on the path, or one that overlay does not write to."""
    if c.target is None:
        return
    if c.target.others:
        shown = [f"used: {c.target.package}", *(f"not used: {site / 'transformers'}" for site in c.target.others)]
        yield finding("several-transformers", *shown, paths=tuple(site / "transformers" for site in c.target.others))
    try:
        resolve(site_packages=c.options.site_packages, python=c.options.python, allow_missing=True)
    except TargetError as error:
        yield finding("development-install", error.message, paths=error.paths, advice=error.remedy)
    if c.target.kind == "conda" or (c.target.prefix and (Path(c.target.prefix) / "conda-meta").is_dir()):
        yield finding("conda-altered", f"{c.target.prefix}/conda-meta exists")
    if (c.target.version or "").startswith("5."):
        yield finding("registry-route", f"transformers {c.target.version}")


def launcher(c: Context) -> Iterator[Finding]:
    """A launcher whose first line names another interpreter than the one looked at."""
    if c.launcher is None:
        return
    found = shutil.which(c.launcher, path=c.machine.environ.get("PATH"))
    if found is None:
        yield finding("launcher-missing", f"{c.launcher} is not on PATH")
        return
    python = shebang_python(Path(found))
    prefix = prefix_of(python) if python else None
    mine = c.target.prefix if c.target is not None else None
    if prefix is None:
        yield finding("launcher", f"{found} names {python or 'no Python'} in its first line, which does not start")
    elif mine is not None and os.path.realpath(prefix) != os.path.realpath(mine):
        yield finding("launcher", f"{found} starts {python} of {prefix}", f"overlay looks at {mine}", paths=(found,))


def processes(c: Context) -> Iterator[Finding]:
    """Processes that have mapped libraries which transformers loads from this environment."""
    if c.target is None:
        return
    wanted = tuple(f"{c.target.site}/{name}/" for name in ("transformers", "tokenizers", "safetensors"))
    running = []
    for folder in sorted(c.machine.proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if int(folder.name) == os.getpid():
            continue
        try:
            maps = (folder / "maps").read_text("utf-8", "surrogateescape")
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:  # ended meanwhile, or of another user
            continue
        if any(prefix in maps for prefix in wanted):
            running.append(f"pid {folder.name}: {words[:120]}")
    if running:
        yield finding("running-processes", *running)


def amd_ops(c: Context) -> Iterator[Finding]:
    """Overlays without the package that they call."""
    if c.target is None or c.status is None or c.target.executable is None:
        return
    served = c.status.mode is not None or VARIABLE in c.machine.environ
    if not served and not c.asked():
        return
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('amd_ops') is None)"
    done = subprocess.run(
        [c.target.executable, "-c", code], capture_output=True, timeout=60, check=False, cwd=c.target.site
    )
    if done.returncode != 0:
        yield finding("amd-ops-missing", f"{c.target.executable} finds no module amd_ops")


CHECKS = (target, hook, copies, launcher, processes, amd_ops)
