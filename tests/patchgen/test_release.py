"""The committed overlays: what the manifest says, what the diff shows, and that they are what the generator makes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.overlays import expected
from rocm_overlay.overlays.recipes import digest
from rocm_overlay.patchgen import release
from rocm_overlay.patchgen.edits import AppliedEdit, unsplice
from rocm_overlay.patchgen.errors import DriftError, MustFireError, TargetError
from rocm_overlay.patchgen.header import GENERATOR
from rocm_overlay.patchgen.trees import Tree, open_tree

from tests.patchgen.support import MODELS, RELEASES, source
from tests.patchgen.test_recipe_rms_norm import LLAMA

LINE = release.OVERLAYS / "4.57"
MANIFEST: dict[str, Any] = json.loads((LINE / "manifest.json").read_bytes())
FILES: list[dict[str, Any]] = MANIFEST["files"]
IDS = [entry["payload"] for entry in FILES]
each_file = pytest.mark.parametrize("entry", FILES, ids=IDS)


def stock_of(entry: dict[str, Any]) -> bytes:
    edits = [
        AppliedEdit(
            edit["recipe"],
            edit["qualname"],
            (edit["stock"][0], edit["stock"][1]),
            (edit["overlay"][0], edit["overlay"][1]),
            edit["stock_text"].encode("utf-8"),
        )
        for edit in entry["edits"]
    ]
    return unsplice((LINE / entry["payload"]).read_bytes(), edits)


def test_the_manifest_names_every_model_and_every_release() -> None:
    assert MANIFEST["schema"] == "amd-overlay.manifest/1"
    assert (MANIFEST["line"], MANIFEST["generator"], MANIFEST["recipes"]) == ("4.57", GENERATOR, digest())
    assert MANIFEST["releases"] == list(RELEASES)
    assert sorted({entry["model"] for entry in FILES}) == sorted(MODELS) == sorted(expected.SITES)
    for model in MODELS:
        found = [one for entry in FILES if entry["model"] == model for one in entry["releases"]]
        assert sorted(found) == list(RELEASES), f"{model}: each release has exactly one stock text"


def test_the_manifest_is_in_its_fixed_form() -> None:
    text = (LINE / "manifest.json").read_bytes()
    assert text == (json.dumps(MANIFEST, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")


@each_file
def test_stock_is_the_overlay_with_every_span_replaced(entry: dict[str, Any]) -> None:
    stock = stock_of(entry)
    overlay = (LINE / entry["payload"]).read_bytes()
    assert (sha256(stock).hexdigest(), len(stock)) == (entry["stock_sha256"], entry["stock_size"])
    assert (sha256(overlay).hexdigest(), len(overlay)) == (entry["overlay_sha256"], entry["overlay_size"])
    assert entry["payload"] == f"models/{entry['model']}/modeling_{entry['model']}.{entry['stock_sha256'][:12]}.py"
    first = f"# amd-overlay/1 base=sha256:{entry['stock_sha256']} generator={GENERATOR} recipes={digest()} "
    assert overlay.decode().startswith(first)
    assert f'__amd_overlay__ = "sha256:{entry["stock_sha256"]}"\n' in overlay.decode()
    end = [0, 0]
    for edit in entry["edits"]:
        assert edit["stock"][0] >= end[0]
        assert edit["overlay"][0] >= end[1]
        end = [edit["stock"][1], edit["overlay"][1]]
    assert [edit["recipe"] for edit in entry["edits"]][:2] == ["marker", "import"]


@each_file
def test_the_spans_hold_what_they_say(entry: dict[str, Any]) -> None:
    stock, overlay = stock_of(entry), (LINE / entry["payload"]).read_bytes()
    for edit in entry["edits"]:
        assert stock[slice(*edit["stock"])].decode() == edit["stock_text"]
        assert edit["recipe"] == "marker" or b"_amd" in overlay[slice(*edit["overlay"])] or edit["recipe"] == "qkv"


@each_file
def test_no_overlay_is_as_long_as_a_stock_text_of_its_path(entry: dict[str, Any]) -> None:
    assert entry["overlay_size"] not in {one["stock_size"] for one in FILES if one["path"] == entry["path"]}


@each_file
def test_the_diff_is_the_diff_and_small(entry: dict[str, Any]) -> None:
    stock, overlay = stock_of(entry).decode(), (LINE / entry["payload"]).read_text(encoding="utf-8")
    labels = (f"a/{entry['path']}", f"b/{entry['path']}")
    lines = difflib.unified_diff(stock.splitlines(True), overlay.splitlines(True), *labels)
    diff = (LINE / entry["diff"]).read_text(encoding="utf-8")
    assert diff == "".join(lines)
    changed = [line for line in diff.splitlines()[2:] if line[:1] in "+-"]
    assert 0 < len(changed) <= 80


@each_file
def test_what_transformers_looks_for_is_still_there(entry: dict[str, Any]) -> None:
    """It decides from the source text whether a class may change its attention implementation."""
    overlay = (LINE / entry["payload"]).read_text(encoding="utf-8")
    stock, lookup = stock_of(entry).decode(), "ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]"
    assert (lookup in overlay) == (lookup in stock)
    assert lookup in stock or entry["model"] == "qwen2_moe"  # a class per implementation, chosen by name
    kept = [line for line in stock.splitlines() if line.lstrip().startswith(("@", "class ", "def "))]
    assert kept == [line for line in overlay.splitlines() if line.lstrip().startswith(("@", "class ", "def "))]


def test_the_folder_holds_the_manifests_files_and_no_other() -> None:
    named = {"manifest.json", *(entry[key] for entry in FILES for key in ("payload", "diff"))}
    found = {file.relative_to(LINE).as_posix() for file in LINE.rglob("*") if file.is_file()}
    assert {path for path in found if "__pycache__" not in path} == named


def test_the_committed_overlays_are_what_the_generator_makes(wheel: Callable[[str], Path]) -> None:
    trees = {version: open_tree(wheel(version)) for version in RELEASES}
    files, _ = release.build("4.57", MODELS, trees)
    release.check(LINE, files)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """Make package folders with one model ``x`` that must have one norm."""
    monkeypatch.setattr(expected, "SITES", {"x": {"rms_norm": 1, "forms": 1}})

    def make(version: str, text: bytes) -> Path:
        root = tmp_path / version / "transformers"
        (root / "models/x").mkdir(parents=True)
        (root / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (root / "models/x/modeling_x.py").write_bytes(text)
        return root

    return make


def build(*roots: Path) -> dict[str, bytes]:
    trees = {root.parent.name: Tree(root) for root in roots}
    return release.build("4.57", ["x"], trees)[0]


def test_equal_texts_share_an_overlay_and_releases_are_in_version_order(sources: Callable[..., Path]) -> None:
    roots = [
        sources("4.57.10", source(LLAMA)),
        sources("4.57.9", source(LLAMA)),
        sources("4.57.8", source("# other\n" + LLAMA)),
    ]
    manifest = json.loads(build(*roots)["manifest.json"])
    assert manifest["releases"] == ["4.57.8", "4.57.9", "4.57.10"]
    assert [entry["releases"] for entry in manifest["files"]] == [["4.57.8"], ["4.57.9", "4.57.10"]]


def test_an_overlay_as_long_as_a_stock_text_is_padded(sources: Callable[..., Path]) -> None:
    one = sources("4.57.1", source(LLAMA))
    plain = json.loads(build(one)["manifest.json"])["files"][0]["overlay_size"]
    filler = b"#" * (plain - len(source(LLAMA)) - 1) + b"\n"
    two = sources("4.57.2", source(LLAMA) + filler)
    files = json.loads(build(one, two)["manifest.json"])["files"]
    assert files[1]["stock_size"] == plain
    assert files[0]["overlay_size"] == plain + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LLAMA.replace("torch.rsqrt", "torch.sqrt"), "recipe rms_norm must find a site here and found none"),
        (LLAMA + LLAMA.replace("class X", "class Y"), "expected: 1 sites\n  found: 2: XRMSNorm.forward"),
    ],
)
def test_another_number_of_sites_than_declared_is_an_error(
    sources: Callable[..., Path], text: str, message: str
) -> None:
    with pytest.raises(MustFireError, match=message):
        build(sources("4.57.1", source(text)))


def test_a_model_without_declared_sites_is_an_error(sources: Callable[..., Path]) -> None:
    root = sources("4.57.1", source(LLAMA))
    with pytest.raises(TargetError, match="no expected sites are declared for 'y'"):
        release.build("4.57", ["y"], {"4.57.1": Tree(root)})


def test_check_names_what_differs_is_missing_or_is_too_much(sources: Callable[..., Path], tmp_path: Path) -> None:
    files = build(sources("4.57.1", source(LLAMA)))
    for path, data in files.items():
        (tmp_path / "line" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "line" / path).write_bytes(data)
    release.check(tmp_path / "line", files)
    (tmp_path / "line/models/x/extra.py").write_text("")
    (tmp_path / "line/manifest.json").write_text("{}")
    payload = next(path for path in files if path.endswith(".diff"))
    (tmp_path / "line" / payload).unlink()
    with pytest.raises(DriftError) as caught:
        release.check(tmp_path / "line", files)
    assert f"{payload} is missing; models/x/extra.py is not generated; manifest.json differs" in str(caught.value)


def test_the_command_writes_checks_and_reports_drift(
    sources: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sources("4.57.1", source(LLAMA))
    arguments = ["--line", "4.57", "--models", "x", "--source", f"4.57.1={root}", "-o", str(tmp_path / "out")]
    assert release.main([*arguments, "--check"]) == 1
    assert release.main(arguments) == 0
    assert release.main([*arguments, "--check"]) == 0
    (tmp_path / "out/stray.txt").write_text("x")
    assert release.main([*arguments, "--check"]) == 1
    assert "stray.txt is not generated" in capsys.readouterr().err
    assert release.main(arguments) == 0
    assert not (tmp_path / "out/stray.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "4.57.2={root}"], "is not the source of release 4.57.2"),
        (["--source", "4.58.0={root}"], "4.58.0 is not a release of line 4.57"),
        (["--source", "new={root}"], "cannot read the version 'new'"),
        (["--source", "{root}"], "expected: VERSION=PATH"),
        ([], "no source given"),
    ],
)
def test_bad_sources(
    sources: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    root = sources("4.57.1", source(LLAMA))
    assert release.main(["--line", "4.57", *(one.format(root=root) for one in arguments)]) == 1
    assert message in capsys.readouterr().err
