"""Layer kernels out of a folder, or out of an object that loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amd_ops.kernelize import (
    KernelizeError,
    KernelLoadError,
    KernelUnavailable,
    SignatureError,
    kernelize_model,
    kernelize_report,
    register_external_layer,
    register_layer_kernel,
)

from .test_layers import Layer, PlusTen, offset


def local(path: Path, name: str = "Fast", package: str | None = "their_kernels", **more: Any) -> None:
    register_layer_kernel("K", repo_path=path, package_name=package, layer_name=name, **more)
    register_external_layer(Layer, "K")


BUILT_FOR = f"torch-{'rocm' if torch.version.hip else 'cuda' if torch.version.cuda else 'cpu'}"
FAST = "from torch import nn\nclass Fast(nn.Module):\n    def forward(self, x, scale=1.0):\n        return x + 10\n"


@pytest.mark.parametrize(
    "files",
    [
        {"their_kernels/__init__.py": "from . import layers", "their_kernels/layers.py": FAST},
        {"their_kernels/layers.py": FAST},
        {
            "build/torch-universal/their_kernels/__init__.py": "from . import layers",
            "build/torch-universal/their_kernels/layers.py": FAST,
        },
        {f"build/{BUILT_FOR}/__init__.py": "", f"build/{BUILT_FOR}/layers.py": FAST},
        {"torch-universal/__init__.py": "", "torch-universal/layers.py": FAST},
    ],
    ids=["package", "layers only", "hub 0.12", "hub 0.17", "build folder"],
)
def test_local_repositories(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    local(tmp_path)
    assert offset(kernelize_model(Layer(), use_fallback=False)) == 10


def test_the_repository_may_be_the_package_itself(tmp_path: Path) -> None:
    (tmp_path / "their_kernels").mkdir()
    (tmp_path / "their_kernels" / "layers.py").write_text(FAST)
    local(tmp_path / "their_kernels")
    assert offset(kernelize_model(Layer(), use_fallback=False)) == 10


@pytest.mark.parametrize(
    ("text", "name", "package", "reason"),
    [
        (FAST, "Fats", "their_kernels", "unknown layer 'Fats' .* did you mean 'Fast'"),
        (FAST, "Fast", "other_kernels", "no package other_kernels in"),
        ("1 / 0", "Fast", "their_kernels", "importing .* failed: ZeroDivisionError"),
        (
            "import no_such_module",
            "Fast",
            "their_kernels",
            "failed: ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_repositories_that_cannot_be_loaded(text: str, name: str, package: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "their_kernels").mkdir()
    (tmp_path / "their_kernels" / "layers.py").write_text(text)
    local(tmp_path, name, package)
    layer = kernelize_model(Layer())
    assert offset(layer) == 0
    (row,) = kernelize_report(layer).layers
    assert not row.applied
    with pytest.raises(KernelUnavailable, match=reason):
        kernelize_model(layer, use_fallback=False)


def test_a_repository_class_is_checked_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "layers.py").write_text(FAST.replace(", scale=1.0", "") + "class State(Fast):\n    table = 1\n")
    local(tmp_path, package=None)
    with pytest.raises(SignatureError, match=r"K from .*layers|K from .*Fast.*cannot replace Layer\.forward"):
        kernelize_model(Layer())
    local(tmp_path, "State", None)
    with pytest.raises(SignatureError, match="State must not have members of its own, found table"):
        kernelize_model(Layer())


def test_a_repository_object(tmp_path: Path) -> None:
    class Repo:
        def load(self) -> type[nn.Module]:
            return PlusTen

    class Broken:
        def load(self) -> type[nn.Module]:
            raise OSError("disk on fire")

    register_layer_kernel("K", repo=Repo())
    register_external_layer(Layer, "K")
    assert offset(kernelize_model(Layer())) == 10
    register_layer_kernel("K", repo=Broken())
    layer = kernelize_model(Layer())
    assert "OSError: disk on fire" in str(kernelize_report(layer))
    assert issubclass(KernelLoadError, KernelizeError)
