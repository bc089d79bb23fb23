"""Two releases, site by site: what stays, what is made anew, what needs a person."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import nearest
from ..recipe import RecipeSet
from ..trees import Tree, read_modeling
from .sites import EditedSite, FileSites


class Drift(enum.IntEnum):
    """How a site, a file or a release stands; the numbers are the exit codes."""

    SAME = 0
    REGENERABLE = 1
    CONFLICT = 2


@dataclass(frozen=True)
class SiteDrift:
    """One site: ``old`` stock and our edit, ``new`` stock. ``new_text`` is what is there now if the recipe is not."""

    status: Drift
    reason: str
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
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[FileDrift, ...]:
    """Compare every modeling file of two packages, or those of some models.

    Raises:
        TargetError: no such model in either package.
        SourceError: a changed file is not stock Python source.
    """
    paths = sorted(_paths(old, new, models))
    found = []
    for number, path in enumerate(paths, 1):
        found.append(_file(path, _read(old, path, recipes), _read(new, path, recipes)))
        if number % 50 == 0:
            progress(f"{number} of {len(paths)} files")
    return tuple(found)


def _paths(old: Tree, new: Tree, models: Sequence[str]) -> set[str]:
    known = {*old.modeling_files, *new.modeling_files}
    if not models:
        return known
    chosen: set[str] = set()
    for model in models:
        mine = {path for path in known if path.startswith(f"models/{model}/")}
        chosen |= mine or {old.path_of(model)}
    return chosen


def _read(tree: Tree, path: str, recipes: RecipeSet) -> FileSites | None:
    if not tree.has(path):
        return None
    return FileSites(read_modeling(tree, path), path, tree.label(path), recipes)


def _file(path: str, old: FileSites | None, new: FileSites | None) -> FileDrift:
    hashes = (old.sha256 if old else None, new.sha256 if new else None)
    if old and new and old.data == new.data:
        return FileDrift(path, Drift.SAME, "same bytes", *hashes)
    if old is None or new is None:
        sites = _one_sided(old, new)
        where = "is new" if old is None else "is gone"
        if not sites:
            return FileDrift(path, Drift.SAME, f"the file {where} and has no sites", *hashes)
        return FileDrift(path, max(one.status for one in sites), f"the file {where}", *hashes, sites)
    sites = _sites(old, new)
    if not sites:
        return FileDrift(path, Drift.SAME, "no sites in either release", *hashes)
    worst = max(one.status for one in sites)
    if worst is Drift.SAME:
        return FileDrift(path, Drift.REGENERABLE, "the file changed, its sites did not", *hashes, sites)
    return FileDrift(path, worst, "sites changed", *hashes, sites)


def _one_sided(old: FileSites | None, new: FileSites | None) -> tuple[SiteDrift, ...]:
    if new is not None:
        return tuple(SiteDrift(Drift.REGENERABLE, "new site in a new file", None, one) for one in new.sites.values())
    assert old is not None
    return tuple(SiteDrift(Drift.CONFLICT, "the file is gone", one, None) for one in old.sites.values())


def _sites(old: FileSites, new: FileSites) -> tuple[SiteDrift, ...]:
    found = [_site(site, new) for site in old.sites.values()]
    found += [
        SiteDrift(Drift.REGENERABLE, "new site", None, site) for key, site in new.sites.items() if key not in old.sites
    ]
    return tuple(found)


def _site(site: EditedSite, new: FileSites) -> SiteDrift:
    now = new.sites.get(site.key)
    if now is None:
        text = new.definition(site.qualname)
        return SiteDrift(Drift.CONFLICT, _lost(site, new, text), site, None, text)
    if now.definition == site.definition:
        return SiteDrift(Drift.SAME, "the definition did not change", site, now)
    if now.window == site.window:
        return SiteDrift(Drift.REGENERABLE, "the definition changed outside the edited lines", site, now)
    return SiteDrift(Drift.REGENERABLE, "the edited lines changed and the recipe still fits: review", site, now)


def _lost(site: EditedSite, new: FileSites, text: str | None) -> str:
    if text is not None:
        return f"recipe {site.recipe} no longer fits: {new.declined(site.key) or 'the shape is gone'}"
    close = nearest(site.qualname, new.qualnames)
    return f"{site.qualname} is gone" + (f"; nearest: {close}" if close else "")
