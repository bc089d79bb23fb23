"""The kernels of experts, executed as the compiled instructions of two chips: the choice, and both products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed: the extra `interpret` brings it")
if "amd" not in pytest.importorskip("triton.backends").backends or triton.knobs.runtime.interpret:
    pytest.skip("this triton has no AMD backend, or interprets kernels", allow_module_level=True)

from amd_ops.backends.triton import experts  # noqa: E402
from amd_ops.backends.triton.target import Target, wave_of  # noqa: E402

from .triton_launch import on  # noqa: E402

CHIPS = ("gfx942", "gfx1100")


@pytest.mark.parametrize("arch", CHIPS)
def test_the_choice_of_experts(arch: str) -> None:
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(3)).bfloat16()
    weights, ids = experts.launch_top_k(logits, 3, True, torch.float32, wave_of(arch), via=on(arch))
    want, chosen = torch.topk(torch.softmax(logits.double(), -1), 3, dim=-1)
    assert torch.equal(ids.long(), chosen)
    torch.testing.assert_close(weights.double(), want / want.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["moe", "clamped_moe"])
@pytest.mark.parametrize("arch", CHIPS)
def test_both_products(arch: str, op: str) -> None:
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    size, middle, ids = 40, 24, torch.tensor([[2, 0]], dtype=torch.int32)
    hidden, weights = rand(1, size), torch.tensor([[0.7, 0.3]])
    if op == "moe":
        made = (rand(3, 2 * middle, size) / 6, rand(3, size, middle) / 5)
        args: tuple[Any, ...] = (hidden, *made, weights, ids, "silu")
    else:
        made = (rand(3, size, 2 * middle) / 6, rand(3, 2 * middle), rand(3, middle, size) / 5, rand(3, size))
        args = (hidden, *made, weights, ids, 1.702, 7.0)
    target = Target("cuda", arch, wave_of(arch), 4)
    kernels = experts.Experts(op, lambda *rest: None, target)

    def launch(kernel: Any, grid: Any, numbers: Any, constants: Any, warps: int) -> Any:
        return lambda *tensors: on(arch)(kernel)[grid](*tensors, *numbers, **constants, num_warps=warps)

    first, second = kernels.settings(args)
    got = kernels.started(args, launch(experts.kernels.gate_up, *first), launch(experts.kernels.down, *second))
    want = experts_of(op, args)
    assert (got.double() - want).abs().max() <= 1.6e-2 * want.abs().max()


def experts_of(op: str, args: tuple[Any, ...]) -> torch.Tensor:
    """fp64."""
    hidden, *rest = args
    x = hidden[0].double()
    weights, ids = (rest[2], rest[3]) if op == "moe" else (rest[4], rest[5])
    total = torch.zeros_like(x)
    for weight, expert in zip(weights[0].tolist(), ids[0].tolist(), strict=True):
        if op == "moe":
            gate, up = (rest[0][expert].double() @ x).chunk(2)
            total += weight * (rest[1][expert].double() @ (gate * torch.sigmoid(gate) * up))
            continue
        both = x @ rest[0][expert].double() + rest[1][expert].double()
        gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        middle = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        total += weight * (middle @ rest[2][expert].double() + rest[3][expert].double())
    return total[None]
