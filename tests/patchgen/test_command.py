"""`overlay gen`, called as the CLI calls it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rocm_overlay.console import failure, set_json, wants_json
from rocm_overlay.errors import OverlayError
from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen import losses
from rocm_overlay.patchgen.command import run
from rocm_overlay.patchgen.engine import generate
from rocm_overlay.patchgen.options import Options

from tests.patchgen.support import source
from tests.patchgen.test_recipe_rms_norm import LLAMA

SITES = "{path}:15: rms_norm XRMSNorm.forward\n{path}:14: forms XRMSNorm.forward\n"


@pytest.fixture
def known(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of what is known of releases: nothing."""
    folder = tmp_path_factory.mktemp("known")
    monkeypatch.setattr(losses, "KNOWN", folder)
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()
    yield folder
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()


@pytest.fixture
def package(tmp_path: Path, known: Path) -> Path:
    """A package folder with one model that has a site and one that has none."""
    root = tmp_path / "transformers"
    for name, text in (("one", source(LLAMA)), ("two", b"import torch\n")):
        folder = root / "models" / name
        folder.mkdir(parents=True)
        (folder / f"modeling_{name}.py").write_bytes(text)
    (root / "models" / "one" / "modeling_tf_one.py").write_text("import tensorflow\n")
    (root / "__init__.py").write_text('__version__ = "4.57.6"\n')
    return root


def call(**options: object) -> tuple[int, str, str]:
    """As `overlay gen` would answer: the exit code, what is on stdout, what is on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            set_json(bool(options.pop("as_json", False)))
            code = run(Options(**options))  # type: ignore[arg-type]
        except OverlayError as error:
            code = failure("gen", error, as_json=wants_json())
    return code, out.getvalue(), err.getvalue()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() if file.is_file() else None
        for file in sorted(folder.rglob("*"))
    }


def test_all_writes_only_files_with_an_edit(package: Path, tmp_path: Path) -> None:
    code, out, err = call(all_files=True, source=package, output=tmp_path / "gen")
    assert (code, out) == (0, "")
    assert [path for path, data in snapshot(tmp_path / "gen").items() if data] == ["models/one/modeling_one.py"]
    assert err.splitlines()[-1] == f"1 of 2 files get an overlay; 1 written to {tmp_path / 'gen'}"


def test_a_lost_site_is_told_and_the_exit_code_says_so(package: Path, known: Path, tmp_path: Path) -> None:
    more = source(LLAMA + LLAMA.replace("class X", "class Y"))
    (known / "4.57.5.json").write_bytes(
        losses.render("4.57.5", [generate(more, "models/one/modeling_one.py", recipe_set())])
    )
    options = {"all_files": True, "source": package, "output": tmp_path / "gen"}
    code, _, err = call(**options)
    assert code == 1
    assert "lost 1 x rms_norm: the function is gone (compared with 4.57.5)" in err
    assert "  models/one/modeling_one.py:14: rms_norm YRMSNorm.forward: the function is gone; nearest: XRMS" in err
    assert "--allow-loss accepts that" in err
    assert (tmp_path / "gen/models/one/modeling_one.py").is_file()
    assert not (tmp_path / "gen/losses.json").exists()
    code, out, _ = call(**options, as_json=True)
    assert (code, [one["what"] for one in json.loads(out)["lost"]]) == (1, ["forms", "rms_norm"])
    assert call(**options, allow_loss=True)[0] == 0
    assert len(json.loads((tmp_path / "gen/losses.json").read_bytes())["losses"]) == 2
    assert call(target="one", source=package)[0] == 1
    assert call(target=str(package / "models/one/modeling_one.py"))[0] == 0, "a lone file is of no release"


def test_one_model_without_output_goes_to_stdout_and_matches_all(package: Path, tmp_path: Path) -> None:
    call(all_files=True, source=package, output=tmp_path / "gen")
    written = (tmp_path / "gen/models/one/modeling_one.py").read_text()
    for target in ("one", "models.one.modeling_one", "transformers.models.one.modeling_one"):
        assert call(target=target, source=package)[:2] == (0, written)
    assert call(target=str(package / "models/one/modeling_one.py"))[:2] == (0, written)


def test_json_has_an_account_of_every_recipe_on_every_file_and_a_table(package: Path) -> None:
    code, out, _ = call(all_files=True, source=package, dry_run=True, as_json=True)
    document = json.loads(out)
    assert (code, document["schema"], document["errors"], document["written"]) == (0, "amd-overlay.gen/1", [], [])
    assert [(one["path"], one["changed"]) for one in document["files"]] == [
        ("models/one/modeling_one.py", True),
        ("models/two/modeling_two.py", False),
    ]
    assert {len(one["recipes"]) for one in document["files"]} == {len(recipe_set().recipes)}
    norm = document["table"][0]
    assert norm["files"] == {"already there": 0, "applied": 1, "conflict": 0, "not applicable": 1}
    assert (norm["recipe"], norm["sites"], norm["declined"]) == ("rms_norm", 1, {})


def test_list_and_diff_and_dry_run_write_nothing(package: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    path = "models/one/modeling_one.py"
    assert call(target="one", source=package, list_sites=True)[1] == SITES.format(path=path)
    diff = call(target="one", source=package, diff=True)[1]
    assert diff.startswith(f"--- a/{path}\n+++ b/{path}\n@@ ")
    assert call(target="one", source=package, dry_run=True, output=tmp_path / "gen")[0] == 0
    assert call(target="one", source=package, diff=True, output=tmp_path / "gen")[1] == diff
    assert snapshot(tmp_path) == before


def test_check_finds_drift_and_fix_repairs_it(package: Path, tmp_path: Path) -> None:
    options = {"all_files": True, "source": package, "output": tmp_path / "gen"}
    code, _, err = call(**options, check=True)
    assert code == 1
    assert "1 of 1 files differ or are missing: models/one/modeling_one.py" in err
    assert not (tmp_path / "gen").exists()
    assert call(**options, check=True, fix=True)[0] == 0
    assert call(**options, check=True)[0] == 0
    (tmp_path / "gen/models/one/modeling_one.py").write_text("edited\n")
    assert call(**options, check=True)[0] == 1


def test_a_check_that_compares_nothing_fails(package: Path, tmp_path: Path) -> None:
    code, _, err = call(target="two", source=package, output=tmp_path / "gen", check=True)
    assert code == 1
    assert "--check compared nothing" in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"target": "oen"}, 9, "unknown model 'oen'"),
        ({"target": "oen"}, 9, "nearest: one"),
        ({"target": "x.models.one.modeling_one"}, 9, "unknown model"),
        ({"target": "nowhere/modeling_x.py", "source": None}, 9, "cannot read nowhere/modeling_x.py"),
        ({"target": "one", "source": Path("nowhere")}, 9, "no transformers package at nowhere"),
        ({}, 2, "name one MODULE_OR_FILE, or pass --all"),
        ({"target": "one", "all_files": True}, 2, "exactly one of them"),
        ({"target": "one", "from_installed": True}, 2, "exclude each other"),
        ({"target": "one", "models": ("one",)}, 2, "--models chooses among --all"),
        ({"target": "one", "fix": True}, 2, "--fix goes with --check"),
        ({"target": "one", "check": True}, 2, "no output folder"),
        ({"all_files": True}, 2, "pass -o DIR, --dry-run, --list or --diff"),
    ],
)
def test_bad_requests(package: Path, options: dict[str, object], code: int, message: str) -> None:
    found, out, err = call(**{"source": package, **options})
    assert (found, out) == (code, "")
    assert err.startswith("overlay gen: ")
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"import torch\ndef f(:\n", "modeling_two.py:2: the file is not valid Python"),
        (b"import torch\n# \xff\n", "modeling_two.py:2: the file is not UTF-8 text"),
        (b"import torch\nimport amd_ops as _amd\n", "modeling_two.py:2: the file has no overlay marker"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_one_bad_file_among_all_writes_nothing(
    package: Path, tmp_path: Path, text: bytes, message: str, as_json: bool
) -> None:
    (package / "models/two/modeling_two.py").write_bytes(text)
    code, out, err = call(all_files=True, source=package, output=tmp_path / "gen", as_json=as_json)
    assert code == 4
    assert message in err
    assert not (tmp_path / "gen").exists()
    if as_json:
        assert [error["id"] for error in json.loads(out)["errors"]] == ["source"]


def test_a_symlinked_output_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "gen").mkdir()
    (tmp_path / "gen/models").symlink_to(tmp_path / "real")
    before = snapshot(tmp_path)
    for output in ("link", "gen"):
        code, _, err = call(all_files=True, source=package, output=tmp_path / output)
        assert code == 5
        assert "is a symbolic link" in err
    assert snapshot(tmp_path) == before


def test_an_output_that_is_a_file_or_below_one_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = call(all_files=True, source=package, output=output)
        assert code == 5, err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_output_is_one_error(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the system, which root would not be: so the refusal is played."""
    (tmp_path / "gen").mkdir()

    def refuse(**arguments: object) -> str:
        raise PermissionError(13, "Permission denied", str(arguments["dir"]))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    code, _, err = call(all_files=True, source=package, output=tmp_path / "gen")
    assert code == 5
    assert f"cannot write {tmp_path / 'gen'}" in err
    assert "found: Permission denied" in err
    assert snapshot(tmp_path / "gen") == {}


def test_a_failed_write_leaves_the_old_files(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(all_files=True, source=package, output=tmp_path / "gen")[0] == 0
    (tmp_path / "gen/models/one/modeling_one.py").write_text("old\n")
    before = snapshot(tmp_path)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = call(all_files=True, source=package, output=tmp_path / "gen")
    monkeypatch.undo()
    assert code == 5
    assert "found: No space left on device" in err
    assert snapshot(tmp_path) == before


def test_a_transformers_package_is_no_output(stock_tree: Callable[[str], Path]) -> None:
    package = stock_tree("4.57.6") / "transformers"
    code, _, err = call(target="llama", source=package, output=package)
    assert code == 5
    assert "overlay install" in err


def test_the_installed_package_is_found_without_importing_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    code, out, err = call(target="one", from_installed=True, list_sites=True)
    assert (code, out) == (0, SITES.format(path="models/one/modeling_one.py")), err
