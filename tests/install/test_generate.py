"""`overlay install --generate`: one command from a release that nobody has committed to an overlaid one, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocm_overlay.install import generate, statics
from rocm_overlay.patchgen import batch, losses
from rocm_overlay.patchgen.engine import generate as make_overlay

from tests.install.support import Done, make_site, modeling, snapshot
from tests.patchgen.support import all_recipes, source
from tests.patchgen.test_recipe_qk_norm_rope import QWEN
from tests.patchgen.test_recipe_rms_norm import LLAMA

PLAIN = b"import torch\n"
Overlay = Callable[..., Done]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AMD_OVERLAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """5.24.0 is known, with the sites of both models."""
    folder = tmp_path / "known"
    folder.mkdir()
    both = [
        make_overlay(source(text), f"models/{name}/modeling_{name}.py", all_recipes())
        for name, text in (("one", QWEN), ("two", LLAMA))
    ]
    (folder / "5.24.0.json").write_bytes(losses.render("5.24.0", both))
    monkeypatch.setattr(losses, "KNOWN", folder)
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()
    yield folder
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()


def site_of(folder: Path, version: str, *, record: bool = True, **texts: bytes) -> Path:
    return make_site(folder / "site", texts, version=version, record=record)


@pytest.mark.parametrize("version", ["5.25.0.dev0", "5.25.0rc1", "5.22.2", "5.24.1+rocm7", "4.45.0"])
@pytest.mark.parametrize("spec", [[], ["--transformers", "VERSION"]])
def test_one_command_there_and_one_back(tmp_path: Path, overlay: Overlay, version: str, spec: list[str]) -> None:
    site = site_of(tmp_path, version, one=source(QWEN), two=source(LLAMA), none=PLAIN)
    before = snapshot(site)
    given = [version if word == "VERSION" else word for word in spec]
    done = overlay("install", "--generate", *given, "--site-packages", site, "--json")
    assert (done.code, done.json["action"]) == (0, "installed"), done.err
    assert done.json["files"]["installed"] == [  # type: ignore[index]
        "models/one/modeling_one.py",
        "models/two/modeling_two.py",
    ]
    assert done.json["overlay"]["version"].startswith("generated-")  # type: ignore[index]
    notes = "\n".join(done.json["notes"])  # type: ignore[arg-type]
    assert "generated 2 overlays from 3 modeling files" in notes
    assert "1 files have no place for a recipe and stay stock" in notes
    assert "nothing is lost that transformers 5.24.0 has" in notes
    assert b"_amd.rms_norm" in modeling(site, "two").read_bytes()
    assert overlay("status", "--check", "--site-packages", site).code == 0
    again = overlay("install", "--generate", "--site-packages", site, "--json")
    assert (again.code, again.json["action"]) == (0, "nothing")
    assert overlay("revert", "--site-packages", site).code == 0
    assert snapshot(site) == before


def test_what_the_nearest_known_release_has_is_said(tmp_path: Path, overlay: Overlay) -> None:
    broken = source(QWEN.replace("self.layer_idx, extra", "0, extra"))
    site = site_of(tmp_path, "5.25.0.dev0", one=broken, two=source(LLAMA.replace("torch.rsqrt", "torch.sqrt")))
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    notes = "\n".join(done.json["notes"])  # type: ignore[arg-type]
    assert done.code == 0
    assert "lost 1 x qk_rope.cache: the site is there without its cache (compared with 5.24.0)" in notes
    assert "models/one/modeling_one.py:" in notes
    assert "lost 1 x rms_norm:" in notes


def test_models_are_chosen_and_an_unknown_one_is_refused(tmp_path: Path, overlay: Overlay) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", one=source(QWEN), two=source(LLAMA))
    done = overlay("install", "--generate", "--models", "two", "--site-packages", site, "--json")
    assert done.json["files"]["installed"] == ["models/two/modeling_two.py"]  # type: ignore[index]
    done = overlay("install", "--generate", "--models", "tow", "--site-packages", site, "--json")
    assert done.code == 2
    assert "did you mean two?" in str(done.error["message"])


def test_an_edited_file_is_left_alone_and_named(tmp_path: Path, overlay: Overlay) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", one=source(QWEN), two=source(LLAMA))
    with modeling(site, "one").open("a") as file:
        file.write("# my fix\n")
    text = modeling(site, "one").read_bytes()
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == 0
    assert any("edited, so left alone" in one and "modeling_one.py" in one for one in done.json["notes"])  # type: ignore[union-attr,attr-defined]
    assert modeling(site, "one").read_bytes() == text


def test_a_tree_without_a_record_is_generated_from_what_is_there(tmp_path: Path, overlay: Overlay) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", record=False, two=source(LLAMA))
    assert overlay("install", "--generate", "--site-packages", site, "--json").code == 0
    assert overlay("revert", "--site-packages", site, "--json").code == 0
    assert modeling(site, "two").read_bytes() == source(LLAMA)


def test_a_release_that_is_too_old_is_told_the_oldest_and_why(tmp_path: Path, overlay: Overlay) -> None:
    site = site_of(tmp_path, "4.44.2", two=source(LLAMA))
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == done.error["code"] == 3
    assert "older than 4.45, the oldest release" in str(done.error["message"])
    assert "rotation tables" in str(done.error["message"])
    assert modeling(site, "two").read_bytes() == source(LLAMA)


def test_without_libcst_it_is_said_what_to_install(
    tmp_path: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    site = site_of(tmp_path, "5.25.0.dev0", two=source(LLAMA))
    monkeypatch.setitem(sys.modules, "libcst", None)
    for name in [one for one in sys.modules if one.startswith(("rocm_overlay.patchgen", "rocm_overlay.overlays"))]:
        monkeypatch.delitem(sys.modules, name)
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == 2
    assert "pip install libcst" in str(done.error["remedy"])


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path, overlay: Overlay, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    site = site_of(tmp_path, "5.25.0.dev0", two=source(LLAMA))
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == 0
    assert "results are not kept" in done.err


def test_an_interrupted_run_writes_nothing_and_goes_on_where_it_was(
    tmp_path: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", one=source(QWEN), two=source(LLAMA))
    before = snapshot(site)
    real, made = batch.generate, []

    def interrupted(data: bytes, path: str, *rest: object, **more: object) -> object:
        if made:
            raise KeyboardInterrupt
        made.append(path)
        return real(data, path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "generate", interrupted)
    assert overlay("install", "--generate", "--site-packages", site).code == 130
    assert snapshot(site) == before
    assert not (site / ".amd-overlay").exists()
    assert len(list(cache.rglob("*.json"))) == 1
    made.clear()
    assert overlay("install", "--generate", "--site-packages", site).code == 0, "the first file came from the cache"


def test_deprecated_models_are_generated_and_installed_too(tmp_path: Path, overlay: Overlay) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", record=False, two=source(LLAMA))
    old = site / "transformers/models/deprecated/old/modeling_old.py"
    old.parent.mkdir(parents=True)
    old.write_bytes(source(LLAMA))
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == 0, done.err
    assert "models/deprecated/old/modeling_old.py" in done.json["files"]["installed"]  # type: ignore[index]
    assert overlay("status", "--check", "--site-packages", site).code == 0
    assert overlay("revert", "--site-packages", site).code == 0
    assert old.read_bytes() == source(LLAMA)
    folder = tmp_path / "generated"
    assert overlay("gen", "--all", "--source", site / "transformers", "-o", folder).code in (0, 1)
    done = overlay("install", "--generated", folder, "--site-packages", site, "--json")
    assert "models/deprecated/old/modeling_old.py" in done.json["files"]["installed"]  # type: ignore[index]


@pytest.mark.parametrize("other", [["--generated", "D"], ["--replacements", "D"]])
def test_generate_and_a_folder_exclude_each_other(tmp_path: Path, overlay: Overlay, other: list[str]) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", two=source(LLAMA))
    assert overlay("install", "--generate", *other, "--site-packages", site).code == 2


def test_static_checks_find_what_an_overlay_lacks_or_adds() -> None:
    stock = source(QWEN)
    good = make_overlay(stock, "x.py", all_recipes()).overlay
    assert statics.problems(stock, good) == []
    for old, new, word in (
        (b"from torch import nn\n", b"", "lacks from torch import nn"),
        (b"def forward(self, x, tables,", b"def forward(self, x,", "lacks def forward(self, x, tables,"),
        (b"class Attention(nn.Module):", b"class Attention(object):", "adds class Attention(object):"),
        (b"_amd.qk_rope(", b"_amd.qk_ropes(", "uses amd_ops.qk_ropes, which there is not"),
        (b"_amd.on.qk_rope", b"_amd.on.qk_ropes", "uses amd_ops.on.qk_ropes, which there is not"),
    ):
        assert old in good
        assert any(one.startswith(word) for one in statics.problems(stock, good.replace(old, new, 1))), word


def test_an_overlay_that_fails_the_checks_stops_everything(
    tmp_path: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(tmp_path, "5.25.0.dev0", two=source(LLAMA))
    monkeypatch.setattr(generate.statics, "problems", lambda stock, text: ["lacks import torch"])
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == done.error["code"] != 0
    assert "did not pass the static checks: lacks import torch" in str(done.error["message"])
    assert modeling(site, "two").read_bytes() == source(LLAMA)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("release", ["5.24.0", "4.56.2"])
def test_a_whole_release_there_and_back(release: str, stock_tree: Callable[[str], Path], overlay: Overlay) -> None:
    site = stock_tree(release)
    before = snapshot(site)
    done = overlay("install", "--generate", "--site-packages", site, "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["files"]["installed"]) > 250
    assert overlay("revert", "--site-packages", site).code == 0
    assert snapshot(site) == before
