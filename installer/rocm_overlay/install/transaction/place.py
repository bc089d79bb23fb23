"""Where the target files and our state live in one environment."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from .entry import FILE, Entry, sha256
from .fs import Fs, Tree, split

STATE = ".amd-overlay"
LOCK = f"{STATE}/lock"
RECEIPT = f"{STATE}/receipt.json"
JOURNAL = f"{STATE}/txn.json"
BLOBS = f"{STATE}/blobs"
RESCUED = f"{STATE}/rescued"
HISTORY = f"{STATE}/history.jsonl"


@dataclass(frozen=True)
class Place:
    """A directory of installed packages, the package in it that we change, and who shall own what we add."""

    tree: Tree
    package: str
    owner: tuple[int, int]
    pycache_prefix: Tree | None = None

    @classmethod
    def of(
        cls, site: Path, package: str = "transformers", *, fs: Fs | None = None, pycache_prefix: Path | None = None
    ) -> Place:
        """Describe ``site``; root leaves files of the directory's owner, everybody else their own."""
        status = site.stat()
        me = (os.geteuid(), os.getegid())
        owner = (status.st_uid, status.st_gid) if me[0] == 0 else me
        return cls(Tree(site, fs), package, owner, Tree(pycache_prefix, fs) if pycache_prefix else None)

    def target(self, path: str) -> str:
        """Turn a path below the package into one below the tree."""
        return f"{self.package}/{path}"

    def folder(self, path: str) -> str:
        """Return the directory of a package path, below the tree."""
        return split(self.target(path))[0]

    def state_folders(self) -> set[str]:
        """Return our own folders, in each of which a stopped process may have left a temporary file."""
        top = self.tree.root / RESCUED
        below = [] if top.is_symlink() else [Path(folder) for folder, _, _ in os.walk(top)]
        return {STATE, BLOBS, *(folder.relative_to(self.tree.root).as_posix() for folder in below)}

    def prepare(self) -> None:
        """Create the state folder and the lock file in it, owned like the rest of the environment."""
        self.tree.make(BLOBS, self.owner)
        self.tree.ensure(LOCK, self.owner)

    def put_state(self, path: str, data: bytes, transaction: str, *, mode: int = 0o644, new: bool = False) -> None:
        """Write one of our own files durably: whole, or not at all. With ``new``: FileExistsError if it exists."""
        folder, name = split(path)
        temporary = temporary_name(name, transaction)
        entry = Entry(FILE, sha256(data), len(data), mode, *self.owner, mtime_ns=now_ns())
        try:
            self.tree.stage(path, temporary, data, entry)
            if new:
                self.tree.publish_new(path, temporary)
            else:
                self.tree.publish(path, temporary)
        except OSError:
            self.tree.remove(f"{folder}/{temporary}")
            raise
        self.tree.sync(folder)


def now_ns() -> int:
    """Return the current time cut to whole seconds, which every file system can store."""
    return time.time_ns() // 1_000_000_000 * 1_000_000_000


def new_id() -> str:
    """Return a fresh transaction id: 12 hex digits."""
    return os.urandom(6).hex()


def temporary_name(name: str, transaction: str) -> str:
    """Return the name of a temporary file beside ``name``; `Tree.sweep` recognises it."""
    stem = name.rpartition(".")[0] or name
    return f".{stem}.{transaction}.ovtmp"
