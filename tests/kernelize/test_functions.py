"""Function kernels: replaced under every name, reported where there is no name, and put back exactly."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from amd_ops.kernelize import (
    KernelizeError,
    KernelUnavailable,
    SignatureError,
    apply_function_kernel,
    kernelize_model,
    kernelize_report,
    register_function_kernel,
    restore_function_kernels,
    unkernelize_model,
    use_kernels,
)

MATH = """
def add(x, y=1):
    return x + y

def mul(x, y):
    return x * y

VALUE = 3

class Ops:
    @staticmethod
    def sub(x, y):
        return x - y
"""
USERS = "from my_math import add\nfrom my_math import add as plus\n\ndef use(x):\n    return add(x, 1) + plus(x, 1)\n"


@pytest.fixture
def my_math(package: Callable[..., Path]) -> ModuleType:
    package("my_math", {"__init__.py": MATH})
    package("my_users", {"__init__.py": USERS})
    return importlib.import_module("my_math")


def fast_add(x: Any, y: Any = 1) -> Any:
    return x + y + 100


def test_names_imported_before_are_replaced_and_restored(my_math: ModuleType) -> None:
    users = importlib.import_module("my_users")
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    assert apply_function_kernel("my_math") == ["my_math.add"]
    assert my_math.add is users.add is users.plus is fast_add
    assert users.use(1) == 204
    (row,) = kernelize_report(None).functions
    assert row.applied
    assert row.names == 3
    assert restore_function_kernels() == ["my_math.add"]
    assert my_math.add is users.add is users.plus is original


def test_names_imported_after_are_restored_too(my_math: ModuleType) -> None:
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    apply_function_kernel("my_math")
    users = importlib.import_module("my_users")
    assert users.add is fast_add
    restore_function_kernels("my_math")
    assert users.add is original
    assert fast_add(1) == 102


def test_references_without_a_name_are_reported(my_math: ModuleType) -> None:
    def closure() -> Callable[[], Any]:
        held = my_math.add
        return lambda: held(1)

    keep = [closure(), functools.partial(my_math.add, 2), {"add": my_math.add}, nn.Identity()]
    keep[3].activation = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    apply_function_kernel("my_math")
    (row,) = kernelize_report(None).functions
    text = " | ".join(row.unreached)
    assert "a closure" in text
    assert "a functools.partial" in text
    assert "Identity" in text
    assert keep[0]() == 2, "what has no name still holds the original"
    assert "still held by a closure" in str(kernelize_report(None))


def test_applying_twice_changes_nothing(my_math: ModuleType) -> None:
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    assert apply_function_kernel("my_math") == apply_function_kernel("my_math") == ["my_math.add"]
    restore_function_kernels()
    assert my_math.add is original


def test_another_mode_exchanges_the_kernel(my_math: ModuleType) -> None:
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add, mode="inference")
    register_function_kernel("add", "my_math", lambda x, y=1: -1, mode="train")
    apply_function_kernel("my_math", mode="inference")
    assert my_math.add(1) == 102
    apply_function_kernel("my_math", mode="train")
    assert my_math.add(1) == -1
    restore_function_kernels()
    assert my_math.add is original


def test_a_static_method_of_a_class(my_math: ModuleType) -> None:
    before = vars(my_math.Ops)["sub"]
    register_function_kernel("Ops.sub", "my_math", staticmethod(lambda x, y: 77))
    apply_function_kernel("my_math", strict=True)
    assert my_math.Ops.sub(1, 2) == my_math.Ops().sub(1, 2) == 77
    restore_function_kernels()
    assert vars(my_math.Ops)["sub"] is before


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("ad", "my_math", "unknown function 'ad' .* did you mean 'add'"),
        ("VALUE", "my_math", "is int, not a function"),
        ("Opz.sub", "my_math", "unknown name 'Opz' .* did you mean 'Ops'"),
        ("add", "my_moth", "target module cannot be imported: No module named 'my_moth'"),
    ],
)
def test_targets_that_do_not_exist(name: str, module: str, reason: str, my_math: ModuleType) -> None:
    register_function_kernel(name, module, fast_add)
    assert apply_function_kernel(module) == []
    (row,) = kernelize_report(None).functions
    assert not row.applied
    with pytest.raises(KernelUnavailable, match=reason):
        apply_function_kernel(module, strict=True)
    with pytest.raises(KernelUnavailable, match=reason):
        kernelize_model(None, use_fallback=False)


def test_a_module_without_registered_kernels(my_math: ModuleType) -> None:
    register_function_kernel("add", "my_math", fast_add)
    assert apply_function_kernel("my_maths") == []
    assert "unknown target module 'my_maths'" in str(kernelize_report(None))
    with pytest.raises(KernelUnavailable, match="did you mean 'my_math'"):
        apply_function_kernel("my_maths", strict=True)


def test_a_wrong_signature_names_both(my_math: ModuleType) -> None:
    register_function_kernel("mul", "my_math", lambda x: x)
    with pytest.raises(
        SignatureError, match=r"lambda.* cannot replace my_math\.mul: \(x\) has 1 parameters, \(x, y\) has 2"
    ):
        apply_function_kernel("my_math")


def test_strict_changes_nothing_when_one_of_two_fails(my_math: ModuleType) -> None:
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    register_function_kernel("nope", "my_math", fast_add)
    with pytest.raises(KernelUnavailable):
        apply_function_kernel("my_math", strict=True)
    assert my_math.add is original


def test_a_kernel_without_backward_does_not_serve_training(my_math: ModuleType) -> None:
    class Forward(nn.Module):
        has_backward = False

        def forward(self, x: Any, y: Any) -> Any:
            return 5

    register_function_kernel("mul", "my_math", Forward)
    assert apply_function_kernel("my_math", mode="train") == []
    assert "has no backward" in str(kernelize_report(None))
    assert apply_function_kernel("my_math", mode="inference") == ["my_math.mul"]
    assert my_math.mul(2, 3) == 5


def test_functions_live_as_long_as_one_model_wants_them(my_math: ModuleType) -> None:
    original = my_math.add
    register_function_kernel("add", "my_math", fast_add)
    first, second = (kernelize_model(nn.Linear(2, 2)) for _ in range(2))
    assert [row.target for row in kernelize_report(first).functions] == ["my_math.add"]
    unkernelize_model(first)
    assert my_math.add is fast_add
    unkernelize_model(second)
    assert my_math.add is original


def test_a_function_replaced_again_by_someone_else_is_reported(my_math: ModuleType) -> None:
    register_function_kernel("add", "my_math", fast_add)
    apply_function_kernel("my_math")
    theirs = my_math.add = lambda x, y: 0
    with pytest.raises(KernelizeError, match=r"my_math\.add: replaced again since by someone else"):
        restore_function_kernels()
    assert my_math.add is theirs


def test_local_repository_functions(my_math: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("def quick(x, y=1):\n    return 11\n")
    register_function_kernel("add", "my_math", repo_path=tmp_path, impl_name="quick")
    apply_function_kernel("my_math", strict=True)
    assert my_math.add(0) == 11
    with use_kernels(inherit=False):
        register_function_kernel("mul", "my_math", repo_path=tmp_path, impl_name="quik")
        with pytest.raises(KernelUnavailable, match="did you mean 'quick'"):
            apply_function_kernel("my_math", strict=True)


def test_tensors_flow_through(my_math: ModuleType) -> None:
    register_function_kernel("mul", "my_math", torch.mul)
    apply_function_kernel("my_math", strict=True)
    assert torch.equal(my_math.mul(torch.ones(2), 3), torch.full((2,), 3.0))
