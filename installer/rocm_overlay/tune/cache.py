"""The private merged table of this user: named by the hashes of everything it was made from, built once, then reused.

amd_ops.gemm_tables computes the same name without importing this package; a test holds the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .device import Device
from .files import read_bytes
from .installed import Aiter
from .merge import Merged, Source, merge_files, write_merged
from .places import bundled_tables, cache_folder, private_folder, user_tables
from .schema import Rules

FORMAT = "amd-overlay.gemm-cache/1"


@dataclass(frozen=True)
class Cached:
    """The file to point aiter at, and what was merged, None when an earlier file was reused."""

    path: Path
    merged: Merged | None


def sources_for(
    aiter: Aiter | None, device: Device, environment: Mapping[str, str], extra: Sequence[Path]
) -> list[Source]:
    """Return what is merged: aiter's tables, our measured ones, the user's folder, then ``extra``; the last wins."""
    shipped = [*(aiter.tables() if aiter else ()), *bundled_tables(device)]
    user = [*user_tables(environment), *extra]
    return [Source(path, "shipped") for path in shipped] + [Source(path, "user") for path in user]


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
    if path.is_file() and not path.is_symlink():
        return Cached(path, None)
    merged = merge_files(sources, device, rules)
    write_merged(merged, path, sources)
    return Cached(path, merged)
