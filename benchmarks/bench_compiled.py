"""Kernels per decoder layer of a compiled decode step with a static cache, stock against overlaid, read from the code
that Inductor writes: bf16, batch 1, ``fullgraph=True``. No GPU is needed, since nothing is run: Inductor's GPU path
(Triton) is asked for its code, on the CPU, and the calls in it are counted. Per layer = (3 layers - 1 layer) / 2.

    stock    transformers' own file
    torch    overlaid, USE_FUSED_PROJECTIONS and USE_OPTIMIZED_OPS, tiers torch and eager
    aiter    overlaid, every family on, a double of aiter on a gfx942

    python benchmarks/bench_compiled.py [--json FILE] [model ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_launches import AITER, ARCH, UNITS, _full_attention, _serve_overlay
from measuring import ROOT, save

MODELS = ("llama", "qwen3", "gemma3", "mixtral", "gpt_oss")
SIDES = ("stock", "torch", "aiter")
CALL = re.compile(
    r"^\s+(?:[\w, \[\]]+ = )?((?:cpp_fused|triton_)\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)(?:\.run)?\("
)


class CodeKept(Exception):
    """Inductor has written its code; nothing is compiled."""


def main() -> None:
    """Count every model and side in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(per_layer(arguments.models[0], arguments.worker)))
        return
    rows = [{"model": model, **{side: _apart(model, side) for side in SIDES}} for model in arguments.models]
    print(f"{'model':10} {'side':6} {'kernels':>8}   by name")
    for row in rows:
        for side in SIDES:
            found = row[side]
            names = found.get("error") or ", ".join(f"{name} {count:g}" for name, count in found["names"].items())
            print(f"{row['model']:10} {side:6} {found.get('kernels', '-'):>8}   {names}")
    save(arguments.json, "amd-overlay.bench-compiled/1", {"rows": rows})


def _apart(model: str, side: str) -> dict[str, Any]:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-W", "ignore", __file__, model, "--worker", side]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model}, {side}: the worker failed\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def per_layer(model: str, side: str) -> dict[str, Any]:
    """Return kernels of a layer by kind, or why stock or overlaid makes no single graph."""
    _for_a_gpu()
    with tempfile.TemporaryDirectory() as folder, _tiers(side):
        if side != "stock":
            _serve_overlay(model, Path(folder))
        counts = []
        for layers in (1, 3):
            found = calls_of_graph(model, layers)
            if isinstance(found, str):
                return {"error": found}
            counts.append(found)
    names = {name: (count - counts[0][name]) / 2 for name, count in counts[1].items() if count != counts[0][name]}
    return {"kernels": sum(names.values()), "names": names}


def calls_of_graph(model: str, layers: int) -> Counter[str] | str:
    """Compile one decode step and count what its code calls; a text says why there is no such graph."""
    import torch
    import transformers
    from torch._inductor.graph import GraphLowering
    from transformers import StaticCache

    from examples.tiny_models import build, tiny_config

    net = build(tiny_config(model, num_hidden_layers=layers, **_full_attention(model, layers)), dtype=torch.bfloat16)
    if model == "gpt_oss":
        net.set_attn_implementation("eager")
    counts_itself = transformers.__version__.startswith("5")
    codes: list[str] = []

    def keep(code: str) -> None:
        codes.append(code)
        raise CodeKept

    GraphLowering.save_output_code = staticmethod(keep)
    torch._dynamo.reset()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        cache = StaticCache(config=net.config, max_cache_len=32)
        net(
            ids, past_key_values=cache, use_cache=True, **({} if counts_itself else {"cache_position": torch.arange(6)})
        )
        position = torch.tensor([6])
        given = {"position_ids": position[None], **({} if counts_itself else {"cache_position": position})}
        try:
            torch.compile(net, fullgraph=True, dynamic=False)(
                ids[:, :1], past_key_values=cache, use_cache=True, **given
            )
        except Exception as error:  # noqa: BLE001 - whatever refuses the graph is the row's answer
            if not codes:
                return f"no graph: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return Counter(kind for code in codes for kind in _calls(code))


def _calls(code: str) -> Iterator[str]:
    body = code[code.rindex("def call(") :].split("def benchmark_compiled_module")[0]
    for line in body.splitlines():
        found = CALL.match(line)
        name = found.group(1) if found else ""
        if name.startswith(("cpp_fused", "triton_")):
            yield "fused"
        elif name:
            yield name.removeprefix("torch.ops.").removesuffix(".default")


def _for_a_gpu() -> None:
    """Let Inductor take the path of its GPU backend; a driver that names a gfx942 stands in for a GPU's."""
    sys.path.insert(0, str(ROOT))
    import torch
    import torch._inductor.config as inductor
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("hip", ARCH, 64)

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            return torch.device("cpu")

    triton.runtime.driver.set_active(Driver())
    inductor.cpu_backend = "triton"
    inductor.force_pointwise_cat = True
    inductor.compile_threads = 1
    torch.set_num_threads(1)


@contextlib.contextmanager
def _tiers(side: str) -> Iterator[None]:
    if side == "stock":
        yield
        return
    import amd_ops
    from tests.doubles.aiter import fake_aiter

    ours: dict[str, object] = {"use_optimized_ops": 1, "use_fused_projections": 1}
    if side == "torch":
        with amd_ops.override(**ours, tiers="torch,eager"):
            yield
        return
    with fake_aiter(AITER, ARCH, UNITS), amd_ops.override(**ours, use_aiter_attention=1, use_aiter_gemm=1):
        yield


if __name__ == "__main__":
    main()
