"""What the environment looks like after the world has changed under us, and what each command does then."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from rocm_overlay.errors import BundleError, ForeignError, UnrecoveredError, UnsupportedError
from rocm_overlay.install import catalog, inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.states import FileState, State

from tests.install.support import LINE, STOCK, make_bundle, make_site, modeling, overlay_text, snapshot


@pytest.fixture
def options(small_site: Path, bundle: Path) -> Options:
    return Options(site_packages=small_site, bundle=bundle)


def install(options: Options, *models: str) -> operations.Outcome:
    return operations.install(options, "1.0", list(models) or None)


def state(options: Options) -> State:
    return inspection.status(options).state


def test_stock_applied_stock(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    assert state(options) is State.STOCK
    install(options)
    assert state(options) is State.APPLIED
    assert modeling(small_site, "one").read_bytes() == overlay_text(STOCK["one"])
    operations.revert(options)
    assert state(options) is State.STOCK
    assert snapshot(small_site) == before


def test_unsupported(tmp_path: Path, bundle: Path) -> None:
    site = make_site(tmp_path / "other", version="2.0.0")
    assert state(Options(site_packages=site, bundle=bundle)) is State.UNSUPPORTED


def test_stock_of_an_unseen_release_is_unsupported_and_an_edit_is_foreign(tmp_path: Path, bundle: Path) -> None:
    site = make_site(tmp_path / "unseen", {**STOCK, "one": b"other stock\n"}, version="1.0.7")
    options = Options(site_packages=site, bundle=bundle)
    assert state(options) is State.UNSUPPORTED
    with pytest.raises(UnsupportedError, match="no overlay was made for"):
        install(options)
    modeling(site, "one").write_bytes(b"edited\n")
    assert state(options) is State.FOREIGN
    with pytest.raises(ForeignError, match=r"modeling_one\.py is neither the stock text nor ours \(sha256"):
        install(options)
    assert not (site / ".amd-overlay").exists()


def test_an_unseen_release_with_known_texts_is_supported(tmp_path: Path, bundle: Path) -> None:
    site = make_site(tmp_path / "unseen", version="1.0.7")
    options = Options(site_packages=site, bundle=bundle)
    assert install(options).action == "installed"
    assert state(options) is State.APPLIED


def test_a_missing_file_and_one_that_record_does_not_list(options: Options, small_site: Path) -> None:
    record = small_site / "transformers-1.0.0.dist-info" / "RECORD"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "modeling_two" not in line))
    with pytest.raises(ForeignError, match="RECORD does not list it"):
        install(options)
    modeling(small_site, "one").unlink()
    with pytest.raises(ForeignError, match="is missing"):
        install(options)


def test_without_record_the_hash_alone_decides(tmp_path: Path, bundle: Path) -> None:
    options = Options(site_packages=make_site(tmp_path / "plain", record=False), bundle=bundle)
    assert install(options).action == "installed"
    assert operations.revert(options).action == "reverted"


def test_wiped_by_a_reinstall(options: Options, small_site: Path) -> None:
    install(options)
    for model, text in STOCK.items():
        modeling(small_site, model).write_bytes(text)
    assert state(options) is State.WIPED
    before = snapshot(small_site)
    outcome = operations.revert(options)
    assert (outcome.action, outcome.changes.removed) == ("reverted", ())
    assert snapshot(small_site) == before
    assert state(options) is State.STOCK
    install(options)
    for model, text in STOCK.items():
        modeling(small_site, model).write_bytes(text)
    assert install(options).changes.installed
    assert state(options) is State.APPLIED


def test_partial_is_completed_by_install(options: Options, small_site: Path) -> None:
    install(options)
    modeling(small_site, "two").write_bytes(STOCK["two"])
    assert state(options) is State.PARTIAL
    assert install(options).changes.installed == ("models/two/modeling_two.py",)
    assert state(options) is State.APPLIED


def test_drifted_is_refused_and_force_keeps_the_edit(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    install(options)
    edited = modeling(small_site, "two").read_bytes() + b"# mine\n"
    modeling(small_site, "two").write_bytes(edited)
    found = inspection.status(options)
    assert found.state is State.DRIFTED
    assert {file.model: file.state for file in found.files}["two"] is FileState.OVERLAY_OTHER
    for attempt in (lambda: install(options), lambda: operations.revert(options)):
        with pytest.raises(ForeignError, match="modeling_two"):
            attempt()
    assert modeling(small_site, "two").read_bytes() == edited
    outcome = operations.revert(options, force=True)
    assert outcome.done is not None
    assert [Path(path).read_bytes() for path in outcome.done.rescued] == [edited]
    assert snapshot(small_site) == before


def test_revert_restores_a_deleted_file(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    install(options)
    modeling(small_site, "one").unlink()
    assert state(options) is State.DRIFTED
    operations.revert(options)
    assert snapshot(small_site) == before


def upgraded(site: Path, version: str = "1.0.9") -> None:
    """Do what a package manager does: replace every file and the dist-info."""
    shutil.rmtree(site / "transformers")
    for info in site.glob("*.dist-info"):
        shutil.rmtree(info)
    make_site(site / "new", {**STOCK, "one": b"new one\n"}, version=version)
    for entry in (site / "new").iterdir():
        entry.rename(site / entry.name)
    (site / "new").rmdir()


def test_orphaned_by_an_upgrade(options: Options, small_site: Path) -> None:
    install(options)
    upgraded(small_site)
    before = snapshot(small_site)
    assert state(options) is State.ORPHANED
    outcome = operations.revert(options)
    assert any("belongs to transformers 1.0.0, found transformers 1.0.9" in note for note in outcome.notes)
    assert snapshot(small_site) == before
    assert list((small_site / ".amd-overlay" / "rescued").rglob("receipt.json"))
    assert state(options) is not State.ORPHANED


def test_same_version_with_other_stock_is_orphaned(options: Options, small_site: Path) -> None:
    install(options)
    upgraded(small_site, version="1.0.0")
    assert state(options) is State.ORPHANED
    before = snapshot(small_site)
    operations.revert(options)
    assert snapshot(small_site) == before


def test_install_after_an_upgrade_starts_anew(options: Options, small_site: Path) -> None:
    install(options)
    upgraded(small_site)
    before = snapshot(small_site)
    install(options, "two")
    assert state(options) is State.APPLIED
    assert list((small_site / ".amd-overlay" / "rescued").rglob("receipt.json"))
    operations.revert(options)
    assert snapshot(small_site) == before


def test_half_upgraded_is_left_alone(options: Options, small_site: Path) -> None:
    install(options)
    info = small_site / "transformers-1.0.0.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("1.0.0", "1.0.9"))
    before = snapshot(small_site)
    with pytest.raises(ForeignError, match="still hold overlay text"):
        operations.revert(options)
    assert snapshot(small_site) == before
    assert (small_site / ".amd-overlay" / "receipt.json").exists()


def test_uninstalled_under_us(options: Options, small_site: Path) -> None:
    install(options)
    shutil.rmtree(small_site / "transformers")
    shutil.rmtree(small_site / "transformers-1.0.0.dist-info")
    assert state(options) is State.ORPHANED
    operations.revert(options)
    assert not (small_site / "transformers").exists()
    assert not (small_site / ".amd-overlay" / "receipt.json").exists()


def test_stale_is_updated_and_revert_still_gives_the_first_stock(
    options: Options, small_site: Path, tmp_path: Path
) -> None:
    before = snapshot(small_site)
    install(options)
    newer = dataclasses.replace(options, bundle=make_bundle(tmp_path / "newer", generator=12345))
    assert state(newer) is State.STALE
    outcome = install(newer)
    assert len(outcome.changes.updated) == 3
    assert state(newer) is State.APPLIED
    operations.revert(newer)
    assert snapshot(small_site) == before


def test_foreign(options: Options, small_site: Path) -> None:
    modeling(small_site, "one").write_bytes(b"somebody else's overlay\n")
    assert state(options) is State.FOREIGN
    before = snapshot(small_site)
    for force in (False, True):
        with pytest.raises(ForeignError, match=r"no receipt.*modeling_one\.py") as caught:
            operations.revert(options, force=force)
        assert "pip install --force-reinstall --no-deps transformers==1.0.0" in caught.value.remedy
        assert caught.value.paths == (str(modeling(small_site, "one")),)
    assert snapshot(small_site) == before


def test_a_foreign_file_beside_lost_overlays_is_left_and_named(options: Options, small_site: Path) -> None:
    install(options)
    shutil.rmtree(small_site / ".amd-overlay")
    modeling(small_site, "one").write_bytes(b"mine\n")
    outcome = operations.revert(options)
    assert any("left as they are: models/one/modeling_one.py" in note for note in outcome.notes)
    assert [modeling(small_site, model).read_bytes() for model in STOCK] == [b"mine\n", STOCK["two"], STOCK["three"]]


def test_our_marker_with_an_unknown_base_is_not_restored_even_by_force(options: Options, small_site: Path) -> None:
    modeling(small_site, "one").write_bytes(overlay_text(b"unknown\n"))
    with pytest.raises(ForeignError) as caught:
        operations.revert(options, force=True)
    assert "--force-reinstall" in caught.value.remedy
    assert "revert --force" not in caught.value.remedy


@pytest.mark.parametrize("record", [True, False])
def test_a_tree_without_its_model_files_is_damaged(tmp_path: Path, bundle: Path, record: bool) -> None:
    site = make_site(tmp_path / "damaged", record=record)
    shutil.rmtree(site / "transformers" / "models")
    with pytest.raises(ForeignError, match="is damaged: 3 of its files are missing") as caught:
        install(Options(site_packages=site, bundle=bundle))
    assert "pip install --force-reinstall --no-deps transformers==1.0.0" in caught.value.remedy
    assert "sha256" not in caught.value.message
    assert not (site / ".amd-overlay").exists()


def test_revert_takes_stock_from_the_bundle_when_blobs_are_gone(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    install(options)
    shutil.rmtree(small_site / ".amd-overlay" / "blobs")
    operations.revert(options)
    assert snapshot(small_site) == before


def test_revert_ignores_a_damaged_blob(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    install(options)
    for blob in (small_site / ".amd-overlay" / "blobs").iterdir():
        blob.chmod(0o644)
        blob.write_bytes(b"damaged")
    operations.revert(options)
    assert snapshot(small_site) == before


def test_revert_needs_no_bundle(options: Options, small_site: Path, tmp_path: Path) -> None:
    before = snapshot(small_site)
    install(options)
    operations.revert(dataclasses.replace(options, bundle=tmp_path / "nowhere"))
    assert snapshot(small_site) == before


def test_revert_without_blobs_and_bundle_says_what_to_do(options: Options, small_site: Path, tmp_path: Path) -> None:
    install(options)
    shutil.rmtree(small_site / ".amd-overlay" / "blobs")
    with pytest.raises(UnrecoveredError) as caught:
        operations.revert(dataclasses.replace(options, bundle=tmp_path / "nowhere"))
    assert "reinstall transformers" in caught.value.remedy


def test_the_state_folder_is_gone(options: Options, small_site: Path) -> None:
    install(options)
    shutil.rmtree(small_site / ".amd-overlay")
    found = inspection.status(options)
    assert found.state is State.FOREIGN
    assert any("overlay revert" in note for note in found.notes)
    operations.revert(options)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == STOCK
    assert state(options) is State.STOCK


def with_a_lost_state_folder_and_a_new_receipt(options: Options, site: Path, first: Options) -> None:
    """Every file is overlaid, and the receipt knows of one alone."""
    install(first)
    shutil.rmtree(site / ".amd-overlay")
    modeling(site, "one").write_bytes(STOCK["one"])
    operations.install(options, LINE, ["one"])


def test_one_revert_also_finds_what_a_lost_receipt_listed(options: Options, small_site: Path) -> None:
    with_a_lost_state_folder_and_a_new_receipt(options, small_site, options)
    operations.revert(options)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == STOCK
    assert state(options) is State.STOCK


def test_overlays_of_another_version_that_no_receipt_lists_take_force(
    options: Options, small_site: Path, tmp_path: Path
) -> None:
    other = dataclasses.replace(options, bundle=make_bundle(tmp_path / "other", generator=12345))
    with_a_lost_state_folder_and_a_new_receipt(options, small_site, other)
    before = snapshot(small_site)
    with pytest.raises(ForeignError, match=r"modeling_three\.py"):
        operations.revert(options)
    assert snapshot(small_site) == before
    operations.revert(options, force=True)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == STOCK


@pytest.mark.parametrize("force", [False, True])
def test_a_stray_overlay_of_an_unknown_stock_text_is_left_and_named(
    force: bool, options: Options, small_site: Path
) -> None:
    operations.install(options, LINE, ["one"])
    modeling(small_site, "two").write_bytes(overlay_text(b"unknown\n"))
    modeling(small_site, "three").write_bytes(b"mine\n")
    outcome = operations.revert(options, force=force)
    assert outcome.notes == ("neither stock nor ours, and left as they are: models/two/modeling_two.py",)
    assert modeling(small_site, "one").read_bytes() == STOCK["one"]
    assert modeling(small_site, "three").read_bytes() == b"mine\n"


def test_a_damaged_bundle_does_not_stand_in_the_way_of_a_receipt(options: Options, small_site: Path) -> None:
    before = snapshot(small_site)
    install(options)
    (options.bundle / LINE / "manifest.json").write_bytes(b"{")
    operations.revert(options)
    assert snapshot(small_site) == before


def test_install_writes_a_lost_receipt_anew(options: Options, small_site: Path) -> None:
    install(options)
    shutil.rmtree(small_site / ".amd-overlay")
    before = snapshot(small_site)
    assert len(install(options).changes.unchanged) == 3
    assert snapshot(small_site) == before
    assert state(options) is State.APPLIED
    operations.revert(options)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == STOCK


def test_an_edited_overlay_without_state_needs_force(options: Options, small_site: Path) -> None:
    install(options)
    shutil.rmtree(small_site / ".amd-overlay")
    file = modeling(small_site, "one")
    file.write_bytes(file.read_bytes() + b"# mine\n")
    with pytest.raises(ForeignError, match="modeling_one"):
        operations.revert(options)
    operations.revert(options, force=True)
    assert file.read_bytes() == STOCK["one"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": "amd-overlay.receipt/9"}'])
def test_an_unreadable_receipt(options: Options, small_site: Path, text: str) -> None:
    install(options)
    receipt = small_site / ".amd-overlay" / "receipt.json"
    receipt.write_text(text)
    for command in (install, operations.revert, inspection.status):
        with pytest.raises(UnrecoveredError, match=r"receipt\.json is not a receipt"):
            command(options)
    operations.revert(options, force=True)
    assert {model: modeling(small_site, model).read_bytes() for model in STOCK} == STOCK
    assert [path.read_text() for path in (small_site / ".amd-overlay" / "rescued").rglob("receipt.json")] == [text]


def test_a_receipt_that_leads_out_of_the_package(options: Options, small_site: Path) -> None:
    install(options)
    receipt = small_site / ".amd-overlay" / "receipt.json"
    value = json.loads(receipt.read_text())
    value["files"][0]["path"] = "../../outside.py"
    receipt.write_text(json.dumps(value))
    with pytest.raises(UnrecoveredError, match="outside"):
        operations.revert(options)


@pytest.mark.parametrize("text", ["", "{", '{"schema": "amd-overlay.txn/9"}'])
def test_an_unreadable_journal(options: Options, small_site: Path, text: str) -> None:
    install(options)
    (small_site / ".amd-overlay" / "txn.json").write_text(text)
    with pytest.raises(UnrecoveredError, match=r"txn\.json is not a journal"):
        operations.revert(options)
    assert state(options) is State.INTERRUPTED


def test_a_tampered_payload(options: Options, bundle: Path, small_site: Path) -> None:
    payload = next((bundle / "1.0" / "models" / "one").glob("*.py"))
    payload.write_bytes(payload.read_bytes().replace(b"one", b"0ne"))
    catalog.load.cache_clear()
    with pytest.raises(BundleError) as caught:
        install(options)
    assert caught.value.code == 8
    assert not (small_site / ".amd-overlay").exists()
