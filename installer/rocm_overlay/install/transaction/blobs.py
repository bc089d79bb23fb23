"""Content copies named by their sha256: what the way back is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...errors import UnrecoveredError
from .entry import is_sha256, sha256
from .place import BLOBS, Place, new_id

SecondSource = Callable[[str, str], "bytes | None"]
"""(package path, sha256) -> the stock text, from outside the environment; None where it is unknown there."""


def no_second_source(path: str, digest: str) -> bytes | None:
    """Know no text."""
    return None


def put(place: Place, data: bytes) -> None:
    """Keep a copy of ``data``. An existing blob counts only if its bytes still have the hash of its name."""
    digest = sha256(data)
    if get(place, digest) is None:
        place.put_state(f"{BLOBS}/{digest}", data, new_id(), mode=0o444)


def get(place: Place, digest: str) -> bytes | None:
    """Return a blob, None where it is missing or damaged."""
    data = place.tree.read(f"{BLOBS}/{digest}")
    return data if data is not None and sha256(data) == digest else None


def fetch(place: Place, path: str, digest: str, second_source: SecondSource) -> bytes:
    """Return a text from the blobs or else from the second source. Raises UnrecoveredError where neither has it."""
    data = get(place, digest)
    if data is None:
        data = second_source(path, digest)
    if data is None or sha256(data) != digest:
        raise UnrecoveredError(
            "text-lost",
            f"The text {digest[:12]} of {place.target(path)} is neither in {place.tree.root / BLOBS} nor in the "
            "bundle.",
            remedy="reinstall transformers with your package manager (for example "
            "`pip install --force-reinstall --no-deps transformers==<version>`), then run `overlay status`",
            paths=[place.tree.root / place.target(path)],
        )
    return data


def drop(place: Place, digest: str) -> None:
    """Remove one blob, where it is there."""
    place.tree.remove(f"{BLOBS}/{digest}")


def collect(place: Place, keep: Collection[str]) -> None:
    """Remove every blob that is not in ``keep``."""
    for name in place.tree.names(BLOBS):
        if is_sha256(name) and name not in keep:
            drop(place, name)
