"""`overlay drift`: what a new release does to the sites of the recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rocm_overlay.app import run

from tests.patchgen.support import one, source
from tests.patchgen.test_recipe_qk_norm_rope import QWEN
from tests.patchgen.test_recipe_rms_norm import LLAMA, RECIPE

STOCK = source(LLAMA).decode()
FORWARD = "    def forward(self, hidden_states):"
PATH = "models/one/modeling_one.py"


def tree(folder: Path, version: str, files: dict[str, str]) -> Path:
    root = folder / version / "transformers"
    (root / "models").mkdir(parents=True)
    (root / "__init__.py").write_text(f'__version__ = "{version}"\n')
    for name, text in files.items():
        file = root / f"models/{name}/modeling_{name}.py"
        file.parent.mkdir()
        file.write_text(text)
    return root


def only_norms() -> Any:
    """Another recipe that sees something in the fixture would add sites that these tests do not count."""
    return mock.patch("rocm_overlay.patchgen.drift.command.recipe_set", return_value=one(RECIPE))


def drift(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: dict[str, str], new: dict[str, str], *options: str
) -> tuple[int, dict[str, object]]:
    """Exit code and JSON report of two packages with these models, for the norm recipe alone."""
    paths = [tree(tmp_path, version, files) for version, files in (("1.0.0", old), ("2.0.0", new))]
    with only_norms():
        code = run(["drift", *map(str, paths), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def only_site(report: dict[str, object]) -> dict[str, object]:
    (file,) = report["files"]  # type: ignore[misc]
    (site,) = file["sites"]
    return site  # type: ignore[no-any-return]


def test_the_fixture_has_a_site() -> None:
    assert FORWARD in STOCK


def test_the_same_bytes_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": STOCK})
    assert (code, report["status"], report["new"]) == (
        0,
        "same",
        {"path": str(tmp_path / "2.0.0/transformers"), "version": "2.0.0"},
    )


def test_a_file_that_changed_elsewhere_is_regenerable_and_its_site_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": STOCK + "\n\nLATER = 1\n"})
    site = only_site(report)
    assert (code, report["status"], site["status"]) == (1, "regenerable", "same")
    assert site["old"] == site["new"]
    (file,) = report["files"]  # type: ignore[misc]
    assert file["old_sha256"] != file["new_sha256"]


def test_a_site_that_moved_is_the_same_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = drift(
        tmp_path, capsys, {"one": STOCK}, {"one": STOCK.replace("class X", "FIRST = 1\n\n\nclass X", 1)}
    )
    site = only_site(report)
    assert (code, site["status"]) == (1, "same")
    assert site["new"]["line"] == site["old"]["line"] + 3  # type: ignore[index]


def test_a_definition_that_changed_outside_the_window_is_regenerable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = STOCK.replace(FORWARD, "    def forward(self, hidden_states) -> None:")
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": changed})
    site = only_site(report)
    old, new = site["old"], site["new"]
    assert (code, site["status"], site["reason"]) == (
        1,
        "regenerable",
        "the definition changed outside the edited lines",
    )
    assert old["window"] == new["window"]  # type: ignore[index]
    assert old["definition"] != new["definition"]  # type: ignore[index]


def test_a_window_that_changed_and_still_fits_asks_for_review(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = STOCK.replace("input_dtype", "old_dtype")
    assert changed != STOCK
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": changed})
    site = only_site(report)
    assert (code, site["status"]) == (1, "regenerable")
    assert "review" in str(site["reason"])
    assert "input_dtype" in str(site["old_stock"])
    assert "_amd.rms_norm" in str(site["our_edit"])
    assert "old_dtype" in str(site["new_stock"])


def test_a_shape_that_is_gone_is_a_conflict_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = STOCK.replace("torch.rsqrt(", "2 * torch.rsqrt(")
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": changed})
    site = only_site(report)
    assert (code, site["status"], site["new"]) == (2, "conflict", None)
    assert str(site["reason"]).startswith("recipe rms_norm no longer fits: the body is none")
    assert "2 * torch.rsqrt(" in str(site["new_stock"])


def test_a_site_that_moved_to_a_renamed_class_is_regenerable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": STOCK.replace("class XRMSNorm", "class YRMSNorm")})
    site = only_site(report)
    assert (code, site["status"], site["reason"]) == (1, "regenerable", "moved to YRMSNorm.forward")
    assert site["cause"] == "the function has another name"


def test_a_class_that_is_gone_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = STOCK.replace("class XRMSNorm", "class YRMSNorm").replace("torch.rsqrt(", "2 * torch.rsqrt(")
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": changed})
    site = only_site(report)
    assert (code, site["status"]) == (2, "conflict")
    assert site["reason"] == "XRMSNorm.forward is gone; nearest: YRMSNorm.forward"


def test_a_recipe_that_does_less_than_before_is_degraded_and_never_regenerable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"one": source(QWEN).decode()}
    new = {"one": source(QWEN.replace("self.layer_idx, extra", "0, extra")).decode()}
    paths = [str(tree(tmp_path, version, files)) for version, files in (("1.0.0", old), ("2.0.0", new))]
    assert run(["drift", *paths, "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    (site,) = [one for file in report["files"] for one in file["sites"] if one["recipe"] == "qk_rope"]
    assert (site["status"], site["reason"]) == ("degraded", "recipe qk_rope fits without its cache")
    assert (site["old"]["parts"], site["new"]["parts"]) == (["cache", "norms"], ["norms"])
    assert "(_amd_qk or past_key_values).update" in site["our_edit"]
    assert "(_amd_qk or past_key_values).update" not in site["new_edit"]
    assert "_amd_qk(q, k, None, cos, sin)" in site["new_edit"]
    assert report["status"] == "degraded"


def test_a_renamed_cache_is_one_cause_for_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"m{number}" for number in range(12)]
    old = {name: source(f"# {name}\n{QWEN}").decode() for name in names}
    new = {name: text.replace("past_key_values", "cache") for name, text in old.items()}
    paths = [str(tree(tmp_path, version, files)) for version, files in (("1.0.0", old), ("2.0.0", new))]
    assert run(["drift", *paths]) == 1
    out = capsys.readouterr().out
    (title,) = [line for line in out.splitlines() if line.endswith("[qk_rope]")]
    assert title == "regenerable: 12 files: the cache parameter is now called `cache` [qk_rope]"
    assert "  and 4 more; -v lists them" in out
    assert "new edit" not in out, "code is for those who ask"
    assert run(["drift", *paths, "-v"]) == 1
    out = capsys.readouterr().out
    assert "more; -v" not in out
    assert out.count("    new edit  | ") > 0
    assert out.count("(_amd_qk or cache).update") == 1
    # In the order of the files, whichever process was first; and the second time from the cache.
    assert run(["drift", *paths, "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert [file["path"] for file in again["files"]] == sorted(file["path"] for file in again["files"])
    assert [group["cause"] for group in again["groups"] if "qk_rope" in group["recipes"]] == [
        "the cache parameter is now called `cache`"
    ]


def test_files_that_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = "import torch\n"
    code, report = drift(tmp_path, capsys, {"one": STOCK, "none": plain}, {"two": STOCK, "more": plain})
    found = {file["path"]: (file["status"], file["reason"]) for file in report["files"]}  # type: ignore[attr-defined]
    assert code == 2
    assert found == {
        PATH: ("conflict", "the file is gone"),
        "models/two/modeling_two.py": ("regenerable", "the file is new"),
        "models/none/modeling_none.py": ("same", "the file is gone and has no sites"),
        "models/more/modeling_more.py": ("same", "the file is new and has no sites"),
    }


def test_models_limits_and_an_unknown_one_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = drift(tmp_path, capsys, {"one": STOCK, "two": STOCK}, {"one": STOCK}, "--models", "one")
    assert (code, [file["path"] for file in report["files"]]) == (0, [PATH])  # type: ignore[attr-defined]
    paths = [str(tmp_path / version) for version in ("1.0.0", "2.0.0")]
    assert run(["drift", *paths, "--models", "oen"]) == 9
    assert "nearest: one" in capsys.readouterr().err
    assert run(["drift", paths[0], str(tmp_path / "absent")]) == 9


def test_a_file_that_somebody_edited_stops_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = STOCK.replace("import torch\n", "import torch\nimport amd_ops as _amd\n", 1)
    code, report = drift(tmp_path, capsys, {"one": STOCK}, {"one": edited})
    assert code == 4
    assert report["errors"][0]["id"] == "source"  # type: ignore[index]


class _Page(HTMLParser):
    """Collects what a page loads, and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [tag for name, _ in attrs if name in ("src", "href")]
        if tag in ("script", "link", "img"):
            self.loads.append(tag)
        if tag == "pre":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "pre" and self.cells:
            self.cells[-1] += data


def test_the_page_stands_alone_and_shows_the_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = STOCK.replace("torch.rsqrt(", "2 * torch.rsqrt(").replace("import torch", "import torch  # <b>&")
    html = tmp_path / "pages" / "drift.html"
    code, _ = drift(tmp_path, capsys, {"one": STOCK}, {"one": changed}, "--html", str(html))
    text = html.read_text()
    page = _Page()
    page.feed(text)
    assert (code, page.loads) == (2, [])
    assert "url(" not in text
    old, edit, new, new_edit = (re.sub(r"\s+", " ", cell) for cell in page.cells)
    assert new_edit.strip() == ""
    assert "_amd" not in old
    assert "_amd.rms_norm(" in edit
    assert "2 * torch.rsqrt(" in new
    assert str(tmp_path) not in text
    again = html.read_bytes()
    with only_norms():
        run(["drift", str(tmp_path / "1.0.0"), str(tmp_path / "2.0.0"), "--html", str(html), "-v"])
    assert html.read_bytes() == again
    out = capsys.readouterr().out
    assert "    old edit  | if _amd and _amd.on.rms_norm:" in out
    assert "    new stock | " in out


def test_real_releases(wheel: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """4.57.5 to 4.57.6 changed nothing; a major release is a conflict for llama, with the reason."""
    assert run(["drift", str(wheel("4.57.5")), str(wheel("4.57.6")), "--models", "llama,qwen3,gemma"]) == 0
    assert run(["drift", str(wheel("4.57.1")), str(wheel("4.57.6")), "--models", "llama"]) == 0
    assert run(["drift", str(wheel("4.57.1")), str(wheel("4.57.3")), "--models", "gemma"]) == 1
    capsys.readouterr()
    code = run(["drift", str(wheel("4.57.6")), str(wheel("5.23.0")), "--models", "llama", "--json"])
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert code == {"same": 0, "regenerable": 1, "degraded": 2, "conflict": 2}[file["status"]]
    assert len(file["sites"]) >= 5


def test_releases_are_known_by_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stock texts come out of the committed overlays."""
    monkeypatch.delenv("AMD_OVERLAY_WHEELS", raising=False)
    code = run(["drift", "4.57.1", "4.57.6", "--models", "llama,siglip", "--json"])
    report = json.loads(capsys.readouterr().out)
    statuses = {file["path"]: file["status"] for file in report["files"]}
    assert statuses == {
        "models/llama/modeling_llama.py": "same",
        "models/siglip/modeling_siglip.py": "regenerable",
    }
    assert (code, report["status"], report["old"]["version"]) == (1, "regenerable", "4.57.1")


def test_without_models_those_that_both_releases_have_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AMD_OVERLAY_WHEELS", raising=False)
    new = tree(tmp_path, "9.0.0", {"llama": STOCK, "one": STOCK})
    code = run(["drift", "4.57.6", str(new), "--json", "--html", str(tmp_path / "page.html")])
    captured = capsys.readouterr()
    assert "comparing the 1 models that are known of both" in captured.err
    assert [file["path"] for file in json.loads(captured.out)["files"]] == ["models/llama/modeling_llama.py"]
    assert code == 2  # its attention is gone
    assert "conflict" in (tmp_path / "page.html").read_text()


def test_a_wheel_of_that_name_is_preferred(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wheel: Callable[[str], Path]
) -> None:
    monkeypatch.setenv("AMD_OVERLAY_WHEELS", str(wheel("4.57.6").parent))
    assert run(["drift", "4.57.6", "4.57.6", "--models", "bloom", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["old"]["path"].endswith(".whl")


def test_an_unknown_release_names_those_that_are_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMD_OVERLAY_WHEELS", raising=False)
    assert run(["drift", "4.57.66", "4.57.6"]) == 9
    error = capsys.readouterr().err
    assert "4.57.66 is not a release of ours" in error
    assert "4.53.3, 4.57.0" in error
    assert "nearest: 4.57.6" in error
