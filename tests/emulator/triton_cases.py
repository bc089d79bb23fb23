"""What our Triton kernels are executed on: every launcher, form and dtype, sizes that fit no block, and stock's answer.

Stock's formulas are written here as transformers writes them, in the dtype of the model, roundings included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amd_ops.backends.triton import configs, experts, gate, latent, norm, qk_rope, rope, router, sink_attention
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.target import Target

from .case import DTYPES, Answer, Case, by_the_launcher, data, target_of
from .delta_cases import qwen3_next
from .loss_cases import losses

EPS = 1e-6
_MANY = configs.FEW + 3


def _around(guess: Callable[[int, bool, Target], Config], size: int, few: bool) -> Callable[[Target], list[Config]]:
    return lambda target: configs.neighbours(guess(size, few, target), target)


# ---- norms


def stock_norm(x: Tensor, weight: Tensor, form: str) -> Tensor:
    """The norm as the modules of llama, gemma, T5 and those that keep fp32 to the end write it."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    if form == "llama":
        return weight * normed.to(x.dtype)
    if form == "gemma":
        return (normed * (1.0 + weight.float())).to(x.dtype)
    if form == "t5":
        return weight * (normed.to(weight.dtype) if weight.dtype is not torch.float32 else normed)
    return (weight.float() * normed).to(x.dtype)


def _norm(form: str, rows: int, size: int, dtype: torch.dtype, add: bool, layout: str) -> Case:
    few = rows < configs.FEW

    def run(via: Any, cut: Config) -> list[Answer]:
        x = _laid_out((rows, size), dtype, 1, layout)
        residual = data(rows, size, dtype=dtype, seed=2) if add else None
        weight = data(size, dtype=dtype, seed=3)
        out, total = norm.launch_norm(x, residual, weight, EPS, form, cut, via=via)
        summed = x if residual is None else residual + x
        answers = [Answer("norm", out, stock_norm(summed, weight, form))]
        return answers if residual is None else [*answers, Answer("sum", total, summed, exact=True)]

    name = f"{'add_' if add else ''}rms_norm {form} {rows}x{size}{'' if layout == 'dense' else ' ' + layout}"
    return Case(name, dtype, _around(configs.for_rows, size, few), run)


def _laid_out(shape: tuple[int, int], dtype: torch.dtype, seed: int, layout: str) -> Tensor:
    rows, size = shape
    if layout == "sliced":  # rows cut from a wider matrix
        return data(rows, size + 16, dtype=dtype, seed=seed)[:, 16:]
    if layout == "heads":  # [B, S, H, D] rows of a transposed view
        return data(rows // 6, 2, 3, size, dtype=dtype, seed=seed).transpose(1, 2)
    return data(rows, size, dtype=dtype, seed=seed)


def _norm_backward(form: str, size: int, dtype: torch.dtype, add: bool) -> Case:
    rows = 21

    def run(via: Any, cut: Config) -> list[Answer]:
        x, dy = data(rows, size, dtype=dtype, seed=4), data(rows, size, dtype=dtype, seed=5)
        more = data(rows, size, dtype=dtype, seed=6) if add else None
        weight = data(size, dtype=dtype, seed=7)
        dx, dw = norm.launch_norm_backward(x, weight, dy, more, EPS, form, cut, 3, via=via)
        exact_x, exact_w = x.double().requires_grad_(), weight.double().requires_grad_()
        normed = exact_x * torch.rsqrt(exact_x.pow(2).mean(-1, keepdim=True) + EPS)
        (normed * (1 + exact_w if form == "gemma" else exact_w)).backward(dy.double())
        assert exact_x.grad is not None
        assert exact_w.grad is not None
        want_x = exact_x.grad + (more.double() if more is not None else 0)
        terms = (dy.double() * normed).abs().sum(0).detach()  # a sum of many: its terms' sizes, not the sum's
        spread = torch.full_like(want_x, float(want_x.abs().max()))
        return [
            Answer("dx", dx, want_x.to(dtype), spread),
            Answer("dw", dw, exact_w.grad.to(dtype), terms),
        ]

    name = f"{'add_' if add else ''}rms_norm_backward {form} {rows}x{size}"
    return Case(name, dtype, _around(configs.for_rows, size, False), run)


def norms() -> Iterator[Case]:
    """Forward in every form, with awkward sizes and layouts, and backward."""
    for form, dtype in itertools.product(norm.FORMS, DTYPES):
        yield _norm(form, 5, 1000, dtype, False, "dense")
        yield _norm(form, _MANY, 100, dtype, form == "llama", "dense")
    for dtype in DTYPES:
        yield _norm("llama", 3, 4096, dtype, True, "dense")
        yield _norm("gemma", 18, 128, dtype, False, "heads")
        yield _norm("fp32_weight", 5, 72, dtype, False, "sliced")
        yield _norm("t5", 2, 1, dtype, False, "dense")
        yield _norm_backward("llama", 200, dtype, True)
        yield _norm_backward("gemma", 96, dtype, False)
    yield _norm("llama", 2, 20000, torch.bfloat16, True, "dense")  # longer than a program holds: walked twice
    yield _norm("gemma", 2, 16392, torch.float16, False, "dense")


# ---- gated activations

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def _gate(kind: str, rows: int, size: int, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        x = data(rows, 2 * size, dtype=dtype, seed=8, scale=3.0)
        a, b = x.chunk(2, -1)
        want = ACTIVATIONS[kind](a) * b
        # gelu's tails are differences of nearly equal numbers, in torch, too: their errors are those of an fp32 like x
        tail = (a * b).abs().double() * (2.0**-23 / torch.finfo(dtype).eps if kind != "silu" else 0)
        return [Answer("gate", gate.launch_gate(x, kind, cut, via=via), want, tail)]

    name = f"{kind} {rows}x{size}"
    return Case(name, dtype, _around(configs.for_columns, size, rows < configs.FEW), run)


def _gate_backward(kind: str, rows: int, size: int, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        x, dy = data(rows, 2 * size, dtype=dtype, seed=9), data(rows, size, dtype=dtype, seed=10)
        got = gate.launch_gate_backward(x, dy, kind, cut, via=via)
        exact = x.double().requires_grad_()
        a, b = exact.chunk(2, -1)
        (ACTIVATIONS[kind](a) * b).backward(dy.double())
        assert exact.grad is not None
        size_of = (torch.cat([b, a], -1).abs() * dy.double().repeat(1, 2).abs()).detach()
        return [Answer("dx", got, exact.grad.to(dtype), size_of)]

    return Case(f"{kind}_backward {rows}x{size}", dtype, _around(configs.for_columns, size, True), run)


def gates() -> Iterator[Case]:
    """Every activation, forward and backward."""
    for kind, dtype in itertools.product(ACTIVATIONS, DTYPES):
        yield _gate(kind, 3, 1000, dtype)
        yield _gate_backward(kind, 2, 300, dtype)
    for dtype in DTYPES:
        yield _gate("silu", _MANY, 1, dtype)
        yield _gate("gelu_tanh", _MANY, 72, dtype)


# ---- rope


def stock_rope(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, H, S, D], tables [B, S, R]: stock's answer, and the sizes of the two products."""
    width = cos.shape[-1]
    c, s = cos[:, None], sin[:, None]
    part, rest = x[..., :width], x[..., width:]
    turned = torch.cat((-part[..., width // 2 :], part[..., : width // 2]), -1)
    left, right = part * c, turned * s
    return torch.cat((left + right, rest), -1), torch.cat((left.abs() + right.abs(), rest.abs()), -1)


@dataclass(frozen=True)
class _Shape:
    batch: int
    length: int
    q_heads: int
    k_heads: int
    size: int
    width: int
    own: bool = True  # a table row per batch entry


def _tables(at: _Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = data(at.batch if at.own else 1, at.length, at.width // 2, dtype=torch.float32, seed=11, scale=3.0)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _turned(name: str, got: Tensor, x: Tensor, cos: Tensor, sin: Tensor, normed: bool = False) -> Answer:
    want, size = stock_rope(x, cos, sin)
    return Answer(name, got, want, size, exact=not normed and x.dtype is not torch.float32)


def _rope(at: _Shape, dtype: torch.dtype, backward: bool = False, form: str = "") -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        both = data(at.batch, at.length, at.q_heads + at.k_heads, at.size, dtype=dtype, seed=12).transpose(1, 2)
        q, k = both[:, : at.q_heads], both[:, at.q_heads :]  # slices of one projection
        cos, sin = _tables(at, dtype)
        norms = None
        if form:
            norms = rope.Norms(*(data(at.size, dtype=dtype, seed=n) for n in (13, 14)), EPS, form)
        got = rope.launch_rope(q, k, cos, sin, 1, cut, backward=backward, norms=norms, via=via)
        if norms is not None:
            q, k = stock_norm(q, norms.q_weight, form), stock_norm(k, norms.k_weight, form)
        table = (cos, -sin) if backward else (cos, sin)
        pairs = zip("qk", got, (q, k), strict=True)
        return [_turned(name, out, x, *table, normed=bool(form)) for name, out, x in pairs]

    kind = "rope_backward" if backward else f"qk_norm_rope {form}" if form else "rope"
    name = f"{kind} {at.batch}x{at.length}x{at.q_heads}+{at.k_heads}x{at.size}/{at.width}"
    few = at.batch * at.length < configs.FEW
    return Case(name, dtype, _around(configs.for_heads, at.width // 2, few), run)


def _norm_rope_backward(at: _Shape, dtype: torch.dtype, form: str) -> Case:
    """The turned gradients are stock's to the bit; the norm's are taken from them in fp64."""

    def run(via: Any, cut: Config) -> list[Answer]:
        both = data(at.batch, at.length, at.q_heads + at.k_heads, at.size, dtype=dtype, seed=20).transpose(1, 2)
        q, k = both[:, : at.q_heads], both[:, at.q_heads :]
        cos, sin = _tables(at, dtype)
        grads = [data(at.batch, x.shape[1], at.length, at.size, dtype=dtype, seed=n) for n, x in ((21, q), (22, k))]
        norms = rope.Norms(*(data(at.size, dtype=dtype, seed=n) for n in (13, 14)), EPS, form)
        got = qk_rope.launch_norm_rope_backward(q, k, norms, cos, sin, *grads, cut, 3, via=via)
        answers = []
        for index, (x, weight, dy) in enumerate(zip((q, k), (norms.q_weight, norms.k_weight), grads, strict=True)):
            turned, size = (t.double() for t in stock_rope(dy, cos, -sin))
            exact_x, exact_w = x.double().requires_grad_(), weight.double().requires_grad_()
            normed = exact_x * torch.rsqrt(exact_x.pow(2).mean(-1, keepdim=True) + EPS)
            (normed * (1 + exact_w if form == "gemma" else exact_w)).backward(turned)
            assert exact_x.grad is not None
            assert exact_w.grad is not None
            spread = torch.full_like(exact_x.grad, float(exact_x.grad.abs().max()))
            terms = (size * normed).abs().sum((0, 1, 2)).detach()
            name = "qk"[index]
            answers += [
                Answer(f"d{name}", got[index], exact_x.grad.to(dtype), spread),
                Answer(f"dw_{name}", got[2 + index], exact_w.grad.to(dtype), terms),
            ]
        return answers

    name = f"qk_norm_rope_backward {form} {at.batch}x{at.length}x{at.q_heads}+{at.k_heads}x{at.size}/{at.width}"
    return Case(name, dtype, _around(configs.for_rows, at.size, False), run)


def _cache(at: _Shape, dtype: torch.dtype, form: str, positions: Tensor) -> Case:
    slots, size_v = 9, at.size + 8

    def run(via: Any, cut: Config) -> list[Answer]:
        q, k, v = (
            data(at.batch, heads, at.length, size, dtype=dtype, seed=seed)
            for heads, size, seed in ((at.q_heads, at.size, 15), (at.k_heads, at.size, 16), (at.k_heads, size_v, 17))
        )
        keys = data(at.batch, at.k_heads, slots, at.size, dtype=dtype, seed=18)
        values = data(at.batch, at.k_heads, slots, size_v, dtype=dtype, seed=19)
        before = keys.clone(), values.clone()
        cos, sin = _tables(at, dtype)
        norms = None
        if form:
            norms = rope.Norms(*(data(at.size, dtype=dtype, seed=n) for n in (13, 14)), EPS, form)
        cache = rope.Cache(keys, values, v, positions)
        out, _ = rope.launch_rope(q, k, cos, sin, 1, cut, norms=norms, cache=cache, via=via)
        if norms is not None:
            q, k = stock_norm(q, norms.q_weight, form), stock_norm(k, norms.k_weight, form)
        want_k, size_k = stock_rope(k, cos, sin)
        sizes = before[0].abs()
        for step, slot in enumerate(positions.tolist()):
            if 0 <= slot < slots:
                before[0][:, :, slot], before[1][:, :, slot] = want_k[:, :, step], v[:, :, step]
                sizes[:, :, slot] = size_k[:, :, step]
        exact = not form and dtype is not torch.float32
        return [
            _turned("q", out, q, cos, sin, normed=bool(form)),
            Answer("keys", keys, before[0], sizes, exact=exact),
            Answer("values", values, before[1], exact=True),
        ]

    kind = f"{str(positions.dtype).removeprefix('torch.')} {positions.tolist()}"
    name = f"rope_into_cache {form or 'plain'} {at.q_heads}+{at.k_heads}x{at.size}/{at.width} at {kind}"
    return Case(name, dtype, _around(configs.for_heads, at.width // 2, True), run)


def ropes() -> Iterator[Case]:
    """Whole and partial heads, odd head counts, shared tables, backward, head norms, static caches."""
    inside, beyond = torch.tensor([4, 2, 7]), torch.tensor([8, 9, -1], dtype=torch.int32)
    for dtype in DTYPES:
        yield _rope(_Shape(2, 3, 5, 1, 128, 128), dtype)
        yield _rope(_Shape(1, _MANY, 3, 3, 80, 32, own=False), dtype)
        yield _rope(_Shape(2, 3, 4, 2, 24, 24), dtype, backward=True)
        yield _rope(_Shape(2, 3, 5, 2, 128, 128), dtype, form="llama")
        yield _rope(_Shape(1, 5, 3, 1, 72, 40), dtype, form="gemma")
        yield _norm_rope_backward(_Shape(2, 3, 5, 2, 128, 128), dtype, "llama")
        yield _norm_rope_backward(_Shape(1, 21, 3, 1, 72, 40, own=False), dtype, "gemma")
        yield _cache(_Shape(2, 3, 4, 2, 64, 64), dtype, "", inside)
        yield _cache(_Shape(1, 3, 5, 1, 80, 32), dtype, "llama", beyond)
    yield _rope(_Shape(1, 2, 2, 1, 256, 256), torch.bfloat16, form="fp32_weight")
    yield _rope(_Shape(1, 2, 1, 1, 2, 2), torch.float16)


# ---- experts of few tokens


def _top_k(tokens: int, count: int, chosen: int, normalise: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        logits = data(tokens, count, dtype=dtype, seed=20, scale=2.0)
        weights, ids = experts.launch_top_k(logits, chosen, normalise, dtype, target_of(via.arch).wave, via=via)
        shares, want = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
        shares, want = shares[:, :chosen], want[:, :chosen]
        if normalise:
            shares = shares / shares.sum(-1, keepdim=True)
        return [
            Answer("ids", ids.double(), want.double(), exact=True),
            Answer("weights", weights.to(dtype), shares.to(dtype)),
            Answer("weights' roundings", weights, weights.to(dtype).float(), exact=True),
        ]

    name = f"softmax_top_k {tokens}x{count}/{chosen}{' normalised' * normalise}"
    return Case(name, dtype, by_the_launcher, run)


def _gated(first: Tensor, kind: str) -> Tensor:
    """Stock's gate of gpt_oss ("clamped", gate and up side by side), or act(gate) * up of two halves."""
    if kind != "clamped":
        gate, up = first.chunk(2, -1)
        return ACTIVATIONS[kind](gate) * up
    gate, up = first[..., ::2].clamp(max=7.0), first[..., 1::2].clamp(-7.0, 7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def _few_tokens(op: str, kind: str, size: int, middle: int, dtype: torch.dtype) -> Case:
    clamped, count, tokens, chosen = op == "clamped_moe", 5, 3, 2

    def run(via: Any, cut: Config) -> list[Answer]:
        hidden = data(tokens, size, dtype=dtype, seed=21)
        one, two = ((size, 2 * middle), (middle, size)) if clamped else ((2 * middle, size), (size, middle))
        w1, w2 = data(count, *one, dtype=dtype, seed=22), data(count, *two, dtype=dtype, seed=23)
        b1, b2 = data(count, 2 * middle, dtype=dtype, seed=24), data(count, size, dtype=dtype, seed=25)
        shares = data(tokens, chosen, dtype=dtype, seed=26).abs()
        ids = torch.tensor([[4, 0], [1, 4], [2, 3]])
        biases = (b1, b2) if clamped else (None, None)
        args = (hidden, w1, b1, w2, b2, shares, ids, 1.702, 7.0) if clamped else (hidden, w1, w2, shares, ids, kind)
        launcher = experts.Experts(op, torch.empty, target_of(via.arch))  # only its probe would ask the reference
        got = launcher.run(*args, via=via)
        want, terms = torch.zeros(tokens, size, dtype=torch.float64), torch.zeros(tokens, size, dtype=torch.float64)
        for token, slot in itertools.product(range(tokens), range(chosen)):
            expert = int(ids[token, slot])
            share = shares[token, slot].double()
            inner = _gated(_product(hidden[token], w1[expert], biases[0], expert, clamped), kind)
            want[token] += share * _product(inner, w2[expert], biases[1], expert, clamped).double()
            terms[token] += share * _product(inner.abs(), w2[expert].abs(), None, expert, clamped).double()
        return [Answer("y", got, want.to(dtype), terms)]

    return Case(f"{op} {kind} {size}/{middle}", dtype, by_the_launcher, run, launches=2)


def _product(x: Tensor, matrix: Tensor, biases: Tensor | None, expert: int, clamped: bool) -> Tensor:
    """One row times one expert's matrix, summed exactly and rounded once."""
    exact = x.double() @ (matrix if clamped else matrix.T).double()
    return (exact if biases is None else exact + biases[expert].double()).to(x.dtype)


def few_tokens() -> Iterator[Case]:
    """The router's choice, and both forms of experts."""
    for dtype in DTYPES:
        yield _top_k(5, 60, 4, True, dtype)
        yield _top_k(3, 128, 8, False, dtype)
        yield _few_tokens("moe", "silu", 72, 24, dtype)
        yield _few_tokens("moe", "gelu_tanh", 40, 300, dtype)
        yield _few_tokens("clamped_moe", "clamped", 72, 40, dtype)


# ---- one token: routers, latent attention, attention with sinks


def _by_logits(tokens: int, count: int, chosen: int, spread: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        logits = data(tokens, count, dtype=dtype, seed=30, scale=2.0)
        weights, ids = router.launch_top_k_softmax(logits, chosen, spread, target_of(via.arch).wave, via=via)
        best, want = logits.double().sort(dim=-1, descending=True, stable=True)
        shares, want = best[:, :chosen].softmax(-1).to(dtype), want[:, :chosen]
        if spread:
            shares = torch.zeros_like(logits).scatter_(1, want, shares)
        return [Answer("ids", ids.double(), want.double(), exact=True), Answer("weights", weights, shares)]

    return Case(f"top_k_softmax {tokens}x{count}/{chosen}{' spread' * spread}", dtype, by_the_launcher, run)


def _by_groups(tokens: int, count: int, groups: int, fill: float, dtype: torch.dtype) -> Case:
    """Logits and weights are fp32; the correction is in ``dtype``."""
    chosen, kept, scale = 4, 2, 2.5

    def run(via: Any, cut: Config) -> list[Answer]:
        logits = data(tokens, count, dtype=torch.float32, seed=31)
        bias = data(count, dtype=dtype, seed=32, scale=0.25)
        weights, ids = router.launch_grouped_top_k(
            logits, bias, chosen, groups, kept, True, scale, fill, wave=target_of(via.arch).wave, via=via
        )
        scores = logits.double().sigmoid()
        choice = (scores + bias.double()).view(tokens, groups, -1)
        sums = choice.topk(2, dim=-1).values.sum(-1)
        inside = torch.zeros_like(sums).scatter_(1, sums.topk(kept, dim=-1).indices, 1.0).bool()
        want = choice.masked_fill(~inside[..., None], fill).flatten(1).topk(chosen, dim=-1).indices
        shares = scores.gather(1, want)
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-20) * scale
        return [
            Answer("ids", ids.double(), want.double(), exact=True),
            Answer("weights", weights, shares.float()),
        ]

    return Case(f"grouped_top_k {tokens}x{count}/{groups} {fill}", dtype, by_the_launcher, run)


def _logits(tokens: int, count: int, size: int, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        hidden, weight = data(tokens, size, dtype=dtype, seed=33), data(count, size, dtype=dtype, seed=34)
        got = router.launch_router_logits(hidden, weight, target_of(via.arch).wave, via=via)
        terms = hidden.double().abs() @ weight.double().abs().T
        return [Answer("logits", got, (hidden.double() @ weight.double().T).float(), terms)]

    return Case(f"router_logits {tokens}x{count}x{size}", dtype, by_the_launcher, run)


def _latent(heads: int, rest: int, width: int, pairs: bool, dtype: torch.dtype, alone: bool = False) -> Case:
    """``alone``: the key's rotated part without anything in front, as a cache of latents takes it."""
    batch, length = 2, 3

    def run(via: Any, cut: Config) -> list[Answer]:
        angle = data(batch, length, width // 2, dtype=torch.float32, seed=35, scale=3.0)
        cos, sin = (table.repeat(1, 1, 2).to(dtype) for table in (angle.cos(), angle.sin()))
        parts = [
            data(batch, length, number, size, dtype=dtype, seed=seed).transpose(1, 2)
            for seed, (number, size) in enumerate(((heads, rest), (heads, width), (heads, rest), (1, width)), 36)
        ]
        q_pass, q_rot, k_pass, k_rot = parts
        still = None if alone else k_pass
        made = latent.launch_latent(
            q_pass, q_rot, still, k_rot, cos, sin, pairs, wave=target_of(via.arch).wave, via=via
        )
        if alone:
            parts[2] = k_pass[:, :1, :, :0]
        answers = []
        for name, got, still, turn in zip("qk", made, parts[::2], parts[1::2], strict=True):
            halves = torch.cat((turn[..., ::2], turn[..., 1::2]), -1) if pairs else turn
            want, size = stock_rope(halves.expand(-1, still.shape[1], -1, -1), cos, sin)
            exact = dtype is not torch.float32
            answers.append(Answer(name, got, torch.cat((still, want), -1), torch.cat((still.abs(), size), -1), exact))
        return answers

    name = "latent_turn" if alone else "latent_rope"
    return Case(f"{name} {heads}x{rest}+{width}{' pairs' * pairs}", dtype, by_the_launcher, run)


def _sinks(heads: int, groups: int, keys: int, size: int, mask: str, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        q = data(2, heads, 1, size, dtype=dtype, seed=40)
        k, v = (data(2, heads // groups, keys, size, dtype=dtype, seed=seed) for seed in (41, 42))
        sinks = data(heads, dtype=dtype, seed=43)
        seen = (torch.arange(keys) % 5 != 1).expand(2, 1, 1, keys).contiguous()
        added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        given = {"": None, "bool": seen, "add": added}[mask]
        got = sink_attention.launch_sink_attention(q, k, v, sinks, None, given, wave=target_of(via.arch).wave, via=via)
        k, v = (one.double().repeat_interleave(groups, dim=1) for one in (k, v))
        scores = q.double() @ k.transpose(2, 3) * size**-0.5
        if mask:
            scores = scores.masked_fill(~seen, float("-inf"))
        column = sinks.double().view(1, heads, 1, 1).expand(2, -1, -1, -1)
        shares = torch.cat((scores, column), -1).softmax(-1)[..., :keys]
        want, terms = (shares @ one for one in (v, v.abs()))
        return [Answer("y", got, want.transpose(1, 2).to(dtype), terms.transpose(1, 2))]

    return Case(f"sink_attention {heads}/{groups} {keys}x{size} {mask}".strip(), dtype, by_the_launcher, run)


def one_token() -> Iterator[Case]:
    """Each form of a router, of latent heads and of a mask."""
    for dtype in DTYPES:
        yield _by_logits(5, 60, 4, False, dtype)
        yield _by_logits(3, 32, 4, True, dtype)
        yield _by_groups(3, 48, 6, float("-inf"), dtype)
        yield _by_groups(2, 32, 4, 0.0, dtype)
        yield _logits(3, 21, 200, dtype)
        yield _latent(3, 24, 16, False, dtype)
        yield _latent(4, 16, 20, True, dtype)
        yield _latent(3, 24, 16, False, dtype, alone=True)
        yield _latent(4, 16, 20, True, dtype, alone=True)
        yield _sinks(4, 2, 37, 24, "", dtype)
        yield _sinks(2, 2, 70, 64, "bool", dtype)
        yield _sinks(4, 1, 19, 32, "add", dtype)


SHORT_CHIPS = ("gfx942", "gfx1100")
"""One Instinct and one Radeon chip: those of the short list, and those whose every cut is executed."""


def cuts_of(case: Case, arch: str) -> list[Config]:
    """The cuts to execute: all that tuning may pick in bfloat16 on two chips, elsewhere the one that the host chooses.

    A cut decides about blocks, rows and waves; a dtype does not.
    """
    cuts = case.cuts(target_of(arch))
    return cuts if case.dtype is torch.bfloat16 and arch in SHORT_CHIPS else cuts[:1]


def all_cases() -> list[Case]:
    """Every case."""
    return [*norms(), *gates(), *ropes(), *few_tokens(), *one_token(), *losses(), *qwen3_next()]
