"""What a forward may not do, what an import may not cost, and what stays traceable."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops

from .test_projections import Attention, Mlp
from .test_rope import tables
from .test_route_attention import Attention as Routed
from .test_route_attention import sdpa

ON = {"use_aiter_attention": 1, "use_aiter_gemm": 1, "use_optimized_ops": 1, "use_fused_projections": 1}


def every_op() -> Callable[[], None]:
    """One call of everything public that a forward calls."""
    x, weight = torch.randn(2, 3, 24), torch.ones(24)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    cos, sin = tables(1, 3, 8, torch.float32)
    attn, mlp, routed = Attention(), Mlp(), Routed()

    def forward() -> None:
        amd_ops.rms_norm(x, weight, 1e-6)
        amd_ops.rms_norm(x, weight, 1e-6, form="gemma")
        amd_ops.add_rms_norm(x, x, weight, 1e-6)
        amd_ops.qkv_proj(attn, x)
        amd_ops.gated_mlp(mlp, x)
        amd_ops.apply_linear(attn.q_proj, x)
        amd_ops.linear(x, attn.q_proj.weight)
        amd_ops.silu_and_mul(x)
        amd_ops.gelu_and_mul(x)
        amd_ops.gelu_tanh_and_mul(x)
        amd_ops.apply_rope(q, k, cos, sin)
        amd_ops.attention(q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2), softcap=2.0)
        amd_ops.route_attention(routed, sdpa)(routed, q, k, k, None, scaling=0.3)

    return forward


class Forbidden(dict[str, str]):
    """An environment that may not be looked at."""

    def __getitem__(self, key: str) -> str:
        raise AssertionError(f"the environment was read: {key}")

    def get(self, key: str, default: Any = None) -> Any:
        raise AssertionError(f"the environment was read: {key}")

    def __contains__(self, key: object) -> bool:
        raise AssertionError(f"the environment was read: {key}")


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"a file was opened: {args}")


def test_forward_reads_no_environment_and_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = every_op()
    with amd_ops.override(**ON), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward()  # binds, and gives its warnings
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", Forbidden())
            patch.setattr(os, "getenv", refuse)
            patch.setattr(builtins, "open", refuse)
            patch.setattr(os, "open", refuse)
            patch.setattr(warnings, "warn", refuse)
            patch.setattr(amd_ops.dispatch.logger, "_log", refuse)
            forward()


def fresh(code: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("USE_", "AMD_OPS", "FORCE_"))}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, env={**clean, **environ}, cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def test_import_brings_neither_aiter_nor_transformers_nor_dynamo() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import amd_ops; new = set(sys.modules) - before;"
        "bad = [m for m in new if m.split('.')[0] in ('aiter', 'triton', 'transformers', 'numpy') or 'dynamo' in m];"
        "print(bad)"
    )
    every = {name.upper(): "1" for name in ON}
    assert fresh(code, **every) == "[]"


def test_aiter_is_imported_only_when_a_toggle_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    from amd_ops import device
    from amd_ops.backends.aiter import library

    names: list[str] = []

    def spy(name: str) -> Any:
        names.append(name)
        raise AssertionError("hipconfig not found")

    monkeypatch.setattr(library.importlib, "import_module", spy)
    monkeypatch.setattr(device, "_probe", lambda: device.Device("cpu", "gfx942", 304))
    amd_ops.refresh()
    x = torch.randn(2, 8)
    amd_ops.silu_and_mul(x)
    assert names == []
    with amd_ops.override(use_optimized_ops=1):
        with pytest.warns(amd_ops.DeclinedWarning, match="import aiter failed"):
            amd_ops.silu_and_mul(x)
        with pytest.warns(amd_ops.DeclinedWarning, match="rms_norm.*import aiter failed"):
            amd_ops.rms_norm(x, torch.ones(8), 1e-6)
    assert names == ["aiter"], "a failed import is not tried again"
    assert "AssertionError: hipconfig not found" in str(amd_ops.report())


def test_overlay_info_reads_loaded_modules_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    overlaid = types.ModuleType("overlaid")
    overlaid.__dict__["__amd_overlay__"] = "sha256:00"

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("a lazy module was triggered")

    monkeypatch.setitem(sys.modules, "overlaid", overlaid)
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    assert amd_ops.overlay_info()["overlaid"] == "sha256:00"
    assert "lazy" not in amd_ops.overlay_info()


def test_everything_public_is_named() -> None:
    assert set(amd_ops.__all__) == {name for name in amd_ops.__all__ if hasattr(amd_ops, name)}
    contract = (
        "attention linear apply_linear rms_norm add_rms_norm silu_and_mul gelu_and_mul gelu_tanh_and_mul apply_rope"
        " qkv_proj gated_mlp route_attention prepare restore settings refresh override report explain overlay_info on"
        " device ToggleError DeclinedError"
    )
    assert set(contract.split()) <= set(amd_ops.__all__)


class Tiny(nn.Module):
    """A layer that calls everything as an overlaid forward does."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.o_proj = Attention(sizes=(32, 16, 16)), Mlp(), nn.Linear(32, 24)
        self.norm = nn.Parameter(torch.ones(24))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        hidden = amd_ops.rms_norm(x, self.norm, 1e-6) if amd_ops.on.rms_norm else x
        q, k, v = amd_ops.qkv_proj(self.attn, hidden)
        shape = (*hidden.shape[:-1], -1, 8)
        q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
        q, k = amd_ops.apply_rope(q, k, cos, sin)
        out = amd_ops.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + amd_ops.apply_linear(self.o_proj, out.flatten(2))
        y, x = amd_ops.add_rms_norm(x, x, self.norm, 1e-6, form="gemma")
        return x + amd_ops.gated_mlp(self.mlp, y)


@pytest.mark.parametrize("fused", [0, 1])
def test_a_layer_compiles_as_one_graph(fused: int) -> None:
    """The eager backend traces with Dynamo and runs the graph: a graph break would raise."""
    layer, x = Tiny(), torch.randn(2, 5, 24)
    cos, sin = tables(1, 5, 8, torch.float32)
    with amd_ops.override(use_optimized_ops=1, use_aiter_gemm=1, use_fused_projections=fused), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
            want = layer(x, cos, sin)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        calls = amd_ops.report().calls("rms_norm")
        for _ in range(3):
            torch.testing.assert_close(compiled(x, cos, sin), want, rtol=1e-5, atol=1e-5)
        assert amd_ops.report().calls("rms_norm") == calls, "a compiled call is not counted"
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
