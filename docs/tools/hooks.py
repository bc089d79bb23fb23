"""Functions that mkdocs calls: links out of docs/ become names, figures leave the search, the coverage page gets data.

A link to a file of the repository outside docs/ is right where the repository is read, and leads nowhere on the site.
One that is wrong stays as it is, and the strict build stops at it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docs.tools import reach

DOCS = Path(__file__).resolve().parents[1]
FIGURES = ("parity.md", "emulator-results.md", "benchmarks.md", "test-matrix.md")  # they would come first in any search
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **rest: object) -> str:
    """Replace the links of a page, and take a page of figures out of the search."""
    if page.file.src_uri in FIGURES:
        page.meta["search"] = {"exclude": True}
    folder = (DOCS / page.file.src_uri).parent
    return LINK.sub(lambda found: named(found, folder), markdown)


def named(found: re.Match[str], folder: Path) -> str:
    """Return ``text (`path`)`` for a link out of docs/ to a file that exists, else the link."""
    target = (folder / found["target"]).resolve()
    if target.is_relative_to(DOCS) or not target.exists():
        return found[0]
    path = target.relative_to(DOCS.parent).as_posix()
    return f"`{path}`" if found["text"].strip("`") in (path, target.name) else f"{found['text']} (`{path}`)"


def on_post_build(config: Any, **rest: object) -> None:
    """Write the data of the coverage page."""
    reach.build(Path(config["site_dir"]))
