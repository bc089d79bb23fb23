"""Run tier aiter against the real Python layer of an aiter checkout, on a machine without a GPU.

    python tests/aiter/real_layer.py CHECKOUT [--arch gfx942] [--cu 304]

Real: everything in CHECKOUT/aiter, unedited: its import, op registration, schemas, argument checks, ``flash_attn_func``
and ``gemm_a16w16`` with their choice of kernels, tuning-table lookup, ``shuffle_weight``, rope wrappers.
Faked, and only outside of it: ``hipconfig``, ``hipcc`` and ``rocminfo`` on PATH, ``torch.cuda`` and ``device="cuda"``,
the enums module, and the compiled kernels. Those are answered by the kernels of the double in ``tests/doubles``, which
check every precondition and compute in fp32. So the numbers say nothing about AMD's kernels, and everything about
which of them are asked, with which arguments. Needs what aiter imports: pandas, einops, psutil, pybind11, triton.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import inspect
import json
import math
import os
import stat
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENUMS = """import enum
class ActivationType(enum.IntEnum):
    "Members:"
    No = -1; Silu = 0; Gelu = 1; Swiglu = 2; Situv2 = 3
class QuantType(enum.IntEnum):
    "Members:"
    No = 0; per_Tensor = 1; per_Token = 2; per_1x32 = 3; per_1x128 = 4; per_128x128 = 5; per_256x128 = 6
    per_1024x128 = 7
class MlaVersion(enum.IntEnum):
    "Members:"
    V30 = 0; V31 = 1; V32 = 2; V40 = 3
class aiter_tensor_t:
    "Members:"
"""


def main() -> None:
    """Fake the machine, import the checkout, run every op through amd_ops and print one line each as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--arch", default="gfx942")
    parser.add_argument("--cu", type=int, default=304)
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(arguments.checkout)]
    with tempfile.TemporaryDirectory(prefix="real-layer-") as folder:
        fake_machine(Path(folder), arguments.arch, arguments.cu)
        fake_torch(arguments.arch, arguments.cu)
        calls = fake_kernels(arguments.arch, arguments.cu)
        for row in [*exercise(calls, arguments.arch, arguments.cu), *trained(calls)]:
            print(json.dumps(row))
        sys.stdout.flush()
        os._exit(0)  # old versions print tracebacks while torch takes their library down


def fake_machine(folder: Path, arch: str, cu: int) -> None:
    """Programs on PATH and modules where aiter looks for its compiled ones."""
    programs = {
        "hipconfig": "echo 6.4.43482-0f2d60242",
        "hipcc": "exit 0",
        "rocminfo": f"echo '  Name:                    {arch}'; echo '  Compute Unit:            {cu}'",
    }
    rocm = folder / "rocm"
    (rocm / "bin").mkdir(parents=True)
    (rocm / ".info").mkdir()
    (rocm / ".info" / "version").write_text("6.4.0-1\n")
    for name, line in programs.items():
        path = rocm / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    jit = folder / "jit"
    jit.mkdir()
    for name in ("module_aiter_enum", "module_aiter_core"):
        (jit / f"{name}.py").write_text(ENUMS)
    os.environ.update(
        PATH=f"{rocm / 'bin'}{os.pathsep}{os.environ['PATH']}",
        ROCM_HOME=str(rocm),
        ROCM_PATH=str(rocm),
        AITER_JIT_DIR=str(jit),
        GPU_ARCHS=arch,
        CU_NUM=str(cu),
        HOME=str(folder),
        AITER_LOG_LEVEL="ERROR",
    )
    sys.path.insert(0, str(jit))


def fake_torch(arch: str, cu: int) -> None:
    """A torch that has one HIP device whose memory is the host's."""
    import torch

    empty = torch.empty

    def host_empty(*args: Any, **kwargs: Any) -> Any:
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        return empty(*args, **kwargs)

    torch.empty = host_empty  # type: ignore[assignment]
    properties = types.SimpleNamespace(gcnArchName=arch, multi_processor_count=cu, name=arch, total_memory=1 << 37)
    torch.cuda.current_device = lambda: 0  # type: ignore[assignment]
    torch.cuda.device_count = lambda: 1  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    torch.cuda.current_stream = lambda *_: types.SimpleNamespace(cuda_stream=0)  # type: ignore[assignment]
    torch.version.hip = "6.4.0"
    try:
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        target = GPUTarget("hip", arch, 64)
        driver.set_active(types.SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0))
    except ImportError:
        pass  # versions that need triton say so when they are imported


def fake_kernels(arch: str, cu: int, made: Callable[[Any], Answers] | None = None) -> list[str]:
    """Import the checkout and answer its compiled modules with the double's kernels, or with those of ``made(double)``;
    return the names asked.
    """
    from tests.doubles.aiter import catalog
    from tests.doubles.aiter.state import Double, Faults

    answers = (made or Answers)(Double(catalog.load(catalog.versions()[-1]), arch, cu, "cpu", Faults()))
    os.environ["AITER_AOT_IMPORT"] = "1"  # newer versions then import their loader only, so that it can be prepared
    core = importlib.import_module("aiter.jit.core")
    del os.environ["AITER_AOT_IMPORT"]
    real = core.get_module

    def get_module(name: str) -> Any:
        return real(name) if name in ("module_aiter_enum", "module_aiter_core") else answers.module(name)

    core.get_module = get_module
    if hasattr(core, "_ctypes_call"):  # kernels that are reached through ctypes: a library that is not there

        def through_ctypes(function: Any, name: str, _: str) -> Callable[..., Any]:
            signature = inspect.signature(function)
            return lambda *args, **kwargs: answers.answer(name, signature.bind(*args, **kwargs))

        core._ctypes_call = through_ctypes
    if not hasattr(sys.modules["aiter"], "flash_attn_func"):
        del sys.modules["aiter"]
        sys.modules["aiter.jit"].__dict__.update(core=core)
        importlib.import_module("aiter")
    dtypes = importlib.import_module("aiter.utility.dtypes")
    if hasattr(dtypes, "torch_to_aiter_pybind"):
        dtypes.torch_to_aiter_pybind = lambda tensor: tensor
    return answers.asked


class Answers:
    """What a compiled kernel would do, by the kernels of the double and a few helpers of the real tree."""

    def __init__(self, double: Any) -> None:
        self.double = double
        self.asked: list[str] = []

    def module(self, name: str) -> types.ModuleType:
        """A compiled module: any public name is one of its kernels."""
        made = types.ModuleType(name)

        def find(kernel: str) -> Any:
            if kernel.startswith("__"):
                raise AttributeError(kernel)
            return (lambda *_: None) if kernel == "_set_current_hip_stream" else self.pybind(kernel)

        made.__getattr__ = find  # type: ignore[method-assign]
        return made

    def pybind(self, name: str) -> Callable[..., Any]:
        """A kernel that is called with the arguments of its torch op."""

        def run(*args: Any, **kwargs: Any) -> Any:
            import torch

            from tests.doubles.aiter import catalog

            packet = getattr(torch.ops.aiter, name, None)
            if packet is None:
                return self.answer(name, kwargs or dict(enumerate(args)))
            schema = packet.default._schema
            return self.answer(name, catalog.bind_schema(schema, args, kwargs))

        run.__doc__ = "Members: a stand-in"
        return run

    def answer(self, name: str, arguments: Any) -> Any:
        """Compute, or say that there is nothing here that could."""
        from torch.multiprocessing.reductions import StorageWeakRef

        from tests.doubles.aiter import registry

        if isinstance(arguments, inspect.BoundArguments):
            arguments.apply_defaults()
            arguments = dict(arguments.arguments)
        if name.lower().replace("_", "") == "getpaddedm":
            return next(iter(arguments.values()))
        self.asked.append(name)
        if name == "wv_splitk_small_fp16_bf16":  # the skinny GEMM: weights, input, output
            weights, data, out = list(arguments.values())[:3]
            out.copy_(data.float() @ weights.float().t())
            return None
        if name == "hipb_create_extension":
            return None
        if name == "hipb_mm":  # hipBLASLt: reads a shuffled weight only where bpreshuffle says so
            given = {"A": arguments["mat1"], "B": arguments["mat2"].t(), "otype": arguments["out_dtype"]}
            if arguments["bpreshuffle"]:  # the real shuffle_weight made it, so the double has not seen that
                self.double.shuffled.append(StorageWeakRef(given["B"].untyped_storage()))
                given["B"].is_shuffled = True
            rest = {"bias": arguments["bias"], "scale_a": None, "scale_b": None, "scale_c": None}
            return registry.run_kernel(self.double, "gemm_a16w16", {**given, **rest})
        if name in OPUS:  # these are handed addresses
            return registry.run_kernel(self.double, OPUS[name], _at_addresses(arguments))
        if name not in registry.KERNELS:
            raise NotImplementedError(f"nothing here stands in for the kernel {name}")
        return registry.run_kernel(self.double, name, arguments)


OPUS = {"rms_norm_opus": "rmsnorm", "add_rms_norm_opus": "rmsnorm2d_fwd_with_add"}


def _at_addresses(arguments: dict[str, Any]) -> dict[str, Any]:
    """The tensors behind the addresses that the opus norms are given; 16-bit rows without gaps only."""
    import torch

    rows, width = arguments["rows"], arguments["hidden"]
    if arguments["is_bf16"] != 1 or arguments["in_s"] != width:
        raise NotImplementedError(f"only dense bf16 rows are stood in for: {arguments}")
    found: dict[str, Any] = {"epsilon": arguments["epsilon"]}
    for key in ("out", "input", "weight", "residual_in", "residual_out"):
        if key in arguments:
            shape = (width,) if key == "weight" else (rows, width)
            memory = (ctypes.c_char * (2 * math.prod(shape))).from_address(arguments[key])
            found[key] = torch.frombuffer(memory, dtype=torch.bfloat16).view(shape)
    flags = {"use_model_sensitive_rmsnorm": arguments["model_sensitive"], "gemma_norm": bool(arguments["gemma"])}
    return found | flags


def exercise(calls: list[str], arch: str, cu: int) -> list[dict[str, Any]]:
    """Every op twice through amd_ops; the second call shows the tier and the kernels that were asked."""
    import torch

    import amd_ops
    from amd_ops import device

    device._probe = lambda: device.Device("cpu", arch, cu)  # type: ignore[assignment]
    amd_ops.refresh()
    torch.manual_seed(0)
    bf16 = torch.bfloat16

    def rand(*shape: int) -> Any:
        return torch.randn(shape).to(bf16)

    angles = torch.randn(1, 6, 8).repeat(1, 1, 2)
    cos, sin = angles.cos().to(bf16), angles.sin().to(bf16)
    pad = (torch.arange(6) >= torch.tensor([[0], [2]]))[:, None, None, :].expand(2, 1, 6, 6).tril()
    q, kv = rand(2, 6, 4, 64), rand(2, 6, 2, 64)
    cases: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
        ("attention", "causal", (q, kv, kv), {}),
        ("attention", "decode", (rand(2, 1, 4, 64), kv, kv), {}),
        ("attention", "window", (q, kv, kv), {"sliding_window": 3}),
        ("attention", "soft cap", (q, kv, kv), {"softcap": 5.0}),
        ("attention", "sinks", (q, kv, kv), {"sinks": torch.randn(4).to(bf16)}),
        ("attention", "left padding", (q, kv, kv), {"is_causal": False, "attention_mask": pad}),
        ("attention", "long prefill, 128", (rand(1, 130, 2, 128), *(rand(1, 130, 1, 128),) * 2), {}),
        ("linear", "plain", (rand(2, 3, 64), rand(128, 64), None), {}),
        ("linear", "bias", (rand(2, 3, 64), rand(128, 64), rand(128)), {}),
        *((name, "", (rand(3, 32),), {}) for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")),
        *(("rms_norm", form, (rand(3, 64), rand(64), 1e-6), {"form": form}) for form in ("llama", "gemma", "t5")),
        ("add_rms_norm", "llama", (rand(3, 64), rand(3, 64), rand(64), 1e-6), {}),
        ("apply_rope", "", (rand(2, 4, 6, 16), rand(2, 2, 6, 16), cos, sin), {}),
    ]
    rows = []
    toggles: dict[str, object] = dict.fromkeys(("use_aiter_attention", "use_aiter_gemm", "use_optimized_ops"), 1)
    with amd_ops.override(**toggles), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, what, args, options in cases:
            amd_ops.reset_counters()
            getattr(amd_ops, op)(*args, **options)
            calls.clear()
            got = getattr(amd_ops, op)(*args, **options)
            rows.append({"op": op, "case": what, **_outcome(op, args, options, got), "kernels": list(calls)})
        with amd_ops.override(use_preshuffle=1, preshuffle_m_thresh=0):
            layer, x = torch.nn.Linear(64, 128).to(bf16), rand(6, 64)
            amd_ops.reset_counters()
            amd_ops.apply_linear(layer, x)
            calls.clear()
            got = amd_ops.apply_linear(layer, x)
            found = _outcome("linear", (x, layer.weight, layer.bias), {}, got)
            rows.append({"op": "linear", "case": "shuffled", **found, "kernels": list(calls)})
    return rows


def trained(calls: list[str]) -> list[dict[str, Any]]:
    """Attention with gradients, twice; the second step shows the kernels that were asked, forward and backward."""
    import torch

    import amd_ops

    def leaves(rows: int, columns: int, heads: int, kv_heads: int, size: int) -> list[Any]:
        shapes = (rows, heads), (columns, kv_heads), (columns, kv_heads)
        return [torch.randn(2, length, count, size).to(torch.bfloat16).requires_grad_() for length, count in shapes]

    keep = torch.arange(24) >= torch.tensor([[0], [7]])
    pad = keep[:, None, None, :].expand(2, 1, 24, 24).tril()
    cases: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("causal", leaves(24, 24, 4, 2, 64), {}),
        ("causal, 128", leaves(64, 64, 2, 2, 128), {}),
        ("chunk, 128", leaves(130, 200, 4, 2, 128), {}),
        ("window", leaves(24, 24, 4, 2, 80), {"sliding_window": 5}),
        ("left padding", leaves(24, 24, 4, 2, 64), {"is_causal": False, "attention_mask": pad}),
        ("left padding, 96", leaves(24, 24, 4, 2, 96), {"is_causal": False, "attention_mask": pad}),
        ("16 rows", leaves(16, 16, 4, 2, 128), {}),
        ("deterministic, 128", leaves(64, 64, 4, 2, 128), {}),
    ]
    rows = []
    with amd_ops.override(use_aiter_attention=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, qkv, options in cases:
            torch.use_deterministic_algorithms(what.startswith("deterministic"))

            def step(qkv: list[Any] = qkv, options: dict[str, Any] = options) -> list[Any]:
                out = amd_ops.attention(*qkv, **options)
                if "attention_mask" in options:  # rows that are padding may hold anything
                    out = out * keep[:, :, None, None]
                return [out, *torch.autograd.grad(out.float().pow(2).sum(), qkv)]

            amd_ops.reset_counters()
            step()
            calls.clear()
            got = step()
            (found,) = (row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "attention")
            first, kernels = found["tiers"][0], list(calls)
            with amd_ops.override(tiers="eager"):
                want = step()
            worst = max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(got, want, strict=True))
            row = {"op": "attention", "case": f"training, {what}", "tier": "aiter" if first["calls"] else "lower"}
            row |= {"declined": [entry["reason"] for entry in first["declined"]], "worst_difference": round(worst, 4)}
            rows.append({**row, "kernels": kernels})
    torch.use_deterministic_algorithms(False)
    return rows


def _outcome(op: str, args: tuple[Any, ...], options: dict[str, Any], got: Any) -> dict[str, Any]:
    """The tier of the last call, why aiter declined, and the largest difference from the eager tier."""
    import amd_ops

    rest = [e for r in amd_ops.report().as_dict()["ops"] if r["op"] == "preshuffle" for e in r["tiers"][0]["declined"]]
    (row,) = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == op]
    tier = next(tier["tier"] for tier in reversed(row["tiers"]) if tier["calls"])
    first = row["tiers"][0]
    tier = "aiter" if first["calls"] else tier
    reasons = [entry["reason"] for entry in (*first["declined"], *rest)]
    with amd_ops.override(tiers="eager"):
        want = getattr(amd_ops, op)(*args, **options)
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return {"tier": tier, "declined": reasons, "worst_difference": round(worst, 4)}


if __name__ == "__main__":
    main()
