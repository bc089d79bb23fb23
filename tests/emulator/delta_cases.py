"""One token of qwen3_next on our Triton kernels: its convolution, its gated delta rule, its gated norm, its gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from amd_ops.backends.triton import delta, gating
from amd_ops.backends.triton.configs import Config
from amd_ops.ops.delta import stock_conv, stock_delta, stock_gated_norm
from amd_ops.ops.gating import stock_gate

from .case import DTYPES, Answer, Case, by_the_launcher, data, target_of

EPS = 1e-6


def _conv(channels: int, width: int, turned: bool, bias: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        x = data(2, 1, channels, dtype=dtype, seed=60).transpose(1, 2)
        state, weight = data(2, channels, width, dtype=dtype, seed=61), data(channels, width, dtype=dtype, seed=62)
        shift = data(channels, dtype=dtype, seed=63) if bias else None
        before, theirs = state.double(), state.clone()
        ours = state.mT.contiguous().mT if turned else state
        wave = target_of(via.arch).wave
        got = delta.launch_conv(x, ours, weight, shift, True, wave=wave, via=via)
        want = stock_conv(x, theirs, weight, shift, True)
        window = torch.cat((before[..., 1:], x.double()), -1)
        terms = (window * weight.double()).abs().sum(-1, keepdim=True)
        return [Answer("y", got, want, terms), Answer("state", ours, theirs, exact=True)]

    return Case(f"conv_step {channels}x{width}{' turned' * turned}{' bias' * bias}", dtype, by_the_launcher, run)


def _rule(shared: int, share: int, size: int, columns: int, early: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        heads = shared * share
        mixed = data(2, 2 * shared * size + heads * columns, 1, dtype=dtype, seed=64).transpose(1, 2)
        q, k, v = mixed.split([shared * size, shared * size, heads * columns], dim=-1)
        given = [q.reshape(2, 1, -1, size), k.reshape(2, 1, -1, size), v.reshape(2, 1, -1, columns)]
        given += [data(2, 1, heads, dtype=dtype, seed=seed, scale=2.0) for seed in (65, 66)]
        given += [data(heads, dtype=dtype, seed=seed) for seed in (67, 68)]
        given.append(data(2, heads, size, columns, dtype=torch.float32, seed=69))
        kept = given[-1].clone()
        out, state = delta.launch_delta(*given, early, wave=target_of(via.arch).wave, via=via)
        want, after = stock_delta(*given, early)
        sizes, terms = _sizes(given, after)
        coarse = dtype if early else torch.float32  # early, heads are rounded: a step of theirs is one of the state's
        return [
            Answer("y", out, want, sizes),
            Answer("new state", state.to(coarse), after.to(coarse), terms),
            Answer("state", given[-1], kept, exact=True),
        ]

    name = f"delta_step {shared}x{share} {size}x{columns}{' early' * early}"
    return Case(name, dtype, by_the_launcher, run)


def _sizes(given: list[Tensor], after: Tensor) -> tuple[Tensor, Tensor]:
    """How large the terms are of which the output and the new state are made."""
    q, k, v, *_, state = (one.double() for one in given)
    share = v.shape[2] // k.shape[2]
    q, k = (functional.normalize(one, dim=-1).repeat_interleave(share, dim=2)[:, 0].abs() for one in (q, k))
    learnt = v[:, 0].abs() + (state.abs() * k[..., None]).sum(-2)
    terms = torch.maximum(state.abs() + k[..., None] * learnt[:, :, None], after.double().abs())
    return (terms * q[..., None]).sum(-2)[:, None] * q.shape[-1] ** -0.5, terms


def _norm(rows: int, size: int, sliced: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        x, weight = data(rows, size, dtype=dtype, seed=70), data(size, dtype=dtype, seed=71)
        gate = data(rows, size + 16 * sliced, dtype=dtype, seed=72, scale=2.0)[:, 16 * sliced :]
        got = delta.launch_gated_norm(x, gate, weight, EPS, target_of(via.arch), via=via)
        return [Answer("y", got, stock_gated_norm(x, gate, weight, EPS))]

    return Case(f"gated_rms_norm {rows}x{size}{' sliced' * sliced}", dtype, by_the_launcher, run)


def _gate(tokens: int, heads: int, size: int, cut_out: bool, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        x = data(tokens, heads * size, dtype=dtype, seed=73)
        gate = data(tokens, heads, 2 * size, dtype=dtype, seed=74, scale=2.0)[..., size:]
        gate = gate if cut_out else gate.reshape(tokens, -1)
        return [Answer("y", gating.launch_gate(x, gate, target_of(via.arch), via=via), stock_gate(x, gate))]

    return Case(f"sigmoid_gate {tokens}x{heads}x{size}{' cut' * cut_out}", dtype, by_the_launcher, run)


def _shared(tokens: int, columns: int, size: int, dtype: torch.dtype) -> Case:
    def run(via: Any, cut: Config) -> list[Answer]:
        experts, shared = data(2, tokens, columns, dtype=dtype, seed=75)
        hidden = data(tokens, size, dtype=dtype, seed=76)
        weight = data(1, size, dtype=dtype, seed=77, scale=size**-0.5)
        got = gating.launch_shared(experts, shared, hidden, weight, target_of(via.arch).wave, via=via)
        logit = (hidden.double() @ weight.double().T).to(dtype)
        want = experts + torch.sigmoid(logit) * shared
        return [Answer("y", got, want, experts.double().abs() + shared.double().abs())]

    return Case(f"add_shared {tokens}x{columns}x{size}", dtype, by_the_launcher, run)


def qwen3_next() -> Iterator[Case]:
    """Every launch in every dtype, at sizes that fit no block."""
    for dtype in DTYPES:
        yield _conv(300, 4, False, False, dtype)
        yield _conv(40, 3, True, True, dtype)
        yield _rule(2, 2, 24, 40, False, dtype)
        yield _rule(1, 3, 32, 16, True, dtype)
        yield _norm(9, 100, False, dtype)
        yield _norm(3, 128, True, dtype)
        yield _gate(3, 4, 24, True, dtype)
        yield _gate(2, 1, 200, False, dtype)
        yield _shared(3, 1100, 200, dtype)
