"""The reports of `scan`: for people, for programs, for code-scanning services."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .. import output

if TYPE_CHECKING:
    from rocm_overlay.install.scan import Finding, Scan
    from rocm_overlay.install.scan.table import Change

_HIPIFY = {"automatic": "yes", "partial": "in part", "manual": "no", "none": "no"}


def progress(count: int) -> None:
    """Say on a terminal how far the scan is."""
    if count % 200 == 0 and sys.stderr.isatty():
        print(f"\r{count} files", end="", file=sys.stderr, flush=True)


def show(found: Scan, form: str) -> int:
    """Print the findings in the form asked for; return the exit code."""
    if form == "sarif":
        from rocm_overlay.install.scan.sarif import document

        output.print_document(document(found))
    elif form == "json":
        output.print_json("scan", _body(found), ok=found.code == 0)
    else:
        _text(found)
    return found.code


def _body(found: Scan) -> dict[str, object]:
    return {
        "root": str(found.root),
        "files": found.files,
        "manual": found.code == 1,
        "libraries": [
            {
                "id": entry.id,
                "nvidia": entry.nvidia,
                "amd": entry.amd,
                "hipify": entry.hipify,
                "manual": entry.manual,
                "header": _change(entry.header),
                "link": _change(entry.link),
                "differs": entry.differs,
                "sources": list(entry.sources),
                "places": places,
                "files": files,
            }
            for entry, places, files in found.by_entry()
        ],
        "findings": [_finding(one) for one in found.findings],
        "skipped": [{"path": path, "reason": reason} for path, reason in found.skipped],
    }


def _finding(one: Finding) -> dict[str, object]:
    return {
        "id": one.entry.id,
        "path": one.path,
        "line": one.line,
        "column": one.column,
        "text": one.text,
        "snippet": one.snippet,
    }


def _change(change: Change | None) -> dict[str, str] | None:
    return None if change is None else {"from": change.old, "to": change.new}


def _text(found: Scan) -> None:
    for one in found.findings:
        print(f"{one.path}:{one.line}:{one.column}: {one.entry.id}: {one.text}")
    if found.findings:
        print()
    rows = [
        (entry.nvidia, entry.amd, _HIPIFY[entry.hipify], str(places), str(files))
        for entry, places, files in found.by_entry()
    ]
    output.table(("found", "on AMD", "hipify", "places", "files"), rows)
    for entry, _, _ in found.by_entry():
        print(f"\n{entry.nvidia}: {entry.differs}")
        for word, change in (("header", entry.header), ("link", entry.link)):
            if change is not None:
                print(f"  {word}: {change.old} -> {change.new}")
    for path, reason in found.skipped:
        print(f"note: {path} was not looked at: {reason}", file=sys.stderr)
    verdict = "some of it needs manual work" if found.code else "nothing needs manual work"
    print(f"\n{found.files} files, {len(found.findings)} places: {verdict}")
