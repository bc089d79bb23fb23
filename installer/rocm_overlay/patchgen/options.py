"""What ``overlay gen`` was asked for: the same options serve modeling files and patch configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config.spec import Mode


@dataclass(frozen=True)
class Options:
    """What the user asked for; field names are the long options."""

    target: str | None = None
    all_files: bool = False
    source: Path | None = None
    from_installed: bool = False
    models: Sequence[str] = ()
    output: Path | None = None
    config_name: str | None = None
    mode: Mode | None = None
    list_sites: bool = False
    dry_run: bool = False
    diff: bool = False
    check: bool = False
    fix: bool = False
    verbose: bool = False
    as_json: bool = False
    jobs: int | None = None
