"""Law 6 on whole models: fused weights cost no byte, keep stock's keys, and follow what is done to a model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import safetensors.torch
import torch
from rocm_overlay.verify.cases import CASES
from rocm_overlay.verify.compare import judge, same_bits
from torch import nn

import amd_ops
from amd_ops.weights.packing import Packed
from examples.tiny_models import ARCHITECTURES
from tests.parity import twins

# phi3 has packed projections in stock: nothing of it is fused, everything else must hold all the same.
FUSING = tuple(name for name in ARCHITECTURES if name != "phi3")


@pytest.fixture
def fusing() -> Iterator[None]:
    with amd_ops.override(tiers="torch,eager", use_fused_projections=1):
        yield


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(twins.INPUTS.ids, use_cache=False).logits


def close(model: Any, reference: torch.Tensor, *, dtype: str = "float32") -> bool:
    verdict = judge({"logits": reference}, {"logits": logits(model)}, tier="torch", dtype=dtype, bitwise=False)
    return verdict.ok


def storage_bytes(model: nn.Module) -> int:
    """Return the bytes of memory behind all tensors that a model's modules hold, each address counted once."""
    tensors = [tensor for module in model.modules() for tensor in _tensors(module.__dict__)]
    spans = {(storage.data_ptr(), storage.nbytes()) for storage in (tensor.untyped_storage() for tensor in tensors)}
    total = end = 0
    for start, size in sorted(spans):
        total += max(0, start + size - max(start, end))
        end = max(end, start + size)
    return total


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a module's attributes, its parameter and buffer tables and containers of those."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Packed):
        yield from _tensors([value.weight, value.bias])


def together(*linears: nn.Linear) -> bool:
    """Return True when each weight begins where the one before it ends: rows of one matrix."""
    weights = [linear.weight for linear in linears]
    return all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in itertools.pairwise(weights))


@pytest.mark.parametrize("architecture", FUSING)
def test_fusion_happens_and_costs_no_byte(architecture: str, fusing: None) -> None:
    pair = twins.new_pair(architecture, "float32")
    attention = pair.overlay.model.layers[0].self_attn
    before = storage_bytes(pair.overlay)
    reference = logits(pair.stock)
    assert close(pair.overlay, reference)
    assert together(attention.q_proj, attention.k_proj, attention.v_proj), "nothing was fused: the test is empty"
    assert storage_bytes(pair.overlay) == before


@pytest.mark.parametrize("save", ["accelerate", "safetensors", "torch"])
def test_savers_that_know_tied_parameters_by_their_storage(save: str, fusing: None, tmp_path: Path) -> None:
    """They keep the first parameter of a storage and drop the others: packed ones must not look tied."""
    pair = twins.new_pair("llama", "float32")
    logits(pair.overlay)
    attention = pair.overlay.model.layers[0].self_attn
    assert together(attention.q_proj, attention.k_proj, attention.v_proj)
    for name, model in (("stock", pair.stock), ("fused", pair.overlay)):
        if save == "accelerate":
            accelerate.Accelerator(cpu=True).save_model(model, tmp_path / name)
        elif save == "safetensors":
            (tmp_path / name).mkdir()
            safetensors.torch.save_model(model, str(tmp_path / name / "model.safetensors"))
        else:
            (tmp_path / name).mkdir()
            torch.save(model.model.layers[0].self_attn.q_proj.state_dict(), tmp_path / name / "model.safetensors")
    stock, fused = (tmp_path / name / "model.safetensors" for name in ("stock", "fused"))
    assert fused.stat().st_size == stock.stat().st_size
    if save != "torch":
        a, b = safetensors.torch.load_file(stock), safetensors.torch.load_file(fused)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_save_and_load_with_stock_code(architecture: str, fusing: None, tmp_path: Path) -> None:
    pair = twins.new_pair(architecture, "float32")
    keys = list(pair.stock.state_dict())
    reference = logits(pair.stock)
    logits(pair.overlay)
    assert list(pair.overlay.state_dict()) == keys
    assert all(
        same_bits(a, b)
        for a, b in zip(pair.stock.state_dict().values(), pair.overlay.state_dict().values(), strict=True)
    )
    pair.overlay.save_pretrained(tmp_path / "fused")
    pair.stock.save_pretrained(tmp_path / "stock")
    sizes = {
        name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors")) for name in ("fused", "stock")
    }
    assert sizes["fused"] == sizes["stock"]
    stock_class = type(pair.stock)
    again = stock_class.from_pretrained(tmp_path / "fused").eval()
    assert torch.equal(logits(again), reference)


@pytest.mark.parametrize("architecture", FUSING)
def test_a_loaded_state_dict_is_used(architecture: str, fusing: None) -> None:
    pair = twins.new_pair(architecture, "float32")
    logits(pair.overlay)
    generator = torch.Generator().manual_seed(5)
    other = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in pair.stock.state_dict().items()
    }
    for model in (pair.stock, pair.overlay):
        model.load_state_dict(other)
    assert close(pair.overlay, logits(pair.stock))


@pytest.mark.parametrize("architecture", FUSING)
@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_a_hook_on_a_projection_fires(architecture: str, projection: str, fusing: None) -> None:
    """Both ways round: a hook set before the first forward and one set on a model that is fused already."""
    pair = twins.new_pair(architecture, "float32")
    logits(pair.overlay)
    calls = []
    for model in (pair.stock, pair.overlay):
        module = getattr(model.model.layers[1].self_attn, projection)
        module.register_forward_hook(lambda module, arguments, output: calls.append(module) or output * 1.5)
    reference = logits(pair.stock)
    assert len(calls) == 1
    assert close(pair.overlay, reference)
    assert len(calls) == 2


def test_a_pre_hook_on_the_mlp_fires(fusing: None) -> None:
    pair = twins.new_pair("llama", "float32")
    logits(pair.overlay)
    for model in (pair.stock, pair.overlay):
        model.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    assert close(pair.overlay, logits(pair.stock))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_to_another_dtype_after_a_forward(architecture: str, fusing: None) -> None:
    pair = twins.new_pair(architecture, "float32")
    logits(pair.overlay)
    for model in (pair.stock, pair.overlay):
        model.to(torch.bfloat16)
    assert close(pair.overlay, logits(pair.stock), dtype="bfloat16")
    for model in (pair.stock, pair.overlay):
        model.to(torch.float64)
    assert judge(
        {"logits": logits(pair.stock).float()}, {"logits": logits(pair.overlay).float()},
        tier="torch", dtype="float32", bitwise=False,
    ).ok  # fmt: skip


@pytest.mark.parametrize("architecture", FUSING)
def test_a_deep_copy_owns_its_weights(architecture: str, fusing: None) -> None:
    pair = twins.new_pair(architecture, "float32")
    reference = logits(pair.stock)
    logits(pair.overlay)
    twin = copy.deepcopy(pair.overlay)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        for parameter in pair.stock.parameters():
            parameter.mul_(0.5)
    assert close(twin, logits(pair.stock)), "the copy used weights that are not its own"
    assert close(pair.overlay, reference), "changing the copy changed the original"


def test_a_replaced_parameter_is_used(fusing: None) -> None:
    pair = twins.new_pair("qwen2", "float32")
    logits(pair.overlay)
    weight = torch.randn_like(pair.stock.model.layers[0].self_attn.k_proj.weight)
    for model in (pair.stock, pair.overlay):
        model.model.layers[0].self_attn.k_proj.weight = nn.Parameter(weight.clone())
        model.model.layers[1].self_attn.v_proj.bias = nn.Parameter(
            torch.ones_like(model.model.layers[1].self_attn.v_proj.bias)
        )
    assert close(pair.overlay, logits(pair.stock))


def test_an_update_in_place_is_used(fusing: None) -> None:
    """An optimiser writes into the parameters between two forwards."""
    pair = twins.new_pair("llama", "float32")
    logits(pair.overlay)
    for model in (pair.stock, pair.overlay):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        model(twins.INPUTS.ids, labels=twins.INPUTS.ids, use_cache=False).loss.backward()
        optimiser.step()
        model.eval()
    assert judge(
        {"logits": logits(pair.stock)}, {"logits": logits(pair.overlay)}, tier="torch", dtype="float32", bitwise=False
    ).ok


def test_inference_mode_first_then_training(fusing: None) -> None:
    """Fusing inside inference_mode must not leave inference tensors behind as parameters."""
    pair = twins.new_pair("llama", "float32")
    with torch.inference_mode():
        pair.overlay(twins.INPUTS.ids, use_cache=False)
    case = CASES["training-step"]
    verdict = judge(
        case.run(pair.stock, twins.INPUTS),
        case.run(pair.overlay, twins.INPUTS),
        tier="torch",
        dtype="float32",
        bitwise=False,
    )
    assert verdict.ok, verdict.deviating
    with torch.inference_mode():
        inside = pair.overlay(twins.INPUTS.ids, use_cache=False).logits.clone()
    assert judge({"logits": logits(pair.stock)}, {"logits": inside}, tier="torch", dtype="float32", bitwise=False).ok


class LowRank(nn.Module):
    """A wrapper of the kind adapters use: not an nn.Linear, but with a `weight` that shows the base layer's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        generator = torch.Generator().manual_seed(11)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator) * 0.2)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator) * 0.2)

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + (x @ self.down.T) @ self.up.T


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrapped_projections_are_called(architecture: str) -> None:
    """An adapter around projections, put there after the model has run fused: its part must not be dropped."""
    pair = twins.new_pair(architecture, "float32")
    with amd_ops.override(
        tiers="torch,eager", use_fused_projections=1, use_aiter_gemm=1, use_optimized_ops=1, use_aiter_attention=1
    ):
        logits(pair.overlay)
        before = logits(pair.stock)
        for model in (pair.stock, pair.overlay):
            for layer in model.model.layers:
                for name in ("q_proj", "v_proj", "o_proj", "qkv_proj"):
                    if hasattr(layer.self_attn, name):
                        setattr(layer.self_attn, name, LowRank(getattr(layer.self_attn, name)))
                if hasattr(layer, "mlp"):
                    layer.mlp.down_proj = LowRank(layer.mlp.down_proj)
        pair.stock.set_attn_implementation("eager")
        pair.overlay.set_attn_implementation("eager")
        reference = logits(pair.stock)
        assert not torch.allclose(reference, before), "the adapter does nothing: the test is empty"
        assert close(pair.overlay, reference)


@pytest.mark.parametrize("architecture", FUSING)
def test_prepare_and_restore(architecture: str, fusing: None) -> None:
    pair = twins.new_pair(architecture, "float32")
    attention = pair.overlay.model.layers[0].self_attn
    identities = {name: id(parameter) for name, parameter in pair.overlay.named_parameters()}
    amd_ops.prepare(pair.overlay)
    assert together(attention.q_proj, attention.k_proj, attention.v_proj)
    assert close(pair.overlay, logits(pair.stock))
    amd_ops.restore(pair.overlay)
    assert not together(attention.q_proj, attention.k_proj, attention.v_proj)
    assert {name: id(parameter) for name, parameter in pair.overlay.named_parameters()} == identities
    assert all(same_bits(a, b) for a, b in zip(pair.stock.parameters(), pair.overlay.parameters(), strict=True))
