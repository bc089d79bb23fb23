"""The one port to the file system: no other module of `install` writes anything.

`Fs` holds the system calls one by one, so that a test can fail or stop the process at each of them. `Tree` builds the
only two ways to write on top: a staged temporary file beside its target, and its atomic replacement.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from .entry import FILE, LINK, Entry, Observed, sha256

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTRS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{12}\.ovtmp")


class Fs:
    """System calls. Names are relative to an open directory, and never followed when they are links unless said so."""

    def open_directory(self, name: str, at: int | None = None) -> int:
        return os.open(name, _DIRECTORY, dir_fd=at)

    def open_read(self, name: str, at: int, *, follow: bool = False) -> int:
        return os.open(name, _READ if follow else _READ | os.O_NOFOLLOW, dir_fd=at)

    def read(self, fd: int) -> bytes:
        return os.read(fd, _CHUNK)

    def lstat(self, name: str, at: int) -> os.stat_result:
        return os.stat(name, dir_fd=at, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def readlink(self, name: str, at: int) -> str:
        return os.readlink(name, dir_fd=at)

    def names(self, at: int) -> list[str]:
        return sorted(os.listdir(at))

    def xattrs(self, fd: int) -> dict[str, bytes]:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}

    def close(self, fd: int) -> None:
        os.close(fd)

    def create(self, name: str, at: int) -> int:
        return os.open(name, _CREATE, 0o600, dir_fd=at)

    def open_append(self, name: str, at: int) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=at)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        os.fchown(fd, uid, gid)

    def fchmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def set_xattr(self, fd: int, name: str, value: bytes) -> None:
        os.setxattr(fd, name, value)

    def remove_xattr(self, fd: int, name: str) -> None:
        os.removexattr(fd, name)

    def futime(self, fd: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def lutime(self, name: str, at: int, mtime_ns: int) -> None:
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=at, follow_symlinks=False)

    def lchown(self, name: str, at: int, uid: int, gid: int) -> None:
        os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def symlink(self, target: str, name: str, at: int) -> None:
        os.symlink(target, name, dir_fd=at)

    def link(self, source: str, name: str, at: int) -> None:
        os.link(source, name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)

    def replace(self, source: str, name: str, at: int) -> None:
        os.replace(source, name, src_dir_fd=at, dst_dir_fd=at)

    def unlink(self, name: str, at: int) -> None:
        os.unlink(name, dir_fd=at)

    def mkdir(self, name: str, at: int) -> None:
        os.mkdir(name, 0o755, dir_fd=at)


def split(path: str) -> tuple[str, str]:
    """Split a relative path into its directory ("." for none) and its name."""
    directory, _, name = path.rpartition("/")
    return directory or ".", name


class Tree:
    """A directory whose files are read and replaced without ever following a link below it."""

    def __init__(self, root: Path, fs: Fs | None = None) -> None:
        self.root = root
        self.fs = fs or Fs()

    @contextlib.contextmanager
    def directory(self, relative: str) -> Iterator[int]:
        """Open a directory below the root, one component at a time; OSError where one is missing or a link."""
        fd = self.fs.open_directory(os.fspath(self.root))
        try:
            for part in relative.split("/"):
                if part == ".":
                    continue
                if part in ("", ".."):
                    raise ValueError(f"{relative!r} is not a path below {self.root}")
                outer, fd = fd, self.fs.open_directory(part, fd)
                self.fs.close(outer)  # also where it reports an error the descriptor is gone: never close it twice
            yield fd
        finally:
            self.fs.close(fd)

    # -- reading -----------------------------------------------------------------------------------------------

    def names(self, relative: str) -> list[str]:
        """Return the sorted names in a directory; nothing where it does not exist."""
        try:
            with self.directory(relative) as at:
                return self.fs.names(at)
        except FileNotFoundError:
            return []

    def observe(self, path: str) -> Observed | None:
        """Read a file or a link to a file with all its metadata. None where nothing is there."""
        directory, name = split(path)
        try:
            with self.directory(directory) as at:
                return self._observe(name, at)
        except FileNotFoundError:
            return None

    def read(self, path: str) -> bytes | None:
        """Return the bytes of a plain file, None where it does not exist."""
        observed = self.observe(path)
        return None if observed is None else observed.data

    def _observe(self, name: str, at: int) -> Observed:
        own = self.fs.lstat(name, at)
        is_link = stat.S_ISLNK(own.st_mode)
        fd = self.fs.open_read(name, at, follow=is_link)
        try:
            status = self.fs.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            data = self._read_all(fd)
            xattrs = {} if is_link else self._xattrs(fd)
        finally:
            self.fs.close(fd)
        entry = Entry(
            kind=LINK if is_link else FILE,
            sha256=sha256(data),
            size=len(data),
            mode=stat.S_IMODE(status.st_mode),
            uid=own.st_uid,
            gid=own.st_gid,
            mtime_ns=own.st_mtime_ns,
            xattrs=tuple(sorted((key, base64.b64encode(value).decode("ascii")) for key, value in xattrs.items())),
            link_target=self.fs.readlink(name, at) if is_link else None,
        )
        return Observed(entry, data, frozenset({int(own.st_mtime_ns // 10**9), int(status.st_mtime_ns // 10**9)}))

    def _read_all(self, fd: int) -> bytes:
        parts = []
        while part := self.fs.read(fd):
            parts.append(part)
        return b"".join(parts)

    def _xattrs(self, fd: int) -> dict[str, bytes]:
        try:
            return self.fs.xattrs(fd)
        except OSError as error:
            if error.errno in _NO_XATTRS:
                return {}
            raise

    # -- writing -----------------------------------------------------------------------------------------------

    def stage(self, path: str, temporary: str, data: bytes, entry: Entry) -> list[str]:
        """Write ``data`` with the metadata of ``entry`` to ``temporary`` beside ``path``, synced and read back.

        Returns remarks on metadata that the system refused. Raises OSError when anything else differs afterwards.
        """
        with self.directory(split(path)[0]) as at:
            if entry.kind != LINK:
                return self._stage_file(temporary, at, data, entry)
            if self._stage_link(temporary, at, entry):
                return []
            lost = f"{path} was a link to {entry.link_target}, which no longer has the stock text: restored as a file"
            return [lost, *self._stage_file(temporary, at, data, entry.as_file())]

    def publish(self, path: str, temporary: str) -> None:
        """Replace ``path`` by the staged file, atomically."""
        directory, name = split(path)
        with self.directory(directory) as at:
            self.fs.replace(temporary, name, at)

    def publish_new(self, path: str, temporary: str) -> None:
        """Give the staged file its name only if nothing has that name yet: FileExistsError otherwise."""
        directory, name = split(path)
        with self.directory(directory) as at:
            self.fs.link(temporary, name, at)
            self.fs.unlink(temporary, at)

    def remove(self, path: str) -> None:
        """Remove one of our own files, or a stale bytecode file; nothing happens where it is gone already."""
        directory, name = split(path)
        with contextlib.suppress(FileNotFoundError), self.directory(directory) as at:
            self.fs.unlink(name, at)

    def clean(self, relative: str, pattern: re.Pattern[str]) -> None:
        """Remove the files of a directory whose whole name the pattern matches, durably; it need not exist.

        It is synced also where none is left: an earlier process may have been stopped before it could do that.
        """
        with contextlib.suppress(FileNotFoundError), self.directory(relative) as at:
            for name in filter(pattern.fullmatch, self.fs.names(at)):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.unlink(name, at)
            self.fs.fsync(at)

    def sync(self, relative: str) -> None:
        """Make the names in a directory durable."""
        with self.directory(relative) as at:
            self.fs.fsync(at)

    def make(self, relative: str, owner: tuple[int, int] | None = None) -> None:
        """Create a directory (and those above it) where it is missing, durably.

        One that exists is synced too: the process that made it may have been stopped before it could do that.
        """
        done = "."
        for part in relative.split("/"):
            with self.directory(done) as at:
                try:
                    self.fs.mkdir(part, at)
                except FileExistsError:
                    created = False
                else:
                    created = True
                self.fs.fsync(at)
                if created and owner is not None and owner != (os.geteuid(), os.getegid()):
                    self.fs.lchown(part, at, *owner)
            done = f"{done}/{part}"

    def ensure(self, path: str, owner: tuple[int, int]) -> None:
        """Create an empty file where there is none: a lock or a log."""
        directory, name = split(path)
        with self.directory(directory) as at:
            try:
                fd = self.fs.create(name, at)
            except FileExistsError:
                return
            try:
                if owner != (os.geteuid(), os.getegid()):
                    self.fs.fchown(fd, *owner)
                self.fs.fchmod(fd, 0o644)
            finally:
                self.fs.close(fd)

    def append(self, path: str, data: bytes) -> None:
        """Append one line to a log."""
        directory, name = split(path)
        with self.directory(directory) as at:
            fd = self.fs.open_append(name, at)
            try:
                self._write_all(fd, data)
            finally:
                self.fs.close(fd)

    def probe(self, relative: str, temporary: str) -> None:
        """Prove that files can be created and synced in a directory; OSError says why not."""
        with self.directory(relative) as at:
            fd = self.fs.create(temporary, at)
            try:
                self._write_all(fd, b"probe\n")
                self.fs.fsync(fd)
            finally:
                self.fs.close(fd)
                # Probes run before the lock is taken, so the sweep of a command that holds it may have been here.
                with contextlib.suppress(FileNotFoundError):
                    self.fs.unlink(temporary, at)

    def sweep(self, relative: str) -> int:
        """Remove temporary files that a stopped process left in a directory. Only under the lock."""
        strays = [name for name in self.names(relative) if TEMPORARY.fullmatch(name)]
        for name in strays:
            self.remove(f"{relative}/{name}")
        return len(strays)

    def _stage_link(self, name: str, at: int, entry: Entry) -> bool:
        """Recreate a link; False (and nothing left) where it no longer leads to the recorded text."""
        assert entry.link_target is not None
        self.fs.symlink(entry.link_target, name, at)
        if not self._leads_to(name, at, entry.sha256):
            self.fs.unlink(name, at)
            return False
        own = self.fs.lstat(name, at)
        if (own.st_uid, own.st_gid) != (entry.uid, entry.gid):
            self.fs.lchown(name, at, entry.uid, entry.gid)
        self.fs.lutime(name, at, entry.mtime_ns)
        return True

    def _leads_to(self, name: str, at: int, digest: str) -> bool:
        """Tell whether a link leads to this text. A refusal counts only when it is repeated: it costs us the link."""
        for _ in range(2):
            try:
                return self._observe(name, at).entry.sha256 == digest
            except FileNotFoundError:
                return False
            except PermissionError:
                continue
        return False

    def _stage_file(self, name: str, at: int, data: bytes, entry: Entry) -> list[str]:
        fd = self.fs.create(name, at)
        try:
            self._write_all(fd, data)
            own = self.fs.fstat(fd)
            if (own.st_uid, own.st_gid) != (entry.uid, entry.gid):
                self.fs.fchown(fd, entry.uid, entry.gid)
            # In this order: a file that its owner may not write takes no attributes from him, be it open for writing.
            refused = self._set_xattrs(fd, dict(entry.xattrs))
            self.fs.fchmod(fd, entry.mode)
            self.fs.futime(fd, entry.mtime_ns)
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)
        found = self._observe(name, at).entry
        _compare(name, found, entry, refused)
        return [f"extended attribute {key} could not be set on {name}" for key in sorted(refused)]

    def _set_xattrs(self, fd: int, wanted: dict[str, str]) -> set[str]:
        """Make the extended attributes equal; return the names that the system does not let us set."""
        refused: set[str] = set()
        present = self._xattrs(fd)
        for name in sorted(present.keys() | wanted.keys()):
            value = base64.b64decode(wanted[name]) if name in wanted else None
            if value == present.get(name):
                continue
            if not any(self._set_xattr(fd, name, value) for _ in range(2)):
                refused.add(name)  # a refusal counts only when it is repeated: it costs us the attribute
        return refused

    def _set_xattr(self, fd: int, name: str, value: bytes | None) -> bool:
        """Set (or with None remove) an extended attribute; False where the system does not let us."""
        try:
            if value is None:
                self.fs.remove_xattr(fd, name)
            else:
                self.fs.set_xattr(fd, name, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, *_NO_XATTRS):
                raise
            return False
        return True

    def _write_all(self, fd: int, data: bytes) -> None:
        """Write everything: one call may write less than asked, without an error, on a nearly full disk."""
        rest = memoryview(data)
        while rest:
            written = self.fs.write(fd, rest)
            if written <= 0:
                raise OSError(errno.ENOSPC, "nothing could be written")
            rest = rest[written:]


def _compare(name: str, found: Entry, wanted: Entry, refused: set[str]) -> None:
    """Raise OSError unless the staged file is what was asked for, times and owner included."""

    def relevant(entry: Entry) -> Entry:
        kept = tuple(pair for pair in entry.xattrs if pair[0] not in refused)
        return Entry(**{**entry.__dict__, "xattrs": kept})

    if relevant(found) != relevant(wanted):
        raise OSError(errno.EIO, f"read back differs from what was written: found {found}, expected {wanted}", name)
