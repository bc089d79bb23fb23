"""Kernels per decoder layer, stock against overlaid, as the tiers of a gfx942 with aiter and Triton launch them.

Counted with a dispatch mode on the CPU under inference_mode, bf16, batch 1, sdpa (gpt_oss: eager, it has no sdpa), on a
dynamic cache and on a static one. Views and metadata ops are left out. The overlaid side runs on a double of aiter that
stands for a gfx942 with 304 CUs, and on our Triton kernels in the interpreter, all four toggles on. A call of an op of
ours counts once where one of those two answers it; where torch answers, what it launches counts (experts: as the
grouped GEMMs that a GPU takes). Per layer = (3 layers - 1 layer) / 2, by name in the file. Where layers are of two
kinds, ``model:kind`` counts those of one: one layer of each stands in front, since a cache may want both.

    python benchmarks/bench_launches.py [--json FILE] [model ...]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import save

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe", "gpt_oss", "phi3", "deepseek_v3",
          "granitemoe", "qwen3_next:full_attention", "qwen3_next:linear_attention")  # fmt: skip
PHASES = ("prefill", "decode", "static prefill", "static decode")
TOGGLES = {"USE_FUSED_PROJECTIONS": "1", "USE_OPTIMIZED_OPS": "1", "USE_AITER_ATTENTION": "1", "USE_AITER_GEMM": "1"}
AITER, ARCH, UNITS = "v0.1.20.post1", "gfx942", 304


def main() -> None:
    """Run both sides of every model in processes of their own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--profile", type=Path, help="of `overlay qualify`, in place of all toggles")
    parser.add_argument("--worker", choices=("stock", "overlaid"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_count(arguments.models[0], arguments.worker == "overlaid", arguments.profile)))
        return
    rows = [_row(model, arguments.profile) for model in arguments.models]
    print(f"{'model':27} {'phase':14} {'stock':>6} {'overlaid':>9} {'ratio':>6}   overlaid, by name")
    for row in rows:
        for phase in PHASES:
            if phase not in row["stock"]:
                continue
            stock, ours = row["stock"][phase]["kernels"], row["overlaid"][phase]["kernels"]
            names = ", ".join(f"{name} {number:g}" for name, number in row["overlaid"][phase]["names"].items())
            print(f"{row['model']:27} {phase:14} {stock:6g} {ours:9g} {ours / stock:6.2f}   {names}")
    if arguments.json:
        content = {"device": f"double of aiter {AITER} on {ARCH}:{UNITS}, Triton interpreted", "rows": rows}
        save(arguments.json, "amd-overlay.bench-launches/2", content)


def _row(model: str, profile: Path | None) -> dict[str, Any]:
    return {"model": model, **{side: counted(model, side, profile) for side in ("stock", "overlaid")}}


def counted(model: str, side: str, profile: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the kernels of a layer by phase, as a process of its own counts them."""
    toggles = {**({} if profile else TOGGLES), "TRITON_INTERPRET": "1"} if side == "overlaid" else {}
    environ = {**os.environ, **toggles, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, model, "--worker", side]
    command += ["--profile", str(profile)] if profile else []
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model}, {side}: the worker failed\n{done.stderr}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _count(model: str, overlaid: bool, profile: Path | None) -> dict[str, dict[str, Any]]:
    sys.path.insert(0, str(ROOT))
    with contextlib.ExitStack() as stack:
        if overlaid:
            stack.enter_context(_gpu(profile))
            _serve_overlay(model.partition(":")[0], Path(stack.enter_context(tempfile.TemporaryDirectory())))
        few, many = _kernels(*_sized(model, 1)), _kernels(*_sized(model, 3))
    rows = {}
    for phase, counted in many.items():
        names = {name: (number - few[phase][name]) / 2 for name, number in counted.items()}
        rows[phase] = {"kernels": sum(names.values()), "names": {name: each for name, each in names.items() if each}}
    return rows


@contextlib.contextmanager
def _gpu(profile: Path | None) -> Iterator[None]:
    """What stands for a gfx942 here: aiter's double, and experts on the grouped GEMMs that torch's tier takes there."""
    import amd_ops
    from amd_ops import dispatch
    from tests.doubles.aiter import fake_aiter

    moe = importlib.import_module("amd_ops.ops.moe")  # the package has a function of this name
    tiers = dispatch.ops["moe"].tiers
    (torch_tier,) = [tier for tier in tiers if tier.name == "torch"]
    torch_tier.offer = dispatch.always(
        lambda hidden, w1, w2, weights, ids, activation: moe._grouped(
            hidden, w1, w2, weights, ids, moe.ACTIVATIONS[activation]
        )
    )
    with fake_aiter(AITER, ARCH, UNITS), amd_ops.override(profile=profile) if profile else contextlib.nullcontext():
        yield


def _serve_overlay(model: str, folder: Path) -> None:
    """Serve the overlaid text that fits the installed stock file, without touching that file."""
    import hashlib
    from importlib.util import find_spec

    from rocm_overlay.install import catalog
    from rocm_overlay.install.hook import SourceFinder

    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    path = f"models/{model}/modeling_{model}.py"
    stock = Path(spec.origin).with_name("models") / model / f"modeling_{model}.py"
    entry = catalog.find(path, hashlib.sha256(stock.read_bytes()).hexdigest())
    if entry is None:
        raise SystemExit(f"{stock}: no overlay fits this text; `overlay list` names the releases")
    target = folder / path
    target.parent.mkdir(parents=True)
    target.write_bytes(entry.overlay_bytes())
    SourceFinder({f"transformers.models.{model}.modeling_{model}": target}).install()


def _sized(model: str, count: int) -> tuple[str, dict[str, Any]]:
    """The architecture and its overrides with ``count`` layers of what is counted."""
    name, _, kind = model.partition(":")
    if kind:
        types = [*(one for one in ("linear_attention", "full_attention") if one != kind), *[kind] * count]
        return name, {"num_hidden_layers": len(types), "layer_types": types}
    return name, {"num_hidden_layers": count, **_full_attention(name, count)}


def _kernels(model: str, overrides: dict[str, Any]) -> dict[str, Counter[str]]:
    import torch
    from rocm_overlay.bench.launches import count

    from examples.tiny_models import build, tiny_config

    net = build(tiny_config(model, **overrides), dtype=torch.bfloat16)
    if model == "gpt_oss":
        net.set_attn_implementation("eager")
    ids = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(0))
    found: dict[str, Counter[str]] = {}

    def step(cache: Any, start: int, length: int) -> None:
        position = torch.arange(start, start + length)
        net(ids[:, :length], past_key_values=cache, use_cache=True, cache_position=position)

    with torch.inference_mode():
        net(ids, use_cache=True)  # fuses, binds and probes outside the counted calls
        for kind, cache in _caches(net).items():
            if kind:  # allocates the cache, then binds what writes into it (transformers 5 appends at each call)
                step(cache, 0, 6)
                step(cache, 0, 6)
            for phase, start, length in (("prefill", 0, 6), ("decode", 6, 1), ("decode", 7, 1)):
                # The second decode is counted: the first one may still bind and prove.
                names: Counter[str] = Counter()
                count(lambda cache=cache, start=start, length=length: step(cache, start, length), names)
                found[kind + phase] = names
    return found


def _caches(net: Any) -> dict[str, Any]:
    """A dynamic cache, and a static one where stock has it for this model."""
    from transformers import DynamicCache, StaticCache

    home = importlib.import_module(type(net).__module__)
    own = [one for name, one in vars(home).items() if name.endswith("DynamicCache") and one is not DynamicCache]
    if own:
        return {"": own[0](net.config)}  # keeps the state of layers that are no attention; there is no static one
    caches = {"": DynamicCache(config=net.config), "static ": StaticCache(net.config, max_cache_len=32)}
    if not hasattr(caches["static "].layers[0], "cumulative_length") and hasattr(net.config, "kv_lora_rank"):
        del caches["static "]  # in 4.x it takes keys and values of one width only
    return caches


def _full_attention(model: str, layers: int) -> dict[str, Any]:
    """Overrides that leave out sliding windows, whose static layers roll instead of being written to."""
    if model in ("gemma2", "gemma3", "gpt_oss"):
        return {"layer_types": ["full_attention"] * layers}
    if model == "qwen2":
        return {"use_sliding_window": False}
    return {"sliding_window": None}


if __name__ == "__main__":
    main()
