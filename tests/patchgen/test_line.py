"""`make line`: a new release is generated, compared, declared and written in one command; a loss stops it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocm_overlay.install import catalog
from rocm_overlay.overlays import expected
from rocm_overlay.patchgen import coverage, line, losses
from rocm_overlay.patchgen.trees import open_tree

from tests.patchgen.support import all_recipes, source
from tests.patchgen.test_recipe_qk_norm_rope import QWEN
from tests.patchgen.test_recipe_rms_norm import LLAMA


@pytest.fixture
def wheels(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with the wheel of a release that has these models."""

    def make(version: str, **models: str) -> Path:
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / f"transformers-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("transformers/__init__.py", f'__version__ = "{version}"\n')
            for name, text in models.items():
                wheel.writestr(f"transformers/models/{name}/modeling_{name}.py", source(text))
        return folder

    return make


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: Callable[..., Path]) -> Iterator[Path]:
    """A checkout in which 5.23.0 is known, with the models one and two."""
    root = tmp_path / "checkout"
    known = root / "overlays/known_sites"
    known.mkdir(parents=True)
    monkeypatch.setattr(line, "ROOT", root)
    monkeypatch.setattr(losses, "KNOWN", known)
    monkeypatch.setattr(catalog, "lines", lambda: ["5.23"])
    monkeypatch.setattr(expected, "SITES", {"5.23": {"one": {"rms_norm": 1}, "two": {"rms_norm": 1}}})
    folder = wheels("5.23.0", one=QWEN, two=LLAMA)
    results = coverage.results(open_tree(folder / "transformers-5.23.0-py3-none-any.whl"), all_recipes())
    (known / "5.23.0.json").write_bytes(losses.render("5.23.0", results))
    for cached in (losses.known_releases, losses.known_sites):
        cached.cache_clear()
    yield root
    for cached in (losses.known_releases, losses.known_sites):
        cached.cache_clear()


def run(wheels: Path, *options: str) -> int:
    return line.main(["5.24.0", "--wheels", str(wheels), *options])


def test_a_release_with_the_same_sites_is_written_and_checked(
    checkout: Path, wheels: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wheels("5.24.0", one=QWEN.replace("past_key_values", "cache"), two=LLAMA, new=LLAMA)
    assert run(folder, "--check") == 1
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "lost" not in out
    table = (checkout / "overlays/expected_sites/5.24.txt").read_text()
    assert table.splitlines() == [
        "one: rope 1, qkv 1, qk_rope 1, qk_rope.cache 1, qk_rope.norms 1",
        "two: rms_norm 1, forms 1",
    ]
    manifest = json.loads((checkout / "overlays/5.24/manifest.json").read_bytes())
    assert [(one["model"], one["releases"]) for one in manifest["files"]] == [("one", ["5.24.0"]), ("two", ["5.24.0"])]
    known = json.loads((checkout / "overlays/known_sites/5.24.0.json").read_bytes())
    assert sorted(known["files"]) == [f"models/{name}/modeling_{name}.py" for name in ("new", "one", "two")]
    assert run(folder, "--check") == 0
    (checkout / "overlays/expected_sites/5.24.txt").write_text("one: rope 1\n")
    assert run(folder, "--check") == 1
    assert "5.24.txt" in capsys.readouterr().err


def test_a_loss_stops_it_and_is_recorded_where_it_is_accepted(
    checkout: Path, wheels: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wheels("5.24.0", one=QWEN.replace("self.layer_idx, extra", "0, extra"), two=LLAMA)
    assert run(folder) == 1
    captured = capsys.readouterr()
    assert "lost 1 x qk_rope.cache: the site is there without its cache (compared with 5.23.0)" in captured.out
    assert "models/one/modeling_one.py:" in captured.out
    assert "5.24.0 loses 1 sites and 0 models" in captured.err
    assert not (checkout / "overlays/5.24").exists()
    assert run(folder, "--allow-loss") == 0
    about = json.loads((checkout / "docs/coverage/5.24.0.json").read_bytes())
    (lost,) = about["lost"]
    assert lost["what"] == "qk_rope.cache"
    assert "the site is there without its cache" in lost["reason"]


def test_a_model_that_is_gone_stops_it(
    checkout: Path, wheels: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(wheels("5.24.0", one=QWEN)) == 1
    captured = capsys.readouterr()
    assert "1 models to commit; gone: two" in captured.out
    assert "lost 1 x file: the file is gone" in captured.out


def test_without_its_wheel_the_command_says_what_fetches_it(
    checkout: Path, wheels: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(wheels("5.23.1", one=QWEN)) == 1
    assert "make line RELEASE=5.24.0" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "bytes"])
def test_a_wheel_that_was_not_downloaded_whole_is_named(
    checkout: Path, wheels: Callable[..., Path], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = wheels("5.24.0", one=QWEN, two=LLAMA)
    file = folder / "transformers-5.24.0-py3-none-any.whl"
    data = file.read_bytes()
    at = data.index(b"def apply_rotary_pos_emb")
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:at] + b"xxx" + data[at + 3 :])
    assert run(folder) == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert ("not a whole wheel" if damage == "cut" else "Bad CRC-32") in error
    assert not (checkout / "overlays/5.24").exists()
