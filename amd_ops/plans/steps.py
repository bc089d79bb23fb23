"""A decoder's layers as a list of calls with everything bound beforehand: packed matrices, weights, eps, scaling.

A layer is a program over its hidden states and the residual (see ``PROGRAM_MARK``). An add with the norm behind it
is one op, across the border of two layers too: so a layer is norm + add, q/k/v, rotation with the cache's write,
attention, output, norm + add, gate and up, activation, down. Rows are [B, width] throughout: one token per sequence.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import toggles
from ..dispatch import Op, ops
from ..forward.projections import ATTENTION_MARK, QKV, activation_kind
from ..forward.qk_rope import _head_norms
from ..forward.residual import MLP_MARK, norm_form
from ..modules import form_of, why_not_plain, why_not_unwatched
from ..ops.attention import Call
from ..weights import packing
from .state import Calls, State
from .turning import Attention, Turned

TABLES = "position_embeddings"
"""The argument of a layer that its attention's cosines and sines are, where it does not choose from two."""
PROGRAM_MARK = "_amd_decoder"
"""forward._amd_decoder = ("keep x @y add ...", forward): that forward computes this program and nothing else."""

OWN_CALL = "the module's class has a call of its own"
"""What ``..modules`` says of a class like transformers' decoder layers, whose call recomputes in training."""

Step = Callable[[State], None]


class Unplannable(Exception):
    """Why there is no plan: a short sentence, counted by its text."""


@dataclass
class Layer:
    """A decoder layer as it was found: its program's parts by name, and whatever must be watched.

    ``tables`` is the argument that its attention's tables are, ``choice`` the two that it chose from, ``tupled`` that
    it returns (h,).
    """

    module: nn.Module
    words: list[str]
    tupled: bool = False
    tables: str = TABLES
    choice: tuple[str, ...] = ()
    watched: list[nn.Module] = field(default_factory=list)
    modal: list[nn.Module] = field(default_factory=list)
    configured: list[nn.Module] = field(default_factory=list)
    numbers: list[tuple[nn.Module, tuple[str, ...]]] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


def mark_of(module: nn.Module, name: str) -> tuple[Any, ...] | None:
    """Return what the overlaid text says of ``module``'s forward, where that very function is still its class's.

    transformers 5 puts a function of its own around the forward of every decoder layer: it recomputes in training.
    """
    forward: Any = type(module).forward
    found = getattr(forward, "__dict__", {}).get(name)
    if found is None or found[-1] is forward:
        return found
    home, code = sys.modules.get("transformers.modeling_layers"), getattr(forward, "__code__", None)
    if home is None or code is None or code.co_filename != home.__file__:
        return None
    return found if code.co_name == "forward_with_checkpointing" and forward.__wrapped__ is found[-1] else None


def read(layer: nn.Module) -> Layer:
    """Read a decoder layer, or raise Unplannable."""
    mark = mark_of(layer, PROGRAM_MARK)
    if mark is None:
        raise Unplannable("a layer's forward is not one that the overlaid text marks")
    words = mark[0].split()
    tupled = words[-1] == "tuple"
    found = Layer(layer, words[: len(words) - tupled], tupled, modal=[layer])
    _watch(found, layer)
    for word in found.words:
        choice, attends, name = word.rpartition("@")
        name = name.lstrip("*?")
        if word in ("keep", "add"):
            continue
        if word[0] == "*":
            found.numbers.append((layer, (name,)))
            found.parts[word] = float(_number(layer, name))
            continue
        child = layer._modules.get(name)
        if child is None:
            raise Unplannable("a module of the layer is missing")
        if attends:
            found.parts[word] = _attention(found, child)
            if choice:
                _choose(found, child, choice)
        elif word[0] == "?":
            if type(child) is not nn.Dropout:
                raise Unplannable("what stands for a dropout is not exactly nn.Dropout")
            _watch(found, child)
            found.modal.append(child)
        else:
            found.parts[word] = _norm(found, child) or _mlp(found, child) or _other(layer, name)
    return found


def _choose(found: Layer, attn: nn.Module, choice: str) -> None:
    """Read ``flag?a:b``: the tables are the argument ``a`` where the attention's flag is true, else ``b``."""
    flag, _, names = choice.partition("?")
    found.choice = (*names.split(":"),)
    found.tables = found.choice[0 if _number(attn, flag) else 1]
    found.numbers.append((attn, (flag,)))


def checkpoints(layer: nn.Module) -> bool:
    """transformers' own call of a decoder layer, which recomputes in training and does nothing else."""
    call: Any = type(layer).__call__
    home, name = str(call.__module__), str(call.__qualname__)
    return home == "transformers.modeling_layers" and name == "GradientCheckpointingLayer.__call__"


def _watch(found: Layer, module: nn.Module) -> None:
    reason = why_not_unwatched(module)
    if reason and not (reason == OWN_CALL and checkpoints(module)):
        raise Unplannable(reason)
    found.watched.append(module)


def _number(module: nn.Module, name: str) -> Any:
    if name not in module.__dict__:
        raise Unplannable("a number that a forward reads is no plain attribute")
    return module.__dict__[name]


def _linear(found: Layer, module: nn.Module | None) -> Callable[[Callable[..., Any], Tensor], Tensor]:
    reason = "a Linear is missing" if module is None else why_not_plain(module)
    if module is None or reason:
        raise Unplannable(reason)
    found.watched.append(module)
    own: dict[str, Any] = module._parameters

    def product(gemm: Callable[..., Any], x: Tensor) -> Tensor:
        result: Tensor = gemm(x, own["weight"], own["bias"])
        return result

    return product


def _together(
    found: Layer, owner: nn.Module, names: tuple[str, ...]
) -> tuple[Callable[[Callable[..., Any], Tensor], Tensor], list[int]]:
    """One GEMM for some Linears of one module, which are packed now where they are not yet."""
    packed = packing.pack(owner, names)
    if isinstance(packed, str):
        raise Unplannable(packed)
    linears: list[nn.Module] = [owner._modules[name] for name in names]  # type: ignore[misc]
    for linear in linears:
        _linear(found, linear)
    weights = [linear._parameters["weight"] for linear in linears]
    biases = [linear._parameters["bias"] for linear in linears]
    whole = packing.matrix_of(weights)  # type: ignore[arg-type]
    bias = packing.matrix_of(biases) if biases[0] is not None else None  # type: ignore[arg-type]
    if whole is None or (bias is None) is not (biases[0] is None):
        raise Unplannable("the Linears do not lie together")
    weight_there = weakref.ref(whole)
    bias_there = (lambda: None) if bias is None else weakref.ref(bias)

    def product(gemm: Callable[..., Any], x: Tensor) -> Tensor:
        result: Tensor = gemm(x, weight_there(), bias_there())
        return result

    return product, [weight.shape[0] for weight in weights if weight is not None]


def _attention(found: Layer, attn: nn.Module) -> Attention:
    mark = mark_of(attn, ATTENTION_MARK)
    if mark is None:
        raise Unplannable("the attention's forward is not one that the overlaid text marks")
    _watch(found, attn)
    numbers = ("scaling", "layer_idx", "head_dim")
    found.numbers.append((attn, numbers))
    found.modal.append(attn)
    found.configured.append(attn)
    scaling, index, size = (_number(attn, name) for name in numbers)
    _number(attn, "config")
    children, norms = attn._modules, None
    if mark[1] == "packed":
        product = _linear(found, children.get("qkv_proj"))
        heads = [int(attn.config.num_attention_heads), *[int(_number(attn, "num_key_value_heads"))] * 2]  # type: ignore[union-attr, arg-type]
    else:
        product, rows = _together(found, attn, QKV)
        heads = [count // size for count in rows]
        if any(count % size for count in rows):
            raise Unplannable("the projections are not whole heads")
    if mark[1] == "head norms":
        both = _head_norms(attn)
        if isinstance(both, str):
            raise Unplannable(both)
        q_norm, k_norm = children["q_norm"], children["k_norm"]
        assert q_norm is not None
        assert k_norm is not None
        for norm in (q_norm, k_norm):
            _watch(found, norm)
            found.numbers.append((norm, (form_of(norm, "_amd_rms_norm")[1],)))
        name = form_of(q_norm, "_amd_rms_norm")[0]
        norms = q_norm._parameters, k_norm._parameters, name, float(both[2]), both[3]
    out = _linear(found, children.get("o_proj"))
    words = tuple(mark[2].split())
    return Attention(weakref.ref(attn), product, out, heads, size, scaling, index, norms, words)


@dataclass(frozen=True)
class Norm:
    """An RMS norm: where its weight is kept, eps and form."""

    holder: dict[str, Any]
    name: str
    eps: float
    form: str


def _norm(found: Layer, module: nn.Module) -> Norm | None:
    form = form_of(module, "_amd_rms_norm")
    if form is None:
        return None
    known = norm_form(module)
    if isinstance(known, str):
        raise Unplannable(known)
    found.watched.append(module)
    found.numbers.append((module, (form[1],)))
    return Norm(module._parameters, form[0], float(_number(module, form[1])), known[2])


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: gate and up in one product, the activation's op, and the down projection (without a bias or not)."""

    both: Callable[[Callable[..., Any], Tensor], Tensor]
    activation: str
    down: Callable[[Callable[..., Any], Tensor], Tensor]
    holder: dict[str, Any]


def _mlp(found: Layer, module: nn.Module) -> Mlp | None:
    names = form_of(module, MLP_MARK)
    if names is None:
        return None
    _watch(found, module)
    act = names.get("act", "act_fn")
    activation: Any = module._modules.get(act) if act else F.silu
    kind = activation_kind(activation)
    if not kind:
        raise Unplannable("the MLP's activation has no fused form")
    if isinstance(activation, nn.Module):
        _watch(found, activation)
    if "gate_up" in names:
        both = _linear(found, module._modules.get(names["gate_up"]))
    else:
        both, _ = _together(found, module, (names.get("gate", "gate_proj"), names.get("up", "up_proj")))
    down = module._modules.get(names.get("down", "down_proj"))
    product = _linear(found, down)
    assert down is not None
    return Mlp(both, f"{kind}_and_mul", product, down._parameters)


def _other(layer: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A module that is called as it is, with its hooks: experts, an MLP of another form, a LayerNorm."""
    children: dict[str, Any] = layer._modules

    def call(rows: Tensor) -> Tensor:
        result: Any = children[name](rows.view(rows.shape[0], 1, -1))
        result = result[0] if type(result) is tuple else result
        return result.view(rows.shape[0], -1)  # type: ignore[no-any-return]

    return call


# -- programs into steps


def compiled(layers: list[Layer], calls: Calls) -> list[list[Step]]:
    """Return the steps of every layer. What a layer leaves to be added, the next one's first norm adds."""
    maker, found = _Maker(calls), []
    for layer in layers:
        found.append([*maker.steps(layer)])
    found[-1] += maker.rest()
    return found


class _Maker:
    """Turns words into steps. ``due``: h is the residual + x, not added yet; ``kept``: and the residual is that sum."""

    def __init__(self, calls: Calls) -> None:
        self.due = self.kept = self.owned = False
        self.calls = calls
        linear, add = ops["linear"], ops["add_rms_norm"]
        assert isinstance(linear, Op)
        assert isinstance(add, Op)
        foreign = add.can("aiter") or add.can("triton") or (toggles.on.linear and linear.can("aiter"))
        self.add_in_gemm = not foreign

    def gemm(self) -> Callable[..., Any]:
        return self.calls.of("linear") if toggles.on.linear else F.linear

    def rest(self) -> list[Step]:
        """What is left after the last layer."""
        due, self.due = self.due, False
        return [_add] if due else []

    def steps(self, layer: Layer) -> Iterator[Step]:
        words = iter(layer.words)
        for word in words:
            part: Any = layer.parts.get(word)
            if word == "keep":
                self.kept, self.owned = self.due, False
                if not self.due:
                    yield _keep
            elif word == "add":
                self.due, self.kept = True, False
            elif word[0] == "?":
                continue
            elif isinstance(part, Norm):
                if self.due and self.kept:
                    yield _add_norm(self.calls.of("add_rms_norm"), part)
                    self.due, self.kept, self.owned = False, False, True
                else:
                    yield from self.rest()
                    yield _norm_step(self.calls.of("rms_norm"), part)
            else:
                yield from self._settled()
                if isinstance(part, Mlp) and self.add_in_gemm and self.owned and self._adds_next(layer, word, part):
                    next(words)
                    yield _mlp_add(self, part)
                elif isinstance(part, Mlp):
                    yield _mlp_step(self, part)
                elif isinstance(part, Attention):
                    yield _attend(self, part)
                elif isinstance(part, float):
                    yield _scale(part)
                else:
                    yield _call(part)

    def _settled(self) -> Iterator[Step]:
        if self.due:
            yield _add_keep if self.kept else _add
            self.due = self.kept = False

    def _adds_next(self, layer: Layer, word: str, part: Mlp) -> bool:
        after = layer.words[layer.words.index(word) + 1 :]
        return after[:1] == ["add"] and part.holder["bias"] is None


def _keep(state: State) -> None:
    state.residual = state.x


def _add(state: State) -> None:
    state.x = state.residual + state.x


def _add_keep(state: State) -> None:
    state.x = state.residual = state.residual + state.x


def _scale(factor: float) -> Step:
    def step(state: State) -> None:
        state.x = state.x * factor

    return step


def _call(module: Callable[[Tensor], Tensor]) -> Step:
    def step(state: State) -> None:
        state.x = module(state.x)

    return step


def _norm_step(rms_norm: Callable[..., Any], norm: Norm) -> Step:
    holder, name, eps, form = norm.holder, norm.name, norm.eps, norm.form

    def step(state: State) -> None:
        state.x = rms_norm(state.x, holder[name], eps, form)

    return step


def _add_norm(add_rms_norm: Callable[..., Any], norm: Norm) -> Step:
    holder, name, eps, form = norm.holder, norm.name, norm.eps, norm.form

    def step(state: State) -> None:
        state.x, state.residual = add_rms_norm(state.x, state.residual, holder[name], eps, form)

    return step


def _mlp_step(maker: _Maker, mlp: Mlp) -> Step:
    first, second, gate = maker.gemm(), maker.gemm(), maker.calls.of(mlp.activation)
    both, down = mlp.both, mlp.down

    def step(state: State) -> None:
        state.x = down(second, gate(both(first, state.x)))

    return step


def _mlp_add(maker: _Maker, mlp: Mlp) -> Step:
    first, gate, add = maker.gemm(), maker.calls.of(mlp.activation), maker.calls.of("linear_add")
    both, holder = mlp.both, mlp.holder

    def step(state: State) -> None:
        state.x = add(gate(both(first, state.x)), holder["weight"], state.residual, True)

    return step


def _attend(maker: _Maker, attention: Attention) -> Step:
    first, second, attend = maker.gemm(), maker.gemm(), _kernel(maker, attention)
    product, out, total, size = (
        attention.qkv,
        attention.out,
        sum(attention.heads),
        attention.size,
    )
    turned = Turned(maker.calls, attention)

    def step(state: State) -> None:
        batch = state.x.shape[0]
        q, keys, values = turned(state, product(first, state.x).view(batch, total, 1, size))
        state.x = out(second, attend(q, keys, values, state).view(batch, -1))

    return step


def _kernel(maker: _Maker, attention: Attention) -> Callable[[Tensor, Tensor, Tensor, State], Tensor]:
    """Attention of one query per sequence: the op, or stock's own sdpa function where the op is off."""
    scaling, index = attention.scaling, attention.index
    if not toggles.on.attention:
        stock, there = stock_sdpa(), attention.module

        def by_stock(q: Tensor, k: Tensor, v: Tensor, state: State) -> Tensor:
            result: Tensor = stock(there(), q, k, v, state.mask, dropout=0.0, scaling=scaling)[0]
            return result

        return by_stock
    attend, op = maker.calls.of("attention"), ops["attention"]
    assert isinstance(op, Op)
    adds = op.can("torch")

    def by_op(q: Tensor, k: Tensor, v: Tensor, state: State) -> Tensor:
        mask = state.added(q.dtype) if adds else state.mask
        result: Tensor = attend(q, k, v, scaling, False, mask, 0.0, None, None, None, Call(index))
        return result

    return by_op


def stock_sdpa() -> Any:
    """Return transformers' sdpa function."""
    return sys.modules["transformers.integrations.sdpa_attention"].sdpa_attention_forward
