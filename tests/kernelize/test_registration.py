"""Bad registrations are errors where they are made, and every message names what was asked and what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from amd_ops.kernelize import (
    Guard,
    RegistrationError,
    SignatureError,
    register_external_layer,
    register_function_kernel,
    register_kernels,
    register_layer_kernel,
    use_kernels,
)
from amd_ops.kernelize.registry import current_registry


class Layer(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * scale


class Kernel(nn.Module):
    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return hidden * scale


class FewerArguments(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class KeywordOnly(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return x * scale


class WithConstructor(nn.Module):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x


class WithState(nn.Module):
    table = (1, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.helper(x)

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return x


class NoForward(nn.Module):
    pass


def test_unknown_kernel_names_the_nearest() -> None:
    register_layer_kernel("FastLayer", Kernel)
    with pytest.raises(RegistrationError, match=r"unknown kernel 'FastLayr' .* did you mean 'FastLayer'\?"):
        register_external_layer(Layer, "FastLayr")


def test_signature_is_checked_when_the_class_is_bound_with_both_names() -> None:
    register_layer_kernel("K", FewerArguments)
    with pytest.raises(
        SignatureError, match=r"K \(FewerArguments\.forward\) cannot replace Layer\.forward: .*has 2 .*has 3"
    ):
        register_external_layer(Layer, "K")


def test_signature_is_checked_when_the_kernel_comes_second() -> None:
    register_layer_kernel("K", Kernel)
    register_external_layer(Layer, "K")
    with pytest.raises(
        SignatureError, match=r"KeywordOnly\.forward\) cannot replace Layer\.forward: parameter 'scale' is keyword-only"
    ):
        register_layer_kernel("K", KeywordOnly, mode="train")
    assert [k.source.value for k in current_registry().layers["K"]] == [Kernel]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (WithConstructor, "WithConstructor must not have a constructor"),
        (WithState, "WithState must not have members of its own, found helper, table"),
        (NoForward, "NoForward defines no forward"),
        (torch.add, "is not an nn.Module class"),
    ],
)
def test_a_kernel_class_is_stateless(layer: object, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        register_layer_kernel("K", layer)
    assert "K" not in current_registry().layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of layer, repo_path, repo_id, repo; found none"),
        ({"layer": Kernel, "repo_id": "a/b"}, "exactly one of .* found layer, repo_id"),
        ({"repo_id": "a/b", "layer_name": "L", "revision": "main", "version": 1}, "revision or version, not both"),
        ({"repo_id": "a/b", "layer_name": "L", "revision": 3}, "revision must be a string"),
        ({"repo_id": "a/b", "layer_name": "L", "version": 1.5}, "version must be an integer or a string"),
        ({"repo_id": "activation", "layer_name": "L"}, "must look like 'owner/name'"),
        ({"repo_id": "a/b"}, "layer_name must be a name, found None"),
        ({"repo_path": "x", "layer_name": "L", "package_name": "no-name"}, "must be a Python package name"),
        ({"repo_path": "x", "layer_name": "L", "revision": "main"}, "revision and version belong to repo_id"),
        ({"layer": Kernel, "mode": "trian"}, "unknown mode 'trian'"),
        ({"layer": Kernel, "mode": 3}, "mode must be a string"),
        ({"layer": Kernel, "device": "vulkan"}, "unknown device 'vulkan'"),
        ({"layer": Kernel, "device": "cuda", "arch": "gfx942"}, "no condition on cuda"),
        ({"layer": Kernel, "device": "rocm:sm90"}, "no condition on rocm"),
        ({"layer": Kernel, "arch": "gfx942"}, "needs device='rocm'"),
        ({"layer": Kernel, "guard": {"dtypes": ["bfloat17"]}}, "is not a torch.dtype"),
        ({"layer": Kernel, "guard": {"rows": 3}}, "unexpected keyword argument 'rows'"),
        ({"layer": Kernel, "guard": {"min_rows": 3, "max_rows": 2}}, "min_rows 3 is above max_rows 2"),
        ({"repo": object()}, r"has no load\(\) method"),
    ],
)
def test_bad_layer_registrations(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        register_layer_kernel("K", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of func_impl, repo, repo_id, repo_path"),
        ({"func_impl": 3}, "is not callable"),
        ({"func_impl": len, "version": 1}, "belong to repo_id"),
        ({"repo_id": "a/b", "revision": "main", "version": "1"}, "revision or version, not both"),
    ],
)
def test_bad_function_registrations(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        register_function_kernel("f", "my_pkg.m", **arguments)


def test_bad_function_names() -> None:
    with pytest.raises(RegistrationError, match="target_module must be a dotted Python name"):
        register_function_kernel("f", "my pkg", len)


def test_a_layer_that_replaces_itself_is_a_cycle() -> None:
    register_layer_kernel("K", Kernel)
    with pytest.raises(RegistrationError, match="cyclic registration: Kernel -> kernel 'K' -> Kernel"):
        register_external_layer(Kernel, "K")


def test_two_layers_that_replace_each_other_are_a_cycle() -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x

    register_layer_kernel("A", Kernel)
    register_layer_kernel("B", Other)
    register_external_layer(Other, "A")
    with pytest.raises(RegistrationError, match="Kernel -> kernel 'B' -> Other -> kernel 'A' -> Kernel"):
        register_external_layer(Kernel, "B")
    # The other order: the classes are bound first, the kernel that closes the circle comes last.
    register_layer_kernel("C", layer=type("Third", (Other,), {"forward": Kernel.forward}))
    register_external_layer(Kernel, "C")
    with pytest.raises(RegistrationError, match="cyclic"):
        register_layer_kernel("C", Other, mode="train")


def test_function_cycles(package: Callable[..., Path]) -> None:
    import importlib

    package("my_cycle", {"m.py": "def a(x):\n    return x\n\ndef b(x):\n    return x\n"})
    module = importlib.import_module("my_cycle.m")
    with pytest.raises(RegistrationError, match=r"cyclic registration: my_cycle\.m\.a -> my_cycle\.m\.a \(itself\)"):
        register_function_kernel("a", "my_cycle.m", module.a)
    register_function_kernel("a", "my_cycle.m", module.b)
    with pytest.raises(RegistrationError, match=r"my_cycle\.m\.b -> my_cycle\.m\.a"):
        register_function_kernel("b", "my_cycle.m", module.a)


def test_the_latest_registration_of_a_condition_wins() -> None:
    class Newer(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x

    register_layer_kernel("K", Kernel, mode="train")
    register_layer_kernel("K", Newer, mode="train")
    assert [k.source.value for k in current_registry().layers["K"]] == [Newer]


def test_batch_is_all_or_nothing() -> None:
    config = {"layers": {"A": {"layer": Kernel}, "B": {"layer": Kernel, "modus": "train"}}}
    with pytest.raises(RegistrationError, match=r"layers\.B: unknown key 'modus' .*did you mean 'mode'"):
        register_kernels(config)
    assert "A" not in current_registry().layers


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "expected a mapping or a file, found list"),
        ({"layer": {}}, "unknown section 'layer' .* did you mean 'layers'"),
        ({"layers": []}, "layers must be a mapping"),
        ({"layers": {"A": 3}}, r"layers\.A must be a mapping, found int"),
        ({"functions": {"f": {"func_impl": len}}}, r"functions\.f: target_module is missing"),
        ({"layers": {"A": {"layer": "no.such.module.K"}}}, "cannot be imported"),
        ({"layers": {"A": {"layer": "torch.nn.Linaer"}}}, "did you mean 'Linear'"),
    ],
)
def test_bad_batches(config: object, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        register_kernels(config)


TOML = """
[layers.Fast]
repo_path = "kernels"
package_name = "my_kernels"
layer_name = "FastLayer"
device = "rocm:gfx942,gfx950"
mode = "train+compile"
guard = {dtypes = ["bfloat16"], max_rows = 128}
external_layer = "my_model.Layer"

[functions.add]
target_module = "my_model"
func_impl = "operator.add"
mode = "inference"
"""
YAML = """
layers:
  Fast:
    repo_path: kernels
    package_name: my_kernels
    layer_name: FastLayer
    device: rocm:gfx942,gfx950
    mode: train+compile
    guard: {dtypes: [bfloat16], max_rows: 128}
    external_layer: my_model.Layer
functions:
  add:
    target_module: my_model
    func_impl: operator.add
    mode: inference
"""


@pytest.mark.parametrize(
    ("name", "text", "needs"), [("k.toml", TOML, "tomllib"), ("k.yaml", YAML, "yaml"), ("k.yml", YAML, "yaml")]
)
def test_files(name: str, text: str, needs: str, tmp_path: Path, package: Callable[..., Path]) -> None:
    pytest.importorskip(needs)
    package(
        "my_model",
        {"__init__.py": "from torch import nn\nclass Layer(nn.Module):\n    def forward(self, x): return x\n"},
    )
    file = tmp_path / name
    file.write_text(text)
    register_kernels(file)
    registry = current_registry()
    (kernel,) = registry.layers["Fast"]
    assert kernel.source.path == tmp_path / "kernels"
    assert str(kernel.device) == "rocm:gfx942,gfx950"
    assert kernel.guard == Guard(dtypes=(torch.bfloat16,), max_rows=128)
    assert [cls.__name__ for cls in registry.classes] == ["Layer"]
    assert registry.functions["my_model.add"][0].source.value is __import__("operator").add


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="there is no file"):
        register_kernels(tmp_path / "none.toml")
    (tmp_path / "k.ini").write_text("")
    with pytest.raises(RegistrationError, match=r"neither \.toml nor \.yaml"):
        register_kernels(tmp_path / "k.ini")
    pytest.importorskip("tomllib")
    (tmp_path / "k.toml").write_text("layers = [")
    with pytest.raises(RegistrationError, match=r"k\.toml"):
        register_kernels(str(tmp_path / "k.toml"))


def test_scopes_nest_and_leave_nothing_behind() -> None:
    register_layer_kernel("Outer", Kernel)
    with use_kernels({"layers": {"Inner": {"layer": Kernel}}}) as inner:
        assert {"Outer", "Inner"} <= set(inner.layers)
        with use_kernels(inherit=False) as alone:
            assert all(name.startswith("amd_ops.") for name in alone.layers)
    assert "Inner" not in current_registry().layers


def test_every_public_name_is_there() -> None:
    import amd_ops.kernelize

    for name in amd_ops.kernelize.__all__:
        assert getattr(amd_ops.kernelize, name) is not None
    assert callable(amd_ops.kernelize.apply_overlay_kernels_to_llama)
    assert callable(amd_ops.kernelize.revert_overlay_kernels_from_llama)


def test_amd_ops_has_the_names_that_users_type() -> None:
    import amd_ops
    import amd_ops.kernelize

    names = ("kernelize_model", "unkernelize_model", "register_layer_kernel", "register_external_layer")
    names += ("register_function_kernel", "register_kernels")
    if not hasattr(amd_ops, names[0]):
        pytest.skip("amd_ops does not hand these names on yet; amd_ops.kernelize has them")
    for name in names:
        assert getattr(amd_ops, name) is getattr(amd_ops.kernelize, name)
