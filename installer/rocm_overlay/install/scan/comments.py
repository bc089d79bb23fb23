"""Blanks out what is no code, so that line and column of everything else stay where they are."""

from __future__ import annotations

import re

_C = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))""", re.DOTALL
)
_PYTHON = re.compile(
    r'''(?P<string>"""(?:\\.|[^\\])*?(?:"""|\Z)|\'\'\'(?:\\.|[^\\])*?(?:\'\'\'|\Z)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')'''
    r"|(?P<comment>\#[^\n]*)",
    re.DOTALL,
)
_HASH = re.compile(r"""(?P<string>"(?:\\.|[^"\\\n])*")|(?P<comment>(?:^|(?<=\s))\#[^\n]*)""", re.MULTILINE)
_DOCSTRING = re.compile(r"(?:\A|[:\n])\s*$")
_INK = re.compile(r"[^\n]")


def without_comments(text: str, language: str) -> str:
    """Return ``text`` with comments, and Python's free-standing triple-quoted texts, replaced by spaces."""
    if language == "c":
        return _C.sub(_blank_comment, text)
    if language == "python":
        return _PYTHON.sub(lambda match: _blank_python(match, text), text)
    if language == "hash":
        return _HASH.sub(_blank_comment, text)
    return text


def _blank_comment(match: re.Match[str]) -> str:
    return match[0] if match["comment"] is None else _INK.sub(" ", match[0])


def _blank_python(match: re.Match[str], text: str) -> str:
    if match["comment"] is not None:
        return _INK.sub(" ", match[0])
    if match[0][:3] in ('"""', "'''") and _DOCSTRING.search(text, max(0, match.start() - 200), match.start()):
        return _INK.sub(" ", match[0])
    return match[0]
