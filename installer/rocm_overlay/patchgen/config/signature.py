"""Whether every call that fits a stock function also fits its replacement."""

from __future__ import annotations

import ast


def lost_calls(stock: ast.arguments, new: ast.arguments) -> str | None:
    """Say how a call that fits ``stock`` can fail with ``new``, or None.

    Defaults may change and parameters may be added at the end if they have a default.
    """
    before, after = _positional(stock), _positional(new)
    accepted = {*after, *(one.arg for one in new.kwonlyargs)}
    for name in [*before, *(one.arg for one in stock.kwonlyargs)]:
        if name not in accepted and not new.kwarg:
            return f"parameter {name} is lost"
    if not new.vararg and len(after) < len(before):
        return f"parameter {before[len(after)]} can no longer be passed by position"
    for old, now in zip(before, after, strict=False):
        if old != now:
            return f"parameter {old} is {now} now"
    for name in _required(new):
        if name not in _required(stock):
            return f"parameter {name} has no default, and stock calls do not pass it"
    if stock.kwarg and not new.kwarg:
        return f"**{stock.kwarg.arg} is lost"
    if stock.vararg and not new.vararg:
        return f"*{stock.vararg.arg} is lost"
    return None


def _positional(arguments: ast.arguments) -> list[str]:
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args)]


def _required(arguments: ast.arguments) -> set[str]:
    positional = _positional(arguments)
    required = set(positional[: len(positional) - len(arguments.defaults)])
    return required | {
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    }
