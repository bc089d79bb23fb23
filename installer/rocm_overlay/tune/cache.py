"""The private merged table of this user: named by the hashes of everything it was made from, built once, then reused.

`overlay tune env` and amd_ops, when aiter is about to read its tables, come here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .device import Device
from .files import read_bytes
from .installed import Aiter, find_aiter, rules_of
from .merge import Merged, Source, merge_files, write_merged
from .places import bundled_tables, cache_folder, only_mine, private_folder, user_tables
from .schema import Rules

FORMAT = "amd-overlay.gemm-cache/1"


@dataclass(frozen=True)
class Cached:
    """The file to point aiter at, of how many it was made, and what was merged, None when an earlier was reused."""

    path: Path
    sources: int
    merged: Merged | None


def sources_for(
    aiter: Aiter | None, device: Device, environment: Mapping[str, str], extra: Sequence[Path]
) -> list[Source]:
    """Return what is merged: aiter's tables, our measured ones, the user's folder, then ``extra``; the last wins."""
    shipped = [*(aiter.tables() if aiter else ()), *bundled_tables(device)]
    user = [*user_tables(environment), *extra]
    return [Source(path, "shipped") for path in shipped] + [Source(path, "user") for path in user]


def merged_for(gfx: str, cu_num: int, environment: Mapping[str, str], extra: Sequence[Path] = ()) -> Cached | None:
    """Return the merged file for the installed aiter on a GPU, ``extra`` winning; None where no aiter is installed.

    Raises OverlayError where a table or the folder cannot be used.
    """
    aiter = find_aiter()
    if aiter is None:
        return None
    device = Device(gfx, cu_num)
    return cached_merge(sources_for(aiter, device, environment, extra), device, rules_of(aiter), aiter, environment)


def cache_name(device: Device, rules_file: Path | None, sources: Sequence[Source]) -> str:
    digest = hashlib.sha256(f"{FORMAT} {device}\n".encode())
    rules = hashlib.sha256(read_bytes(rules_file)).hexdigest() if rules_file else "none"
    digest.update(f"rules {rules}\n".encode())
    for source in sources:
        digest.update(f"{source.role} {hashlib.sha256(read_bytes(source.path)).hexdigest()}\n".encode())
    return f"{device.folder}-{digest.hexdigest()[:20]}.csv"


def rules_file(aiter: Aiter | None) -> Path | None:
    path = aiter.package / "tuned_gemm.py" if aiter else None
    return path if path is not None and path.is_file() else None


def cached_merge(
    sources: Sequence[Source], device: Device, rules: Rules, aiter: Aiter | None, environment: Mapping[str, str]
) -> Cached:
    """Return the merged file of these sources, built when no earlier one has their name."""
    folder = private_folder(cache_folder(environment))
    path = folder / cache_name(device, rules_file(aiter), sources)
    if only_mine(path):
        return Cached(path, len(sources), None)
    merged = merge_files(sources, device, rules)
    write_merged(merged, path, sources)
    return Cached(path, len(sources), merged)
