"""The product's own route, down to AMD's machine code: one JSON line per call, in a process of its own.

    python -m tests.emulator.aiter_route [--fault NAME]

Real: our routing, backend and GEMM-table code, the Python layer of the wheel ``amd-aiter`` unedited, and the kernels'
machine code, executed. Faked: the machine (``tests/aiter/real_layer.py``), and the C++ between Python and kernel, which
``aiter_kernels.py`` transcribes. Kernels without a hand-written code object in that wheel are answered by the double.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.aiter import real_layer
from tests.doubles import formulas

from . import aiter_kernels, aiter_wheel

ARCH, CU = "gfx942", 304
COLUMNS = "cu_num,M,N,K,bias,dtype,outdtype,scaleAB,libtype,solidx,splitK,us,kernelName,err_ratio,tflops,bw"
SHAPES = ((40, 192, 512, 1), (33, 64, 256, 2))
TRAINED = ("causal, 2 heads on 1", "left padding")
"""The cases that are trained, too, one for each of aiter's two backward kernels."""
Change = Callable[[str, dict[str, Any]], dict[str, Any]]


class Executed(real_layer.Answers):
    """Answers with machine code where the wheel has it; ``change`` plants a fault between Python and kernel."""

    def __init__(self, double: Any, change: Change | None = None) -> None:
        super().__init__(double)
        self.change = change
        self.ran: list[tuple[str, int]] = []

    def answer(self, name: str, arguments: Any) -> Any:
        """Execute, or let the double answer."""
        run = {
            "fmha_v3_fwd": self._dense,
            "fmha_v3_varlen_fwd": self._packed,
            "fmha_v3_bwd": self._backward,
            "fmha_v3_varlen_bwd": self._packed_backward,
            "gemm_a16w16_asm": self._gemm,
        }.get(name)
        if run is None:
            return super().answer(name, arguments)
        self.asked.append(name)
        arguments = dict(arguments)
        return run(arguments if self.change is None else {**arguments, **self.change(name, arguments)})

    def _dense(self, a: dict[str, Any]) -> Any:
        out, lse, result = aiter_kernels.fmha_v3_fwd(
            a["q"], a["k"], a["v"], a["softmax_scale"], a["is_causal"], return_lse=a["return_softmax_lse"],
            cvt=a["how_v3_bf16_cvt"],
        )  # fmt: skip
        self.ran.append(("fmha_v3_fwd", result.executed))
        return out, torch.empty(0) if lse is None else lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    def _packed(self, a: dict[str, Any]) -> Any:
        out, lse, result = aiter_kernels.fmha_v3_varlen_fwd(
            a["q"], a["k"], a["v"], a["cu_seqlens_q"], a["cu_seqlens_k"], a["max_seqlen_q"], a["softmax_scale"],
            a["is_causal"], cvt=a["how_v3_bf16_cvt"],
        )  # fmt: skip
        self.ran.append(("fmha_v3_varlen_fwd", result.executed))
        return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    def _backward(self, a: dict[str, Any]) -> Any:
        return self._gradients(a, "fmha_v3_bwd", *aiter_kernels.fmha_v3_bwd(
            a["dout"], a["q"], a["k"], a["v"], a["out"], a["softmax_lse"], a["softmax_scale"], a["is_causal"],
            cvt=a["how_v3_bf16_cvt"],
        ))  # fmt: skip

    def _packed_backward(self, a: dict[str, Any]) -> Any:
        return self._gradients(a, "fmha_v3_varlen_bwd", *aiter_kernels.fmha_v3_varlen_bwd(
            a["dout"], a["q"], a["k"], a["v"], a["out"], a["softmax_lse"], a["cu_seqlens_q"], a["cu_seqlens_k"],
            a["max_seqlen_k"], a["softmax_scale"], a["is_causal"], cvt=a["how_v3_bf16_cvt"],
        ))  # fmt: skip

    def _gradients(
        self, a: dict[str, Any], kernel: str, dq: Tensor, dk: Tensor, dv: Tensor, delta: Tensor, result: Any
    ) -> Any:
        self.ran.append((kernel, result.executed))
        for name, grad in (("dq", dq), ("dk", dk), ("dv", dv)):
            a[name].copy_(grad)
        return a["dq"], a["dk"], a["dv"], delta

    def _gemm(self, a: dict[str, Any]) -> Any:
        tile = int(a["kernelName"].rpartition("_tn_")[2].partition("x")[0])
        out, result = aiter_kernels.gemm_a16w16_asm(a["A"], a["B"], tile=tile, split=a["splitK"] or 1)
        self.ran.append(("gemm_a16w16_asm", result.executed))
        a["out"].copy_(out)
        return a["out"]


def started(folder: Path, change: Change | None = None) -> Executed:
    """Fake the machine, import the wheel's aiter, attach amd_ops; who answers its kernels."""
    aiter_wheel.unpack_python(folder / "wheel")
    sys.path[:0] = [str(folder / "wheel")]
    real_layer.fake_machine(folder, ARCH, CU)
    table = folder / "tuned.csv"
    rows = [
        f"{CU},{m},{n},{k},False,torch.bfloat16,torch.float32,False,asm,0,{split},5.0,"
        f"_ZN5aiter28bf16gemm_outf32_tn_{tile}x64_pf3E,0.0,1.0,1.0"
        for (m, n, k, split), tile in zip(SHAPES, (32, 48), strict=True)
    ]
    table.write_text("\n".join([COLUMNS, *rows, ""]))
    os.environ["AITER_CONFIG_GEMM_BF16"] = str(table)
    real_layer.fake_torch(ARCH, CU)
    made: list[Executed] = []

    def make(double: Any) -> Executed:
        made.append(Executed(double, change))
        return made[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real_layer.fake_kernels(ARCH, CU, make)
    import amd_ops
    from amd_ops import device

    device._probe = lambda: device.Device("cpu", ARCH, CU)
    amd_ops.refresh()
    return made[0]


def attention_cases() -> Iterator[tuple[str, tuple[Tensor, ...], Tensor | None, bool]]:
    """(name, q [B,H,S,D] k v, mask, causal): the shapes in which transformers hands attention over."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    q, kv = rand(1, 2, 150, 128), [rand(1, 1, 150, 128) for _ in "kv"]
    yield "causal, 2 heads on 1", (q, *kv), None, True
    yield "not causal", (q, *kv), None, False
    views = [rand(2, 131, heads, 128).transpose(1, 2) for heads in (2, 2, 2)]
    yield "causal, views of [B, S, H, D]", tuple(views), None, True
    chunk = rand(1, 1, 130, 128), rand(1, 1, 170, 128), rand(1, 1, 170, 128)
    seen = torch.arange(170) <= torch.arange(130)[:, None] + 40
    yield "chunk of 130 on 170 keys", chunk, seen[None, None], False
    padded = [rand(2, 1, 140, 128) for _ in "qkv"]
    kept = torch.arange(140) >= torch.tensor([[0], [9]])
    yield "left padding", tuple(padded), kept[:, None, None, :] & torch.ones(140, 140, dtype=torch.bool).tril(), False


def exercise(executed: Executed) -> Iterator[dict[str, Any]]:
    """Every case through ``route_attention``, and the GEMM with a tuned row for the hand-written kernel."""
    import amd_ops

    for name, (q, k, v), mask, causal in attention_cases():
        got = _routed(q, k, v, mask, causal)
        want = _exact(q, k, v, mask, causal)
        yield _row("attention", name, executed, float((got.double() - want).abs().max()))
    for name, (q, k, v), mask, causal in attention_cases():
        if name in TRAINED:
            yield _trained(name, (q, k, v), mask, causal, executed)
    for m, n, k, split in SHAPES:
        amd_ops.reset_counters()
        x, weight = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
        import aiter.tuned_gemm

        got = aiter.tuned_gemm.gemm_a16w16(x, weight, otype=torch.float32)
        yield _row(
            "linear",
            f"{m}x{n}x{k}, split {split}",
            executed,
            float((got.double() - formulas.linear(x, weight)).abs().max()),
        )


def _routed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, training: bool = False) -> Tensor:
    """What an overlaid attention module gets from ``route_attention``: [B, S, H, D]."""
    import amd_ops

    sdpa = importlib.import_module("transformers.integrations.sdpa_attention").sdpa_attention_forward
    groups = q.shape[1] // k.shape[1]
    module = types.SimpleNamespace(is_causal=True, training=training, config=None, num_key_value_groups=groups)
    amd_ops.reset_counters()
    route = amd_ops.route_attention(module, sdpa)  # type: ignore[arg-type]
    more = {} if mask is not None else {"is_causal": causal}
    out: Tensor = route(module, q, k, v, mask, scaling=0.11, dropout=0.0, **more)[0]
    return out


@torch.enable_grad()  # type: ignore[untyped-decorator]
def _trained(
    name: str, tensors: tuple[Tensor, ...], mask: Tensor | None, causal: bool, executed: Executed
) -> dict[str, Any]:
    """Forward and backward: the largest error of a gradient, in units of the largest gradient of its kind."""
    ours, exact = (
        [t.detach().to(dtype).requires_grad_() for t in tensors] for dtype in (torch.bfloat16, torch.float64)
    )
    out = _routed(ours[0], ours[1], ours[2], mask, causal, training=True)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    if mask is not None:  # nothing is asked of rows that see no key
        upstream = upstream * mask.any(-1).transpose(1, 2)[..., None]
    found = torch.autograd.grad(out, ours, upstream)
    wanted = torch.autograd.grad(_exact(exact[0], exact[1], exact[2], mask, causal), exact, upstream.double())
    apart = [
        float((one.double() - other).abs().max() / other.abs().max()) for one, other in zip(found, wanted, strict=True)
    ]
    return _row("attention with gradients", name, executed, max(apart))


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """fp64 [B, S, H, D]; rows that see no key are 0."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(groups, 1) for t in (k, v))
    scores = q.double() @ k.transpose(2, 3) * 0.11
    if causal and mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2)


def _row(op: str, case: str, executed: Executed, error: float) -> dict[str, Any]:
    import amd_ops

    tiers = [tier for row in amd_ops.report().as_dict()["ops"] for tier in row["tiers"]]
    ours = [tier for tier in tiers if tier["tier"] in ("aiter", "routed")]
    reasons = [entry["reason"] for tier in ours for entry in tier["declined"]]
    ran, executed.ran = executed.ran, []
    return {"op": op, "case": case, "ran": ran, "declined": reasons, "error": error}


def main() -> None:
    """Print one line per call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fault", choices=sorted(FAULTS))
    given = parser.parse_args()
    if reason := aiter_wheel.missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="aiter-route-") as folder:
        executed = started(Path(folder), FAULTS.get(given.fault))
        toggles: dict[str, object] = {"use_aiter_attention": 1, "use_aiter_gemm": 1}
        import amd_ops

        with amd_ops.override(**toggles), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in exercise(executed):
                print(json.dumps(row), flush=True)
        sys.stdout.flush()
        os._exit(0)  # this aiter prints tracebacks while torch takes its library down


def _only(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    return lambda kernel, arguments: change(arguments) if kernel == name else {}


FAULTS: dict[str, Change] = {
    "wrong scale": _only("fmha_v3_fwd", lambda a: {"softmax_scale": a["softmax_scale"] * 1.1}),
    "top-left mask": _only("fmha_v3_fwd", lambda a: {key: a[key][:, : a["q"].shape[1]] for key in ("k", "v")}),
    "keys and values swapped": _only("fmha_v3_fwd", lambda a: {"k": a["v"], "v": a["k"]}),
}


if __name__ == "__main__":
    main()
