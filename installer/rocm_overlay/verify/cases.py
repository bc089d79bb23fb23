"""What is run on a model to compare two builds of its code: one function per case, all of them deterministic.

A case takes a causal language model and seeded inputs and returns named tensors. Names say how a tensor is compared
(see `rocm_overlay.verify.compare`): ``tokens...`` must be equal, ``pads...`` only count where bit equality is asked
(a position that no one reads), ``grad...`` have the tolerance of gradients, everything else that of activations.

Runs in the interpreter under test, so it needs torch and transformers and nothing of this project but `amd_ops`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Outputs = dict[str, torch.Tensor]

FIRST_TOKEN = 3  # below: pad, bos and eos of most vocabularies


@dataclass(frozen=True)
class Inputs:
    """Seeded token ids for every case.

    ids: int64 [batch, length]; pads: how many positions of row 0 are padding; new_tokens: length of every generate.
    """

    ids: torch.Tensor
    pads: int
    new_tokens: int

    @classmethod
    def seeded(cls, vocab: int, *, seed: int = 0, batch: int = 2, length: int = 20, new_tokens: int = 8) -> Inputs:
        """Draw ids from a generator of their own, so that weights and inputs do not depend on each other."""
        if length < 8:
            raise ValueError(
                f"length is {length}; at least 8 positions are needed to cut three chunks and a padded head"
            )
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(FIRST_TOKEN, vocab, (batch, length), generator=generator)
        return cls(ids, pads=length // 3, new_tokens=new_tokens)

    def to(self, device: torch.device) -> Inputs:
        """Return the same inputs on ``device``."""
        return Inputs(self.ids.to(device), self.pads, self.new_tokens)

    def mask(self, *, left: bool) -> torch.Tensor:
        """Return an attention mask int64 [batch, length] with row 0 padded on one side."""
        mask = torch.ones_like(self.ids)
        if left:
            mask[0, : self.pads] = 0
        else:
            mask[0, -self.pads :] = 0
        return mask


@dataclass(frozen=True)
class Case:
    """One comparison: ``run(model, inputs)``; ``eager_only`` cases need an implementation that returns weights."""

    name: str
    run: Callable[[Any, Inputs], Outputs]
    training: bool = False
    eager_only: bool = False


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


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("prefill", prefill),
        Case("decode", decode),
        Case("chunked", chunked),
        Case("padded", padded),
        Case("packed", packed),
        Case("greedy", greedy),
        Case("greedy-left-padded", greedy_left_padded),
        Case("static-cache", static_cache),
        Case("beam", beam),
        Case("hidden-states", hidden_states),
        Case("attentions", attentions, eager_only=True),
        Case("training-step", training_step, training=True),
        Case("padded-training-step", padded_training_step, training=True),
        Case("gradient-checkpointing", gradient_checkpointing, training=True),
    )
}
