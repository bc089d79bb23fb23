"""Cases for models that are no causal language models: encoders, encoder-decoders, vision and image-text models."""

from __future__ import annotations

from typing import Any

import torch

from .inputs import Inputs, kind_of

Outputs = dict[str, torch.Tensor]


def arguments(model: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return the keyword arguments of one forward."""
    if kind_of(model) == "vision" or "input_features" in inputs.extra:
        return dict(inputs.extra)
    return {"input_ids": inputs.ids, **inputs.extra}


def flatten(out: Any, prefix: str = "") -> Outputs:
    """Return every float tensor of a model output by name; tuples are numbered, caches left out."""
    found: Outputs = {}
    for name, value in out.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found[prefix + name] = value
        elif isinstance(value, tuple):
            tensors = [item for item in value if isinstance(item, torch.Tensor) and item.is_floating_point()]
            found.update({f"{prefix}{name}{index}": item for index, item in enumerate(tensors)})
    return found


@torch.no_grad()
def forward(model: Any, inputs: Inputs) -> Outputs:
    """One forward with everything that the model takes."""
    return flatten(model(**arguments(model, inputs), return_dict=True))


@torch.no_grad()
def padded(model: Any, inputs: Inputs) -> Outputs:
    """A batch with one row padded on the right, then on the left; results [batch, length, ...] without padding."""
    found: Outputs = {}
    for side in ("right", "left"):
        mask = inputs.mask(left=side == "left")
        out = flatten(model(**arguments(model, inputs), attention_mask=mask, return_dict=True), f"{side}.")
        for name, value in out.items():
            if value.dim() >= 2 and value.shape[:2] == mask.shape:
                found[name] = value[mask.bool()]
                found[f"pads.{name}"] = value[~mask.bool()]
            else:
                found[name] = value
    return found


def generate(model: Any, inputs: Inputs) -> Outputs:
    """Greedy generation from the encoder's or the image's input."""
    return _generate(model, inputs, num_beams=1)


def generate_beam(model: Any, inputs: Inputs) -> Outputs:
    """Beam search: self- and cross-attention caches are reordered between steps."""
    return _generate(model, inputs, num_beams=3)


def _generate(model: Any, inputs: Inputs, *, num_beams: int) -> Outputs:
    given = {name: value for name, value in arguments(model, inputs).items() if name != "decoder_input_ids"}
    out = model.generate(
        **given, max_new_tokens=inputs.new_tokens, min_new_tokens=inputs.new_tokens, do_sample=False,
        num_beams=num_beams, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = {"tokens": out.sequences}
    if num_beams > 1:
        found["scores"] = out.sequences_scores
    return found


@torch.no_grad()
def hidden_states(model: Any, inputs: Inputs) -> Outputs:
    """The recorded hidden states of every stack."""
    return flatten(model(**arguments(model, inputs), output_hidden_states=True, return_dict=True))


@torch.no_grad()
def attentions(model: Any, inputs: Inputs) -> Outputs:
    """The attention weights of every stack (eager attention only)."""
    return flatten(model(**arguments(model, inputs), output_attentions=True, return_dict=True))


def training_step(model: Any, inputs: Inputs) -> Outputs:
    """Gradients of the mean square of every output; dropout draws from the same seed."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(inputs.seed)
    try:
        out = flatten(model(**arguments(model, inputs), return_dict=True))
        loss = torch.stack([value.float().square().mean() for value in out.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        found = {f"grad.{name}": p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    return {"loss": loss.detach(), **found}
