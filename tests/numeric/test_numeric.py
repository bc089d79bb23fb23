"""Generated architectures against stock, in processes of their own: a sample fast, a whole release in full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.patchgen.command import run
from rocm_overlay.patchgen.options import Options
from rocm_overlay.patchgen.trees import open_tree
from rocm_overlay.verify.compare import judge

from docs.tools.reach import NOT_RUN
from tests.numeric import report, worker

pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
# One of each kind that the eight models of the parity tests are not: t5 and fp32_weight norms, partial and cast rope,
# query/key/value, an encoder-decoder, images, regions of images beside text, widths that depend on each other.
SAMPLE = ("bert", "gpt_neox", "lxmert", "olmo2", "siglip", "swin", "t5", "vit")
ALSO = ("whisper", "qwen2_5_vl")
LEAST = {"4.57.6": 110, "5.23.0": 200}
PAGES = ROOT / "docs/coverage"

Trees = tuple[Path, Path]


def overlay_copy(stock: Path, folder: Path, models: Sequence[str]) -> Path:
    """A copy of an unpacked wheel with its generated files in place: those of some models, or all."""
    shutil.copytree(stock / "transformers", folder / "tree/transformers")
    options = Options(all_files=True, models=",".join(models), source=stock / "transformers", output=folder / "made")
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        assert run(options) == 0
    shutil.copytree(folder / "made/models", folder / "tree/transformers/models", dirs_exist_ok=True)
    return folder / "tree"


@pytest.fixture(scope="module")
def stock(stock_tree: Callable[[str], Path]) -> Path:
    """The unpacked wheel of the transformers that this interpreter can run."""
    import transformers

    return stock_tree(transformers.__version__)


@pytest.fixture(scope="module")
def trees(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """Stock, and a copy with the overlays of the sample."""
    return stock, overlay_copy(stock, tmp_path_factory.mktemp("sample"), (*SAMPLE, *ALSO))


@pytest.fixture(scope="module")
def every_tree(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """Stock, and a copy with every file that can be generated."""
    return stock, overlay_copy(stock, tmp_path_factory.mktemp("every"), ())


def work(mode: str, tree: Path, paths: Sequence[str], folder: Path) -> str:
    """Run the worker on a tree; its standard output."""
    files = folder / "files"
    files.write_text("\n".join(paths))
    places = [str(tree), str(ROOT), str(ROOT / "installer")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.numeric.worker", mode, "--files", str(files), "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def results(folder: Path, mode: str) -> dict[str, dict[str, Any]]:
    return {
        found["path"]: found
        for file in sorted(folder.glob(f"*.{mode}.json"))
        for found in [json.loads(file.read_text(encoding="utf-8"))]
    }


def path_of(model: str) -> str:
    return f"models/{model}/modeling_{model}.py"


@pytest.mark.parametrize("release", LEAST)
def test_the_committed_numbers_have_a_row_for_every_file_and_no_deviation(release: str) -> None:
    about = json.loads((PAGES / f"numeric-{release}.json").read_text(encoding="utf-8"))
    assert (about["schema"], about["release"]) == (report.SCHEMA, release)
    rows = about["rows"]
    generated = json.loads((PAGES / f"{release}.json").read_text(encoding="utf-8"))["sites"]
    assert sorted(one["path"] for one in rows) == sorted(generated)
    for one in rows:
        assert not any(one["deviating"].values()) if one["compared"] else one["reason"]
    assert sum(map(report.is_equal, rows)) >= LEAST[release]
    assert not any(one.get("reason") == NOT_RUN for one in rows)


def test_a_sample_is_equal_off_and_within_the_tolerance_on(trees: Trees, tmp_path: Path) -> None:
    paths = [path_of(model) for model in SAMPLE]
    work("stock", trees[0], paths, tmp_path)
    work("overlay", trees[1], paths, tmp_path)
    stock, overlay = results(tmp_path, "stock"), results(tmp_path, "overlay")
    assert sorted(overlay) == sorted(paths)
    for path in paths:
        assert stock[path]["classes"], stock[path]
        assert len(overlay[path]["off"]) == len(overlay[path]["on"]) >= 2
        assert not any(overlay[path]["off"].values()), overlay[path]["off"]
        assert not any(overlay[path]["on"].values()), overlay[path]["on"]
    edited = report.edited_functions(trees[0] / "transformers", paths)
    assert all(report.is_equal(report.row(path, tmp_path, edited[path])) for path in paths)


@pytest.mark.parametrize(
    ("model", "old", "new", "mode"),
    [
        ("olmo2", 'form="fp32_weight"', 'form="gemma"', "on"),
        ("gpt_neox", "apply_rope(q, k, cos, sin,", "apply_rope(q, k, sin, cos,", "on"),
        ("vit", '("key", "value", "query")', '("query", "value", "key")', "on"),
        (
            "t5",
            "        return self.weight * hidden_states",
            "        return self.weight * hidden_states * 1.0001",
            "off",
        ),
    ],
)
def test_a_planted_fault_is_seen(model: str, old: str, new: str, mode: str, trees: Trees, tmp_path: Path) -> None:
    file = trees[1] / "transformers" / path_of(model)
    text = file.read_text(encoding="utf-8")
    assert old in text
    work("stock", trees[0], [path_of(model)], tmp_path)
    file.write_text(text.replace(old, new), encoding="utf-8")
    try:
        work("overlay", trees[1], [path_of(model)], tmp_path)
    finally:
        file.write_text(text, encoding="utf-8")
    (found,) = results(tmp_path, "overlay").values()
    assert any(found[mode].values())


class SpeakerDouble(torch.nn.Module):
    """Says the tokens that it is made with."""

    main_input_name = "input_ids"

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.config = types.SimpleNamespace(vocab_size=64)
        self.said = said

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return self.said


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_what_is_generated_is_judged(dtype: torch.dtype) -> None:
    """A token has no tolerance: the next one is another token. A sound has that of its dtype."""
    said = torch.tensor([[7, 8, 9]]).to(dtype)
    stock = worker.generated(SpeakerDouble(said), "plain")
    for other, equal in ((said, True), (said + said.new_tensor([0, 0, 1]), False)):
        found = worker.generated(SpeakerDouble(other), "plain")
        assert judge(stock, found, tier="torch", dtype="float32", bitwise=False).ok is equal


def compare_descriptions(trees: Trees, paths: Sequence[str], folder: Path) -> None:
    """Imports, names, signatures, bases and documentation of both trees."""
    stock, ours = (
        {one["path"]: one for one in json.loads(work("describe", tree, paths, folder).strip().splitlines()[-1])}
        for tree in trees
    )
    assert sorted(ours) == sorted(stock) == sorted(paths)
    for path, mine in ours.items():
        theirs = stock[path]
        if "error" in theirs:  # stock needs a package that is not here: then ours must need the same one
            assert mine == theirs
            continue
        assert "error" not in mine, mine
        assert set(theirs["names"]) <= set(mine["names"])
        assert mine["overlay"].startswith("sha256:")
        for key in ("signatures", "doc", "all"):
            assert mine[key] == theirs[key], (path, key)


def test_a_sample_imports_with_the_same_names_and_signatures(trees: Trees, tmp_path: Path) -> None:
    compare_descriptions(trees, [path_of(model) for model in (*SAMPLE, *ALSO)], tmp_path)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_generated_file_imports_with_the_same_names_and_signatures(every_tree: Trees, tmp_path: Path) -> None:
    compare_descriptions(every_tree, sorted(report.edited_functions(every_tree[0] / "transformers")), tmp_path)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_every_generated_architecture_that_can_be_built_is_equal(every_tree: Trees, tmp_path: Path) -> None:
    edited = report.edited_functions(every_tree[0] / "transformers")
    work("stock", every_tree[0], sorted(edited), tmp_path)
    work("overlay", every_tree[1], sorted(edited), tmp_path)
    rows = [report.row(path, tmp_path, functions) for path, functions in edited.items()]
    assert [one for one in rows if one["compared"] and any(one["deviating"].values())] == []
    version = open_tree(every_tree[0] / "transformers").version
    assert sum(map(report.is_equal, rows)) >= LEAST.get(str(version), 100)
