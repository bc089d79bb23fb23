"""Layer kernels in models: which module gets which kernel when, what a fallback does, and that everything can be
undone.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops
from amd_ops import DeclinedError, DeclinedWarning
from amd_ops.kernelize import (
    Guard,
    KernelizeError,
    KernelUnavailable,
    RegistrationError,
    SignatureError,
    kernelize_model,
    kernelize_report,
    kernelized,
    layers,
    register_external_layer,
    register_kernels,
    register_layer_kernel,
    unkernelize_model,
    use_kernels,
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * self.weight * scale


class KeepsForward(Layer):
    pass


class OwnForward(Layer):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x - 1


class PlusTen(nn.Module):
    def forward(self, y: torch.Tensor, scale: float = 7.0) -> torch.Tensor:
        return y * self.weight * scale + 10


class PlusHundred(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * self.weight * scale + 100


class NoBackward(nn.Module):
    has_backward = False

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return (x * self.weight * scale + 1000).detach()


class NotCompilable(nn.Module):
    can_torch_compile = False

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x + 5


X = torch.zeros(2, 4)


def model() -> nn.Sequential:
    return nn.Sequential(Layer(), nn.Sequential(Layer(), nn.ReLU()))


def offset(module: nn.Module, x: torch.Tensor = X) -> float:
    return module(x).flatten()[0].item()


def test_train_and_inference_kernels_switch_at_call_time() -> None:
    register_layer_kernel("K", PlusTen, mode="train")
    register_layer_kernel("K", PlusHundred, mode="inference")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    assert offset(layer.train()) == 10
    assert offset(layer.eval()) == 100
    assert offset(layer.train()) == 10


def test_an_inference_kernel_never_serves_training() -> None:
    register_layer_kernel("K", PlusHundred, mode="inference")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer(), mode="inference")
    assert offset(layer.eval()) == 100
    assert offset(layer.train()) == 0
    with pytest.raises(KernelUnavailable, match="kernel is for mode inference, needed for training"):
        kernelize_model(Layer(), mode="train", use_fallback=False)


def test_a_request_for_both_counts_the_state_without_a_kernel() -> None:
    register_layer_kernel("K", PlusHundred, mode="inference")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer().train())
    with pytest.warns(DeclinedWarning, match="Layer: kernel 'K' declined a call: kernel is for mode inference"):
        layer(X)
    (row,) = kernelize_report(layer).layers
    assert row.applied
    assert sum(row.fallbacks.values()) == 1


def test_a_training_kernel_serves_inference_too() -> None:
    register_layer_kernel("K", PlusTen, mode="train")
    register_external_layer(Layer, "K")
    assert offset(kernelize_model(Layer().eval(), mode="inference")) == 10
    assert offset(kernelize_model(Layer(), mode="train").eval()) == 10


def test_compile_needs_a_kernel_for_it() -> None:
    register_layer_kernel("K", PlusTen, mode="train")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer(), mode="train+compile")
    assert offset(layer) == 0
    assert "needed for training under torch.compile" in str(kernelize_report(layer))
    register_layer_kernel("K", PlusHundred, mode="train|compile")
    assert offset(kernelize_model(layer, mode="train+compile")) == 100
    register_layer_kernel("K", NotCompilable, mode="train|compile")
    assert offset(kernelize_model(layer, mode="train+compile")) == 0
    assert "cannot be compiled" in str(kernelize_report(layer))


def test_a_kernelized_model_compiles_without_a_graph_break() -> None:
    register_layer_kernel("K", PlusTen, mode="train+compile")
    register_layer_kernel("K", PlusHundred, mode="inference+compile")
    register_external_layer(Layer, "K")
    layer = kernelize_model(model(), mode="train+inference+compile")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled.train()(X), layer(X))
        assert torch.equal(compiled.eval()(X), layer(X))
        assert offset(layer) == 200


def test_the_original_keeps_its_argument_names_and_defaults() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    assert layer(x=X + 1, scale=2.0)[0, 0].item() == 12
    assert layer(X + 1)[0, 0].item() == 11, "the original's default for scale, not the kernel's"


def test_subclasses() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    both = kernelize_model(nn.Sequential(KeepsForward(), OwnForward()))
    assert isinstance(both[0], KeepsForward)
    assert offset(both[0]) == 10
    assert offset(both[1]) == -1
    row = {row.module: row for row in kernelize_report(both).layers}["1"]
    assert row.reasons == ("OwnForward has a forward of its own, kernel 'K' is bound to Layer",)
    with pytest.raises(KernelUnavailable, match="OwnForward has a forward of its own"):
        kernelize_model(nn.Sequential(OwnForward()), use_fallback=False)
    register_external_layer(OwnForward, "K")
    assert offset(kernelize_model(OwnForward())) == 10


def test_an_instance_with_its_own_forward_is_left_alone() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    pair = nn.Sequential(Layer(), Layer())
    hooked = pair[0].forward = lambda x, scale=1.0: x - 3
    kernelize_model(pair)
    assert pair[0].forward is hooked
    assert offset(pair[0]) == -3
    assert offset(pair[1]) == 10
    assert "a forward of its own (a hook of accelerate" in str(kernelize_report(pair))


def test_forward_hooks_still_run() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    layer = Layer()
    layer.register_forward_hook(lambda module, args, out: out + 0.5)
    assert offset(kernelize_model(layer)) == 10.5


def test_two_models_with_different_kernels() -> None:
    with use_kernels({"layers": {"K": {"layer": PlusTen, "external_layer": Layer}}}):
        first = kernelize_model(model())
    with use_kernels({"layers": {"K": {"layer": PlusHundred, "external_layer": Layer}}}):
        second = kernelize_model(model())
    third = kernelize_model(model())
    assert [offset(m[0]) for m in (first, second, third)] == [10, 100, 0]
    unkernelize_model(first)
    assert [offset(m[0]) for m in (first, second, third)] == [0, 100, 0]


def snapshot(root: nn.Module) -> dict[str, Any]:
    """Every attribute of every module by identity, and every class."""
    found: dict[str, Any] = {}
    for name, module in root.named_modules():
        found[f"{name} class"] = type(module)
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = id(value)
            if isinstance(value, dict):
                found.update({f"{name}.{key}[{k}]": id(v) for k, v in value.items()})
    return found


def test_unkernelize_restores_the_identity_of_every_attribute() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = model()
    tree.register_forward_hook(lambda *a: None)
    before, class_before = snapshot(tree), dict(vars(Layer))
    kernelize_model(tree)
    assert offset(tree[0]) == 10
    kernelized_state = {k: v for k, v in snapshot(tree).items() if not k.endswith("class")}
    assert kernelized_state == {k: v for k, v in before.items() if not k.endswith("class")}, (
        "nothing is added to a module"
    )
    unkernelize_model(tree)
    assert snapshot(tree) == before
    assert dict(vars(Layer)) == class_before
    assert kernelize_report(tree).layers == ()
    unkernelize_model(tree)
    assert snapshot(tree) == before


def test_double_kernelize_changes_nothing() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = kernelize_model(model())
    before = snapshot(tree)
    kernelize_model(tree)
    assert snapshot(tree) == before
    unkernelize_model(tree)
    assert type(tree[0]) is Layer


def test_kernelize_with_other_kernels_exchanges_them() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    register_layer_kernel("K", PlusHundred)
    assert offset(kernelize_model(layer)) == 100
    with use_kernels(inherit=False):
        assert offset(kernelize_model(layer)) == 0, "a registry without the kernel takes it away"
    assert type(layer) is Layer


def test_ctrl_c_in_the_middle_puts_back_what_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree, bind, bound = nn.Sequential(Layer(), Layer()), layers.bind, []

    def stopped(module: nn.Module, cls: type[nn.Module]) -> None:
        bound.append(module)
        if len(bound) == 2:
            raise KeyboardInterrupt
        bind(module, cls)

    monkeypatch.setattr(layers, "bind", stopped)
    with pytest.raises(KeyboardInterrupt):
        kernelize_model(tree)
    assert [type(one) for one in tree] == [Layer, Layer]


def test_state_dict_is_unchanged_and_loads() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = model()
    before = tree.state_dict()
    kernelize_model(tree)
    after = tree.state_dict()
    assert list(after) == list(before)
    assert all(after[k].data_ptr() == before[k].data_ptr() for k in before)
    tree.load_state_dict({k: v + 1 for k, v in before.items()})
    assert model().load_state_dict(tree.state_dict()).missing_keys == []
    assert repr(tree) == repr(model())


def test_deepcopy_and_copy_keep_the_kernel() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = kernelize_model(model())
    for twin in (copy.deepcopy(tree), nn.Sequential(copy.copy(tree[0]))):
        assert type(twin[0]) is type(tree[0])
        assert offset(twin[0]) == 10
    twin = copy.deepcopy(tree)
    twin[0].weight.data.zero_()
    assert tree[0].weight.sum().item() == 4
    unkernelize_model(twin)
    assert type(twin[0]) is Layer
    assert offset(tree[0]) == 10


def test_pickle_keeps_the_kernel_where_it_is_registered() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = kernelize_model(model(), mode="train")
    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(tree)), torch.load(file, weights_only=False)):
        assert offset(twin[0]) == 10
        assert kernelize_report(twin).applied
        assert torch.equal(twin[0].weight, tree[0].weight)
        unkernelize_model(twin)
        assert type(twin[0]) is Layer
    data = pickle.dumps(tree)
    assert b"PlusTen" not in data, "a pickle names the kernel, it holds no code"
    with use_kernels(inherit=False), pytest.warns(DeclinedWarning, match="asks for kernel 'K': it is not registered"):
        plain = pickle.loads(data)
    assert type(plain[0]) is Layer
    assert offset(plain[0]) == 0


def test_context_manager_restores_what_was_before() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = model()
    with kernelized(tree) as inside:
        assert offset(inside[0]) == 10
    assert type(tree[0]) is Layer
    kernelize_model(tree)
    register_layer_kernel("K", PlusHundred)
    with kernelized(tree):
        assert offset(tree[0]) == 100
    assert offset(tree[0]) == 10


@pytest.mark.parametrize(
    ("guard", "good", "bad", "reason"),
    [
        (Guard(dtypes=(torch.float32,)), X, X.double(), "dtype torch.float64 not in torch.float32"),
        (Guard(max_rows=2), X, torch.zeros(3, 4), r"3 rows outside 0\.\.2"),
        (Guard(min_rows=2), X, torch.zeros(1, 4), r"1 rows outside 2\.\."),
        (Guard(last_dim_multiple=4), X, torch.zeros(2, 1), "last dimension 1 is no multiple of 4"),
        (Guard(check=lambda t: "is negative" if (t < 0).any() else None), X, X - 1, "is negative"),
        ({"dtypes": ["float32"], "max_rows": 2}, X, torch.zeros(9, 4), r"9 rows outside 0\.\.2"),
    ],
)
def test_guards(guard: Any, good: torch.Tensor, bad: torch.Tensor, reason: str) -> None:
    register_layer_kernel("K", PlusTen, guard=guard)
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    assert offset(layer, good) == 10
    with pytest.warns(DeclinedWarning, match=reason):
        assert offset(layer, bad) == bad[0, 0].item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(bad)
    (row,) = kernelize_report(layer).layers
    assert list(row.fallbacks.values()) == [2]
    strict = kernelize_model(Layer(), use_fallback=False)
    with pytest.raises(DeclinedError, match=reason):
        strict(bad)


def test_grad_guards() -> None:
    register_layer_kernel("K", NoBackward, mode="inference")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer().eval(), mode="inference")
    with torch.no_grad():
        assert offset(layer) == 1000
    with pytest.warns(DeclinedWarning, match="gradients are on and the kernel has no backward"):
        layer(X).sum().backward()
    assert layer.weight.grad is not None
    register_layer_kernel("K", NoBackward, mode="train")
    kernelize_model(layer, mode="train")
    assert "kernel K has no backward" in str(kernelize_report(layer))


def test_guard_on_a_named_argument() -> None:
    register_layer_kernel("K", PlusTen, guard=Guard(argument="scale", dtypes=(torch.float32,)))
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    assert layer(X, torch.ones(()))[0, 0].item() == 10
    with pytest.warns(DeclinedWarning, match="guarded argument is float, not a tensor"):
        assert layer(X, 1.0)[0, 0].item() == 0
    register_layer_kernel("K", PlusTen, guard=Guard(argument="nobody", dtypes=(torch.float32,)))
    with pytest.raises(SignatureError, match="guard looks at argument 'nobody', forward has x, scale"):
        kernelize_model(Layer())


def test_strict_mode_makes_a_missed_kernel_an_error() -> None:
    register_layer_kernel("K", PlusTen, device="cuda")
    register_external_layer(Layer, "K")
    tree = model()
    kernelize_model(tree, device="cpu")
    assert "kernel is for cuda, the model runs on cpu" in str(kernelize_report(tree))
    with amd_ops.override(strict=1), pytest.raises(KernelUnavailable, match="kernel is for cuda"):
        kernelize_model(tree, device="cpu")


def test_an_error_lists_everything_and_changes_nothing() -> None:
    register_layer_kernel("K", PlusTen, device="cuda")
    register_layer_kernel("M", PlusTen)
    register_external_layer(Layer, "K")
    register_external_layer(OwnForward, "M")
    tree = nn.Sequential(OwnForward(), Layer(), Layer())
    before = snapshot(tree)
    with pytest.raises(KernelUnavailable) as caught:
        kernelize_model(tree, device="cpu", use_fallback=False)
    assert len(caught.value.issues) == 2
    assert snapshot(tree) == before


class Table:
    """Kernels by device and arch, each adding its number."""

    @staticmethod
    def register(conditions: dict[str | None, int]) -> None:
        for device, number in conditions.items():

            def forward(self: Any, x: torch.Tensor, scale: float = 1.0, number: int = number) -> torch.Tensor:
                return x + number

            forward.__signature__ = __import__("inspect").signature(Layer.forward)
            register_layer_kernel("K", type(f"K{number}", (nn.Module,), {"forward": forward}), device=device)
        register_external_layer(Layer, "K")


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("gfx942", 1), ("gfx941", 2), ("gfx950", 3), (None, 5)],
    ids=["exact", "pattern", "type", "cpu"],
)
def test_devices_and_archs(arch: str | None, expected: int, gpu: Callable[[str], None]) -> None:
    Table.register({None: 5, "cuda": 4, "rocm": 3, "rocm:gfx94*": 2, "rocm:gfx942": 1})
    if arch is not None:
        gpu(arch)
    assert offset(kernelize_model(Layer())) == expected


def test_torchs_name_for_an_amd_gpu_is_cuda(gpu: Callable[[str], None]) -> None:
    Table.register({"cuda": 4})
    gpu("gfx942")
    assert offset(kernelize_model(Layer(), device="cuda")) == 4
    with use_kernels(inherit=False):
        Table.register({"cuda": 4, "rocm": 3})
        assert offset(kernelize_model(Layer(), device="cuda")) == 3
    with use_kernels(inherit=False):
        Table.register({"rocm:gfx950": 6})
        layer = kernelize_model(Layer())
        assert "kernel is for rocm:gfx950, this GPU is gfx942" in str(kernelize_report(layer))


def test_a_module_that_moves_goes_back_to_its_original_forward() -> None:
    register_layer_kernel("K", PlusTen, device="cpu")
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer())
    layer.to(torch.bfloat16).to(torch.float32)
    assert offset(layer) == 10
    binding = type(layer).__amd_kernel__
    binding.tensors = "cuda"  # As if it had been bound for a GPU and is moved to the CPU now.
    layer.to("cpu")
    with pytest.warns(DeclinedWarning, match="moved off cuda"):
        assert offset(layer) == 0
    assert "the module was moved off cuda" in str(kernelize_report(layer))
    binding.tensors = "cpu"
    layer.to("cpu")
    assert offset(layer) == 10
    unkernelize_model(layer)
    assert type(layer) is Layer


def test_a_class_that_was_replaced_again_is_reported() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    tree = kernelize_model(model())
    tree[0].__class__ = type("Sharded", (type(tree[0]),), {})
    with pytest.raises(KernelizeError, match="0: Sharded: its class was replaced again after kernelize"):
        unkernelize_model(tree)
    assert type(tree[1][0]) is Layer, "what can be restored is restored"


def test_ready_kernels_can_be_bound_by_name() -> None:
    class TheirNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("replaced")

    register_kernels({"layers": {}})
    register_external_layer(TheirNorm, "amd_ops.RMSNorm")
    layer = kernelize_model(TheirNorm(), computes=False)
    x = torch.randn(3, 8)
    expected = torch.nn.functional.rms_norm(x, (8,), layer.weight, layer.eps)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_bad_arguments_of_kernelize_model() -> None:
    with pytest.raises(RegistrationError, match="unknown mode"):
        kernelize_model(Layer(), mode="fast")
    with pytest.raises(RegistrationError, match="unknown device"):
        kernelize_model(Layer(), device="gpu")
    with pytest.raises(RegistrationError, match=r"unknown compute 'rmsnorm' .* did you mean 'rms_norm'"):
        kernelize_model(Layer(), computes=("rmsnorm",))


def test_report_as_json() -> None:
    register_layer_kernel("K", PlusTen)
    register_external_layer(Layer, "K")
    content = kernelize_report(kernelize_model(model())).as_dict()
    assert content["schema"] == "amd-ops.kernelize/1"
    assert [row["module"] for row in content["layers"]] == ["0", "1.0"]
