"""Strict reading of JSON objects: every value is checked, every complaint names the place.

Our state files and the manifest are data from outside. A wrong type must end as one sentence, not as a traceback later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MODULE_PATH = re.compile(r"([A-Za-z0-9_]+/)*[A-Za-z0-9_]+\.py")
"""A module below a package: no absolute path, no step upwards, nothing but a Python source."""


class MalformedError(ValueError):
    """A JSON document lacks something, or holds another type than expected."""


class Reader:
    """A JSON object with its place in the document, for example ``txn.json: changes[2].before``."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"{where}: expected an object, found {_kind(value)}")
        self._value: dict[str, object] = value
        self.where = where

    @property
    def raw(self) -> dict[str, object]:
        """The object as it was read."""
        return self._value

    def place(self, key: str) -> str:
        """Name the place of ``key`` for a message."""
        return f"{self.where}: {key}" if ":" not in self.where else f"{self.where}.{key}"

    def get(self, key: str) -> object:
        """Return the value of ``key``; it must be there."""
        if key not in self._value:
            raise MalformedError(f"{self.place(key)} is missing")
        return self._value[key]

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise MalformedError(f"{self.place(key)}: expected a string, found {_kind(value)}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        """Return a string that the whole ``pattern`` matches."""
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise MalformedError(f"{self.place(key)}: {value!r} is not allowed here")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string or None; the key must be there."""
        return None if self.get(key) is None else self.text(key)

    def integer(self, key: str) -> int:
        """Return an integer; true and false are not integers here."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MalformedError(f"{self.place(key)}: expected an integer, found {_kind(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise MalformedError(f"{self.place(key)}: expected a list of strings")
        return tuple(str(value) for value in values)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """Return a list of exactly ``count`` integers."""
        values = self._list(key)
        numbers = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
        if len(values) != count or len(numbers) != count:
            raise MalformedError(f"{self.place(key)}: expected {count} integers")
        return numbers

    def objects(self, key: str) -> Iterator[Reader]:
        """Yield the objects of a list."""
        for index, value in enumerate(self._list(key)):
            yield Reader(value, f"{self.place(key)}[{index}]")

    def child(self, key: str) -> Reader:
        """Return the object under ``key``."""
        return Reader(self.get(key), self.place(key))

    def _list(self, key: str) -> list[object]:
        value = self.get(key)
        if not isinstance(value, list):
            raise MalformedError(f"{self.place(key)}: expected a list, found {_kind(value)}")
        return value


def parse(data: bytes, where: str) -> Reader:
    """Parse JSON bytes into a Reader. Raises MalformedError for invalid JSON or anything but an object."""
    try:
        value: object = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: not valid JSON ({error})") from error
    return Reader(value, where)


def dump(value: object) -> bytes:
    """Return JSON as ASCII bytes, in one fixed form."""
    return (json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1) + "\n").encode("ascii")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "an integer"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
