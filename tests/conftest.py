"""Shared fixtures: real transformers wheels and their unpacked trees, never the network."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WHEELS_VARIABLE = "OVERLAY_TEST_WHEELS"
PYTHONS_VARIABLE = "OVERLAY_TEST_PYTHONS"
# Ray keeps a token below the HOME of its first cluster; tests have homes of their own, and leave the user's alone.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="session")
def wheel() -> Callable[[str], Path]:
    """Return ``wheel(version) -> Path`` of a transformers wheel; skip where the wheels were not downloaded."""

    def find(version: str) -> Path:
        folder = os.environ.get(WHEELS_VARIABLE)
        if not folder:
            pytest.skip(f"{WHEELS_VARIABLE} is unset: `make test` downloads the transformers wheels and sets it")
        found = sorted(Path(folder).glob(f"transformers-{version}-*.whl"))
        if not found:
            pytest.skip(f"no transformers {version} wheel in {folder}: `make wheels` downloads it")
        return found[0]

    return find


@pytest.fixture(scope="session")
def stock_tree(wheel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return ``stock_tree(version) -> Path`` of an unpacked wheel (``transformers/`` and its dist-info). Read-only."""
    trees: dict[str, Path] = {}

    def unpack(version: str) -> Path:
        if version not in trees:
            target = tmp_path_factory.mktemp(f"transformers-{version}-")
            with zipfile.ZipFile(wheel(version)) as archive:
                archive.extractall(target)
            trees[version] = target
        return trees[version]

    return unpack


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], str]:
    """Return ``python_with(release)``: an interpreter that has that transformers; skip where none was made."""
    given = [sys.executable, *os.environ.get(PYTHONS_VARIABLE, "").split()]
    code = "import importlib.metadata as m; print(m.version('transformers'))"
    releases = {subprocess.check_output([path, "-c", code], text=True).strip(): path for path in reversed(given)}

    def find(release: str) -> str:
        if release not in releases:
            pytest.skip(f"{PYTHONS_VARIABLE} names no interpreter with transformers {release}: `make test-full` does")
        return releases[release]

    return find


@pytest.fixture(autouse=True)
def begun() -> None:
    """Answer as a process that has just started: --json and -v of the test before are nobody's wish any more."""
    from rocm_overlay import console

    console.start()


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every JSON answer that a test gets in this process to the schema that its command publishes."""
    from rocm_overlay import console

    from tests.schemas import command_of, complaints

    plain = console.print_document

    def checked(value: Any) -> None:
        schema = value.get("schema")
        if isinstance(schema, str) and schema.startswith("amd-overlay.") and "error" not in value:
            assert complaints(command_of(schema), json.loads(json.dumps(console.finite(value)))) == []
        plain(value)

    monkeypatch.setattr(console, "print_document", checked)


@pytest.fixture(autouse=True)
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave sentences whole: pytest-xdist tells its workers a width, and tests that want one set it."""
    monkeypatch.delenv("COLUMNS", raising=False)
