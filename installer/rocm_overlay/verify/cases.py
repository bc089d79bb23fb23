"""What is run on a model to compare two builds of its code: one function per case, all of them deterministic.

A case takes a causal language model and seeded inputs and returns named tensors. Names say how a tensor is compared
(see `rocm_overlay.verify.compare`): ``tokens...`` must be equal, ``pads...`` only count where bit equality is asked
(a position that no one reads), ``grad...`` have the tolerance of gradients, ``codes...`` come from quantised values and
only have to point the same way, everything else has that of activations.

Runs in the interpreter under test, so it needs torch and transformers and nothing of this project but `amd_ops`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import other_kinds
from .inputs import KINDS, Inputs

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One comparison: ``run(model, inputs)`` for the kinds of models that it knows (`inputs.KINDS`).

    ``eager_only`` cases need an implementation that returns weights.
    """

    name: str
    run: Callable[[Any, Inputs], Outputs]
    training: bool = False
    eager_only: bool = False
    kinds: tuple[str, ...] = ("causal",)


def cache_tensors(cache: Any) -> Outputs:
    """Return the keys and values that a transformers cache holds, by layer."""
    found: Outputs = {}
    for index, layer in enumerate(cache.layers):
        found[f"cache{index}.keys"] = layer.keys.detach().clone()
        found[f"cache{index}.values"] = layer.values.detach().clone()
    return found


@torch.no_grad()
def prefill(model: Any, inputs: Inputs) -> Outputs:
    """One forward over the whole prompt, no cache."""
    return {"logits": model(inputs.ids, use_cache=False).logits}


@torch.no_grad()
def decode(model: Any, inputs: Inputs) -> Outputs:
    """Two thirds of the prompt at once, then one position at a time on the cache."""
    return _in_steps(model, inputs.ids, [2 * inputs.ids.shape[1] // 3], step=1)


@torch.no_grad()
def chunked(model: Any, inputs: Inputs) -> Outputs:
    """The prompt in three pieces of several positions each: q_len > 1 on a cache that is not empty."""
    length = inputs.ids.shape[1]
    return _in_steps(model, inputs.ids, [length // 2, length // 2 + length // 3], step=length)


def _in_steps(model: Any, ids: torch.Tensor, cuts: list[int], *, step: int) -> Outputs:
    """Feed ``ids[:, :cuts[0]]``, the pieces between the cuts, then pieces of ``step`` positions."""
    length = ids.shape[1]
    edges = sorted({0, *cuts, *range(cuts[-1], length, step), length})
    cache = None
    found: Outputs = {}
    for begin, end in itertools.pairwise(edges):
        out = model(ids[:, begin:end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found[f"logits[{begin}:{end}]"] = out.logits
    return {**found, **cache_tensors(cache)}


@torch.no_grad()
def padded(model: Any, inputs: Inputs) -> Outputs:
    """A batch with one row padded on the left, then on the right; positions of padding are kept apart."""
    found: Outputs = {}
    for side in ("left", "right"):
        mask = inputs.mask(left=side == "left")
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(inputs.ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        found[f"logits_{side}"] = logits[mask.bool()]
        found[f"pads_{side}"] = logits[~mask.bool()]
    return found


@torch.no_grad()
def packed(model: Any, inputs: Inputs) -> Outputs:
    """Two sequences in one row, told apart by position ids that start again."""
    length = inputs.ids.shape[1]
    cut = length // 3
    positions = torch.cat([torch.arange(cut), torch.arange(length - cut)]).to(inputs.ids.device)
    out = model(inputs.ids[:1], position_ids=positions[None], use_cache=False)
    return {"logits": out.logits}


def greedy(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation with the default cache."""
    return _generate(model, inputs)


def greedy_left_padded(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation of a batch with left padding."""
    return _generate(model, inputs, attention_mask=inputs.mask(left=True))


def static_cache(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation of a left-padded batch on a preallocated cache."""
    # Compiling is a case of its own; here generate must run the code as it stands.
    return _generate(
        model, inputs, attention_mask=inputs.mask(left=True), cache_implementation="static", disable_compile=True
    )


def beam(model: Any, inputs: Inputs) -> Outputs:
    """Beam search: the cache is reordered between steps."""
    with _no_early_stop(model):
        out = model.generate(
            inputs.ids, max_new_tokens=inputs.new_tokens, do_sample=False, num_beams=3,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    return {"tokens": out.sequences, "scores": out.sequences_scores}


def _generate(model: Any, inputs: Inputs, **arguments: Any) -> Outputs:
    with _no_early_stop(model):
        out = model.generate(
            inputs.ids, max_new_tokens=inputs.new_tokens, do_sample=False,
            return_dict_in_generate=True, output_logits=True, **arguments,
        )  # fmt: skip
    return {"tokens": out.sequences[:, inputs.ids.shape[1] :], "logits": torch.stack(out.logits, dim=1)}


@contextlib.contextmanager
def _no_early_stop(model: Any) -> Iterator[None]:
    """Let every row run to ``new_tokens``: an early end of one build would hide what comes after it."""
    config = model.generation_config
    saved = config.eos_token_id, config.pad_token_id
    config.eos_token_id, config.pad_token_id = None, 0
    try:
        yield
    finally:
        config.eos_token_id, config.pad_token_id = saved


def training_step(model: Any, inputs: Inputs, mask: torch.Tensor | None = None) -> Outputs:
    """Loss and the gradient of every parameter after one backward pass."""
    model.train()
    model.zero_grad(set_to_none=True)
    try:
        loss = model(inputs.ids, attention_mask=mask, labels=inputs.ids, use_cache=False).loss
        loss.backward()
        found = {f"grad.{name}": p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    return {"loss": loss.detach(), **found}


def padded_training_step(model: Any, inputs: Inputs) -> Outputs:
    """The training step on a left-padded batch: the padded queries see no key, and still have gradients."""
    return training_step(model, inputs, inputs.mask(left=True))


def gradient_checkpointing(model: Any, inputs: Inputs) -> Outputs:
    """The training step with layers recomputed in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        return training_step(model, inputs)
    finally:
        model.gradient_checkpointing_disable()


@torch.no_grad()
def attentions(model: Any, inputs: Inputs) -> Outputs:
    """Attention weights of every layer (eager attention only)."""
    out = model(inputs.ids, output_attentions=True, use_cache=False)
    return {f"weights{index}": weights for index, weights in enumerate(out.attentions)}


@torch.no_grad()
def hidden_states(model: Any, inputs: Inputs) -> Outputs:
    """The recorded hidden states: an in-place op on a layer's input would corrupt them."""
    out = model(inputs.ids, output_hidden_states=True, use_cache=False)
    return {f"hidden{index}": states for index, states in enumerate(out.hidden_states)}


def sampling(model: Any, inputs: Inputs) -> Outputs:
    """Sampling with a seed: the same draws must give the same tokens."""
    torch.manual_seed(inputs.seed)
    with _no_early_stop(model):
        out = model.generate(
            inputs.ids, max_new_tokens=inputs.new_tokens, do_sample=True, top_k=20, temperature=0.8,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return {"drawn": out.sequences[:, inputs.ids.shape[1] :], "logits": torch.stack(out.logits, dim=1)}


def sliding_cache(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation on a preallocated cache that holds no more than the window."""
    mask = inputs.mask(left=True)
    return _generate(model, inputs, attention_mask=mask, cache_implementation="sliding_window", disable_compile=True)


def quantised_cache(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation on a quantised cache; needs optimum-quanto or hqq."""
    found = _generate(model, inputs, cache_implementation="quantized", cache_config={"nbits": 4})
    return {f"codes.{name}": value for name, value in found.items()}


@torch.no_grad()
def compiled(model: Any, inputs: Inputs) -> Outputs:
    """Two calls of the compiled model: the first may pack weights, the second runs what the first compiled."""
    backend = "inductor" if inputs.ids.device.type == "cuda" else "aot_eager"
    reset: Any = torch._dynamo.reset
    reset()
    try:
        run: Any = torch.compile(model, backend=backend)
        return {f"logits{call}": run(inputs.ids, use_cache=False).logits for call in range(2)}
    finally:
        reset()


@torch.no_grad()
def updated_weights(model: Any, inputs: Inputs) -> Outputs:
    """Weights that change after the first forward, in place and by replacement: nothing packed may be stale."""
    found = {"logits0": model(inputs.ids, use_cache=False).logits}
    linears = _linears(model)
    saved = [module.weight.data.clone() for module in linears]
    try:
        for module in linears:
            module.weight.data.mul_(1.25)
        found["logits1"] = model(inputs.ids, use_cache=False).logits
        for module, weight in zip(linears, saved, strict=True):
            module.weight = nn.Parameter(weight * 0.75, requires_grad=module.weight.requires_grad)
        found["logits2"] = model(inputs.ids, use_cache=False).logits
    finally:
        for module, weight in zip(linears, saved, strict=True):
            module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    return found


@torch.no_grad()
def hooks(model: Any, inputs: Inputs) -> Outputs:
    """A forward hook on every inner Linear that changes its result: a path around the module would miss it."""
    handles = [module.register_forward_hook(lambda module, args, output: output * 1.25) for module in _linears(model)]
    try:
        return {"logits": model(inputs.ids, use_cache=False).logits}
    finally:
        for handle in handles:
            handle.remove()


class _Adapter(nn.Module):
    """Stands for an adapter such as PEFT's: it wraps a Linear, shows its weight and adds to its result."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base: torch.Tensor = self.base_layer(x)
        return base + 0.25 * base.roll(1, -1)


@torch.no_grad()
def adapter(model: Any, inputs: Inputs) -> Outputs:
    """Every inner Linear behind a wrapper with a ``weight`` of the same shape, as adapters are built."""
    places = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if type(child) is nn.Linear and child is not model.get_output_embeddings()
    ]
    try:
        for owner, name, child in places:
            setattr(owner, name, _Adapter(child))
        return {"logits": model(inputs.ids, use_cache=False).logits}
    finally:
        for owner, name, child in places:
            setattr(owner, name, child)


def _linears(model: Any) -> list[nn.Linear]:
    """Every exact Linear but the head, whose weight may be that of the embedding."""
    head = model.get_output_embeddings()
    return [module for module in model.modules() if type(module) is nn.Linear and module is not head]


@torch.no_grad()
def rounding(model: Any, inputs: Inputs) -> Outputs:
    """The norms alone. In half precision where a norm rounds is seen in how many elements differ, not in how much."""
    found: Outputs = {}
    generator = torch.Generator().manual_seed(inputs.seed)
    for module in model.modules():
        if not _is_norm(module) or f"ulps.{type(module).__name__}" in found:
            continue
        weight = next(module.parameters())
        x = torch.randn(4, 64, weight.shape[0], generator=generator).to(weight.device, weight.dtype)
        found[f"ulps.{type(module).__name__}"] = module(x)
    if not found:
        raise ValueError("the model has no norm with a single weight")
    return found


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return "Norm" in type(module).__name__ and len(parameters) == 1 and parameters[0].dim() == 1


def _all_but(*kinds: str) -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if kind not in kinds)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("forward", other_kinds.forward, kinds=_all_but("causal")),
        Case("prefill", prefill),
        Case("decode", decode),
        Case("chunked", chunked),
        Case("padded", padded),
        Case("padded-encoder", other_kinds.padded, kinds=("encoder", "seq2seq")),
        Case("packed", packed),
        Case("greedy", greedy),
        Case("greedy-left-padded", greedy_left_padded),
        Case("generate", other_kinds.generate, kinds=("seq2seq", "vlm")),
        Case("generate-beam", other_kinds.generate_beam, kinds=("seq2seq", "vlm")),
        Case("static-cache", static_cache),
        Case("sliding-cache", sliding_cache),
        Case("quantised-cache", quantised_cache),
        Case("beam", beam),
        Case("sampling", sampling),
        Case("rounding", rounding, kinds=KINDS),
        Case("updated-weights", updated_weights),
        Case("hooks", hooks),
        Case("adapter", adapter),
        Case("hidden-states", hidden_states),
        Case("hidden-states-of", other_kinds.hidden_states, kinds=_all_but("causal")),
        Case("attentions", attentions, eager_only=True),
        Case("attentions-of", other_kinds.attentions, eager_only=True, kinds=_all_but("causal")),
        Case("training-step", training_step, training=True),
        Case("training-step-of", other_kinds.training_step, training=True, kinds=_all_but("causal")),
        Case("padded-training-step", padded_training_step, training=True),
        Case("gradient-checkpointing", gradient_checkpointing, training=True),
        Case("compiled", compiled),
    )
}
