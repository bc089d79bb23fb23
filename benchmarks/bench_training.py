"""Training: what a step launches, what its graph keeps, and how high the loss of a large vocabulary climbs.

Counted are torch's own operations that are no views (in tier torch an operation is a launch), matrix products among
them, forward and backward apart, for one more decoder layer; bytes are those of the storages that autograd keeps. The
row "aiter and triton" is that of a double of a gfx942: an operator of aiter counts once, and so does each Triton kernel
that our launchers start (interpreted). The peak of the loss is summed from torch's record of every allocation and
release (its profiler), over the level before it.

    python benchmarks/bench_training.py [--json FILE] [--rows 512] [--words 128256]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_memory import MARK, highest
from measuring import save

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
}
ARCHITECTURES = ("llama", "qwen3", "qwen3_moe")
TOGGLES: dict[str, dict[str, Any]] = {
    "stock": {},
    "fused projections": {"use_fused_projections": 1},
    "all of tier torch": {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1},
}
GPU = "aiter and triton"
ON_GPU = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "linear", "matmul")


def main() -> None:
    """Count the steps, then measure the loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--words", type=int, default=128256)
    parser.add_argument("--gpu", choices=ARCHITECTURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gpu:
        print(json.dumps(on_gpu(arguments.gpu)))
        return
    steps = {architecture: layer(architecture) for architecture in ARCHITECTURES}
    for architecture, rows in steps.items():
        for name, row in rows.items():
            print(f"{architecture:10} {name:18}", *(f"{what} {value}" for what, value in row.items()), sep="  ")
    loss = losses(arguments.rows, arguments.words)
    for name, value in loss.items():
        print(f"{name:26} {value:>12}")
    saved = loss["stock_peak"] - loss["fused_peak"]
    print("peak below stock by the logits' bytes:", "held" if saved >= loss["logits_bytes"] else "MISSED")
    save(arguments.json, "amd-overlay.bench-training/1", {"shape": SHAPE, "layer": steps, "loss": loss})


def layer(architecture: str) -> dict[str, dict[str, int]]:
    """What one decoder layer more adds to a step: launches and products each way, and bytes that the graph keeps."""
    found: dict[str, dict[str, int]] = {}
    for name, toggles in TOGGLES.items():
        two, three = (step(architecture, layers, name == "stock", toggles) for layers in (2, 3))
        found[name] = {what: three[what] - two[what] for what in two}
    command = [sys.executable, "-W", "ignore", __file__, "--gpu", architecture]
    environ = {**os.environ, "TRITON_INTERPRET": "1"}  # which Triton reads when it is imported
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return {**found, GPU: json.loads(done.stdout.splitlines()[-1])}


def on_gpu(architecture: str) -> dict[str, int]:
    """Count what one decoder layer more launches on the double of a GPU."""
    from tests.doubles.aiter import fake_aiter

    with fake_aiter("v0.1.20.post1", "gfx942", 304):
        two, three = (step(architecture, layers, False, ON_GPU) for layers in (2, 3))
    return {what: three[what] - two[what] for what in two if what != "products"}  # GEMMs of aiter are none of torch's


@contextlib.contextmanager
def interpreted(count: Any) -> Iterator[None]:
    """Let a Triton kernel that is interpreted count as one launch, and nothing of what interprets it."""
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__

    def once(self: Any, *args: Any, **kwargs: Any) -> None:
        before = count.launches
        run(self, *args, **kwargs)
        count.launches = before + 1

    interpreter.GridExecutor.__call__ = once
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = run


def step(architecture: str, layers: int, stock: bool, toggles: dict[str, Any]) -> dict[str, int]:
    """Count one training step of a bf16 model, the second one: the first packs."""
    import torch
    from rocm_overlay.bench.launches import VIEWS
    from torch.utils._python_dispatch import TorchDispatchMode

    import amd_ops
    from tests.parity import twins

    class Count(TorchDispatchMode):
        launches = products = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            self.launches += name not in VIEWS
            self.products += name in PRODUCTS
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    pair = twins.new_pair(architecture, "bfloat16", **SHAPE, num_hidden_layers=layers)
    model = (pair.stock if stock else pair.overlay).train()
    ids = torch.randint(3, 500, (1, 128))
    gpu = toggles is ON_GPU
    with amd_ops.override(**toggles, tiers="aiter,triton,torch,eager" if gpu else "torch,eager"):
        model(ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)
        kept = kept_bytes(model, lambda: model(ids, labels=ids, use_cache=False).loss)
        with Count() as forward, interpreted(forward) if gpu else contextlib.nullcontext():
            loss = model(ids, labels=ids, use_cache=False).loss
        with Count() as backward, interpreted(backward) if gpu else contextlib.nullcontext():
            loss.backward()
    return {
        "forward": forward.launches,
        "backward": backward.launches,
        "products": forward.products + backward.products,
        "bytes kept": kept,
    }


def kept_bytes(model: Any, run: Callable[[], Any]) -> int:
    """Bytes of all storages that the graph of run() keeps, parameters and buffers left out."""
    import torch

    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    return sum(one.untyped_storage().nbytes() for where, one in kept.items() if where not in own)


def losses(rows: int, words: int, width: int = 512) -> dict[str, Any]:
    """Peak over the level before of stock's loss and of ours, forward and backward, bf16, in bytes; and its time."""
    found: dict[str, Any] = {"rows": rows, "words": words, "width": width, "logits_bytes": 2 * rows * words}
    for name in ("stock", "fused"):
        gc.collect()  # nothing of one side may be released while the other is watched
        peak, seconds, value = loss_of(name, rows, words, width)
        found |= {f"{name}_seconds": round(seconds, 3), f"{name}_peak": peak, f"{name}_loss": value}
    return found


def loss_of(name: str, rows: int, words: int, width: int) -> tuple[int, float, float]:
    """Return (peak in bytes, processor time in seconds, loss) of one side."""
    import time

    import torch
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers.loss.loss_utils import ForCausalLMLoss

    import amd_ops

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        torch.manual_seed(0)
        head = torch.nn.Linear(width, words, bias=False, dtype=torch.bfloat16)
        hidden = torch.randn(1, rows, width, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.randint(0, words, (1, rows))
        begin = time.thread_time()
        with record_function(MARK):
            if name == "stock":
                loss = ForCausalLMLoss(head(hidden), labels, words)
            else:
                loss = amd_ops.causal_lm_loss(ForCausalLMLoss, head, hidden, labels, words)
            assert loss is not None
            loss.backward()
        seconds = time.thread_time() - begin
    return highest(watch), seconds, float(loss.detach())


if __name__ == "__main__":
    main()
