"""What keys the results of bench, verify, qualify, tune run and synth: whatever can change an answer, by content."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rocm_overlay import fingerprint
from rocm_overlay.errors import TargetError
from rocm_overlay.fingerprint import Fingerprint, sha256, surroundings
from rocm_overlay.journal import changes

GPU = "gfx_target_version 90402\nsimd_count 1216\nsimd_per_cu 4\n"


@dataclass
class World:
    """A machine, an interpreter's packages and a model, all made of small files below ``folder``."""

    folder: Path
    environ: dict[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1", "HOME": "/home/me"})
    texts: dict[str, tuple[str, str]] = field(default_factory=lambda: {"models/llama/modeling_llama.py": ("a", "b")})
    plan: dict[str, object] = field(default_factory=lambda: {"dtype": "float32"})

    def write(self, path: str, text: str) -> Path:
        """Write a file, as somebody would who puts another one in its place."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
        return target

    def package(self, name: str, version: str, record: str = "") -> None:
        """Install a distribution: what its wheel recorded tells one build from another of the same version."""
        folder = f"site/{name.replace('-', '_')}-{version}.dist-info"
        for old in (self.folder / "site").glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        self.write(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        package = {"amd-aiter": "aiter"}.get(name, name)
        self.write(f"{folder}/RECORD", f"{package}/__init__.py,sha256={record},1\n")
        fingerprint._builds.cache_clear()

    def table(self, name: str) -> None:
        """Put another table of the same size in the place of one that aiter came with, as its tuner does."""
        self.write(f"site/aiter/configs/{name}", "b row")
        fingerprint._builds.cache_clear()

    def key(self) -> Fingerprint:
        """Take the fingerprint of all of it."""
        found = surroundings(
            environ=self.environ,
            model=self.folder / "model",
            library=self.folder / "site" / "transformers",
            texts=self.texts,
            amd_ops=str(self.folder / "site" / "amd_ops" / "__init__.py"),
            root=self.folder / "root",
        )
        return found.planned(self.plan)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    made = World(tmp_path)
    for name in ("torch", "transformers", "amd-aiter", "triton"):
        made.package(name, "1.0", "abc")
    for path, text in {
        "model/config.json": "{}",
        "model/generation_config.json": "{}",
        "model/model.safetensors": "weights",
        "model/README.md": "not read by anything",
        "table.csv": "gfx942,304,16,4096,4096",
        "site/transformers/cache_utils.py": "stock",
        "site/transformers/models/llama/modeling_llama.py": "either text",
        "site/transformers/models/bert/modeling_bert.py": "another family",
        "site/aiter/__init__.py": "",
        "site/aiter/configs/bf16_tuned_gemm.csv": "a row",
        "site/aiter/configs/model_configs/llama_bf16_tuned_gemm.csv": "a row",
        "site/amd_ops/__init__.py": "",
        "site/amd_ops/ops/norm.py": "one formula",
        "root/sys/module/amdgpu/version": "6.14",
        "root/sys/class/kfd/kfd/topology/nodes/1/properties": GPU,
        "root/proc/cpuinfo": "model name : a processor\n",
    }.items():
        made.write(path, text)
    made.environ["AITER_CONFIG_GEMM_BF16"] = str(tmp_path / "table.csv")
    return made


def variable(name: str, value: str = "1") -> Callable[[World], object]:
    return lambda world: world.environ.__setitem__(name, value)


CHANGES: dict[str, tuple[str, Callable[[World], object]]] = {
    "weights": ("model.model.safetensors", lambda w: w.write("model/model.safetensors", "WEIGHTS")),
    "config": ("model.config.json", lambda w: w.write("model/config.json", '{"a": 1}')),
    "generation": ("model.generation_config.json", lambda w: w.write("model/generation_config.json", "[]")),
    "another shard": ("model.model-2.safetensors", lambda w: w.write("model/model-2.safetensors", "more")),
    "torch": ("software.torch", lambda w: w.package("torch", "1.1", "abc")),
    "a rebuilt torch": ("software.torch", lambda w: w.package("torch", "1.0", "abd")),
    "transformers": ("software.transformers", lambda w: w.package("transformers", "1.1", "abc")),
    "aiter": ("software.amd-aiter", lambda w: w.package("amd-aiter", "1.1", "abc")),
    "a table in aiter": ("software.amd-aiter", lambda w: w.table("bf16_tuned_gemm.csv")),
    "a model's table in aiter": (
        "software.amd-aiter", lambda w: w.table("model_configs/llama_bf16_tuned_gemm.csv")),
    "triton": ("software.triton", lambda w: w.package("triton", "1.1", "abc")),
    "edited transformers": ("software.library", lambda w: w.write("site/transformers/cache_utils.py", "mine")),
    "edited amd_ops": ("overlay.amd_ops", lambda w: w.write("site/amd_ops/ops/norm.py", "another formula")),
    "stock text": ("overlay.texts.models/llama/modeling_llama.py", lambda w: w.texts.update({
        "models/llama/modeling_llama.py": ("c", "b")})),
    "overlaid text": ("overlay.texts.models/llama/modeling_llama.py", lambda w: w.texts.update({
        "models/llama/modeling_llama.py": ("a", "c")})),
    "driver": ("machine.driver.amdgpu", lambda w: w.write("root/sys/module/amdgpu/version", "6.15")),
    "rocm": ("machine.driver.rocm", lambda w: w.write("root/opt/rocm/.info/version", "7.1")),
    "device": ("machine.device", lambda w: w.write(
        "root/sys/class/kfd/kfd/topology/nodes/1/properties", GPU.replace("90402", "90500"))),
    "one device more": ("machine.device", lambda w: w.write(
        "root/sys/class/kfd/kfd/topology/nodes/2/properties", GPU)),
    "processor": ("machine.cpu", lambda w: w.write("root/proc/cpuinfo", "model name : another\n")),
    "what an aiter table holds": ("environment.AITER_CONFIG_GEMM_BF16", lambda w: w.write("table.csv", "another row")),
    "an aiter table fewer": (
        "environment.AITER_CONFIG_GEMM_BF16", lambda w: w.environ.pop("AITER_CONFIG_GEMM_BF16")),
    "dtype": ("plan.dtype", lambda w: w.plan.update(dtype="bfloat16")),
    **{
        name: (f"environment.{name}", variable(name, "7"))
        for name in (
            "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "PYTHONPATH", "AITER_JIT_DIR", "TRITON_INTERPRET",
            "HIP_FORCE_DEV_KERNARG", "HIP_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "GPU_MAX_HW_QUEUES",
            "AMD_OPS", "AMD_OPS_TIERS", "AMD_OPS_STOCK", "USE_AITER_ATTENTION", "USE_OPTIMIZED_OPS",
            "FORCE_EAGER_ATTENTION", "PRESHUFFLE_M_THRESH", "TORCHINDUCTOR_MAX_AUTOTUNE", "PYTORCH_TUNABLEOP_ENABLED",
            "DISABLE_ADDMM_HIP_LT", "HIPCC_COMPILE_FLAGS_APPEND", "ENABLE_CK", "ACCELERATE_MIXED_PRECISION",
            "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "HIPBLASLT_TENSILE_LIBPATH", "MIOPEN_FIND_MODE",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_can_change_an_answer_demands_a_new_run(world: World, name: str) -> None:
    place, change = CHANGES[name]
    before = world.key()
    assert before.digest == world.key().digest
    change(world)
    after = world.key()
    assert after.digest != before.digest
    assert [where for where, _, _ in changes(before.ingredients, after.ingredients)] == [place]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.environ.update(TERM="dumb", HOME="/root", TORCHELASTIC_RUN_ID="2"),
        lambda w: w.write("model/README.md", "longer than before"),
        lambda w: w.write("site/transformers/models/llama/modeling_llama.py", "`overlay install` was here"),
        lambda w: w.write("site/transformers/models/bert/modeling_bert.py", "of no concern"),
        lambda w: w.write("model/model.safetensors", "weights"),
        lambda w: os.utime(w.folder / "model" / "model.safetensors", (1, 1)),
    ],
    ids=["environment", "readme", "installed", "family", "copied", "touched"],
)
def test_what_changes_no_answer_does_not(world: World, change: Callable[[World], object]) -> None:
    before = world.key()
    change(world)
    assert world.key().digest == before.digest


def test_a_program_of_ours_that_changed_is_another_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.key()
    monkeypatch.setattr(fingerprint, "__version__", "9.9")
    assert world.key().digest != before.digest
    monkeypatch.undo()
    folder = world.folder / "site"
    assert fingerprint._folder(folder, ("amd_ops/**/*.py",)) == fingerprint._folder(folder, ("amd_ops/**/*.py",))
    one = fingerprint._folder(folder, ("amd_ops/**/*.py",))
    (folder / "amd_ops" / "ops" / "norm.py").rename(folder / "amd_ops" / "ops" / "other.py")
    assert fingerprint._folder(folder, ("amd_ops/**/*.py",)) != one, "a name is content, too"


def test_a_package_that_is_installed_as_a_link_is_known_by_its_files(world: World) -> None:
    source = world.write("site/aiter/ops.py", "one")
    world.write("site/aiter/__init__.py", "")
    (world.folder / "site" / "amd_aiter-1.0.dist-info" / "RECORD").write_text("__editable__.amd_aiter.pth,,\n")
    fingerprint._builds.cache_clear()
    before = world.key()
    source.write_text("another")
    fingerprint._builds.cache_clear()  # one process asks an interpreter once
    assert changes(before.ingredients, world.key().ingredients)[0][0] == "software.amd-aiter"


def test_a_large_file_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.folder / "model" / "model.safetensors"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    digest = sha256(path)
    monkeypatch.setattr("hashlib.sha256", lambda: pytest.fail("read again"))
    assert sha256(path) == digest
    monkeypatch.undo()
    path.write_text("WEIGHTS")
    assert sha256(path) != digest


def test_a_file_that_was_just_written_is_read_again(world: World) -> None:
    """Two writes within one tick of the file system's clock leave the same times."""
    path = world.write("model/model.safetensors", "first")
    before = path.stat()
    digest = sha256(path)
    path.write_text("other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256(path) != digest


def test_a_cache_that_cannot_be_read_or_written_only_costs_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.key().digest
    world.write("cache/amd-overlay/hashes.json", "[1, 2")
    assert world.key().digest == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.write("file", "")))
    assert world.key().digest == before


def test_an_interpreter_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be run"):
        fingerprint.builds(str(tmp_path / "python"))
    assert fingerprint.builds(sys.executable)["executable"] == sys.executable
