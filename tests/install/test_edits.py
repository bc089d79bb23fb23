"""Edits and files of the user's: adopted, generated, own. What fits is installed and comes back; what does not is
refused in one sentence, with nothing done.
"""

from __future__ import annotations

import fcntl
import json
import os
import py_compile
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("libcst")

from rocm_overlay.errors import BundleError, BusyError, ForeignError, OverlayError, UnsupportedError, UsageError
from rocm_overlay.install import catalog, inspection, operations, report
from rocm_overlay.install.doctor import Machine, examine
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction import fs
from rocm_overlay.install.transaction.states import State

from tests.forking import fork
from tests.install.support import (
    FITTING,
    STOCK,
    Done,
    digest,
    make_bundle,
    make_site,
    modeling,
    overlay_text,
    run_process,
    snapshot,
)

ONE = "models/one/modeling_one.py"
OWN = b'"""Mine."""\n\nimport os\n\n\nclass Thing:\n    pass\n'


@pytest.fixture(autouse=True)
def _fresh() -> None:
    catalog.load.cache_clear()


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(site_packages=make_site(tmp_path / "site"), bundle=make_bundle(tmp_path / "bundle"))


def file_of(options: Options, model: str = "one") -> Path:
    assert options.site_packages is not None
    return modeling(options.site_packages, model)


def folder_with(root: Path, **texts: bytes) -> Path:
    for model, text in texts.items():
        path = root / "models" / model / f"modeling_{model}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return root


def refused(kind: type[OverlayError], body: Callable[[], object], site: Path) -> OverlayError:
    """Return the refusal, which names what to do, and after which everything is as it was."""
    before = snapshot(site)
    with pytest.raises(kind) as caught:
        body()
    assert caught.value.remedy
    assert "\n" not in caught.value.message
    assert snapshot(site) == before
    assert not (site / ".amd-overlay" / "receipt.json").exists()
    return caught.value


# -- adopted -------------------------------------------------------------------------------------------------------


def test_an_adopted_edit_is_the_base_of_its_overlay(options: Options) -> None:
    file_of(options).write_bytes(FITTING)
    site = options.site_packages or Path()
    before = snapshot(site)
    done = operations.install(options, "1.0", adopt=True)
    text = file_of(options).read_bytes()
    assert text.startswith(b"# amd-overlay/1 base=sha256:" + digest(FITTING).encode())
    assert b"class OneConditioned" in text, "the edit stays"
    assert any("rms_norm 1" in note for note in done.notes), "what the recipes did is said"
    status = inspection.status(options)
    (one,) = (file for file in status.files if file.model == "one")
    assert (status.state, one.word, one.base, one.stock) == (
        State.APPLIED, "adopted", digest(FITTING), digest(STOCK["one"]),
    )  # fmt: skip
    assert operations.install(options, "1.0", adopt=True).action == "nothing"
    reverted = operations.revert(options)
    assert reverted.action == "reverted"
    assert f"your own text again, as it was found, not stock: {ONE}" in reverted.notes
    assert snapshot(site) == before


def test_an_edit_that_no_recipe_fits_is_refused(options: Options) -> None:
    file_of(options).write_bytes(b"mine = True\n")
    site = options.site_packages or Path()
    error = refused(ForeignError, lambda: operations.install(options, "1.0", adopt=True), site)
    assert "no overlay can be made from it: no recipe fits it" in error.message
    assert str(file_of(options)) in error.message
    file_of(options).write_bytes(b"def broken(:\n")
    error = refused(ForeignError, lambda: operations.install(options, "1.0", adopt=True), site)
    assert "no overlay can be made from it" in error.message


def test_without_libcst_adopting_says_what_it_needs(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(options).write_bytes(FITTING)
    for name in [name for name in sys.modules if name.startswith(("rocm_overlay.patchgen", "rocm_overlay.overlays."))]:
        monkeypatch.delitem(sys.modules, name)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "libcst" else find(name, *more)
    )
    monkeypatch.setitem(sys.modules, "libcst", None)
    site = options.site_packages or Path()
    error = refused(UsageError, lambda: operations.install(options, "1.0", adopt=True), site)
    assert (error.id, "libcst" in error.message) == ("needs-gen", True)


def test_an_adopted_text_outlives_an_upgrade(options: Options) -> None:
    file_of(options).write_bytes(FITTING)
    operations.install(options, "1.0", adopt=True)
    site = options.site_packages or Path()
    info = site / "transformers-1.0.0.dist-info"
    newer = make_site(site.parent / "newer", {**STOCK, "one": b"# newer\n"}, version="1.0.9")
    for model in STOCK:
        file_of(options, model).write_bytes(modeling(newer, model).read_bytes())
    for path in info.iterdir():
        path.unlink()
    info.rmdir()
    (newer / "transformers-1.0.9.dist-info").rename(site / "transformers-1.0.9.dist-info")
    status = inspection.status(options)
    assert status.state is State.ORPHANED
    assert {file.state.value for file in status.files} == {"stock", "unseen"}, "the other release's stock is stock"
    assert any("models/one/modeling_one.py was adopted" in note for note in status.notes)
    kept = [note for note in operations.revert(options).notes if "is kept as" in note and ONE in note]
    assert Path(kept[0].split(" is kept as ")[1]).read_bytes() == FITTING


def test_a_receipt_of_an_older_version_that_put_stocks_overlay_over_an_edit(options: Options) -> None:
    """Until generator 3 --adopt took the bundle's overlay. The edit is in the blobs, and off."""
    file_of(options).write_bytes(FITTING)
    operations.install(options, "1.0", adopt=True)
    site = options.site_packages or Path()
    receipt = site / ".amd-overlay" / "receipt.json"
    content = json.loads(receipt.read_text())
    (one,) = (file for file in content["files"] if file["model"] == "one")
    del one["origin"], one["recorded_sha256"]
    one.update(made_from=digest(STOCK["one"]), overlay_sha256=digest(overlay_text(STOCK["one"])))
    receipt.write_text(json.dumps(content))
    file_of(options).write_bytes(overlay_text(STOCK["one"]))
    assert any("adopted by an older version" in note for note in inspection.status(options).notes)
    machine = Machine({}, site, site, site, site, site)
    assert "adopted-by-older-version" in [one.id for one in examine(options, machine=machine).findings]
    with pytest.raises(ForeignError) as caught:
        operations.install(options, "1.0")
    assert caught.value.id == "adopted-by-older-version"
    operations.install(options, "1.0", adopt=True)
    assert b"class OneConditioned" in file_of(options).read_bytes()
    receipt.write_text(json.dumps(content))
    file_of(options).write_bytes(overlay_text(STOCK["one"]))
    operations.revert(options)
    assert file_of(options).read_bytes() == FITTING


# -- generated -----------------------------------------------------------------------------------------------------


def generated(options: Options, folder: Path) -> Path:
    done = run_process(
        "gen", "--all", "--source", str(file_of(options).parents[2]), "--models", "one", "-o", str(folder)
    )
    assert done.code == 0, done.err
    return folder


def test_what_gen_makes_of_an_edit_is_installed_without_adopt(options: Options, tmp_path: Path) -> None:
    file_of(options).write_bytes(FITTING)
    folder = folder_with(tmp_path / "made")
    from rocm_overlay.install import made

    (entry,) = made.make({ONE: FITTING}, version="1.0.0").entries
    folder_with(folder, one=entry.overlay_bytes())
    site = options.site_packages or Path()
    before = snapshot(site)
    assert operations.install(options, "1.0", generated=folder).changes.adopted == (ONE,)
    (one,) = inspection.status(options).files
    assert (one.word, one.base) == ("generated", digest(FITTING))
    assert operations.install(options, "1.0", ["one"]).action == "nothing", "never the overlay of another text over it"
    operations.revert(options)
    assert snapshot(site) == before
    file_of(options).write_bytes(FITTING + b"# and more\n")
    error = refused(ForeignError, lambda: operations.install(options, "1.0", generated=folder), site)
    assert "edited-files" in error.id
    file_of(options).write_bytes(STOCK["one"])
    error = refused(UnsupportedError, lambda: operations.install(options, "1.0", generated=folder), site)
    assert digest(FITTING)[:12] in error.message, "a bundle that was made for another text names it"


# -- own -----------------------------------------------------------------------------------------------------------


def test_no_toggle_is_named_where_every_file_is_the_users_and_the_release_stands_once(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("USE_", "AMD_OPS", "FORCE_"))]:
        monkeypatch.delenv(name)
    mine = folder_with(tmp_path / "mine", one=OWN)
    outcome = operations.install(options, "1.0", replacements=mine)
    assert report.outcome("install", outcome) == report.status(inspection.status(options), 0) == 0
    installed, status = capsys.readouterr().out.split("APPLIED")
    for said in (installed, status):
        assert report.OWN_ALONE in said
        assert report.UNSET not in said
        assert said.count("transformers 1.0") == 1
    assert report.outcome("install", operations.install(options, "1.0")) == 0
    said = capsys.readouterr().out
    assert report.UNSET in said, "now there are overlays, too"
    assert report.OWN_ALONE not in said


@pytest.mark.parametrize("layout", ["models", "direct", "flat"])
def test_own_files_are_installed_shown_and_reverted(options: Options, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "mine"
    name = {"models": "models/one/modeling_one.py", "direct": "one/modeling_one.py", "flat": "modeling_one.py"}[layout]
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(OWN)
    (folder / "README.md").write_text("not Python")
    site = options.site_packages or Path()
    before = snapshot(site)
    assert operations.install(options, "1.0", replacements=folder).changes.installed == (ONE,)
    assert file_of(options).read_bytes() == OWN
    (one,) = inspection.status(options).files
    assert (one.word, one.base) == ("own", digest(STOCK["one"]))
    assert operations.install(options, "1.0", replacements=folder).action == "nothing"
    done = operations.install(options, "1.0")
    assert set(done.changes.installed) == {f"models/{model}/modeling_{model}.py" for model in ("two", "three")}
    assert file_of(options).read_bytes() == OWN, "an own file stays until it is reverted"
    assert not any("not stock" in note for note in operations.revert(options).notes)
    assert snapshot(site) == before


def test_own_files_beside_the_bundles(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = folder_with(tmp_path / "mine", one=OWN)
    report.outcome("install", operations.install(options, "1.0", ["one", "two"], replacements=mine))
    assert "1 file overlaid, 1 file of your own put in place in " in capsys.readouterr().out
    assert file_of(options).read_bytes() == OWN
    assert file_of(options, "two").read_bytes() == overlay_text(STOCK["two"])
    assert file_of(options, "three").read_bytes() == STOCK["three"]


def test_what_a_patch_config_makes_fits_its_own_text_alone(options: Options, tmp_path: Path) -> None:
    def made_from(text: bytes) -> bytes:
        return f"# amd-patchgen/1 base=sha256:{digest(text)} generator=3 patches=0123456789ab (x)\n".encode() + OWN

    site = options.site_packages or Path()
    mine = folder_with(tmp_path / "mine", one=made_from(b"another"))
    error = refused(UnsupportedError, lambda: operations.install(options, "1.0", replacements=mine), site)
    assert digest(b"another")[:12] in error.message
    folder_with(mine, one=made_from(STOCK["one"]))
    operations.install(options, "1.0", replacements=mine)
    assert inspection.status(options).files[0].word == "own"


def test_own_files_over_an_edit_need_adopt(options: Options, tmp_path: Path) -> None:
    file_of(options).write_bytes(b"edit\n")
    mine, site = folder_with(tmp_path / "mine", one=OWN), options.site_packages or Path()
    refused(ForeignError, lambda: operations.install(options, "1.0", replacements=mine), site)
    operations.install(options, "1.0", replacements=mine, adopt=True)
    operations.revert(options)
    assert file_of(options).read_bytes() == b"edit\n"


@pytest.mark.parametrize(
    ("files", "kind", "id", "words"),
    [
        ({"one": b"def broken(:\n"}, BundleError, "replacement-unusable", "is not Python"),
        ({"one": b""}, BundleError, "generated-damaged", "plain file"),
        ({"nine": OWN}, UsageError, "no-such-model", "no file is added to it"),
        ({"one": overlay_text(STOCK["one"])}, BundleError, "replacement-unusable", "--generated"),
        ({}, UsageError, "no-replacements", "not a folder"),
    ],
)
def test_own_files_that_cannot_be_installed(
    files: dict[str, bytes], kind: type[OverlayError], id: str, words: str, options: Options, tmp_path: Path
) -> None:
    mine = folder_with(tmp_path / "mine", **files)
    error = refused(
        kind, lambda: operations.install(options, "1.0", replacements=mine), options.site_packages or Path()
    )
    assert (error.id, words in error.message) == (id, True), error.message


def test_a_folder_with_more_than_modeling_files_is_refused(options: Options, tmp_path: Path) -> None:
    mine = folder_with(tmp_path / "mine", one=OWN)
    (mine / "models" / "one" / "configuration_one.py").write_bytes(OWN)
    error = refused(
        UsageError, lambda: operations.install(options, "1.0", replacements=mine), options.site_packages or Path()
    )
    assert (error.id, "configuration_one.py" in error.message) == ("not-a-modeling-file", True)


def test_two_origins_for_one_file(options: Options, tmp_path: Path) -> None:
    mine = folder_with(tmp_path / "mine", one=OWN)
    made = folder_with(tmp_path / "made", one=overlay_text(STOCK["one"], 5))
    error = refused(
        UsageError,
        lambda: operations.install(options, "1.0", generated=made, replacements=mine),
        options.site_packages or Path(),
    )
    assert (error.id, ONE in error.message) == ("two-origins", True)
    (mine / "modeling_one.py").write_bytes(OWN)
    error = refused(
        BundleError, lambda: operations.install(options, "1.0", replacements=mine), options.site_packages or Path()
    )
    assert "several files" in error.message


def test_names_that_others_import_and_that_are_gone_are_said(options: Options, tmp_path: Path) -> None:
    site = options.site_packages or Path()
    modeling(site, "one").write_bytes(STOCK["one"] + b"class Used:\n    pass\n\n\nclass Unused:\n    pass\n")
    modeling(site, "two").write_bytes(b"from ..one.modeling_one import Used\n" + STOCK["two"])
    done = operations.install(options, "1.0", replacements=folder_with(tmp_path / "mine", one=OWN), adopt=True)
    assert [note for note in done.notes if "lacks what other files import" in note] == [
        f"{ONE} lacks what other files import from it: Used"
    ]


def test_an_own_file_on_a_changed_base_is_said(options: Options, tmp_path: Path) -> None:
    mine, site = folder_with(tmp_path / "mine", one=OWN), options.site_packages or Path()
    operations.install(options, "1.0", replacements=mine)
    newer = make_site(tmp_path / "newer", {**STOCK, "one": b"# newer\n"}, version="1.0.9")
    file_of(options).write_bytes(b"# newer\n")
    for path in (site / "transformers-1.0.0.dist-info").iterdir():
        path.unlink()
    (site / "transformers-1.0.0.dist-info").rmdir()
    (newer / "transformers-1.0.9.dist-info").rename(site / "transformers-1.0.9.dist-info")
    assert any("was own, on the text" in note for note in inspection.status(options).notes)
    done = operations.install(options, "1.0.9", replacements=mine)
    assert any("check that it still fits" in note for note in done.notes)


# -- looking -------------------------------------------------------------------------------------------------------


def _stop_at_the_probe(options: Options) -> None:
    def probe(self: fs.Tree, relative: str, temporary: str) -> None:
        if "/models/" in relative:
            with self.directory(relative) as at:
                self.fs.create(temporary, at)
            os._exit(9)

    fs.Tree.probe = probe  # type: ignore[method-assign]
    operations.install(options, "1.0")


def test_the_probe_of_a_killed_preflight_is_found_and_swept(options: Options) -> None:
    site = options.site_packages or Path()
    before = snapshot(site)
    assert fork(lambda: _stop_at_the_probe(options)) == 9
    assert [path.name for path in site.rglob("*.ovtmp")] != []
    found = examine(options, machine=Machine({}, site, site, site, site, site)).findings
    assert "stray-temporaries" in [one.id for one in found]
    done = operations.revert(options)
    assert (done.action, any("removed 1 temporary file" in note for note in done.notes)) == ("nothing", True)
    assert snapshot(site) == before
    assert list(site.rglob("*.ovtmp")) == []


def test_looking_waits_a_second_for_another_command_and_names_it(options: Options) -> None:
    operations.install(options, "1.0")
    state = (options.site_packages or Path()) / ".amd-overlay"
    (state / "txn.json").write_text("{}")
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(state / "lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(BusyError) as caught:
            inspection.status(options)
        assert time.monotonic() - started < 30, "the machine may be busy; a lock would be waited for much longer"
        assert f"process {holder.pid}" in caught.value.message
    finally:
        holder.kill()
        holder.wait()
    assert inspection.status(options).state is State.INTERRUPTED
    with (state / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has let go of it


@pytest.mark.parametrize("command", ["status", "diff", "doctor", "attest", "list"])
def test_looking_leaves_an_interrupted_tree_as_it_is(options: Options, command: str) -> None:
    operations.install(options, "1.0")
    site = options.site_packages or Path()
    (site / ".amd-overlay" / "txn.json").write_text("{}")
    before = {path: path.lstat().st_mtime_ns for path in site.rglob("*")}
    where = [] if command == "list" else ["--site-packages", str(site)]
    done = run_process(command, *where)
    assert isinstance(done, Done)
    if command != "list":
        assert ("INTERRUPTED" if command == "attest" else "overlay recover") in done.out + done.err
    assert {path: path.lstat().st_mtime_ns for path in site.rglob("*")} == before


def test_bytecode_below_a_prefix_is_purged_without_an_interpreter(options: Options, tmp_path: Path) -> None:
    """--site-packages asks no interpreter; the variable of this process says where bytecode lies."""
    prefix, site = tmp_path / "prefix", options.site_packages or Path()
    cached = (
        prefix / str(site).lstrip("/") / "transformers/models/one" / f"modeling_one.{sys.implementation.cache_tag}.pyc"
    )
    for command in (("install", "--transformers", "1.0"), ("revert",)):
        py_compile.compile(
            str(file_of(options)), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        code = (
            "import sys; from pathlib import Path; from rocm_overlay.install import operations as o; "
            "from rocm_overlay.install.session import Options; "
            "where = Options(site_packages=Path(sys.argv[1]), bundle=Path(sys.argv[2])); "
            "o.install(where, '1.0') if sys.argv[3] == 'install' else o.revert(where)"
        )
        done = run_process(str(site), str(options.bundle), command[0], code=code, PYTHONPYCACHEPREFIX=str(prefix))
        assert done.code == 0, done.err
        assert not cached.exists(), command
