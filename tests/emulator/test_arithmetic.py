"""What the instructions compute, against formulas written another way: exact fractions, torch, integers of Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .single import Wave

F32, U32, U16, F16 = np.float32, np.uint32, np.uint16, np.float16
RANDOM = np.random.default_rng(0)
# Every kind of fp32: random bits, random sizes near 1, edges.
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1.1754942e-38, 1.17549435e-38, 3.4028235e38,
     65504.0, 65519.99, 65520.0, 5.96e-8, 2.98e-8, 6.1e-5, 0.5, 1.0000001], F32,
)  # fmt: skip
ARCHES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")


def bits(lanes: int) -> Any:
    """fp32 of any kind, [lanes]."""
    x = RANDOM.integers(0, 1 << 32, lanes, dtype=np.uint64).astype(U32)
    x[: len(EDGES)] = EDGES.view(U32)
    RANDOM.shuffle(x)
    return x


def nearest(x: Fraction, mantissa: int, least: int) -> Fraction:
    """``x`` to the nearest value of a format with ``mantissa`` bits and least exponent ``least``, ties to even."""
    if x == 0:
        return x
    exponent = max(math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)) - 1, least)
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - mantissa + 1)
    return round(x / unit) * unit


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100"])
def test_fma_rounds_once(arch: str) -> None:
    wave = Wave(arch)
    for _ in range(20):
        a, b = (RANDOM.normal(size=wave.lanes).astype(F32) for _ in range(2))
        c = (-(a.astype(np.float64) * b) * (1 + RANDOM.integers(-4, 5, wave.lanes) * 2.0**-30)).astype(F32)
        got = wave.set("v0", a, F32).set("v1", b, F32).set("v2", c, F32).run("v_fma_f32 v3, v0, v1, v2").get("v3", F32)
        for x, y, z, r in zip(a, b, c, got, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            assert Fraction(float(r)) == nearest(exact, 24, -126), (x, y, z)


@pytest.mark.parametrize("arch", ARCHES)
def test_packed_fp16_fma_rounds_once_and_packed_mul_add_rounds_twice(arch: str) -> None:
    wave = Wave(arch)
    pairs = [RANDOM.normal(size=(wave.lanes, 2)).astype(F16) for _ in range(3)]
    for n, pair in enumerate(pairs):
        wave.set(f"v{n}", pair.view(U32)[:, 0])
    wave.run("v_pk_fma_f16 v3, v0, v1, v2", "v_pk_mul_f16 v4, v0, v1", "v_pk_add_f16 v4, v4, v2")
    got = wave.get("v3").view(F16).reshape(-1, 2)
    a, b, c = pairs
    for x, y, z, r in zip(a.ravel(), b.ravel(), c.ravel(), got.ravel(), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert Fraction(float(r)) == nearest(exact, 11, -14)
    assert np.array_equal(wave.get("v4").view(F16).reshape(-1, 2), (a * b).astype(F16) + c)


@pytest.mark.parametrize("arch", ARCHES)
def test_conversions_to_fp16_and_back_are_torchs(arch: str) -> None:
    wave = Wave(arch)
    x = bits(wave.lanes).view(F32)
    wave.set("v0", x, F32).run("v_cvt_f16_f32_e32 v1, v0", "v_cvt_f32_f16_e32 v2, v1")
    want = torch.from_numpy(x.copy()).half()
    np.testing.assert_array_equal(wave.get("v1", F16), want.numpy())
    np.testing.assert_array_equal(wave.get("v2", F32), want.float().numpy())


def test_gfx950_converts_to_bf16_as_torch_does() -> None:
    wave = Wave("gfx950")
    x, y = bits(64).view(F32), bits(64).view(F32)
    wave.set("v0", x, F32).set("v1", y, F32).run("v_cvt_pk_bf16_f32 v2, v0, v1")
    low, high = wave.get("v2") & U32(0xFFFF), wave.get("v2") >> U32(16)
    for got, given_ in ((low, x), (high, y)):
        want = torch.from_numpy(given_.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal((got << U32(16)).view(F32), want)


def test_cvt_pkrtz_truncates() -> None:
    wave, x = Wave(), bits(64).view(F32)
    got = wave.set("v0", x, F32).run("v_cvt_pkrtz_f16_f32 v1, v0, v0").get("v1", F16).astype(np.float64)
    finite = np.isfinite(x)
    assert (np.abs(got[finite]) <= np.abs(x[finite].astype(np.float64))).all()
    assert (np.abs(got[np.abs(x) > 65504][~np.isnan(x[np.abs(x) > 65504])]) >= 65504).all()
    assert np.isnan(got[np.isnan(x)]).all()


INTEGERS: dict[str, Callable[..., int]] = {
    "v_add_u32": lambda a, b: a + b,
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: (a * b) >> 32,
    "v_lshlrev_b32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32": lambda a, b: b >> (a & 31),
    "v_and_b32": lambda a, b: a & b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_min_u32": min,
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
}
THREE: dict[str, Callable[..., int]] = {
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_and_or_b32": lambda a, b, c: (a & b) | c,
    "v_bfi_b32": lambda a, b, c: (a & b) | (~a & c),
    "v_bfe_u32": lambda a, b, c: (a >> (b & 31)) & ((1 << (c & 31)) - 1),
    "v_alignbit_b32": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_mad_u32_u24": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_med3_u32": lambda a, b, c: sorted((a, b, c))[1],
}
word = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(a=word, b=word, c=word)
def test_integers_wrap_as_pythons_do(a: int, b: int, c: int) -> None:
    wave = Wave().set("v0", a).set("v1", b).set("v2", c)
    for name, formula in INTEGERS.items():
        assert wave.run(f"{name} v3, v0, v1").get("v3")[0] == formula(a, b) & 0xFFFFFFFF, name
    for name, formula in THREE.items():
        assert wave.run(f"{name} v3, v0, v1, v2").get("v3")[0] == formula(a, b, c) & 0xFFFFFFFF, name
    signed = a - (1 << 32) if a >> 31 else a
    assert wave.run("v_ashrrev_i32 v3, v1, v0").get("v3", np.int32)[0] == signed >> (b & 31)
    wide = wave.run("v_mad_u64_u32 v[4:5], vcc, v0, v1, v[2:3]").get("v4", np.uint64)[0]
    assert wide == (a * b + (int(wave.get("v3")[0]) << 32 | c)) % 2**64


@settings(max_examples=60, deadline=None)
@given(a=word, b=word)
def test_carries_and_scalars(a: int, b: int) -> None:
    wave = Wave().set("v0", a).set("v1", b).set("s0", a).set("s1", b)
    wave.run("v_add_co_u32 v2, vcc, v0, v1", "v_addc_co_u32 v3, vcc, 0, 0, vcc")
    assert int(wave.get("v2")[0]) + (int(wave.get("v3")[0]) << 32) == a + b
    wave.run("s_add_u32 s2, s0, s1", "s_addc_u32 s3, 0, 0", "s_mul_hi_u32 s4, s0, s1", "s_bcnt1_i32_b32 s5, s0")
    assert int(wave.get("s2")) + (int(wave.get("s3")) << 32) == a + b
    assert (int(wave.get("s4")), int(wave.get("s5"))) == ((a * b) >> 32, a.bit_count())
    signed = a - (1 << 32) if a >> 31 else a
    wave.run("s_ashr_i32 s2, s0, 7", "s_cmp_gt_i32 s0, -1", "s_cselect_b32 s3, 1, 0", "s_bfe_u32 s4, s0, 0x80004")
    assert int(wave.get("s2", np.int32)) == signed >> 7
    assert (int(wave.get("s3")), int(wave.get("s4"))) == (int(signed > -1), a >> 4 & 0xFF)


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942"])
def test_the_division_that_the_compiler_emits_divides_rightly(arch: str) -> None:
    """V_DIV_SCALE, V_RCP, four fmas, V_DIV_FMAS, V_DIV_FIXUP, also where the reciprocal is 1 ulp off."""
    for jitter in (False, True):
        wave = Wave(arch, jitter=jitter)
        size = RANDOM.integers(-100, 100, (2, wave.lanes))
        a, b = (np.ldexp(RANDOM.uniform(1, 2, wave.lanes), e).astype(F32) for e in size)
        a[:4], b[:4] = (0.0, 1.0, -1.0, math.inf), (2.0, 0.0, 0.0, 1.0)
        wave.set("v0", a, F32).set("v1", b, F32).run(
            "v_div_scale_f32 v2, s[0:1], v1, v1, v0",
            "v_rcp_f32_e32 v3, v2",
            "v_fma_f32 v4, -v2, v3, 1.0",
            "v_fmac_f32_e32 v3, v4, v3",
            "v_div_scale_f32 v4, vcc, v0, v1, v0",
            "v_mul_f32_e32 v5, v4, v3",
            "v_fma_f32 v6, -v2, v5, v4",
            "v_fmac_f32_e32 v5, v6, v3",
            "v_fma_f32 v2, -v2, v5, v4",
            "v_div_fmas_f32 v2, v2, v3, v5",
            "v_div_fixup_f32 v2, v2, v1, v0",
        )
        with np.errstate(all="ignore"):
            want = a / b
        normal = (np.abs(want) > 1e-37) | (want == 0)
        np.testing.assert_array_equal(wave.get("v2", F32)[normal], want[normal])


@pytest.mark.parametrize("name", ["exp", "log", "rcp", "rsq", "sqrt"])
def test_approximations_are_the_nearest_or_with_jitter_a_neighbour(name: str) -> None:
    exact = {"exp": np.exp2, "log": np.log2, "rcp": lambda x: 1 / x, "rsq": lambda x: 1 / np.sqrt(x), "sqrt": np.sqrt}
    x = RANDOM.uniform(0.01, 30, 64).astype(F32)
    want = exact[name](x.astype(np.float64))
    spread = np.abs(np.spacing(want.astype(F32))).astype(np.float64)
    plain = Wave().set("v0", x, F32).run(f"v_{name}_f32_e32 v1, v0").get("v1", F32)
    np.testing.assert_array_equal(plain, want.astype(F32))
    other = Wave(jitter=True).set("v0", x, F32).run(f"v_{name}_f32_e32 v1, v0").get("v1", F32)
    assert (np.abs(other - want) <= spread).all()
    assert (other != plain).any()


def test_denormals_are_flushed_by_approximations_and_kept_by_arithmetic() -> None:
    wave = Wave().set("v0", np.full(64, 1e-40), F32)
    wave.run("v_rcp_f32_e32 v1, v0", "v_add_f32_e32 v2, v0, v0", "v_mul_f32_e32 v3, 0.5, v0")
    assert np.isinf(wave.get("v1", F32)).all()
    np.testing.assert_array_equal(wave.get("v2", F32), F32(1e-40) + F32(1e-40))
    np.testing.assert_array_equal(wave.get("v3", F32), F32(1e-40) * F32(0.5))


def test_med3_min_max_and_class_of_special_numbers() -> None:
    nan, inf = math.nan, math.inf
    cases = [(1.0, 2.0, 3.0, 2.0), (3.0, 1.0, 2.0, 2.0), (nan, 5.0, 2.0, 2.0), (-inf, inf, 0.5, 0.5)]
    a, b, c, want = (np.resize(np.array(x, F32), 64) for x in zip(*cases, strict=True))
    wave = Wave().set("v0", a, F32).set("v1", b, F32).set("v2", c, F32)
    np.testing.assert_array_equal(wave.run("v_med3_f32 v3, v0, v1, v2").get("v3", F32), want)
    for suffix in ("", "_num"):  # gfx12 calls them by what they do with a NaN
        wave.run(f"v_max3{suffix}_f32 v4, v0, v1, v2", f"v_min3{suffix}_f32 v5, v0, v1, v2")
        np.testing.assert_array_equal(wave.get("v4", F32), np.resize(np.array([3.0, 3.0, 5.0, inf], F32), 64))
        np.testing.assert_array_equal(wave.get("v5", F32), np.resize(np.array([1.0, 1.0, 2.0, -inf], F32), 64))
    zeros = Wave().set("v0", F32(-0.0), F32).set("v1", F32(0.0), F32)
    zeros.run("v_min_f32_e32 v2, v0, v1", "v_max_f32_e32 v3, v0, v1")
    assert np.signbit(zeros.get("v2", F32)).all()
    assert not np.signbit(zeros.get("v3", F32)).any()
    kinds = np.resize(np.array([nan, -inf, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, inf, 2.0], F32), 64)
    wave.set("v0", kinds, F32).run("v_mov_b32 v1, 0x204", "v_cmp_class_f32 s[0:1], v0, v1")  # -inf and +inf
    mask = int(wave.get("s0", np.uint64))
    assert [bool(mask >> n & 1) for n in range(64)] == [bool(np.isinf(x)) for x in kinds]


def test_v_perm_picks_bytes() -> None:
    wave = Wave().set("v0", 0x33221100).set("v1", 0x77665504 | 0x80000000).set("s0", 0x0C0D0603)
    # 0..3 of the second source, 4..7 of the first, 12 is 0x00, 13 and above 0xFF
    assert hex(wave.run("v_perm_b32 v2, v0, v1, s0").get("v2")[0]) == hex(0x00FF22F7)


@pytest.mark.parametrize(("arch", "kept"), [("gfx942", 0), ("gfx1100", 0xABCD0000)])
def test_the_other_half_of_a_16_bit_result(arch: str, kept: int) -> None:
    """GFX9 clears it, newer chips keep it."""
    wave = Wave(arch).set("v0", F16(1.5), F16).set("v1", 0xABCD1234)
    assert wave.run("v_add_f16_e32 v1, v0, v0").get("v1")[0] == kept | 0x4200


def test_fp64_of_constants_is_not_fp32s() -> None:
    wave = Wave().run("v_mov_b32 v0, 1.0", "v_mov_b32 v1, 0x3e22f983", "v_mul_f32 v2, 0.15915494, v0")
    assert wave.get("v2")[0] == wave.get("v1")[0]
