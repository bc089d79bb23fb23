"""Why edited lines differ between two releases: names that are called something else, and code that came or went."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from .sites import EditedSite

_TOKEN = re.compile(r"\w+|[^\w\s]")
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)
# More differences than this have no common name.
_MOST = 3
_LONGEST = 48


def cause(old: EditedSite, new: EditedSite) -> str:
    """Return one phrase for what changed in the edited lines; the same change has the same phrase in every file."""
    before, after = _tokens(old.window), _tokens(new.window)
    renamed: dict[str, str] = {}
    others: list[str] = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        gone, come = before[first:last], after[begin:end]
        if kind == "replace" and _renames(gone, come, renamed):
            renamed.update(zip(gone, come, strict=True))
        elif kind == "replace":
            others.append(f"{_quote(gone)} is now {_quote(come)}")
        elif kind != "equal":
            others.append(f"{_quote(gone)} is gone" if gone else f"{_quote(come)} is new")
    roles = {name: role for role, name in old.parts.items()}
    names = [
        f"the {roles[one]} parameter is now called `{renamed[one]}`"
        if one in roles
        else f"`{one}` is now called `{renamed[one]}`"
        for one in renamed
    ]
    found = list(dict.fromkeys(names + others))
    if not found:
        return "only layout or comments of the edited lines changed"
    return "; ".join(found) if len(found) <= _MOST else "the edited lines changed in several places"


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(_COMMENT.sub("", text))


def _renames(gone: Sequence[str], come: Sequence[str], known: dict[str, str]) -> bool:
    """Say whether every token is a name that is called the same way everywhere else, too."""
    if len(gone) != len(come):
        return False
    pairs = zip(gone, come, strict=True)
    return all(old.isidentifier() and new.isidentifier() and known.get(old, new) == new for old, new in pairs)


def _quote(tokens: Sequence[str]) -> str:
    text = re.sub(r"\s*([.,()\[\]:=])\s*", r"\1", " ".join(tokens)).replace(",", ", ").strip()
    return f"`{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}`"
