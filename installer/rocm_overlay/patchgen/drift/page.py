"""Drift as one HTML file that needs nothing else: no script, no font, no link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .compare import FileDrift, SiteDrift
from .report import LABELS, counts, groups, name, site_texts, worst
from .sites import EditedSite, short_hash

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; font-family: ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border: 1px solid #ccc; padding: .4rem .6rem; vertical-align: top; text-align: left; }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.45 ui-monospace, monospace; }
.same { color: #1b6e3c; } .regenerable { color: #8a5a00; } .degraded, .conflict { color: #a11a1a; }
small { color: #555; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e6e6e6; } th, td { border-color: #444; }
 .same { color: #6fd08f; } .regenerable { color: #f0b95a; }
 .degraded, .conflict { color: #ff8a80; } small { color: #aaa; } }
"""


def page(files: Sequence[FileDrift], old: str, new: str) -> str:
    """Return the page; the same comparison gives the same bytes."""
    title = f"Drift from {old} to {new}"
    body = "\n".join(_groups(files))
    status = name(worst(files))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}: "
        f'<span class="{status}">{status}</span></h1>\n<p>{escape(counts(files))}</p>\n{body}\n</body>\n</html>\n'
    )


def _groups(files: Sequence[FileDrift]) -> Iterator[str]:
    hashes = {one.path: f"{_short(one.old_sha256)} &rarr; {_short(one.new_sha256)}" for one in files}
    for group in groups(files):
        status = name(group.status)
        yield f'<h2 class="{status}">{escape(group.title)}</h2>'
        if group.example is not None:
            yield _table([*_site(group.example)])
        yield f"<details><summary>{len(group.sites) or len(group.files)} places</summary>"
        for path in group.files:
            yield f"<p><code>{escape(path)}</code> <small>{hashes[path]}</small></p>"
            sites = [site for where, site in group.sites if where == path and site is not group.example]
            if sites:
                yield _table([part for site in sites for part in _site(site)])
        yield "</details>"


def _table(rows: Sequence[str]) -> str:
    head = "".join(f"<th>{label.strip()}</th>" for label in LABELS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _site(site: SiteDrift) -> Iterator[str]:
    status = name(site.status)
    head = f"{escape(site.recipe)} <code>{escape(site.qualname)}</code>"
    yield (
        f'<tr><th colspan="4">{head} <span class="{status}">{status}</span>: {escape(site.reason)} '
        f"<small>{_hashes(site.old)} &rarr; {_hashes(site.new)}</small></th></tr>"
    )
    yield "<tr>" + "".join(f"<td><pre>{escape(text)}</pre></td>" for text in site_texts(site)) + "</tr>"


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}" if digest else "no file"


def _hashes(site: EditedSite | None) -> str:
    if site is None:
        return "none"
    return f"line {site.line}, definition {short_hash(site.definition)}, lines {short_hash(site.window)}"
