"""With the kernels library installed (0.12 or 0.17, whichever it is): our repository in its layout, hub loads, offline
behaviour.

Nothing here reaches the network. The rocm device is there by a faked capability; the hub is a local cache or a fake.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amd_ops.kernelize import (
    KernelLoadError,
    KernelUnavailable,
    RegistrationError,
    hub,
    hub_repository,
    kernelize_model,
    kernelize_report,
    kernels_mapping,
    ready,
    register_external_layer,
    register_layer_kernel,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kernels() -> Any:
    return pytest.importorskip("kernels", reason="the kernels library is not installed (extra [hub])")


class Norm(nn.Module):
    """A norm as a model marks it for the kernels library."""

    kernel_layer_name = "RMSNorm"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the original forward ran")


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def expected(norm: Norm) -> torch.Tensor:
    return torch.nn.functional.rms_norm(X, (8,), norm.weight, norm.variance_epsilon)


def kernelize_with_library(kernels: Any, norm: Norm, device: str) -> None:
    # kernels 0.17 asks for a condition on every marked class.
    Norm.kernel_condition = staticmethod(lambda module: True)
    with kernels.use_kernel_mapping(kernels_mapping(("cpu", "rocm")), inherit_mapping=False):
        kernels.kernelize(norm, mode=kernels.Mode.INFERENCE | kernels.Mode.TORCH_COMPILE, device=device)


def test_the_library_loads_our_repository_for_cpu(kernels: Any) -> None:
    norm = Norm().eval()
    kernelize_with_library(kernels, norm, "cpu")
    assert norm.forward.__func__ is ready.RMSNorm.forward
    assert torch.allclose(norm(X), expected(norm), atol=1e-6)


@pytest.mark.parametrize(("capability", "taken"), [(94, True), (95, True), (90, False), (110, False)])
def test_the_library_loads_our_repository_for_rocm(
    kernels: Any, capability: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.layer import repos

    monkeypatch.setattr(repos, "_find_capability", lambda: capability)
    norm = Norm().eval()
    kernelize_with_library(kernels, norm, "rocm")
    assert (norm.forward.__func__ is ready.RMSNorm.forward) == taken


def test_our_loader_loads_the_same_repository(gpu: Callable[[str], None]) -> None:
    gpu("gfx942")
    register_layer_kernel("N", repo_path=hub_repository(), layer_name="AmdRMSNorm", device="rocm:gfx94*")
    register_external_layer(Norm, "N")
    norm = kernelize_model(Norm().eval(), use_fallback=False)
    assert torch.allclose(norm(X), expected(norm), atol=1e-6)


def test_metadata_is_what_the_library_wants() -> None:
    metadata = json.loads((hub_repository() / "build" / "torch-universal" / "metadata.json").read_text())
    assert {"id", "name", "version", "backend"} <= set(metadata)


def test_marked_classes_need_no_registration_of_ours() -> None:
    register_layer_kernel("RMSNorm", ready.RMSNorm)
    norm = kernelize_model(Norm())
    assert torch.allclose(norm(X), expected(norm), atol=1e-6)


def test_unknown_devices_and_layers_of_the_mapping(kernels: Any) -> None:
    with pytest.raises(RegistrationError, match="unknown device 'cuda'"):
        kernels_mapping(("cuda",))
    with pytest.raises(RegistrationError, match="unknown layer 'LayerNorm'"):
        kernels_mapping(layers=("LayerNorm",))


def test_without_the_library_a_hub_kernel_is_a_counted_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    hub.library.cache_clear()
    try:
        register_layer_kernel("N", repo_id="kernels-community/layer_norm", layer_name="RMSNorm", version=1)
        register_external_layer(Norm, "N")
        norm = kernelize_model(Norm())
        assert type(norm) is Norm
        assert "the kernels library is not installed" in str(kernelize_report(norm))
        with pytest.raises(KernelUnavailable, match=r"pip install 'transformers-rocm-overlay\[hub\]'"):
            kernelize_model(norm, use_fallback=False)
        with pytest.raises(KernelLoadError, match="is not installed"):
            kernels_mapping()
    finally:
        hub.library.cache_clear()


OFFLINE = """
import time, torch, warnings
from torch import nn
from amd_ops.kernelize import *

class Act(nn.Module):
    def forward(self, x):
        return x

for number, pin in enumerate(({"revision": "main"}, {"version": 1}, {"revision": "no-such-revision"})):
    with use_kernels(inherit=False):
        register_layer_kernel("A", repo_id="kernels-community/activation", layer_name="SiluAndMul", **pin)
        register_external_layer(Act, "A")
        start = time.monotonic()
        act = kernelize_model(Act())
        assert type(act) is Act
        (row,) = kernelize_report(act).layers
        print(row.reasons[0])
        assert "cannot load it" in row.reasons[0], row
        try:
            kernelize_model(act, use_fallback=False)
        except KernelUnavailable as error:
            assert "kernels-community/activation" in str(error)
        else:
            raise AssertionError("no error without fallback")
        assert time.monotonic() - start < 20
"""


def run(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_offline_and_wrong_revisions(kernels: Any, tmp_path: Path) -> None:
    result = run(OFFLINE, tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3


def hub_cache(root: Path, repository: Path, revision: str) -> None:
    """Lay a repository out as the hub's cache has it."""
    for prefix in ("models", "kernels"):
        base = root / "hub" / f"{prefix}--amd--ops-layers"
        shutil.copytree(repository, base / "snapshots" / ("0" * 40))
        (base / "refs").mkdir(parents=True)
        for name in ("main", revision):
            (base / "refs" / name).write_text("0" * 40)


FROM_CACHE = """
import torch
from torch import nn
from amd_ops.kernelize import *

class Act(nn.Module):
    def forward(self, x):
        raise AssertionError("the original forward ran")

for pin in PINS:
    with use_kernels(inherit=False):
        register_layer_kernel("A", repo_id="amd/ops-layers", layer_name="AmdSiluAndMul", trust_remote_code=TRUST, **pin)
        register_external_layer(Act, "A")
        act = kernelize_model(Act(), use_fallback=False)
        x = torch.randn(2, 8)
        assert torch.allclose(act(x), nn.functional.silu(x[:, :4]) * x[:, 4:], atol=1e-6)
        print(kernelize_report(act).layers[0].source)
"""


def test_a_cached_hub_kernel_is_loaded_offline(kernels: Any, tmp_path: Path) -> None:
    hub_cache(tmp_path, hub_repository(), "v1")
    trusts = "trust_remote_code" in inspect.signature(kernels.get_kernel).parameters
    # kernels 0.12 asks the hub for the versions of a repository even when a copy is cached.
    pins = [{"revision": "main"}] if hub.version().startswith("0.12") else [{"revision": "main"}, {"version": 1}]
    script = FROM_CACHE.replace("TRUST", str(trusts)).replace("PINS", repr(pins))
    result = run(script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "amd/ops-layers (main):AmdSiluAndMul" in result.stdout


KERNEL_CONFIG = """
import importlib.metadata as metadata
real = metadata.version
# transformers 5.23 accepts kernels 0.18 only; the calls it makes are the same in 0.17.
metadata.version = lambda name: "0.18.2" if name == "kernels" else real(name)
import torch
from kernels.layer import repos
try:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations import hub_kernels
    from transformers.utils import kernel_config
except ImportError as error:
    print("SKIP", str(error).splitlines()[0])
    raise SystemExit
from amd_ops.kernelize import hub_repository, ready

repos._find_capability = lambda: 94
kernel_config.infer_device = lambda model: "rocm"
hub_kernels.get_device_type = lambda device=None: "rocm"
torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     intermediate_size=48, vocab_size=61)
model = LlamaForCausalLM(config).eval()
ids = torch.tensor([[1, 2, 3]])
before = model(ids).logits
wanted = kernel_config.KernelConfig({"RMSNorm": f"{hub_repository()}:AmdRMSNorm"}, use_local_kernel=True)
model.set_use_kernels(True, wanted)
norms = [m for m in model.modules() if type(m).__name__ == "LlamaRMSNorm"]
assert len(norms) == 5
assert all(norm.forward.__func__ is ready.RMSNorm.forward for norm in norms)
assert torch.allclose(model(ids).logits, before, atol=1e-5)
print("DONE")
"""


def test_transformers_5_loads_our_repository_through_its_own_kernel_config(
    kernels: Any, stock_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    if hub.version().startswith("0.12"):
        pytest.skip("transformers 5.23 builds repositories as kernels >= 0.17 does")
    result = run(KERNEL_CONFIG, tmp_path, PYTHONPATH=str(stock_tree("5.23.0")))
    if result.stdout.startswith("SKIP"):
        pytest.skip(f"transformers 5.23 cannot be imported here: {result.stdout[5:].strip()}")
    assert result.stdout.strip() == "DONE", result.stderr
