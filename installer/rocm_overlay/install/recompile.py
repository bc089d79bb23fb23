"""Compiles again what was compiled before: an environment that others may not write keeps its fast start.

The target's own interpreter compiles (another one would write bytecode it cannot read); the bytes come back through a
pipe and are written by the file port like everything else.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .target import Target
from .transaction.bytecode import compiled
from .transaction.entry import FILE, Entry, sha256
from .transaction.fs import split
from .transaction.place import Place, new_id, now_ns, temporary_name

TIMEOUT_SECONDS = 300
_NAME = re.compile(r".+?\.(?P<tag>[A-Za-z0-9_\-]+?)(\.opt-(?P<level>[12]))?\.pyc")

# Flags of a pyc (PEP 552): 0 checks time and size, 1 never checks, 3 checks the hash. A module that does not compile
# comes back empty: importing it will say why.
_SCRIPT = """
import importlib.util, json, marshal, os, struct, sys
for path, level, flags in json.load(sys.stdin):
    with open(path, "rb") as file:
        data = file.read()
    status = os.stat(path)
    try:
        code = marshal.dumps(compile(data, path, "exec", dont_inherit=True, optimize=level))
    except (SyntaxError, ValueError):
        out = b""
    else:
        stamp = importlib.util.source_hash(data) if flags else struct.pack(
            "<II", int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        out = importlib.util.MAGIC_NUMBER + struct.pack("<I", flags) + stamp + code
    sys.stdout.buffer.write(struct.pack("<I", len(out)) + out)
"""


@dataclass(frozen=True)
class Compiled:
    """A compiled file beside a module: name, and the flags that say how Python checks it."""

    path: str
    name: str
    flags: int


def survey(place: Place, paths: Iterable[str], names: Iterable[tuple[str, str]] = ()) -> list[Compiled]:
    """Return what is compiled now for these modules, and ``names`` (path, pyc name) that existed earlier."""
    found: dict[tuple[str, str], int] = dict.fromkeys(names, 0)
    for path in paths:
        for name in compiled(place, path):
            data = place.tree.read(f"{place.folder(path)}/__pycache__/{name}") or b""
            found[path, name] = struct.unpack("<I", data[4:8])[0] & 3 if len(data) >= 16 else 0
    return [Compiled(path, name, flags) for (path, name), flags in sorted(found.items())]


def recompile(place: Place, target: Target, wanted: list[Compiled], step: Callable[[str], None]) -> list[str]:
    """Write these compiled files anew from the present sources; return remarks on those that were not.

    ``step`` hears of each file that was written.
    """
    executable = target.executable or sys.executable
    tag = target.cache_tag or sys.implementation.cache_tag
    ours: list[tuple[Compiled, int]] = []
    skipped = 0
    for item in wanted:
        match = _NAME.fullmatch(item.name)
        if match is not None and match["tag"] == tag:
            ours.append((item, int(match["level"] or 0)))
        else:
            skipped += 1
    notes = [f"{skipped} compiled file(s) of other interpreters were removed, not rebuilt"] if skipped else []
    if not ours:
        return notes
    request = [[str(place.tree.root / place.target(item.path)), level, item.flags] for item, level in ours]
    try:
        answer = subprocess.run(
            [executable, "-I", "-S", "-c", _SCRIPT],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        ).stdout
        position = 0
        for item, _ in ours:
            (size,) = struct.unpack_from("<I", answer, position)
            if size:
                _write(place, item, answer[position + 4 : position + 4 + size])
                step(f"compiled {item.path}")
            position += 4 + size
    except (OSError, subprocess.SubprocessError, struct.error) as error:
        return [*notes, f"modules were not compiled again, Python does it at the next import: {error}"]
    return notes


def _write(place: Place, item: Compiled, data: bytes) -> None:
    source = place.tree.observe(place.target(item.path))
    if source is None:
        return
    path = f"{place.folder(item.path)}/__pycache__/{item.name}"
    temporary = temporary_name(item.name, new_id())
    mode, uid, gid = source.entry.mode & 0o666, source.entry.uid, source.entry.gid
    try:
        place.tree.stage(path, temporary, data, Entry(FILE, sha256(data), len(data), mode, uid, gid, now_ns()))
        place.tree.publish(path, temporary)
    except OSError:
        place.tree.remove(f"{split(path)[0]}/{temporary}")
        raise
