"""What the nearest known release had and this one has not: sites, parts of sites, files. Loss is an event.

``overlays/known_sites/<release>.json`` says, for every modeling file of a release, which recipes edit which function.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from packaging.version import InvalidVersion, Version

from ..errors import Place, nearest
from .engine import Result
from .writing import write_files

SCHEMA = "amd-overlay.losses/1"
KNOWN = Path(__file__).resolve().parent.parent / "overlays" / "known_sites"
RECORD = "losses.json"

Key = tuple[str, str]
Functions = Mapping[str, str]


@dataclass(frozen=True)
class Loss:
    """One site or part of a site that ``release`` has and the text at ``path`` has not. ``line`` is in that text."""

    path: str
    line: int | None
    what: str
    qualname: str
    release: str
    reason: str

    def __str__(self) -> str:
        return f"{Place(self.path, self.line)}: {self.what} {self.qualname}: {self.reason}"


def sites_of(results: Iterable[Result]) -> dict[str, dict[str, str]]:
    """Return, by path and function, the recipes and parts that edit it, one word for each time."""
    found: dict[str, dict[str, str]] = {}
    for result in results:
        functions: dict[str, list[str]] = {}
        for what, qualname in _keys(result).elements():
            functions.setdefault(qualname, []).append(what)
        if functions:
            found[result.path] = {name: " ".join(sorted(functions[name])) for name in sorted(functions)}
    return dict(sorted(found.items()))


def render(release: str, results: Iterable[Result]) -> bytes:
    """Return the file of a release in ``KNOWN``, one modeling file a line."""
    rows = [f" {json.dumps(path)}: {json.dumps(functions)}" for path, functions in sites_of(results).items()]
    head = f'{{"schema": "amd-overlay.known-sites/1", "release": {json.dumps(release)}, "files": {{\n'
    return (head + ",\n".join(rows) + "\n}}\n").encode("ascii")


@cache
def known_releases() -> tuple[str, ...]:
    """Return the releases whose sites are known, oldest first."""
    return tuple(sorted((file.stem for file in KNOWN.glob("*.json")), key=Version))


@cache
def known_sites(release: str) -> Mapping[str, Functions]:
    """Return the sites of one of ``known_releases``, by path and function."""
    found: dict[str, Functions] = json.loads((KNOWN / f"{release}.json").read_bytes())["files"]
    return found


def nearest_releases(version: str, *, earlier: bool = False) -> list[str]:
    """Return the known releases, nearest first: by the minor in the same major release, then by how many lie between.

    Args:
        version: any version, also a development one; what is no version is compared with the newest release.
        earlier: only those before ``version``.
    """
    known = known_releases()
    try:
        mine = Version(version)
    except InvalidVersion:
        return list(reversed(known))
    if earlier:
        known = tuple(one for one in known if Version(one) < mine)

    here = sum(Version(one) < mine for one in known)

    def distance(release: str) -> tuple[bool, int, bool]:
        other, place = Version(release), known.index(release)
        between = here - 1 - place if place < here else place - here
        away = other.major != mine.major
        return away, between if away else abs(other.minor - mine.minor), other > mine

    return sorted(known, key=distance)


def find_losses(
    version: str, results: Sequence[Result], *, paths: Collection[str] = (), earlier: bool = False
) -> tuple[Loss, ...]:
    """Compare results with the nearest known release of each file.

    Args:
        version: the release that the results are of.
        results: what the recipes made of its files.
        paths: every modeling file of the release, where all were made: a known file that is not among them is gone.
        earlier: compare with a release before ``version``.
    """
    releases = nearest_releases(version, earlier=earlier)
    found: list[Loss] = []
    for result in results:
        release = next((one for one in releases if result.path in known_sites(one)), None)
        if release is not None:
            found += _losses(result, known_sites(release)[result.path], release)
    if paths and releases:
        for path, functions in known_sites(releases[0]).items():
            if path not in paths:
                count = sum(len(words.split()) for words in functions.values())
                reason = f"the file is gone, with {count} sites and parts of sites"
                found.append(Loss(path, None, "file", "", releases[0], reason))
    return tuple(found)


def _keys(result: Result) -> Counter[Key]:
    return Counter(key for outcome in result.outcomes for key in outcome.keys)


def _losses(result: Result, known: Functions, release: str) -> Iterator[Loss]:
    had = Counter((what, qualname) for qualname, words in known.items() for what in words.split())
    now = _keys(result)
    missing, more = had - now, now - had
    # The same recipe at another function of the file: the code has moved, nothing is lost.
    moved = Counter(what for what, _ in more.elements())
    functions = _functions(result.stock) if missing else {}
    # What has gone with its function is the first to have moved to another one.
    for what, qualname in sorted(missing.elements(), key=lambda key: (key[0], key[1] in functions, key[1])):
        if moved[what]:
            moved[what] -= 1
            continue
        line, reason = _reason(result, what, qualname, functions)
        yield Loss(result.path, line, what, qualname, release, reason)


def _reason(result: Result, what: str, qualname: str, functions: Mapping[str, int]) -> tuple[int | None, str]:
    recipe, _, part = what.partition(".")
    outcome = next(one for one in result.outcomes if one.recipe == recipe)
    if part:
        for name, line in outcome.sites:
            if name == qualname:
                return line, f"the site is there without its {part}"
    for one in outcome.declined:
        if one.qualname == qualname:
            return one.line, one.reason
    if qualname in functions:
        return functions[qualname], outcome.reason or "the shape is gone"
    close = nearest(qualname, functions)
    return functions.get(close or ""), "the function is gone" + (f"; nearest: {close}" if close else "")


def _functions(data: bytes) -> dict[str, int]:
    """The line of every function, methods with the name of their class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(data)
    found: dict[str, int] = {}

    def visit(body: Sequence[ast.AST], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[prefix + node.name] = node.lineno
            elif isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.If, ast.Try)):
                visit([*node.body, *node.orelse], prefix)

    visit(tree.body, "")
    return found


def grouped(losses: Sequence[Loss]) -> list[tuple[str, list[Loss]]]:
    """Group losses by what is lost and why, the largest group first."""
    groups: dict[str, list[Loss]] = {}
    for one in losses:
        cause = one.reason.split("; nearest:")[0].split(", with ")[0]
        groups.setdefault(f"{one.what}: {cause} (compared with {one.release})", []).append(one)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def lines(losses: Sequence[Loss], most: int | None = None) -> Iterator[str]:
    """The report for people: a line per cause, then its places; at most ``most`` places of a cause."""
    for cause, listed in grouped(losses):
        yield f"lost {len(listed)} x {cause}"
        for one in listed[:most]:
            yield f"  {one}"
        if most is not None and len(listed) > most:
            yield f"  and {len(listed) - most} more; -v lists them"


def as_json(losses: Sequence[Loss]) -> list[dict[str, object]]:
    """The losses for programs."""
    return [asdict(one) for one in losses]


def record(folder: Path, version: str, losses: Sequence[Loss]) -> None:
    """Write the accepted losses beside generated files."""
    document = {"schema": SCHEMA, "release": version, "losses": as_json(losses)}
    write_files(folder, {RECORD: (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii")})
