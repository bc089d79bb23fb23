"""Whole overlaid models in tier triton: every call of its ops is one launch of one kernel, and the tokens are those of
the torch tier.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.bench import launches

import amd_ops
from amd_ops.backends.triton.kernels import gate, norm, rope

BENCH = Path(__file__).resolve().parents[3] / "benchmarks" / "bench_launches.py"
ON: dict[str, object] = {"use_optimized_ops": 1, "use_fused_projections": 1}
SERVED = ("rms_norm", "add_rms_norm", "silu_and_mul", "apply_rope", "qk_norm_rope", "rope_into_cache")


class Counting:
    """A kernel that counts its launches; what the interpreter asks of torch meanwhile is none."""

    launches = 0
    running = False

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            Counting.launches += 1
            Counting.running = True
            try:
                self.kernel[grid](*args, **kwargs)
            finally:
                Counting.running = False

        return run


class Launches(launches._Count):
    """What a GPU would launch beside our kernels: every aten op that is no view.

    Attention and linears count once each: what runs in their place here is torch's CPU formula.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Counting.running or func.overloadpacket.__name__ == "promote_types":
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def as_one(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Leave the ops that tier triton serves as they are, and count one for any other of ours."""
        if name in SERVED:
            return call

        def counted(*args: Any) -> Any:
            once = self.once
            result = call(*args)
            self.once = once + 1
            return result

        return counted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in ((norm, "rms_norm"), (gate, "gate"), (rope, "rope")):
        monkeypatch.setattr(module, name, Counting(getattr(module, name)))
    yield
    Counting.launches = 0


@pytest.fixture(scope="module")
def overlaid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("bench_launches", BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.path.append(str(BENCH.parent))  # it imports its neighbour
    spec.loader.exec_module(bench)
    return functools.cache(lambda model: bench._serve_overlay(model, tmp_path_factory.mktemp(model)))


def decoded(model: str, layers: int, dtype: torch.dtype) -> tuple[list[int], torch.Tensor, int, dict[str, int]]:
    """Greedy tokens and last logits with a static cache; launches and calls per op of the last step."""
    from transformers import StaticCache

    from examples.tiny_models import build, tiny_config

    torch.manual_seed(0)
    net = build(tiny_config(model, num_hidden_layers=layers), dtype=dtype)
    ids, tokens = torch.tensor([[5, 9, 17, 33]]), []
    with torch.inference_mode():
        cache = StaticCache(net.config, max_cache_len=16)
        for step in range(4):
            amd_ops.reset_counters()
            Counting.launches = 0
            start = 0 if step == 0 else 3 + step
            at = torch.arange(start, start + ids.shape[1])
            logits = net(ids, past_key_values=cache, use_cache=True, cache_position=at).logits[:, -1]
            ids = logits.argmax(-1, keepdim=True)
            tokens.append(int(ids))
    report = amd_ops.report()
    return tokens, logits, Counting.launches, {op: report.calls(op) for op in SERVED if report.calls(op)}


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_a_decode_step_is_one_launch_per_op_and_gives_the_tokens_of_torch(
    model: str, overlaid: Callable[[str], None], counted: None
) -> None:
    overlaid(model)
    with amd_ops.override(**ON):
        few, many = (decoded(model, layers, torch.float32) for layers in (1, 3))
        report = amd_ops.report()
        assert {op: report.calls(op, "triton") for op in many[3]} == many[3], f"a call left tier triton:\n{report}"
        assert many[2] == sum(many[3].values()), "an op launched more or less than one kernel"
        per_layer = {op: (count - few[3].get(op, 0)) / 2 for op, count in many[3].items() if count != few[3].get(op)}
        # a planned layer leaves its last add to the first norm of the next one: both norms of a layer add
        assert per_layer == {"add_rms_norm": 2, "silu_and_mul": 1, "rope_into_cache": 1}
    with amd_ops.override(**ON, tiers="torch,eager"):
        tokens, logits, launches, _ = decoded(model, 3, torch.float32)
    assert launches == 0
    assert tokens == many[0]
    torch.testing.assert_close(many[1], logits, rtol=1e-4, atol=1e-5)


def launched(model: str, layers: int) -> int:
    """Launches of one decode step with a static cache, bf16, all toggles on; ops are bound and probed before."""
    from transformers import StaticCache

    from examples.tiny_models import build, tiny_config

    net = build(tiny_config(model, num_hidden_layers=layers), dtype=torch.bfloat16)
    cache = StaticCache(net.config, max_cache_len=16)

    def step(at: int, ids: list[int]) -> None:
        where = torch.arange(at, at + len(ids))
        net(torch.tensor([ids]), past_key_values=cache, use_cache=True, cache_position=where)

    with torch.inference_mode():
        step(0, [5, 9, 17, 33])
        step(4, [7])
        mode, Counting.launches = Launches(), 0
        with launches.wrapped_ops(mode.as_one), mode:
            step(5, [8])
    return mode.once + Counting.launches


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_a_layer_launches_at_most_ten_kernels_at_decode(
    model: str, overlaid: Callable[[str], None], counted: None
) -> None:
    overlaid(model)
    everything: dict[str, object] = {**ON, "use_aiter_attention": 1, "use_aiter_gemm": 1}
    with amd_ops.override(**everything), warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)  # there is no aiter: torch's linears and attention run
        few, many = launched(model, 1), launched(model, 3)
    per_layer = (many - few) / 2
    assert per_layer <= 10, amd_ops.report()
