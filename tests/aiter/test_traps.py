"""The bugs of the request's sample code, one test each: the sample's way fails against the contract, ours does not.

``Sample*``/``sample_*`` below restate what such a sample does, as short as it can be said; they are not product code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rocm_overlay.install import catalog
from torch import Tensor, nn

import amd_ops
from amd_ops import gemm_tables
from amd_ops.backends import shuffled
from amd_ops.weights import preshuffle
from tests.aiter.support import BF16, ON, Gpu, declined, rand
from tests.aiter.test_attention import PADDINGS, compare_kept_rows, full_mask, qkv
from tests.doubles import formulas
from tests.doubles.aiter import Faults, Violation, fake_aiter
from tests.doubles.aiter.wrong import badly

PRIMARY = ["v0.1.9.post1", "v0.1.20.post1"]


@contextlib.contextmanager
def tolerant(version: str = "v0.1.9.post1", **options: Any) -> Iterator[Gpu]:
    """A GPU on which the sample may violate the contract; ours is checked by ``quiet`` below."""
    torch.manual_seed(0)
    with fake_aiter(version, tolerate_violations=True, **options) as double, amd_ops.override(**ON), torch.no_grad():
        amd_ops.reset_counters()
        yield Gpu(double)


def quiet(gpu: Gpu, call: Callable[[], Any]) -> Any:
    """Run our side: no violation, warnings allowed."""
    gpu.double.violations.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        result = call()
    assert gpu.double.violations == []
    return result


# --- 1 and 2: the import ---------------------------------------------------------------------------------------------


def sample_import() -> bool:
    try:
        import aiter  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, FileNotFoundError, KeyError])
def test_trap_01_import_raises_more_than_import_error(error: type[Exception]) -> None:
    with tolerant(faults=Faults(import_error=error("ROCm version file not found"))) as gpu:
        with pytest.raises(error):
            sample_import()
        x, weight = rand(3, 32), rand(32)
        formulas.close(quiet(gpu, lambda: amd_ops.rms_norm(x, weight, 1e-6)), formulas.rms_norm(x, weight, 1e-6), 3.0)
        assert "ROCm version file not found" in declined("rms_norm")[0]


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_trap_02_presence_after_import_proves_nothing(fault: str) -> None:
    raising = Faults(raises={"silu_and_mul": RuntimeError("hipcc failed")})
    with tolerant(faults=raising if fault == "raises" else Faults(wrong={"silu_and_mul": badly})) as gpu:
        assert sample_import()
        assert hasattr(torch.ops.aiter, "silu_and_mul")
        x = rand(3, 16)
        expected = formulas.gated(x, "silu")
        if fault == "raises":
            with pytest.raises(RuntimeError, match="hipcc failed"):
                sample_gated("silu_and_mul", x)
        else:
            with pytest.raises(AssertionError, match="off by"):
                formulas.close(sample_gated("silu_and_mul", x), expected, 3.0)
        formulas.close(quiet(gpu, lambda: amd_ops.silu_and_mul(x)), expected, 3.0)
        assert declined("silu_and_mul")


# --- 3: the direct op ------------------------------------------------------------------------------------------------


def sample_direct(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: float = 0.0) -> Tensor:
    op = torch.ops.aiter.mha_fwd.default
    middle = (0,) if "sink_size" in str(op._schema) else ()
    out: Tensor = op(q, k, v, dropout, q.shape[-1] ** -0.5, causal, -1, -1, *middle, False, False)[0]
    return out


@pytest.mark.parametrize("version", PRIMARY)
@pytest.mark.parametrize("case", ["head_dim", "stride", "float32", "dropout"])
def test_trap_03_the_direct_op_refuses_what_the_function_takes(version: str, case: str) -> None:
    with tolerant(version) as gpu:
        gpu.double.load()
        q, k, v = qkv(3, 6, 20 if case == "head_dim" else 16)
        if case == "stride":
            q, k, v = (t.transpose(1, 3).contiguous().transpose(1, 3) for t in (q, k, v))
        if case == "float32":
            q, k, v = (t.float() for t in (q, k, v))
        with pytest.raises(Violation):
            sample_direct(q, k, v, dropout=0.1 if case == "dropout" else 0.0)
        out = quiet(gpu, lambda: amd_ops.attention(q, k, v))
        formulas.close(out, formulas.attention(q, k, v), 64.0 if case == "float32" else 2.0)


def test_trap_03_the_direct_op_loses_the_fast_kernel_of_prefill() -> None:
    with tolerant() as gpu:
        gpu.double.load()
        q, k, v = qkv(130, 130, 128, heads=2, kv_heads=1, batch=1)
        sample_direct(q, k, v)
        assert gpu.double.kernels() == ["mha_fwd"]
        amd_ops.attention(q, k, v)
        gpu.double.clear()
        quiet(gpu, lambda: amd_ops.attention(q, k, v))
        assert gpu.double.kernels() == ["fmha_v3_fwd"]


# --- 4, 5, 6: the torch tier -----------------------------------------------------------------------------------------


def sample_sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (3, 9)])
@pytest.mark.parametrize("tiers", ["aiter,torch,eager", "torch,eager", "eager"])
def test_trap_04_sdpa_is_causal_from_the_other_corner(rows: int, columns: int, tiers: str) -> None:
    with tolerant() as gpu, amd_ops.override(tiers=tiers):
        q, k, v = qkv(rows, columns, heads=2, kv_heads=2)
        expected = formulas.attention(q, k, v)
        with pytest.raises(AssertionError, match="off by"):
            formulas.close(sample_sdpa(q, k, v), expected, 4.0)
        formulas.close(quiet(gpu, lambda: amd_ops.attention(q, k, v)), expected, 4.0)


@pytest.mark.parametrize("tiers", ["aiter,torch,eager", "torch,eager", "eager"])
def test_trap_04_sdpa_does_not_group_heads_by_itself_and_ignores_the_scale(tiers: str) -> None:
    with tolerant() as gpu, amd_ops.override(tiers=tiers):
        q, k, v = qkv(5, 5, heads=4, kv_heads=2)
        with pytest.raises(RuntimeError):
            sample_sdpa(q, k, v)
        out = quiet(gpu, lambda: amd_ops.attention(q, k, v, scaling=0.7))
        formulas.close(out, formulas.attention(q, k, v, 0.7), 4.0)


def sample_is_decode(query: Tensor, key: Tensor) -> bool:
    """The sample's test for "cached decode" on [B,S,H,D] tensors: it compares dimension 2."""
    return query.shape[2] != key.shape[2]


def test_trap_05_the_sequence_is_dimension_one_here() -> None:
    with tolerant() as gpu:
        for rows, kv_heads, decode in [(5, 2, False), (1, 4, True)]:
            q, k, v = qkv(rows, 5, heads=4, kv_heads=kv_heads)
            assert sample_is_decode(q, k) is not decode
            formulas.close(
                quiet(gpu, lambda q=q, k=k, v=v: amd_ops.attention(q, k, v)), formulas.attention(q, k, v), 2.0
            )


@pytest.mark.parametrize("tiers", ["aiter,torch,eager", "torch,eager", "eager"])
@pytest.mark.parametrize("side", PADDINGS)
def test_trap_06_padding_masks_are_not_optional(side: str, tiers: str) -> None:
    keep = PADDINGS[side]
    with tolerant() as gpu, amd_ops.override(tiers=tiers):
        gpu.double.load()
        q, k, v = qkv(7, 7)
        if side == "left":  # on the right, causality alone hides the padding from real rows
            with pytest.raises(AssertionError, match="off by"):
                compare_kept_rows(sample_direct(q, k, v), q, k, v, keep)
        out = quiet(gpu, lambda: amd_ops.attention(q, k, v, attention_mask=full_mask(keep, 7)))
        compare_kept_rows(out, q, k, v, keep)


# --- 7: swallowed errors ---------------------------------------------------------------------------------------------


def sample_fallback(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    try:
        return sample_direct(q, k, v)
    except Exception:  # noqa: BLE001 - this is the bug
        return sample_sdpa(q, k, v)


def test_trap_07_a_broken_kernel_is_never_silent() -> None:
    error = RuntimeError("module_fmha failed to build")
    names = ["mha_fwd", "flash_attn_func", "mha_varlen_fwd", "flash_attn_varlen_func"]
    with tolerant(faults=Faults(raises=dict.fromkeys(names, error))) as gpu:
        gpu.double.load()
        q, k, v = qkv(5, 5, heads=2, kv_heads=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample_fallback(q, k, v)  # says nothing
        with pytest.warns(amd_ops.DeclinedWarning, match="failed to build"):
            amd_ops.attention(q, k, v)
        assert "failed to build" in declined("attention")[0]
        with amd_ops.override(strict=1), pytest.raises(amd_ops.DeclinedError, match="failed to build"):
            amd_ops.attention(q, k, v)


# --- 8, 12, 13: linears and activations ------------------------------------------------------------------------------


def sample_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from aiter.tuned_gemm import gemm_a16w16

    if x.dtype not in (torch.bfloat16, torch.float16) or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    result: Tensor = gemm_a16w16(x, weight, bias=bias, otype=x.dtype)
    return result


@pytest.mark.parametrize("version", PRIMARY)
def test_trap_08_gemm_of_strided_activations(version: str) -> None:
    with tolerant(version) as gpu:
        x, weight = rand(3, 2, 64).transpose(0, 1), rand(48, 64)
        with pytest.raises(Violation, match="silently becomes"):
            sample_linear(x, weight)
        out = quiet(gpu, lambda: amd_ops.linear(x, weight))
        formulas.close(out, formulas.linear(x, weight), 1.0)
        assert amd_ops.report().calls("linear", "aiter") == 1


class Adapter(nn.Linear):
    """A Linear with an addition, as LoRA and quantised layers have."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


def test_trap_12_a_patched_linear_breaks_training() -> None:
    with tolerant() as gpu:
        module, x = nn.Linear(64, 48).to(BF16), rand(3, 64)
        with torch.enable_grad(), pytest.raises(Violation, match="no autograd kernel"):
            sample_linear(x, module.weight, module.bias)
        with torch.enable_grad():
            quiet(gpu, lambda: amd_ops.apply_linear(module, x).sum().backward())
        assert module.weight.grad is not None
        original = nn.Linear.forward
        quiet(gpu, lambda: amd_ops.apply_linear(module, x))
        assert nn.Linear.forward is original


def test_trap_12_subclasses_of_linear_are_called_not_replaced() -> None:
    with tolerant() as gpu:
        module, x = Adapter(64, 48).to(BF16), rand(3, 64)
        formulas.close(
            quiet(gpu, lambda: amd_ops.apply_linear(module, x)),
            formulas.linear(x, module.weight, module.bias) + 1.0,
            2.0,
        )
        assert gpu.double.kernels() == []


def sample_gated(op: str, x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    out = torch.empty(flat.shape[0], x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    getattr(torch.ops.aiter, op)(out, flat)
    return out.reshape(*x.shape[:-1], x.shape[-1] // 2)


@pytest.mark.parametrize("op", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
@pytest.mark.parametrize("case", ["float32", "grad", "empty"])
def test_trap_13_activations_need_guards(op: str, case: str) -> None:
    with tolerant() as gpu:
        gpu.double.load()
        x = rand(0, 16) if case == "empty" else rand(3, 16)
        x = x.float() if case == "float32" else x
        with torch.set_grad_enabled(case == "grad"):
            x.requires_grad_(case == "grad")
            with pytest.raises(Violation):
                sample_gated(op, x)
            out = quiet(gpu, lambda: getattr(amd_ops, op)(x))
        assert out.shape == (x.shape[0], 8)
        assert out.requires_grad is (case == "grad")
        assert gpu.double.kernels().count(op) == 1  # the sample's


# --- 9, 10, 11: shuffled weights and tuning tables --------------------------------------------------------------------


def sample_preshuffle(model: nn.Module, require_multiple: int = 256) -> None:
    from aiter.ops.shuffle import shuffle_weight

    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype == BF16:
            n, k = module.weight.shape
            if n % require_multiple == 0 and k % require_multiple == 0:
                module._preshuffled_weight = shuffle_weight(module.weight, layout=(16, 16))


def sample_shuffled_linear(module: nn.Linear, x: Tensor) -> Tensor:
    return sample_linear(x, getattr(module, "_preshuffled_weight", module.weight), module.bias)


class Tied(nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight


def test_trap_09_a_shuffled_copy_as_an_attribute_goes_stale_and_takes_tied_weights() -> None:
    with tolerant() as gpu, amd_ops.override(use_preshuffle=1, preshuffle_m_thresh=0):
        sample, ours, x = Tied().to(BF16), Tied().to(BF16), rand(5, 64)
        gpu.double.load()
        sample_preshuffle(sample, 64)
        assert hasattr(sample.head, "_preshuffled_weight")  # 64 x 64 once more, for a weight that is shared
        report = quiet(gpu, lambda: preshuffle.preshuffle_weights(ours))
        assert [path for path, _ in report.copies] == ["body"]
        assert "tied" in dict(report.declined)["head"]
        for net in (sample, ours):
            net.body.weight.mul_(-3.0)
        with pytest.raises(AssertionError, match="off by"):
            formulas.close(
                sample_shuffled_linear(sample.body, x), formulas.linear(x, sample.body.weight, sample.body.bias), 2.0
            )
        formulas.close(
            quiet(gpu, lambda: amd_ops.apply_linear(ours.body, x)),
            formulas.linear(x, ours.body.weight, ours.body.bias),
            2.0,
        )


def test_trap_09_the_mark_of_a_shuffled_weight_dies_on_the_way() -> None:
    with tolerant() as gpu, amd_ops.override(use_preshuffle=1, preshuffle_m_thresh=0):
        gpu.double.load()
        sample, x = nn.Linear(64, 64).to(BF16), rand(5, 64)
        sample_preshuffle(sample, 64)
        sample._preshuffled_weight = nn.Parameter(sample._preshuffled_weight)  # a buffer that moves does the same
        with pytest.raises(Violation, match="is shuffled but is_shuffled is False"):
            sample_shuffled_linear(sample, x)
        report = quiet(gpu, lambda: amd_ops.prepare(nn.Sequential(sample)))
        assert [path for path, _ in report.shuffling.copies] == ["0"]
        quiet(gpu, lambda: amd_ops.apply_linear(sample, x))
        held = shuffled.find(shuffled.plain_of(sample.weight))
        assert held is not None
        del held.tagged().is_shuffled  # somebody strips the mark: the next call sets it again
        formulas.close(
            quiet(gpu, lambda: amd_ops.apply_linear(sample, x)), formulas.linear(x, sample.weight, sample.bias), 2.0
        )


def test_trap_10_a_multiple_of_256_is_neither_needed_nor_enough() -> None:
    fits, half = nn.Linear(64, 64).to(BF16), nn.Linear(256, 256).half()
    sample_preshuffle_half = rand(5, 256, dtype=torch.float16)
    with tolerant(arch="gfx950", cu_count=256) as gpu, amd_ops.override(use_preshuffle=1, preshuffle_m_thresh=0):
        gpu.double.load()
        sample_preshuffle(fits)
        assert not hasattr(fits, "_preshuffled_weight")
        assert [size for _, size in preshuffle.preshuffle_weights(nn.Sequential(fits)).copies] == [64 * 64 * 2]
        from aiter.ops.shuffle import shuffle_weight

        with pytest.raises(Violation, match="no kernel for a shuffled"):
            sample_linear(sample_preshuffle_half, shuffle_weight(half.weight, layout=(16, 16)), half.bias)
        out = quiet(gpu, lambda: amd_ops.apply_linear(half, sample_preshuffle_half))
        formulas.close(out, formulas.linear(sample_preshuffle_half, half.weight, half.bias), 2.0)
        assert preshuffle.preshuffle_weights(nn.Sequential(half)).copies == []


HEADER = "M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle,libtype,solidx,splitK,us,kernelName,err_ratio,tflops,bw"
ROW = "64,64,False,torch.bfloat16,torch.bfloat16,False,False,asm,9,1,{us},kernel,0.0,1.0,1.0"


def sample_extend(package: Path, custom: Path) -> dict[str, str]:
    """The sample's table helper: the default file and the custom one, named in the variable."""
    return {gemm_tables.VARIABLE: os.pathsep.join([str(package / "configs/bf16_tuned_gemm.csv"), str(custom)])}


def test_trap_11_more_tables_lose_the_shipped_ones_and_are_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, home = tmp_path / "site" / "aiter", tmp_path / "home"
    models = package / "configs" / "model_configs"
    models.mkdir(parents=True)
    (package / "__init__.py").touch()
    shipped = {package / "configs" / "bf16_tuned_gemm.csv": 1, models / "llama_bf16_tuned_gemm.csv": 2}
    for path, rows in shipped.items():
        path.write_text(f"gfx,cu_num,{HEADER}\ngfx942,304,{rows},{ROW.format(us=5.0)}\n")
    custom = tmp_path / "mine.csv"  # no gfx column, and the shape of the default table, slower
    custom.write_text(f"cu_num,{HEADER}\n304,1,{ROW.format(us=9.0)}\n")
    before = {path: path.read_bytes() for path in (*shipped, custom)}
    monkeypatch.syspath_prepend(str(package.parent))

    sample = sample_extend(package, custom)[gemm_tables.VARIABLE]
    assert "model_configs" not in sample  # the llama table is out
    assert len(sample.split(os.pathsep)) == 2  # aiter merges, and since v0.1.12 rewrites, these files

    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    table = amd_ops.extend_aiter_gemm_configs(custom, gpu=("gfx942", 304), environ=environ)
    assert table.path == environ[gemm_tables.VARIABLE]
    assert table.path is not None
    lines = Path(table.path).read_text().splitlines()
    assert lines[0].startswith("gfx,")
    assert table.rows == len(lines) - 1 == 2  # one shape from each, and the custom row won although it is slower
    assert any(",9.0," in line for line in lines)
    assert {path: path.read_bytes() for path in before} == before


# --- 14: fusion ------------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """A gated MLP with biases and an activation of its choice."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 64)
        self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return result


def sample_fuse(mlp: Mlp) -> None:
    mlp.register_buffer("_fused_gate_up_weight", torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))


def sample_fused_forward(mlp: Mlp, x: Tensor) -> Tensor:
    gate, up = F.linear(x, mlp.get_buffer("_fused_gate_up_weight")).chunk(2, -1)
    return F.linear(F.gelu(gate, approximate="tanh") * up, mlp.down_proj.weight, mlp.down_proj.bias)


def storages(module: nn.Module) -> int:
    """Bytes of all distinct storages that the module's tensors live in."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_trap_14_fusion_keeps_keys_memory_and_meaning() -> None:
    with tolerant() as gpu, amd_ops.override(use_fused_projections=1):
        plain, sample, ours = (Mlp(nn.SiLU()).to(BF16).eval() for _ in range(3))
        for other in (sample, ours):
            other.load_state_dict(plain.state_dict())
        x, before = rand(3, 64), storages(plain)
        expected = plain.double()(x.double())
        plain.to(BF16)

        sample_fuse(sample)
        assert set(sample.state_dict()) != set(plain.state_dict())
        assert storages(sample) > before
        with pytest.raises(AssertionError, match="off by"):
            formulas.close(sample_fused_forward(sample, x), expected, 8.0)

        formulas.close(quiet(gpu, lambda: amd_ops.gated_mlp(ours, x)), expected, 8.0)
        assert set(ours.state_dict()) == set(plain.state_dict())
        assert storages(ours) == before


def test_trap_14_fusion_follows_loaded_weights() -> None:
    with tolerant() as gpu, amd_ops.override(use_fused_projections=1):
        sample, ours, other = (Mlp(nn.GELU(approximate="tanh")).to(BF16).eval() for _ in range(3))
        nn.init.zeros_(sample.gate_proj.bias)
        nn.init.zeros_(sample.up_proj.bias)
        sample_fuse(sample)
        x = rand(3, 64)
        quiet(gpu, lambda: amd_ops.gated_mlp(ours, x))
        sample.load_state_dict(other.state_dict(), strict=False)
        ours.load_state_dict(other.state_dict())
        expected = other.double()(x.double())
        with pytest.raises(AssertionError, match="off by"):
            formulas.close(sample_fused_forward(sample, x), expected, 8.0)
        formulas.close(quiet(gpu, lambda: amd_ops.gated_mlp(ours, x)), expected, 8.0)


# --- 15: the version -------------------------------------------------------------------------------------------------


def sample_version_is_supported(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return major > 4 or (major == 4 and minor >= 53)


@pytest.mark.parametrize(
    ("version", "model", "offered"),
    [("4.57.6", "llama", True), ("4.57.3", "llama", True), ("5.23.0", "llama", True), ("4.56.2", "gemma3", False)],
)
def test_trap_15_the_text_decides_not_the_version(
    version: str, model: str, offered: bool, stock_tree: Callable[[str], Path]
) -> None:
    path = f"models/{model}/modeling_{model}.py"
    stock = (stock_tree(version) / "transformers" / path).read_bytes()
    assert sample_version_is_supported(version)
    assert (catalog.find(path, hashlib.sha256(stock).hexdigest()) is not None) is offered
    if offered:  # a byte of somebody's own is enough
        assert catalog.find(path, hashlib.sha256(stock + b"#").hexdigest()) is None


# --- 16 and the later list -------------------------------------------------------------------------------------------


def test_trap_16_the_dispatcher_does_not_stop_host_tensors() -> None:
    with tolerant(device_type="cuda") as gpu:
        gpu.double.load()
        x = rand(3, 16)
        keys = [
            key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key("aiter::silu_and_mul", key)
        ]
        assert keys == ["CPU", "CUDA"]
        with pytest.raises(Violation, match="host pointer"):
            sample_gated("silu_and_mul", x)
        formulas.close(quiet(gpu, lambda: amd_ops.silu_and_mul(x)), formulas.gated(x, "silu"), 3.0)
        assert "cpu" in declined("silu_and_mul")[0]


def test_later_trap_sinks_of_long_prefills() -> None:
    with tolerant("v0.1.20.post1") as gpu:
        q, k, v = qkv(130, 130, 128, heads=2, kv_heads=1, batch=1)
        sinks = torch.randn(2)
        with pytest.raises(Violation, match="they would be dropped"):
            gpu.double.load().flash_attn_func(q, k, v, causal=True, sink_ptr=sinks)
        out = quiet(gpu, lambda: amd_ops.attention(q, k, v, sinks=sinks))
        formulas.close(out, formulas.attention(q, k, v, sinks=sinks), 2.0)


def test_later_trap_positional_flags_of_the_add_norm() -> None:
    """Position 7 meant rounding and means gemma since v0.1.17; ours gives the same norm in both."""
    results = {}
    for version in PRIMARY:
        with tolerant(version) as gpu:
            x, residual, weight = rand(3, 32), rand(3, 32), rand(32)
            out, total = torch.empty_like(x), torch.empty_like(x)
            gpu.double.load().rmsnorm2d_fwd_with_add(out, x, residual, total, weight, 1e-6, 1)
            ours, _ = quiet(gpu, lambda x=x, r=residual, w=weight: amd_ops.add_rms_norm(x, r, w, 1e-6))
            expected = formulas.rms_norm(x.double() + residual.double(), weight, 1e-6)
            formulas.close(ours, expected, 3.0)
            results[version] = float((out.double() - expected).abs().max())
    assert results["v0.1.9.post1"] < 0.1 < results["v0.1.20.post1"]
