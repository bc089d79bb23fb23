"""How fast a model can decode: the memory roofline, and the sum of measured rows where a table has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .device import Gpu
from .lookup import TableIndex
from .models import Linear, Model

SCHEMA = "amd-overlay.tune.estimate/1"
# Median of aiter's own large gfx950 rows at M = 1: 65 % of peak bandwidth. The shortest kernels take 3 us.
EFFICIENCY = 0.65
FLOOR_US = 3.0
LAUNCH_US = 5.0
UNCOUNTED = 40, 9
"""Launches of a layer, stock and overlaid, that are assumed for a model for which they were not counted: a llama's."""
OUTSIDE_LAUNCHES = 22


@dataclass(frozen=True)
class Roofline:
    """The bound by memory traffic at one context length: every weight once per step, and every sequence's cache."""

    context: int
    batch: int
    bytes_per_step: int
    tokens_per_s: float
    tokens_per_s_real: float


@dataclass(frozen=True)
class Product:
    """The time of one Linear at M: from a measured row, or from the roofline with a floor."""

    linear: Linear
    m: int
    us: float
    source: str
    calls: float


@dataclass(frozen=True)
class Step:
    """One decode step of ``batch`` sequences: GEMM time, cache traffic, launches, and what bounds it."""

    batch: int
    products: tuple[Product, ...]
    layer_us: float
    gemm_us: float
    cache_us: float
    measured_share: float
    stock_launches: int
    fused_launches: int
    launch_us: float

    @property
    def device_us(self) -> float:
        return self.gemm_us + self.cache_us

    def host_us(self, launches: int) -> float:
        return launches * self.launch_us

    def bound(self, launches: int) -> str:
        return "launch-bound" if self.host_us(launches) > self.device_us else "memory-bound"

    def tokens_per_s(self, launches: int) -> float:
        return self.batch * 1e6 / max(self.device_us, self.host_us(launches))


def weight_bytes(model: Model, batch: int = 1, width: int = 2) -> int:
    """Return the bytes of weights a step of ``batch`` tokens reads on one rank: no embedding table, no vision tower."""
    total = float(model.norm_params)
    for linear in model.linears:
        if linear.kind != "image" and not linear.role.startswith("vision."):
            total += linear.n * linear.k * distinct(model, linear, batch)
    return round(total * width)


def distinct(model: Model, linear: Linear, tokens: int) -> float:
    """Return how many of a Linear's ``count`` weights some of ``tokens`` tokens use, routing taken as even."""
    experts, top_k = model.experts
    if linear.kind != "expert":
        return float(linear.count)
    return linear.count * (1 - (1 - top_k / experts) ** tokens)


def cache_bytes(model: Model, context: int) -> int:
    """Return the key/value bytes of one sequence of ``context`` tokens; a sliding window bounds its layer."""
    tokens = sum(min(context, window) if window else context for window in model.windows)
    return tokens * model.kv_bytes_per_layer


def roofline(model: Model, gpu: Gpu, contexts: Sequence[int], batch: int, efficiency: float) -> tuple[Roofline, ...]:
    weights = weight_bytes(model, batch)
    found = []
    for context in contexts:
        size = weights + batch * cache_bytes(model, context)
        rate = batch * gpu.hbm / size
        found.append(Roofline(context, batch, size, rate, rate * efficiency))
    return tuple(found)


def product(
    model: Model, linear: Linear, tokens: int, gpu: Gpu, index: TableIndex | None, dtype: str, efficiency: float
) -> Product:
    """Return the time of one Linear when ``tokens`` tokens pass the model."""
    m, calls = tokens, float(linear.count)
    if linear.kind == "expert":
        experts, top_k = model.experts
        m = max(1, round(tokens * top_k / experts))
        calls = distinct(model, linear, tokens)
    hit = index.find(m, linear.n, linear.k, bias=linear.bias, dtype=dtype) if index else None
    if hit is not None and hit.row.measured:
        return Product(linear, m, hit.row.us, f"table ({hit.row.libtype}, M={hit.m})", calls)
    traffic = 2 * (linear.n * linear.k + m * linear.k + m * linear.n) / (gpu.hbm * efficiency)
    compute = 2 * m * linear.n * linear.k / (gpu.bf16 * efficiency)
    return Product(linear, m, max(traffic * 1e6, compute * 1e6, FLOOR_US), "roofline", calls)


def step(
    model: Model,
    gpu: Gpu,
    index: TableIndex | None,
    *,
    batch: int,
    context: int,
    dtype: str,
    efficiency: float = EFFICIENCY,
    launch_us: float = LAUNCH_US,
) -> Step:
    """Return one decode step of a language model; its vision tower does not run at decode."""
    linears = [linear for linear in model.linears if linear.kind != "image" and not linear.role.startswith("vision.")]
    products = tuple(product(model, linear, batch, gpu, index, dtype, efficiency) for linear in linears)
    in_layers = sum(p.us * p.calls for p in products if p.linear.kind != "head")
    total = in_layers + sum(p.us * p.calls for p in products if p.linear.kind == "head")
    measured = sum(p.us * p.calls for p in products if p.source != "roofline")
    cache = batch * cache_bytes(model, context) / (gpu.hbm * efficiency) * 1e6
    stock, fused = (each * model.layers + OUTSIDE_LAUNCHES for each in model.launches or UNCOUNTED)
    return Step(batch, products, in_layers / model.layers, total, cache, measured / total, stock, fused, launch_us)


def as_json(
    model: Model, gpu: Gpu, lines: Sequence[Roofline], steps: Sequence[Step], notes: Sequence[str]
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "model": model.name,
        "gpu": {"name": gpu.name, "device": str(gpu.device) if gpu.device else None, "hbm_tb_per_s": gpu.hbm / 1e12},
        "weight_bytes": weight_bytes(model),
        "cache_bytes_per_token": cache_bytes(model, 1),
        "roofline": [vars(line) for line in lines],
        "steps": [_step_json(value) for value in steps],
        "notes": [*model.notes, *notes],
    }


def _step_json(value: Step) -> dict[str, object]:
    return {
        "batch": value.batch,
        "us_per_layer": value.layer_us,
        "gemm_us": value.gemm_us,
        "cache_us": value.cache_us,
        "measured_share": value.measured_share,
        "products": [
            {
                "role": p.linear.role,
                "m": p.m,
                "n": p.linear.n,
                "k": p.linear.k,
                "us": p.us,
                "calls": p.calls,
                "source": p.source,
            }
            for p in value.products
        ],
        "launches": [
            {
                "kind": kind,
                "per_step": launches,
                "host_us": value.host_us(launches),
                "bound": value.bound(launches),
                "tokens_per_s": value.tokens_per_s(launches),
            }
            for kind, launches in (("stock", value.stock_launches), ("fused", value.fused_launches))
        ],
    }


def text(model: Model, gpu: Gpu, lines: Sequence[Roofline], steps: Sequence[Step], notes: Sequence[str]) -> str:
    """Return the estimate as lines for a terminal."""
    out = [
        f"{model.name} on {gpu.name} ({gpu.hbm / 1e12:g} TB/s): "
        f"{weight_bytes(model) / 1e9:.2f} GB of weights per token, "
        f"{cache_bytes(model, 1) / 1e3:.0f} kB of cache per cached token",
        f"{'context':>9}{'batch':>7}{'bound tok/s':>13}{'expected tok/s':>16}",
    ]
    out += [f"{r.context:>9}{r.batch:>7}{r.tokens_per_s:>13.1f}{r.tokens_per_s_real:>16.1f}" for r in lines]
    for value in steps:
        out += [
            "",
            f"one step of {value.batch}: {value.layer_us:.1f} us per layer, GEMMs {value.gemm_us / 1e3:.2f} ms ",
        ]
        out[-1] += f"({value.measured_share:.0%} of it from measured rows), cache {value.cache_us / 1e3:.2f} ms"
        for p in value.products:
            out.append(
                f"  {p.linear.role:26}{p.m:>6}x{p.linear.n}x{p.linear.k}: {p.us:.1f} us x {p.calls:g} [{p.source}]"
            )
        for kind, launches in (("stock", value.stock_launches), ("fused", value.fused_launches)):
            out.append(
                f"  {kind} {launches} launches x {value.launch_us:g} us = "
                f"{value.host_us(launches) / 1e3:.2f} ms on the host: "
                f"{value.bound(launches)}, at most {value.tokens_per_s(launches):.0f} tok/s without graphs"
            )
    return "\n".join([*out, *(f"note: {note}" for note in (*model.notes, *notes))])
