"""What the package's own RECORD says about its files: the second witness of stock."""

from __future__ import annotations

import base64
import csv
from dataclasses import dataclass, field
from pathlib import Path

from .transaction.entry import sha256


@dataclass(frozen=True)
class Record:
    """Digests by path below the package. ``present`` is False where the distribution came without a RECORD."""

    present: bool
    digests: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    unhashed: frozenset[str] = frozenset()
    """Paths that RECORD lists without a hash: some repackagers leave it out."""

    def lists(self, path: str) -> bool | None:
        """Tell whether RECORD has a path; None where there is no RECORD."""
        return path in self.digests or path in self.unhashed if self.present else None

    def get(self, path: str) -> str | None:
        """Return the sha256 that RECORD states for a path, in hex; None where it states none."""
        return _hex(self.digests[path]) if path in self.digests else None


def load(dist_info: Path | None, package: str = "transformers") -> Record:
    """Read the RECORD of a distribution, restricted to the lines below ``package/``."""
    path = None if dist_info is None else dist_info / "RECORD"
    if path is None or not path.is_file():
        return Record(False)
    data = path.read_bytes()
    prefix = f"{package}/"
    lines = (line for line in data.decode("utf-8", "surrogateescape").splitlines() if line.startswith(prefix))
    rows = {row[0][len(prefix) :]: row[1] if len(row) >= 2 else "" for row in csv.reader(lines)}
    digests = {path: digest[len("sha256=") :] for path, digest in rows.items() if digest.startswith("sha256=")}
    return Record(True, digests, sha256(data), frozenset(rows.keys() - digests.keys()))


def _hex(digest: str) -> str:
    """Turn the unpadded url-safe base64 of RECORD into hex; an undecodable digest equals no file's hash."""
    try:
        return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    except ValueError:
        return ""
