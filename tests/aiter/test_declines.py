"""Where tier aiter must not run: other devices, broken installations, toggles off. Presence proves nothing (law 4)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import amd_ops
from tests.aiter.support import BF16, GPUS, ON, Gpu, declined, rand
from tests.doubles import formulas
from tests.doubles.aiter import Faults, fake_aiter
from tests.doubles.aiter.wrong import (
    badly,
    interleaved,
    no_sinks,
    no_soft_cap,
    no_window,
    one_sequence,
    plain_weight,
    slightly,
    swapped_halves,
    top_left,
    unwritten,
)

EPS = 1e-6


def _arguments() -> dict[str, tuple[Any, ...]]:
    cos, sin = formulas.rope_tables(torch.arange(5)[None], 16, BF16)
    return {
        "attention": (rand(2, 5, 4, 16), rand(2, 5, 2, 16), rand(2, 5, 2, 16)),
        "linear": (rand(3, 64), rand(48, 64), rand(48)),
        "rms_norm": (rand(3, 32), rand(32), EPS),
        "add_rms_norm": (rand(3, 32), rand(3, 32), rand(32), EPS),
        "silu_and_mul": (rand(3, 16),),
        "gelu_and_mul": (rand(3, 16),),
        "gelu_tanh_and_mul": (rand(3, 16),),
        "apply_rope": (rand(2, 4, 5, 16), rand(2, 2, 5, 16), cos, sin),
    }


EXPECTED: dict[str, Callable[..., Any]] = {
    "attention": formulas.attention,
    "linear": formulas.linear,
    "rms_norm": formulas.rms_norm,
    "add_rms_norm": lambda x, r, w, eps: formulas.rms_norm(x.double() + r.double(), w, eps),
    "silu_and_mul": lambda x: formulas.gated(x, "silu"),
    "gelu_and_mul": lambda x: formulas.gated(x, "gelu"),
    "gelu_tanh_and_mul": lambda x: formulas.gated(x, "gelu_tanh"),
    "apply_rope": lambda q, k, cos, sin: formulas.rope(q, cos[:, None], sin[:, None]),
}
OPS = list(EXPECTED)
KERNELS = {  # every op that a public op may use, over all versions
    "attention": ["mha_fwd", "mha_varlen_fwd", "fmha_v3_fwd", "fmha_v3_varlen_fwd"],
    "linear": ["gemm_a16w16"],
    "rms_norm": ["rms_norm", "rmsnorm2d_fwd", "rms_norm_cu", "rmsnorm"],
    "add_rms_norm": ["rmsnorm2d_fwd_with_add", "fused_add_rms_norm_cu", "add_rmsnorm"],
    "silu_and_mul": ["silu_and_mul"],
    "gelu_and_mul": ["gelu_and_mul"],
    "gelu_tanh_and_mul": ["gelu_tanh_and_mul"],
    "apply_rope": ["rope_cached_fwd_impl", "rope_cached_2c_fwd_impl", "rope_cached_positions_2c_fwd_impl"],
}
PRIMARY = ["v0.1.9.post1", "v0.1.20.post1"]


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def _quietly(op: str, *args: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        return _first(getattr(amd_ops, op)(*args))


def _right_without_aiter(op: str, expect_reason: str = "") -> None:
    """Twice: nothing that a first call leaves behind may bring tier aiter back."""
    amd_ops.reset_counters()
    arguments = _arguments()[op]
    for _ in range(2):
        formulas.close(_quietly(op, *arguments), EXPECTED[op](*arguments), 3.0)
    assert amd_ops.report().calls(op, "aiter") == 0, str(amd_ops.report())
    reasons = declined(op)
    assert reasons, f"{op}: no reason\n{amd_ops.report()}"
    assert any(expect_reason in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("op", "arch"),
    [
        (op, arch)
        for op in OPS
        for arch in ("gfx90a", "gfx1100", "gfx1201", "gfx1250", None)
        if op != "attention" or arch is None  # there aiter's Triton kernel serves: test_triton_attention.py
    ],
)
@torch.no_grad()
def test_never_on_other_arches(op: str, arch: str | None) -> None:
    with fake_aiter("v0.1.20.post1", arch, 96) as double, amd_ops.override(**ON):
        _right_without_aiter(op, arch or "no HIP device")
        assert double.calls == []
        assert double.imports == []


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_never_for_tensors_that_are_not_on_the_gpu(op: str) -> None:
    """The dispatcher has a CPU key: only amd_ops can keep a host tensor from a HIP kernel."""
    with fake_aiter(device_type="cuda") as double, amd_ops.override(**ON):
        _right_without_aiter(op, "cpu")
        assert double.kernels() == []


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_not_imported_and_not_called_while_the_toggles_are_off(op: str) -> None:
    with fake_aiter() as double:
        arguments = _arguments()[op]
        formulas.close(_quietly(op, *arguments), EXPECTED[op](*arguments), 3.0)
        assert double.imports == []
        assert double.calls == []
        assert "aiter" not in sys.modules
        assert any("off" in reason for reason in declined(op))


def test_a_toggle_alone_does_not_import_aiter() -> None:
    with fake_aiter() as double, amd_ops.override(**ON):
        assert double.imports == []


@pytest.mark.parametrize("tiers", ["torch,eager", "torch", "eager"])
@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_left_out_by_the_tier_list(op: str, tiers: str) -> None:
    with fake_aiter() as double, amd_ops.override(**ON, tiers=tiers):
        _right_without_aiter(op, "AMD_OPS_TIERS")
        assert double.imports == []


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("error", [RuntimeError, AssertionError, FileNotFoundError, KeyError, ImportError, OSError])
@torch.no_grad()
def test_an_import_that_fails_is_a_reason(op: str, error: type[Exception]) -> None:
    with fake_aiter(faults=Faults(import_error=error("hipcc is gone"))), amd_ops.override(**ON):
        _right_without_aiter(op, "hipcc is gone")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("version", PRIMARY)
@torch.no_grad()
def test_a_kernel_that_raises_is_a_reason(op: str, version: str) -> None:
    faults = Faults(raises={name: RuntimeError("module_x failed to build") for name in KERNELS[op]})
    with fake_aiter(version, faults=faults), amd_ops.override(**ON):
        _right_without_aiter(op, "failed to build")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wrong", [slightly, badly, unwritten])
@pytest.mark.parametrize("version", PRIMARY)
@torch.no_grad()
def test_a_kernel_that_answers_wrong_is_noticed(op: str, wrong: Any, version: str) -> None:
    faults = Faults(wrong=dict.fromkeys(KERNELS[op], wrong))
    with fake_aiter(version, faults=faults), amd_ops.override(**ON):
        _right_without_aiter(op)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("version", PRIMARY)
@torch.no_grad()
def test_a_missing_op_is_a_reason(op: str, version: str) -> None:
    names = (
        {*KERNELS[op], "flash_attn_func", "flash_attn_varlen_func", "triton.flash_attn_func", "mm"}
        if op in ("attention", "linear")
        else {*KERNELS[op]}
    )
    names |= {name.removesuffix("_impl") for name in names}
    with fake_aiter(version, faults=Faults(missing=frozenset(names))), amd_ops.override(**ON):
        _right_without_aiter(op)


@pytest.mark.parametrize("older", ["v0.1.5.post4", "v0.1.7.post3", "v0.1.9.post1"])
@torch.no_grad()
def test_an_older_schema_under_a_newer_name_still_runs(older: str) -> None:
    """Arguments are chosen by the schema's names, never by a version."""
    names = ["mha_fwd", "mha_varlen_fwd", "fmha_v3_fwd", "rms_norm", "rmsnorm2d_fwd_with_add", "silu_and_mul"]
    faults = Faults(schema_from=dict.fromkeys(names, older))
    with fake_aiter("v0.1.20.post1", faults=faults) as double, amd_ops.override(**ON, strict=1):
        for op in ("attention", "rms_norm", "add_rms_norm", "silu_and_mul"):
            arguments = _arguments()[op]
            result, _ = Gpu(double).takes(op, *arguments)
            formulas.close(_first(result), EXPECTED[op](*arguments), 3.0)


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_strict_mode_makes_a_broken_kernel_an_error(op: str) -> None:
    faults = Faults(raises={name: RuntimeError("module_x failed to build") for name in KERNELS[op]})
    with fake_aiter(faults=faults), amd_ops.override(**ON, strict=1):
        for _ in range(2):
            with pytest.raises(amd_ops.DeclinedError, match="failed to build"):
                getattr(amd_ops, op)(*_arguments()[op])


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_a_broken_kernel_is_warned_about_once(op: str) -> None:
    faults = Faults(raises={name: RuntimeError("module_x failed to build") for name in KERNELS[op]})
    with fake_aiter(faults=faults), amd_ops.override(**ON):
        amd_ops.reset_counters()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                getattr(amd_ops, op)(*_arguments()[op])
    assert len([item for item in seen if issubclass(item.category, amd_ops.DeclinedWarning)]) == 1


@torch.no_grad()
def test_report_and_explain_name_the_tier() -> None:
    for arch, count in GPUS.items():
        with fake_aiter("v0.1.20.post1", arch, count), amd_ops.override(**ON, strict=1):
            amd_ops.reset_counters()
            for op, arguments in _arguments().items():
                getattr(amd_ops, op)(*arguments)
                getattr(amd_ops, op)(*arguments)
                assert amd_ops.report().calls(op, "aiter") == 2
                assert amd_ops.explain(op, *arguments).tier == "aiter"
            text = str(amd_ops.report())
            assert arch in text
            assert text.count("aiter") >= len(OPS)


@torch.no_grad()
def test_one_broken_kernel_does_not_take_the_others_down() -> None:
    faults = Faults(raises={"silu_and_mul": RuntimeError("module_activation failed to build")})
    with fake_aiter(faults=faults), amd_ops.override(**ON):
        _right_without_aiter("silu_and_mul", "failed to build")
        for op in ("attention", "linear", "rms_norm", "apply_rope"):
            _quietly(op, *_arguments()[op])
            assert amd_ops.report().calls(op, "aiter") == 1


ALTERED: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("attention", "mha_fwd", top_left, {}),
    ("attention", "mha_fwd", no_window, {"sliding_window": 4}),
    ("attention", "mha_varlen_fwd", no_soft_cap, {"softcap": 2.0}),
    ("attention", "mha_varlen_fwd", one_sequence, {"softcap": 2.0}),
    ("attention", "mha_fwd", no_sinks, {"sinks": torch.tensor([0.5, -0.5, 1.0, 2.0])}),
    ("silu_and_mul", "silu_and_mul", swapped_halves, {}),
    ("gelu_tanh_and_mul", "gelu_tanh_and_mul", swapped_halves, {}),
    ("apply_rope", "rope_cached_2c_fwd_impl", interleaved, {}),
    ("rms_norm", "rmsnorm", plain_weight, {"form": "gemma"}),
    ("add_rms_norm", "rmsnorm2d_fwd_with_add", plain_weight, {"form": "gemma"}),
]


@pytest.mark.parametrize(
    ("op", "kernel", "alter", "options"), ALTERED, ids=lambda item: getattr(item, "__name__", None)
)
@torch.no_grad()
def test_a_kernel_that_confuses_its_arguments_is_noticed(
    op: str, kernel: str, alter: Any, options: dict[str, Any]
) -> None:
    """The probe must tell a kernel that ignores or mistakes an argument from one that honours it."""
    torch.manual_seed(0)
    arguments = _arguments()[op]
    if op == "attention":
        arguments = rand(2, 3, 4, 16), rand(2, 9, 2, 16), rand(2, 9, 2, 16)
    with fake_aiter("v0.1.20.post1", faults=Faults(altered={kernel: alter})) as double, amd_ops.override(**ON):
        amd_ops.reset_counters()
        with pytest.warns(amd_ops.DeclinedWarning, match="disagrees"):
            getattr(amd_ops, op)(*arguments, **options)
        assert kernel in double.kernels()
        assert amd_ops.report().calls(op, "aiter") == 0


@torch.no_grad()
def test_tuned_gemm_that_does_not_import_leaves_the_rest_alone() -> None:
    """aiter.tuned_gemm imports pandas, which nothing else of aiter needs."""
    faults = Faults(module_errors={"aiter.tuned_gemm": ModuleNotFoundError("No module named 'pandas'")})
    with fake_aiter(faults=faults), amd_ops.override(**ON):
        _right_without_aiter("linear", "pandas")
        for op in (op for op in OPS if op != "linear"):
            _quietly(op, *_arguments()[op])
            assert amd_ops.report().calls(op, "aiter") == 1


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_a_kernel_that_breaks_later_is_replaced_counted_and_told(op: str) -> None:
    with fake_aiter() as double, amd_ops.override(**ON):
        amd_ops.reset_counters()
        arguments = _arguments()[op]
        _quietly(op, *arguments)
        double.faults.raises.update({name: RuntimeError("HIP error: invalid configuration") for name in KERNELS[op]})
        with pytest.warns(amd_ops.DeclinedWarning, match="invalid configuration"):
            result = _first(getattr(amd_ops, op)(*arguments))
        formulas.close(result, EXPECTED[op](*arguments), 3.0)
        assert amd_ops.report().calls(op, "aiter") == 1
        with amd_ops.override(strict=1), pytest.raises(amd_ops.DeclinedError, match="invalid configuration"):
            getattr(amd_ops, op)(*arguments)


@torch.no_grad()
def test_out_of_memory_is_the_callers_business() -> None:
    """No lower tier needs less memory: hiding it would only move the error."""
    with fake_aiter() as double, amd_ops.override(**ON):
        arguments = _arguments()["silu_and_mul"]
        amd_ops.silu_and_mul(*arguments)
        double.faults.raises["silu_and_mul"] = torch.OutOfMemoryError("HIP out of memory")
        with pytest.raises(torch.OutOfMemoryError):
            amd_ops.silu_and_mul(*arguments)


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_autocast_means_the_lower_tiers(op: str) -> None:
    """Under autocast stock ops choose their own dtypes; a kernel called directly would not. Attention in the chosen
    dtype is what SDPA would compute.
    """
    dtype = torch.float16 if op == "attention" else torch.bfloat16
    with fake_aiter(), amd_ops.override(**ON), torch.autocast("cpu", dtype=dtype):
        _right_without_aiter(op, "autocast")


class Wrapped(torch.Tensor):
    """A tensor subclass, as sharded and quantised tensors are."""


@pytest.mark.parametrize("op", ["linear", "rms_norm", "silu_and_mul"])
@torch.no_grad()
def test_tensor_subclasses_keep_their_own_behaviour(op: str) -> None:
    arguments = _arguments()[op]
    wrapped = (arguments[0].as_subclass(Wrapped), *arguments[1:])
    with fake_aiter() as double, amd_ops.override(**ON):
        amd_ops.reset_counters()
        assert isinstance(_quietly(op, *wrapped), Wrapped)
        assert double.kernels() == []
        assert "Wrapped" in declined(op)[0]


@torch.no_grad()
def test_explain_runs_nothing() -> None:
    with fake_aiter() as double, amd_ops.override(**ON):
        amd_ops.reset_counters()
        for op, arguments in _arguments().items():
            assert amd_ops.explain(op, *arguments).tier == "aiter"
        assert double.calls == []
        assert amd_ops.report().as_dict()["ops"] == []


@torch.no_grad()
def test_leaving_the_gpu_behind_leaves_no_kernel_behind() -> None:
    """After the fake GPU is gone, bound ops must not call what they were bound to."""
    with fake_aiter() as double, amd_ops.override(**ON):
        amd_ops.silu_and_mul(*_arguments()["silu_and_mul"])
    before = len(double.calls)
    _quietly("silu_and_mul", *_arguments()["silu_and_mul"])
    with amd_ops.override(**ON):
        _right_without_aiter("silu_and_mul", "no HIP device")
    assert len(double.calls) == before
