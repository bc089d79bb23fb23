"""Every precondition of the real kernels: one valid call, then one change each that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.doubles import formulas
from tests.doubles.aiter import Double, Violation, fake_aiter, versions

BF16 = torch.bfloat16
Arguments = dict[str, Any]


@pytest.fixture(params=["v0.1.9.post1", "v0.1.20.post1"])
def double(request: pytest.FixtureRequest) -> Iterator[Double]:
    torch.manual_seed(0)
    with fake_aiter(request.param, attach=False, tolerate_violations=True) as installed:
        installed.load("aiter.tuned_gemm")
        yield installed


def rand(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype)


def strided(*shape: int) -> Tensor:
    """Right shape, last-dim stride 2."""
    return rand(*shape, 2)[..., 0]


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


def mha(**changed: Any) -> Arguments:
    call = {"q": rand(2, 5, 4, 16), "k": rand(2, 5, 2, 16), "v": rand(2, 5, 2, 16), "dropout_p": 0.0}
    call |= {"softmax_scale": 0.25, "is_causal": True, "window_size_left": -1, "window_size_right": -1, "sink_size": 0}
    return call | {"return_softmax_lse": False, "return_dropout_randval": False} | changed


def varlen(**changed: Any) -> Arguments:
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    call = mha(q=rand(5, 4, 16), k=rand(5, 2, 16), v=rand(5, 2, 16), cu_seqlens_q=ends, cu_seqlens_k=ends)
    call |= {"max_seqlen_q": 3, "max_seqlen_k": 3, "min_seqlen_q": 0, "logits_soft_cap": 0.0, "zero_tensors": False}
    return call | changed


def gemm(**changed: Any) -> Arguments:
    return {"A": rand(3, 64), "B": rand(32, 64), "bias": rand(32), "otype": BF16} | changed


def act(**changed: Any) -> Arguments:
    return {"out": rand(3, 8), "input": rand(3, 16)} | changed


def norm(**changed: Any) -> Arguments:
    return {"input": rand(3, 16), "weight": rand(16), "epsilon": 1e-6} | changed


def add_norm(**changed: Any) -> Arguments:
    return {"out": rand(3, 16), "residual_in": rand(3, 16), "residual_out": rand(3, 16)} | norm() | changed


def rope(**changed: Any) -> Arguments:
    cos, sin = (t[:, None, None] for t in formulas.rope_tables(torch.arange(5), 16, BF16))
    call: Arguments = {"output_x": rand(5, 2, 4, 16), "output_y": rand(5, 2, 2, 16), "input_x": rand(5, 2, 4, 16)}
    call |= {"input_y": rand(5, 2, 2, 16), "cos": cos, "sin": sin, "rotate_style": 0}
    return call | {"reuse_freqs_front_part": False, "nope_first": False} | changed


def positions(**changed: Any) -> Arguments:
    return rope(positions=torch.arange(5)[:, None].expand(5, 2).contiguous()) | changed


ACTIVATIONS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")
NORMS = ("rms_norm", "rmsnorm2d_fwd")

CASES: list[tuple[str, Callable[..., Arguments], dict[str, Callable[[], Any]], str]] = [
    ("mha_fwd", mha, {key: lambda: rand(2, 5, 2, 16, dtype=torch.float32) for key in "qkv"}, "fp16 or bf16 only"),
    ("mha_fwd", mha, {"k": lambda: rand(2, 5, 2, 16, dtype=torch.float16)}, "dtypes differ"),
    ("mha_fwd", mha, {"q": lambda: rand(2, 5, 4, 20), "k": lambda: rand(2, 5, 2, 20)}, "no multiple of 8"),
    ("mha_fwd", mha, {"q": lambda: rand(2, 5, 4, 264), "k": lambda: rand(2, 5, 2, 264)}, "above 256"),
    ("mha_fwd", mha, {"v": lambda: strided(2, 5, 2, 16)}, "last-dim stride 2"),
    ("mha_fwd", mha, {"k": lambda: rand(2, 5, 3, 16), "v": lambda: rand(2, 5, 3, 16)}, "not divisible"),
    ("mha_fwd", mha, {"v": lambda: rand(2, 5, 4, 16)}, "k has 2 heads, v 4"),
    ("mha_fwd", mha, {"k": lambda: rand(2, 6, 2, 16)}, "k has 6 rows, v 5"),
    ("mha_fwd", mha, {"q": lambda: rand(1, 5, 4, 16)}, "batch sizes differ"),
    ("mha_fwd", mha, {"q": lambda: rand(5, 4, 16)}, "3 dimensions"),
    ("mha_fwd", mha, {"q": lambda: rand(2, 0, 4, 16)}, "empty"),
    ("mha_fwd", mha, {"dropout_p": lambda: 0.1}, "dropout"),
    ("mha_fwd", mha, {"softmax_scale": lambda: float("nan")}, "softmax_scale is nan"),
    ("mha_fwd", mha, {"window_size_left": lambda: -2}, "less is an error"),
    ("mha_fwd", mha, {"q": lambda: leaf(2, 5, 4, 16)}, "grad is needed for q"),
    ("mha_fwd", mha, {"bias": lambda: rand(5, 5)}, "bias is not modelled"),
    ("mha_varlen_fwd", varlen, {"q": lambda: rand(1, 5, 4, 16)}, "4 dimensions"),
    ("mha_varlen_fwd", varlen, {"cu_seqlens_q": lambda: torch.tensor([0, 2, 5])}, "int32 expected"),
    ("mha_varlen_fwd", varlen, {"cu_seqlens_k": lambda: torch.tensor([0, 6, 5]).int()}, "not monotonic"),
    ("mha_varlen_fwd", varlen, {"cu_seqlens_k": lambda: torch.tensor([0, 2, 4]).int()}, "ends at 4 of 5"),
    ("mha_varlen_fwd", varlen, {"cu_seqlens_k": lambda: torch.tensor([0, 5]).int()}, "max 3|differ in length"),
    ("mha_varlen_fwd", varlen, {"cu_seqlens_k": lambda: torch.tensor([0, 0, 5]).int()}, "max 3|no keys"),
    ("mha_varlen_fwd", varlen, {"max_seqlen_q": lambda: 2}, "has a sequence of 3 rows, max 2"),
    ("mha_varlen_fwd", varlen, {"logits_soft_cap": lambda: -1.0}, "negative"),
    ("fmha_v3_fwd", mha, {}, "head_dim 16/16"),
    ("gemm_a16w16", gemm, {"A": lambda: rand(3, 64, dtype=torch.float32)}, "fp16 or bf16 only"),
    ("gemm_a16w16", gemm, {"B": lambda: rand(32, 64, dtype=torch.float16)}, "dtypes differ"),
    ("gemm_a16w16", gemm, {"bias": lambda: rand(32, dtype=torch.float16)}, "dtypes differ"),
    ("gemm_a16w16", gemm, {"bias": lambda: rand(64)}, "bias has shape"),
    ("gemm_a16w16", gemm, {"B": lambda: rand(64, 32)}, "K=64, B"),
    ("gemm_a16w16", gemm, {"A": lambda: rand(64)}, "at least 2"),
    ("gemm_a16w16", gemm, {"A": lambda: rand(3, 2, 64).transpose(0, 1)}, "silently becomes F.linear"),
    ("gemm_a16w16", gemm, {"A": lambda: rand(3, 128)[:, :64]}, "read as if it were contiguous"),
    ("gemm_a16w16", gemm, {"A": lambda: rand(0, 64)}, "A is empty"),
    ("gemm_a16w16", gemm, {"B": lambda: rand(64, 32).t()}, "B is not contiguous"),
    ("gemm_a16w16", gemm, {"B": lambda: leaf(32, 64)}, "grad is needed for B"),
    *((op, act, {"input": lambda: rand(3, 16, dtype=torch.float32)}, "fp16 or bf16 only") for op in ACTIVATIONS),
    *((op, act, {"input": lambda: strided(3, 16)}, "never reads strides") for op in ACTIVATIONS),
    *((op, act, {"out": lambda: strided(3, 8)}, "never reads strides") for op in ACTIVATIONS),
    *((op, act, {"out": lambda: rand(3, 16)}, "out has shape") for op in ACTIVATIONS),
    *((op, act, {"input": lambda: rand(3, 17)}, "is odd") for op in ACTIVATIONS),
    *((op, act, {"out": lambda: rand(0, 8), "input": lambda: rand(0, 16)}, "empty") for op in ACTIVATIONS),
    *((op, act, {"input": lambda: leaf(3, 16)}, "grad is needed") for op in ACTIVATIONS),
    *((op, norm, {"input": lambda: rand(1, 3, 16)}, "3 dimensions") for op in NORMS),
    *((op, norm, {"input": lambda: strided(3, 16)}, "not contiguous") for op in NORMS),
    *((op, norm, {"weight": lambda: rand(8)}, "weight has shape") for op in NORMS),
    *((op, norm, {"weight": lambda: rand(16, dtype=torch.float32)}, "dtypes differ|only") for op in NORMS),
    *((op, norm, {"input": lambda: rand(0, 16)}, "empty") for op in NORMS),
    *((op, norm, {"epsilon": lambda: -1.0}, "epsilon") for op in NORMS),
    *((op, norm, {"weight": lambda: leaf(16)}, "grad is needed") for op in NORMS),
    ("rmsnorm2d_fwd_with_add", add_norm, {"residual_in": lambda: rand(4, 16)}, "residual_in has shape"),
    ("rmsnorm2d_fwd_with_add", add_norm, {"residual_out": lambda: strided(3, 16)}, "not contiguous"),
    ("rope_cached_2c_fwd_impl", rope, {"input_x": lambda: rand(5, 2, 4, 16, dtype=torch.float32)}, "only"),
    (
        "rope_cached_2c_fwd_impl",
        rope,
        {"input_x": lambda: rand(2, 5, 4, 16), "output_x": lambda: rand(2, 5, 4, 16)},
        "S,B|rows",
    ),
    ("rope_cached_2c_fwd_impl", rope, {"output_y": lambda: rand(5, 2, 4, 16)}, "output_y has shape"),
    ("rope_cached_2c_fwd_impl", rope, {"input_x": lambda: strided(5, 2, 4, 16)}, "last-dim stride"),
    (
        "rope_cached_2c_fwd_impl",
        rope,
        {"cos": lambda: rand(2, 5, 16), "sin": lambda: rand(2, 5, 16)},
        r"not \[S,1,1,R\]",
    ),
    ("rope_cached_2c_fwd_impl", rope, {"cos": lambda: rand(9, 1, 1, 16), "sin": lambda: rand(9, 1, 1, 16)}, "9 rows"),
    ("rope_cached_2c_fwd_impl", rope, {"reuse_freqs_front_part": lambda: True}, "turn 32 of 16"),
    ("rope_cached_2c_fwd_impl", rope, {"rotate_style": lambda: 2}, "rotate_style"),
    ("rope_cached_positions_2c_fwd_impl", positions, {"positions": lambda: torch.zeros(5, 2).int()}, "int64 expected"),
    (
        "rope_cached_positions_2c_fwd_impl",
        positions,
        {"positions": lambda: torch.zeros(2, 5).long()},
        "positions has shape",
    ),
    (
        "rope_cached_positions_2c_fwd_impl",
        positions,
        {"positions": lambda: torch.full((5, 2), 5)},
        "outside the 5 rows",
    ),
]


def _call(op: str, arguments: Arguments) -> Any:
    packet = getattr(torch.ops.aiter, op)
    accepted = {argument.name for argument in packet.default._schema.arguments}
    extra = {"how_v3_bf16_cvt": 1} if "how_v3_bf16_cvt" in accepted else {}
    return packet(**{key: item for key, item in {**arguments, **extra}.items() if key in accepted})


@pytest.mark.parametrize(
    "index", range(len(CASES)), ids=[f"{case[0]}-{'-'.join(case[2])}-{i}" for i, case in enumerate(CASES)]
)
def test_refused(double: Double, index: int) -> None:
    op, build, changes, message = CASES[index]
    with pytest.raises(Violation, match=message):
        _call(op, build(**{key: make() for key, make in changes.items()}))
    assert double.violations


@pytest.mark.parametrize(("op", "build"), sorted({(case[0], case[1]) for case in CASES if case[2]}, key=str))
def test_the_unchanged_call_passes(double: Double, op: str, build: Callable[..., Arguments]) -> None:
    _call(op, build())
    assert double.violations == []


@pytest.mark.parametrize("op", [*ACTIVATIONS, *NORMS])
def test_no_grad_makes_leaves_acceptable(double: Double, op: str) -> None:
    with torch.no_grad():
        _call(op, act(input=leaf(3, 16)) if op in ACTIVATIONS else norm(weight=leaf(16)))


def test_norms_take_float32_only_since_the_new_kernels() -> None:
    call = norm(input=rand(3, 16, dtype=torch.float32), weight=rand(16, dtype=torch.float32))
    for version in versions():
        with fake_aiter(version, attach=False, tolerate_violations=True) as double:
            aiter = double.load()
            if version in ("v0.1.20.post1", "v0.1.22"):
                assert aiter.rms_norm(**call).dtype == torch.float32
            else:
                with pytest.raises(Violation, match="only"):
                    aiter.rms_norm(**call)


def test_out_and_residual_out_must_differ(double: Double) -> None:
    shared = rand(3, 16)
    with pytest.raises(Violation, match="same memory"):
        _call("rmsnorm2d_fwd_with_add", add_norm(out=shared, residual_out=shared))


def test_flash_attn_func_wants_lse_when_grad_is_needed(double: Double) -> None:
    q, k = leaf(1, 3, 2, 16), rand(1, 3, 2, 16)
    with pytest.raises(Violation, match="return_lse is not set"):
        double.load().flash_attn_func(q, k, k)
    assert double.kernels() == ["mha_fwd"]  # the kernel has run before the assertion
    with torch.no_grad():
        assert not double.load().flash_attn_func(q, k, k).requires_grad


def test_soft_cap_exists_only_in_varlen(double: Double) -> None:
    q = rand(1, 3, 2, 16)
    with pytest.raises(TypeError, match="logits_soft_cap"):
        double.load().flash_attn_func(q, q, q, logits_soft_cap=5.0)


@pytest.mark.parametrize("version", ["v0.1.5.post4", "v0.1.7.post3", "v0.1.9.post1"])
def test_no_sinks_before_their_tag(version: str) -> None:
    q = rand(1, 3, 2, 16)
    with fake_aiter(version, attach=False) as double, pytest.raises(TypeError, match="sink_ptr"):
        double.load().flash_attn_func(q, q, q, sink_ptr=torch.zeros(2))


@pytest.mark.parametrize("rows", [64, 129])
@pytest.mark.parametrize("packed", [False, True])
def test_sinks_are_dropped_by_the_asm_kernels(rows: int, packed: bool) -> None:
    q, sinks = rand(1, rows, 2, 128), torch.zeros(2)
    ends = torch.tensor([0, rows], dtype=torch.int32)
    with fake_aiter("v0.1.20.post1", attach=False, tolerate_violations=True) as double:
        aiter = double.load()
        if packed:
            with pytest.raises(Violation, match="they would be dropped"):
                aiter.flash_attn_varlen_func(q[0], q[0], q[0], ends, ends, rows, rows, causal=True, sink_ptr=sinks)
        elif rows > 128:
            with pytest.raises(Violation, match="they would be dropped"):
                aiter.flash_attn_func(q, q, q, causal=True, sink_ptr=sinks)
        else:
            aiter.flash_attn_func(q, q, q, causal=True, sink_ptr=sinks)


def test_sinks_are_float32_one_per_head() -> None:
    q = rand(1, 3, 2, 16)
    with fake_aiter("v0.1.20.post1", attach=False, tolerate_violations=True) as double:
        aiter = double.load()
        with pytest.raises(Violation, match="fp32 expected"):
            aiter.flash_attn_func(q, q, q, sink_ptr=rand(2))
        with pytest.raises(Violation, match="sink_ptr has shape"):
            aiter.flash_attn_func(q, q, q, sink_ptr=torch.zeros(3))


def test_window_of_one_is_lost_in_the_asm_kernel(double: Double) -> None:
    q = rand(1, 129, 2, 128)
    with pytest.raises(Violation, match="is lost"):
        double.load().flash_attn_func(q, q, q, causal=True, window_size=(0, 0))


def test_three_part_windows_exist_since_the_sink_tokens() -> None:
    q = rand(1, 3, 2, 16)
    with fake_aiter("v0.1.7.post3", attach=False, tolerate_violations=True) as double:
        with pytest.raises(Violation, match="wrong length"):
            double.load().flash_attn_func(q, q, q, window_size=(1, 0, 0))
        double.load().flash_attn_func(q, q, q, window_size=(1, 0))


def test_ten_positional_arguments_of_the_old_mha_fwd() -> None:
    q = rand(1, 3, 2, 16)
    old = (q, q, q, 0.0, 0.25, True, -1, -1, False, False)
    with fake_aiter("v0.1.7.post3", attach=False) as double:
        double.load()
        torch.ops.aiter.mha_fwd(*old)
    for version in ("v0.1.9.post1", "v0.1.20.post1"):
        with fake_aiter(version, attach=False) as double:
            double.load()
            with pytest.raises(RuntimeError, match="return_dropout_randval"):
                torch.ops.aiter.mha_fwd(*old)


def test_seventh_positional_argument_of_the_add_norm_changed_its_meaning() -> None:
    x, weight = rand(3, 16), rand(16)
    expected = {"v0.1.9.post1": False, "v0.1.20.post1": True}
    for version, gemma in expected.items():
        out, total = torch.empty_like(x), torch.empty_like(x)
        with fake_aiter(version, attach=False) as double:
            double.load().rmsnorm2d_fwd_with_add(out, x, x, total, weight, 1e-6, True)
        formulas.close(out, formulas.rms_norm(x.double() * 2, weight, 1e-6, gemma=gemma), 2.0)


def test_positional_dropout_of_the_varlen_function_lands_in_min_seqlen_q(double: Double) -> None:
    q, ends = rand(3, 2, 16), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(Violation, match=r"min_seqlen_q is 0\.0"):
        double.load().flash_attn_varlen_func(q, q, q, ends, ends, 3, 3, 0.0)


def test_a_shuffled_weight_without_its_tag_is_noticed(double: Double) -> None:
    aiter, a = double.load(), rand(3, 64)
    shuffled = aiter.shuffle_weight(rand(64, 64))
    for lost in (shuffled.detach(), shuffled.view(64, 64), shuffled[:32]):
        with pytest.raises(Violation, match="is shuffled but is_shuffled is False"):
            torch.ops.aiter.gemm_a16w16(a, lost)
    plain = rand(64, 64)
    plain.is_shuffled = True  # type: ignore[attr-defined]
    with pytest.raises(Violation, match="not shuffled but"):
        torch.ops.aiter.gemm_a16w16(a, plain)


@pytest.mark.parametrize(("n", "k"), [(40, 64), (64, 40)])
def test_shapes_that_cannot_be_shuffled(double: Double, n: int, k: int) -> None:
    with pytest.raises(Violation, match="needs N%16"):
        double.load().shuffle_weight(rand(n, k))


def test_shuffled_weights_outside_the_gfx950_kernels() -> None:
    with fake_aiter(arch="gfx950", cu_count=256, attach=False, tolerate_violations=True) as double:
        aiter = double.load()
        gemm_a16w16 = double.load("aiter.tuned_gemm").gemm_a16w16
        gemm_a16w16(rand(3, 64), aiter.shuffle_weight(rand(64, 64)))
        for dtype, n in ((BF16, 32), (torch.float16, 64)):
            with pytest.raises(Violation, match="no kernel for a shuffled"):
                gemm_a16w16(rand(3, 64, dtype=dtype), aiter.shuffle_weight(rand(n, 64, dtype=dtype)))
