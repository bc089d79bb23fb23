"""transformers' own tests: a made-up sdist shows the machinery; the real one runs in the full suite."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from rocm_overlay.errors import UsageError
from rocm_overlay.verify import target
from rocm_overlay.verify.hf_tests import command, layout

MODELS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe", "olmo2",
          "granite", "gpt_oss")  # fmt: skip
SDISTS = "OVERLAY_TEST_SDISTS"
TRAINING = {
    "test_training",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_false",
    "test_retain_grad_hidden_states_attentions",
}
TRAINING_TOGGLES = "USE_FUSED_PROJECTIONS,USE_OPTIMIZED_OPS,USE_AITER_ATTENTION,USE_AITER_GEMM,USE_FUSED_CROSS_ENTROPY"
MIXIN = """
import torch
from .generation.test_utils import GenerationTesterMixin


class ModelTesterMixin(GenerationTesterMixin):
    model_tester = None  # as in the real one: without it the class stays abstract, and pytest collects no test of it

    def test_scale(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        assert self.all_model_classes[1](config).model.layers[0].self_attn.scaling > 0

    def test_shape(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[1](config).eval()
        with torch.no_grad():
            assert model(**inputs).logits.shape == (13, 7, 99)

    def test_that_stock_fails(self):
        assert False

    def test_that_stock_fails_in_a_part(self):
        for part in range(3):
            with self.subTest(part):
                assert part != 1
"""
TRAINING_MIXIN = """
import abc

import torch


class TrainingTesterMixin(abc.ABC):
    @property
    @abc.abstractmethod
    def model_tester(self):
        ...

    def test_training_step(self):
        model = self.model_tester.causal_lm_class(self.model_tester.get_config()).train()
        ids = torch.arange(3, 9)[None]
        model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
"""


def sdist(folder: Path, files: dict[str, str], release: str = "") -> Path:
    """Write a source archive of a release with these files below it."""
    release = release or transformers.__version__
    path = folder / f"transformers-{release}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"transformers-{release}/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"tests/test_modeling_common.py": MIXIN, "tests/deeper/test_other.py": "raise SystemExit", "setup.py": ""}
    return sdist(tmp_path_factory.mktemp("sdist"), files)


def quiet(text: str) -> None:
    """Progress is not what is tested."""


def test_what_stock_passes_is_compared_with_what_the_overlay_passes(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = target.find_sources

    def faulty(*arguments: Any) -> list[target.Source]:
        old, new = b"self.scaling = self.head_dim**-0.5", b"self.scaling = -self.head_dim**-0.5"
        return [replace(source, overlay=source.overlay.replace(old, new)) for source in find(*arguments)]

    good = command.compare(made_up, "llama", ["all"], sys.executable, quiet)
    assert [len(outcome.passed) for outcome in good] == [2, 2]
    where = "tests/models/overlay/test_modeling_llama.py::LlamaTest::"
    failing = {where + "test_that_stock_fails", where + "test_that_stock_fails_in_a_part"}
    assert [set(outcome.failed) for outcome in good] == [failing] * 2
    assert not good[0].ran
    assert good[1].ran["rms_norm"] > 0
    assert not good[1].lost
    monkeypatch.setattr(target, "find_sources", faulty)
    bad = command.compare(made_up, "llama", ["off"], sys.executable, quiet)
    (lost,) = bad[1].lost
    assert lost.endswith("::test_scale")


def test_the_training_mixin_of_newer_releases_runs_too(tmp_path: Path) -> None:
    files = {"tests/test_modeling_common.py": MIXIN, "tests/test_training_mixin.py": TRAINING_MIXIN}
    outcomes = command.compare(
        sdist(tmp_path, files), "llama", [TRAINING_TOGGLES], sys.executable, quiet, "training or part"
    )
    passed = {"tests/models/overlay/test_modeling_llama.py::LlamaTest::test_training_step"}
    assert [outcome.passed for outcome in outcomes] == [passed] * 2
    assert [len(outcome.failed) for outcome in outcomes] == [1, 1], "only the tests that are named ran"
    assert outcomes[1].ran["causal_lm_loss"] == 1
    assert not outcomes[1].lost


def test_the_tree_that_is_laid_out(made_up: Path, tmp_path: Path) -> None:
    tests = layout.lay_out(made_up, ["llama", "qwen3_moe"], tmp_path) / "tests"
    assert (tests / "models/overlay/test_modeling_qwen3_moe.py").read_text().count('"qwen3_moe"') == 1
    assert not (tests / "deeper").exists(), "only what stands beside the mixin is taken"
    assert (tests / "generation/test_utils.py").is_file()


@pytest.mark.parametrize("name", ["transformers-4.57.6.zip", "other-4.57.6.tar.gz", "transformers-4.57.6.tar.gz"])
def test_what_is_no_sdist(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if not name.startswith("transformers-4.57.6.tar"):
        path.touch()
    with pytest.raises(UsageError, match="is no sdist"):
        layout.version_of(path)


def test_sdists_that_cannot_be_used(tmp_path: Path) -> None:
    damaged = tmp_path / f"transformers-{transformers.__version__}.tar.gz"
    damaged.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        command.compare(damaged, "llama", [], sys.executable, quiet)
    with pytest.raises(UsageError, match=r"has no tests/test_modeling_common\.py"):
        layout.lay_out(sdist(tmp_path, {"setup.py": ""}, "1.2.3"), [], tmp_path / "tree")
    with pytest.raises(UsageError, match=r"the sdist is 1\.2\.3"):
        command.compare(sdist(tmp_path, {}, "1.2.3"), None, [], sys.executable, quiet)


def test_a_model_without_an_overlay_is_refused(made_up: Path) -> None:
    with pytest.raises(UsageError, match="there is no overlay"):
        command.compare(made_up, "llama,nothing", [], sys.executable, quiet)


def real_sdist(release: str) -> Path:
    folder = os.environ.get(SDISTS)
    path = Path(folder or "") / f"transformers-{release}.tar.gz"
    if not folder or not path.is_file():
        pytest.skip(f"{SDISTS} names no folder with {path.name}: `make test-full` downloads it")
    return path


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", ["4.57.6", "5.23.0", "5.24.0"])
@pytest.mark.parametrize("model", MODELS)
def test_the_mixin_passes_what_stock_passes(model: str, release: str, python_with: Callable[[str], str]) -> None:
    outcomes = command.compare(real_sdist(release), model, [], python_with(release), quiet)
    assert len(outcomes[0].passed) > 30
    assert not outcomes[1].ran
    assert outcomes[2].ran
    assert not outcomes[1].lost
    assert not outcomes[2].lost


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", ["4.57.6", "5.23.0", "5.24.0"])
def test_the_training_tests_pass_where_stock_passes(release: str, python_with: Callable[[str], str]) -> None:
    """With the loss without logits, too; newer releases also train a model until it repeats a text."""
    named = "training or grad or loss"
    stock, ours = command.compare(
        real_sdist(release), ",".join(MODELS), [TRAINING_TOGGLES], python_with(release), quiet, named
    )
    wanted = TRAINING | ({"test_training_overfit"} if release.startswith("5") else set())
    for model in MODELS:
        place = f"test_modeling_{model}.py::"
        assert wanted <= {test.rpartition("::")[2] for test in stock.passed if place in test}, model
    assert ours.ran["causal_lm_loss"] >= 4 * len(MODELS)
    assert not ours.lost
