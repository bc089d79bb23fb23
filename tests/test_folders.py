"""One folder name below each XDG folder, in amd_ops and in the program alike; what earlier versions left is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rocm_overlay.patchgen.cache import cache_folder as generated
from rocm_overlay.shared import folders
from rocm_overlay.tune.places import cache_folder as merged
from rocm_overlay.tune.places import user_tables

from amd_ops import device, profile
from amd_ops.folders import readable_folders, user_folder


def test_every_cache_lies_in_one_folder(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    home = tmp_path / ".cache" / "amd-overlay"
    assert user_folder("cache", environ) == home
    assert generated(environ) == home / "gen"
    assert merged(environ) == home / "gemm"


@pytest.mark.parametrize("kind", ["cache", "config", "data"])
def test_a_relative_xdg_path_is_ignored(kind: str, tmp_path: Path) -> None:
    variable = f"XDG_{kind.upper()}_HOME"
    stated = user_folder(kind, {"HOME": str(tmp_path), variable: str(tmp_path / "elsewhere")})
    assert stated == tmp_path / "elsewhere" / "amd-overlay"
    assert user_folder(kind, {"HOME": str(tmp_path), variable: "elsewhere"}) == user_folder(
        kind, {"HOME": str(tmp_path)}
    )


def test_both_packages_read_one_module(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert folders().readable_folders("config", environ) == readable_folders("config", environ)


def test_tables_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    for name in ("transformers-rocm-overlay", "amd-overlay"):
        folder = tmp_path / ".config" / name / "gemm"
        folder.mkdir(parents=True)
        (folder / "mine.csv").write_text("")
    found = [path.parent.parent.name for path in user_tables({"HOME": str(tmp_path)})]
    assert found == ["amd-overlay", "transformers-rocm-overlay"]


def test_a_profile_of_an_earlier_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_environment", lambda: {"HOME": str(tmp_path)})
    monkeypatch.setattr(device, "current", lambda: None)
    data = tmp_path / ".local" / "share"
    name = profile.default_path().name
    assert profile.default_path() == data / "amd-overlay" / "profiles" / name
    former = data / "amd-ops" / "profiles" / name
    former.parent.mkdir(parents=True)
    former.write_text(json.dumps({}))
    assert profile.default_path() == former
    mine = data / "amd-overlay" / "profiles" / name
    mine.parent.mkdir(parents=True)
    mine.write_text(json.dumps({}))
    assert profile.default_path() == mine
