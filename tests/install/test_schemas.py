"""Every command's JSON, good and bad, against the schemas that travel with the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.install.support import Done, make_site, modeling
from tests.schemas import complaints, validator

Overlay = Callable[..., Done]


def valid(name: str, done: Done) -> dict[str, object]:
    assert complaints(name, done.json) == []
    assert done.json["schema"] == f"amd-overlay.{name}/1"
    return done.json


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
    if find_spec("transformers") is None:
        pytest.skip("needs an installed transformers")
    valid("run", overlay("run", "--dry-run", "--json", "--python", sys.executable, "--", sys.executable, "x.py"))


def test_a_schema_would_notice(site: Path, overlay: Overlay) -> None:
    body = overlay("status", "--site-packages", site, "--json").json
    for wrong in ({**body, "state": "FINE"}, {**body, "more": 1}, {key: body[key] for key in body if key != "files"}):
        assert list(validator("status").iter_errors(wrong))


def test_a_foreign_file_in_every_report(tmp_path: Path, overlay: Overlay) -> None:
    site = make_site(tmp_path / "small", version="4.57.6")
    modeling(site, "one").write_bytes(b"mine\n")
    for command in ("status", "diff", "attest", "doctor"):
        valid(command, overlay(command, "--site-packages", site, "--json"))
