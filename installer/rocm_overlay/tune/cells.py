"""The text of single cells, as pandas would take them: integers, truth values, times, types."""

from __future__ import annotations

import math

NA_TEXTS = frozenset({"", "null", "nan", "none", "na", "n/a", "<na>"})
DTYPES = frozenset(
    {
        "torch.bfloat16",
        "torch.float16",
        "torch.float32",
        "torch.int8",
        "torch.float8_e4m3fn",
        "torch.float8_e4m3fnuz",
        "torch.float8_e5m2",
        "torch.float8_e5m2fnuz",
    }
)
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


class BadCell(ValueError):
    """A cell that cannot be used; the message says what was found and what is accepted."""


def is_blank(text: str) -> bool:
    return text.strip().lower() in NA_TEXTS


def integer(text: str, column: str, minimum: int | None = None) -> int:
    """Return a whole number (``64`` or ``64.0``, which pandas writes beside blanks); raise BadCell otherwise."""
    try:
        value = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            raise BadCell(f"{column} is {text!r}, not a whole number") from None
        if not number.is_integer():
            raise BadCell(f"{column} is {text!r}, not a whole number") from None
        value = int(number)
    if minimum is not None and value < minimum:
        raise BadCell(f"{column} is {value}, less than {minimum}")
    return value


def truth(text: str, column: str) -> bool:
    value = _TRUTH.get(text.strip().lower())
    if value is None:
        raise BadCell(f"{column} is {text!r}, not True or False")
    return value


def dtype(text: str, column: str) -> str:
    name = text.strip()
    if name not in DTYPES:
        hint = f"; write torch.{name}" if f"torch.{name}" in DTYPES else "; aiter looks up names like torch.bfloat16"
        raise BadCell(f"{column} is {text!r}{hint}")
    return name


def microseconds(text: str, column: str) -> float:
    """Return a finite time >= 0 (0.0 means: not measured); raise BadCell for text, negative and endless times."""
    try:
        value = float(text)
    except ValueError:
        raise BadCell(f"{column} is {text!r}, not a time in microseconds") from None
    if not math.isfinite(value):
        raise BadCell(f"{column} is {text!r}: the tuner writes that for a shape it could not run")
    if value < 0:
        raise BadCell(f"{column} is {text}: negative times mark a shape the tuner could not run")
    return value


def number(text: str, column: str) -> float | None:
    """Return a number, or None for a blank cell; raise BadCell for text."""
    if is_blank(text):
        return None
    try:
        return float(text)
    except ValueError:
        raise BadCell(f"{column} is {text!r}, not a number") from None
