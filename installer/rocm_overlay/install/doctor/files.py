"""Checks on the managed files: links, bytecode, rights, other people's work."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from importlib.util import source_hash
from pathlib import Path

from .. import foreign
from ..inspection import FileStatus
from ..session import has_strays
from ..transaction.bytecode import compiled
from ..transaction.states import FileState
from .context import Context
from .registry import Finding, finding

_CONSTANT = b"__amd_overlay__"
_SHOWN = 8


def links(c: Context) -> Iterator[Finding]:
    """Inodes that are shared with a package cache or with another environment."""
    shared, poisoned = [], []
    for file, path in _managed(c):
        try:
            status = path.lstat()
        except OSError:
            continue
        many = status.st_nlink > 1 or stat.S_ISLNK(status.st_mode)
        if many and file.state in (FileState.FOREIGN, FileState.OVERLAY_OTHER, FileState.OVERLAY):
            poisoned.append((path, status))
        elif many:
            shared.append(path)
    if poisoned:
        lines = [_linked(c, path, status) for path, status in poisoned[:_SHOWN]]
        yield finding("poisoned-cache", *lines, paths=tuple(path for path, _ in poisoned))
    if shared:
        yield finding("shared-inodes", f"{len(shared)} of the managed files, for example {shared[0]}")


def _linked(c: Context, path: Path, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a link to {os.readlink(path)}"
    suffix = f"/transformers/{path.relative_to(c.status.target.package).as_posix()}" if c.status else ""
    twins = []
    for folder in c.machine.uv_cache.glob("archive-v*/*"):
        twin = Path(f"{folder}{suffix}")
        if twin.is_file() and os.path.samestat(twin.stat(), status):
            twins.append(str(twin))
    where = f", one of them {twins[0]}" if twins else ""
    return f"{path}: inode {status.st_ino} has {status.st_nlink} names{where}"


def bytecode(c: Context) -> Iterator[Finding]:
    """Compiled files that Python would accept although they were made from another text."""
    if c.place is None:
        return
    stale = []
    for file, path in _managed(c):
        try:
            source, status = path.read_bytes(), path.stat()
        except OSError:
            continue
        for name in compiled(c.place, file.path):
            cached = path.parent / "__pycache__" / name
            try:
                data = cached.read_bytes()
            except OSError:
                continue
            why = _stale(data, source, status)
            if why is not None:
                stale.append((cached, why))
    if stale:
        yield finding(
            "stale-bytecode", *(f"{path}: {why}" for path, why in stale), paths=tuple(path for path, _ in stale)
        )


def _stale(data: bytes, source: bytes, status: os.stat_result) -> str | None:
    """Say why a compiled file is stale; None for one that is right or that Python itself would not accept."""
    if len(data) < 16:
        return None
    flags = struct.unpack("<I", data[4:8])[0]
    if flags & 1:
        same = data[8:16] == source_hash(source)
        if flags & 2 or same:
            return None
        return "it is never checked against its source, and the source has changed"
    if data[8:16] != struct.pack("<II", int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF):
        return None
    if (_CONSTANT in data) != (_CONSTANT in source):
        other = "an overlay" if _CONSTANT in data else "a text that is no overlay"
        return f"its time and size fit the source, but it was compiled from {other}"
    return None


def rights(c: Context) -> Iterator[Finding]:
    """Folders that this user cannot write, and files that others cannot read."""
    if c.target is None or c.status is None:
        return
    folders = sorted({path.parent for _, path in _managed(c)} | {c.target.site})
    locked = [folder for folder in folders if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)]
    if os.statvfs(c.target.site).f_flag & os.ST_RDONLY:
        yield finding("read-only-tree", f"{c.target.site} is on a read-only file system")
    elif locked:
        owner = locked[0].stat().st_uid
        yield finding(
            "not-writable",
            f"{len(locked)} of {len(folders)} folders, for example {locked[0]} of uid {owner}",
            f"this is uid {os.geteuid()}",
            paths=tuple(locked[:_SHOWN]),
        )
    anchor = c.target.package / "__init__.py"
    expected = anchor.stat().st_mode & 0o044 if anchor.is_file() else 0
    narrow = [
        path
        for file, path in _managed(c)
        if file.state is FileState.OVERLAY and path.stat().st_mode & expected != expected
    ]
    if narrow:
        yield finding("permissions", *(f"{path} is {oct(path.stat().st_mode & 0o777)}" for path in narrow))


def strangers(c: Context) -> Iterator[Finding]:
    """Other overlays, and files that no distribution owns."""
    if c.target is None or c.target.version is None:
        return
    for name, evidence in foreign.others(c.target, c.record):
        yield finding("other-overlay", f"{name}: {evidence}")
    if c.target.dist_info is not None and (c.target.dist_info / "direct_url.json").is_file():
        text = (c.target.dist_info / "direct_url.json").read_text("utf-8", "replace")
        if "vcs_info" in text:
            yield finding("other-overlay", f"installed from a repository, perhaps a fork: {text.strip()[:200]}")
    managed = {file.path for file, _ in _managed(c)}  # those have findings of their own
    added = [path for path in foreign.added_files(c.target, c.record) if path not in managed]
    if added:
        more = f" and {len(added) - _SHOWN} more" if len(added) > _SHOWN else ""
        yield finding(
            "added-files",
            ", ".join(added[:_SHOWN]) + more,
            paths=tuple(c.target.package / path for path in added[:_SHOWN]),
        )


def strays(c: Context) -> Iterator[Finding]:
    """Temporary files that a stopped process left."""
    if c.place is None or c.interrupted:
        return
    if has_strays(c.place):
        yield finding("stray-temporaries", f"below {c.place.tree.root}")


def _managed(c: Context) -> Iterator[tuple[FileStatus, Path]]:
    if c.status is not None:
        for file in c.status.files:
            yield file, c.status.target.package / file.path


CHECKS = (links, bytecode, rights, strangers, strays)
