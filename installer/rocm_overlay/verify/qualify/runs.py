"""What a captured model is run through: as it is used, on every kind of cache that it takes, padded and not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..inputs import Inputs, kind_of
from ..other_kinds import arguments

NEW_TOKENS = 3


@dataclass(frozen=True)
class Run:
    """One way to run the model. ``make`` raises what stock's code raises."""

    name: str
    make: Callable[[], object]


def runs_of(model: Any, seed: int, given: str | None = None) -> list[Run]:
    """Return the runs of a model, the most usual first.

    ``given`` is a safetensors file with the keyword arguments of one forward; without it they are made from the
    configuration. Raises ValueError where neither is possible.
    """
    kind = kind_of(model)
    if given is not None:
        return _of_file(model, Path(given))
    if kind == "vlm":
        return [*_with_image(model, seed), *_text_alone(model, seed)]
    inputs = Inputs.for_model(model, seed=seed)
    if kind == "causal":
        return _causal(model, inputs)
    given_words = arguments(model, inputs)
    runs = [Run("forward", partial(model, **given_words))]
    if kind in ("encoder", "seq2seq") and "input_ids" in given_words:
        for side in ("right", "left"):
            words = {**given_words, "attention_mask": inputs.mask(left=side == "left")}
            runs.append(Run(f"padded on the {side}", partial(model, **words)))
    if kind == "seq2seq":
        free = {name: value for name, value in given_words.items() if name != "decoder_input_ids"}
        runs.append(Run("generate", partial(_generate, model, **free)))
        runs.append(Run("generate, static cache", partial(_generate, model, **free, **_STATIC)))
    return runs


def _with_image(model: Any, seed: int) -> list[Run]:
    try:
        words = arguments(model, Inputs.for_model(model, seed=seed))
    except ValueError as error:
        return [Run("forward with an image", partial(_raise, error))]
    return [
        Run("forward with an image", partial(model, **words)),
        Run("generate with an image", partial(_generate, model, **words)),
    ]


def _raise(error: ValueError) -> None:
    """Stand for a run whose inputs are not known: it is told as every run that cannot be made."""
    raise ValueError(f"{error}: pass --inputs a file with the arguments of a forward")


def _text_alone(model: Any, seed: int) -> list[Run]:
    """Return the runs of a model of images and text on text alone."""
    vocabulary = model.config.get_text_config().vocab_size
    runs = _causal(model, Inputs.seeded(vocabulary, seed=seed).to(model.device))
    return [Run(f"text: {run.name}", run.make) for run in runs]


_STATIC = {"cache_implementation": "static", "disable_compile": True}


def _generate(model: Any, **words: Any) -> None:
    model.generate(**words, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)


def _causal(model: Any, inputs: Inputs) -> list[Run]:
    ids, mask = inputs.ids, inputs.mask(left=True)
    one = ids[:1]

    def no_cache() -> None:
        parameters = inspect.signature(model.forward).parameters
        passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        if "past_key_values" not in parameters and not passes_on:
            raise TypeError(f"{type(model).__name__}.forward takes no past_key_values")

    def dynamic() -> None:
        _generate(model, input_ids=ids, attention_mask=mask)

    def static() -> None:
        no_cache()
        _generate(model, input_ids=ids, attention_mask=mask, **_STATIC)
        # The second time the cache has its storage from the beginning: the prefill takes another path.
        _generate(model, input_ids=ids, attention_mask=mask, **_STATIC)

    return [
        Run("forward without a cache", lambda: model(input_ids=one, use_cache=False)),
        Run("generate", dynamic),
        Run("generate, not padded", lambda: _generate(model, input_ids=one, attention_mask=torch.ones_like(one))),
        Run("generate, static cache", static),
    ]


def _of_file(model: Any, path: Path) -> list[Run]:
    from safetensors.torch import load_file

    parameters = inspect.signature(model.forward).parameters
    words = {name: value.to(model.device) for name, value in load_file(path).items()}
    unknown = [name for name in words if name not in parameters and not any(
        one.kind is one.VAR_KEYWORD for one in parameters.values())]  # fmt: skip
    if unknown:
        raise ValueError(f"{path} holds {unknown[0]!r}, which {type(model).__name__}.forward does not take")
    dtype = next(model.parameters()).dtype
    words = {name: value.to(dtype) if value.is_floating_point() else value for name, value in words.items()}
    runs = [Run("forward", lambda: model(**words))]
    if model.can_generate():
        free = {name: value for name, value in words.items() if name not in ("decoder_input_ids", "labels")}
        runs.append(Run("generate", lambda: _generate(model, **free)))
        runs.append(Run("generate, static cache", lambda: _generate(model, **free, **_STATIC)))
    return runs
