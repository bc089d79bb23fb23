"""Drift as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .compare import Drift, FileDrift, SiteDrift
from .sites import EditedSite, short_hash

SCHEMA = "amd-overlay.drift/1"


def worst(files: Sequence[FileDrift]) -> Drift:
    """The status of the whole comparison."""
    return max((one.status for one in files), default=Drift.SAME)


def name(status: Drift) -> str:
    """``same``, ``regenerable`` or ``conflict``."""
    return status.name.lower()


def counts(files: Sequence[FileDrift]) -> str:
    """One line: how many files and looked-at sites stand how."""
    sites = [site for one in files for site in one.sites]
    per_file = ", ".join(f"{sum(one.status is status for one in files)} {name(status)}" for status in Drift)
    per_site = ", ".join(f"{sum(one.status is status for one in sites)} {name(status)}" for status in Drift)
    return f"{len(files)} files: {per_file}; sites of changed files: {per_site}"


def lines(files: Sequence[FileDrift]) -> Iterator[str]:
    """The text report: files that are not the same, their sites, and three texts where a person must look."""
    for one in files:
        if one.status is Drift.SAME:
            continue
        yield f"{one.path}: {name(one.status)} ({one.reason})"
        for site in one.sites:
            if site.status is Drift.SAME:
                continue
            where = site.old or site.new
            line = f":{where.line}" if where else ""
            yield f"  {one.path}{line}: {site.recipe} {site.qualname}: {name(site.status)} ({site.reason})"
            if needs_review(site):
                yield from _three(site)


def needs_review(site: SiteDrift) -> bool:
    """True where the text that we edit is not the text that we edited."""
    return site.status is Drift.CONFLICT or (site.old is not None and site.new is not None and _window_changed(site))


def _window_changed(site: SiteDrift) -> bool:
    return site.old is not None and site.new is not None and site.old.window != site.new.window


def texts(site: SiteDrift) -> tuple[str, str, str]:
    """Old stock, our edit, new stock."""
    old = site.old.window if site.old else ""
    edit = site.old.edited if site.old else site.new.edited if site.new else ""
    new = site.new.window if site.new else site.new_text or ""
    return old, edit, new


def _three(site: SiteDrift) -> Iterator[str]:
    for label, text in zip(("old stock", "our edit ", "new stock"), texts(site), strict=True):
        for line in text.splitlines() or ["(nothing)"]:
            yield f"    {label} | {line}".rstrip()


def as_json(files: Sequence[FileDrift], old: dict[str, str | None], new: dict[str, str | None]) -> dict[str, object]:
    """The report for programs."""
    return {
        "schema": SCHEMA,
        "old": old,
        "new": new,
        "status": name(worst(files)),
        "files": [
            {
                "path": one.path,
                "status": name(one.status),
                "reason": one.reason,
                "old_sha256": one.old_sha256,
                "new_sha256": one.new_sha256,
                "sites": [_site(site) for site in one.sites],
            }
            for one in files
        ],
        "errors": [],
    }


def _site(site: SiteDrift) -> dict[str, object]:
    old, edit, new = texts(site)
    return {
        "recipe": site.recipe,
        "qualname": site.qualname,
        "status": name(site.status),
        "reason": site.reason,
        "old": _hashes(site.old),
        "new": _hashes(site.new),
        "old_stock": old,
        "our_edit": edit,
        "new_stock": new,
    }


def _hashes(site: EditedSite | None) -> dict[str, object] | None:
    if site is None:
        return None
    return {"line": site.line, "definition": short_hash(site.definition), "window": short_hash(site.window)}
