"""The published JSON Schemas, and a check of every answer against them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import rocm_overlay.cli

SCHEMAS = Path(rocm_overlay.cli.__file__).parent / "schemas"


@lru_cache
def validator(command: str) -> Any:
    """The validator of a command as ``tune.report``; "error" where no command was understood."""
    schema = json.loads((SCHEMAS / f"{command}.1.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@lru_cache
def command_of(schema: str) -> str:
    """The command whose published schema allows answers that call themselves ``schema``."""
    for path in sorted(SCHEMAS.glob("*.json")):
        forms = json.loads(path.read_bytes()).get("oneOf", [])
        if any(form["properties"]["schema"] == {"const": schema} for form in forms):
            return path.name.removesuffix(".1.json")
    raise AssertionError(f"no command publishes {schema}")


def complaints(command: str, answer: Any) -> list[str]:
    """What is wrong with an answer."""
    errors = sorted(validator(command).iter_errors(answer), key=lambda error: -len(error.path))
    return [text for error in errors for text in (error.message, *(one.message for one in error.context or ()))][:7]
