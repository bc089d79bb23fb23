"""The manifest of a release line: which stock text becomes which overlay, edit by edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from .engine import Result
from .header import GENERATOR

SCHEMA = "amd-overlay.manifest/1"


@dataclass(frozen=True)
class Entry:
    """One stock text of one modeling file and its overlay. ``path`` is relative to the transformers package."""

    model: str
    path: str
    releases: tuple[str, ...]
    result: Result

    @property
    def _stem(self) -> str:
        return str(PurePosixPath(self.path).with_suffix("")) + f".{self.result.stock_sha256[:12]}"

    @property
    def payload(self) -> str:
        """Path of the overlay text, relative to the line's folder."""
        return f"{self._stem}.py"

    @property
    def diff(self) -> str:
        """Path of the readable diff, relative to the line's folder."""
        return f"{self._stem}.diff"

    def as_json(self) -> dict[str, object]:
        """The entry as the installer reads it."""
        result = self.result
        return {
            "model": self.model,
            "path": self.path,
            "stock_sha256": result.stock_sha256,
            "stock_size": len(result.stock),
            "overlay_sha256": sha256(result.overlay).hexdigest(),
            "overlay_size": len(result.overlay),
            "payload": self.payload,
            "diff": self.diff,
            "releases": list(self.releases),
            "edits": [
                {
                    "recipe": edit.recipe,
                    "qualname": edit.qualname,
                    "stock": list(edit.stock),
                    "overlay": list(edit.overlay),
                    "stock_text": edit.stock_text.decode("utf-8"),
                }
                for edit in result.edits
            ],
        }


def render(line: str, releases: Sequence[str], recipes: str, entries: Sequence[Entry]) -> bytes:
    """Return the manifest file: ASCII, sorted keys, indent 1, one newline at the end."""
    document = {
        "schema": SCHEMA,
        "line": line,
        "generator": GENERATOR,
        "recipes": recipes,
        "releases": list(releases),
        "files": [entry.as_json() for entry in entries],
    }
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")
