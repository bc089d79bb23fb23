"""Every example of seed 002, as it is written there, with ``twinkle.kernel`` replaced by our module.

This machine has no CUDA device: the examples run, nothing is replaced, and the report says why. Each one runs once
more on a machine that has one, where the kernels are applied.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn as nn

from amd_ops.kernelize import KernelUnavailable, hub, kernelize_report

MY_KERNELS = """
import torch
import torch.nn as nn

class Qwen2MLPTrainingKernel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)
        up = self.up_proj(x)
        return self.down_proj(self.act_fn(gate) * up)
"""

Package = Callable[..., Path]


@pytest.fixture
def repository(package: Package) -> str:
    """The local repository of the seed: my_kernels/__init__.py and layers.py."""
    folder = package(
        "repo/my_kernels", {"__init__.py": "from . import layers\n__all__ = ['layers']\n", "layers.py": MY_KERNELS}
    )
    return str(folder.parent)


@pytest.fixture
def my_pkg(package: Package) -> Path:
    return package(
        "my_pkg",
        {
            "math_ops.py": "def add(x, y):\n    return x + y\n\ndef mul(x, y):\n    return x * y + 1\n",
            "activations.py": "def silu_and_mul(x):\n    return x\n\ndef relu(x):\n    return x\n",
        },
    )


def qwen() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    del transformers
    config = Qwen2Config(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def local_repository_example(path: str, use_fallback: bool = True) -> nn.Module:
    from amd_ops.kernelize import kernelize_model, register_external_layer, register_layer_kernel

    model = qwen()
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    register_layer_kernel(
        kernel_name="MyAwesomeMLP",
        repo_path=path,
        package_name="my_kernels",
        layer_name="Qwen2MLPTrainingKernel",
        device="cuda",
        mode="train",
    )
    register_external_layer(Qwen2MLP, "MyAwesomeMLP")
    return kernelize_model(model, mode="train", device="cuda", use_fallback=use_fallback)


def test_local_repository_without_the_device(repository: str) -> None:
    model = local_repository_example(repository)
    mlp = model.model.layers[0].mlp
    assert type(mlp).__name__ == "Qwen2MLP"
    (row,) = [row for row in kernelize_report(model).layers if row.module == "model.layers.0.mlp"]
    assert not row.applied
    assert row.reasons == ("this machine has no cuda device",)


def test_local_repository_path_that_does_not_exist_is_not_opened_for_an_absent_device() -> None:
    local_repository_example("/path/to/local/repo")


def test_local_repository_without_fallback_is_an_error(repository: str) -> None:
    with pytest.raises(KernelUnavailable, match="this machine has no cuda device"):
        local_repository_example(repository, use_fallback=False)


@pytest.mark.usefixtures("nvidia")
def test_local_repository_with_the_device(repository: str) -> None:
    ids = torch.tensor([[1, 2, 3]])
    model = local_repository_example(repository)
    mlp = model.model.layers[0].mlp
    (row,) = [row for row in kernelize_report(model).layers if row.module == "model.layers.0.mlp"]
    assert row.applied
    assert row.kernel == "MyAwesomeMLP"
    kernelized = model(ids).logits
    from amd_ops.kernelize import unkernelize_model

    unkernelize_model(model)
    assert type(mlp).forward.__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert torch.equal(kernelized, model(ids).logits)


def hub_example(use_fallback: bool = True) -> tuple[nn.Module, type[nn.Module]]:
    from amd_ops.kernelize import kernelize_model, register_external_layer, register_layer_kernel

    class SiluAndMul(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x1, x2 = x.chunk(2, dim=-1)
            return nn.functional.silu(x1) * x2

    register_layer_kernel(
        kernel_name="SiluAndMulKernel",
        repo_id="kernels-community/activation",
        layer_name="SiluAndMul",
        device="cuda",
        mode="train",
    )
    register_external_layer(SiluAndMul, "SiluAndMulKernel")

    class SimpleModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = SiluAndMul()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.activation(x)

    model = SimpleModel()
    return kernelize_model(model, mode="train", device="cuda", use_fallback=use_fallback), SiluAndMul


def fake_hub(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., object]) -> list[tuple[object, ...]]:
    """Let the hub hold one repository; returns the calls that were made."""
    calls: list[tuple[object, ...]] = []

    class SiluAndMul(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x.shape[-1] // 2
            return nn.functional.silu(x[..., :half]) * x[..., half:]

    def get_kernel(*arguments: object) -> ModuleType:
        calls.append(arguments)
        module = ModuleType("hub_activation")
        module.layers = ModuleType("hub_activation.layers")
        module.layers.SiluAndMul = SiluAndMul
        for name, value in functions.items():
            setattr(module, name, value)
        return module

    monkeypatch.setattr(hub, "get_kernel", get_kernel)
    return calls


def test_hub_repository_without_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch)
    model, cls = hub_example()
    assert type(model.activation) is cls
    assert calls == []
    assert "this machine has no cuda device" in str(kernelize_report(model))


@pytest.mark.usefixtures("nvidia")
def test_hub_repository_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch)
    model, cls = hub_example()
    assert calls == [("kernels-community/activation", "main", None, False)]
    assert type(model.activation) is not cls
    x = torch.randn(3, 8)
    assert torch.allclose(model(x), cls()(x))


def test_function_batch_example(my_pkg: Path) -> None:
    from amd_ops.kernelize import kernelize_model, register_kernels

    config = {
        "functions": {
            "add": {
                "target_module": "my_pkg.math_ops",
                "func_impl": lambda x, y: x + y + 1,
                "device": "cuda",
                "mode": "inference",
            },
        },
    }
    register_kernels(config)
    assert kernelize_model(model=None, mode="inference", device="cuda", use_fallback=True) is None
    assert importlib.import_module("my_pkg.math_ops").add(1, 2) == 3
    assert "this machine has no cuda device" in str(kernelize_report(None))
    with pytest.raises(KernelUnavailable, match=r"my_pkg\.math_ops\.add"):
        kernelize_model(model=None, mode="inference", device="cuda", use_fallback=False)


@pytest.mark.usefixtures("nvidia")
def test_function_batch_example_with_the_device(my_pkg: Path) -> None:
    test = importlib.import_module("my_pkg.math_ops")
    from amd_ops.kernelize import kernelize_model, register_kernels, unkernelize_model

    original = test.add
    add = {
        "target_module": "my_pkg.math_ops",
        "func_impl": lambda x, y: x + y + 1,
        "device": "cuda",
        "mode": "inference",
    }
    register_kernels({"functions": {"add": add}})
    kernelize_model(model=None, mode="inference", device="cuda", use_fallback=True)
    assert test.add(1, 2) == 4
    unkernelize_model(None)
    assert test.add is original


def advanced_functions_example() -> list[str]:
    from amd_ops.kernelize import kernelize_model
    from amd_ops.kernelize.function import apply_function_kernel, register_function_kernel

    TARGET_MODULE = "my_pkg.math_ops"

    def fast_add(x, y):
        return x + y + 1

    register_function_kernel(
        func_name="add",
        target_module=TARGET_MODULE,
        func_impl=fast_add,
        device="cuda",
        mode="inference",
    )

    class MyFuncRepo:
        def load(self):
            return MyKernelFunc

    class MyKernelFunc(nn.Module):
        def forward(self, x, y):
            return x * y

    register_function_kernel(
        func_name="mul",
        target_module=TARGET_MODULE,
        repo=MyFuncRepo(),
        device="cuda",
        mode="compile",
    )
    register_function_kernel(
        func_name="silu_and_mul",
        target_module="my_pkg.activations",
        repo_id="kernels-community/activation",
        revision="main",
        device="cuda",
        mode="inference",
    )
    applied = apply_function_kernel(target_module=TARGET_MODULE, device="cuda", mode="inference", strict=False)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    kernelize_model(model=model, mode="inference", device="cuda", use_fallback=True)
    return applied


def test_advanced_functions_without_the_device(my_pkg: Path) -> None:
    assert advanced_functions_example() == []
    assert importlib.import_module("my_pkg.math_ops").add(1, 2) == 3


@pytest.mark.usefixtures("nvidia")
def test_advanced_functions_with_the_device(my_pkg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, silu_and_mul=lambda x: x + 10)
    assert advanced_functions_example() == ["my_pkg.math_ops.add"]
    math_ops = sys.modules["my_pkg.math_ops"]
    assert math_ops.add(1, 2) == 4
    assert math_ops.mul(2, 3) == 7, "registered for compile, applied for inference: stays"
    assert sys.modules["my_pkg.activations"].silu_and_mul(1) == 11
    assert "kernel is for mode compile" in str(kernelize_report(None))
    from amd_ops.kernelize.function import apply_function_kernel

    assert set(apply_function_kernel("my_pkg.math_ops", device="cuda", mode="compile")) == {"my_pkg.math_ops.mul"}
    assert math_ops.mul(2, 3) == 6


def unified_example() -> nn.Module:
    from amd_ops.kernelize import kernelize_model, register_kernels

    config = {
        "layers": {
            "linear": {
                "repo_id": "kernels-community/linear",
                "layer_name": "Linear",
                "version": "0.1.0",
                "device": "cuda",
                "mode": "train",
            },
            "conv2d": {
                "repo_path": "/path/to/local/repo",
                "package_name": "my_kernels",
                "layer_name": "Conv2d",
                "device": "cuda",
            },
        },
        "functions": {
            "add": {
                "target_module": "my_pkg.math_ops",
                "func_impl": lambda x, y: x + y + 1,
                "device": "cuda",
                "mode": "inference",
            },
            "relu": {
                "target_module": "my_pkg.activations",
                "repo_id": "kernels-community/activation",
                "revision": "main",
                "device": "cuda",
            },
        },
    }
    register_kernels(config)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return kernelize_model(model=model, mode="train", device="cuda", use_fallback=True)


def test_unified_registration_without_the_device(my_pkg: Path) -> None:
    report = kernelize_report(unified_example())
    assert report.applied == ()
    assert report.unused == ("linear", "conv2d")
    assert {row.target for row in report.functions} == {"my_pkg.math_ops.add", "my_pkg.activations.relu"}


@pytest.mark.usefixtures("nvidia")
def test_unified_registration_with_the_device(my_pkg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, relu=lambda x: x - 5)
    report = kernelize_report(unified_example())
    assert sys.modules["my_pkg.activations"].relu(1) == -4
    rows = {row.target: row for row in report.functions}
    assert rows["my_pkg.activations.relu"].applied
    assert not rows["my_pkg.math_ops.add"].applied, "an inference kernel does not serve training"
