"""Fixtures of the installer's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install.support import MODELS, VERSION, Done, make_bundle, make_site


@pytest.fixture
def site(stock_tree: Callable[[str], Path], tmp_path: Path) -> Path:
    """A packages folder with every model of a real release that has overlays, free to change."""
    return copy_models(stock_tree(VERSION), tmp_path / "site")


@pytest.fixture
def real_site(stock_tree: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return ``real_site(version)``: the same for any release."""
    return lambda version: copy_models(stock_tree(version), tmp_path / f"site-{version}")


def copy_models(tree: Path, site: Path) -> Path:
    """Without bytecode: whoever imported from the shared tree before may have left some."""
    (site / "transformers").mkdir(parents=True)
    shutil.copy2(tree / "transformers" / "__init__.py", site / "transformers")
    for model in MODELS:
        source, target = (folder / "transformers" / "models" / model for folder in (tree, site))
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    info = next(tree.glob("transformers-*.dist-info"))
    shutil.copytree(info, site / info.name)
    return site


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle of our own: models one, two and three of the line 1.0."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def small_site(tmp_path: Path) -> Path:
    """An installed package that fits ``bundle``."""
    return make_site(tmp_path / "small-site")


@pytest.fixture
def overlay(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return ``overlay(*arguments)``: the program, run in this process."""
    from rocm_overlay.app import run

    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call
