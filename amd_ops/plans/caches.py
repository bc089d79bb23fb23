"""The key-value caches of transformers that a plan may write into itself: what their ``update`` does, and nothing more.

A static layer is two writes at a position. A dynamic layer copies all its keys and values at every token in stock; here
it gets a buffer with room behind it, and ``keys`` and ``values`` are views of its beginning: what stock would hand out.
It is written in place only where the layer still holds exactly the views that were made for it.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

HOME = "transformers.cache_utils"
_LEAST_ROOM = 64
_WRITE = """
try:
    self.keys.index_copy_(2, cache_position, key_states)
    self.values.index_copy_(2, cache_position, value_states)
except NotImplementedError:
    self.keys[:, :, cache_position] = key_states
    self.values[:, :, cache_position] = value_states
return (self.keys, self.values)
"""
_KNOWN = {
    "Cache": (
        """
keys, values = self.layers[layer_idx].update(key_states, value_states, cache_kwargs)
return (keys, values)
""",
        """
keys, values = self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)
return (keys, values)
""",
    ),
    "DynamicLayer": (
        """
self.keys = torch.cat([self.keys, key_states], dim=-2)
self.values = torch.cat([self.values, value_states], dim=-2)
return (self.keys, self.values)
""",
    ),
    "StaticLayer": (
        """
cache_position = cache_kwargs.get('cache_position') if cache_kwargs is not None else None
cache_position = cache_position if cache_position is not None \
else torch.arange(key_states.shape[-2], device=self.device)
"""
        + _WRITE,
        """
kv_length = key_states.shape[-2]
cache_position = torch.arange(kv_length, device=self.device) + self.cumulative_length
self.cumulative_length.add_(kv_length)
"""
        + _WRITE,
    ),
}
"""What ``update`` does, in every release from 4.56 to 5.24, for a layer that has been initialised and is not offloaded:
any other text is not written around."""
_ASIDE = (
    "self.keys is None",
    "not self.is_initialized",
    "self.layer_class_to_replicate is not None",
    "self.offloading",
)


class Slack:
    """The buffers of one dynamic layer. A copy or a pickle of the layer carries none."""

    __slots__ = ("key_buffer", "keys", "owner", "value_buffer", "values")

    def __init__(self, owner: int, key_buffer: Tensor, value_buffer: Tensor) -> None:
        self.owner, self.key_buffer, self.value_buffer = owner, key_buffer, value_buffer
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __copy__(self) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def kinds(cache: Any, count: int) -> list[str]:
    """Return "static", "dynamic" or "" per layer of ``cache``: "" is asked by its own ``update``.

    Only transformers' own cache and layers, by the very functions that its module defines.
    """
    layers = getattr(cache, "layers", None)
    if layers is None or len(layers) < count or not _is_stocks(type(cache), "Cache") or "update" in vars(cache):
        return [""] * count
    if getattr(cache, "offloading", False):
        return [""] * count
    known: dict[type, str] = {}
    for one in set(map(type, layers)):
        name = "static" if _is_stocks(one, "StaticLayer") else "dynamic" if _is_stocks(one, "DynamicLayer") else ""
        known[one] = name
    return [known[type(layer)] if "update" not in vars(layer) and _begun(layer) else "" for layer in layers[:count]]


def _begun(layer: Any) -> bool:
    """Whether the layer has its first keys; releases before 4.57 do not write that down."""
    return bool(getattr(layer, "is_initialized", layer.keys is not None))


def _is_stocks(kind: type, name: str) -> bool:
    """Whether ``kind.update`` is the function that transformers' own class ``name`` was written with."""
    home = sys.modules.get(HOME)
    if home is None or kind.__module__ != HOME:
        return False
    function: Any = getattr(kind, "update", None)
    code = getattr(function, "__code__", None)
    theirs: Any = getattr(getattr(home, name, None), "update", None)
    if code is None or theirs is not function:
        return False
    own = code.co_filename == home.__file__ and theirs.__qualname__ == f"{name}.update"
    return own and not hasattr(function, "__wrapped__") and _does(function, name)


@lru_cache(maxsize=16)
def _does(function: Any, name: str) -> bool:
    """Whether the function's statements are known: those of a later release may do more than to write."""
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):  # an installation without sources: nothing is known
        return False
    assert isinstance(found, ast.FunctionDef)
    body = [one for one in found.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    body = [one for one in body if not (isinstance(one, ast.If) and ast.unparse(one.test) in _ASIDE and not one.orelse)]
    return "\n".join(map(ast.unparse, body)) in {ast.unparse(ast.parse(text)) for text in _KNOWN[name]}


def room(layer: Any, k: Tensor, v: Tensor) -> tuple[Slack, int] | None:
    """Return buffers of a dynamic layer that take the new k and v [B, H, n, D] behind its own rows, and how many those
    are; None where stock's update must run.
    """
    keys, values = layer.keys, layer.values
    if type(keys) is not Tensor or type(values) is not Tensor or keys.dim() != 4 or values.dim() != 4:
        return None
    if keys.dtype is not k.dtype or values.dtype is not v.dtype or keys.device != k.device or keys.requires_grad:
        return None
    rows, new, inference = keys.shape[2], k.shape[2], torch.is_inference_mode_enabled()
    slack = layer.__dict__.get("_amd_slack")
    if (
        type(slack) is Slack
        and slack.owner == id(layer)
        and slack.keys is keys
        and slack.values is values
        and rows + new <= slack.key_buffer.shape[2]
        and (inference or not slack.key_buffer.is_inference())
    ):
        return slack, rows
    if keys.shape[:2] != k.shape[:2] or values.shape[:3] != (*v.shape[:2], rows) or keys.shape[3] != k.shape[3]:
        return None
    size = rows + new + max(_LEAST_ROOM, (rows + new) // 8)
    slack = Slack(
        id(layer), k.new_empty((*k.shape[:2], size, k.shape[3])), v.new_empty((*v.shape[:2], size, v.shape[3]))
    )
    slack.key_buffer.narrow(2, 0, rows).copy_(keys)
    slack.value_buffer.narrow(2, 0, rows).copy_(values)
    layer.__dict__["_amd_slack"] = slack
    return slack, rows


def grown(layer: Any, slack: Slack, rows: int) -> tuple[Tensor, Tensor]:
    """Let the layer hold the first ``rows`` rows of its buffers, and return them."""
    slack.keys = layer.keys = slack.key_buffer.narrow(2, 0, rows)
    slack.values = layer.values = slack.value_buffer.narrow(2, 0, rows)
    return slack.keys, slack.values
