"""Installing, importing, breaking and removing the double."""

from __future__ import annotations

import contextlib
import importlib.util
import sys

import pytest
import torch

from tests.doubles import formulas
from tests.doubles.aiter import Faults, Violation, fake_aiter
from tests.doubles.aiter.wrong import slightly, swapped_halves


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(2, 8, dtype=torch.bfloat16), torch.randn(2, 16, dtype=torch.bfloat16)


def test_ops_exist_only_after_the_import() -> None:
    with fake_aiter(attach=False) as double:
        assert importlib.util.find_spec("aiter") is not None
        assert double.imports == []
        assert not hasattr(torch.ops.aiter, "mha_fwd")
        double.load()
        assert hasattr(torch.ops.aiter, "mha_fwd")
        assert not hasattr(torch.ops.aiter, "gemm_a16w16")
        double.load("aiter.tuned_gemm")
        assert hasattr(torch.ops.aiter, "gemm_a16w16")


def test_nothing_is_left_behind() -> None:
    path = list(sys.meta_path)
    for version in ("v0.1.9.post1", "v0.1.20.post1", "v0.1.9.post1"):
        with fake_aiter(version, attach=False) as double:
            double.load()
        assert not hasattr(torch.ops.aiter, "mha_fwd")
        assert not [name for name in sys.modules if name == "aiter" or name.startswith("aiter.")]
        assert sys.meta_path == path
    assert importlib.util.find_spec("aiter") is None


def _fail_inside() -> None:
    with fake_aiter(attach=False) as double:
        double.load()
        raise ZeroDivisionError


def test_an_error_inside_also_cleans_up() -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_inside()
    assert "aiter" not in sys.modules
    assert not hasattr(torch.ops.aiter, "mha_fwd")


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, FileNotFoundError, KeyError])
def test_import_fails_as_off_rocm(error: type[Exception]) -> None:
    with fake_aiter(faults=Faults(import_error=error("no ROCm")), attach=False) as double:
        with pytest.raises(error):
            double.load()
        assert "aiter" not in sys.modules


def test_no_gpu_means_the_import_raises() -> None:
    with (
        fake_aiter(arch=None, attach=False) as double,
        pytest.raises(RuntimeError, match="ROCm version file not found"),
    ):
        double.load()


def test_other_arches_import_and_register_but_cannot_launch() -> None:
    out, data = _pair()
    with fake_aiter(arch="gfx1100", attach=False, tolerate_violations=True) as double:
        double.load()
        with pytest.raises(Violation, match="launched on gfx1100"):
            torch.ops.aiter.silu_and_mul(out, data)


def test_a_host_tensor_on_a_gpu_machine_is_refused() -> None:
    out, data = _pair()
    with fake_aiter(device_type="cuda", attach=False, tolerate_violations=True) as double:
        double.load()
        with pytest.raises(Violation, match="host pointer"):
            torch.ops.aiter.silu_and_mul(out, data)


def _swallow_a_violation() -> None:
    out, data = _pair()
    with fake_aiter(attach=False) as double:
        double.load()
        with contextlib.suppress(RuntimeError):
            torch.ops.aiter.silu_and_mul(out, data.float())


def test_swallowed_violations_fail_at_the_end() -> None:
    with pytest.raises(AssertionError, match="against its contract"):
        _swallow_a_violation()


def test_a_kernel_can_be_missing_raise_or_be_wrong() -> None:
    out, data = _pair()
    faults = Faults(
        raises={"gelu_and_mul": RuntimeError("hipcc failed")},
        wrong={"silu_and_mul": slightly},
        missing=frozenset({"gelu_tanh_and_mul"}),
    )
    with fake_aiter(faults=faults, attach=False) as double:
        aiter = double.load()
        assert not hasattr(torch.ops.aiter, "gelu_tanh_and_mul")
        assert not hasattr(aiter, "gelu_tanh_and_mul")
        with pytest.raises(RuntimeError, match="hipcc failed"):
            torch.ops.aiter.gelu_and_mul(out, data)
        torch.ops.aiter.silu_and_mul(out, data)
        wrong = out.clone()
    with fake_aiter(attach=False) as double:
        double.load()
        torch.ops.aiter.silu_and_mul(out, data)
    torch.testing.assert_close(wrong.float(), out.float() * 1.03125, rtol=1e-2, atol=1e-6)
    assert not torch.equal(wrong, out)


def test_calls_are_recorded_with_shapes_and_dtypes() -> None:
    out, data = _pair()
    with fake_aiter(attach=False) as double:
        double.load().silu_and_mul(out, data)
        assert [(call.name, call.kind) for call in double.calls] == [
            ("silu_and_mul", "function"),
            ("silu_and_mul", "op"),
        ]
        (call,) = double.called("silu_and_mul", "op")
        assert call["input"].shape == (2, 16)
        assert call["input"].dtype == torch.bfloat16
        assert call["out"].stride == (8, 1)
        double.clear()
        assert double.kernels() == []


def test_an_altered_kernel_confuses_its_arguments() -> None:
    out, data = _pair()
    with fake_aiter(faults=Faults(altered={"silu_and_mul": swapped_halves}), attach=False) as double:
        double.load()
        torch.ops.aiter.silu_and_mul(out, data)
    formulas.close(out, formulas.gated(torch.cat(data.chunk(2, -1)[::-1], -1), "silu"), 1.0)
