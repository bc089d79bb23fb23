"""AMD's hand-written gfx942 kernels, executed and compared with fp64: layouts, strides, masks, scale, argument order.

Skips where the wheel ``amd-aiter`` or an llvm-objdump that knows gfx942 is not at hand.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.doubles.aiter.kernels import gemm as double_gemm

from . import aiter_kernels, aiter_wheel
from .aiter_route import FAULTS
from .launch import BadArguments
from .memory import Fault

needs_wheel = pytest.mark.skipif(bool(aiter_wheel.missing()), reason=aiter_wheel.missing() or "at hand")
SCALE = 128**-0.5
STEP = {"rtne": 2.0**-8, "rtna": 2.0**-8, "rtz": 2.0**-7}
"""Largest relative error of one conversion to bf16: half a step, or a whole one towards zero."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def exact(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float = SCALE) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 attention [B, S, H, D], causal to the bottom right; its terms' sizes; lse [B, H, S]. A row that sees nothing
    gives 0 and -inf.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(groups, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k) * scale
    if causal:
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        scores = scores.masked_fill(hidden, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    out, size = (torch.einsum("bhqk,bkhd->bqhd", weights, x) for x in (v, v.abs()))
    return out, size, torch.logsumexp(scores, -1)


def beyond(out: Tensor, want: Tensor, size: Tensor, cvt: int) -> float:
    """The largest error in units of what is allowed: every weight is rounded to bf16 once, and the result once.

    So |error| <= step * (sum of weight * |v| + |out|); 1e-5 for fp32's sums. At most 1 is right.
    """
    allowed = STEP[aiter_kernels.CVT[cvt]] * (size + want.abs()) + 1e-5
    return float(((out.double() - want).abs() / allowed).max())


def attend(
    rows: int, columns: int, heads: int, kv: int, causal: bool, cvt: int = 1, batch: int = 1, **more: Any
) -> float:
    """``beyond`` of one call; checks that every byte of the results is written once and that lse is right.

    Causal blocks of 256 rows are computed in pairs, the first with the last: one that is left over pairs with itself.
    """
    q, k = rand(batch, rows, heads, 128), rand(batch, columns, kv, 128, seed=1)
    v = rand(batch, columns, kv, 128, seed=2)
    out, lse, result = aiter_kernels.fmha_v3_fwd(q, k, v, SCALE, causal, cvt=cvt, **more)
    want, size, sums = exact(q, k, v, causal)
    assert lse is not None
    blocks, twice = -(-rows // 256), torch.zeros(batch, rows, heads, dtype=torch.bool)
    if causal and blocks > 1 and blocks % 2:
        twice[:, blocks // 2 * 256 : (blocks // 2 + 1) * 256] = True
    times = {0: (1 + twice.int()).repeat_interleave(2 * 128, -1), 4: (1 + twice.int()).transpose(1, 2)}
    for argument, want_times in times.items():
        written = torch.from_numpy(result.written(argument).astype("int32"))
        assert torch.equal(written, want_times.reshape(-1).repeat_interleave(written.numel() // want_times.numel()))
    assert torch.equal(torch.isinf(lse), torch.isinf(sums))
    finite = ~torch.isinf(sums)
    assert float((lse.double() - sums)[finite].abs().max()) < 2e-6
    return beyond(out, want, size, cvt)


@needs_wheel
@pytest.mark.parametrize(
    ("rows", "columns", "heads", "kv", "causal", "cvt"),
    [(140, 140, 2, 1, True, 1), (130, 130, 1, 1, False, 0), (150, 200, 1, 1, True, 2)],
)
def test_attention_is_right(rows: int, columns: int, heads: int, kv: int, causal: bool, cvt: int) -> None:
    assert attend(rows, columns, heads, kv, causal, cvt) <= 1.0


@needs_wheel
def test_causality_is_bottom_right_and_rows_without_a_key_are_zero() -> None:
    q, k, v = rand(1, 150, 1, 128), rand(1, 40, 1, 128, seed=1), rand(1, 40, 1, 128, seed=2)
    out, lse, _ = aiter_kernels.fmha_v3_fwd(q, k, v, SCALE, True)
    assert lse is not None
    assert torch.equal(out[:, :110], torch.zeros_like(out[:, :110]))
    assert torch.isinf(lse[..., :110]).all()
    want, size, _ = exact(q, k, v, True)
    assert beyond(out, want, size, 1) <= 1.0


@needs_wheel
@pytest.mark.full
@pytest.mark.parametrize("cvt", [0, 1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "heads", "kv", "batch"),
    [
        (17, 17, 1, 1, 1),
        (256, 256, 2, 1, 1),
        (300, 300, 1, 1, 2),
        (513, 513, 1, 1, 1),
        (129, 400, 4, 2, 1),
        (300, 129, 1, 1, 1),
    ],
)
def test_attention_of_many_shapes(
    rows: int, columns: int, heads: int, kv: int, batch: int, causal: bool, cvt: int
) -> None:
    assert attend(rows, columns, heads, kv, causal, cvt, batch) <= 1.0


def backward(rows: int, columns: int, heads: int, kv: int, causal: bool, cvt: int = 1, **more: Any) -> float:
    """The largest error of dq, dk and dv in units of what is allowed.

    Weights and their gradients are rounded to bf16 once, and so is each result; the forward's output was rounded, too,
    which reaches every gradient of a weight through the row's sum of dout * out.
    """
    q, dout = rand(1, rows, heads, 128), rand(1, rows, heads, 128, seed=3)
    k, v = rand(1, columns, kv, 128, seed=1), rand(1, columns, kv, 128, seed=2)
    exact_of = [t.double().requires_grad_() for t in (q, k, v)]
    out, _, sums = exact(exact_of[0], exact_of[1], exact_of[2], causal)
    want = torch.autograd.grad(out, exact_of, dout.double())
    rounded = out.detach().bfloat16()
    *found, _, _ = aiter_kernels.fmha_v3_bwd(
        dout, q, k, v, rounded, sums.detach().float(), SCALE, causal, cvt=cvt, **more
    )
    step = STEP[aiter_kernels.CVT[cvt]]
    terms = _terms(*(t.double() for t in (q, k, v, dout, rounded)), causal)
    errors = [
        float(((got.double() - exactly).abs() / (step * (size + exactly.abs()) + 1e-5)).max())
        for got, exactly, size in zip(found, want, terms, strict=True)
    ]
    return max(errors)


def _terms(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, out: Tensor, causal: bool) -> list[Tensor]:
    """The sizes of what is summed up in dq, dk and dv."""
    groups = q.shape[2] // k.shape[2]
    wide_k, wide_v = (t.repeat_interleave(groups, 2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, wide_k) * SCALE
    if causal:
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        scores = scores.masked_fill(hidden, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    delta = torch.einsum("bqhd,bqhd->bhq", dout, out)[..., None]
    uncertain = torch.einsum("bqhd,bqhd->bhq", dout.abs(), out.abs())[..., None]
    inner = SCALE * weights * ((torch.einsum("bqhd,bkhd->bhqk", dout, wide_v) - delta).abs() + uncertain)
    dq = torch.einsum("bhqk,bkhd->bqhd", inner, wide_k.abs())
    dk = torch.einsum("bhqk,bqhd->bkhd", inner, q.abs())
    dv = torch.einsum("bhqk,bqhd->bkhd", weights, dout.abs())
    summed = [t.unflatten(2, (k.shape[2], groups)).sum(3) for t in (dk, dv)]
    return [dq, *summed]


@needs_wheel
@pytest.mark.parametrize(
    ("rows", "columns", "heads", "kv", "causal"),
    [(64, 64, 1, 1, False), (50, 50, 2, 1, True), (37, 200, 1, 1, True)],
)
def test_the_gradients_of_attention_are_right(rows: int, columns: int, heads: int, kv: int, causal: bool) -> None:
    assert backward(rows, columns, heads, kv, causal) <= 1.0


@needs_wheel
@pytest.mark.full
@pytest.mark.parametrize("cvt", [0, 1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("rows", "columns", "heads", "kv"), [(16, 16, 1, 1), (193, 193, 2, 2), (30, 385, 4, 2)])
def test_gradients_of_many_shapes(rows: int, columns: int, heads: int, kv: int, causal: bool, cvt: int) -> None:
    assert backward(rows, columns, heads, kv, causal, cvt) <= 1.0


@needs_wheel
@pytest.mark.parametrize(("tile", "split", "rows"), [(32, 1, 40), (64, 2, 33)])
def test_a_gemm_is_right(tile: int, split: int, rows: int) -> None:
    a, b = rand(rows, 256), rand(128, 256, seed=1)
    out, _ = aiter_kernels.gemm_a16w16_asm(a, b, tile=tile, split=split)
    assert float((out.double() - a.double() @ b.double().T).abs().max()) < 5e-5


@needs_wheel
@pytest.mark.full
@pytest.mark.parametrize("tile", [32, 48, 64, 96])
@pytest.mark.parametrize(("rows", "split"), [(1, 1), (31, 4), (97, 1), (200, 2)])
def test_gemms_of_every_tile_are_right(tile: int, rows: int, split: int) -> None:
    a, b = rand(rows, 512), rand(192, 512, seed=1)
    out, _ = aiter_kernels.gemm_a16w16_asm(a, b, tile=tile, split=split)
    assert float((out.double() - a.double() @ b.double().T).abs().max()) < 5e-5


# ---- shuffled weights


def real_shuffle() -> Callable[..., Tensor]:
    """``shuffle_weight`` of the wheel itself; its file needs torch alone."""
    import zipfile

    found = aiter_wheel.wheel()
    assert found is not None
    with zipfile.ZipFile(found) as archive:
        source = archive.read("aiter/ops/shuffle.py").decode()
    spec = importlib.util.spec_from_loader("wheels_shuffle", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, "aiter/ops/shuffle.py", "exec"), module.__dict__)
    function: Callable[..., Tensor] = module.__dict__["shuffle_weight"]
    return function


def experts() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x [5, 512], gate [2, 512, 512], down [2, 512, 512], ids and weights [5, 2]."""
    ids = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1], [0, 1]])
    weights = torch.tensor([[0.5, 0.25], [1.0, 0.5], [0.75, 0.125], [0.5, 0.5], [0.25, 1.0]])
    return rand(5, 512), rand(2, 512, 512, seed=1) * 0.05, rand(2, 512, 512, seed=2) * 0.05, ids, weights


def wrongness(layout: Callable[[Tensor], Tensor]) -> float:
    """Relative error of the experts' kernel (gelu, one gate) with weights in a layout."""
    x, gate, down, ids, weights = experts()
    out, _ = aiter_kernels.fmoe(x, layout(gate), layout(down), ids, weights)
    want = torch.zeros(out.shape, dtype=torch.float64)
    for token, choice in ((t, c) for t in range(len(ids)) for c in range(ids.shape[1])):
        expert = int(ids[token, choice])
        hidden = functional.gelu(x[token].double() @ gate[expert].double().T)
        want[token] += float(weights[token, choice]) * (hidden @ down[expert].double().T)
    return float((out.double() - want).norm() / want.norm())


@needs_wheel
def test_the_experts_kernel_reads_weights_as_shuffle_weight_lays_them_out() -> None:
    """The 16x16 layout of bf16, from machine code: right for it, and for no other."""
    shuffle = real_shuffle()
    _, gate, *_ = experts()
    assert torch.equal(double_gemm.shuffle_16x16(gate), shuffle(gate, layout=(16, 16)))
    assert wrongness(lambda w: shuffle(w, layout=(16, 16))) < 0.01
    assert wrongness(lambda w: w) > 1.0, "plain weights tagged as shuffled would go unnoticed"


@needs_wheel
def test_the_int8_gemm_reads_another_layout() -> None:
    """(32, 16), as its Python layer says: 16x16 is wrong there."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-20, 21, (n, 512), generator=generator).to(torch.int8) for n in (20, 128))
    a_scale, b_scale, bias = torch.rand(20) * 0.01, torch.rand(128) * 0.01, torch.randn(128) * 0.1
    want = (a.double() @ b.double().T) * a_scale.double()[:, None] * b_scale.double() + bias.double()
    shuffle = real_shuffle()
    for layout, right in (((32, 16), True), ((16, 16), False)):
        out, _ = aiter_kernels.gemm_a8w8_asm(a, shuffle(b, layout=layout), a_scale, b_scale, bias)
        error = float((out.double() - want).norm() / want.norm())
        assert (error < 0.01) is right, (layout, error)
    out, _ = aiter_kernels.gemm_a8w8_asm(a, shuffle(b, layout=(32, 16)), a_scale, b_scale, torch.zeros(128))
    assert float((out.double() - want).norm() / want.norm()) > 0.1, "a missing bias would go unnoticed"


# ---- routing and paged attention


@needs_wheel
@pytest.mark.parametrize(("experts_count", "topk"), [(128, 8), (256, 6)])
def test_topk_softmax_is_right(experts_count: int, topk: int) -> None:
    gating = torch.randn(9, experts_count, generator=torch.Generator().manual_seed(0))
    weights, indices, _ = aiter_kernels.topk_softmax_asm(gating, topk, True)
    chosen, places = gating.double().softmax(-1).topk(topk)
    assert torch.equal(indices.long(), places)
    assert float((weights.double() - chosen / chosen.sum(-1, keepdim=True)).abs().max()) < 1e-6


@needs_wheel
def test_topk_softmax_reads_fp32_alone() -> None:
    """Its C++ checks no dtype: bf16 gating would be read past its end."""
    with pytest.raises(Fault, match="outside every buffer"):
        aiter_kernels.topk_softmax_asm(rand(9, 128), 8, True)


@needs_wheel
def test_paged_attention_is_right() -> None:
    kv_heads, groups, size, block = 1, 8, 128, 16
    lengths = torch.tensor([5, 40, 129], dtype=torch.int32)
    tables = torch.randperm(27, generator=torch.Generator().manual_seed(0)).view(3, 9).to(torch.int32)
    k, v = rand(27, block, kv_heads, size, seed=1), rand(27, block, kv_heads, size, seed=2)
    q = rand(3, groups * kv_heads, size)
    keys = k.permute(0, 2, 3, 1).reshape(27, kv_heads, size // 8, 8, block).transpose(3, 4).contiguous()
    values = v.permute(0, 2, 1, 3).reshape(27, kv_heads, block // 8, 8, size).transpose(3, 4).contiguous()
    out, _ = aiter_kernels.pa_fwd(q, keys, values, tables, lengths)
    for n, length in enumerate(lengths.tolist()):
        rows = [x[tables[n].long()].reshape(-1, kv_heads, size)[None, :length] for x in (k, v)]
        want, terms, _ = exact(q[n][None, None], rows[0], rows[1], False)
        assert beyond(out[n], want[0, 0], terms[0, 0], 2) <= 1.0


@needs_wheel
def test_this_machine_code_truncates_fp32_to_bf16() -> None:
    """A residual sum of layer_norm.co: every element is the truncation, and many are not the nearest."""
    x, residual = rand(2, 8192), rand(2, 8192, seed=1)
    ones = torch.ones(8192).bfloat16()
    _, total, _ = aiter_kernels.layernorm2d_with_add_asm(x, residual, ones, ones)
    exact_sum = x.float() + residual.float()
    truncated = (exact_sum.view(torch.int32) & -65536).view(torch.float32)
    assert torch.equal(total.float(), truncated)
    assert float((total != exact_sum.bfloat16()).float().mean()) > 0.2


# ---- faults between Python and kernel


def _swapped(values: list[Any], a: int, b: int) -> list[Any]:
    values[a], values[b] = values[b], values[a]
    return values


def _with(values: list[Any], **changed: Any) -> list[Any]:
    for at, value in changed.items():
        values[int(at[1:])] = value
    return values


ARGUMENT_FAULTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    # positions in ``attention_arguments``
    "strides of rows and heads swapped (q)": lambda v: _swapped(v, 7, 9),
    "strides of rows and heads swapped (k)": lambda v: _swapped(v, 12, 13),
    "transposed v": lambda v: _swapped(v, 21, 22),
    "wrong scale": lambda v: _with(v, _5=1.1 * v[5]),
    "k heads mapped one to one": lambda v: _with(v, _11=1),
    "keys counted as queries": lambda v: _with(v, _17=v[6]),
    "strides in elements": lambda v: _with(v, **{f"_{n}": v[n] // 2 for n in (7, 8, 9, 10)}),
    "lse of one head": lambda v: _with(v, _4=v[4][:, 0].clone()),
    "lse of all heads in one place": lambda v: _with(v, _29=0),
    "q and k swapped": lambda v: _swapped(v, 1, 2),
}


@needs_wheel
@pytest.mark.parametrize("fault", sorted(ARGUMENT_FAULTS))
def test_a_wrong_argument_is_noticed(fault: str) -> None:
    """As a fault of memory, or as numbers beyond the bound."""

    def arguments(*given: Any) -> list[Any]:
        return ARGUMENT_FAULTS[fault](aiter_kernels.attention_arguments(*given))

    kv = 1 if "one to one" in fault else 2
    error = noticed(lambda: attend(130, 150, 2, kv, True, arguments=arguments))
    assert not error <= 4.0, f"{fault} goes unnoticed: {error} of what is allowed"


def noticed(call: Callable[[], float]) -> float:
    """The error that a call with a fault shows; infinity where the memory or a count of it does."""
    try:
        return call()
    except (Fault, AssertionError):
        return math.inf


BACKWARD_FAULTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    # positions in ``backward_arguments``
    "wrong scale": lambda v: _with(v, _9=1.1 * v[9]),
    "dk and dv swapped": lambda v: _swapped(v, 1, 2),
    "k heads mapped one to one": lambda v: _with(v, _11=1),
    "strides of rows and heads swapped (dout)": lambda v: _swapped(v, 25, 27),
    "the sum of dout and out left out": lambda v: _with(v, _8=torch.zeros_like(v[8])),
    "lse of the other head": lambda v: _with(v, _7=v[7].flip(1).contiguous()),
}


@needs_wheel
@pytest.mark.parametrize("fault", sorted(BACKWARD_FAULTS))
def test_a_wrong_argument_of_the_backward_is_noticed(fault: str) -> None:
    def arguments(*given: Any) -> list[Any]:
        return BACKWARD_FAULTS[fault](aiter_kernels.backward_arguments(*given))

    error = noticed(lambda: backward(50, 60, 2, 1, True, arguments=arguments))
    assert not error <= 4.0, f"{fault} goes unnoticed: {error} of what is allowed"


@needs_wheel
def test_a_top_left_mask_is_noticed() -> None:
    q, k, v = rand(1, 130, 1, 128), rand(1, 170, 1, 128, seed=1), rand(1, 170, 1, 128, seed=2)
    out, _, _ = aiter_kernels.fmha_v3_fwd(q, k[:, :130], v[:, :130], SCALE, True)
    want, size, _ = exact(q, k, v, True)
    assert beyond(out, want, size, 1) > 4.0


def test_what_does_not_fit_a_kernel_is_refused() -> None:
    with pytest.raises(BadArguments, match="bf16 only"):
        aiter_kernels.fmha_v3_fwd(*(torch.zeros(1, 4, 1, 128),) * 3, SCALE, True)
    with pytest.raises(BadArguments, match="N=65"):
        aiter_kernels.gemm_a16w16_asm(rand(4, 64), rand(65, 64))


@needs_wheel
def test_a_wheel_without_the_code_object_names_it() -> None:
    with pytest.raises(KeyError, match="no_such_kernel"):
        aiter_wheel.read("no_such_kernel.co")


# ---- the product's route


def route(*arguments: str) -> list[dict[str, Any]]:
    """Run the script in a process of its own; its lines."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.emulator.aiter_route", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@needs_wheel
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_our_route_reaches_the_machine_code_and_its_answer_is_right() -> None:
    """route_attention, our backend, aiter's Python, kernel arguments, machine code; the probe is executed, too."""
    rows = route()
    assert [row["op"] for row in rows].count("attention") == 5
    assert [row["op"] for row in rows].count("attention with gradients") == 2
    for row in rows:
        assert row["ran"], f"{row['case']} ran no machine code: {row['declined']}"
        assert row["declined"] == []
        assert row["error"] <= {"attention": 1.6e-2, "attention with gradients": 1e-2, "linear": 5e-5}[row["op"]], row
        assert (row["op"] != "attention with gradients") or any("bwd" in name for name, _ in row["ran"])
    kernels = {name for row in rows for name, _ in row["ran"]}
    attention = {"fmha_v3_fwd", "fmha_v3_varlen_fwd", "fmha_v3_bwd", "fmha_v3_varlen_bwd"}
    assert kernels == {*attention, "gemm_a16w16_asm"}


@needs_wheel
@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_behind_our_call_is_found_by_our_probe(fault: str) -> None:
    """The probe runs the faulty kernel, compares and declines: the answer is another tier's, and right."""
    rows = route("--fault", fault)
    assert any("probe disagrees" in reason for row in rows for reason in row["declined"]), rows
    assert all(row["error"] <= 1.6e-2 for row in rows)
