"""Serves overlay texts under stock module names, decided file by file at import.

Self-contained on purpose: the interpreter that imports transformers may not have this package, so `start.py` loads
this file by its path. Standard library only, no import of ours.

The installed file decides: its sha256 must be one that the manifest has an overlay for, and the overlay's bytes must
have the manifest's sha256. Otherwise the stock file is imported as always, and that is said once on stderr.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SCHEMA = "amd-overlay.hook/1"
MANIFEST_SCHEMA = "amd-overlay.manifest/1"
MARKER = b"# amd-overlay/"
MODULE = re.compile(r"transformers\.models\.([a-z0-9_]+)\.(modeling_[a-z0-9_]+)")
_PAYLOAD = re.compile(r"models/[a-z0-9_]+/modeling_[a-z0-9_]+\.[0-9a-f]{12}\.py")


class RefusedError(Exception):
    """An overlay that must not be served, in a few words."""


class ServedLoader(ExecutionLoader):
    """Holds one verified overlay text. Its file name is like the stock one, but no such file exists.

    `inspect.getsource` and tracebacks therefore ask this loader and show the text that runs, and transformers, which
    reads model names from file names, finds what it expects.
    """

    def __init__(self, filename: str, data: bytes) -> None:
        self.filename = filename
        self.data = data

    def get_filename(self, fullname: str) -> str:
        """Return the name that tracebacks show."""
        return self.filename

    def get_source(self, fullname: str) -> str:
        """Return the overlay text."""
        return importlib.util.decode_source(self.data)

    def is_package(self, fullname: str) -> bool:
        """A modeling file is never a package."""
        return False


class ServedFinder(MetaPathFinder):
    """A finder for ``sys.meta_path``. ``settings``: bundle (folder of release lines) and models (None: all)."""

    amd_overlay = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        models = settings.get("models")
        self.bundle = str(settings["bundle"])
        self.models = {str(name) for name in models} if isinstance(models, list) else None
        self._manifests: dict[str, dict[tuple[str, str], dict[str, object]]] = {}
        self._said: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an overlay that fits the installed file, None for everything else."""
        match = MODULE.fullmatch(fullname)
        if match is None or not path or (self.models is not None and match[1] not in self.models):
            return None
        stock = os.path.join(next(iter(path)), f"{match[2]}.py")
        try:
            data = _read(stock)
        except OSError:
            return None
        if data.startswith(MARKER):
            return None  # the file itself is an overlay already
        digest = hashlib.sha256(data).hexdigest()
        try:
            found = self._overlay(f"models/{match[1]}/{match[2]}.py", digest)
        except RefusedError as why:
            self._say(fullname, f"{stock} is imported as it is: {why}")
            return None
        if found is None:
            return None
        filename = os.path.join(self.bundle, "served", digest[:12], "models", match[1], f"{match[2]}.py")
        self._require_amd_ops()
        return importlib.util.spec_from_file_location(fullname, filename, loader=ServedLoader(filename, found))

    def _overlay(self, path: str, digest: str) -> bytes | None:
        """Return the verified text for a stock file; None where the release has no overlay of this path at all."""
        line = _line()
        files = self._manifest(line)
        entry = files.get((path, digest))
        if entry is None:
            if any(known == path for known, _ in files):
                raise RefusedError(f"its sha256 {digest[:12]} is no stock text of {line} that an overlay was made for")
            return None
        payload = str(entry.get("payload"))
        if _PAYLOAD.fullmatch(payload) is None:
            raise RefusedError(f"the manifest names the payload {payload!r}, which is not allowed")
        file = os.path.join(self.bundle, line, *payload.split("/"))
        try:
            if not stat.S_ISREG(os.lstat(file).st_mode):
                raise RefusedError(f"{file} is not a plain file")
            data = _read(file)
        except OSError as error:
            raise RefusedError(f"{file} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != entry.get("overlay_sha256"):
            raise RefusedError(f"{file} does not have the sha256 that the manifest states")
        return data

    def _manifest(self, line: str) -> dict[tuple[str, str], dict[str, object]]:
        if line not in self._manifests:
            file = os.path.join(self.bundle, line, "manifest.json")
            try:
                value = json.loads(_read(file))
                if value["schema"] != MANIFEST_SCHEMA or value["line"] != line:
                    raise RefusedError(f"{file} is of another schema or line")
                files = {(str(one["path"]), str(one["stock_sha256"])): one for one in value["files"]}
            except FileNotFoundError as error:
                raise RefusedError(f"no overlays were made for transformers {line}") from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RefusedError(f"{file} is damaged ({error})") from error
            self._manifests[line] = files
        return self._manifests[line]

    def _require_amd_ops(self) -> None:
        if "amd_ops" not in self._said and importlib.util.find_spec("amd_ops") is None:
            self._say("amd_ops", "amd_ops is not installed for this interpreter: overlays run their stock expressions")

    def _say(self, key: str, message: str) -> None:
        if key not in self._said and sys.stderr is not None:
            print(f"amd-overlay: {message} (pid {os.getpid()}, {sys.executable})", file=sys.stderr)
        self._said.add(key)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _line() -> str:
    """Return the release line of the package that is being imported."""
    version = str(getattr(sys.modules.get("transformers"), "__version__", ""))
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise RefusedError(f"transformers has the version {version!r}")
    return f"{parts[0]}.{parts[1]}"
