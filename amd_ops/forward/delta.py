"""What overlaid linear attention calls for one token: its convolution, its gated delta rule and the norm behind it, or
None for stock's own statements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import modes
from ..dispatch import Site
from ..modules import lives_in, original
from ..ops.delta import conv_step, delta_step, gated_rms_norm
from ..ops.rope import nobody

_compiling = torch.compiler.is_dynamo_compiling
_conv_site = Site("causal_conv", "taken", nobody)
_rule_site = Site("delta_rule", "taken", nobody)
_norm_site = Site("gated_norm", "taken", nobody)
_SILU = ("silu", "swish")
_RULE = "torch_recurrent_gated_delta_rule"
_HUB = "transformers.integrations.hub_kernels"


def causal_conv(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor | None:
    """Return ``conv_step`` of x [B, C, 1], state [B, C, W] and weight [C, W], or None where stock's own statements must
    run: for more than one column, and another ``activation`` than silu.

    Examples:
        >>> amd_ops.causal_conv(torch.ones(1, 1, 1), torch.zeros(1, 1, 2), torch.ones(1, 2), None, None)
        tensor([[[1.]]])
    """
    if _compiling():
        return None
    if activation is not None and activation not in _SILU:
        reason = "the convolution's activation is not silu"
    elif x.dim() != 3 or x.shape[2] != 1:
        reason = "the convolution is not of one token"
    elif state.dim() != 3 or weight.shape != state.shape[1:] or state.shape[:2] != x.shape[:2]:
        reason = "the convolution's state or weight is of another shape"
    else:
        reason = modes.hidden()
    if reason:
        _conv_site.declined(reason)
        return None
    _conv_site.fast.calls += 1
    return conv_step(x, state, weight, bias, activated=activation is not None)


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    b: Tensor,
    a: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    state: Tensor | None,
    rule: Callable[..., Any],
    own: Callable[..., Any],
    early: bool,
    words: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return ``delta_step`` of these tensors: (output, new state), or None where stock's own statements must run.

    ``rule`` is what stock would call, ``own`` the file's function in torch: another one's numbers are not these.
    ``words`` is what stock hands it besides, of which packed sequences are no token each.

    Examples:
        >>> q, gate, head = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 30.0), torch.zeros(1)
        >>> def other(*args):  # not the function of a modeling file: stock's statements run
        ...     return args
        >>> amd_ops.gated_delta_rule(q, q, q, gate, gate, head, head, q, other, other, False) is None
        True
    """
    if _compiling():
        return None
    if state is None or query.dim() != 4 or query.shape[1] != 1:
        reason = "the rule is not moved on by one token"
    elif any((words or {}).get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens", "seq_idx")):
        reason = "the sequences are packed"
    elif rule is not own or not _of_torch(rule):
        reason = "the rule is not the file's own function in torch"
    else:
        reason = modes.hidden()
    if reason or state is None:
        _rule_site.declined(reason)
        return None
    _rule_site.fast.calls += 1
    return delta_step(query, key, value, b, a, a_log, dt_bias, state, early=early)


def _of_torch(rule: Any) -> bool:
    """Whether this is the rule of a modeling file, or transformers' choice between packages where it fell on that."""
    if original(rule, _RULE):
        return True
    if not lives_in(rule, _HUB) or rule.__code__.co_name != "wrapped":
        return False
    cells = dict(zip(rule.__code__.co_freevars, rule.__closure__ or (), strict=False))
    try:
        stock, chosen = cells["torch_function"].cell_contents, cells["implementation"].cell_contents
    except (KeyError, ValueError):
        return False
    return chosen is stock and original(stock, _RULE)


def gated_norm(x: Tensor, gate: Tensor | None, weight: Tensor, eps: float, activation: str) -> Tensor | None:
    """Return ``gated_rms_norm`` of x and its gate [..., D], or None where stock's own statements must run: for another
    ``activation`` than silu.

    Examples:
        >>> amd_ops.gated_norm(torch.tensor([[3.0, 3.0]]), torch.tensor([[0.0, 20.0]]), torch.ones(2), 0.0, "silu")
        tensor([[ 0., 20.]])
    """
    if _compiling():
        return None
    if gate is None or gate.shape != x.shape:
        reason = "the gate is not of x's shape"
    elif activation not in _SILU:
        reason = "the gate's activation is not silu"
    else:
        reason = modes.hidden()
    if reason or gate is None:
        _norm_site.declined(reason)
        return None
    _norm_site.fast.calls += 1
    return gated_rms_norm(x, gate, weight, eps)
