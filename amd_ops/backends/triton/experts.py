"""softmax_top_k, moe and clamped_moe on the kernels of kernels/experts.py: the router's choice in one
launch, and the experts of few tokens in two. Inference only.

Prompts are left to grouped GEMMs, which read each expert once for all of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate, Choice
from ..probing import disagreement, made_up, needs_grad
from .common import unfit
from .configs import Config, waves
from .kernels import experts as kernels
from .layout import MAX_OFFSET, Via, directly, power_of_two, reach, specialised
from .target import Target

FEW_TOKENS = 8
"""Up to so many tokens every pair of token and expert reads its weights for itself. A guess: never timed."""
MOST_EXPERTS = 4096
MANY = Choice(f"more than {FEW_TOKENS} tokens: products of whole groups read each expert once")
GRADIENT = Choice("a gradient is needed, and these kernels have no backward")
_ROUNDED = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: ""}


def launch_top_k(
    logits: Tensor,
    top_k: int,
    renormalise: bool,
    dtype: torch.dtype,
    wave: int,
    plain: bool = False,
    via: Via = directly,
) -> tuple[Tensor, Tensor]:
    """(weights fp32 [T, k], ids int32 [T, k]) of logits [T, E] with dense rows; ``plain``: of dtype, and int64."""
    tokens, count = logits.shape
    weights = torch.empty((tokens, top_k), dtype=dtype if plain else torch.float32, device=logits.device)
    ids = torch.empty((tokens, top_k), dtype=torch.int64 if plain else torch.int32, device=logits.device)
    block = power_of_two(count)
    via(kernels.softmax_top_k)[(tokens,)](
        logits, weights, ids, logits.stride(0),
        E=count, K=top_k, NORMALISE=renormalise, ROUND=_ROUNDED[dtype],
        BLOCK=block, SLOTS=power_of_two(top_k), num_warps=waves(block, wave),
    )  # fmt: skip
    return weights, ids


def _softmax_top_k(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(logits: Tensor, top_k: int, renormalise: bool, dtype: torch.dtype, plain: bool) -> str:
        if needs_grad(logits):
            return GRADIENT
        if logits.dim() != 2 or logits.shape[1] > MOST_EXPERTS or not 0 < top_k <= logits.shape[1]:
            return f"the logits are not [T, E] of at most {MOST_EXPERTS} experts, k of them chosen"
        if dtype not in _ROUNDED or logits.stride(1) != 1:
            return "the logits' rows are not dense, or the weights are rounded to another dtype"
        return unfit(target, logits)

    def run(logits: Tensor, top_k: int, renormalise: bool, dtype: torch.dtype, plain: bool) -> tuple[Tensor, Tensor]:
        return launch_top_k(logits, top_k, renormalise, dtype, target.wave, plain)

    def variant(logits: Tensor, top_k: int, *rest: Any) -> Hashable:
        return logits.dtype, logits.shape[1], top_k, *rest

    def probe(logits: Tensor, *rest: Any) -> str:
        with torch.inference_mode():
            sample = made_up((3, logits.shape[1]), logits.dtype, logits.device, 21)
            got, want = run(sample, *rest), reference(sample, *rest)
            if not torch.equal(got[1].sort(dim=1).values, want[1].sort(dim=1).values):
                return "its probe chooses other experts than the formula"
            return disagreement(got[0], want[0])

    return Candidate(run, check, variant, probe)


class Experts:
    """Two gathered products. ``clamped``: [E, H, 2I] with gate and up interleaved and biases, else [E, 2I, H]."""

    def __init__(self, op: str, reference: Callable[..., Any], target: Target) -> None:
        self.reference, self.target, self.clamped = reference, target, op == "clamped_moe"

    def cut(self, size: int) -> Config:
        """Some columns, and enough of the ``size`` rows to fill a wave or two. Not timed."""
        block = min(power_of_two(size), 64 if self.clamped else 256)
        columns = max(2048 // block, 1)
        return Config(columns, block, waves(columns * block, self.target.wave))

    def split(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """hidden, w1, b1, w2, b2, weights, ids, kind, alpha, limit of either op's arguments."""
        if self.clamped:
            hidden, w1, b1, w2, b2, weights, ids, alpha, limit = args
            return hidden, w1, b1, w2, b2, weights, ids, "clamped", alpha, limit
        hidden, w1, w2, weights, ids, activation = args
        return hidden, w1, None, w2, None, weights, ids, activation, 0.0, 0.0

    def check(self, *args: Any) -> str:
        hidden, w1, b1, w2, b2, weights, ids, *_ = self.split(args)
        present = [one for one in (hidden, w1, b1, w2, b2, weights) if one is not None]
        if needs_grad(*present):
            return GRADIENT
        if hidden.dim() == 2 and hidden.shape[0] > FEW_TOKENS:
            return MANY
        shapes = self.shapes(hidden, w1, w2)
        if not shapes or ids.dim() != 2 or ids.shape[0] != hidden.shape[0]:
            return "the shapes do not fit each other"
        if weights.shape != ids.shape and not (self.clamped and weights.shape == (ids.shape[0], w1.shape[0])):
            return "the shapes do not fit each other"
        if any(one.dtype is not hidden.dtype for one in (w1, w2)):
            return "the experts and the hidden states are not of one dtype"
        if ids.dtype not in (torch.int32, torch.int64) or not (ids.is_contiguous() and weights.is_contiguous()):
            return "ids and weights are not dense integers and numbers"
        if any(one.stride(-1) != 1 for one in present):
            return "the last dimension of a matrix is not dense"
        if max(reach(w1[0]), reach(w2[0])) > MAX_OFFSET:
            return "one expert is too large for 32-bit indexing"
        return unfit(self.target, hidden, weights, w1[0], w2[0])

    def shapes(self, hidden: Tensor, w1: Tensor, w2: Tensor) -> tuple[int, int] | None:
        """(H, I), or None."""
        if hidden.dim() != 2 or w1.dim() != 3 or w2.dim() != 3 or w1.shape[0] != w2.shape[0]:
            return None
        size, middle = hidden.shape[1], w2.shape[1 if self.clamped else 2]
        first, second = ((size, 2 * middle), (middle, size)) if self.clamped else ((2 * middle, size), (size, middle))
        return (size, middle) if w1.shape[1:] == first and w2.shape[1:] == second else None

    def settings(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Grids, numbers, constants and waves of both launches."""
        hidden, w1, b1, w2, b2, weights, ids, kind, alpha, limit = self.split(args)
        size, middle = hidden.shape[1], w2.shape[1 if self.clamped else 2]
        tokens, chosen = ids.shape
        one, two = self.cut(size), self.cut(middle)
        first = (
            (tokens * chosen, -(-middle // one.rows)),
            (alpha, limit, hidden.stride(0), w1.stride(0), w1.stride(1), 0 if b1 is None else b1.stride(0)),
            {"K": chosen, "H": size, "N": middle, "KIND": kind, "CLAMPED": self.clamped,
             "BLOCK_N": one.rows, "BLOCK_H": one.block},
            one.warps,
        )  # fmt: skip
        second = (
            (tokens, -(-size // two.rows)),
            (w2.stride(0), w2.stride(1), 0 if b2 is None else b2.stride(0)),
            {"K": chosen, "H": middle, "N": size, "CLAMPED": self.clamped,
             "EXPERTS": 0 if weights.shape == ids.shape else w1.shape[0], "BLOCK_N": two.rows, "BLOCK_H": two.block},
            two.warps,
        )  # fmt: skip
        return first, second

    def run(self, *args: Any, via: Via = directly) -> Tensor:
        """[T, H] in hidden's dtype."""
        first, second = self.settings(args)
        return self.started(args, self.plainly(via(kernels.gate_up), *first), self.plainly(via(kernels.down), *second))

    @staticmethod
    def plainly(
        kernel: Any, grid: tuple[int, ...], numbers: tuple[Any, ...], constants: dict[str, Any], warps: int
    ) -> Callable[..., object]:
        """A launch by Triton's own way."""
        return lambda *tensors: kernel[grid](*tensors, *numbers, **constants, num_warps=warps)

    def started(self, args: tuple[Any, ...], first: Callable[..., Any], second: Callable[..., Any]) -> Tensor:
        """Allocate, and start both launches."""
        hidden, w1, b1, w2, b2, weights, ids, *_ = self.split(args)
        middle = hidden.new_empty((ids.numel(), w2.shape[1 if self.clamped else 2]))
        out: Tensor = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        first(hidden, w1, w1 if b1 is None else b1, ids, middle)
        second(middle, w2, w2 if b2 is None else b2, weights, ids, out)
        return out

    def variant(self, *args: Any) -> Hashable:
        hidden, w1, _, w2, _, weights, ids, kind, *_ = self.split(args)
        strides = specialised((hidden.stride(0), *w1.stride()[:2], *w2.stride()[:2]))
        spread = weights.shape != ids.shape
        return hidden.dtype, w1.shape, w2.shape, ids.shape[1], ids.dtype, weights.dtype, spread, kind, strides

    def probe(self, *args: Any) -> str:
        """On the experts themselves, with made-up tokens; they are only read."""
        hidden, w1, b1, w2, b2, weights, ids, *_ = self.split(args)
        with torch.inference_mode():
            tokens, where = 2, hidden.device
            sample = made_up((tokens, hidden.shape[1]), hidden.dtype, where, 17)
            shares = (made_up((tokens, weights.shape[1]), torch.float32, where, 18).abs() + 0.1).to(weights.dtype)
            chosen = torch.arange(tokens, device=where).unsqueeze(1) * 3 + torch.arange(ids.shape[1], device=where)
            chosen = (chosen % w1.shape[0]).to(ids.dtype)
            few = chosen.unique()
            again = torch.searchsorted(few, chosen)
            parts = [None if one is None else one[few.long()] for one in (w1, b1, w2, b2)]
            exact = [None if one is None else one.float() for one in parts]
            rest = args[7:] if self.clamped else args[5:]
            got = self.run(*self._joined(sample, [w1, b1, w2, b2], shares, chosen), *rest)
            own = shares if weights.shape == ids.shape else shares.gather(1, chosen.long())
            want = self.reference(*self._joined(sample.float(), exact, own, again), *rest)
            return disagreement(got, want)

    def _joined(self, hidden: Tensor, parts: list[Any], weights: Tensor, ids: Tensor) -> tuple[Any, ...]:
        return (hidden, *(one for one in parts if one is not None), weights, ids)


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of softmax_top_k, moe or clamped_moe."""
    if op == "softmax_top_k":
        return _softmax_top_k(reference, target)
    experts = Experts(op, reference, target)
    return Candidate(experts.run, experts.check, experts.variant, experts.probe)
