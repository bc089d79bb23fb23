"""The adapter between transformers' attention interface and our attention op.

Only transformers' own sdpa function and eager functions of known forms are replaced; whatever else a model uses is
called as it is, with a counted reason. The stock names stay, so transformers builds the masks it would build anyway.

Where stock semantics are odd they are kept: sdpa does not honour a soft cap (transformers 4 ignores it, 5 raises),
ignores the window argument (the mask has it) and counts causality from the first key when there is no mask; eager adds
its mask and knows no causality of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import modes
from ..dispatch import Site
from ..frozen import is_plain
from ..modules import attention_is_torchs, is_patched, lives_in, original, watched_globally
from ..ops.attention import Call, op, traced_op
from ..ops.sink_attention import op as sink_op
from ..ops.sink_attention import sink_attention

Interface = Callable[..., tuple[Tensor, Tensor | None]]

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("route_attention", "routed", lambda settings: settings.asked("USE_AITER_ATTENTION"))
_routes: dict[int, tuple[Interface, str, Interface]] = {}
"""By the stock function's id, which is kept alive: (function, name, route). Wrappers are equal to what they wrap."""

# Every name that the known eager functions use; one that uses another (a bias, sinks, another softmax) is not known.
_EAGER_NAMES = frozenset(
    [
        "repeat_kv",
        "num_key_value_groups",
        "torch",
        "matmul",
        "transpose",
        "shape",
        "nn",
        "functional",
        "softmax",
        "float32",
        "to",
        "dtype",
        "dropout",
        "training",
        "contiguous",
        "head_dim",
        "tanh",
    ]
)

# And those of the one that knows sinks, which are the module's own.
_SINK_NAMES = _EAGER_NAMES | {"sinks", "reshape", "expand", "cat", "max", "values", "F"}

# Every parameter of a stock function that is honoured here or given back to it; any other one asks for something that
# the op does not know (transformers 5 adds a position bias of T5 and the cache of continuous batching).
_KNOWN = frozenset(
    [
        "module",
        "query",
        "key",
        "value",
        "attention_mask",
        "dropout",
        "scaling",
        "is_causal",
        "softcap",
        "head_mask",
        "output_attentions",
        "s_aux",
    ]
)
_SDPA_HOME = "transformers.integrations.sdpa_attention"
# Those of transformers' sdpa function, for a trace, which cannot look at a signature.
_UNKNOWN_TO_SDPA = ("position_bias", "cache")


def route_attention(module: nn.Module, stock_interface: Interface) -> Interface:
    """Return what an attention module should call in place of ``stock_interface``: our route, or that interface itself.

    The returned callable has transformers' signature, (module, query [B, H, S, D], key, value, attention_mask,
    **kwargs) -> (output [B, S, H, D] contiguous, weights or None).

    Examples:
        >>> def mine(module, query, key, value, attention_mask, **more):
        ...     return query.transpose(1, 2), None
        >>> amd_ops.route_attention(nn.Module(), mine) is mine  # an interface that is not transformers' own stays
        True
    """
    if _compiling():
        return _traced_route(stock_interface)
    reason = modes.hidden()
    if reason:
        _site.declined(reason)
        return stock_interface
    known = _routes.get(id(stock_interface))
    if known is not None and known[0] is stock_interface:
        if original(stock_interface, known[1]) and attention_is_torchs():
            return known[2]
    else:
        kind = _kind(module, stock_interface)
        if kind and attention_is_torchs():
            made = _sdpa_route if kind == "sdpa" else functools.partial(_eager_route, kind=kind)
            route = made(stock_interface)
            _routes[id(stock_interface)] = stock_interface, stock_interface.__name__, route
            return route
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    _site.declined(f"attention implementation {name!r} is not transformers' own sdpa or a known eager function")
    return stock_interface


def _kind(module: nn.Module, interface: Interface) -> str:
    """Recognise a stock function: ``sdpa``, ``eager``, ``eager with soft cap`` or ``with sinks``, "" for any other."""
    if _is_sdpa(interface):
        return "sdpa"
    function: Any = interface
    if not original(function, "eager_attention_forward"):
        return ""
    home = str(function.__globals__["__name__"])
    if not home.startswith("transformers.models.") and home != type(module).__module__:
        return ""
    names = set(function.__code__.co_names)
    if "sinks" in names:
        known = names <= _SINK_NAMES - {"float32", "tanh"} and {"softmax", "matmul", "cat", "max"} <= names
        return "eager with sinks" if known else ""
    if not names <= _EAGER_NAMES or not {"softmax", "float32", "matmul"} <= names:
        return ""
    return "eager with soft cap" if "tanh" in names else "eager"


def _is_sdpa(interface: Any) -> bool:
    """Run outside a trace: which function it is, is a constant of the graph (guarded by dynamo itself)."""
    return lives_in(interface, _SDPA_HOME) and original(interface, "sdpa_attention_forward") and attention_is_torchs()


_is_sdpa._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unknown_parameters(stock: Interface) -> tuple[str, ...]:
    parameters = inspect.signature(stock).parameters.values()
    return tuple(one.name for one in parameters if one.name not in _KNOWN and one.kind is not one.VAR_KEYWORD)


def _sdpa_route(stock: Interface) -> Interface:
    unknown = _unknown_parameters(stock)

    def route(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        causal = kwargs.get("is_causal")
        reason = _unroutable(module, query, key, attention_mask, args, kwargs, unknown)
        if not reason and kwargs.get("softcap") is not None:
            reason = "the model asks sdpa for a soft cap, which stock sdpa does not honour: it would be another model"
        if not reason and attention_mask is not None and causal:
            reason = "sdpa was given a mask and is_causal together"
        if reason:
            _site.declined(reason)
            return stock(module, query, key, value, attention_mask, *args, **kwargs)
        rows, columns = query.shape[2], key.shape[2]
        if attention_mask is not None:
            causal = False
        elif causal is None:
            causal = rows > 1 and getattr(module, "is_causal", True)
        if causal and rows != columns:
            # torch aligns at the first key here (transformers 5 relies on it for an empty static cache, and lets a
            # single query see every key).
            if rows == 1 or rows > columns or not op.can("aiter"):
                _site.declined("causality is counted from the first key (q_len != k_len, no mask): torch does that")
                return stock(module, query, key, value, attention_mask, *args, **kwargs)
            key, value = key[:, :, :rows], value[:, :, :rows]
        return _run(module, query, key, value, attention_mask, bool(causal), None, kwargs), None

    return route


def _traced_route(stock: Interface) -> Interface:
    """The sdpa route inside a trace, without counters, where a foreign kernel may run; else torch's own function."""
    if not _is_sdpa(stock) or not traced_op.opaque():
        return stock

    def route(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        given, rows = kwargs.get("is_causal"), query.shape[2]
        causal = attention_mask is None and rows > 1 and getattr(module, "is_causal", True) if given is None else given
        skip = (
            _unroutable(module, query, key, attention_mask, args, kwargs, _UNKNOWN_TO_SDPA)
            or kwargs.get("softcap") is not None
        )
        if skip or (causal and (attention_mask is not None or rows != key.shape[2])):
            return stock(module, query, key, value, attention_mask, *args, **kwargs)
        layer = getattr(module, "layer_idx", None)
        call = (kwargs.get("scaling"), bool(causal), attention_mask, 0.0, None, None, None, layer)
        return traced_op.call(query, key, value, *call), None

    return route


def _eager_route(stock: Interface, kind: str) -> Interface:
    unknown = _unknown_parameters(stock)
    capped, sunk = kind == "eager with soft cap", kind == "eager with sinks"

    def route(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        sinks = getattr(module, "sinks", None) if sunk else None
        asked = kwargs
        if sinks is not None and kwargs.get("s_aux") is sinks:
            asked = {**kwargs, "s_aux": None}  # the function reads them from the module
        reason = _unroutable(module, query, key, attention_mask, args, asked, unknown) or _weights_wanted(module)
        if not reason and attention_mask is not None and attention_mask.dtype is not query.dtype:
            reason = f"the eager mask is {attention_mask.dtype}, not the queries' dtype"
        if not reason and kwargs.get("scaling") is None:
            reason = "no scaling was given"
        if not reason:
            reason = _eager_only(query, key, value) or (_unsinkable(query, sinks) if sunk else "")
        if reason:
            _site.declined(reason)
            return stock(module, query, key, value, attention_mask, *args, **kwargs)
        if sinks is not None and query.shape[2] == 1:
            _site.fast.calls += 1
            return sink_attention(
                query, key, value, sinks, scaling=kwargs["scaling"], attention_mask=attention_mask
            ), None
        softcap = kwargs.get("softcap") if capped else None
        return _run(module, query, key, value, attention_mask, False, softcap, kwargs, sinks), None

    return route


def _unsinkable(query: Tensor, sinks: Any) -> str:
    """Why a call with sinks stays stock's: where no kernel knows them, its own formula is the model's."""
    if not is_plain(sinks) or sinks.shape != query.shape[1:2]:
        return "the model has attention sinks that are no plain parameter of one number per head"
    if torch.is_grad_enabled() and sinks.requires_grad:
        return "gradients of the attention sinks are wanted"
    if query.shape[2] == 1:
        return "" if sink_op.can("triton") else "the model has attention sinks, which need tier triton at a decode step"
    return "" if op.can("aiter") else "the model has attention sinks, which need tier aiter in a prompt"


def _run(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    softcap: float | None,
    kwargs: dict[str, Any],
    sinks: Tensor | None = None,
) -> Tensor:
    _site.fast.calls += 1
    op.calls += 1
    if torch.is_autocast_enabled(query.device.type) and query.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(query.device.type)  # SDPA's own choice; no other route gets here
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    call = Call(getattr(module, "layer_idx", None))
    result: Tensor = op.call(query, key, value, kwargs.get("scaling"), causal, mask, 0.0, None, softcap, sinks, call)
    return result


def _unroutable(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    unknown: tuple[str, ...],
) -> str:
    """What both kinds leave to the stock function."""
    for name in unknown:
        if kwargs.get(name) is not None:
            return f"the model passes {name!r}, which our op does not know"
    if args:
        return "positional arguments after the mask"
    if kwargs.get("dropout"):
        return "dropout is on"
    if kwargs.get("output_attentions") or kwargs.get("head_mask") is not None:
        return "attention weights or a head mask were asked for"
    if kwargs.get("s_aux") is not None:
        return "the model has attention sinks"
    reason = modes.unlike(query)
    if reason:
        return reason
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4):
        return "the mask is not a tensor [B, 1, Sq, Sk]"
    if query.shape[1] != key.shape[1] * getattr(module, "num_key_value_groups", 1):
        return "the heads of query and key do not fit num_key_value_groups"
    return ""


def _eager_only(query: Tensor, key: Tensor, value: Tensor) -> str:
    """Where the plain formula cannot be replaced. A padded query sees no key at all: under the eager mask its weights
    are uniform, which SDPA's backward does not know, nor SDPA under autocast.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients through eager attention are those of its own formula"
    if torch.is_autocast_enabled(query.device.type):
        return "autocast would round the eager mask"
    return ""


def _weights_wanted(module: nn.Module) -> str:
    """Eager attention returns its weights; somebody may be watching for them."""
    if getattr(getattr(module, "config", None), "output_attentions", False):
        return "config.output_attentions wants the weights"
    if is_patched(module) or module._forward_hooks or watched_globally():
        return "a hook or a recorder on the attention module may want the weights"
    return ""
