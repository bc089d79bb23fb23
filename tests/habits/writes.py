"""Ways in which programs write, move, replace or share a model's weights: each takes a model and a seed."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from tests.habits.worker import written_elsewhere


def _noise(model: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(p.shape, generator=generator) * 0.02 for p in model.parameters()]
    return [part.to(p.dtype) for part, p in zip(parts, model.parameters(), strict=True)]


def _state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    by_id = {id(p): n for p, n in zip(model.parameters(), _noise(model, seed), strict=True)}
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: (p.detach() + by_id[id(p)]).clone() for name, p in named.items()}


def _each(change: Callable[[Tensor, Tensor], Any]) -> Callable[[Any, int], Any]:
    def write(model: Any, seed: int) -> Any:
        for parameter, noise in zip(model.parameters(), _noise(model, seed), strict=True):
            change(parameter, noise)
        return model

    return write


def _numpy(parameter: Tensor, noise: Tensor) -> None:
    raw = torch.int16 if parameter.dtype is torch.bfloat16 else parameter.dtype
    (parameter.detach().view(raw).numpy())[...] = (parameter.detach() + noise).view(raw).numpy()


def step(model: Any, optimiser: torch.optim.Optimizer, seed: int) -> Any:
    """Take one step with gradients that are alike for equal models."""
    for parameter, noise in zip(model.parameters(), _noise(model, seed), strict=True):
        parameter.grad = noise.to(parameter.device)
    optimiser.step()
    model.zero_grad()
    return model


def _optimiser(make: Callable[[list[Any]], torch.optim.Optimizer]) -> Callable[[Any, int], Any]:
    return lambda model, seed: step(model, make(list(model.parameters())), seed)


def _swapped(model: Any, seed: int) -> Any:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(_state(model, seed), strict=False)
        return model.to(torch.float64).to(_dtype(model))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _dtype(model: Any) -> torch.dtype:
    found: torch.dtype = model.config.torch_dtype or torch.float32
    return found


def _exchange_data(model: Any, seed: int) -> Any:
    """Exponential moving averages exchange ``.data`` with a shadow, forward and back."""
    shadow = copy.deepcopy(model)
    _each(lambda p, n: p.data.add_(n))(shadow, seed)
    for parameter, other in zip(model.parameters(), shadow.parameters(), strict=True):
        parameter.data, other.data = other.data, parameter.data
    return model


def _swap_tensors(model: Any, seed: int) -> Any:
    for parameter, noise in zip(list(model.parameters()), _noise(model, seed), strict=True):
        other = nn.Parameter((parameter.detach() + noise).clone(), requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, other)
    return model


def _averaged(model: Any, seed: int) -> Any:
    from torch.optim.swa_utils import AveragedModel

    average: Any = AveragedModel(model)
    _each(lambda p, n: p.data.add_(n))(model, seed)
    average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return model


def _resized(model: Any, seed: int) -> Any:
    kept = [(p, p.detach().clone() + n) for p, n in zip(model.parameters(), _noise(model, seed), strict=True)]
    for parameter, _ in kept:
        parameter.untyped_storage().resize_(0)
    for parameter, values in kept:
        parameter.untyped_storage().resize_(values.numel() * values.element_size())
        parameter.detach().copy_(values)
    return model


def _reloaded(model: Any, seed: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(_state(model, seed), file)
        model.load_state_dict(load_file(file), strict=False, assign=True)
    return model


def _torch_saved(model: Any, seed: int) -> Any:
    stream = io.BytesIO()
    torch.save(_each(lambda p, n: p.data.add_(n))(model, seed).state_dict(), stream)
    stream.seek(0)
    model.load_state_dict(torch.load(stream, weights_only=True, mmap=False))
    return model


def _mapped(model: Any, seed: int) -> Any:
    """Weights that lie in a mapped file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(_state(model, seed), file)
        model.load_state_dict(torch.load(file, weights_only=True, mmap=True), strict=False, assign=True)
        model.tie_weights()
    return model


def _slices(model: Any, seed: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(_state(model, seed), file)
        with safe_open(file, framework="pt") as opened:
            for name, parameter in model.named_parameters():
                parameter.data[:] = opened.get_slice(name)[:]
    return model


def _worker(model: Any, seed: int) -> Any:
    """Parameters go through a queue, which moves them to shared memory; the other process writes to them there."""
    written_elsewhere(list(zip((p.data for p in model.parameters()), _noise(model, seed), strict=True)))
    return model


def _sent_back(model: Any, seed: int) -> Any:
    names, parameters = zip(*model.named_parameters(), strict=True)
    copies = [(p.detach().clone(), n) for p, n in zip(parameters, _noise(model, seed), strict=True)]
    model.load_state_dict(dict(zip(names, written_elsewhere(copies), strict=True)), strict=False)
    return model


def _merged(model: Any, seed: int) -> Any:
    """An adapter is put around three projections and merged into their weights."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    LoraModel(model, config, "default").merge_and_unload()
    return model.requires_grad_(False).eval()


def _alone() -> None:
    """A process group of one rank: the wrappers do all that they do, and no other process is needed."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def _step(model: Any, seed: int, wrap: Callable[[Any], Any]) -> Any:
    _alone()
    model.requires_grad_(True)
    with torch.enable_grad():
        wrapped = wrap(model)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(seed))
        wrapped(ids, labels=ids).loss.backward()
        with torch.no_grad():  # equal steps of equal models: in bfloat16 two sums of gradients part
            for parameter, noise in zip(model.parameters(), _noise(model, seed), strict=True):
                gradient = parameter.grad
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                local.copy_(noise)
        optimiser.step()
        optimiser.zero_grad()
    return model.requires_grad_(False)


def _sharded(model: Any) -> Any:
    if isinstance(model, FSDPModule):
        return model
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _offloaded(model: Any, seed: int) -> Any:
    """What disk offload does: parameters leave for meta and come back one by one."""
    kept = _state(model, seed)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    for path, values in kept.items():
        owner, _, name = path.rpartition(".")
        model.get_submodule(owner)._parameters[name] = nn.Parameter(values)
    model.tie_weights()
    return model


def _vector(model: Any, seed: int) -> Any:
    vector = nn.utils.parameters_to_vector(model.parameters())
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)).to(vector.dtype) * 0.02
    nn.utils.vector_to_parameters(vector + noise, model.parameters())
    return model


def _transposed(model: Any, seed: int) -> Any:
    for parameter, noise in zip(model.parameters(), _noise(model, seed), strict=True):
        changed = parameter.detach() + noise
        parameter.data = changed.t().contiguous().t() if changed.dim() == 2 else changed
    return model


def _in_inference_mode(model: Any, seed: int) -> Any:
    with torch.inference_mode():
        return _each(lambda p, n: p.add_(n))(model, seed)


WRITES: dict[str, Callable[[Any, int], Any]] = {
    "p.data.add_": _each(lambda p, n: p.data.add_(n)),
    "p.data.mul_": _each(lambda p, n: p.data.mul_(1.0 + 10 * n)),
    "p.data.copy_": _each(lambda p, n: p.data.copy_(p.detach() + n)),
    "p.data =": _each(lambda p, n: setattr(p, "data", p.detach() + n)),
    "p.data[...] =": _each(lambda p, n: p.data.__setitem__(..., p.detach() + n)),
    "detach().add_": _each(lambda p, n: p.detach().add_(n)),
    "no_grad p.add_": _each(lambda p, n: p.add_(n)),
    "view(-1).add_": _each(lambda p, n: p.view(-1).add_(n.view(-1))),
    "rows of a view": _each(lambda p, n: p.data[: max(1, p.shape[0] // 2)].add_(n[: max(1, p.shape[0] // 2)])),
    "one element": _each(lambda p, n: p.data.view(-1)[0].add_(1.0)),
    "numpy": _each(_numpy),
    "dlpack": _each(lambda p, n: torch.from_dlpack(p.detach()).add_(n)),
    "storage copy_": _each(lambda p, n: p.untyped_storage().copy_((p.detach() + n).untyped_storage())),
    "set_": _each(lambda p, n: p.data.set_(p.detach() + n)),
    "nn.init": _each(lambda p, n: nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(p.numel()))),
    "torch._foreach_add_": lambda model, seed: (
        torch._foreach_add_(list(model.parameters()), _noise(model, seed)), model,
    )[1],
    "SGD": _optimiser(lambda ps: torch.optim.SGD(ps, lr=0.5)),
    "SGD foreach": _optimiser(lambda ps: torch.optim.SGD(ps, lr=0.5, foreach=True)),
    "SGD fused": _optimiser(lambda ps: torch.optim.SGD(ps, lr=0.5, fused=True)),
    "AdamW": _optimiser(lambda ps: torch.optim.AdamW(ps, lr=1e-2)),
    "AdamW foreach": _optimiser(lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=True)),
    "AdamW fused": _optimiser(lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True)),
    "load_state_dict": lambda model, seed: (model.load_state_dict(_state(model, seed), strict=False), model)[1],
    "load_state_dict assign": lambda model, seed: (
        model.load_state_dict(_state(model, seed), strict=False, assign=True), model.tie_weights(), model,
    )[2],
    "swap on conversion": _swapped,
    "swap_tensors": _swap_tensors,
    "EMA exchanges .data": _exchange_data,
    "AveragedModel": _averaged,
    "vector_to_parameters": _vector,
    "transposed memory": _transposed,
    "resize_(0) and back": _resized,
    "safetensors, assigned": _reloaded,
    "safetensors, slice by slice": _slices,
    "torch.load, mapped and assigned": _mapped,
    "torch.save and load": _torch_saved,
    "LoRA merged": _merged,
    "DDP step": lambda model, seed: _step(model, seed, nn.parallel.DistributedDataParallel),
    "FSDP2 step": lambda model, seed: _step(model, seed, _sharded),
    "a worker process writes": _worker,
    "a process sends weights": _sent_back,
    "offload and back": _offloaded,
    "inference_mode": _in_inference_mode,
    "share_memory, then write": lambda model, seed: _each(lambda p, n: p.data.add_(n))(model.share_memory(), seed),
    "to float64 and back": lambda model, seed: _each(lambda p, n: p.data.add_(n))(
        model.to(torch.float64).to(_dtype(model)), seed
    ),
    "half and back": lambda model, seed: _each(lambda p, n: p.data.add_(n))(
        model.half().to(_dtype(model)), seed
    ),
    "deepcopy": lambda model, seed: _each(lambda p, n: p.data.add_(n))(copy.deepcopy(model), seed),
    "pickle": lambda model, seed: _each(lambda p, n: p.data.add_(n))(pickle.loads(pickle.dumps(model)), seed),
}  # fmt: skip
