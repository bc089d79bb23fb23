"""Unified diffs of bytes, plain and in git's form. Lines end at a newline and nowhere else: patch programs agree."""

from __future__ import annotations

import difflib
import hashlib
import re

_NO_NEWLINE = b"\n\\ No newline at end of file\n"


def unified(old: bytes, new: bytes, old_name: str, new_name: str) -> bytes:
    """Return the unified diff between two texts, empty where they are equal."""
    lines = difflib.diff_bytes(
        difflib.unified_diff, _lines(old), _lines(new), old_name.encode(), new_name.encode(), lineterm=b"\n"
    )
    return b"".join(line if line.endswith(b"\n") else line + _NO_NEWLINE for line in lines)


def git(old: bytes, new: bytes, path: str) -> bytes:
    """Return one file of a patch as `git apply` reads it, with the blob ids that --3way needs."""
    head = f"diff --git a/{path} b/{path}\nindex {blob_id(old)}..{blob_id(new)} 100644\n"
    return head.encode() + unified(old, new, f"a/{path}", f"b/{path}")


def blob_id(data: bytes) -> str:
    """Return the name that git gives a file of these bytes (SHA-1 is git's choice; nothing of ours rests on it)."""
    return hashlib.sha1(b"blob %d\x00" % len(data) + data, usedforsecurity=False).hexdigest()


def _lines(data: bytes) -> list[bytes]:
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", data)
