"""Vector instructions that compute: from one line of assembler to a function of the waves it runs for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arithmetic, lanes
from .arithmetic import F32, F64, I32, I64, U32, U64, Array, Unknown
from .machine import Machine
from .text import Instruction
from .vector_table import APPROXIMATE, COMPARE, COMPARE_KINDS, VALU

Run = Callable[[Any], None]
Read = Callable[[Any], Array]


def _sources(m: Machine, i: Instruction, kinds: str, first: int = 1) -> list[Callable[[Any], Array]]:
    sdwa = i.full.endswith("_sdwa")
    view = lanes.lane_view(m, i)
    op_sel = [c == "1" for c in re.findall(r"[01]", i.mods.get("op_sel", ""))]
    out = []
    for n, kind in enumerate(kinds):
        half = n < len(op_sel) and op_sel[n] and kind in "hwx"
        if kind in "DE":
            out.append(m.source(i.operands[0], "f" if kind == "D" else "h"))
            continue
        if kind == "m":
            out.append(_mix_source(m, i, n, i.operands[first + n]))
            continue
        this = view if n == 0 else None
        if sdwa and n < 2:
            this = lanes.sdwa_view(i.mods.get(f"src{n}_sel", "DWORD"))
        out.append(m.source(i.operands[first + n], kind, half, this))
    return out


def _mix_source(m: Machine, i: Instruction, n: int, token: str) -> Callable[[Any], Array]:
    high = re.findall(r"[01]", i.mods.get("op_sel_hi", "000"))
    low = re.findall(r"[01]", i.mods.get("op_sel", "000"))
    if high[n] == "0":
        return m.source(token, "f")
    read = m.source(token, "h", low[n] == "1")
    return lambda g: read(g).astype(F32)


def _finish(i: Instruction) -> Callable[[Array], Array] | None:
    mods = i.mods
    if "mul" in mods:
        k = F32(mods["mul"])
        return lambda x: x * k
    if "div" in mods:
        return lambda x: x / F32(2)
    if "clamp" in mods:
        if i.name.endswith(("f32", "f16", "f64")):
            return lambda x: np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))
        raise Unknown("integer clamp")
    return None


def _sdwa_put(m: Machine, i: Instruction, kind: str) -> Callable[[Any, Array, Array | None], None]:
    shift, width = lanes.sdwa_select(i.mods.get("dst_sel", "DWORD"))
    if width == 32:
        return m.put(i.operands[0], kind)
    unused = i.mods.get("dst_unused", "UNUSED_PAD")
    old = m.raw(i.operands[0], "u")
    write = m.put(i.operands[0], "u")
    field = U32(((1 << width) - 1) << shift)

    def put(g: Any, x: Array, on: Array | None) -> None:
        x = np.asarray(x)
        bits = x.view(np.uint16).astype(U32) if x.dtype.itemsize == 2 else x.view(U32)
        part = (bits << U32(shift)) & field
        if unused == "UNUSED_PRESERVE":
            part = part | (old(g) & ~field)
        elif unused == "UNUSED_SEXT":
            raise Unknown("UNUSED_SEXT")
        write(g, part, on)

    return put


def _value(m: Machine, i: Instruction) -> tuple[str, Read]:
    """(kind, value) of a plain vector instruction."""
    if i.name in APPROXIMATE:
        return "f", _approximate(m, i)
    if i.name in ("v_cndmask_b32", "v_cndmask_b16"):
        kind = "u" if i.name.endswith("32") else "w"
        a, b = _sources(m, i, kind * 2)
        mask = m.mask_of(i.operands[3] if len(i.operands) > 3 else "vcc" if m.lanes == 64 else "vcc_lo")
        return kind, lambda g: np.where(mask(g), b(g), a(g))
    if i.name == "v_bitop3_b32":
        return "u", _any_bits(m, i)
    if i.name not in VALU:
        raise Unknown(f"instruction {i.full}")
    kind, kinds, function = VALU[i.name]
    reads = _sources(m, i, kinds)
    finish = _finish(i)

    def value(g: Any) -> Array:
        x = function(*[read(g) for read in reads])
        return finish(x) if finish else x

    return kind, value


def _approximate(m: Machine, i: Instruction) -> Read:
    kind, function = APPROXIMATE[i.name]
    (read,) = _sources(m, i, kind)
    finish = _finish(i)

    def near(g: Any) -> Array:
        x = rounded(m, function(read(g)))
        return finish(x) if finish else x

    return near


def rounded(m: Machine, exact: Array) -> Array:
    """fp64 to fp32 as an approximating instruction may answer: nearest, or with jitter the other neighbour."""
    x = exact.astype(F32)
    if m.jitter:
        x = arithmetic.neighbour(exact, x, m.random)
    return arithmetic.flushed(x)


def _any_bits(m: Machine, i: Instruction) -> Read:
    """V_BITOP3_B32: any function of three bits, by its table."""
    a, b, c = _sources(m, i, "uuu")
    table = int(i.mods["bitop3"], 0)

    def value(g: Any) -> Array:
        x, y, z = a(g), b(g), c(g)
        out = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), U32)
        for k in range(8):
            if table >> k & 1:
                out = out | ((x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z))
        return out

    return value


def deferred(m: Machine, i: Instruction) -> Callable[[Any], Callable[[], None]]:
    kind, value = _value(m, i)
    write = m.put(i.operands[0], kind)

    def run(g: Any) -> Callable[[], None]:
        x = value(g)
        return lambda: write(g, x, None)

    return run


def build_vector(m: Machine, i: Instruction) -> Run:
    kind, value = _value(m, i)
    enable = lanes.dpp_enable(m, i)
    op_sel = re.findall(r"[01]", i.mods.get("op_sel", ""))
    high = kind in "hwx" and len(op_sel) > 1 and op_sel[-1] == "1"
    write = _sdwa_put(m, i, kind) if i.full.endswith("_sdwa") else m.put(i.operands[0], kind, high)
    if enable is None:
        return lambda g: write(g, value(g), None)
    return lambda g: write(g, value(g), enable(g))


def build_compare(m: Machine, i: Instruction) -> Run:
    name = i.name
    writes_exec = name.startswith("v_cmpx")
    _, _, rest = name.partition("_cmpx_" if writes_exec else "_cmp_")
    operands = i.operands if len(i.operands) > 2 else ["exec" if writes_exec else "vcc", *i.operands]
    j = Instruction(i.name, i.full, operands, i.mods, i.text, i.address)
    if rest.startswith("class_") and rest != "class_f32":
        raise Unknown(f"instruction {i.full}")
    if rest.startswith("class_"):
        a, b = _sources(m, j, "fu")
        test: Callable[[Any], Array] = lambda g: arithmetic.classify(a(g), b(g))  # noqa: E731
    else:
        relation, _, typ = rest.rpartition("_")
        kind = COMPARE_KINDS[typ]
        relation = {"tru": "t"}.get(relation, relation)
        if kind in "fhd" and relation in ("ne",):
            relation = "neq"
        f = COMPARE[relation]
        a, b = _sources(m, j, kind * 2)
        test = lambda g: f(a(g), b(g))  # noqa: E731
    write = m.set_mask(operands[0])
    extra = m.set_mask("exec") if writes_exec and operands[0] not in ("exec", "exec_lo") else None

    def run(g: Any) -> None:
        mask = np.broadcast_to(test(g), (m.n(g), m.lanes)) & m.E[g]
        write(g, mask)
        if extra:
            extra(g, mask)

    return run


def _carry(m: Machine, i: Instruction) -> Run:
    name, o = i.name, i.operands
    a, b = m.source(o[2], "u"), m.source(o[3], "u")
    carry = m.mask_of(o[4]) if len(o) > 4 else None
    write, flag = m.put(o[0], "u"), m.set_mask(o[1])
    subtract, reverse, clamp = "sub" in name, "rev" in name, "clamp" in i.mods

    def run(g: Any) -> None:
        x, y = a(g).astype(I64), b(g).astype(I64)
        if reverse:
            x, y = y, x
        c = carry(g).astype(I64) if carry else 0
        r = x - y - c if subtract else x + y + c
        r = np.broadcast_to(r, (m.n(g), m.lanes))
        over = (r < 0) if subtract else (r > 0xFFFFFFFF)
        if clamp:
            r = np.clip(r, 0, 0xFFFFFFFF)
        write(g, (r & 0xFFFFFFFF).astype(U32), None)
        flag(g, over & m.E[g])

    return run


def _mad64(m: Machine, i: Instruction) -> Run:
    o = i.operands
    signed = "i64" in i.name
    a, b, c = m.source(o[2], "i" if signed else "u"), m.source(o[3], "i" if signed else "u"), m.source(o[4], "U")
    write = m.put(o[0], "U")
    wide = I64 if signed else U64

    def run(g: Any) -> None:
        r = (a(g).astype(wide) * b(g).astype(wide)).view(U64) + c(g)
        write(g, np.ascontiguousarray(np.broadcast_to(r, (m.n(g), m.lanes))), None)

    return run


def build_mix(m: Machine, i: Instruction) -> Run:
    """V_FMA_MIXLO/MIXHI_F16: fp16 of an fma of fp32 or fp16 operands, rounded once; the other half stays."""
    a, b, c = (_mix_source(m, i, n, i.operands[1 + n]) for n in range(3))
    high = "mixhi" in i.name
    bank, at = m.bank(i.operands[0])

    def run(g: Any) -> None:
        bits = arithmetic.fma_fp16(a(g), b(g), c(g)).view(np.uint16).astype(U32)
        old = bank[at, g]
        merged = (old & U32(0xFFFF)) | (bits << U32(16)) if high else (old & U32(0xFFFF0000)) | bits
        m.put_register(bank, at, g, merged, m.E[g])

    return run


def _div_scale(m: Machine, i: Instruction) -> Run:
    o = i.operands
    a, b, c = m.source(o[2], "f"), m.source(o[3], "f"), m.source(o[4], "f")
    write, flag = m.put(o[0], "f"), m.set_mask(o[1])

    def exponent(x: Array) -> Array:
        return ((x.view(U32) >> U32(23)) & U32(255)).astype(I32)

    def run(g: Any) -> None:
        # s0: what to scale, s1: denominator, s2: numerator
        s0, s1, s2 = (np.ascontiguousarray(np.broadcast_to(x(g), (m.n(g), m.lanes))) for x in (a, b, c))
        up = arithmetic.ldexp(s0, np.full(s0.shape, 64))
        same = s0.view(U32) == s1.view(U32)
        quotient = s2.astype(F64) / s1.astype(F64)
        zero = (s2 == 0) | (s1 == 0)
        far = exponent(s2) - exponent(s1) >= 96
        small = (np.abs(quotient) < 1.17549435e-38) & (quotient != 0)
        tiny = exponent(s2) <= 23
        out = np.where(
            zero, F32(np.nan), np.where(far, np.where(same, up, s0), np.where(small, s0, np.where(tiny, up, s0)))
        )
        denormal = (np.abs(s1) < F32(1.17549435e-38)) & (s1 != 0)
        write(g, np.where(denormal, F32(np.nan), out).astype(F32), None)
        flag(g, (zero | far | small | tiny) & m.E[g])

    return run


def _div_fmas(m: Machine, i: Instruction) -> Run:
    a, b, c = (m.source(t, "f") for t in i.operands[1:4])
    mask = m.mask_of("vcc" if m.lanes == 64 else "vcc_lo")
    write = m.put(i.operands[0], "f")

    def run(g: Any) -> None:
        x = arithmetic.fma(a(g), b(g), c(g))
        x = np.broadcast_to(x, (m.n(g), m.lanes))
        # the ISA documents say 2**32; what undoes V_DIV_SCALE's 2**64 is 2**64 or 2**-64, by the addend's size
        exp = ((np.broadcast_to(c(g), x.shape).copy().view(U32) >> U32(23)) & U32(255)).astype(I32)
        write(g, np.where(mask(g), arithmetic.ldexp(x, np.where(exp > 127, 64, -64)), x).astype(F32), None)

    return run


def _cvt_sdst(m: Machine, i: Instruction) -> Run:
    """gfx12 scalar transcendental v_s_*: SGPR in, SGPR out."""
    name = i.name.replace("v_s_", "v_")
    _, function = APPROXIMATE[name]
    read, at = m.source(i.operands[1], "f"), m.scalar(i.operands[0])

    def run(g: Any) -> None:
        m.S[at, g] = np.broadcast_to(rounded(m, function(read(g))).view(U32)[:, 0], (m.n(g),))

    return run


SPECIAL: dict[str, Callable[[Machine, Instruction], Run]] = {
    "v_mad_u64_u32": _mad64,
    "v_mad_i64_i32": _mad64,
    "v_mad_co_u64_u32": _mad64,
    "v_mad_co_i64_i32": _mad64,
    "v_readfirstlane_b32": lanes.read_first,
    "v_readlane_b32": lanes.read_lane,
    "v_writelane_b32": lanes.write_lane,
    "v_permlane16_b32": lanes.permute_16,
    "v_permlanex16_b32": lanes.permute_16,
    "v_permlane32_swap_b32": lanes.swap_rows,
    "v_permlane16_swap_b32": lanes.swap_rows,
    "v_mbcnt_lo_u32_b32": lanes.count_below,
    "v_mbcnt_hi_u32_b32": lanes.count_below,
    "v_swap_b32": lanes.swap,
    "v_div_scale_f32": _div_scale,
    "v_div_fmas_f32": _div_fmas,
    "v_s_rsq_f32": _cvt_sdst,
    "v_s_rcp_f32": _cvt_sdst,
    "v_s_exp_f32": _cvt_sdst,
    "v_s_log_f32": _cvt_sdst,
    "v_s_sqrt_f32": _cvt_sdst,
    **dict.fromkeys(
        (
            "v_add_co_u32",
            "v_sub_co_u32",
            "v_subrev_co_u32",
            "v_addc_co_u32",
            "v_subb_co_u32",
            "v_subbrev_co_u32",
            "v_add_co_ci_u32",
            "v_sub_co_ci_u32",
            "v_subrev_co_ci_u32",
        ),
        _carry,
    ),
}
