"""A disk in memory that knows what a power cut may leave: stricter than any real file system on what was not synced.

File data and metadata count only once the file itself was synced; a name counts only once its directory was. What is
pending in a directory may be lost in part and out of order (only calls on the same name keep their order), and each
directory loses on its own, so names may survive in one that depend on names lost in another.
"""

from __future__ import annotations

import copy
import errno
import itertools
import math
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rocm_overlay.install.transaction.fs import Fs

from tests.install.faults.harness import WRITING

STATES_PER_CUT = 400


class StoppedError(BaseException):
    """The process was killed. No later call has any effect."""


@dataclass
class Content:
    """What syncing a file makes durable. ``data`` is the target of a link."""

    data: bytes = b""
    mode: int = 0o600
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    mtime_ns: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Inode:
    """A directory has ``names`` and ``pending`` changes to the ``durable`` ones; a file has two contents."""

    kind: str
    parent: int | None = None
    now: Content = field(default_factory=Content)
    synced: Content = field(default_factory=Content)
    names: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)

    def change(self, **names: int | None) -> None:
        self.pending.append(names)
        apply_to(self.names, names)


def apply_to(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class ModelFs(Fs):
    """The port on a model of everything below ``root``, as it is on the real disk now, all of it durable.

    ``cuts`` receives a copy of the disk after every writing call. ``stop_after``: the writing call that kills.
    """

    def __init__(self, root: Path, stop_after: int | None = None) -> None:
        self.root = root
        self.disk: dict[int, Inode] = {}
        self.open: dict[int, list[int]] = {}
        self.counter = itertools.count(100)
        self.cuts: list[dict[int, Inode]] = [self.disk]
        self.stop_after = stop_after
        self.stopped = False
        self.top = self._load(root, None, {})
        self.cuts = [copy.deepcopy(self.disk)]
        for name in WRITING:
            setattr(self, name, self._recorded(getattr(self, name)))

    def resume(self) -> None:
        """Let the next process run on the same disk, with everything that is pending still pending."""
        self.stopped, self.stop_after = False, None
        self.open.clear()
        self.cuts = [copy.deepcopy(self.disk)]

    def _recorded(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.stopped:
                raise StoppedError
            result = original(*args, **kwargs)
            self.cuts.append(copy.deepcopy(self.disk))
            if self.stop_after is not None and len(self.cuts) > self.stop_after:
                self.stopped = True
                raise StoppedError
            return result

        return call

    def _load(self, path: Path, parent: int | None, seen: dict[int, int]) -> int:
        status = path.lstat()
        if status.st_ino in seen:
            return seen[status.st_ino]
        number = seen[status.st_ino] = next(self.counter)
        mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
        if path.is_symlink():
            kind, data, xattrs = "link", os.readlink(path).encode(), {}
        elif path.is_dir():
            kind, data, xattrs = "dir", b"", {}
        else:
            kind, data = "file", path.read_bytes()
            xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        now = Content(data, mode, *owner, status.st_mtime_ns, xattrs)
        inode = self.disk[number] = Inode(kind, parent, now, copy.deepcopy(now))
        if kind == "dir":
            inode.names = {child.name: self._load(child, number, seen) for child in sorted(path.iterdir())}
            inode.durable = dict(inode.names)
        return number

    # -- looking names up ------------------------------------------------------------------------------------

    def _directory(self, at: int) -> Inode:
        inode = self.disk[self.open[at][0]]
        if inode.kind != "dir":
            raise OSError(errno.ENOTDIR, "not a directory")
        return inode

    def _number(self, name: str, at: int) -> int:
        names = self._directory(at).names
        if name not in names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return names[name]

    def _opened(self, number: int) -> int:
        fd = next(self.counter)
        self.open[fd] = [number, 0]
        return fd

    def _walk(self, start: int, path: str) -> int:
        number = start
        for part in path.split("/"):
            inode = self.disk[number]
            if part == "..":
                assert inode.parent is not None
                number = inode.parent
            elif part not in inode.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            else:
                number = inode.names[part]
        return number

    def open_directory(self, name: str, at: int | None = None) -> int:
        if at is None:
            number = self._walk(self.top, Path(name).relative_to(self.root).as_posix())
        else:
            number = self._number(name, at)
        if self.disk[number].kind != "dir":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        return self._opened(number)

    def open_read(self, name: str, at: int, *, follow: bool = False) -> int:
        number = self._number(name, at)
        if self.disk[number].kind == "link":
            if not follow:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            number = self._walk(self.open[at][0], self.disk[number].now.data.decode())
        return self._opened(number)

    def read(self, fd: int) -> bytes:
        number, position = self.open[fd]
        part = self.disk[number].now.data[position:]
        self.open[fd][1] += len(part)
        return part

    def _status(self, number: int) -> Any:
        inode = self.disk[number]
        kind = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK}[inode.kind]
        now = inode.now
        return SimpleNamespace(st_mode=kind | now.mode, st_uid=now.uid, st_gid=now.gid, st_mtime_ns=now.mtime_ns)

    def lstat(self, name: str, at: int) -> os.stat_result:
        return self._status(self._number(name, at))  # type: ignore[no-any-return]

    def fstat(self, fd: int) -> os.stat_result:
        return self._status(self.open[fd][0])  # type: ignore[no-any-return]

    def readlink(self, name: str, at: int) -> str:
        return self.disk[self._number(name, at)].now.data.decode()

    def names(self, at: int) -> list[str]:
        return sorted(self._directory(at).names)

    def xattrs(self, fd: int) -> dict[str, bytes]:
        return dict(self.disk[self.open[fd][0]].now.xattrs)

    def close(self, fd: int) -> None:
        del self.open[fd]

    # -- changing --------------------------------------------------------------------------------------------

    def _add(self, name: str, at: int, inode: Inode) -> int:
        directory = self._directory(at)
        if name in directory.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        number = next(self.counter)
        inode.parent = self.open[at][0]
        self.disk[number] = inode
        directory.change(**{name: number})
        return number

    def create(self, name: str, at: int) -> int:
        return self._opened(self._add(name, at, Inode("file")))

    def open_append(self, name: str, at: int) -> int:
        fd = self._opened(self._number(name, at))
        self.open[fd][1] = len(self.disk[self.open[fd][0]].now.data)
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._now(fd).data += bytes(data)
        return len(data)

    def _now(self, fd: int) -> Content:
        return self.disk[self.open[fd][0]].now

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        self._now(fd).uid, self._now(fd).gid = uid, gid

    def fchmod(self, fd: int, mode: int) -> None:
        self._now(fd).mode = mode

    def set_xattr(self, fd: int, name: str, value: bytes) -> None:
        self._now(fd).xattrs[name] = value

    def remove_xattr(self, fd: int, name: str) -> None:
        del self._now(fd).xattrs[name]

    def futime(self, fd: int, mtime_ns: int) -> None:
        self._now(fd).mtime_ns = mtime_ns

    def lutime(self, name: str, at: int, mtime_ns: int) -> None:
        self.disk[self._number(name, at)].now.mtime_ns = mtime_ns

    def lchown(self, name: str, at: int, uid: int, gid: int) -> None:
        now = self.disk[self._number(name, at)].now
        now.uid, now.gid = uid, gid

    def fsync(self, fd: int) -> None:
        inode = self.disk[self.open[fd][0]]
        if inode.kind == "dir":
            inode.durable, inode.pending = dict(inode.names), []
        else:
            inode.synced = copy.deepcopy(inode.now)

    def symlink(self, target: str, name: str, at: int) -> None:
        self._add(name, at, Inode("link", now=Content(target.encode(), 0o777, os.geteuid(), os.getegid())))

    def link(self, source: str, name: str, at: int) -> None:
        directory, number = self._directory(at), self._number(source, at)
        if name in directory.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        directory.change(**{name: number})

    def replace(self, source: str, name: str, at: int) -> None:
        self._directory(at).change(**{source: None, name: self._number(source, at)})

    def unlink(self, name: str, at: int) -> None:
        self._number(name, at)
        self._directory(at).change(**{name: None})

    def mkdir(self, name: str, at: int) -> None:
        self._add(name, at, Inode("dir", now=Content(mode=0o755)))


def survivors(pending: list[dict[str, int | None]]) -> list[tuple[int, ...]]:
    """Return every set of pending changes that may have reached the disk, as positions in order."""
    chosen: list[tuple[int, ...]] = [()]
    for position, change in enumerate(pending):
        earlier = [other for other in range(position) if pending[other].keys() & change.keys()]
        chosen += [(*kept, position) for kept in chosen if all(other in kept for other in earlier)]
    return chosen


def contents(inode: Inode) -> list[Content]:
    """Return what a file may hold after the cut: what was synced, and what was not in part or whole."""
    if inode.kind != "file" or inode.now == inode.synced:
        return [inode.now]
    half = copy.deepcopy(inode.now)
    half.data = half.data[: len(half.data) // 2]
    return [inode.synced, half, inode.now]


def crash_states(disk: dict[int, Inode]) -> Iterator[dict[int, Inode]]:
    """Yield every disk that a power cut may leave, at most STATES_PER_CUT of them."""
    choices: list[list[Any]] = []
    for number, inode in disk.items():
        if inode.kind == "dir" and inode.pending:
            choices.append([(number, kept) for kept in survivors(inode.pending)])
        elif len(contents(inode)) > 1:
            choices.append([(number, content) for content in contents(inode)])
    for state in _combinations(choices):
        left = copy.deepcopy(disk)
        for inode in left.values():
            inode.names = dict(inode.durable)
        for number, choice in state:
            if isinstance(choice, Content):
                left[number].now = choice
            else:
                for position in choice:
                    apply_to(left[number].names, disk[number].pending[position])
        yield left


def _combinations(choices: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield all combinations; where there are too many, all-or-nothing for each place, then a seeded sample."""
    if math.prod(map(len, choices)) <= STATES_PER_CUT:
        yield from itertools.product(*choices)
        return
    extremes = itertools.product(*([options[0], options[-1]] for options in choices))
    yield from itertools.islice(extremes, STATES_PER_CUT // 2)
    source = random.Random(1)
    for _ in range(STATES_PER_CUT // 2):
        yield tuple(source.choice(options) for options in choices)


def fingerprint(disk: dict[int, Inode], top: int) -> str:
    """Return a text that is equal for disks that look equal."""
    parts: list[object] = []

    def visit(number: int, path: str) -> None:
        inode = disk[number]
        parts.append((path, inode.kind, inode.now if inode.kind != "dir" else None))
        for name in sorted(inode.names):
            visit(inode.names[name], f"{path}/{name}")

    visit(top, "")
    return repr(parts)


def materialise(disk: dict[int, Inode], top: int, root: Path) -> None:
    """Write a disk as a real tree; names of one inode become hard links."""
    made: dict[int, Path] = {}

    def visit(number: int, path: Path) -> None:
        inode, now = disk[number], disk[number].now
        if number in made:
            os.link(made[number], path)
            return
        if inode.kind == "dir":
            path.mkdir()
            for name, child in inode.names.items():
                visit(child, path / name)
            return
        made[number] = path
        if inode.kind == "link":
            path.symlink_to(now.data.decode())
        else:
            path.write_bytes(now.data)
            path.chmod(now.mode)
            for name, value in now.xattrs.items():
                os.setxattr(path, name, value)
        os.chown(path, now.uid, now.gid, follow_symlinks=False)
        os.utime(path, ns=(now.mtime_ns, now.mtime_ns), follow_symlinks=False)

    visit(top, root)
