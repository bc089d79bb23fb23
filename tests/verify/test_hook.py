"""SourceFinder: another text under the stock name, and nothing else about the module changes."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from rocm_overlay.install.hook import SourceFinder

ROOT = Path(__file__).resolve().parents[2]
STOCK = "from .sibling import BASE\n\n\nclass Thing:\n    value = BASE + 1\n"
OTHER = "from .sibling import BASE\n\n\nclass Thing:\n    value = BASE + 2\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package `hookdemo` with a module `models.a.modeling_a`; forgotten again afterwards."""
    folder = tmp_path / "site" / "hookdemo" / "models" / "a"
    folder.mkdir(parents=True)
    for parent in (folder, folder.parent, folder.parent.parent):
        (parent / "__init__.py").write_text("")
    (folder / "sibling.py").write_text("BASE = 10\n")
    (folder / "modeling_a.py").write_text(STOCK)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "hookdemo"]:
        del sys.modules[name]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "staged" / "models" / "a" / "modeling_a.py"
    path.parent.mkdir(parents=True)
    path.write_text(OTHER)
    return path


NAME = "hookdemo.models.a.modeling_a"


def test_the_given_text_runs_under_the_stock_name(package: Path, other: Path) -> None:
    with SourceFinder({NAME: other}):
        module = import_module(NAME)
    assert module.Thing.value == 12
    assert module.__name__ == NAME
    assert module.__package__ == "hookdemo.models.a"
    assert Path(module.__file__ or "") == other
    assert inspect.getsource(module.Thing) == "class Thing:\n    value = BASE + 2\n"
    assert pickle.loads(pickle.dumps(module.Thing)) is module.Thing
    assert import_module("hookdemo.models.a").modeling_a is module


def test_nothing_is_written_beside_either_file(package: Path, other: Path) -> None:
    with SourceFinder({NAME: other}):
        import_module(NAME)
    assert [path.name for path in other.parent.iterdir()] == ["modeling_a.py"]
    assert (package / "modeling_a.py").read_text() == STOCK
    cached = package / "__pycache__"
    assert not cached.exists() or not [path for path in cached.iterdir() if path.name.startswith("modeling_a.")]


def test_a_stale_bytecode_file_beside_the_source_is_not_read(package: Path, other: Path) -> None:
    """Same size, same time, other text: the import system would take the cached code for current."""
    compiled = subprocess.run(
        [sys.executable, "-c", f"import py_compile; print(py_compile.compile({str(other)!r}))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(compiled.stdout.strip()).is_file()
    before = other.stat()
    other.write_text(OTHER.replace("+ 2", "+ 5"))

    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    with SourceFinder({NAME: other}):
        assert import_module(NAME).Thing.value == 15


def test_other_modules_and_later_imports_are_left_alone(package: Path, other: Path) -> None:
    finder = SourceFinder({NAME: other})
    assert finder.find_spec("hookdemo.models.a.sibling") is None
    before = list(sys.meta_path)
    with finder:
        finder.install()  # a second time changes nothing
        assert sys.meta_path == [finder, *before]
    finder.remove()
    assert sys.meta_path == before
    assert import_module(NAME).Thing.value == 11


def test_a_module_that_is_imported_already_is_refused(package: Path, other: Path) -> None:
    import_module(NAME)
    with pytest.raises(RuntimeError, match=f"{NAME} is imported already"):
        SourceFinder({NAME: other}).install()


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("modeling_a", "modeling_a.py", "has no package"),
        (NAME, "other.py", "must be called modeling_a.py"),
        (NAME, "modeling_a.py", "there is no such file"),
    ],
)
def test_what_cannot_be_served_is_refused(name: str, file: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SourceFinder({name: tmp_path / file})


def test_it_needs_only_the_standard_library() -> None:
    code = "import sys; sys.path.insert(0, 'installer'); import rocm_overlay.install.hook; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("torch", "transformers", "typer", "rich", "packaging", "filelock"):
        assert f"'{name}'" not in done.stdout
