"""What the checks look at: one environment and one machine. Tests hand in folders of their own for /proc and /sys."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import OverlayError, TargetError
from ...shared import rules
from .. import gpu, inspection, record
from ..gpu import Gpu
from ..session import Options, open_place
from ..target import Target, resolve
from ..transaction import journal
from ..transaction.place import Place


@dataclass(frozen=True)
class Machine:
    """Where the system tells about itself."""

    environ: Mapping[str, str]
    proc: Path
    nodes: Path
    kfd: Path
    temporary: Path
    uv_cache: Path

    @classmethod
    def this(cls) -> Machine:
        """Describe the machine that this process runs on."""
        cache = (
            os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
        )
        return cls(
            environ=os.environ,
            proc=Path("/proc"),
            nodes=gpu.NODES,
            kfd=Path("/dev/kfd"),
            temporary=Path(tempfile.gettempdir()),
            uv_cache=Path(cache),
        )


@dataclass(frozen=True)
class Context:
    """Everything a check may use. ``target`` is None where no transformers was found; ``refusal`` says why."""

    options: Options
    machine: Machine
    launcher: str | None
    gpus: tuple[Gpu, ...]
    target: Target | None
    refusal: OverlayError | None
    place: Place | None
    record: record.Record
    status: inspection.Status | None
    interrupted: bool

    def asked(self) -> dict[str, str]:
        """Return our toggles that the environment sets to something other than off."""
        found: dict[str, str] = rules().requested(self.machine.environ)
        return found


def look(options: Options, machine: Machine, launcher: str | None) -> Context:
    """Find the environment and read its state, without changing anything: an open transaction stays open."""
    target: Target | None = None
    refusal: OverlayError | None = None
    place: Place | None = None
    status: inspection.Status | None = None
    interrupted = False
    found = record.Record(False)
    try:
        target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True, writes=False)
    except TargetError as error:
        refusal = error
    if target is not None:
        place, found = open_place(target), record.load(target.dist_info)
        interrupted = journal.is_open(place)
        try:
            status = None if interrupted else inspection.status(options)
        except OverlayError as error:
            refusal = error
    return Context(
        options, machine, launcher, gpu.gpus(machine.nodes), target, refusal, place, found, status, interrupted
    )
