"""The operator lists as values: data/operators/*.toml, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rocm_overlay.install.transaction.errors import BundleError

from .. import toml

DATA = Path(__file__).resolve().parents[1] / "data"
CATEGORIES = ("core", "compound", "supporting", "bridges")
# Names of the dimensions of each kind of value, outermost first.
KINDS: dict[str, tuple[str, ...]] = {
    "seq": ("b", "s", "d"),
    "heads": ("b", "n", "s", "d"),
    "image": ("b", "c", "h", "w"),
    "signal": ("b", "c", "l"),
    "volume": ("b", "c", "t", "h", "w"),
    "vec": ("b", "d"),
    "tokens": ("b", "s"),
}
_KEYS = {"name", "inputs", "output", "weight", "other", "pick", "when", "init", "call", "shape", "uses"}


@dataclass(frozen=True)
class Operator:
    """One entry of the lists; docs/synth.md says what the fields mean."""

    name: str
    category: str
    inputs: tuple[str, ...]
    output: str | None = None
    weight: int = 1
    other: bool = False
    pick: dict[str, list[Any]] = field(default_factory=dict)
    when: tuple[str, ...] = ()
    init: str = ""
    call: str = ""
    shape: str = "..."
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Helper:
    """A class or function that compound operators use: its text, and the helpers that it needs itself."""

    name: str
    code: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All operators by category, in file order, and the helpers by name."""

    operators: dict[str, tuple[Operator, ...]]
    helpers: dict[str, Helper]

    def names(self, category: str) -> list[str]:
        """Return the names of a category."""
        return [one.name for one in self.operators[category]]

    def with_helpers(self, names: list[str]) -> list[Helper]:
        """Return the named helpers and all that they need, needed ones first, each once."""
        found: dict[str, Helper] = {}

        def add(name: str) -> None:
            for need in self.helpers[name].needs:
                add(need)
            found.setdefault(name, self.helpers[name])

        for name in names:
            add(name)
        return list(found.values())


@cache
def load(folder: Path = DATA / "operators") -> Catalogue:
    """Read and check the lists.

    Raises:
        BundleError: a list is missing, broken, or names something that does not exist.
    """
    helpers = {one["name"]: _helper(one) for one in toml.read(folder / "helpers.toml").get("helper", ())}
    operators = {}
    for category in CATEGORIES:
        path = folder / f"{category}.toml"
        entries = toml.read(path).get("operator", ())
        operators[category] = tuple(_operator(entry, category, helpers, path) for entry in entries)
    return Catalogue(operators, helpers)


def _helper(entry: dict[str, Any]) -> Helper:
    return Helper(entry["name"], entry["code"].strip("\n"), tuple(entry.get("needs", ())))


def _operator(entry: dict[str, Any], category: str, helpers: dict[str, Helper], path: Path) -> Operator:
    name = entry.get("name", "(no name)")
    problem = ""
    if set(entry) - _KEYS:
        problem = f"unknown keys {', '.join(sorted(set(entry) - _KEYS))}"
    elif not entry.get("inputs") or not {*entry["inputs"], entry.get("output", "seq")} <= set(KINDS):
        problem = f"inputs and output must be of {', '.join(KINDS)}"
    elif not (entry.get("init") or entry.get("call")):
        problem = "neither init nor call"
    elif not set(entry.get("uses", ())) <= set(helpers):
        problem = f"uses an unknown helper of {', '.join(entry['uses'])}"
    if problem:
        raise BundleError("bad-operator", f"{path}: operator {name}: {problem}", remedy="correct the entry")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Operator(category=category, **values)
