"""The computation of a program in a form that names, shapes, order of statements and parameters do not change.

Recorded are the aten operators of one run. A node is an operator and the nodes it reads; what only moves values about
(views, copies) is left out, what depends on no input is a constant, and constants and weights are all ``w``. Operators
that are shorthand are written out (silu is ``x * sigmoid(x)``), commutative ones read their inputs in sorted order, and
the same operator on the same values is one node, however often it is written down.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHT, INPUT = "w", "input"
MOST_NODES_COMPARED = 48
DEPTH = 3

# Values keep their content: the node is its input.
_MOVES = frozenset([
    "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand",
    "clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "lift", "movedim", "flatten", "unflatten",
    "native_dropout", "dropout", "view_as", "_conj",
])  # fmt: skip
_SYNONYMS = {
    "addmm": "matmul", "mm": "matmul", "bmm": "matmul", "mv": "matmul", "dot": "matmul", "linear": "matmul",
    "matmul": "matmul", "baddbmm": "matmul", "mkldnn_linear": "matmul",
    "_softmax": "softmax", "_log_softmax": "log_softmax",
    "amax": "max", "amin": "min", "clamp_min": "clamp", "clamp_max": "clamp", "hardtanh": "clamp",
    "native_batch_norm": "batch_norm", "_native_batch_norm_legit": "batch_norm", "cudnn_batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm", "_batch_norm_no_update": "batch_norm",
    "_native_batch_norm_legit.no_stats": "batch_norm",
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm",
    "rsub": "sub", "_adaptive_avg_pool2d": "mean", "_adaptive_avg_pool3d": "mean", "adaptive_avg_pool1d": "mean",
    "max_pool2d_with_indices": "max_pool2d", "max_pool3d_with_indices": "max_pool3d",
    "mkldnn_max_pool2d": "max_pool2d", "mkldnn_max_pool3d": "max_pool3d",
}  # fmt: skip
_COMMUTATIVE = frozenset(["add", "mul", "maximum", "minimum", "logaddexp", "hypot", "eq", "ne", "fmax", "fmin"])


class Node:
    """An operator and what it reads; nodes of one key are one object."""

    __slots__ = ("children", "label")

    def __init__(self, label: str, children: tuple[Node, ...] = ()) -> None:
        self.label, self.children = label, children


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Records the graph while it is active. ``site`` is put on every node that is made: whoever sets it, knows why."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._nodes: dict[int, Node] = {}
        self._kept: list[torch.Tensor] = []  # ids stay taken while the tensors live
        self._interned: dict[tuple[Any, ...], Node] = {}
        self._weights: dict[tuple[int, int], Node] = {}
        self.constant = Node(WEIGHT)
        self.site: Any = None
        self.sites: dict[int, set[Any]] = {}

    def take(self, value: torch.Tensor) -> None:
        """Note an input."""
        self._set(value, Node(INPUT))

    def _set(self, value: torch.Tensor, node: Node) -> None:
        self._nodes[id(value)] = node
        self._kept.append(value)

    def node(self, value: torch.Tensor) -> Node:
        """Return a value's node; a value from elsewhere is a weight, told from others by its memory."""
        found = self._nodes.get(id(value))
        if found is None:
            found = self._weights.setdefault(_identity(value), Node(WEIGHT))
            self._set(value, found)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        if made:
            name = func.overloadpacket.__name__
            read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
            numbers = [one for one in tree_leaves((args, kwargs)) if isinstance(one, int | float | bool)]
            self._record(name, func, args, read, numbers, made)
        return result

    def _record(self, name: str, func: Any, args: Any, read: list[Any], numbers: list[Any], made: list[Any]) -> None:
        base = name[:-1] if name.endswith("_") and not name.startswith("_") else name
        children = [self.node(one) for one in read]
        if not any(one.label != WEIGHT for one in children):
            for one in made:
                if id(one) not in self._nodes:
                    self._set(one, self.constant if not children else self._fold(base, children, numbers))
            return
        if base in ("copy", "fill", "zero") and made[0] is args[0]:
            source = self.node(read[1]) if len(read) > 1 else self.constant
            self._set(made[0], source)
            return
        if base in _MOVES and self._nodes.get(id(made[0])) is None:
            self._set(made[0], children[0])
            return
        node = self._written_out(_label(base, args), children, numbers, args)
        for index, one in enumerate(made):
            part = node if index == 0 else self._make("part", (node,), (index,))
            self._set(one, part)

    def _fold(self, base: str, children: list[Node], numbers: list[Any]) -> Node:
        """A value that depends on no input: a weight of its own, the same for the same recipe."""
        key = ("fold", base, *(id(one) for one in children), *map(str, numbers))
        return self._interned.setdefault(key, Node(WEIGHT))

    def _make(self, label: str, children: tuple[Node, ...], key: tuple[Any, ...]) -> Node:
        parts = sorted(map(id, children)) if label in _COMMUTATIVE else [id(one) for one in children]
        node = self._interned.setdefault((label, *parts, *map(str, key)), Node(label, children))
        self.sites.setdefault(id(node), set()).add(self.site)
        return node

    def _written_out(self, label: str, children: list[Node], numbers: list[Any], args: Any) -> Node:
        x = children[0]
        key = tuple(numbers)

        def step(name: str, *read: Node, more: tuple[Any, ...] = ()) -> Node:
            return self._make(name, read, more)

        if label == "silu":
            return step("mul", x, step("sigmoid", x))
        if label == "hardswish":
            return step("mul", x, step("hardsigmoid", x))
        if label == "mish":
            return step("mul", x, step("tanh", step("softplus", x)))
        if label in ("matmul", "convolution", "conv") or label.startswith("conv"):
            # A bias travels with its product.
            data = [one for one in children if one.label != WEIGHT]
            weights = [one for one in children if one.label == WEIGHT]
            return self._make(label, (*data, *weights[:1]), (*(id(one) for one in weights[1:]), *key))
        if label.endswith("_norm"):
            read = tuple(one for one in children if one.label != WEIGHT)
            return self._make(label, read, (*(id(one) for one in children if one.label == WEIGHT), *key))
        if label in ("add", "sub", "mul", "div") and len(children) == 1:
            children = [x, self.constant]
        if label == "sub" and children[1].label == WEIGHT:
            label = "add"
        if label == "div" and children[1].label == WEIGHT:
            label = "mul"
        return self._make(label, tuple(children), key)


def _label(base: str, args: Any) -> str:
    """Return the name of an operator without the differences that are one of implementation, with those of kind."""
    if base == "convolution" or base in ("mkldnn_convolution", "conv2d", "conv1d", "conv3d", "_convolution"):
        dims = args[0].dim() - 2
        transposed = base in ("convolution", "_convolution") and bool(args[6])
        return f"conv{'_transpose' if transposed else ''}{dims}d"
    if base in ("max", "min") and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return f"{base}imum"
    if base.startswith("_scaled_dot_product"):
        return "attention"
    return _SYNONYMS.get(base, base)


def _identity(value: torch.Tensor) -> tuple[int, int]:
    """Where a value lies; a fake tensor, which has no memory, has a storage all the same."""
    return value.untyped_storage()._cdata, int(value.storage_offset())


def live(results: list[Node]) -> list[Node]:
    """Return the operators that results depend on, each once, inputs first."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [(one, False) for one in reversed(results)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in reversed(node.children)]
    return order


def canonical(results: list[Node]) -> dict[str, Any]:
    """Return ``{"digest", "nodes", "features", "parts"}`` of a graph.

    ``digest`` is the same for the same computation. ``features`` are digests of every operator with what it reads, one,
    two and three steps back, each with its number; a graph of more than MOST_NODES_COMPARED operators has none.
    ``parts`` are the graphs of single results where there are several: one of them may be what the whole is not.
    """
    parts = [_canonical([one]) for one in results] if len(results) > 1 else []
    return {**_canonical(results), "parts": parts}


def _canonical(results: list[Node]) -> dict[str, Any]:
    nodes = live(results)
    whole: dict[int, str] = {}
    for node in nodes:
        whole[id(node)] = _hash(node, whole)
    operators = [one for one in nodes if one.children]
    ends = sorted(whole[id(one)] for one in results)
    digest = _short("|".join([*ends, *sorted(whole[id(one)] for one in operators)]), 24)
    features: Counter[str] = Counter()
    if len(operators) <= MOST_NODES_COMPARED:
        views = {id(node): node.label for node in nodes}
        for depth in range(DEPTH):
            features.update(_short(f"{depth}:{views[id(one)]}", 10) for one in operators)
            views = {id(node): _hash(node, views) for node in nodes}
    return {"digest": digest, "nodes": len(operators), "features": dict(sorted(features.items()))}


def _hash(node: Node, known: dict[int, str]) -> str:
    if not node.children:
        return node.label
    parts = [known[id(one)] for one in node.children]
    return _short(f"{node.label}({','.join(sorted(parts) if node.label in _COMMUTATIVE else parts)})", 20)


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:length]
