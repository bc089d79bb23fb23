"""Reading inputs and writing results safely: bytes in with every oddity named, private files out in one step."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..errors import Finding, OverlayError, UsageError, WriteError, from_finding

# The largest table anyone has is 3 MB; a gigabyte is a log or a dump named by mistake, and would be held in memory.
MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class TextFile:
    """The decoded text of an input, its hash, and what was odd about it (byte-order mark, line ends)."""

    path: Path
    text: str
    sha256: str
    findings: tuple[Finding, ...]


def _refuse(path: Path, id_: str, message: str, remedy: str, line: int = 0) -> OverlayError:
    return from_finding(Finding("error", id_, str(path), line, message, remedy))


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return a regular file's bytes; raise OverlayError naming the reason and what to do when it cannot be used."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise _refuse(path, "is-directory", "is a directory", "name the .csv file inside it")
        if not stat.S_ISREG(info.st_mode):
            raise _refuse(path, "not-a-file", "is not a regular file", "copy its content into a file first")
        if info.st_size > limit:
            raise _refuse(
                path,
                "too-large",
                f"has {info.st_size} bytes, more than {limit}",
                "a tuning table is a few MB: check the name",
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise _refuse(path, "missing-file", "does not exist", "check the path") from error
    except PermissionError as error:
        raise _refuse(path, "unreadable", "cannot be read: permission denied", "chmod +r it, or copy it") from error
    except OSError as error:
        raise _refuse(
            path, "unreadable", f"cannot be read: {error.strerror or error}", "check the path and the disk"
        ) from error
    return data


def read_text(path: Path, limit: int = MAX_BYTES) -> TextFile:
    """Return a text file; gzip, UTF-16, NUL bytes and invalid UTF-8 are refused with the line where they start."""
    data = read_bytes(path, limit)
    if data[:2] == b"\x1f\x8b":
        raise _refuse(path, "gzip", "is gzip-compressed", f"gunzip -k {path.name}")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _refuse(path, "utf-16", "is UTF-16 text", "save it as UTF-8", 1)
    if (zero := data.find(b"\0")) >= 0:
        raise _refuse(
            path, "binary", "contains a NUL byte: not a text file", "check the name", data.count(b"\n", 0, zero) + 1
        )
    findings = []
    if data[:3] == b"\xef\xbb\xbf":
        findings.append(
            Finding("warning", "bom", str(path), 1, "starts with a byte-order mark", "save it as UTF-8 without BOM")
        )
    if (at := data.find(b"\r")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        findings.append(
            Finding("warning", "crlf", str(path), line, "has Windows line ends", "sed -i 's/\\r$//' on a copy")
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refuse(path, "not-utf-8", f"is not UTF-8 (byte {error.start})", "save it as UTF-8", line) from error
    return TextFile(path, text, hashlib.sha256(data).hexdigest(), tuple(findings))


def same_file(a: Path, b: Path) -> bool:
    """True when both names reach one file, through links too."""
    try:
        return a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()


def guard_output(target: Path, sources: Iterable[Path]) -> None:
    """Refuse to write onto an input, a directory or through a symbolic link; sources are never touched."""
    for source in sources:
        if same_file(target, source):
            raise UsageError(
                "output-is-input", f"{target} is one of the inputs", remedy="choose another -o", paths=(str(target),)
            )
    if target.is_symlink():
        remedy = "name the file itself, or remove the link"
        raise WriteError("output-is-link", f"{target} is a symbolic link", remedy=remedy, paths=(str(target),))
    if target.is_dir():
        raise WriteError("output-is-directory", f"{target} is a directory", remedy="name a file", paths=(str(target),))


def write_atomic(target: Path, data: bytes, mode: int = 0o600) -> None:
    """As `rocm_overlay.files.write_atomic`. Raises OverlayError."""
    try:
        files.write_atomic(target, data, mode)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(target: Path, error: OSError) -> OverlayError:
    message = f"cannot write {target}: {error.strerror or error}"
    remedy = "make the folder, or choose a place you own with -o; nothing was changed"
    return WriteError("cannot-write", message, remedy=remedy, paths=(str(target),))


def json_bytes(value: object) -> bytes:
    """Return canonical JSON: ASCII, sorted keys, indent 1, trailing newline."""
    return json.dumps(value, indent=1, sort_keys=True).encode("ascii") + b"\n"
