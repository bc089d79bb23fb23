"""Whether anything that a plan was made from has changed: a few passes over flat lists, once per forward of the model.

Nothing is held that would outlive its owner: modules are known by weak references, parameters by identity, address,
size and stride. What is compared is what stock's own statements would read at this very forward: hooks, ``forward`` and
compiled calls on instances, types and the functions of their classes, children, parameters, the numbers that forwards
read from ``self``, and whether a module is in training mode.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from itertools import chain, compress, repeat
from typing import Any

from torch import Tensor, nn

from ..modules import is_patched, watched_globally

_hooks = operator.itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_children = operator.itemgetter("_modules")
_parameters = operator.itemgetter("_parameters")
_training = operator.itemgetter("training")
_config = operator.itemgetter("config")
_has = dict.__contains__
_values = dict.values
_is = operator.is_

REPLACED = "a module was replaced"


class Watch:
    """A snapshot of modules, and what has become of it.

    ``layers`` are the modules of the loop, all other ``modules`` are below them. ``numbers`` are (module, names of
    attributes) that their forwards read, ``modal`` the modules to which it matters whether they
    are in training mode, ``configured`` those that read their configuration. ``gone`` is called when one of the modules
    is freed.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        modules: Sequence[nn.Module],
        numbers: Sequence[tuple[nn.Module, tuple[str, ...]]],
        modal: Sequence[nn.Module],
        configured: Sequence[nn.Module],
        gone: Callable[[], None],
    ) -> None:
        self._refs = [weakref.ref(module, lambda _: gone()) for module in modules]
        self._layer_ids = [*map(id, layers)]
        watched = set(map(id, modules))
        self._owners = [module.__dict__ for module in modules if module._modules]
        children = self._found(_children, self._owners)
        self._child_ids = [*map(id, children)]
        self._kept = [id(child) in watched for child in children]
        listed: list[Any] = [*layers, *compress(children, self._kept)]
        self._dicts: list[dict[str, Any]] = [module.__dict__ for module in listed]
        self._types = list(map(type, listed))
        self._classes: list[Any] = list(dict.fromkeys(self._types))
        self._functions = self._of_classes()
        self._holders = [module.__dict__ for module in modules if module._parameters]
        parameters = self._found(_parameters, self._holders)
        self._parameter_ids = [*map(id, parameters)]
        self._present = [parameter is not None for parameter in parameters]
        tensors = [*compress(parameters, self._present)]
        self._dense = all(map(Tensor.is_contiguous, tensors))
        self._places = self._where(tensors)
        self._modal, self._configured = [m.__dict__ for m in modal], [m.__dict__ for m in configured]
        self._configs = [*map(_config, self._configured)]
        self._numbers = [(module.__dict__, operator.itemgetter(*names, names[0])) for module, names in numbers]
        self._values = self._read()

    @staticmethod
    def _found(part: Callable[[dict[str, Any]], dict[str, Any]], owners: list[dict[str, Any]]) -> list[Any]:
        return [*chain.from_iterable(map(_values, map(part, owners)))]

    def _of_classes(self) -> list[Any]:
        return [part for one in self._classes for part in (one.forward, one.__call__, one._call_impl)]

    def _where(self, tensors: list[Tensor]) -> list[Any]:
        """Address, size and stride of all; where all are contiguous, that they are says their strides."""
        strides: Any = all(map(Tensor.is_contiguous, tensors)) if self._dense else [*map(Tensor.stride, tensors)]
        return [strides, *map(Tensor.data_ptr, tensors), *map(Tensor.size, tensors)]

    def _read(self) -> list[Any]:
        return [names(one) for one, names in self._numbers]

    def forget(self) -> None:
        """Let go of everything: the attributes of a module hold its parameters."""
        for kept in (self._dicts, self._owners, self._holders, self._modal, self._configured, self._numbers):
            kept.clear()

    def changed(self, layers: Sequence[Any]) -> str:
        """Return "" or the first thing that is not what it was; raises where a parameter has no storage.

        ``layers`` are the modules that the loop would run through now. A dictionary of attributes is compared whole,
        which stops at its identity while it is the same one.
        """
        if [*map(id, layers)] != self._layer_ids:
            return REPLACED
        children, dicts = self._found(_children, self._owners), self._dicts
        if [*map(id, children)] != self._child_ids:
            return REPLACED
        modules = [*layers, *compress(children, self._kept)]
        if [*map(type, modules)] != self._types:
            return "a module's class was replaced"
        if [*map(vars, modules)] != dicts:
            return "a module's attributes were exchanged"
        if any(map(any, map(_hooks, dicts))) or watched_globally():
            return "a hook is registered"
        if any(map(_has, dicts, repeat("forward"))) and any(map(is_patched, modules)):
            return "a forward was patched"
        if any(map(_has, dicts, repeat("_compiled_call_impl"))):
            return "a module was compiled"
        if self._of_classes() != self._functions:
            return "a class's own forward or call was replaced"
        if any(map(_training, self._modal)):
            return "a module is in training mode"
        parameters = self._found(_parameters, self._holders)
        if [*map(id, parameters)] != self._parameter_ids:
            return "a parameter was replaced, added or removed"
        if self._where([*compress(parameters, self._present)]) != self._places:
            return "a parameter moved"
        if self._read() != self._values:
            return "a number that a forward reads was changed"
        if not all(map(_is, map(_config, self._configured), self._configs)):
            return "a configuration was replaced"
        return ""
