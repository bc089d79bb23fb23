"""q/k/v and gate/up in a compiled decode: one GEMM each, and stock's numbers whatever happens to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amd_ops
from amd_ops import dispatch
from amd_ops.ops import packed_linear
from amd_ops.weights import packing
from tests.compile.test_models import ALL, decode
from tests.parity import twins

LAYERS = 2


@pytest.fixture
def model() -> Iterator[Any]:
    """An overlaid llama of its own under the torch tier, compiled by ``step``."""
    with amd_ops.override(**ALL, tiers="torch,eager"), torch.no_grad():
        yield twins.new_pair("llama", "float32", num_hidden_layers=LAYERS).overlay


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def ran() -> tuple[int, int]:
    """Products in one GEMM, and in one for each weight, since the counters were reset."""
    site = dispatch.ops["packed_linear"]
    assert isinstance(site, dispatch.Site)
    return site.fast.calls, site.slow.calls


def checked(model: nn.Module, step: Any) -> tuple[int, int]:
    """Compare three compiled steps with stock's statements on the same weights."""
    amd_ops.reset_counters()
    got = decode(model, step, 3)
    counts = ran()
    with amd_ops.override(**dict.fromkeys(ALL, 0)):
        want = decode(model, model, 3)
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    return counts


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "an update in place": lambda model: model.model.layers[0].self_attn.k_proj.weight.mul_(1.5),
    "a write through data": lambda model: model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5),
    "load_state_dict": lambda model: model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()}),
    "load_state_dict that assigns": lambda model: model.load_state_dict(
        {k: v * 1.1 for k, v in model.state_dict().items()}, assign=True
    ),
    "data replaced": lambda model: setattr(model.model.layers[1].mlp.up_proj.weight, "data", torch.randn(96, 64) / 8),
    "to another dtype and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "a new parameter": lambda model: setattr(
        model.model.layers[1].mlp.up_proj, "weight", nn.Parameter(torch.randn(96, 64) / 8)
    ),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_compiled_decode_follows_its_weights(model: Any, change: str) -> None:
    step = compiled(model)
    assert checked(model, step) == (3 * 2 * LAYERS, 0)
    CHANGES[change](model)
    one, each = checked(model, step)
    assert one + each == 3 * 2 * LAYERS
    assert checked(model, step)[0] == 3 * 2 * LAYERS  # the prefill, in eager mode, has packed what it could


def test_sixty_four_steps_are_one_graph(model: Any) -> None:
    from transformers import StaticCache

    step = compiled(model)
    cache = StaticCache(config=model.config, max_cache_len=96)
    model(torch.arange(3, 8)[None], past_key_values=cache, cache_position=torch.arange(5))

    def at(index: int) -> object:
        position = torch.tensor([index])
        given = {"past_key_values": cache, "cache_position": position, "position_ids": position[None]}
        return step(torch.tensor([[index]]), **given)

    at(5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index in range(6, 70):
            at(index)


def test_merged_adapters_are_seen(model: Any) -> None:
    peft = pytest.importorskip("peft")
    step = compiled(model)
    checked(model, step)
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, adapter).eval()
    torch._dynamo.reset()  # torch itself does not look for exchanged modules after the first trace
    checked(model, step)
    wrapped.merge_and_unload()
    torch._dynamo.reset()
    assert checked(model, step) == (3 * 2 * LAYERS, 0)


def test_a_watched_linear_is_called(model: Any) -> None:
    step = compiled(model)
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, out: out * 2)
    assert checked(model, step) == (3 * (2 * LAYERS - 1), 0)


def trained(model: Any, step: Any) -> dict[str, Tensor]:
    """The gradients of one step."""
    model.zero_grad(set_to_none=True)
    ids = torch.arange(3, 12)[None]
    with torch.enable_grad():
        step(ids, labels=ids, use_cache=False).loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize("packed", [True, False])
def test_a_training_graph_holds_one_gemm_for_them(model: Any, packed: bool) -> None:
    """Forward and backward, whether or not the weights are rows of one matrix when the graph runs."""
    model.train()
    with amd_ops.override(**dict.fromkeys(ALL, 0)):
        want = trained(model, model)
    if packed:
        amd_ops.prepare(model)
    amd_ops.reset_counters()
    got = trained(model, compiled(model))
    assert ran() == ((2 * LAYERS, 0) if packed else (0, 2 * LAYERS))
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_checkpoints_in_a_training_graph(model: Any) -> None:
    """Activation checkpointing computes the op twice: the same gradients."""
    amd_ops.prepare(model.train())
    with amd_ops.override(**dict.fromkeys(ALL, 0)):
        want = trained(model, model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    amd_ops.reset_counters()
    got = trained(model, compiled(model))
    assert ran() == (2 * 2 * LAYERS, 0)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_op_is_sound() -> None:
    """torch's own checks of a custom op: its schema, its fake, its backward, and both inside aot_autograd."""
    linears, weights, biases = rows(8, 4, 4)
    packed_linear._define()
    x = torch.randn(2, 3, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.amd_ops.packed_linear, (x, weights, biases))
    packing.pack_linears(nn.ModuleList(linears), ("0", "1", "2"), tuple(linears))
    weights[1].requires_grad_(False)
    torch.library.opcheck(torch.ops.amd_ops.packed_linear, (x, weights, []))
    plain = [weight.detach() for weight in weights]  # it is the backward: there is none of its own
    torch.library.opcheck(torch.ops.amd_ops.packed_linear_input_gradient, (torch.randn(2, 3, 16), plain))


def rows(*sizes: int) -> tuple[list[nn.Linear], list[Tensor], list[Tensor]]:
    linears = [nn.Linear(16, size) for size in sizes]
    return linears, [linear.weight for linear in linears], [linear.bias for linear in linears]


@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_the_op_computes_what_the_linears_do(biased: bool) -> None:
    linears, weights, biases = rows(8, 4, 4)
    x, biases = torch.randn(2, 3, 16), biases if biased else []
    want = torch.cat([nn.functional.linear(x, w, biases[i] if biased else None) for i, w in enumerate(weights)], -1)
    torch.testing.assert_close(packed_linear.run(x, weights, biases), want)
    owner = nn.ModuleList(linears)
    if not biased:
        for linear in linears:
            linear.bias = None
    packed = packing.pack_linears(owner, ("0", "1", "2"), tuple(linears))
    assert isinstance(packed, packing.Packed)
    assert packing.matrix_of([linear.weight for linear in linears]) is packed.weight
    biases = [linear.bias for linear in linears] if biased else []
    torch.testing.assert_close(packed_linear.run(x, [linear.weight for linear in linears], biases), want)


@torch.no_grad()
def test_rows_in_another_order_or_part_of_them_are_no_matrix() -> None:
    linears, _, _ = rows(8, 4, 4)
    owner = nn.ModuleList(linears)
    assert isinstance(packing.pack_linears(owner, ("0", "1", "2"), tuple(linears)), packing.Packed)
    a, b, c = (linear.weight for linear in linears)
    assert packing.matrix_of([a, b]) is None
    assert packing.matrix_of([a, c, b]) is None
    assert packing.matrix_of([b, c]) is None
    b.data = b.clone()
    assert packing.matrix_of([a, b, c]) is None
