"""Ways to use several devices: how a saved model is spread over the ranks, and what is then run on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rocm_overlay.verify.cases import CASES, Outputs
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor

from tests.parity import twins

SERVING = ("prefill", "decode", "padded", "greedy", "greedy-left-padded", "static-cache", "beam", "hidden-states")
STEPS = 3
WRAPPERS = ("module.", "_fsdp_wrapped_module.")

Run = Callable[[Any], Outputs]


@dataclass(frozen=True)
class Scenario:
    """``load(model_class, folder)`` gives a model of one rank, ``spread(model)`` the same over all ranks."""

    cases: dict[str, Run]
    load: Callable[[Any, Path], Any] = lambda model_class, saved: model_class.from_pretrained(saved)
    spread: Callable[[Any], Any] = lambda model: model


def _case(name: str) -> Run:
    """A case of `overlay verify`, with what tensor parallelism leaves on each rank put together."""

    def run(model: Any) -> Outputs:
        heads = model.config.num_key_value_heads
        outputs = CASES[name].run(model, twins.INPUTS)
        return {key: _of_all_ranks(key, value, heads) for key, value in outputs.items()}

    return run


def _of_all_ranks(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """A cache holds this rank's heads [B, H/ranks, S, D] (phi3's plan: all); the gradient of a head norm counts this
    rank's heads alone (stock leaves it so); gradients of sharded weights are DTensors.
    """
    if name.startswith("cache") and tensor.shape[1] != heads:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim=1)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        total = tensor.clone()
        dist.all_reduce(total)
        return total
    return whole(tensor)


def training(model: Any) -> Outputs:
    """Steps of plain SGD, each rank on rows of its own, with an evaluation after each: there weights may be packed,
    and the next step trains what was packed.
    """
    rows = rows_of(dist.get_rank())
    return train(model, lambda: model(input_ids=rows, labels=rows, use_cache=False).loss)


def training_alone(model: Any) -> Outputs:
    """The same in one process: the mean of the ranks' losses has the mean of their gradients."""
    ranks = range(dist.get_world_size())

    def loss() -> torch.Tensor:
        losses = [model(input_ids=rows_of(rank), labels=rows_of(rank), use_cache=False).loss for rank in ranks]
        return torch.stack(losses).mean()

    return train(model, loss)


def rows_of(rank: int) -> torch.Tensor:
    """The rows of the batch that a rank trains on."""
    rows = twins.INPUTS.ids[rank :: dist.get_world_size()]
    assert len(rows), "every rank needs a row"
    return rows


def train(model: Any, loss: Callable[[], torch.Tensor]) -> Outputs:
    """Return the logits of every evaluation, and the whole gradients and weights at the end, under their own names."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    found: Outputs = {}
    for step in range(STEPS):
        model.train()
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()
        model.eval()
        with torch.no_grad():
            found[f"logits{step}"] = model(input_ids=twins.INPUTS.ids, use_cache=False).logits
    with gathered(model):
        for name, parameter in model.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            found[f"weight.{name}"] = whole(parameter.detach()).clone()
            if parameter.grad is not None:
                found[f"grad.{name}"] = whole(parameter.grad).clone()
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor's value from all ranks; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def gathered(model: Any) -> Iterator[None]:
    """FSDP1 shows whole parameters and gradients in here alone; FSDP2 shows gradients of what is sharded again."""
    shown: AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(model, FSDPModule):
        model.reshard()
    if isinstance(model, FullyShardedDataParallel):
        shown = FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False)
    with shown:
        yield


def _shard_layers(model: Any) -> Any:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _flatten_layers(model: Any) -> Any:
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=layers, use_orig_params=True, device_id=torch.device("cpu")
    )  # fmt: skip


SCENARIOS = {
    # transformers' own plan: Linears hold DTensor shards behind hooks, attention sees this rank's heads.
    "tensor": Scenario(
        {name: _case(name) for name in (*SERVING, "training-step")},
        load=lambda model_class, saved: model_class.from_pretrained(saved, tp_plan="auto").eval(),
    ),
    "quick-tensor": Scenario(
        {name: _case(name) for name in ("prefill", "greedy")},
        load=lambda model_class, saved: model_class.from_pretrained(saved, tp_plan="auto").eval(),
    ),
    # Every rank has the whole model; gradients are averaged.
    "ddp": Scenario({"training": training}, spread=nn.parallel.DistributedDataParallel),
    # FSDP2: parameters are DTensor shards, gathered for one layer at a time.
    "fsdp2": Scenario({"training": training}, spread=_shard_layers),
    # FSDP1: parameters of a layer are views of one flat tensor while the layer runs.
    "fsdp1": Scenario({"training": training}, spread=_flatten_layers),
}
