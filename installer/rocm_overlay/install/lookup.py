"""Which overlay serves a module: one answer for verify, qualify, bench, profile, export and the hook.

A model names classes and model types. The classes lie in a modeling file of the installed transformers, whatever the
model type is called (``gemma3_text`` lies in ``models/gemma3``); the receipt, or else the bundle, has the overlay of
that file and the text that it was made from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ForeignError, UnsupportedError
from .session import open_place, read_environment
from .state import EDITED, Environment, Facts
from .target import resolve
from .transaction.receipt import BUNDLE
from .transaction.states import FileState

_MODEL_TYPE = re.compile(rb"""^    model_type(?:\s*:[^=\n]+)?\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
_OTHER_FRAMEWORKS = ("modeling_tf_", "modeling_flax_")


@dataclass(frozen=True)
class Pair:
    """Both texts of one modeling file: the base, which revert returns, and its overlay; one of them is installed."""

    path: str
    model: str
    origin: str
    base_sha256: str
    overlay_sha256: str
    installed: str  # "stock" or "overlay"
    base: bytes
    overlay: bytes


def environment_of(package: Path, bundle: Path) -> Environment:
    """Return what is known about an installed package, for looking only."""
    target = resolve(site_packages=package.parent, writes=False)
    return read_environment(open_place(target), target, bundle)


def paths_of(package: Path, names: Sequence[str], managed: Collection[str] = ()) -> list[str]:
    """Return the modeling files, below the package, that hold these classes or belong to these model types.

    A name with a capital is a class (``LlamaForCausalLM``), any other one a model type (``gemma3_text``) or the folder
    of a model. ``managed`` are paths that count although nothing may be there.
    """
    classes = [name for name in names if name[:1].isupper()]
    types = [name for name in names if not name[:1].isupper()]
    declared = model_types(package) if types else {}
    folders = {folder for name in types for folder in _folders(declared, package, name)}
    found = {path for folder in folders for path in _modeling_files(package, folder)}
    found |= {path for path in managed if path.split("/")[1] in folders}
    there = [package / path for path in found if (package / path).is_file()]
    missing = [name for name in classes if not any(_defines(file, name) for file in there)]
    if missing:
        everywhere = [path for folder in sorted((package / "models").glob("*")) if folder.is_dir()
                      for path in _modeling_files(package, folder.name)]  # fmt: skip
        found |= {path for path in everywhere for name in missing if _defines(package / path, name)}
    return sorted(found)


def model_types(package: Path) -> dict[str, list[str]]:
    """Return the folders of ``models/`` by every model type that their configuration classes declare."""
    found: dict[str, list[str]] = {}
    for file in sorted((package / "models").glob("*/configuration_*.py")):
        for name in _MODEL_TYPE.findall(file.read_bytes()):
            folders = found.setdefault(name.decode("utf-8"), [])
            if file.parent.name not in folders:
                folders.append(file.parent.name)
    return found


def pairs(environment: Environment, names: Sequence[str]) -> list[Pair]:
    """Return both texts of every file of these names that has an overlay.

    Raises UnsupportedError where none has one, or a stock text none was made for; ForeignError where one was edited.
    """
    paths = paths_of(environment.target.package, names, {*environment.bundled(), *environment.paths()})
    found = [one for one in (pair(environment, path) for path in paths) if one is not None]
    if not found:
        known = sorted({environment.model_of(path) for path in (*environment.bundled(), *environment.paths())})
        raise UnsupportedError(
            "no-overlay",
            f"there is no overlay for {names[0]!r} in transformers {environment.target.version} of "
            f"{environment.target.package}",
            remedy=f"models with an overlay: {', '.join(known)}; for others run `overlay gen --all --from-installed -o "
            "DIR` and `overlay install --generated DIR`",
            paths=[environment.target.package / path for path in paths],
        )
    return found


def pair(environment: Environment, path: str) -> Pair | None:
    """Return both texts of one file, None where it has no overlay. Raises ForeignError, UnsupportedError."""
    facts = environment.facts(path)
    state, found = facts.state, facts.observed
    if state is FileState.OVERLAY and found is not None:
        if facts.receipt is not None:
            base, digest = environment.base_text(path, facts.receipt.stock.sha256), facts.receipt.stock.sha256
        else:
            assert facts.shipped is not None
            base, digest = facts.shipped.stock_bytes(), facts.shipped.stock_sha256
        origin = facts.origin or BUNDLE
        return Pair(path, environment.model_of(path), origin, digest, found.entry.sha256, "overlay", base, found.data)
    hash_decides = state is FileState.OTHER_STOCK and facts.recorded is None
    if found is not None and facts.entry is not None and (state is FileState.STOCK or hash_decides):
        entry = facts.entry
        return Pair(
            path, entry.model, BUNDLE, entry.stock_sha256, entry.overlay_sha256, "stock", found.data,
            entry.overlay_bytes(),
        )  # fmt: skip
    if facts.receipt is None and not facts.entries and state is not FileState.OVERLAY_OTHER:
        return None
    _refuse(environment, facts)
    return None


def _refuse(environment: Environment, facts: Facts) -> None:
    """Say the same as install about a file that is neither stock nor one of our overlays."""
    target = environment.target
    where = f"{target.package / facts.path} of transformers {target.version} is {facts.said}"
    if facts.state in EDITED or facts.state is FileState.MISSING:
        raise ForeignError(
            "foreign-file",
            f"{where} (sha256 {(facts.digest or 'none')[:12]}), so there is no overlay of it to look at",
            remedy="run `overlay status`; `overlay install --adopt` makes an overlay from an edited text, and a "
            "reinstall of transformers brings the stock text back",
            paths=[target.package / facts.path],
        )
    if facts.state is FileState.UNSEEN:
        releases = sorted({release for entry in facts.entries for release in entry.releases})
        raise UnsupportedError(
            "unknown-text",
            f"{where} (sha256 {(facts.digest or 'none')[:12]})",
            remedy=f"install one of the releases with an overlay ({', '.join(releases)}), or run `overlay gen --all "
            "--from-installed -o DIR` and `overlay install --generated DIR`",
            paths=[target.package / facts.path],
        )


def _folders(types: dict[str, list[str]], package: Path, name: str) -> list[str]:
    declared = types.get(name, [])
    plain = name.replace("-", "_")
    if plain in declared or (not declared and (package / "models" / plain).is_dir()):
        return [plain]
    return declared


def _modeling_files(package: Path, folder: str) -> Iterator[str]:
    for file in sorted((package / "models" / folder).glob("modeling_*.py")):
        if not file.name.startswith(_OTHER_FRAMEWORKS):
            yield f"models/{folder}/{file.name}"


def _defines(file: Path, name: str) -> bool:
    return re.search(rb"^class %s\b" % re.escape(name.encode()), file.read_bytes(), re.MULTILINE) is not None
