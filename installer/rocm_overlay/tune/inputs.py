"""What options name: a model's config, the target aiter's rules, the tables of a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, alike
from ..files import model_path, model_remedy
from .device import Device, only_device, parse_device
from .installed import Aiter, find_aiter, need_aiter, rules_of
from .lookup import TableIndex
from .merge import Merged, Source, merge_files
from .places import bundle, bundled_tables
from .schema import LATEST, Rules, rules_for


def model_config(name: str) -> Path:
    """Return the config a user names: a file, a model folder, or one of the bundled configs."""
    path = model_path(name)
    if path.exists():
        return path
    bundled = bundle() / "configs" / f"{name.lower()}.json"
    if bundled.is_file():
        return bundled
    known = sorted(file.stem for file in (bundle() / "configs").glob("*.json"))
    near = alike(name, known) or known[:3]
    raise UsageError(
        "no-config",
        f"{name} is neither a config.json, a model folder nor one of the {len(known)} bundled configs",
        remedy=model_remedy(name, f"pass a model folder, or a bundled name such as {', '.join(near)}"),
        paths=(name,),
    )


def target_device(gpu: str | None) -> Device:
    return parse_device(gpu) if gpu else only_device()


@dataclass(frozen=True)
class Target:
    """The aiter that will read a table: installed or only named by its version."""

    aiter: Aiter | None
    rules: Rules


def target_aiter(folder: Path | None, version: str | None) -> Target:
    """Return the target; a stated version beats the installed aiter, the newest known release stands in for both."""
    aiter = find_aiter(folder)
    if version:
        return Target(aiter, rules_for(version))
    return Target(aiter, rules_of(aiter) if aiter else rules_for(LATEST))


def shipped_sources(tables: Iterable[Path], folder: Path | None) -> list[Source]:
    """Return the named tables, or those of the installed aiter."""
    named = list(tables)
    return [Source(path, "shipped") for path in (named or need_aiter(folder).tables())]


def index_for(device: Device, tables: Sequence[Path], folder: Path | None, rules: Rules) -> tuple[TableIndex, Merged]:
    """Return what aiter would find on a device: named tables, else those installed and bundled, merged."""
    sources = shipped_sources(tables, folder)
    if not tables:
        sources += [Source(path, "shipped") for path in bundled_tables(device)]
    merged = merge_files(sources, device, rules)
    return TableIndex(device, merged.rows), merged
