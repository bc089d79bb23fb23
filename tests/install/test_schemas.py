"""Every command's JSON, good and bad, against the schemas that travel with the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rocm_overlay.cli
from rocm_overlay.cli.app import CONTENTS

from tests.install.support import Done, make_site, modeling

SCHEMAS = Path(rocm_overlay.cli.__file__).parent / "schemas"
ELSEWHERE = {"gen", "drift", "verify", "tune"}
"""Commands of other rooms, which print schemas of their own."""
Overlay = Callable[..., Done]


@lru_cache
def validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}.1.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def valid(name: str, done: Done) -> dict[str, object]:
    errors = sorted(validator(name).iter_errors(done.json), key=lambda error: -len(error.path))
    assert not errors, (errors[0].message, [one.message for one in errors[0].context or ()][:6])
    assert done.json["schema"] == f"amd-overlay.{name}/1"
    return done.json


def test_every_command_has_a_schema_that_travels() -> None:
    commands = {name for _, _, names in CONTENTS for name in names} - ELSEWHERE
    assert {path.name for path in SCHEMAS.glob("*.json")} == {f"{name}.1.json" for name in [*commands, "error"]}


def test_the_life_of_an_environment(site: Path, overlay: Overlay) -> None:
    where = ("--site-packages", site, "--json")
    valid("status", overlay("status", *where))
    valid("install", overlay("install", "--transformers", "4.57", "--models", "llama", "--dry-run", *where))
    valid("install", overlay("install", "--transformers", "4.57", "--models", "llama", *where))
    valid("install", overlay("install", "--transformers", "4.57", "--models", "llama", *where))
    deep = valid("status", overlay("status", "--deep", *where))
    assert deep["mode"] == "files"
    valid("diff", overlay("diff", *where))
    valid("doctor", overlay("doctor", *where))
    valid("doctor", overlay("doctor", "--import", "--fix", "--dry-run", *where))
    valid("attest", overlay("attest", *where))
    valid("recover", overlay("recover", *where))
    valid("revert", overlay("revert", *where))
    valid("revert", overlay("revert", *where))


def test_hook_reports(tmp_path: Path, real_site: Callable[[str], Path], overlay: Overlay) -> None:
    site = tmp_path / "site-packages"
    real_site("4.57.6").rename(site)
    where = ("--site-packages", site, "--json")
    valid("install", overlay("install", "--transformers", "4.57", "--mode", "hook", *where))
    assert valid("status", overlay("status", *where))["mode"] == "hook"
    valid("attest", overlay("attest", *where))
    valid("revert", overlay("revert", *where))


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"], ["env", "--profile", "off"], ["env", "--profile", "max", "--gpu", "gfx1201"],
        ["export", "--transformers", "4.57.6", "--models", "llama"],
    ],
)  # fmt: skip
def test_commands_without_a_target(overlay: Overlay, arguments: list[str]) -> None:
    valid(arguments[0], overlay(*arguments, "--json"))


def test_scan(tmp_path: Path, overlay: Overlay) -> None:
    (tmp_path / "a.cu").write_text("#include <cublas_v2.h>\n#include <cudnn.h>\n")
    valid("scan", overlay("scan", tmp_path, "--json"))


def test_run(overlay: Overlay) -> None:
    pytest.importorskip("transformers")
    valid("run", overlay("run", "--dry-run", "--json", "--python", sys.executable, "--", sys.executable, "x.py"))


@pytest.mark.parametrize(
    "command",
    [
        ["install", "--transformers", "4.57"], ["revert"], ["recover"], ["status"], ["diff"], ["attest"],
        ["export"], ["scan", "/no/such/path"], ["env", "--profile", "nonsense"], ["run", "--", "true"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_refusals_have_the_same_form(tmp_path: Path, overlay: Overlay, command: list[str]) -> None:
    where = [] if command[0] in ("scan", "env", "run") else ["--site-packages", str(tmp_path / "nowhere")]
    done = overlay(command[0], *where, "--json", *command[1:])
    assert done.code == done.error["code"] in (2, 9)
    valid(command[0], done)
    assert "Traceback" not in done.err


def test_a_command_that_does_not_exist(overlay: Overlay) -> None:
    done = overlay("instal", "--json")
    assert done.code == 2
    assert not list(validator("error").iter_errors(done.json))
    assert "install" in str(done.error["message"])


def test_a_schema_would_notice(site: Path, overlay: Overlay) -> None:
    body = overlay("status", "--site-packages", site, "--json").json
    for wrong in ({**body, "state": "FINE"}, {**body, "more": 1}, {key: body[key] for key in body if key != "files"}):
        assert list(validator("status").iter_errors(wrong))


def test_a_foreign_file_in_every_report(tmp_path: Path, overlay: Overlay) -> None:
    site = make_site(tmp_path / "small", version="4.57.6")
    modeling(site, "one").write_bytes(b"mine\n")
    for command in ("status", "diff", "attest", "doctor"):
        valid(command, overlay(command, "--site-packages", site, "--json"))
