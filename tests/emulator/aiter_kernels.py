"""Launches of AMD's hand-written gfx942 kernels as aiter's C++ makes them, transcribed from the sources in its wheel.

Between aiter's Python and a kernel lies C++ that turns tensors into arguments. It cannot run here, so it is written
again below, line by line, with the file it stands in. Arguments lie 16 bytes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import aiter_wheel
from .launch import BadArguments, Options, Result, run
from .machine import Size

HAND_WRITTEN = Options(strict=False, strict_lds=False, fair=True)
"""Lanes that hold the same value may store it to the same place, and LDS is used again without a barrier where the
waves' equal speed keeps them apart.
"""
CVT = ("rtne", "rtna", "rtz")


def execute(
    name: str, values: Sequence[Any], grid: Size, threads: int, *, outputs: Sequence[int] = (), lds: int | None = None,
    apart: int = 16, options: Options = HAND_WRITTEN,
) -> Result:  # fmt: skip
    """Run a code object's kernel; ``values`` are tensors, numbers or None (8 null bytes), ``apart`` bytes apart."""
    code, kernel, program = aiter_wheel.kernel(name)
    kinds = [("global_buffer", 8) if v is None or isinstance(v, Tensor) else ("by_value", 4) for v in values]
    described = [{".value_kind": k, ".offset": apart * n, ".size": size} for n, (k, size) in enumerate(kinds)]
    kernel = replace(kernel, meta={**kernel.meta, ".args": described}, kernarg=apart * len(values))
    return run(program, kernel, code.arch, values, grid, (threads, 1, 1), lds=lds, outputs=outputs, options=options)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise BadArguments(message)


def attention_arguments(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, scale: float, causal: bool
) -> list[Any]:
    """hsa/gfx942/fmha_v3_fwd/codegen.py, ``fmha_fwd_v3_dispatcher``: strides in bytes."""
    heads, size = q.shape[2], q.element_size()

    def by(t: Tensor, dim: int) -> int:
        return t.stride(dim) * size

    tuned = 3 if causal and (heads % 8 or q.shape[1] > 16384) else 5
    return [
        out, q, k, v, lse, float(scale), q.shape[1], by(q, 1), 256 * by(q, 1), by(q, 2), by(q, 0),
        heads // k.shape[2], by(k, 1), by(k, 2), by(k, 0), tuned, int(lse is not None), k.shape[1], q.shape[3],
        v.shape[3], heads, by(v, 1), by(v, 2), by(v, 0), by(out, 1), by(out, 2), by(out, 0),
        None, None, 0 if lse is None else lse.stride(1) * 4, None, None,
    ]  # fmt: skip


def fmha_v3_fwd(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, *, return_lse: bool = True, cvt: int = 1,
    arguments: Any = attention_arguments,
) -> tuple[Tensor, Tensor | None, Result]:  # fmt: skip
    """csrc/py_itfs_cu/asm_mha_fwd.cu, ``fmha_v3_fwd``: q [B,Sq,H,128], k/v [B,Sk,Hkv,128] bf16 -> out, lse [B,H,Sq]."""
    _check(q.dtype is k.dtype is v.dtype is torch.bfloat16, "bf16 only")
    _check(all(t.stride(-1) == 1 for t in (q, k, v)), "Input tensor must have contiguous last dimension")
    _check(q.shape[2] % k.shape[2] == 0, "Number of heads in key/value must divide number of heads in query")
    _check(q.shape[3] == v.shape[3] == 128, "invalid argument for fmha_fwd: head size")
    causal = causal and q.shape[1] > 1
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1]) if return_lse else None
    name = f"fmha_v3_fwd/MI300/fwd_hd128_bf16{'_causal' if causal else ''}_{CVT[cvt]}.co"
    blocks = _attention_blocks(q.shape[1], causal)
    values = arguments(q, k, v, out, lse, scale, causal)
    written = [n for n in (0, 4) if isinstance(values[n], Tensor)]
    result = execute(name, values, (blocks, q.shape[2], q.shape[0]), 512, outputs=written)
    return out, lse, result


def _attention_blocks(rows: int, causal: bool) -> int:
    """Workgroups along the queries: 256 rows each, two such blocks where the mask makes them unequal."""
    return math.ceil(math.ceil(rows / 256) / (2 if causal else 1))


def fmha_v3_varlen_fwd(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest: int, scale: float, causal: bool,
    *, cvt: int = 1,
) -> tuple[Tensor, Tensor, Result]:  # fmt: skip
    """csrc/py_itfs_cu/asm_mha_varlen_fwd.cu: packed q [T,H,128], k/v [U,Hkv,128], ends [B+1] -> out, lse [H,T]."""
    _check(q.dtype is k.dtype is v.dtype is torch.bfloat16, "bf16 only")
    out, lse = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype), torch.empty(q.shape[1], q.shape[0])
    dense = [t[None] for t in (q, k, v, out)]
    values = attention_arguments(*dense, lse[None], scale, causal)
    for batch_stride in (10, 14, 23, 26):
        values[batch_stride] = 0
    values[27], values[28], values[29], values[30], values[31] = q_ends, k_ends, lse.stride(0) * 4, q_ends, k_ends
    name = f"fmha_v3_fwd/MI300/fwd_hd128_bf16{'_causal' if causal else ''}_{CVT[cvt]}_group.co"
    grid = (q.shape[1], len(q_ends) - 1, _attention_blocks(longest, causal))
    return out, lse, execute(name, values, grid, 512, outputs=[0, 4])


def backward_arguments(
    grads: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> list[Any]:
    """hsa/gfx942/fmha_v3_bwd/codegen.py, ``fmha_bwd_v3_genl_``: of each tensor the strides of heads, batch and rows."""
    dq, dk, dv = grads
    strides = [t.stride(dim) * 2 for t in (q, k, v, dout, dk, dv) for dim in (2, 0, 1)]
    return [
        dq, dk, dv, q, k, v, dout, lse, delta, float(scale), math.log2(math.e), q.shape[2] // k.shape[2],
        q.shape[1], k.shape[1], q.shape[3], q.shape[2], *strides,
    ]  # fmt: skip


def fmha_v3_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool,
    *, cvt: int = 1, arguments: Any = backward_arguments,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Result]:  # fmt: skip
    """csrc/py_itfs_cu/asm_mha_bwd.cu, ``fmha_v3_bwd`` with fp32 atomics: q, dout [B,Sq,H,128], k/v [B,Sk,Hkv,128].

    The two small CK kernels around it are not in the wheel and are their formulas here: rows of dout * out in front,
    fp32 to bf16 behind. Of grouped heads every query head has its own dk and dv, which are added up at the end.
    """
    _check(all(t.dtype is torch.bfloat16 for t in (dout, q, k, v, out)), "bf16 only")
    _check(q.shape[3] == v.shape[3] == 128, "this transcription takes heads of 128")
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2).contiguous()
    dq = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    dk, dv = (torch.empty(*k.shape[:2], *q.shape[2:], dtype=q.dtype) for _ in range(2))
    mask = "" if not causal else "_causal" if q.shape[1] == k.shape[1] else "_causal_br"
    blocks = math.ceil(k.shape[1] / 192)
    name = f"fmha_v3_bwd/bwd_hd128_bf16{mask}_a32_{CVT[cvt]}_psskddv.co"
    values = arguments((dq, dk, dv), q, k, v, dout, lse, delta, scale)
    grid = (math.ceil(blocks / 2) if causal else blocks, q.shape[2], q.shape[0])
    result = execute(name, values, grid, 256, outputs=[1, 2], apart=8)
    return dq.transpose(1, 2).to(q.dtype), _of_groups(dk, k), _of_groups(dv, k), delta, result


def _of_groups(grad: Tensor, keys: Tensor) -> Tensor:
    """Add up what the query heads of a group have to say about their key head."""
    split = grad.unflatten(-2, (keys.shape[-2], grad.shape[-2] // keys.shape[-2]))
    return split.float().sum(-2).to(grad.dtype)


def fmha_v3_varlen_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, q_ends: Tensor, k_ends: Tensor,
    longest: int, scale: float, causal: bool, *, cvt: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Result]:  # fmt: skip
    """csrc/py_itfs_cu/asm_mha_varlen_bwd.cu: packed q, dout [T,H,128], k/v [U,Hkv,128], lse [H,T], ends [B+1].

    ``longest`` sequence of keys; as for `fmha_v3_bwd`, the CK kernels around it are their formulas.
    """
    delta = (dout.float() * out.float()).sum(-1).T.contiguous()
    dq = torch.zeros(q.shape[1], q.shape[0], q.shape[2])
    dk, dv = (torch.empty(k.shape[0], *q.shape[1:], dtype=q.dtype) for _ in range(2))
    values = [
        dq, dk, dv, q, k, v, dout, lse, delta, q_ends, k_ends, q_ends, k_ends, float(scale), math.log2(math.e),
        q.shape[1] // k.shape[1], lse.stride(0) * 4, k.shape[0],
        *(t.stride(dim) * 2 for t in (q, k, v, dout, dk, dv) for dim in (1, 0)), q.shape[2],
    ]  # fmt: skip
    blocks = math.ceil(longest / 192)
    name = f"fmha_v3_bwd/bwd_hd128_bf16{'_causal_br' if causal else ''}_a32_{CVT[cvt]}_pssk_group.co"
    grid = (math.ceil(blocks / 2) if causal else blocks, q.shape[1], len(q_ends) - 1)
    result = execute(name, values, grid, 256, outputs=[1, 2], apart=8)
    return dq.transpose(0, 1).to(q.dtype), _of_groups(dk, k), _of_groups(dv, k), delta, result


def gemm_a16w16_asm(
    a: Tensor, b: Tensor, *, tile: int = 64, split: int = 1, arguments: Any = None
) -> tuple[Tensor, Result]:
    """csrc/py_itfs_cu/asm_gemm_a16w16.cu: a [M,K] @ b [N,K].T, bf16 -> fp32 [M,N]; N % 64 == 0, K % 64 == 0."""
    (m, k), n = a.shape, b.shape[0]
    _check(n % 64 == 0 and k % 64 == 0, f"not find kernel for bf16gemm: N={n}, K={k}")
    out = torch.zeros(m, n)  # with a split the parts are added up in it
    values = [
        out, None, a, b, 1.0, 0.0, 0, 0, n * 4, 0, k * 2, 0, k * 2, 0, m, n, k, split,
    ]  # fmt: skip
    values = values if arguments is None else arguments(values)
    grid = (n // 64, -(-m // tile), split)
    return out, execute(f"bf16gemm/bf16gemm_outf32_tn_{tile}x64_pf3.co", values, grid, 256)


def gemm_a8w8_asm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor, *, tile: int = 128, split: int = 1
) -> tuple[Tensor, Result]:
    """csrc/py_itfs_cu/asm_gemm_a8w8.cu: int8 a [M,K], shuffled int8 b [N,K], scales and bias fp32 -> bf16 [M,N]."""
    (m, k), n = a.shape, b.shape[0]
    out = torch.zeros(m, n, dtype=torch.bfloat16)
    values = [out, a, b, a_scale, b_scale, bias, m, n, k, k, k, n * 2, split]
    grid = (n // 128 * split, -(-m // tile), 1)
    name = f"i8gemm/I8gemm_bf16_perTokenI8_BpreShuffle_{tile}x128.co"
    return out, execute(name, values, grid, 256, outputs=[0])


def fmoe(x: Tensor, gate: Tensor, down: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> tuple[Tensor, Result]:
    """csrc/py_itfs_cu/asm_fmoe.cu, ``fmoe``: x [T,D], gate [E,I,D], down [E,D,I] shuffled, bf16 -> [T,D]."""
    experts, dim, inter = down.shape
    ids, weights, owners, count = sort_by_expert(topk_ids, topk_weights, experts)
    out = torch.zeros(len(x), dim, dtype=x.dtype)
    values = [
        out, x, gate, count, down, None, None, None, None, ids, weights, owners,
        dim, inter, len(x), experts, x.stride(0) * 2, dim * 2, inter * 2, dim * 2, dim * inter * 2, dim * inter * 2,
        0, 0, inter * 4, topk_ids.shape[1], 0, -(-inter // 512),
    ]  # fmt: skip
    return out, execute("fmoe_b16.co", values, (-(-inter // 512), len(owners), 1), 256)


def sort_by_expert(
    ids: Tensor, weights: Tensor, experts: int, block: int = 32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``moe_sorting_fwd`` leaves: slots of 32 rows per expert, each slot's expert, how many rows there are.

    A row is token | choice << 24; rows that fill a slot name the token behind the last one.
    """
    tokens, choices = ids.shape
    rows: list[int] = []
    scales: list[float] = []
    owners: list[int] = []
    for expert in range(experts):
        mine = [(t, c) for t in range(tokens) for c in range(choices) if int(ids[t, c]) == expert]
        padded = -(-len(mine) // block) * block
        rows += [t | c << 24 for t, c in mine] + [tokens | choices << 24] * (padded - len(mine))
        scales += [float(weights[t, c]) for t, c in mine] + [0.0] * (padded - len(mine))
        owners += [expert] * (padded // block)
    count = torch.tensor([len(rows), tokens], dtype=torch.int32)
    return torch.tensor(rows, dtype=torch.int32), torch.tensor(scales), torch.tensor(owners, dtype=torch.int32), count


def topk_softmax_asm(gating: Tensor, topk: int, renormalise: bool) -> tuple[Tensor, Tensor, Result]:
    """csrc/py_itfs_cu/asm_topksoftmax.cu: fp32 or bf16 gating [T,E], E 128 or 256, topk 6 or 8 -> weights, indices."""
    tokens, experts = gating.shape
    weights, indices = torch.zeros(tokens, topk), torch.zeros(tokens, topk, dtype=torch.int32)
    values = [indices, weights, gating, tokens, experts, topk, int(renormalise), topk * 4]
    name = f"topksoftmax/topksoftmax_4x{experts}x{topk}.co"
    return weights, indices, execute(name, values, (-(-tokens // 4), 1, 1), 256, outputs=[0, 1])


def pa_fwd(q: Tensor, k: Tensor, v: Tensor, tables: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
    """csrc/py_itfs_cu/asm_pa.cu: one query per sequence over a paged cache of blocks of 16, bf16.

    q [N,H,128], k [blocks,Hkv,128/8,16,8], v [blocks,Hkv,16/8,128,8], tables [N,blocks of a sequence], lengths [N].
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    out = torch.zeros_like(q)
    values = [
        out, q, k, v, tables, lengths, None, None, math.log2(math.e) / math.sqrt(q.shape[2]), tables.shape[1], kv_heads,
        q.stride(0) * 2, k.stride(0) * 2, k.stride(1) * 2, heads // kv_heads, None,
    ]  # fmt: skip
    name = f"pa/pa_bf16_noquant_gqa{heads // kv_heads}_1tg_4w.co"
    return out, execute(name, values, (kv_heads, len(lengths), 1), 256, outputs=[0])


def layernorm2d_with_add_asm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Result]:
    """csrc/py_itfs_cu/asm_layernorm.cu: bf16 [M,8192], M even -> norm, residual sum."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    values = [out, x, weight, bias, 1e-6, len(x), x.shape[1], total, residual, None, None]
    return out, total, execute("layer_norm.co", values, (len(x) // 2, 1, 1), 256, outputs=[0, 7])
