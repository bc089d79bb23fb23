"""Drift as one HTML file that needs nothing else: no script, no font, no link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .compare import Drift, FileDrift, SiteDrift
from .report import counts, name, texts, worst
from .sites import EditedSite, short_hash

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; font-family: ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border: 1px solid #ccc; padding: .4rem .6rem; vertical-align: top; text-align: left; }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.45 ui-monospace, monospace; }
.same { color: #1b6e3c; } .regenerable { color: #8a5a00; } .conflict { color: #a11a1a; }
small { color: #555; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e6e6e6; } th, td { border-color: #444; }
 .same { color: #6fd08f; } .regenerable { color: #f0b95a; } .conflict { color: #ff8a80; } small { color: #aaa; } }
"""


def page(files: Sequence[FileDrift], old: str, new: str) -> str:
    """Return the page; the same comparison gives the same bytes."""
    title = f"Drift from {old} to {new}"
    body = "\n".join(_files(files))
    status = name(worst(files))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}: "
        f'<span class="{status}">{status}</span></h1>\n<p>{escape(counts(files))}</p>\n{body}\n</body>\n</html>\n'
    )


def _files(files: Sequence[FileDrift]) -> Iterator[str]:
    for one in files:
        if one.status is Drift.SAME:
            continue
        status = name(one.status)
        yield f'<h2>{escape(one.path)} <span class="{status}">{status}</span></h2>'
        yield f"<p>{escape(one.reason)} <small>{_short(one.old_sha256)} &rarr; {_short(one.new_sha256)}</small></p>"
        yield "<table><thead><tr><th>old stock</th><th>our edit</th><th>new stock</th></tr></thead><tbody>"
        for site in one.sites:
            yield from _site(site)
        yield "</tbody></table>"


def _site(site: SiteDrift) -> Iterator[str]:
    status = name(site.status)
    head = f"{escape(site.recipe)} <code>{escape(site.qualname)}</code>"
    yield (
        f'<tr><th colspan="3">{head} <span class="{status}">{status}</span>: {escape(site.reason)} '
        f"<small>{_hashes(site.old)} &rarr; {_hashes(site.new)}</small></th></tr>"
    )
    yield "<tr>" + "".join(f"<td><pre>{escape(text)}</pre></td>" for text in texts(site)) + "</tr>"


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}" if digest else "no file"


def _hashes(site: EditedSite | None) -> str:
    if site is None:
        return "none"
    return f"line {site.line}, definition {short_hash(site.definition)}, lines {short_hash(site.window)}"
