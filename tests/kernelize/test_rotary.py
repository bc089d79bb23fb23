"""Which functions are known as the rotary embedding: by what they compute, whatever stands above them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amd_ops.kernelize import rotary

Pair = tuple[Tensor, Tensor]


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


def marked(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What transformers 5 writes above its function; without the kernels library it hands the function back."""
    return lambda function: function


@marked("rotary_pos_emb")
def decorated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


@functools.wraps(plain)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    q, k = plain(*args, **kwargs)
    return q * 2, k


def as_module(func: Callable[..., Any]) -> nn.Module:
    """What the kernels library makes of a function under its decorator."""

    class Func(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

    return Func()


def doubled(func: Callable[..., Any]) -> nn.Module:
    class Func(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs), 2

    return Func()


@pytest.mark.parametrize("function", [plain, decorated, as_module(plain), as_module(decorated)])
def test_it_is_the_rotation(function: Any) -> None:
    assert rotary.match(function) == rotary.Rotary(1, False)


@pytest.mark.parametrize("function", [wrapped, as_module(wrapped), doubled(plain), turned, nn.Identity(), 3])
def test_it_is_not_surely_the_rotation(function: Any) -> None:
    assert rotary.match(function) is None


def test_a_module_that_was_given_a_kernel_is_the_function_no_more() -> None:
    module = as_module(plain)
    assert rotary.match(module) is not None
    module.forward = types.MethodType(lambda self, q, k, cos, sin: (q, k), module)
    assert rotary.match(module) is None


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gemma2", "olmo2"])
def test_the_installed_release(name: str) -> None:
    home = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    assert rotary.match(home.apply_rotary_pos_emb) == rotary.Rotary(1, False)
