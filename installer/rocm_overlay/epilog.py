"""The end of a help page, for every command of every room."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Return the end of a help page: command lines that are not to be wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
