"""Host time: microseconds per decoder layer at near-zero size, and nanoseconds of dispatch per call of an op.

A layer: decode of one token, batch 1, hidden 32, inference mode, on a *kept* cache of eight tokens, dynamic and static;
(18 layers - 2 layers) / 16 of the minimum over interleaved rounds, in processor time of the one thread, stock and
overlaid in one process. Ratios are to stock of the same run.

    stock      transformers' own file, in float32; and in bfloat16, which tier aiter needs, for the ratio of that mode
    off        overlaid, every toggle off                                           target <= 1.01
    torch      overlaid, every family on, tiers torch and eager                     target <= 0.65
    aiter      overlaid, on a double of aiter on a gfx942: checks, variants and wrappers are real, aiter's own functions
               do nothing (what a launch costs beyond them is aiter's and HIP's)    target <= 0.25
    triton     overlaid, our Triton kernels for a gfx942, their launch does nothing target <= 0.30
    one-call   overlaid, every op an empty body that only allocates results: transformers' statements and ours
    watching   of these, what a plan pays to find out that nothing has changed      target <= 0.03

Per op and tier: ns of the bound call that a plan makes, against the whole chain with its checks. The launcher: ns of
``kernel[grid](...)`` of our Triton kernels as a plan starts them, with Triton's own launch stubbed.
A call: the public op with its dispatch bound to an empty body, minus that body called bare. Target <= 150 ns.
The import of amd_ops over that of torch, bytecode in place. Target <= 50 ms.

    python benchmarks/bench_host.py [--rounds N] [--models llama,qwen3] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import cpu_ns, interleaved, save

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
MODELS = ("llama", "qwen3", "gemma3", "mixtral")
ON: dict[str, object] = dict.fromkeys(
    ("use_aiter_attention", "use_aiter_gemm", "use_optimized_ops", "use_fused_projections"), 1
)
TARGETS = {"off": 1.01, "torch": 0.65, "aiter": 0.25, "triton": 0.30, "watching": 0.03}
LOOSER = {"mixtral": {"aiter": 0.45, "triton": 0.45}}
MODES = ("stock", "off", "torch", "triton", "one-call", "bf16-stock", "aiter")
IN_BF16 = ("bf16-stock", "aiter")
FEW, MANY = 2, 18
KEPT = 8
AITER, ARCH, UNITS = "v0.1.20.post1", "gfx942", 304


def main() -> None:
    """Measure, print ratios against their targets, and say which are missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)  # waiting for other threads would count as time of this one
    content: dict[str, Any] = {"targets": TARGETS, "looser": LOOSER, "us_per_layer": {}, "samples_ns": {}}
    for model in arguments.models.split(","):
        for kind in ("dynamic", "static"):
            samples = layers(model, kind, arguments.rounds)
            per_layer = {mode: slope(samples, mode) for mode in (*MODES, "watching")}
            content["us_per_layer"][f"{model} {kind}"] = per_layer
            content["samples_ns"][f"{model} {kind}"] = samples
            for mode, cost in per_layer.items():
                stock = per_layer["bf16-stock" if mode == "aiter" else "stock"]
                told(f"{model} {kind}: {mode}", cost, cost / stock, TARGETS.get(mode), model, mode)
    content["bound_ns"] = {name: min(values) for name, values in bound(arguments.rounds).items()}
    for name, cost in content["bound_ns"].items():
        print(f"{name:44} {cost:8.0f} ns")
    content["dispatch_ns"] = {name: min(values) for name, values in calls(arguments.rounds).items()}
    for name, cost in content["dispatch_ns"].items():
        print(f"dispatch of {name:18} {cost:6.0f} ns over the bare call {'held' if cost <= 150 else 'MISSED'}")
    content["import_ms"] = import_ms()
    least = min(content["import_ms"])
    print(f"import amd_ops over torch  {least:6.1f} ms {'held' if least <= 50 else 'MISSED'}")
    save(arguments.json, "amd-overlay.bench-host/2", content)


def told(what: str, cost: float, ratio: float, target: float | None, model: str, mode: str) -> None:
    """Print one figure and whether it holds its target."""
    target = LOOSER.get(model, {}).get(mode, target)
    verdict = "" if target is None else f"<= {target:.2f} {'held' if ratio <= target else 'MISSED'}"
    print(f"{what:34} {cost:8.1f} us/layer {ratio:7.3f} {verdict}", flush=True)


def slope(samples: dict[str, list[float]], mode: str) -> float:
    """Microseconds per layer."""
    return (min(samples[f"{mode} {MANY}"]) - min(samples[f"{mode} {FEW}"])) / (MANY - FEW) / 1e3


def layers(model: str, kind: str, rounds: int) -> dict[str, list[float]]:
    """Samples of one decode step per mode and number of layers, and of a plan's look at its model."""
    import torch

    from amd_ops import plans
    from tests.parity import twins

    sizes = {**SMALL, **({"moe_intermediate_size": 48} if model == "qwen3_moe" else {})}
    more: dict[str, Any] = {"sliding_window": None} if model in ("mixtral", "mistral") else {}
    pairs = {}
    for count in (FEW, MANY):
        types = {"layer_types": ["full_attention"] * count} if model == "gemma3" else {}
        for dtype in ("float32", "bfloat16"):
            pairs[dtype, count] = twins.new_pair(model, dtype, num_hidden_layers=count, **sizes, **more, **types)
    steps = {}
    for count in (FEW, MANY):
        for mode in MODES:
            pair = pairs["bfloat16" if mode in IN_BF16 else "float32", count]
            steps[f"{mode} {count}"] = Step(pair.stock if "stock" in mode else pair.overlay, kind)
    samples: dict[str, list[float]] = {name: [] for name in (*steps, f"watching {FEW}", f"watching {MANY}")}
    order, shuffle = list(steps), random.Random(0).shuffle
    with torch.inference_mode():
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                mode, count = name.split()
                with tier(mode):
                    for _ in range(3):
                        steps[name]()  # binds, packs and plans anew after the change of mode
                    samples[name].append(min(cpu_ns(steps[name]) - steps[name].rewound for _ in range(3)))
                    plan = plans._plans.get(pairs["float32", int(count)].overlay.model)
                    if mode == "torch" and plan is not None:
                        listed = list(pairs["float32", int(count)].overlay.model.layers)
                        look = functools.partial(plan.changed, listed)
                        samples[f"watching {count}"].append(min(cpu_ns(look) for _ in range(3)))
    return samples


class Step:
    """One decode step on a cache of KEPT tokens, which is put back first; ``rewound`` is what that took, in ns."""

    def __init__(self, model: Any, kind: str) -> None:
        import torch
        import transformers
        from transformers import DynamicCache, StaticCache

        import amd_ops

        self.model, self.ids = model, torch.tensor([[5]])
        self.cache: Any = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=32)
        at = torch.tensor([KEPT])
        self.given: dict[str, Any] = {"position_ids": at[None]}
        first: dict[str, Any] = {}
        if not transformers.__version__.startswith("5"):
            self.given["cache_position"], first["cache_position"] = at, torch.arange(KEPT)
        with torch.inference_mode(), amd_ops.override(**dict.fromkeys(ON, 0)):
            model(torch.arange(3, 3 + KEPT)[None], past_key_values=self.cache, use_cache=True, **first)
        self.rewound, self.kind = 0.0, kind

    def __call__(self) -> object:
        self.rewound = cpu_ns(self._rewind)
        return self.model(self.ids, past_key_values=self.cache, use_cache=True, **self.given)

    def _rewind(self) -> None:
        for layer in self.cache.layers:
            if self.kind == "dynamic":
                slack = layer.__dict__.get("_amd_slack")
                layer.keys, layer.values = layer.keys[:, :, :KEPT], layer.values[:, :, :KEPT]
                if slack is not None:
                    slack.keys, slack.values = layer.keys, layer.values
            elif hasattr(layer, "cumulative_length"):
                layer.cumulative_length.fill_(KEPT)


def tier(mode: str) -> contextlib.AbstractContextManager[object]:
    """The toggles and stand-ins of a mode."""
    import amd_ops

    if mode == "off" or "stock" in mode:
        return amd_ops.override(**dict.fromkeys(ON, 0))
    if mode == "torch":
        return amd_ops.override(**ON, tiers="torch,eager")
    return {"aiter": aiter, "triton": triton, "one-call": one_call}[mode]()


@contextlib.contextmanager
def aiter() -> Iterator[None]:
    """Tier aiter as it is, with functions of aiter that only hand out a result of the right shape."""
    import amd_ops
    from tests.doubles.aiter import fake_aiter, registry

    made, registry._python_function = registry._python_function, _stub
    with _unproven(), fake_aiter(AITER, ARCH, UNITS), amd_ops.override(**ON):
        try:
            yield
        finally:
            registry._python_function = made


def _stub(double: Any, module: str, name: str, parameters: list[str]) -> Callable[..., Any]:
    from tests.doubles.aiter import catalog

    results: dict[tuple[int, int], Any] = {}

    def gemm(A: Any, B: Any, bias: Any = None, *rest: Any, **words: Any) -> Any:
        key = A.shape[0], B.shape[0]
        if key not in results:
            results[key] = A.new_zeros(key)
        return results[key]

    stubs: dict[str, Callable[..., Any]] = {
        "gemm_a16w16": gemm,
        "rmsnorm2d_fwd": lambda x, *rest, **words: x,
        "flash_attn_func": lambda q, *rest, **words: q,
        "rope_cached_2c_fwd": lambda x, y, *rest, **words: (x, y),
        "rope_cached_positions_2c_fwd": lambda x, y, *rest, **words: (x, y),
    }
    nothing: Callable[..., Any] = lambda *args, **words: None  # noqa: E731
    function: Any = stubs.get(name, nothing)
    function.__name__, function.__signature__ = name, catalog.python_signature(parameters)
    return function  # type: ignore[no-any-return]


@contextlib.contextmanager
def _unproven() -> Iterator[None]:
    """Every variant is right: stubs compute nothing that a probe could compare."""
    from amd_ops import dispatch

    prove = dispatch._prove

    def yes(tally: Any, candidate: Any, key: Any, args: Any) -> str:
        candidate.verdicts[key], tally.first_call_s = "", 0.0
        return ""

    dispatch._prove = yes
    try:
        yield
    finally:
        dispatch._prove = prove


class CompiledKernel:
    """What Triton's launch returns and what is started later, both without a launch."""

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *args, **words: self


@contextlib.contextmanager
def triton() -> Iterator[None]:
    """Tier triton as it would be on the GPU, with launches that do nothing."""
    import amd_ops
    from amd_ops.backends.triton import target
    from amd_ops.backends.triton import tier as ours
    from amd_ops.backends.triton.kernels import gate, norm, rope
    from tests.doubles.aiter import fake_aiter

    kept = norm.rms_norm, rope.rope, gate.gate
    norm.rms_norm = rope.rope = gate.gate = CompiledKernel()
    found = target.find
    on: dict[str, object] = {**ON, "use_aiter_gemm": 0}
    with _unproven(), fake_aiter(AITER, ARCH, UNITS):
        ours._found = target.Target("cpu", ARCH, 64, UNITS)
        target.find = ours.find = lambda: target.Target("cpu", ARCH, 64, UNITS)
        try:
            with amd_ops.override(**on, tiers="triton,torch,eager"):
                yield
        finally:
            target.find = ours.find = found
            norm.rms_norm, rope.rope, gate.gate = kept
            ours.forget()


@contextlib.contextmanager
def one_call() -> Iterator[None]:
    """Every op bound to an empty body: what remains is the model's Python, ours and transformers'."""
    import amd_ops
    from amd_ops import dispatch

    with amd_ops.override(**ON, tiers="torch,eager"):
        for op in dispatch.ops.values():
            if isinstance(op, dispatch.Op) and op.name in BODIES:
                op.bind()
                op.call, op._links = BODIES[op.name], []
        yield


def _attention(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


BODIES: dict[str, Callable[..., Any]] = {
    "linear_add": lambda x, weight, residual, owned: residual,
    "linear": lambda x, weight, bias: x.new_empty((*x.shape[:-1], weight.shape[0])),
    "rms_norm": lambda x, *rest: x,
    "add_rms_norm": lambda x, residual, *rest: (x, residual),
    "silu_and_mul": lambda x: x[..., : x.shape[-1] // 2],
    "gelu_tanh_and_mul": lambda x: x[..., : x.shape[-1] // 2],
    "apply_rope": lambda q, k, *rest: (q, k),
    "qk_norm_rope": lambda q, k, *rest: (q, k),
    "rope_into_cache": lambda q, *rest: q,
    "attention": _attention,
}


def bound(rounds: int) -> dict[str, list[float]]:
    """Samples of each op in ns per call: the chain with its checks, and the bound call of a plan."""
    import torch

    from amd_ops import dispatch
    from amd_ops.ops.attention import Call

    kind = torch.bfloat16

    def rand(*shape: int) -> Any:
        return torch.randn(*shape).to(kind)

    x, weight, table = rand(1, 2048), rand(2048), rand(1, 1, 64)
    q, k, keys = rand(1, 32, 1, 64), rand(1, 8, 1, 64), rand(1, 8, 128, 64)
    given: dict[str, tuple[Any, ...]] = {
        "rms_norm": (x, weight, 1e-6, "llama"),
        "add_rms_norm": (x, x, weight, 1e-6, "llama"),
        "linear": (x, rand(3072, 2048), None),
        "silu_and_mul": (rand(1, 16384),),
        "apply_rope": (q, k, table, table, 1),
        "qk_norm_rope": (q, k, weight[:64], weight[:64], 1e-6, "llama", table, table),
        "rope_into_cache": (q, k, k, table, table, keys, keys, torch.tensor([5]), None, None, 0.0, "llama"),
        "attention": (q, keys, keys, 0.125, False, None, 0.0, None, None, None, Call(0)),
    }
    one = torch.ones(4)
    found = {"torch.mul of four floats": interleaved({"": lambda: torch.mul(one, one)}, rounds, calls=200)[""]}
    for mode in ("aiter", "triton"):
        with tier(mode), torch.inference_mode():
            for name, args in given.items():
                op = dispatch.ops[name]
                assert isinstance(op, dispatch.Op)
                if not op.can(mode):
                    continue
                fast = op.bound(*args).run
                fast(*args)
                variants: dict[str, Callable[[], object]] = {
                    f"{mode}: {name}, chain": lambda op=op, args=args: op.call(*args),
                    f"{mode}: {name}, bound": lambda fast=fast, args=args: fast(*args),
                }
                found |= interleaved(variants, rounds, calls=100)
    return found


def calls(rounds: int) -> dict[str, list[float]]:
    """Samples of public op minus bare body, in ns per call."""
    import torch

    import amd_ops
    from amd_ops import dispatch

    x, weight, tables = torch.randn(2, 16), torch.randn(16), torch.randn(1, 2, 8)
    heads = torch.randn(1, 2, 2, 8)
    given: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = {
        "silu_and_mul": (amd_ops.silu_and_mul, (x,), (x,)),
        "rms_norm": (amd_ops.rms_norm, (x, weight, 1e-6), (x, weight, 1e-6, "llama")),
        "linear": (amd_ops.linear, (x, x, weight), (x, x, weight)),
        "apply_rope": (amd_ops.apply_rope, (heads, heads, tables, tables), (heads, heads, tables, tables, 1)),
        "attention": (amd_ops.attention, (heads, heads, heads), (heads,) * 3),
    }
    found: dict[str, list[float]] = {}
    with amd_ops.override(**ON, tiers="torch,eager"), torch.inference_mode():
        for name, (public, args, inner) in given.items():
            op, body = dispatch.ops[name], _turned if name == "attention" else _nothing
            assert isinstance(op, dispatch.Op)
            op.bind()
            op.call = _nothing

            def ours(public: Any = public, args: Any = args) -> object:
                for _ in _HUNDRED:
                    public(*args)
                return None

            def bare(body: Any = body, inner: Any = inner) -> object:
                for _ in _HUNDRED:
                    body(*inner)
                return None

            samples = interleaved({"ours": ours, "bare": bare}, rounds, calls=20)
            least = min(samples["bare"])
            found[name] = [(value - least) / len(_HUNDRED) for value in samples["ours"]]
    return found


def import_ms(runs: int = 5) -> list[float]:
    """Processor time of ``import amd_ops`` after torch, in processes of their own, with compiled bytecode in place."""
    code = "import time, torch; s = time.process_time(); import amd_ops; print((time.process_time() - s) * 1e3)"
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", code]
        found = [subprocess.run(command, env=environ, capture_output=True, check=True) for _ in range(runs + 1)]
    return [float(run.stdout) for run in found[1:]]


_HUNDRED = range(100)


def _turned(query: Any, key: Any, value: Any) -> None:
    """What whoever calls SDPA on [B, S, H, D] writes himself."""
    query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _nothing(*args: Any) -> None:
    return None


if __name__ == "__main__":
    main()
