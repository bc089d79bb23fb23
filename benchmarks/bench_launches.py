"""Compute ops per decoder layer, stock against overlaid: how many kernels a layer launches at prefill and at decode.

Counted with a dispatch mode on the CPU under inference_mode, bf16, batch 1, sdpa (gpt_oss: eager,
it has no sdpa), on a dynamic cache and on a static one. Views and metadata
ops are left out. One call of an op of ours counts once, whatever its tier is made of: that is what it launches where a
fused kernel answers it; the raw count of aten ops stands beside it. Per layer = (3 layers - 1 layer) / 2.

    python benchmarks/bench_launches.py [--json FILE] [model ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import save

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe", "gpt_oss", "phi3")
PHASES = ("prefill", "decode", "static prefill", "static decode")
TOGGLES = {"USE_FUSED_PROJECTIONS": "1", "USE_OPTIMIZED_OPS": "1", "USE_AITER_ATTENTION": "1", "USE_AITER_GEMM": "1"}


def main() -> None:
    """Run both sides of every model in processes of their own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--worker", choices=("stock", "overlaid"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_count(arguments.models[0], overlaid=arguments.worker == "overlaid")))
        return
    rows = [_row(model) for model in arguments.models]
    print(f"{'model':10} {'phase':14} {'stock':>6} {'overlaid':>9} {'ratio':>6}   raw aten ops overlaid")
    for row in rows:
        for phase in PHASES:
            stock, ours = row["stock"][phase], row["overlaid"][phase]
            ratio = ours["once"] / stock["once"]
            print(f"{row['model']:10} {phase:14} {stock['once']:6g} {ours['once']:9g} {ratio:6.2f}   {ours['raw']:g}")
    if arguments.json:
        save(arguments.json, "amd-overlay.bench-launches/1", {"rows": rows})


def _row(model: str) -> dict[str, Any]:
    counts = {}
    for side in ("stock", "overlaid"):
        toggles = TOGGLES if side == "overlaid" else {}
        environ = {**os.environ, **toggles, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, model, "--worker", side]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{model}, {side}: the worker failed\n{done.stderr}")
        counts[side] = json.loads(done.stdout.splitlines()[-1])
    return {"model": model, **counts}


def _count(model: str, *, overlaid: bool) -> dict[str, dict[str, float]]:
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        if overlaid:
            _serve_overlay(model, Path(folder))
        few, many = _ops(model, 1), _ops(model, 3)
    kinds = ("once", "raw")
    return {phase: {kind: (many[phase][kind] - few[phase][kind]) / 2 for kind in kinds} for phase in PHASES}


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


def _ops(model: str, layers: int) -> dict[str, dict[str, int]]:
    import torch
    from rocm_overlay.bench.launches import count
    from transformers import DynamicCache, StaticCache

    from examples.tiny_models import build, tiny_config

    config = tiny_config(model, num_hidden_layers=layers, **_full_attention(model, layers))
    net = build(config, dtype=torch.bfloat16)
    if model == "gpt_oss":
        net.set_attn_implementation("eager")
    ids = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(0))
    found = {}
    with torch.inference_mode():
        net(ids, use_cache=True)  # fuses, binds and probes outside the counted calls
        for kind, cache in (("", DynamicCache()), ("static ", StaticCache(net.config, max_cache_len=32))):
            if kind:  # allocates the cache, then binds what writes into it (transformers 5 appends at each call)
                for _ in range(2):
                    net(ids, past_key_values=cache, use_cache=True, cache_position=torch.arange(ids.shape[1]))
            for phase, part in (("prefill", ids), ("decode", ids[:, :1])):
                start = {"prefill": 0, "decode": ids.shape[1]}[phase]
                position = torch.arange(start, start + part.shape[1])
                found[kind + phase] = count(
                    lambda part=part, cache=cache, position=position: net(
                        part, past_key_values=cache, use_cache=True, cache_position=position
                    )
                )
    return found


def _full_attention(model: str, layers: int) -> dict[str, Any]:
    """Overrides that leave out sliding windows, whose static layers roll instead of being written to."""
    if model in ("gemma2", "gemma3", "gpt_oss"):
        return {"layer_types": ["full_attention"] * layers}
    if model == "qwen2":
        return {"use_sliding_window": False}
    return {"sliding_window": None}


if __name__ == "__main__":
    main()
