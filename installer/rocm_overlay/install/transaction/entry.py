"""What one path holds: content hash and every piece of metadata that must come back on revert."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from .decode import MalformedError, Reader

FILE = "file"
LINK = "link"


def sha256(data: bytes) -> str:
    """Return the hex digest that names texts everywhere in this package."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(text: str) -> bool:
    """Tell whether ``text`` is 64 lower-case hex digits."""
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


@dataclass(frozen=True)
class Entry:
    """One file, or one symbolic link to a file.

    For a link, `sha256`, `size` and `mode` belong to the file it leads to; owner and time belong to the link itself.
    `xattrs` holds (name, base64 value) pairs in sorted order.
    """

    kind: str
    sha256: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, str], ...] = ()
    link_target: str | None = None

    def as_file(self) -> Entry:
        """Return the same entry as a plain file: what replaces a link, or stands in where a link cannot come back."""
        return replace(self, kind=FILE, link_target=None)

    def to_json(self) -> dict[str, object]:
        """Return the form kept in the journal and the receipt."""
        return {
            "kind": self.kind,
            "sha256": self.sha256,
            "size": self.size,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "mtime_ns": self.mtime_ns,
            "xattrs": dict(self.xattrs),
            "link_target": self.link_target,
        }

    @classmethod
    def from_json(cls, reader: Reader) -> Entry:
        """Read an entry. Raises MalformedError."""
        kind, digest, target = reader.text("kind"), reader.text("sha256"), reader.optional_text("link_target")
        if kind not in (FILE, LINK) or (kind == LINK) != (target is not None):
            raise MalformedError(f"{reader.place('kind')}: {kind!r} does not fit link_target {target!r}")
        if not is_sha256(digest):
            raise MalformedError(f"{reader.place('sha256')}: not a sha256")
        xattrs = reader.child("xattrs")
        return cls(
            kind=kind,
            sha256=digest,
            size=reader.integer("size"),
            mode=reader.integer("mode"),
            uid=reader.integer("uid"),
            gid=reader.integer("gid"),
            mtime_ns=reader.integer("mtime_ns"),
            xattrs=tuple(sorted((name, xattrs.text(name)) for name in xattrs.raw)),
            link_target=target,
        )


@dataclass(frozen=True)
class Observed:
    """An entry as read from disk a moment ago, with its bytes."""

    entry: Entry
    data: bytes
    seconds: frozenset[int]
    """Whole seconds of every modification time that Python may have stored in bytecode for this path."""

    def fresh_mtime(self, now_ns: int) -> int:
        """Return the first whole second from ``now_ns`` on that no bytecode of the old text can carry.

        Whole seconds, because every file system can store them.
        """
        now_ns -= now_ns % 1_000_000_000
        while now_ns // 1_000_000_000 in self.seconds:
            now_ns += 1_000_000_000
        return now_ns
