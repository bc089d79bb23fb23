"""Reports of `export` and `attest`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import output

if TYPE_CHECKING:
    from rocm_overlay.install.attest import Attestation
    from rocm_overlay.install.export import Patch


def patch(made: Patch, *, as_json: bool) -> int:
    """Print a patch as bytes, or as one JSON object with a text per file."""
    if as_json:
        files = [{"path": path, "model": model, "patch": text.decode("utf-8")} for path, model, text in made.files]
        body = {
            "release": made.release,
            "format": "git-patch",
            "overlay_version": made.manifest.version,
            "files": files,
        }
        output.print_json("export", body)
    else:
        output.raw(b"".join(text for _, _, text in made.files))
    return 0


def attestation(made: Attestation, form: str) -> int:
    """Print the document in the form that was asked for."""
    if form == "cyclonedx":
        output.print_document(made.to_cyclonedx())
    else:
        output.print_json("attest", made.to_json())
    return 0
