"""The bundle: strict loading, hash-checked payloads, and the real one."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocm_overlay.errors import BundleError
from rocm_overlay.install import catalog

from tests.install.support import STOCK, digest, make_bundle, overlay_text, write_manifest


@pytest.fixture(autouse=True)
def _fresh() -> None:
    catalog.load.cache_clear()


def manifest_of(bundle: Path) -> dict[str, object]:
    value = json.loads((bundle / "1.0" / "manifest.json").read_bytes())
    assert isinstance(value, dict)
    return value


def test_load_lines_and_find(bundle: Path) -> None:
    assert catalog.lines(bundle) == ["1.0"]
    manifest = catalog.load("1.0", bundle)
    assert manifest.models() == ("one", "three", "two")
    entry = catalog.find("models/one/modeling_one.py", digest(STOCK["one"]), bundle)
    assert entry is not None
    assert entry.overlay_bytes() == overlay_text(STOCK["one"])
    assert entry.stock_bytes() == STOCK["one"]
    assert catalog.find("models/one/modeling_one.py", "0" * 64, bundle) is None


def test_the_real_bundle_leads_back_to_every_stock_text(stock_tree: Callable[[str], Path]) -> None:
    manifest = catalog.load("4.57")
    for release in ("4.57.1", "4.57.3", "4.57.6"):
        package = stock_tree(release) / "transformers"
        found = [file for file in manifest.files if release in file.releases]
        assert {file.model for file in found} == set(manifest.models())
        for file in found:
            assert file.stock_bytes() == (package / file.path).read_bytes()
            assert digest(file.overlay_bytes()) == file.overlay_sha256


FIRST: list[tuple[str, object]] = [
    ("path", "../models/one/modeling_one.py"),
    ("path", "/models/one/modeling_one.py"),
    ("path", "models/one/../two/modeling_one.py"),
    ("path", "models/one/modeling_one.pth"),
    ("path", "models/one/modeling_one.py\n"),
    ("path", "models/One/modeling_one.py"),
    ("path", "__init__.py"),
    ("path", 5),
    ("payload", "models/one/../../../../etc/passwd"),
    ("payload", "models/two/modeling_two.0123456789ab.py"),
    ("stock_sha256", "0" * 63),
    ("stock_sha256", "A" * 64),
    ("overlay_sha256", None),
    ("overlay_size", len(STOCK["one"])),
    ("overlay_size", -1),
    ("overlay_size", 5_000_001),
    ("overlay_size", True),
    ("releases", []),
    ("releases", ["1.0.0", "9.9.9"]),
    ("releases", ["latest"]),
    ("edits", [{"recipe": "r", "qualname": "", "stock": [5, 2], "overlay": [0, 1], "stock_text": ""}]),
    ("edits", [{"recipe": "r", "qualname": "", "stock": [0, 1], "overlay": [0, 1]}]),
    ("edits", []),
]


@pytest.mark.parametrize(("key", "value"), FIRST, ids=lambda part: re.sub(r"\W+", "_", str(part))[:40])
def test_a_wrong_file_entry_is_refused(bundle: Path, key: str, value: object) -> None:
    manifest = manifest_of(bundle)
    files = manifest["files"]
    assert isinstance(files, list)
    files[0][key] = value
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"manifest\.json is not valid"):
        catalog.load("1.0", bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "amd-overlay.manifest/2"},
        {"line": "2.0"},
        {"recipes": "xyz"},
        {"files": None},
        {"files": [1]},
        {"generator": "1"},
    ],
    ids=str,
)
def test_a_wrong_manifest_is_refused(bundle: Path, change: dict[str, object]) -> None:
    write_manifest(bundle, {**manifest_of(bundle), **change})
    with pytest.raises(BundleError) as caught:
        catalog.load("1.0", bundle)
    assert caught.value.code == 8


def test_repeated_entries_are_refused(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    files = manifest["files"]
    assert isinstance(files, list)
    files.append(copy.deepcopy(files[0]))
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match="repeated"):
        catalog.load("1.0", bundle)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"], ids=len)
def test_a_manifest_that_is_no_json_object(bundle: Path, data: bytes) -> None:
    (bundle / "1.0" / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError):
        catalog.load("1.0", bundle)


def _payload(bundle: Path) -> Path:
    return next((bundle / "1.0" / "models" / "one").glob("*.py"))


def _change(bundle: Path) -> None:
    _payload(bundle).write_bytes(_payload(bundle).read_bytes().replace(b"one", b"0ne"))


def _shorten(bundle: Path) -> None:
    _payload(bundle).write_bytes(b"")


def _link(bundle: Path) -> None:
    moved = bundle / "moved.py"
    shutil.move(_payload(bundle), moved)
    (bundle / "1.0" / "models" / "one" / f"modeling_one.{digest(STOCK['one'])[:12]}.py").symlink_to(moved)


def _link_folder(bundle: Path) -> None:
    shutil.move(bundle / "1.0" / "models", bundle / "models")
    (bundle / "1.0" / "models").symlink_to(bundle / "models")


def _remove(bundle: Path) -> None:
    _payload(bundle).unlink()


@pytest.mark.parametrize("damage", [_change, _shorten, _link, _link_folder, _remove])
def test_a_damaged_payload_is_refused(bundle: Path, damage: Callable[[Path], None]) -> None:
    damage(bundle)
    entry = catalog.find("models/one/modeling_one.py", digest(STOCK["one"]), bundle)
    assert entry is not None
    with pytest.raises(BundleError) as caught:
        entry.overlay_bytes()
    assert caught.value.code == 8
    assert caught.value.paths


def test_edits_that_lead_elsewhere_are_refused(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    files = manifest["files"]
    assert isinstance(files, list)
    stock, overlay = STOCK["one"], overlay_text(STOCK["one"])
    growth = len(overlay) - len(stock)
    files[0]["edits"][0] |= {"stock": [3, 3], "overlay": [3, 3 + growth]}
    write_manifest(bundle, manifest)
    entry = catalog.find("models/one/modeling_one.py", digest(stock), bundle)
    assert entry is not None
    with pytest.raises(BundleError, match="does not lead back"):
        entry.stock_bytes()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), {"one": STOCK["one"]})


SAFE = re.compile(r"models/[a-z0-9_]+/modeling_[a-z0-9_]+\.py", re.ASCII)
PIECES = st.sampled_from(
    ["models", "one", "modeling_one", ".py", "/", "..", ".", "\\", "\n", "\0", "~", "A", "é", "\u0663", "%2e", " "]
)


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=40))
def test_only_plain_modeling_paths_are_accepted(template: Path, path: str) -> None:
    """Whatever is accepted stays below the package and is a modeling file."""
    bundle = template
    manifest = manifest_of(bundle)
    files = manifest["files"]
    assert isinstance(files, list)
    files[0]["path"] = path
    write_manifest(bundle, manifest)
    catalog.load.cache_clear()
    try:
        catalog.load("1.0", bundle)
    except BundleError:
        return
    assert SAFE.fullmatch(path)
    assert Path("/package", path).resolve().is_relative_to("/package/models/one")
