"""Overlays from elsewhere and bases from elsewhere: --generated and --adopt, and `status --deep`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import UnrecoveredError
from rocm_overlay.install import catalog
from rocm_overlay.install.operations import install as install_in
from rocm_overlay.install.operations import revert as revert_in
from rocm_overlay.install.session import Options

from tests.install.support import FITTING, Done, digest, make_bundle, make_site, modeling, snapshot

Overlay = Callable[..., Done]
LLAMA = "models/llama/modeling_llama.py"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    catalog.load.cache_clear()


def install(overlay: Overlay, site: Path, *more: object, spec: str = "4.57") -> Done:
    return overlay("install", "--transformers", spec, "--site-packages", site, "--json", *more)


# -- --generated ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(stock_tree: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `overlay gen --all -o DIR` writes for one model of a real release."""
    pytest.importorskip("libcst")
    from rocm_overlay.app import run

    folder = tmp_path_factory.mktemp("generated") / "overlays"
    source = str(stock_tree("4.57.6") / "transformers")
    assert run(["gen", "--all", "--source", source, "--models", "llama,qwen3", "-o", str(folder)]) == 0
    return folder


def test_generated_overlays_are_installed_and_reverted(generated: Path, site: Path, overlay: Overlay) -> None:
    before = snapshot(site)
    done = install(overlay, site, "--generated", generated)
    assert (done.code, done.json["action"]) == (0, "installed"), done.err
    assert modeling(site, "llama").read_bytes() == (generated / LLAMA).read_bytes()
    status = overlay("status", "--check", "--site-packages", site, "--json")
    assert (status.code, status.json["state"]) == (0, "APPLIED")
    assert str(status.json["receipt"]["version"]).startswith("generated-4.57-")  # type: ignore[index]
    assert install(overlay, site, "--generated", generated).json["action"] == "nothing"
    assert overlay("diff", "--exit-code", "--site-packages", site).code == 1
    shutil.rmtree(site / ".no-such-folder", ignore_errors=True)
    assert overlay("revert", "--site-packages", site).code == 0
    assert snapshot(site) == before


def test_the_bundle_takes_over_from_generated_overlays(generated: Path, site: Path, overlay: Overlay) -> None:
    before = snapshot(site)
    install(overlay, site, "--generated", generated, "--models", "llama")
    assert install(overlay, site).code == 0
    overlay("revert", "--site-packages", site)
    assert snapshot(site) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"import os\n" + data, "marker"),
        (lambda data: data + b"def broken(:\n", "is not Python"),
        (lambda data: b"", "plain file"),
    ],
    ids=["no marker", "no Python", "empty"],
)
def test_a_damaged_folder_is_refused(
    generated: Path, site: Path, overlay: Overlay, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(generated, folder)
    (folder / LLAMA).write_bytes(change((folder / LLAMA).read_bytes()))
    before = snapshot(site)
    done = install(overlay, site, "--generated", folder)
    assert done.code == done.error["code"] == 8
    assert words in str(done.error["message"])
    assert snapshot(site) == before


@pytest.mark.parametrize("kind", ["link", "name", "mixed"])
def test_unexpected_things_in_the_folder(
    generated: Path, site: Path, overlay: Overlay, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(generated, folder)
    if kind == "link":
        (folder / LLAMA).rename(tmp_path / "elsewhere")
        (folder / LLAMA).symlink_to(tmp_path / "elsewhere")
    elif kind == "name":
        (folder / LLAMA).rename(folder / "models" / "llama" / "evil.py")
    else:
        text = (folder / LLAMA).read_bytes()
        (folder / LLAMA).write_bytes(text.replace(b" recipes=", b" recipes=000000000000 was=", 1))
    assert install(overlay, site, "--generated", folder).code == 8


def test_a_folder_for_other_stock_texts(generated: Path, real_site: Callable[[str], Path], overlay: Overlay) -> None:
    done = install(overlay, real_site("4.57.3"), "--generated", generated)
    assert (done.code, done.error["id"]) == (3, "unseen-text")
    done = install(overlay, real_site("4.57.1"), "--generated", generated, spec="4.56")
    assert done.code == 3


def test_no_folder_no_models_and_wrong_names(generated: Path, site: Path, overlay: Overlay, tmp_path: Path) -> None:
    assert install(overlay, site, "--generated", tmp_path / "nowhere").code == 2
    (tmp_path / "empty" / "models").mkdir(parents=True)
    assert install(overlay, site, "--generated", tmp_path / "empty").code == 2
    done = install(overlay, site, "--generated", generated, "--models", "lama")
    assert (done.code, "did you mean llama?" in str(done.error["message"])) == (2, True)


# -- --adopt -------------------------------------------------------------------------------------------------------


def edited(site: Path, model: str = "llama") -> Path:
    path = modeling(site, model)
    path.write_bytes(path.read_bytes() + b"# our fix\n")
    return path


def test_adopt_overlays_an_edited_file_and_revert_returns_exactly_it(site: Path, overlay: Overlay) -> None:
    path = edited(site)
    path.chmod(0o640)
    before = snapshot(site)
    refused = install(overlay, site)
    assert (refused.code, "--adopt" in str(refused.error["remedy"])) == (4, True)
    done = install(overlay, site, "--adopt")
    assert (done.code, done.json["adopted"]) == (0, [LLAMA])
    status = overlay("status", "--check", "--site-packages", site, "--json")
    assert (status.code, status.json["state"]) == (0, "APPLIED"), status
    assert any("adopted" in note for note in status.json["notes"])  # type: ignore[attr-defined]
    assert install(overlay, site, "--adopt").json["action"] == "nothing"
    assert install(overlay, site).json["action"] == "nothing"
    attested = overlay("attest", "--site-packages", site).json["files"]
    assert [one["path"] for one in attested if one["adopted"]] == [f"transformers/{LLAMA}"]  # type: ignore[attr-defined]
    assert overlay("revert", "--site-packages", site).code == 0
    assert snapshot(site) == before
    assert path.read_bytes().endswith(b"# our fix\n")


def test_an_adopted_text_stays_the_base_over_an_upgrade_and_a_smaller_set(tmp_path: Path) -> None:
    site, bundle = make_site(tmp_path / "site"), make_bundle(tmp_path / "bundle")
    modeling(site, "one").write_bytes(FITTING)
    before = snapshot(site)
    install_in(Options(site_packages=site, bundle=bundle), "1.0", adopt=True)
    adopted = modeling(site, "one").read_bytes()
    newer = make_bundle(tmp_path / "newer", generator=22)
    done = install_in(Options(site_packages=site, bundle=newer), "1.0")
    assert done.changes.updated == ("models/three/modeling_three.py", "models/two/modeling_two.py")
    assert modeling(site, "one").read_bytes() == adopted, "never the overlay of stock over an edit"
    install_in(Options(site_packages=site, bundle=newer), "1.0", ["two"])
    assert modeling(site, "one").read_bytes() == FITTING
    revert_in(Options(site_packages=site, bundle=newer))
    assert snapshot(site) == before


def test_adopt_does_not_take_an_edited_overlay_or_a_missing_file(site: Path, overlay: Overlay) -> None:
    install(overlay, site)
    edited(site)
    assert install(overlay, site, "--adopt").code == 4
    overlay("revert", "--force", "--site-packages", site)
    modeling(site, "qwen3").unlink()
    assert install(overlay, site, "--adopt").code == 4


def test_a_reinstall_over_an_adopted_file_is_seen(
    site: Path, stock_tree: Callable[[str], Path], overlay: Overlay
) -> None:
    edited(site)
    install(overlay, site, "--adopt", "--models", "llama")
    stock = (stock_tree("4.57.6") / "transformers" / LLAMA).read_bytes()
    modeling(site, "llama").write_bytes(stock)
    state = overlay("status", "--site-packages", site, "--json").json["state"]
    assert state == "WIPED"  # stock again, as after any reinstall
    done = install(overlay, site, "--models", "llama")
    kept = next(note for note in done.json["notes"] if "is kept as" in note)  # type: ignore[attr-defined]
    assert Path(kept.split(" is kept as ")[1]).read_bytes().endswith(b"# our fix\n"), "nobody else has the edit"


# -- status --deep -------------------------------------------------------------------------------------------------


def test_deep_names_every_difference_but_ours(
    stock_tree: Callable[[str], Path], tmp_path: Path, overlay: Overlay
) -> None:
    site = tmp_path / "whole"
    shutil.copytree(stock_tree("4.57.6"), site)
    where = ("--site-packages", site)
    assert install(overlay, site).code == 0
    fine = overlay("status", "--deep", "--check", "--json", *where)
    deep = fine.json["deep"]
    assert isinstance(deep, dict)
    assert (fine.code, deep["clean"], deep["modified"], deep["missing"], deep["added"]) == (0, True, [], [], [])
    assert len(deep["overlaid"]) == len(catalog.load("4.57").models())
    assert deep["checked"] > 2000
    (site / "transformers" / "utils" / "logging.py").write_bytes(b"")
    (site / "transformers" / "utils" / "hub.py").unlink()
    (site / "transformers" / "ghost.py").write_bytes(b"")
    done = overlay("status", "--deep", "--check", "--json", *where)
    deep = done.json["deep"]
    assert isinstance(deep, dict)
    assert done.code == 1
    assert (deep["modified"], deep["missing"], deep["added"]) == (["utils/logging.py"], ["utils/hub.py"], ["ghost.py"])
    out = overlay("status", "--deep", *where)
    assert (out.code, "modified   utils/logging.py" in out.out) == (0, True)
    assert overlay("status", "--check", *where).code == 0


def test_deep_without_a_record(tmp_path: Path, overlay: Overlay) -> None:
    site = make_site(tmp_path / "plain", record=False)
    done = overlay("status", "--deep", "--site-packages", site, "--json")
    assert done.json["deep"]["recorded"] is False  # type: ignore[index]


def test_the_digest_helper() -> None:
    assert digest(b"").startswith("e3b0c442")


def test_a_receipt_with_a_wrong_base_is_not_read(tmp_path: Path) -> None:
    site, bundle = make_site(tmp_path / "site"), make_bundle(tmp_path / "bundle")
    modeling(site, "one").write_bytes(FITTING)
    options = Options(site_packages=site, bundle=bundle)
    install_in(options, "1.0", adopt=True)
    receipt = site / ".amd-overlay" / "receipt.json"
    fine = receipt.read_text()
    for right, wrong in (
        ('"recorded_sha256": "', '"recorded_sha256": "x'),
        ('"origin": "adopted"', '"origin": "somewhere"'),
        ('"model": "one",', '"model": "one", "made_from": "x",'),
    ):
        assert right in fine
        receipt.write_text(fine.replace(right, wrong))
        with pytest.raises(UnrecoveredError, match=wrong.split('"')[1] if "model" not in wrong else "made_from"):
            revert_in(options)
    assert modeling(site, "one").read_bytes() != FITTING
