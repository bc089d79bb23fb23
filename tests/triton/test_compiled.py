"""Compile what the host launches for AMD chips, without a GPU, and read the assembly: no spills, 16 bytes per load and
store.

The launches are recorded with the cuts that the host would choose for the chip, and specialised by Triton's rules: a
tensor is aligned, an integer is 1, a multiple of 16, or neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_ops.backends.triton import configs
from amd_ops.backends.triton.target import Target, wave_of

triton = pytest.importorskip("triton", reason="triton is not installed: the extra `interpret` brings it")
if "amd" not in pytest.importorskip("triton.backends").backends:
    pytest.skip("this triton has no AMD backend", allow_module_level=True)

if triton.knobs.runtime.interpret:
    pytest.skip("this process interprets kernels", allow_module_level=True)

from amd_ops.backends.triton import delta, experts, gate, gating, latent, norm, rope, router, sink_attention  # noqa: E402

from .compiling import Recorder, compiled, number  # noqa: E402

CHIPS = {"gfx90a": 110, "gfx942": 304, "gfx950": 256, "gfx1100": 96, "gfx1201": 64}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[Recorder]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = []
    for module, name in (
        (norm, "rms_norm"), (norm, "rms_norm_backward"), (gate, "gate"), (gate, "gate_backward"), (rope, "rope"),
        (experts, "softmax_top_k"), (experts, "gate_up"), (experts, "down"),
        (router, "top_k_softmax"), (router, "grouped_top_k"), (router, "router_logits"), (latent, "latent_rope"),
        (sink_attention, "sink_attention"), (delta, "conv_step"), (delta, "delta_step"), (delta, "gated_rms_norm"),
        (gating, "sigmoid_gate"), (gating, "add_shared"),
    ):  # fmt: skip
        recorder = Recorder(getattr(module.kernels, name))
        monkeypatch.setattr(module.kernels, name, recorder)
        made.append(recorder)
    return made


def rand(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def cases(target: Target) -> dict[str, Callable[[], object]]:
    """One launch of each kernel and form at the sizes of real models."""
    wide, hidden = rand(8, 4096), rand(4096)
    rows, columns = configs.for_rows(4096, False, target), configs.for_columns(14336, False, target)
    few_rows, head_rows = configs.for_rows(4096, True, target), configs.for_rows(128, False, target)
    longest, longer = configs.for_rows(16384, False, target), configs.for_rows(32768, False, target)
    heads, few_heads = configs.for_heads(64, False, target), configs.for_heads(64, True, target)
    q, k, v = (rand(2, 5, count, 128).transpose(1, 2) for count in (32, 8, 8))
    table, cache = rand(2, 5, 128), rand(2, 8, 64, 128)
    norms = rope.Norms(rand(128), rand(128), 1e-6, "llama")
    into = rope.Cache(cache, cache, v, torch.zeros(5, dtype=torch.int64))
    return {
        "rms_norm": lambda: norm.launch_norm(wide, None, hidden, 1e-6, "llama", rows),
        "rms_norm few": lambda: norm.launch_norm(wide, None, hidden, 1e-6, "t5", few_rows),
        "rms_norm fp16": lambda: norm.launch_norm(wide.half(), None, hidden.half(), 1e-6, "fp32_weight", rows),
        "rms_norm fp32": lambda: norm.launch_norm(wide.float(), None, hidden.float(), 1e-6, "gemma", rows),
        "rms_norm heads": lambda: norm.launch_norm(q.transpose(1, 2), None, rand(128), 1e-6, "gemma", head_rows),
        "rms_norm 16384": lambda: norm.launch_norm(rand(8, 16384), None, rand(16384), 1e-6, "llama", longest),
        "rms_norm 32768": lambda: norm.launch_norm(rand(8, 32768), None, rand(32768), 1e-6, "llama", longer),
        "add_rms_norm": lambda: norm.launch_norm(wide, wide, hidden, 1e-6, "llama", rows),
        "norm backward": lambda: norm.launch_norm_backward(wide, hidden, wide, wide, 1e-6, "llama", rows, 64),
        "silu": lambda: gate.launch_gate(rand(8, 28672), "silu", columns),
        "gelu": lambda: gate.launch_gate(rand(8, 28672), "gelu", columns),
        "gelu_tanh": lambda: gate.launch_gate(rand(8, 28672), "gelu_tanh", columns),
        "gate backward": lambda: gate.launch_gate_backward(rand(8, 28672), rand(8, 14336), "gelu", columns),
        "rope": lambda: rope.launch_rope(q, k, table, table, 1, heads),
        "rope few": lambda: rope.launch_rope(q, k, table, table, 1, few_heads),
        "rope backward": lambda: rope.launch_rope(q, k, table, table, 1, heads, backward=True),
        "qk_norm_rope": lambda: rope.launch_rope(q, k, table, table, 1, heads, norms=norms),
        "rope into cache": lambda: rope.launch_rope(q, k, table, table, 1, heads, norms=norms, cache=into),
    }


STREAMS = {
    "rms_norm": 2, "add_rms_norm": 3, "norm": 4, "silu": 2, "gelu": 2, "gelu_tanh": 2, "gate": 3, "rope": 4,
    "qk_norm_rope": 4,
}  # fmt: skip
"""What a kernel streams: q and k are two halves each, in two branches."""
WIDE = {"dwordx4", "b128"}
"""16 bytes a thread, in the names of Instinct and of Radeon."""
NAMES = sorted(cases(Target("cuda", "gfx942", 64, 304)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", sorted(CHIPS))
def test_a_launch_compiles_without_spills_and_with_wide_loads(recorded: list[Recorder], name: str, arch: str) -> None:
    target = Target("cuda", arch, wave_of(arch), CHIPS[arch])
    cases(target)[name]()
    (recorder,) = [r for r in recorded if r.launches]
    args, options = recorder.launches[0]
    text = compiled(recorder.kernel, args, options, arch, ("num_warps",)).asm["amdgcn"]
    assert number(text, "vgpr_spill_count") == number(text, "sgpr_spill_count") == 0
    assert number(text, "private_segment_fixed_size") == 0, "the kernel uses scratch memory"
    assert number(text, "wavefront_size") == target.wave
    assert options["num_warps"] * target.wave <= 1024
    loads, stores = (re.findall(rf"\b(?:global|buffer|flat)_{kind}_(\w+)", text) for kind in ("load", "store"))
    wide = [load for load in loads if load in WIDE]
    assert len(wide) >= STREAMS[name.split()[0]], f"{len(wide)} loads of 16 bytes among {sorted(set(loads))}"
    assert stores
    assert set(stores) <= WIDE, f"narrow stores: {sorted(set(stores) - WIDE)}"
    if "rope" not in name:  # a row of a table or of a head's weight is too short for 16 bytes a thread
        assert len(wide) == len(loads), f"narrow loads: {sorted(set(loads) - set(wide))}"


def of_experts(target: Target) -> dict[str, Callable[[], object]]:
    """The launches of one token through 8 experts of 128, and through clamped ones whose columns are dense."""
    x, shares, ids = rand(1, 2048), torch.empty(1, 8), torch.empty(1, 8, dtype=torch.int32)
    plain = (x, rand(128, 1536, 2048), rand(128, 2048, 768), shares, ids, "silu")
    clamped = (x, rand(128, 2048, 1536), rand(128, 1536), rand(128, 768, 2048), rand(128, 2048), shares, ids, 1.7, 7.0)
    found: dict[str, Callable[[], object]] = {
        "top_k": lambda: experts.launch_top_k(rand(1, 128), 8, True, torch.bfloat16, target.wave)
    }
    for op, args in (("moe", plain), ("clamped_moe", clamped)):
        made = experts.Experts(op, lambda *rest: None, target)
        for index, kernel in enumerate(("gate_up", "down")):

            def start(made: Any = made, args: Any = args, index: int = index, kernel: str = kernel) -> object:
                hidden, w1, b1, w2, b2, weights, ids, *_ = made.split(args)
                middle, out = rand(8, 768), rand(1, 2048)
                first = (hidden, w1, w1 if b1 is None else b1, ids, middle)
                second = (middle, w2, w2 if b2 is None else b2, weights, ids, out)
                launch = made.plainly(getattr(experts.kernels, kernel), *made.settings(args)[index])
                return launch(*(second if index else first))

            found[f"{op} {kernel}"] = start
    return found


def without_spills(
    recorded: list[Recorder], launches: Callable[[Target], dict[str, Callable[[], object]]], name: str, arch: str
) -> str:
    """Compile the kernel of one launch for a chip and return its assembly, which must do without scratch memory."""
    launches(Target("cuda", arch, wave_of(arch), CHIPS[arch]))[name]()
    (recorder,) = [r for r in recorded if r.launches]
    args, options = recorder.launches[0]
    text: str = compiled(recorder.kernel, args, options, arch, ("num_warps",)).asm["amdgcn"]
    assert number(text, "vgpr_spill_count") == number(text, "sgpr_spill_count") == 0
    assert number(text, "private_segment_fixed_size") == 0, "the kernel uses scratch memory"
    return text


@pytest.mark.parametrize("name", sorted(of_experts(Target("cuda", "gfx942", 64, 304))))
@pytest.mark.parametrize("arch", sorted(CHIPS))
def test_the_kernels_of_experts_compile_without_spills(recorded: list[Recorder], name: str, arch: str) -> None:
    text = without_spills(recorded, of_experts, name, arch)
    loads = re.findall(r"\b(?:global|buffer|flat)_load_(\w+)", text)
    assert name == "top_k" or WIDE & set(loads), f"no loads of 16 bytes among {sorted(set(loads))}"


def of_one_token(target: Target) -> dict[str, Callable[[], object]]:
    """The other launches that only a decode step has, at the sizes of gpt_oss, deepseek_v3 and qwen3_next."""
    wave, (q, k) = target.wave, (rand(1, 1, count, 64).transpose(1, 2) for count in (64, 8))
    keys = k.new_empty(1, 8, 1024, 64)
    parts = rand(1, 1, 128, 192).transpose(1, 2), rand(1, 1, 128, 256).transpose(1, 2), rand(1, 1, 1, 64)
    table = rand(1, 1, 64)
    joined = parts[0][..., :128], parts[0][..., 128:], parts[1][..., :128], parts[2], table, table
    logits, bias = rand(1, 256, dtype=torch.float32), rand(256, dtype=torch.float32)
    mixed, state = rand(1, 1, 8192).transpose(1, 2), torch.empty(1, 32, 128, 128)
    q_k, v, each = rand(1, 1, 16, 128), rand(1, 1, 32, 128), rand(1, 1, 32)
    ruled = q_k, q_k, v, each, each, rand(32), rand(32), state
    row = rand(1, 2048)
    masks = {"none": None, "bool": torch.empty(1, 1, 1, 1024, dtype=torch.bool), "add": rand(1, 1, 1, 1024)}
    return {
        "top_k_softmax": lambda: router.launch_top_k_softmax(rand(1, 32), 4, False, wave),
        "top_k_softmax spread": lambda: router.launch_top_k_softmax(rand(1, 32), 4, True, wave),
        "grouped_top_k": lambda: router.launch_grouped_top_k(logits, bias, 8, 8, 4, True, 2.5, 0.0, wave=wave),
        "router_logits": lambda: router.launch_router_logits(rand(1, 7168), rand(256, 7168), wave),
        "join_rope": lambda: latent.launch_latent(*joined, False, wave=wave),
        "join_rope pairs": lambda: latent.launch_latent(*joined, True, wave=wave),
        "conv_step": lambda: delta.launch_conv(mixed, rand(1, 8192, 4), rand(8192, 4), None, True, wave=wave),
        "delta_step": lambda: delta.launch_delta(*ruled, False, wave=wave),
        "delta_step early": lambda: delta.launch_delta(*ruled, True, wave=wave),
        "gated_rms_norm": lambda: delta.launch_gated_norm(rand(32, 128), rand(32, 128), rand(128), 1e-6, target),
        "sigmoid_gate": lambda: gating.launch_gate(rand(1, 1, 4096), rand(1, 1, 16, 512)[..., 256:], target),
        "add_shared": lambda: gating.launch_shared(row, row, row, row, wave),
        "join_rope alone": lambda: latent.launch_latent(*joined[:2], None, *joined[3:], False, wave=wave),
        **{
            f"sink_attention {name}": lambda mask=mask: sink_attention.launch_sink_attention(
                q, keys, keys, rand(64), 0.125, mask, wave=wave
            )
            for name, mask in masks.items()
        },
    }


@pytest.mark.parametrize("name", sorted(of_one_token(Target("cuda", "gfx942", 64, 304))))
@pytest.mark.parametrize("arch", sorted(CHIPS))
def test_the_kernels_of_one_token_compile_without_spills(recorded: list[Recorder], name: str, arch: str) -> None:
    text = without_spills(recorded, of_one_token, name, arch)
    assert number(text, "wavefront_size") == wave_of(arch)
