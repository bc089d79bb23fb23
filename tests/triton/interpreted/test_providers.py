"""Other people's kernels in tier triton: chosen by a setting, held to the same contract, ours behind them.

liger-kernel and aiter are doubles here (tests/doubles), stricter than the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import liger
from amd_ops.ops.norm import FORMS
from tests.doubles.aiter import Faults, fake_aiter
from tests.doubles.aiter import wrong as aiter_wrong
from tests.doubles.liger import Double, fake_liger
from tests.ops.reference import close, gated, rms_norm, rope
from tests.ops.test_rope import heads, tables

from .support import DTYPES

HALF = (torch.float16, torch.bfloat16)
ON: dict[str, object] = {"use_optimized_ops": 1}


def choosing(providers: str) -> Any:
    return amd_ops.override(**ON, triton_providers=providers)


@pytest.fixture
def liger_first(clean_toggles: None) -> Iterator[Double]:
    with fake_liger() as double, choosing("liger,ours"), torch.no_grad():
        yield double


@pytest.fixture(params=["v0.1.9.post1", "v0.1.20.post1"])
def aiter_first(clean_toggles: None, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Modules as they lay before and after they were put into folders."""
    with fake_aiter(request.param, "gfx1100", 96) as double, torch.no_grad(), choosing("aiter,ours"):
        yield double


def ran(op: str, provider: str) -> int:
    """How often ``provider`` ran ``op``; "" are our own kernels."""
    name = f"triton:{provider}" if provider else "triton"
    rows = [row["tiers"] for row in amd_ops.report().as_dict()["ops"] if row["op"] == op]
    return sum(tier["calls"] for tiers in rows for tier in tiers if tier["tier"] == name)


def why(op: str, provider: str) -> str:
    """The last reason that ``provider`` gave for ``op``."""
    (row,) = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == op]
    (tier,) = [tier for tier in row["tiers"] if tier["tier"] == f"triton:{provider}"]
    return str(tier["declined"][-1]["reason"]) if tier["declined"] else ""


def quietly(call: Callable[[], Any]) -> Any:
    """Call where a decline is told."""
    with pytest.warns(amd_ops.DeclinedWarning, match="tier triton:"):
        return call()


def declined(case: tuple[str, Callable[[], Any], str], provider: str) -> str:
    """Make a call that ``provider`` declines for the reason of ``case``; return the op."""
    op, call, reason = case
    with torch.enable_grad():
        quietly(call)
    assert reason in why(op, provider)
    assert ran(op, provider) == 0
    return op


# --- liger -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_ligers_norms_in_every_form(liger_first: Double, form: str, dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(2, 3, 24).to(dtype), torch.randn(2, 3, 24).to(dtype), torch.randn(24).to(dtype)
    close(amd_ops.rms_norm(x, weight, 1e-6, form=form), rms_norm(x, weight, 1e-6, form), 2.0)
    out, total = amd_ops.add_rms_norm(x, residual, weight, 1e-6, form=form)
    assert torch.equal(total, residual + x)
    close(out, rms_norm(total, weight, 1e-6, form), 2.0)
    assert ran("rms_norm", "liger") == ran("add_rms_norm", "liger") == 1
    assert ran("rms_norm", "") == ran("add_rms_norm", "") == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_ligers_activations(liger_first: Double, dtype: torch.dtype) -> None:
    x, row = torch.randn(3, 48).to(dtype), torch.randn(1, 1, 48).to(dtype)
    close(amd_ops.silu_and_mul(x), gated(x, "silu"), 2.0)
    close(amd_ops.gelu_tanh_and_mul(row), gated(row, "gelu_tanh"), 2.0)
    assert ran("silu_and_mul", "liger") == ran("gelu_tanh_and_mul", "liger") == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("rows", [1, 2])
def test_ligers_rotation_leaves_its_inputs_alone(
    liger_first: Double, dim: int, dtype: torch.dtype, width: int, rows: int
) -> None:
    q, k = heads(2, 4, 3, 16, dim, dtype), heads(2, 2, 3, 16, dim, dtype)
    kept = q.clone(), k.clone()
    cos, sin = tables(rows, 3, width, dtype)
    for _ in range(2):
        for out, x in zip(amd_ops.apply_rope(q, k, cos, sin, dim), (q, k), strict=True):
            close(out, rope(x, cos, sin, dim), 2.0)
    assert torch.equal(q, kept[0])
    assert torch.equal(k, kept[1])
    assert ran("apply_rope", "liger") == 2


def grad(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def turned(table: Callable[[Tensor], Tensor] = lambda t: t, dtype: torch.dtype = torch.float32) -> Any:
    cos, sin = tables(1, 3, 8, dtype)
    return amd_ops.apply_rope(heads(1, 2, 3, 8, 1, torch.float32), heads(1, 2, 3, 8, 1, torch.float32), table(cos), sin)


LIGER_DECLINES: dict[str, tuple[str, Callable[[], Any], str]] = {
    "a weight of another dtype": (
        "rms_norm", lambda: amd_ops.rms_norm(torch.randn(2, 8).half(), torch.ones(8), 1e-6), "answers in the input's",
    ),
    "strided rows": (
        "rms_norm", lambda: amd_ops.rms_norm(torch.randn(4, 16)[:, :8], torch.ones(8), 1e-6), "would copy it",
    ),
    "long rows": (
        "rms_norm", lambda: amd_ops.rms_norm(torch.randn(1, 65537), torch.ones(65537), 1e-6), "rows of up to 65536",
    ),
    "a strided residual": (
        "add_rms_norm",
        lambda: amd_ops.add_rms_norm(torch.randn(2, 8), torch.randn(8, 2).T, torch.ones(8), 1e-6), "would copy it",
    ),
    "a strided gate": ("silu_and_mul", lambda: amd_ops.silu_and_mul(torch.randn(8, 4).T), "would copy it"),
    "long halves": ("silu_and_mul", lambda: amd_ops.silu_and_mul(torch.randn(1, 131074)), "halves of up to 65536"),
    "gelu of two rows": ("gelu_tanh_and_mul", lambda: amd_ops.gelu_tanh_and_mul(torch.randn(2, 8)), "copy both halves"),
    "a gradient of gelu": (
        "gelu_tanh_and_mul", lambda: amd_ops.gelu_tanh_and_mul(grad(1, 8)), "writes over its inputs",
    ),
    "a gradient of the rotation": (
        "apply_rope",
        lambda: amd_ops.apply_rope(grad(1, 2, 3, 8), torch.randn(1, 2, 3, 8), *tables(1, 3, 8, torch.float32)),
        "writes over the gradients",
    ),
    "tables of another dtype": ("apply_rope", lambda: turned(dtype=torch.float16), "the inputs' dtype"),
    "halves that differ": ("apply_rope", lambda: turned(lambda t: t * torch.arange(8.0)), "halves of a table differ"),
    "fp64": ("silu_and_mul", lambda: amd_ops.silu_and_mul(torch.randn(2, 8).double()), "float64"),
    "misaligned": ("silu_and_mul", lambda: amd_ops.silu_and_mul(torch.randn(9)[1:].view(1, 8)), "16 bytes"),
    "too large": ("silu_and_mul", lambda: amd_ops.silu_and_mul(torch.zeros(1).expand(2**16, 2**16)), "32-bit"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(LIGER_DECLINES) - {"too large"}))
def test_what_liger_cannot_do_goes_to_ours_or_on(liger_first: Double, name: str) -> None:
    op = declined(LIGER_DECLINES[name], "liger")
    assert amd_ops.report().calls(op) == 1
    assert liger_first.calls == [], "nothing was launched"


@pytest.mark.parametrize("name", sorted(LIGER_DECLINES))
def test_strict_mode_raises_where_liger_declines(liger_first: Double, name: str) -> None:
    _, call, reason = LIGER_DECLINES[name]
    with amd_ops.override(strict=1), torch.enable_grad(), pytest.raises(amd_ops.DeclinedError, match=reason):
        call()


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_through_liger(liger_first: Double, dtype: torch.dtype) -> None:
    grads = []
    for providers in ("liger", "ours"):
        torch.manual_seed(1)
        x, r, w = (torch.randn(s).to(dtype).requires_grad_() for s in ((4, 32), (4, 32), (32,)))
        with amd_ops.override(triton_providers=providers), torch.enable_grad():
            z, total = amd_ops.add_rms_norm(amd_ops.rms_norm(x, w, 1e-6), r, w, 1e-6, form="gemma")
            (amd_ops.silu_and_mul(z).float().square().sum() + total.float().sum()).backward()
        grads.append((x.grad, r.grad, w.grad))
    for op in ("rms_norm", "add_rms_norm", "silu_and_mul"):
        assert ran(op, "liger") == ran(op, "") == 1
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for got, want in zip(*grads, strict=True):
        assert (got.float() - want.float()).norm() <= tolerance * want.float().norm()


def test_many_narrow_rows_are_another_kernel_of_liger(liger_first: Double) -> None:
    for rows in (2, 3, 32768, 32769):
        amd_ops.rms_norm(torch.randn(rows, 8), torch.ones(8), 1e-6)
    assert len(liger_first.calls) == 4 + 2, "one probe per kernel"


def test_a_table_is_compared_once(liger_first: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    right = torch.equal
    monkeypatch.setattr(liger.torch, "equal", lambda a, b: compared.append(1) or right(a, b))
    q = heads(1, 2, 3, 8, 1, torch.float32)
    cos, sin = tables(1, 3, 8, torch.float32)
    for _ in range(4):
        amd_ops.apply_rope(q, q, cos, sin)
    assert len(compared) == 2
    cos[..., :4] += 1.0  # a change in place makes another version of it
    quietly(lambda: amd_ops.apply_rope(q, q, cos, sin))
    assert len(compared) == 3
    assert ran("apply_rope", "liger") == 4


def test_tables_without_a_version_are_declined(liger_first: Double) -> None:
    with torch.inference_mode():
        quietly(turned)
    assert "have no version" in why("apply_rope", "liger")


def test_under_capture_no_table_is_compared(liger_first: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liger, "capturing", lambda: True)
    quietly(turned)
    assert "a stream is being captured" in why("apply_rope", "liger")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "wrong": ({"wrong": {"LigerRMSNormFunction": lambda t: t * 1.03}}, "disagrees with the eager formula"),
    "raises": ({"raises": {"LigerRMSNormFunction": AttributeError("no rsqrt")}}, "its probe raised AttributeError"),
    "missing": ({"missing": frozenset({"LigerRMSNormFunction"})}, "this liger_kernel has no LigerRMSNormFunction"),
    "import": ({"import_error": RuntimeError("no driver")}, "import liger_kernel.ops.rms_norm failed: RuntimeError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_liger_is_a_reason(clean_toggles: None, name: str) -> None:
    how, reason = BROKEN[name]
    x, w = torch.randn(2, 8), torch.ones(8)
    with fake_liger(**how), choosing("liger,ours"), torch.no_grad():
        close(quietly(lambda: amd_ops.rms_norm(x, w, 1e-6)), rms_norm(x, w, 1e-6, "llama"), 2.0)
        assert reason in why("rms_norm", "liger")
        assert ran("rms_norm", "") == 1


def test_a_wrong_gradient_is_noticed(clean_toggles: None) -> None:
    how = {"wrong_gradient": frozenset({"LigerFusedGateUpSiLUMulFunction"})}
    with fake_liger(**how), choosing("liger,ours"):
        quietly(lambda: amd_ops.silu_and_mul(grad(2, 8)))
        assert "backward: its probe disagrees" in why("silu_and_mul", "liger")


def test_a_liger_that_rotates_whole_heads_only(clean_toggles: None) -> None:
    with fake_liger(whole_heads=True), choosing("liger,ours"), torch.no_grad():
        q = heads(1, 2, 3, 16, 1, torch.float32)
        amd_ops.apply_rope(q, q, *tables(1, 3, 16, torch.float32))
        quietly(lambda: amd_ops.apply_rope(q, q, *tables(1, 3, 8, torch.float32)))
        assert ran("apply_rope", "liger") == 1
        assert "whole heads only" in why("apply_rope", "liger")


def test_another_form_of_a_function_is_refused(clean_toggles: None) -> None:
    with fake_liger(), choosing("liger,ours"):
        module = sys.modules["liger_kernel.ops.rms_norm"]
        module.LigerRMSNormFunction.forward = staticmethod(lambda ctx, W, X, eps: X)
        quietly(lambda: amd_ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6))
        assert "LigerRMSNormFunction(W, X, eps) is not a form known here" in why("rms_norm", "liger")


# --- the setting -----------------------------------------------------------------------------------------------------


def test_ours_serves_by_default_and_no_other_is_imported(clean_toggles: None) -> None:
    with fake_liger(import_error=RuntimeError("imported")), amd_ops.override(**ON, strict=1):
        amd_ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6)
    assert ran("rms_norm", "") == 1
    assert "triton:" not in str(amd_ops.report())


def test_a_provider_that_is_not_installed_is_told(clean_toggles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    for name in [name for name in sys.modules if name.startswith("liger_kernel.")]:
        monkeypatch.delitem(sys.modules, name)
    with choosing("liger,ours"):
        quietly(lambda: amd_ops.silu_and_mul(torch.randn(2, 8)))
        assert why("silu_and_mul", "liger") == "liger_kernel is not installed"
        with amd_ops.override(strict=1), pytest.raises(amd_ops.DeclinedError, match="not installed"):
            amd_ops.silu_and_mul(torch.randn(2, 8))


def test_an_op_that_a_provider_lacks_stays_with_ours_without_a_warning(
    liger_first: Double, recwarn: pytest.WarningsRecorder
) -> None:
    amd_ops.gelu_and_mul(torch.randn(2, 8))
    assert ran("gelu_and_mul", "") == 1
    assert why("gelu_and_mul", "liger") == "liger has no kernel for it"
    assert not [w for w in recwarn if issubclass(w.category, amd_ops.DeclinedWarning)]


def test_without_ours_in_the_list_the_tiers_below_take_over(liger_first: Double) -> None:
    with amd_ops.override(triton_providers="liger"):
        amd_ops.gelu_and_mul(torch.randn(2, 8))
        report = amd_ops.report()
        assert report.calls("gelu_and_mul", "torch") == 1
        assert "AMD_OPS_TRITON_PROVIDERS leaves our own kernels out" in str(report)


def test_the_first_that_takes_a_call_runs_it(liger_first: Double) -> None:
    x, w = torch.randn(2, 8), torch.ones(8)
    with amd_ops.override(triton_providers="ours,liger"):
        amd_ops.rms_norm(x, w, 1e-6)
        assert (ran("rms_norm", ""), ran("rms_norm", "liger")) == (1, 0)
    amd_ops.rms_norm(x, w, 1e-6)
    assert (ran("rms_norm", ""), ran("rms_norm", "liger")) == (1, 1)
    assert amd_ops.report().calls("rms_norm", "triton") == 2


def test_explain_names_the_provider(liger_first: Double) -> None:
    x, w = torch.randn(2, 8), torch.ones(8)
    before = amd_ops.explain("rms_norm", x, w, 1e-6)
    assert before.tier == "triton:liger"
    assert "compared with the eager formula" in str(before)
    assert liger_first.calls == []
    strided = amd_ops.explain("rms_norm", x.T.contiguous().T, w, 1e-6)
    assert strided.tier == "triton"
    assert next(v.reason for v in strided.verdicts if v.tier == "triton:liger").endswith("liger would copy it")


def test_under_compile_the_public_ops_are_formulas_and_reach_no_provider(liger_first: Double) -> None:
    x, w = torch.randn(2, 8), torch.ones(8)
    with amd_ops.override(triton_providers="liger"):
        compiled = torch.compile(lambda x, w: amd_ops.rms_norm(x, w, 1e-6), backend="eager", fullgraph=True)
        close(compiled(x, w), rms_norm(x, w, 1e-6, "llama"), 2.0)
        assert liger_first.calls == [], "a compiler fuses the formula better"
        assert ran("rms_norm", "liger") == 0
        amd_ops.rms_norm(x, w, 1e-6)
    assert ran("rms_norm", "liger") == 1, "outside the graph the provider serves"


@pytest.mark.parametrize("text", ["", "triton", "liger,liger", "ours;liger"])
def test_a_bad_list_of_providers_is_one_sentence(clean_toggles: None, text: str) -> None:
    expected = pytest.raises(amd_ops.ToggleError, match=r"AMD_OPS_TRITON_PROVIDERS is .*ours, aiter, liger")
    with expected, choosing(text):
        pass


# --- aiter.ops.triton ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_aiters_norms_where_they_round_as_the_form(aiter_first: Any, dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(2, 3, 32).to(dtype), torch.randn(2, 3, 32).to(dtype), torch.randn(32).to(dtype)
    form = "llama" if dtype is torch.float32 else "fp32_weight"
    close(amd_ops.rms_norm(x, weight, 1e-6, form=form), rms_norm(x, weight, 1e-6, form), 2.0)
    out, total = amd_ops.add_rms_norm(x, residual, weight, 1e-6, form=form)
    close(total, residual.double() + x.double(), 1.0)
    close(out, rms_norm(residual.double() + x.double(), weight, 1e-6, form), 2.0)
    assert ran("rms_norm", "aiter") == ran("add_rms_norm", "aiter") == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("rows", ["one", "own", "expanded"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_aiters_rotation_is_one_launch(
    aiter_first: Any, dim: int, dtype: torch.dtype, width: int, rows: str, kv_heads: int
) -> None:
    q, k = heads(2, 4, 3, 16, dim, dtype), heads(2, kv_heads, 3, 16, dim, dtype)
    cos, sin = tables(2 if rows == "own" else 1, 3, width, dtype)
    if rows == "expanded":
        cos, sin = cos.expand(2, 3, width), sin.expand(2, 3, width)
    amd_ops.apply_rope(q, k, cos, sin, dim)
    aiter_first.clear()
    for out, x in zip(amd_ops.apply_rope(q, k, cos, sin, dim), (q, k), strict=True):
        close(out, rope(x, cos, sin, dim), 3.0)
    assert aiter_first.kernels() == ["triton.rope_cached_thd_positions_2c_fwd"]
    assert ran("apply_rope", "aiter") == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_aiters_silu_where_it_exists(aiter_first: Any, dtype: torch.dtype) -> None:
    x = torch.randn(3, 32).to(dtype)
    if aiter_first.version == "v0.1.9.post1":
        quietly(lambda: amd_ops.silu_and_mul(x))
        assert "import aiter.ops.triton.activation failed" in why("silu_and_mul", "aiter")
        assert ran("silu_and_mul", "") == 1
    else:
        close(amd_ops.silu_and_mul(x), gated(x, "silu"), 2.0)
        assert ran("silu_and_mul", "aiter") == 1


def norm_of(dtype: torch.dtype, form: str, width: int = 8, weight: torch.dtype | None = None) -> Any:
    return amd_ops.rms_norm(torch.randn(2, width).to(dtype), torch.ones(width, dtype=weight or dtype), 1e-6, form=form)


def rotated(size: int, width: int, q_heads: int = 2, k_heads: int = 2) -> Any:
    return amd_ops.apply_rope(
        heads(2, q_heads, 3, size, 1, torch.float32), heads(2, k_heads, 3, size, 1, torch.float32),
        *tables(1, 3, width, torch.float32),
    )  # fmt: skip


PLAIN = torch.bfloat16
AITER_DECLINES: dict[str, tuple[str, Callable[[], Any], str]] = {
    "llama in bf16": ("rms_norm", lambda: norm_of(PLAIN, "llama"), "form llama also before the weight"),
    "t5 in fp16": ("rms_norm", lambda: norm_of(torch.float16, "t5"), "form t5 also before the weight"),
    "gemma": ("rms_norm", lambda: norm_of(PLAIN, "gemma"), "no offset weight"),
    "a weight of another dtype": ("rms_norm", lambda: norm_of(PLAIN, "t5", weight=torch.float32), "the input's dtype"),
    "rows of 12 bytes": ("rms_norm", lambda: norm_of(PLAIN, "fp32_weight", 6), "rows do not start at multiples of 16"),
    "strides": (
        "rms_norm", lambda: amd_ops.rms_norm(torch.randn(4, 16)[:, :8], torch.ones(8), 1e-6), "not contiguous",
    ),
    "a gradient": ("rms_norm", lambda: amd_ops.rms_norm(grad(2, 8), torch.ones(8), 1e-6), "for inference only"),
    "a gradient of the residual": (
        "add_rms_norm",
        lambda: amd_ops.add_rms_norm(torch.randn(2, 8), grad(2, 8), torch.ones(8), 1e-6), "for inference only",
    ),
    "a head of 24": ("apply_rope", lambda: rotated(24, 24), "not 24 of 24"),
    "a quarter of a head": ("apply_rope", lambda: rotated(16, 4), "not 4 of 16"),
    "uneven heads": ("apply_rope", lambda: rotated(16, 16, 3, 2), "no multiple"),
    "three and three heads": ("apply_rope", lambda: rotated(16, 16, 3, 3), "writes past the end of 3 and 3 heads"),
    "expanded heads": (
        "apply_rope",
        lambda: amd_ops.apply_rope(
            torch.randn(1, 1, 3, 8).expand(1, 2, 3, 8), torch.randn(1, 2, 3, 8), *tables(1, 3, 8, torch.float32)
        ),
        "expanded",
    ),
    "tokens apart": (
        "apply_rope",
        lambda: amd_ops.apply_rope(
            torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8), *tables(1, 3, 8, torch.float32)
        ),
        "not one dimension in memory",
    ),
    "fp64": ("apply_rope", lambda: amd_ops.apply_rope(*(torch.randn(1, 1, 3, 8).double(),) * 2,
                                                      *tables(1, 3, 8, torch.float64)), "float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(AITER_DECLINES))
def test_what_aiter_cannot_do_is_declined(aiter_first: Any, name: str) -> None:
    declined(AITER_DECLINES[name], "aiter")
    assert aiter_first.kernels() == []


@pytest.mark.parametrize("wrong", [aiter_wrong.slightly, aiter_wrong.unwritten])
def test_an_aiter_that_answers_wrong_is_noticed(clean_toggles: None, wrong: Callable[[Tensor], Tensor]) -> None:
    faults = Faults(wrong={"triton.rms_norm": wrong, "triton.rmsnorm2d_fwd_with_add": wrong})
    x, w = torch.randn(2, 8), torch.ones(8)
    with fake_aiter("v0.1.20.post1", "gfx1100", 96, faults=faults), torch.no_grad(), choosing("aiter,ours"):
        close(quietly(lambda: amd_ops.rms_norm(x, w, 1e-6)), rms_norm(x, w, 1e-6, "llama"), 2.0)
        quietly(lambda: amd_ops.add_rms_norm(x, x, w, 1e-6))
        assert "disagrees" in why("rms_norm", "aiter")
        assert "disagrees" in why("add_rms_norm", "aiter")


def test_many_narrow_rows_are_a_variant_of_their_own(aiter_first: Any) -> None:
    """aiter has another kernel for them: it is probed at their size."""
    w = torch.ones(8)
    amd_ops.rms_norm(torch.randn(2, 8), w, 1e-6)
    aiter_first.clear()
    amd_ops.rms_norm(torch.randn(8193, 8), w, 1e-6)
    probe, call = aiter_first.called("triton.rms_norm")
    assert probe["input"].shape[0] > 8192
    assert call["input"].shape[0] == 8193


def test_an_aiter_that_does_not_import_is_told(clean_toggles: None) -> None:
    with fake_aiter("v0.1.20.post1", None), choosing("aiter,ours"):
        quietly(lambda: amd_ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6))
        assert why("rms_norm", "aiter") == "import aiter failed: RuntimeError: ROCm version file not found"
        assert ran("rms_norm", "") == 1
