"""A captured call, ready to be made again: its arguments, its module with the captured weights, and what stock gave."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .capture import state_file
from .codec import caches_of, decode, float_tensors, positions

Tensors = dict[str, torch.Tensor]


class Weights:
    """The captured weights of one model, each loaded once, put into the modules of a model on the meta device."""

    def __init__(self, model: Any, folder: Path, device: torch.device) -> None:
        self.model, self.folder, self.device = model, folder, device
        self._there: set[str] = set()

    def module(self, path: str, owners: list[str], answers: list[str]) -> Any:
        """Return the module at ``path`` with the weights of ``owners`` in place and stand-ins for some children."""
        for owner in owners:
            self._load(owner)
        module = self.model.get_submodule(path)
        if not answers:
            return module.eval()
        partial = copy.copy(module)
        partial.__dict__["_modules"] = dict(module._modules)
        for name in answers:
            partial._modules[name] = Answer(module._modules[name])
        return partial

    def _load(self, owner: str) -> None:
        from safetensors.torch import load_file

        if owner in self._there:
            return
        self._there.add(owner)
        module = self.model.get_submodule(owner)
        module.training = False
        for name, value in load_file(state_file(self.folder, owner)).items():
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(value.to(self.device), requires_grad=False)
            else:
                module._buffers[name] = value.to(self.device)


class Answer(nn.Module):
    """Stands for a child whose weights were not captured: it gives the captured answers, in order.

    What else is asked of it is the child's, which is on the meta device.
    """

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.__dict__["child"] = child
        self.__dict__["answers"] = []
        self.training = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["child"], name)

    def __deepcopy__(self, memo: Any) -> Answer:
        return Answer(self.__dict__["child"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next captured answer."""
        answers = self.__dict__["answers"]
        if not answers:
            raise LookupError(f"a {type(self.__dict__['child']).__name__} was called more often than when captured")
        return answers.pop(0)


class Call:
    """One captured call, ready to be made again on this device."""

    def __init__(self, weights: Weights, file: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(file, "pt") as opened:
            self.layout = json.loads(opened.metadata()["call"])
        loaded = load_file(file)  # in an order of the file's own: by dtype
        self.tensors: Tensors = {name: loaded[name].to(weights.device) for name in sorted(loaded, key=_number)}
        owner, _, method = self.layout["qualname"].partition(".")
        self.module: Any = None
        self.home, self.name = sys.modules.get(self.layout["module"]), owner
        if method:
            answers = sorted(self.layout["answers"])
            self.module = weights.module(self.layout["path"], self.layout["owners"], answers)
            self.name = method
        want = decode(self.layout["result"], self.tensors), decode(self.layout["after"], self.tensors)
        self.want = float_tensors(self._asked_for(want[0])) + float_tensors(want[1], caches=True)

    @property
    def timed_as(self) -> str:
        """What is timed once: several positions, one, and one into a static cache, which has ops of its own."""
        args, kwargs = self.prepared()[0]
        caches = [type(cache).__name__ for cache in caches_of([args, kwargs])]
        one = positions(args, kwargs) == 1
        return f"{one} {one and any('Static' in name for name in caches)}"

    def prepared(self, tensors: Tensors | None = None) -> Any:
        """Return fresh arguments and answers: a cache that was updated or written to would not be the captured one."""
        found = self.tensors if tensors is None else tensors
        answers = {name: decode({"list": items}, found) for name, items in self.layout["answers"].items()}
        return decode(self.layout["arguments"], found), answers

    def make(self, prepared: Any, module: Any = None) -> Any:
        """Make the call with what `prepared` returned, on ``module`` in place of the captured one."""
        (args, kwargs), answers = prepared
        module = self.module if module is None else module
        for name, found in answers.items():
            module._modules[name].__dict__["answers"] = list(found)
        return getattr(self.home if module is None else module, self.name)(*args, **kwargs)

    def result(self) -> Any:
        """Make the call and return what it returns."""
        return self.make(self.prepared())

    def run(self, tensors: Tensors | None = None, module: Any = None) -> list[torch.Tensor]:
        """Make the call and return its float results, and those in the caches that it writes to, after it."""
        prepared = self.prepared(tensors)
        result = self.make(prepared, module)
        written = list(caches_of(prepared[0])) if self.layout["after"]["list"] else []
        return float_tensors(self._asked_for(result)) + float_tensors(written, caches=True)

    def _asked_for(self, result: Any) -> Any:
        """Leave out attention's weights: stock's eager function always gives them, an overlaid one when asked to."""
        _, kwargs = decode(self.layout["arguments"], self.tensors)
        owner = self.layout["qualname"].partition(".")[0]
        if not owner.endswith("Attention") or not isinstance(result, tuple) or kwargs.get("output_attentions"):
            return result
        return result[0], *(one for one in result[1:] if not _is_weights(one))

    def double(self, tensors: Tensors | None = None) -> list[torch.Tensor]:
        """Make the call in double precision."""
        given = _map(self.tensors if tensors is None else tensors, lambda name, value: value.double())
        return self.run(given, None if self.module is None else copy.deepcopy(self.module).double())

    def edge(self, factor: float) -> Tensors:
        """Return the tensors with the first float one scaled: the hidden states, or the queries."""
        first = next((name for name, value in self.tensors.items() if value.is_floating_point()), None)
        return _map(self.tensors, lambda name, value: value * factor if name == first else value)


def _is_weights(value: Any) -> bool:
    """True for [B, H, S, Sk], the shares that each query gives to the keys."""
    return isinstance(value, torch.Tensor) and value.dim() == 4


def _number(name: str) -> int:
    return int(name.removeprefix("t"))


def _map(tensors: Tensors, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Tensors:
    return {name: change(name, value) if value.is_floating_point() else value for name, value in tensors.items()}
