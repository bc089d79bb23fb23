"""What a class builds in ``__init__``: enough to leave alone an attribute that is plainly not a linear layer."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from .flow import walk
from .source import Function, Source

_LINEAR = frozenset(("nn.Linear", "torch.nn.Linear", "Linear"))


def not_linear(source: Source, function: Function, attributes: Iterable[str]) -> str | None:
    """Say which of ``self.<attribute>`` is built as something else than ``nn.Linear``, or None.

    A class without an ``__init__`` of its own says nothing, and neither does this: what the module really is, is looked
    at when it runs.
    """
    init = source.function("__init__", function.owner)
    if init is None:
        return None
    wanted = set(attributes)
    for node in walk(init.node.body):
        if not isinstance(node, cst.Assign):
            continue
        for target in node.targets:
            name = _own_attribute(target.target)
            if name in wanted and _callee(source, node.value) not in _LINEAR:
                return f"self.{name} is not built as nn.Linear"
    return None


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
