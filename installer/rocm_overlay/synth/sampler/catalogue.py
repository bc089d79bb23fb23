"""The operator lists as values: data/operators/*.toml, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rocm_overlay.errors import BundleError, UsageError

from .. import toml
from .expressions import evaluate, evaluate_shape

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
class Form:
    """One way to write an operator; docs/synth.md says what the fields mean."""

    inputs: tuple[str, ...]
    output: str | None = None
    other: bool = False
    pick: dict[str, list[Any]] = field(default_factory=dict)
    when: tuple[str, ...] = ()
    init: str = ""
    call: str = ""
    shape: str = "..."
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """An operator by the name that torch gives it (a compound one: that of its class or function) and its forms.

    One without forms can be asked of a language model; the offline composer cannot write it.
    """

    name: str
    category: str
    weight: int = 1
    forms: tuple[Form, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of values that some form of it takes."""
        return frozenset(kind for form in self.forms for kind in form.inputs)


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

    def written(self) -> Catalogue:
        """Return the lists without the operators that have only a name."""
        kept = {kind: tuple(one for one in operators if one.forms) for kind, operators in self.operators.items()}
        return Catalogue(kept, self.helpers)

    def described(self) -> dict[str, list[str]]:
        """Say what sandbox.labels must know of the lists: all names, the compound ones, and what those are made of."""
        drawn = [one.name for category in CATEGORIES[:3] for one in self.operators[category]]
        compounds = self.names("compound")
        return {"names": drawn, "compounds": compounds, "helpers": sorted({*compounds, *self.helpers})}

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
def load(folder: Path = DATA / "operators", extra: Path | None = None) -> Catalogue:
    """Read and check the lists. ``extra`` is a file of the user's, whose entries say their ``category`` themselves.

    Raises:
        BundleError: a list of ours is missing, broken, or names something that does not exist.
        UsageError: the user's file is.
    """
    entries = {category: list(toml.read(folder / f"{category}.toml").get("operator", ())) for category in CATEGORIES}
    paths = {category: folder / f"{category}.toml" for category in CATEGORIES}
    helpers = {one["name"]: _helper(one) for one in toml.read(folder / "helpers.toml").get("helper", ())}
    operators = {category: _merged(entries[category], category, helpers, paths[category]) for category in CATEGORIES}
    made = Catalogue(operators, helpers)
    return made if extra is None else _extended(made, extra)


def _extended(lists: Catalogue, path: Path) -> Catalogue:
    """Add a file of the user's: entries as in ours, with a category; names alone, as in ``core_operators = [...]``."""
    try:
        table = toml.read(path)
        entries: list[dict[str, Any]] = [dict(one) for one in table.get("operator", ())]
        for category in CATEGORIES[:3]:
            entries += [{"name": name, "category": category} for name in table.get(f"{category}_operators", ())]
        allowed = {"operator", "helper", *(f"{category}_operators" for category in CATEGORIES[:3])}
        if set(table) - allowed:
            raise ValueError(f"unknown keys {', '.join(sorted(set(table) - allowed))}")
        helpers = {**lists.helpers, **{one["name"]: _helper(one) for one in table.get("helper", ())}}
        by_category: dict[str, list[dict[str, Any]]] = {category: [] for category in CATEGORIES}
        for entry in entries:
            category = entry.pop("category", "core")
            if category not in by_category:
                raise ValueError(f"operator {entry.get('name')}: category is {category!r}, not one of {CATEGORIES}")
            by_category[category].append(entry)
        added = {kind: _merged(mine, kind, helpers, path) for kind, mine in by_category.items()}
    except (BundleError, KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            "bad-operators-file",
            f"operators_file {path} cannot be used: {said}",
            remedy='correct it; docs/synth.md, "Operators as data", shows an entry',
            paths=[path],
        ) from error
    new = {one.name for operators in added.values() for one in operators}
    return Catalogue(
        {kind: (*(o for o in lists.operators[kind] if o.name not in new), *added[kind]) for kind in CATEGORIES}, helpers
    )


def _helper(entry: dict[str, Any]) -> Helper:
    return Helper(entry["name"], entry["code"].strip("\n"), tuple(entry.get("needs", ())))


def _merged(
    entries: list[dict[str, Any]], category: str, helpers: dict[str, Helper], path: Path
) -> tuple[Operator, ...]:
    """Entries of one name are forms of one operator."""
    found: dict[str, list[Form]] = {}
    weights: dict[str, int] = {}
    for entry in entries:
        name = entry.get("name", "(no name)")
        _check(name, entry, category, helpers, path)
        weights[name] = weights.get(name, 0) + entry.get("weight", 1)
        forms = found.setdefault(name, [])
        if "inputs" in entry:
            kept = {key: value for key, value in entry.items() if key not in ("name", "weight")}
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in kept.items()}
            forms.append(Form(**values))
    return tuple(Operator(name, category, weights[name], tuple(forms)) for name, forms in found.items())


def _check(name: str, entry: dict[str, Any], category: str, helpers: dict[str, Helper], path: Path) -> None:
    problem = ""
    written = any(key in entry for key in ("init", "call", "inputs"))
    if set(entry) - _KEYS:
        problem = f"unknown keys {', '.join(sorted(set(entry) - _KEYS))}"
    elif not isinstance(name, str) or name == "(no name)":
        problem = "it has no name"
    elif written and (not entry.get("inputs") or not {*entry["inputs"], entry.get("output", "seq")} <= set(KINDS)):
        problem = f"inputs and output must be of {', '.join(KINDS)}"
    elif not (entry.get("init") or entry.get("call")) and (written or category == "bridges"):
        problem = "neither init nor call"
    elif not set(entry.get("uses", ())) <= set(helpers):
        problem = f"uses an unknown helper of {', '.join(entry['uses'])}"
    problem = problem or (_wrong_expression(entry) if written else "")
    if problem:
        raise BundleError("bad-operator", f"{path}: operator {name}: {problem}", remedy="correct the entry")


def _wrong_expression(entry: dict[str, Any]) -> str:
    """Try an entry's expressions on a value of each kind that it takes; return what is wrong with them, or ""."""
    for kind in entry["inputs"]:
        sizes = dict.fromkeys(KINDS[kind], 16)
        names: dict[str, Any] = {**sizes, **{key: values[0] for key, values in entry.get("pick", {}).items()}}
        try:
            for condition in entry.get("when", ()):
                evaluate(condition, names)
            evaluate_shape(entry.get("shape", "..."), tuple(sizes.values()), names)
            for text in (entry.get("init", ""), entry.get("call", "")):
                text.format(**names, x="x", y="y", m="m")
        except (KeyError, IndexError, ValueError, SyntaxError, TypeError, ZeroDivisionError) as error:
            return f"for a value of kind {kind}, an expression fails: {type(error).__name__}: {error}"
    return ""
