"""What a class builds in ``__init__``: enough to leave alone an attribute that is plainly not what a recipe needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import libcst as cst

from .flow import walk
from .source import Function, Source

_LINEAR = frozenset(("nn.Linear", "torch.nn.Linear", "Linear"))


def not_linear(source: Source, function: Function, attributes: Iterable[str]) -> str | None:
    """Say which of ``self.<attribute>`` is built as something else than ``nn.Linear``, or None.

    A class without an ``__init__`` of its own says nothing, and neither does this: what the module really is, is looked
    at when it runs.
    """
    wanted = set(attributes)
    for name, callee in _built(source, function):
        if name in wanted and callee not in _LINEAR:
            return f"self.{name} is not built as nn.Linear"
    return None


def built_as(source: Source, function: Function, attribute: str) -> str | None:
    """Name the one callable that ``__init__`` builds ``self.<attribute>`` with, None where that cannot be seen."""
    callees = {callee for name, callee in _built(source, function) if name == attribute}
    return callees.pop() if len(callees) == 1 else None


def _built(source: Source, function: Function) -> Iterator[tuple[str, str | None]]:
    """(attribute, callee) of every ``self.<attribute> = ...`` in the class's ``__init__``."""
    init = source.function("__init__", function.owner)
    if init is None:
        return
    for node in walk(init.node.body):
        if not isinstance(node, cst.Assign):
            continue
        for target in node.targets:
            name = _own_attribute(target.target)
            if name is not None:
                yield name, _callee(source, node.value)


def _own_attribute(target: cst.BaseExpression) -> str | None:
    if isinstance(target, cst.Attribute) and isinstance(target.value, cst.Name) and target.value.value == "self":
        return target.attr.value
    return None


def _callee(source: Source, value: cst.BaseExpression) -> str | None:
    return source.code(value.func) if isinstance(value, cst.Call) else None


def is_scripted(function: Function) -> bool:
    """True for a function that TorchScript compiles: it could not see our module-level name."""
    return any(
        isinstance(node, cst.Attribute) and node.attr.value in ("script", "script_if_tracing")
        for decorator in function.node.decorators
        for node in walk(decorator.decorator)
    )
