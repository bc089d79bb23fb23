"""The committed overlays: what the manifest says, what the diff shows, and that they are what the generator makes."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import DriftError, MustFireError, TargetError
from rocm_overlay.install import catalog
from rocm_overlay.overlays import expected
from rocm_overlay.overlays.recipes import digest
from rocm_overlay.patchgen import release
from rocm_overlay.patchgen.edits import AppliedEdit, unsplice
from rocm_overlay.patchgen.header import GENERATOR
from rocm_overlay.patchgen.trees import Tree, open_tree

from tests.patchgen.support import LINES, MODELS, RELEASES_OF, source
from tests.patchgen.test_recipe_rms_norm import LLAMA

LINE = release.OVERLAYS / "4.57"
MANIFESTS: dict[str, dict[str, Any]] = {
    line: json.loads((release.OVERLAYS / line / "manifest.json").read_bytes()) for line in LINES
}
MANIFEST = MANIFESTS["4.57"]
FILES: list[dict[str, Any]] = MANIFEST["files"]
EVERY = [(line, entry) for line in LINES for entry in MANIFESTS[line]["files"]]
each_line = pytest.mark.parametrize("line", LINES)
each_file = pytest.mark.parametrize(("line", "entry"), EVERY, ids=[f"{line}-{one['payload']}" for line, one in EVERY])


def stock_of(line: str, entry: dict[str, Any]) -> bytes:
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
    return unsplice((release.OVERLAYS / line / entry["payload"]).read_bytes(), edits)


@each_line
def test_the_manifest_names_every_model_and_every_release(line: str) -> None:
    manifest = MANIFESTS[line]
    assert manifest["schema"] == "amd-overlay.manifest/1"
    assert (manifest["line"], manifest["generator"], manifest["recipes"]) == (line, GENERATOR, digest())
    assert manifest["releases"] == list(RELEASES_OF[line])
    models = sorted({entry["model"] for entry in manifest["files"]})
    assert models == sorted(expected.SITES[line])
    assert len(models) >= 40
    for model in models:
        found = [one for entry in manifest["files"] if entry["model"] == model for one in entry["releases"]]
        assert sorted(found) == list(RELEASES_OF[line]), f"{model}: each release has exactly one stock text"


# What people run, in the order of the releases that brought it.
CURATED = {
    "4.53": (
        "aria bert clip cohere cohere2 deepseek_v3 dinov2 gemma gemma2 gemma3 glm glm4 granite granitemoe helium "
        "idefics3 llama llama4 mistral mixtral olmo2 paligemma phi phi3 pixtral qwen2 qwen2_5_vl qwen2_moe qwen3 "
        "qwen3_moe roberta siglip smollm3 stablelm starcoder2 vit whisper xlm_roberta"
    ),
    "4.57": (
        "deepseek_v2 ernie4_5 exaone4 glm4_moe gpt_oss hunyuan_v1_dense ministral olmo3 qwen3_next qwen3_vl seed_oss"
    ),
}


@each_line
def test_the_curated_models_are_in_every_line_whose_releases_have_them(line: str) -> None:
    listed = " ".join(CURATED[first] for first in CURATED if first <= line).split()
    assert set(listed) <= {entry["model"] for entry in MANIFESTS[line]["files"]}


def test_the_eight_models_of_the_parity_tests_are_in_the_main_line() -> None:
    assert set(MODELS) <= expected.SITES["4.57"].keys()


@each_line
def test_the_manifest_is_in_its_fixed_form(line: str) -> None:
    text = (release.OVERLAYS / line / "manifest.json").read_bytes()
    assert text == (json.dumps(MANIFESTS[line], indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")


@each_line
def test_the_installer_reads_the_line(line: str) -> None:
    assert line in catalog.lines()
    manifest = catalog.load(line)
    assert manifest.models() == tuple(sorted(expected.SITES[line]))
    for file in manifest.files:
        assert sha256(file.stock_bytes()).hexdigest() == file.stock_sha256


@each_file
def test_stock_is_the_overlay_with_every_span_replaced(line: str, entry: dict[str, Any]) -> None:
    stock = stock_of(line, entry)
    overlay = (release.OVERLAYS / line / entry["payload"]).read_bytes()
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
        assert stock[slice(*edit["stock"])].decode() == edit["stock_text"]
        text = overlay[slice(*edit["overlay"])]
        turned = edit["recipe"] in ("latent", "delta_rule") and text == b"el"  # stock's `if` is asked behind ours
        assert edit["recipe"] in ("marker", "qkv") or b"_amd" in text or turned
    assert [edit["recipe"] for edit in entry["edits"]][:2] == ["marker", "import"]
    assert entry["overlay_size"] not in {
        one["stock_size"] for one in MANIFESTS[line]["files"] if one["path"] == entry["path"]
    }


@each_file
def test_the_diff_is_the_diff(line: str, entry: dict[str, Any]) -> None:
    stock, overlay = stock_of(line, entry).decode(), (release.OVERLAYS / line / entry["payload"]).read_bytes().decode()
    labels = (f"a/{entry['path']}", f"b/{entry['path']}")
    lines = difflib.unified_diff(stock.splitlines(True), overlay.splitlines(True), *labels)
    diff = (release.OVERLAYS / line / entry["diff"]).read_bytes().decode()
    assert diff == "".join(lines)
    changed = [text for text in diff.splitlines()[2:] if text[:1] in "+-"]
    removed = [text for text in changed if text[0] == "-"]
    assert len(removed) <= len(changed) / 3
    sites = [count for what, count in expected.SITES[line][entry["model"]].items() if "." not in what]
    # The marker and import lines are eleven; no site takes more than sixteen lines.
    assert 0 < len(changed) <= 11 + 16 * sum(sites)


@each_line
def test_the_diff_of_llama_is_small(line: str) -> None:
    for entry in MANIFESTS[line]["files"]:
        if entry["model"] == "llama":
            diff = (release.OVERLAYS / line / entry["diff"]).read_text(encoding="utf-8")
            changed = [text for text in diff.splitlines()[2:] if text[:1] in ("+", "-")]
            # Recipe plan marks four forwards, each behind an empty line, and the loop over the layers. Recipe loss asks
            # in front of the head (eight lines) and edits what makes the logits and the loss; a head of labels is eight
            # in all. A loop that may keep its hidden states becomes five lines, another one two.
            plan = sum("forward._amd_" in text or "_amd.planned(" in text for text in changed)
            heads = sum("_amd.causal_lm_loss(" in text for text in changed)
            loss = 17 + 8 * (heads - 1)
            keeps = 3 * sum("_amd.on.plan and not " in text for text in changed)
            assert heads
            assert 0 < len(changed) - 2 * plan - loss - keeps <= 60
            assert len(changed) - loss - keeps <= 67


@each_file
def test_what_transformers_looks_for_is_still_there(line: str, entry: dict[str, Any]) -> None:
    """It decides from the source text whether a class may change its attention implementation."""
    overlay = (release.OVERLAYS / line / entry["payload"]).read_text(encoding="utf-8")
    stock = stock_of(line, entry).decode()
    for looked_for in ("ALL_ATTENTION_FUNCTIONS[", "ALL_ATTENTION_FUNCTIONS.get_interface("):
        assert overlay.count(looked_for) == stock.count(looked_for)
    kept = [text for text in stock.splitlines() if text.lstrip().startswith(("@", "class ", "def "))]
    assert kept == [text for text in overlay.splitlines() if text.lstrip().startswith(("@", "class ", "def "))]


@each_line
def test_the_folder_holds_the_manifests_files_and_no_other(line: str) -> None:
    folder = release.OVERLAYS / line
    named = {"manifest.json", *(one[key] for one in MANIFESTS[line]["files"] for key in ("payload", "diff"))}
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {path for path in found if "__pycache__" not in path} == named


@each_line
def test_the_committed_overlays_are_what_the_generator_makes(line: str, wheel: Callable[[str], Path]) -> None:
    trees = {version: open_tree(wheel(version)) for version in RELEASES_OF[line]}
    files, _ = release.build(line, list(expected.SITES[line]), trees)
    release.check(release.OVERLAYS / line, files)


@each_line
def test_declare_finds_what_is_declared(line: str, wheel: Callable[[str], Path]) -> None:
    tree = open_tree(wheel(RELEASES_OF[line][-1]))
    models = sorted(expected.SITES[line])[::8]
    assert release.declare(models, {RELEASES_OF[line][-1]: tree}) == {one: expected.SITES[line][one] for one in models}


@each_line
def test_a_table_of_sites_is_in_its_fixed_form(line: str) -> None:
    text = (expected.FOLDER / f"{line}.txt").read_text(encoding="ascii")
    assert text == expected.render(expected.read(text))


def test_no_line_has_fewer_sites_than_the_line_before() -> None:
    """From 5.23 on: before, transformers itself moved formulas from one shape to another."""
    lines = [line for line in LINES if tuple(map(int, line.split("."))) >= (5, 23)]
    for before, line in itertools.pairwise(lines):
        for model, sites in expected.SITES[before].items():
            now = expected.SITES[line].get(model, {})
            assert {what: count for what, count in sites.items() if now.get(what, 0) < count} == {}, (line, model)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """Make package folders with one model ``x`` that must have one norm."""
    monkeypatch.setattr(expected, "SITES", {"4.57": {"x": {"rms_norm": 1, "forms": 1}}})

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
        (LLAMA + LLAMA.replace("class X", "class Y"), "expected: rms_norm 1\n  found: rms_norm 2: XRMSNorm.forward"),
    ],
)
def test_another_number_of_sites_than_declared_is_an_error(
    sources: Callable[..., Path], text: str, message: str
) -> None:
    with pytest.raises(MustFireError, match=message):
        build(sources("4.57.1", source(text)))


def test_a_model_without_declared_sites_is_an_error(sources: Callable[..., Path]) -> None:
    root = sources("4.57.1", source(LLAMA))
    with pytest.raises(TargetError, match=r"no expected sites are declared for 'y' in line 4\.57"):
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
