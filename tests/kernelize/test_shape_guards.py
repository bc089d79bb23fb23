"""Guards on shapes: what was right is remembered, up to a limit and outside of traces only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from amd_ops.kernelize import (
    Guard,
    forwards,
    kernelize_model,
    register_external_layer,
    register_layer_kernel,
    use_kernels,
)

X = torch.zeros(2, 4)


class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


class PlusTen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 10


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with use_kernels(inherit=False):
        yield


def offset(module: nn.Module, x: torch.Tensor = X) -> float:
    return module(x).flatten()[0].item()


def test_shapes_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "_REMEMBERED", 4)
    shapes, fits = forwards._remembering(Guard(min_rows=1, max_rows=10))
    for rows in range(12):
        value = torch.zeros(rows, 2)
        assert fits(value) == (1 <= rows <= 10)
        assert (value.shape in shapes) == (1 <= rows <= 10)
        assert len(shapes) <= 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_guard_on_shapes_compiles_and_is_compiled_once_per_shape(dynamic: bool) -> None:
    register_layer_kernel("K", PlusTen, mode="inference+compile", guard=Guard(max_rows=8, dtypes=(torch.float32,)))
    register_external_layer(Layer, "K")
    layer = kernelize_model(Layer().eval(), mode="inference+compile")
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=dynamic)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        assert offset(compiled, X) == 10
        assert offset(layer, X) == 10, "remembers the shape outside the trace"
        frames = torch._dynamo.utils.counters["frames"]["total"]
        assert offset(compiled, X) == 10
        assert torch._dynamo.utils.counters["frames"]["total"] == frames
        assert offset(compiled, torch.zeros(7, 4)) == 10
