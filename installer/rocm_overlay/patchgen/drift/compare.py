"""Two releases, site by site: what stays, what is made anew, what lost a part, what needs a person."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from rocm_overlay.overlays.recipes import recipe_set

from ...errors import InternalError, OverlayError, nearest
from ..batch import WORTH_PROCESSES, cores, show_progress, spread
from ..cache import Cache, Store, cache_folder
from ..recipe import RecipeSet
from ..trees import Tree, read_modeling
from .causes import cause
from .sites import EditedSite, FileSites

_FILE_ALONE = "the file changed, its sites did not"


class Drift(enum.IntEnum):
    """How a site, a file or a release stands, from the best to the worst."""

    SAME = 0
    REGENERABLE = 1
    DEGRADED = 2
    CONFLICT = 3

    @property
    def exit_status(self) -> int:
        """0 same, 1 regenerable; 2 where a person must look, because something is lost."""
        return min(self, 2)


@dataclass(frozen=True)
class SiteDrift:
    """One site: ``old`` and ``new`` with stock and our edit each; ``new_text`` is the function if the recipe is gone.

    ``cause`` is the reason without what differs from file to file.
    """

    status: Drift
    reason: str
    cause: str
    old: EditedSite | None
    new: EditedSite | None
    new_text: str | None = None

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self._one.recipe

    @property
    def qualname(self) -> str:
        """The function that is edited."""
        return self._one.qualname

    @property
    def _one(self) -> EditedSite:
        site = self.old or self.new
        assert site is not None
        return site


@dataclass(frozen=True)
class FileDrift:
    """One modeling file. Sites of a file with the same bytes are not looked at: they are the same."""

    path: str
    status: Drift
    reason: str
    old_sha256: str | None
    new_sha256: str | None
    sites: tuple[SiteDrift, ...] = ()


def compare(
    old: Tree,
    new: Tree,
    recipes: RecipeSet,
    models: Sequence[str] = (),
    *,
    jobs: int | None = None,
    shown: bool = False,
) -> tuple[FileDrift, ...]:
    """Compare every modeling file of two packages, or those of some models, on every core and from the cache.

    Args:
        old: the release that our edits are known of.
        new: the one to move to.
        recipes: what to apply.
        models: limit the comparison to these.
        jobs: processes; default one per core. 1 stays in this process.
        shown: tell on stderr how far it is.

    Raises:
        TargetError: no such model in either package.
        SourceError: a changed file is not stock Python source.
    """
    paths = sorted(_paths(old, new, models))
    store = Store(cache_folder(), recipes)
    found: dict[int, FileDrift | OverlayError] = {}
    tasks: list[tuple[int, _Task]] = []
    for number, path in enumerate(paths):
        task = _Task(path, _read(old, path), _read(new, path), old.label(path), new.label(path))
        if task.old is not None and task.old == task.new:
            found[number] = FileDrift(path, Drift.SAME, "same bytes", *task.hashes)
            continue
        known = _decode(store.read("drift", path, *map(str, task.hashes)))
        if known is None:
            tasks.append((number, task))
        else:
            found[number] = known
    with show_progress(len(paths), len(found), shown, "comparing") as step:

        def done(index: int, made: FileDrift | OverlayError) -> None:
            number, task = tasks[index]
            found[number] = made
            if isinstance(made, FileDrift):
                store.write(asdict(made), "drift", task.path, *map(str, task.hashes))
            step(task.path)

        tasks.sort(key=lambda one: -one[1].size)
        jobs = jobs or cores()
        if jobs < 2 or len(tasks) < WORTH_PROCESSES:
            for index, (_, task) in enumerate(tasks):
                done(index, _file(task, recipes))
        else:
            spread(_elsewhere, [(task, recipes.digest) for _, task in tasks], jobs, done)
    ordered = [found[number] for number in range(len(paths))]
    for one in ordered:
        if isinstance(one, OverlayError):
            raise one
    return tuple(one for one in ordered if isinstance(one, FileDrift))


@dataclass(frozen=True)
class _Task:
    """One path with its text in both packages, None where a package has none."""

    path: str
    old: bytes | None
    new: bytes | None
    old_label: str
    new_label: str

    @property
    def hashes(self) -> tuple[str | None, str | None]:
        old, new = (None if data is None else sha256(data).hexdigest() for data in (self.old, self.new))
        return old, new

    @property
    def size(self) -> int:
        return len(self.old or b"") + len(self.new or b"")


def _paths(old: Tree, new: Tree, models: Sequence[str]) -> set[str]:
    known = {*old.modeling_files, *new.modeling_files}
    if not models:
        return known
    chosen: set[str] = set()
    for model in models:
        mine = {path for path in known if path.startswith(f"models/{model}/")}
        chosen |= mine or {old.path_of(model)}
    return chosen


def _read(tree: Tree, path: str) -> bytes | None:
    return read_modeling(tree, path) if tree.has(path) else None


def _elsewhere(task: _Task, digest: str) -> FileDrift | OverlayError:
    """What another process does: load the released recipes, and compare one file."""
    recipes = recipe_set()
    if recipes.digest != digest:
        return InternalError("the recipes changed while they were applied", remedy="run again")
    return _file(task, recipes)


def _file(task: _Task, recipes: RecipeSet) -> FileDrift | OverlayError:
    cache = Cache(cache_folder(), recipes)
    old = None if task.old is None else FileSites(task.old, task.path, task.old_label, recipes, cache)
    new = None if task.new is None else FileSites(task.new, task.path, task.new_label, recipes, cache)
    try:
        return _compared(task, old, new)
    except OverlayError as error:
        return error


def _compared(task: _Task, old: FileSites | None, new: FileSites | None) -> FileDrift:
    if old is None or new is None:
        sites = _one_sided(old, new)
        where = "is new" if old is None else "is gone"
        if not sites:
            return FileDrift(task.path, Drift.SAME, f"the file {where} and has no sites", *task.hashes)
        return FileDrift(task.path, max(one.status for one in sites), f"the file {where}", *task.hashes, sites)
    sites = _sites(old, new)
    if not sites:
        return FileDrift(task.path, Drift.SAME, "no sites in either release", *task.hashes)
    worst = max(one.status for one in sites)
    if worst is Drift.SAME:
        return FileDrift(task.path, Drift.REGENERABLE, _FILE_ALONE, *task.hashes, sites)
    return FileDrift(task.path, worst, "sites changed", *task.hashes, sites)


def _one_sided(old: FileSites | None, new: FileSites | None) -> tuple[SiteDrift, ...]:
    if new is not None:
        why = "new site in a new file"
        return tuple(SiteDrift(Drift.REGENERABLE, why, why, None, one) for one in new.sites.values())
    assert old is not None
    why = "the file is gone"
    return tuple(SiteDrift(Drift.CONFLICT, why, why, one, None) for one in old.sites.values())


def _sites(old: FileSites, new: FileSites) -> tuple[SiteDrift, ...]:
    added = {key: site for key, site in new.sites.items() if key not in old.sites}
    found = [_site(site, new, added) for site in old.sites.values()]
    found += [SiteDrift(Drift.REGENERABLE, "new site", "new site", None, site) for site in added.values()]
    return tuple(found)


def _site(site: EditedSite, new: FileSites, added: dict[tuple[str, str], EditedSite]) -> SiteDrift:
    """How one site stands; one that went with its function to another one is taken out of ``added``."""
    now = new.sites.get(site.key)
    if now is None:
        text = new.definition(site.qualname)
        moved = _moved(site, added) if text is None else None
        if moved is None:
            reason = _lost(site, new, text)
            return SiteDrift(Drift.CONFLICT, reason, reason.split("; nearest:")[0], site, None, text)
        now = added.pop(moved.key)
        why = f"moved to {now.qualname}"
        return _degraded(site, now) or SiteDrift(Drift.REGENERABLE, why, "the function has another name", site, now)
    degraded = _degraded(site, now)
    if degraded is not None:
        return degraded
    if now.definition == site.definition:
        return SiteDrift(Drift.SAME, "the definition did not change", "", site, now)
    if now.window == site.window:
        why = "the definition changed outside the edited lines"
        return SiteDrift(Drift.REGENERABLE, why, why, site, now)
    why = cause(site, now)
    return SiteDrift(Drift.REGENERABLE, f"{why}; the recipe still fits: review", why, site, now)


def _moved(site: EditedSite, added: dict[tuple[str, str], EditedSite]) -> EditedSite | None:
    """The new site of the same recipe whose function is most alike."""
    mine = {one.qualname: one for one in added.values() if one.recipe == site.recipe}
    if not mine:
        return None
    return mine[nearest(site.qualname, mine) or next(iter(mine))]


def _degraded(site: EditedSite, now: EditedSite) -> SiteDrift | None:
    """A recipe that still fits, and does less than before."""
    lost = sorted(set(site.parts) - set(now.parts))
    if lost:
        why = f"recipe {site.recipe} fits without its {' and '.join(lost)}"
    elif now.count < site.count:
        why = f"recipe {site.recipe} edits {now.count} of {site.count} sites of the function"
    else:
        return None
    return SiteDrift(Drift.DEGRADED, why, why, site, now)


def _lost(site: EditedSite, new: FileSites, text: str | None) -> str:
    if text is not None:
        return f"recipe {site.recipe} no longer fits: {new.declined(site.key) or 'the shape is gone'}"
    close = nearest(site.qualname, new.qualnames)
    return f"{site.qualname} is gone" + (f"; nearest: {close}" if close else "")


def _decode(document: Any) -> FileDrift | None:
    """What ``dataclasses.asdict`` made of a file, None where it is not that."""
    try:
        return FileDrift(
            document["path"],
            Drift(document["status"]),
            document["reason"],
            document["old_sha256"],
            document["new_sha256"],
            tuple(_site_of(one) for one in document["sites"]),
        )
    except (TypeError, KeyError, ValueError):
        return None


def _site_of(document: dict[str, Any]) -> SiteDrift:
    old, new = (EditedSite(**document[side]) if document[side] is not None else None for side in ("old", "new"))
    status, reason, why = Drift(document["status"]), document["reason"], document["cause"]
    return SiteDrift(status, reason, why, old, new, document["new_text"])
