"""Drift as text and as JSON, by cause: what happened to many files is told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...console import facts
from .compare import Drift, FileDrift, SiteDrift
from .sites import EditedSite, short_hash

LABELS = ("old stock", "old edit ", "new stock", "new edit ")
# How many places of one cause the text shows where nobody asks for all of them.
PLACES = 8


@dataclass
class Group:
    """What stands the same way for the same cause; ``sites`` is empty where only the file changed."""

    status: Drift
    cause: str
    files: list[str] = field(default_factory=list)
    sites: list[tuple[str, SiteDrift]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """One line: how it stands, how many files, and why."""
        recipes = ", ".join(dict.fromkeys(site.recipe for _, site in self.sites))
        count = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
        sites = f", {len(self.sites)} sites" if len(self.sites) > len(self.files) else ""
        return f"{name(self.status)}: {count}{sites}: {self.cause}" + (f" [{recipes}]" if recipes else "")

    @property
    def example(self) -> SiteDrift | None:
        """The first site whose texts a person should see, if any."""
        return next((site for _, site in self.sites if needs_review(site)), None)


def worst(files: Sequence[FileDrift]) -> Drift:
    """The status of the whole comparison."""
    return max((one.status for one in files), default=Drift.SAME)


def name(status: Drift) -> str:
    """``same``, ``regenerable``, ``degraded`` or ``conflict``."""
    return status.name.lower()


def counts(files: Sequence[FileDrift]) -> str:
    """One line: how many files and looked-at sites stand how."""
    sites = [site for one in files for site in one.sites]
    per_file = ", ".join(f"{sum(one.status is status for one in files)} {name(status)}" for status in Drift)
    per_site = ", ".join(f"{sum(one.status is status for one in sites)} {name(status)}" for status in Drift)
    return f"{len(files)} file{'s' * (len(files) != 1)}: {per_file}; sites of changed files: {per_site}"


def groups(files: Sequence[FileDrift]) -> list[Group]:
    """Everything that is not the same, by cause: the worst first, then the most frequent."""
    found: dict[tuple[Drift, str], Group] = {}
    for one in files:
        changed = [site for site in one.sites if site.status is not Drift.SAME]
        if one.status is not Drift.SAME and not changed:
            found.setdefault((one.status, one.reason), Group(one.status, one.reason)).files.append(one.path)
        for site in changed:
            group = found.setdefault((site.status, site.cause), Group(site.status, site.cause))
            group.sites.append((one.path, site))
            if one.path not in group.files:
                group.files.append(one.path)
    return sorted(found.values(), key=lambda group: (-group.status, -len(group.files), group.cause))


def lines(files: Sequence[FileDrift], most: int | None = PLACES, *, texts: bool = True) -> Iterator[str]:
    """The text report: per cause its places, at most ``most`` (None: all), and with ``texts`` those of one of them."""
    for group in groups(files):
        yield group.title
        places = [_place(path, site) for path, site in group.sites] or group.files
        for place in places[:most]:
            yield f"  {place}"
        if most is not None and len(places) > most:
            yield f"  and {len(places) - most} more; -v lists them"
        if texts and group.example is not None:
            yield from _texts(group.example)


def _place(path: str, site: SiteDrift) -> str:
    where = site.new or site.old
    more = f": {site.reason}" if site.reason != site.cause and not site.reason.startswith(site.cause) else ""
    return f"{path}{f':{where.line}' if where else ''}: {site.recipe} {site.qualname}{more}"


def needs_review(site: SiteDrift) -> bool:
    """True where the text that we edit is not the text that we edited."""
    if site.status in (Drift.CONFLICT, Drift.DEGRADED):
        return True
    return site.old is not None and site.new is not None and site.old.window != site.new.window


def site_texts(site: SiteDrift) -> tuple[str, str, str, str]:
    """Old stock, our edit of it, new stock, our edit of that."""
    old, new = site.old, site.new
    return (
        old.window if old else "",
        old.edited if old else "",
        new.window if new else site.new_text or "",
        new.edited if new else "",
    )


def _texts(site: SiteDrift) -> Iterator[str]:
    for label, text in zip(LABELS, site_texts(site), strict=True):
        for line in text.splitlines() or ["(nothing)"]:
            yield f"    {label} | {line}".rstrip()


def as_json(files: Sequence[FileDrift], old: dict[str, str | None], new: dict[str, str | None]) -> dict[str, object]:
    """The report for programs."""
    return {
        "old": old,
        "new": new,
        "status": name(worst(files)),
        "groups": [
            {
                "status": name(group.status),
                "cause": group.cause,
                "recipes": list(dict.fromkeys(site.recipe for _, site in group.sites)),
                "files": group.files,
                "sites": len(group.sites),
            }
            for group in groups(files)
        ],
        "files": [
            {
                **facts(one, "path reason old_sha256 new_sha256"),
                "status": name(one.status),
                "sites": [_site(site) for site in one.sites],
            }
            for one in files
        ],
        "errors": [],
    }


def _site(site: SiteDrift) -> dict[str, object]:
    old, edit, new, new_edit = site_texts(site)
    return {
        **facts(site, "recipe qualname reason cause"),
        "status": name(site.status),
        "old": _hashes(site.old),
        "new": _hashes(site.new),
        "old_stock": old,
        "our_edit": edit,
        "new_stock": new,
        "new_edit": new_edit,
    }


def _hashes(site: EditedSite | None) -> dict[str, object] | None:
    if site is None:
        return None
    return {
        "line": site.line,
        "definition": short_hash(site.definition),
        "window": short_hash(site.window),
        "parts": sorted(site.parts),
    }
