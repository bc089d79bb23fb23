"""`overlay attest`: what differs from the package's RECORD, and why, for scanners and auditors.

Transformers' RECORD is never rewritten: it stays the second witness of stock. This document explains the difference.
No clock and no random number are in it: the same installation gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import rocm_overlay

from ..errors import UsageError
from .inspection import Status, status
from .session import Options
from .transaction.states import FileState

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/transformers-rocm-overlay")


@dataclass(frozen=True)
class Attestation:
    """One environment, looked at a moment ago."""

    status: Status

    def to_json(self) -> dict[str, object]:
        """Return the body of our own form."""
        found = self.status
        receipt = found.receipt
        return {
            "tool": {"name": "transformers-rocm-overlay", "version": rocm_overlay.__version__},
            "target": found.target.to_json(),
            "state": found.state.value,
            "mode": found.mode,
            "overlay": None
            if receipt is None
            else {
                "line": receipt.line,
                "version": receipt.overlay_version,
                "manifest_sha256": receipt.manifest_sha256,
                "record_sha256": receipt.target.record_sha256,
                "time": receipt.time,
            },
            "files": self.files(),
        }

    def files(self) -> list[dict[str, object]]:
        """Return one object per managed file: hashes before, wanted and found."""
        return [
            {
                "path": f"transformers/{file.path}",
                "model": file.model,
                "state": file.state.value,
                "origin": file.origin,
                "stock_sha256": file.stock,
                "before_sha256": file.base or file.stock,
                "after_sha256": file.overlay,
                "found_sha256": file.found,
                "adopted": file.base not in (None, file.stock),
            }
            for file in self.status.files
        ]

    def to_cyclonedx(self) -> dict[str, object]:
        """Return a CycloneDX 1.6 document: transformers with the files that were replaced, and what replaced them."""
        target = self.status.target
        version = target.version or "0"
        ref = f"pkg:pypi/transformers@{version}"
        patched = [file for file in self.status.files if file.state is FileState.OVERLAY]
        library: dict[str, object] = {
            "type": "library",
            "bom-ref": ref,
            "name": "transformers",
            "version": version,
            "purl": ref,
            "properties": _properties({"state": self.status.state.value, "mode": self.status.mode or "none"}),
            "components": [
                {
                    "type": "file",
                    "bom-ref": f"{ref}#{file.path}",
                    "name": f"transformers/{file.path}",
                    "hashes": [{"alg": "SHA-256", "content": file.found}],
                    "properties": _properties(
                        {
                            "state": file.state.value,
                            "origin": file.origin or "none",
                            "stock-sha256": file.stock or "unknown",
                            "base-sha256": file.base or file.stock or "unknown",
                        }
                    ),
                }
                for file in self.status.files
                if file.found is not None
            ],
        }
        if patched:
            library["modified"] = True
            library["pedigree"] = {
                "patches": [{"type": "unofficial"} for _ in patched],
                "notes": f"{len(patched)} file(s) replaced by transformers-rocm-overlay; `overlay diff` prints them",
            }
        tool = {
            "type": "application",
            "name": "transformers-rocm-overlay",
            "version": rocm_overlay.__version__,
        }
        body: dict[str, object] = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"tools": {"components": [tool]}},
            "components": [library],
        }
        return {**body, "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, repr(sorted(map(repr, self.files()))))}"}


def collect(options: Options) -> Attestation:
    """Look at an environment. Raises OverlayError where there is none."""
    return Attestation(status(options))


def read(path: Path) -> dict[str, str]:
    """Return the hash of every file that an attestation of either form names. Raises UsageError for another file."""
    try:
        content = json.loads(path.read_bytes())
        if content.get("bomFormat") == "CycloneDX":
            files = content["components"][0]["components"]
            return {file["name"]: file["hashes"][0]["content"] for file in files}
        return {file["path"]: file["found_sha256"] for file in content["files"] if file["found_sha256"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            "no-attestation",
            f"{path} is no attestation ({type(error).__name__}: {error})",
            remedy="pass a file that `overlay attest` wrote, in either of its forms",
            paths=[path],
        ) from None


def differences(made: Attestation, before: dict[str, str]) -> list[dict[str, str | None]]:
    """Return the files whose hash is not the attested one: path, expected, found; None is no file."""
    now = {f"transformers/{file.path}": file.found for file in made.status.files if file.found}
    paths = sorted({*before, *now})
    return [
        {"path": path, "expected": before.get(path), "found": now.get(path)}
        for path in paths
        if before.get(path) != now.get(path)
    ]


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"amd-overlay:{name}", "value": value} for name, value in values.items()]
