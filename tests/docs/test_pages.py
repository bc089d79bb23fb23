"""The pages that promise to work as written: every block of theirs is run, in its order.

Pages of recipes/ are worked in a copy of this checkout, as a maintainer does; the others in an empty folder, as a user
does, with a virtual environment that has a stock transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.worked import Page, environ
from tests.e2e import environments

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RELEASE = "4.57.6"
QUICK = ("index", "toggles", "operations", "recipes/op", "recipes/tier", "recipes/tuning-table", "recipes/release")
SLOW = ("recipes/architecture",)
GOES_ON_FROM = {"recipes/tier": ("recipes/op",)}
# What a maintainer's checkout holds and a recipe touches.
CHECKOUT = ("amd_ops", "installer", "overlays", "tuning_csv", "pyproject.toml", "CHANGELOG.md")


@pytest.fixture(scope="module")
def reader(
    wheel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], environments.Environment]:
    """Return a maker of environments with a stock transformers, linked from one cache."""
    cache = tmp_path_factory.mktemp("uv-cache")

    def make() -> environments.Environment:
        made = environments.make(tmp_path_factory.mktemp("reader") / ".venv")
        made.share(amd_ops=True)
        environments.uv_install(made, wheel(RELEASE), cache, "hardlink")
        add_command(made.python)
        return made

    return make


def add_command(python: Path) -> None:
    """Put ``overlay`` beside the interpreter, as pip does."""
    command = python.with_name("overlay")
    command.write_text(f"#!{python}\nfrom rocm_overlay.cli import main\n\nmain()\n")
    command.chmod(0o755)


def check_out(folder: Path) -> dict[str, str]:
    """Copy this checkout; return the variables that make Python import the copy."""
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    return {"PYTHONPATH": f"{folder}:{folder / 'installer'}"}


def work(name: str, made: environments.Environment, wheels: Path, folder: Path) -> Page:
    folder.mkdir()
    extra = check_out(folder) if name.startswith("recipes/") else {}
    (folder / "wheels").symlink_to(wheels)
    for one in (*GOES_ON_FROM.get(name, ()), name):
        page = Page(DOCS / f"{one}.md", folder, environ(made.python, **extra))
        page.work()
    return page


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in SLOW)])
def test_the_page_works_as_written(
    name: str, reader: Callable[[], environments.Environment], wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    page = work(name, reader(), wheel(RELEASE).parent, tmp_path / "work")
    assert page.ran, "the page has no block that is run"


def test_every_recipe_is_run() -> None:
    recipes = {f"recipes/{path.stem}" for path in (DOCS / "recipes").glob("*.md")}
    assert recipes <= {*QUICK, *SLOW}
