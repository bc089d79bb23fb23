"""What one measuring process gave, built from its events."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Process:
    """One cell of one round. ``status`` is ok, crashed, timeout, unfit, or disagree (the ranks' outputs differ).

    ``ranks`` holds each rank's own samples where several ran; the other fields are then those of the slowest. ``at`` is
    when it was measured, in seconds since 1970.
    """

    cell: str
    round: int
    status: str = "crashed"
    message: str = ""
    loaded_s: float | None = None
    imported_s: float | None = None
    overlay: str | None = None
    first: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    launches: dict[str, Any] = field(default_factory=dict)
    ops: list[dict[str, Any]] = field(default_factory=list)
    bandwidth: float | None = None
    values: str | None = None
    host: str = field(default_factory=socket.gethostname)
    device: str = ""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    at: float = field(default_factory=time.time)

    def take(self, event: dict[str, Any]) -> None:
        """Take one event of the worker."""
        kind = event.pop("event")
        if kind == "imported":
            self.imported_s = event["seconds"]
        elif kind == "loaded":
            self.loaded_s, self.overlay = event["seconds"], event["overlay"]
        elif kind == "first":
            self.first = event
        elif kind == "run":
            self.runs.append(event)
        elif kind == "memory":
            self.memory = event
        elif kind == "launches":
            self.launches = event
        elif kind == "dispatch":
            self.ops = event["ops"]
        elif kind == "outcome":
            self.values = event["path"]
        elif kind == "unfit":
            self.status, self.message = "unfit", event["message"]
        elif kind == "bandwidth":
            self.bandwidth, self.status = event["bytes_per_s"], "ok"
