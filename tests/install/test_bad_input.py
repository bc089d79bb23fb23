"""What people and broken machines do to us: one sentence and an exit code, never a traceback, never a lost text."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import BundleError, OverlayError
from rocm_overlay.install import catalog, inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.states import State

from tests.install.support import LINE, STOCK, Done, environment, modeling, overlay_text, snapshot

Overlay = Callable[..., Done]
STATE = ".amd-overlay"


@pytest.fixture
def options(small_site: Path, bundle: Path) -> Options:
    catalog.load.cache_clear()
    return Options(site_packages=small_site, bundle=bundle)


def _file(state: Path) -> None:
    shutil.rmtree(state)
    state.write_text("not a folder\n")


def _link(state: Path) -> None:
    state.rename(state.parent / "elsewhere")
    state.symlink_to(state.parent / "elsewhere")


def _receipt_folder(state: Path) -> None:
    (state / "receipt.json").unlink()
    (state / "receipt.json").mkdir()


def _blobs_file(state: Path) -> None:
    shutil.rmtree(state / "blobs")
    (state / "blobs").write_text("not a folder\n")


def _lock_folder(state: Path) -> None:
    (state / "lock").unlink()
    (state / "lock").mkdir()


def _journal_folder(state: Path) -> None:
    (state / "txn.json").mkdir()


def _binary_receipt(state: Path) -> None:
    (state / "receipt.json").write_bytes(os.urandom(200))


def _newer_receipt(state: Path) -> None:
    value = json.loads((state / "receipt.json").read_bytes())
    (state / "receipt.json").write_text(json.dumps({**value, "schema": "amd-overlay.receipt/2", "new": 1}))


def _newer_journal(state: Path) -> None:
    (state / "txn.json").write_text('{"schema": "amd-overlay.txn/2", "new": true}')


DAMAGE = [
    _file, _link, _receipt_folder, _blobs_file, _lock_folder, _journal_folder, _binary_receipt, _newer_receipt,
    _newer_journal,
]  # fmt: skip
COMMANDS = [
    ["status", "--json"], ["diff", "--json"], ["revert", "--json"], ["revert", "--force", "--json"],
    ["recover", "--json"], ["install", "--transformers", "4.57", "--models", "llama,phi3", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_state_folder_is_a_sentence(damage: Callable[[Path], None], site: Path, overlay: Overlay) -> None:
    before = snapshot(site)
    where = ("--site-packages", site)
    assert overlay("install", "--transformers", "4.57", "--models", "llama", *where).code == 0
    damage(site / STATE)
    ours = modeling(site, "llama").read_bytes()
    for command in COMMANDS:
        done = overlay(*command, *where)
        assert done.code in (0, 3, 4, 5, 6, 7), done
        assert "Traceback" not in done.err
        if done.code:
            assert done.error["remedy"]
            assert done.error["code"] == done.code
        text = modeling(site, "llama").read_bytes()
        name = modeling(site, "llama").relative_to(site).as_posix()
        assert text == ours or snapshot(site)[name][0] == before[name][0]  # type: ignore[index]


@pytest.mark.parametrize("what", ["payload", "manifest", "linked payload", "missing payload", "linked folder"])
def test_a_tampered_bundle(what: str, options: Options, bundle: Path, small_site: Path) -> None:
    folder = bundle / LINE / "models" / "one"
    payload = next(folder.glob("*.py"))
    if what == "payload":
        payload.write_bytes(payload.read_bytes()[:-1] + b"#")
    elif what == "manifest":
        (bundle / LINE / "manifest.json").write_text('{"schema": "amd-overlay.manifest/1"}')
    elif what == "linked payload":
        payload.rename(bundle / "real.py")
        payload.symlink_to(bundle / "real.py")
    elif what == "missing payload":
        payload.unlink()
    else:
        folder.rename(bundle / "real")
        folder.symlink_to(bundle / "real")
    with pytest.raises(BundleError) as caught:
        operations.install(options, LINE)
    assert caught.value.code == 8
    assert caught.value.paths
    assert not (small_site / STATE).exists()


def test_a_bundle_that_is_tampered_with_later_does_not_stop_a_revert(
    options: Options, bundle: Path, small_site: Path
) -> None:
    before = snapshot(small_site)
    operations.install(options, LINE)
    for payload in bundle.rglob("*.py"):
        payload.write_bytes(b"tampered\n")
    catalog.load.cache_clear()
    operations.revert(options)
    assert snapshot(small_site) == before


def test_a_tampered_bundle_never_becomes_stock(options: Options, bundle: Path, small_site: Path) -> None:
    """Without our folder the way back leads through the bundle, and only a text with the right hash is taken."""
    operations.install(options, LINE)
    shutil.rmtree(small_site / STATE)
    texts = {model: modeling(small_site, model).read_bytes() for model in STOCK}
    path = bundle / LINE / "manifest.json"
    value = json.loads(path.read_bytes())
    for file in value["files"]:
        file["edits"][0]["overlay"][1] -= 1
        file["stock_size"] += 1
    path.write_text(json.dumps(value))
    catalog.load.cache_clear()
    with pytest.raises(BundleError, match="does not lead back to the stock text"):
        operations.revert(options)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == texts


def test_stock_comes_back_from_the_bundle_alone(
    site: Path, overlay: Overlay, stock_tree: Callable[[str], Path]
) -> None:
    """The second source of truth, on a real release: no state folder, no blobs, every byte by its hash."""
    where = ("--site-packages", site)
    assert overlay("install", "--transformers", "4.57", *where).code == 0
    shutil.rmtree(site / STATE)
    assert overlay("revert", *where).code == 0
    tree = stock_tree("4.57.6")
    for file in sorted(site.rglob("modeling_*.py")):
        assert file.read_bytes() == (tree / file.relative_to(site)).read_bytes()
    assert overlay("status", "--json", *where).json["state"] == "STOCK"


@pytest.mark.parametrize("name", [b"site-\xff\xfe", "sit\u00e9 \u4e2d".encode(), b"with space 'and' quote"])
def test_any_path_in_any_locale(name: bytes, site: Path, tmp_path: Path) -> None:
    moved = tmp_path / os.fsdecode(name)
    site.rename(moved)
    before = snapshot(moved)
    variables = environment({"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    for command in (
        ["install", "--transformers", "4.57", "--json"], ["status", "--json"], ["diff"], ["status"], ["revert"],
        ["recover", "--json"],
    ):  # fmt: skip
        argv = [sys.executable, "-c", "from rocm_overlay.cli import main; main()", *command, "--site-packages", moved]
        done = subprocess.run(argv, env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done
        assert done.stderr == b"", done.stderr
        if "--json" in command:
            json.loads(done.stdout.decode("ascii"))
    assert snapshot(moved) == before


def test_a_package_manager_that_is_half_done_is_a_sentence(site: Path, overlay: Overlay) -> None:
    (next(site.glob("*.dist-info")) / "METADATA").write_bytes(b"\xff\xfe")
    (next(site.glob("*.dist-info")) / "RECORD").write_bytes(b"\xff,sha256=\xff,1\ntransformers/x.py,sha256=?!,\n")
    done = overlay("install", "--transformers", "4.57", "--site-packages", site, "--json")
    assert done.code in (0, 3, 4), done
    assert "Traceback" not in done.err


@pytest.mark.parametrize("seconds", [0, 10**9, 10**9 - 7])
def test_a_clock_that_stands_still_or_goes_backwards(
    seconds: int, options: Options, small_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock texts have the time 10**9: an overlay never gets a second that bytecode of the stock text may carry."""
    before = snapshot(small_site)
    clock = itertools.chain((seconds * 10**9 + 5 for _ in range(3)), itertools.repeat(max(0, seconds - 100) * 10**9))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for _ in range(2):
        operations.install(options, LINE)
        for model, text in STOCK.items():
            assert modeling(small_site, model).read_bytes() == overlay_text(text)
            assert modeling(small_site, model).stat().st_mtime_ns // 10**9 != 10**9
        operations.revert(options)
        assert snapshot(small_site) == before
    assert inspection.status(options).state is State.STOCK


def test_a_folder_in_the_place_of_a_model_file(options: Options, small_site: Path) -> None:
    modeling(small_site, "one").unlink()
    modeling(small_site, "one").mkdir()
    with pytest.raises(OverlayError) as caught:
        operations.install(options, LINE)
    assert caught.value.code in (4, 9)
    assert caught.value.paths == (str(modeling(small_site, "one")),)
