"""Fused projections: the same numbers, the same parameters, no extra byte, and stock calls wherever that is unsure."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops
from amd_ops.forward.projections import activation_kind
from amd_ops.preparation import unique_bytes
from amd_ops.weights import packing

from .test_linear import Quantised, Wrapper


class Attention(nn.Module):
    def __init__(self, bias: bool = False, sizes: tuple[int, int, int] = (32, 16, 16), width: int = 24) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, size, bias=bias) for size in sizes)


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
        self.down_proj = nn.Linear(40, 24, bias=bias)
        self.act_fn = act if act is not None else nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


NAMES = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(autouse=True)
def fused() -> Any:
    with amd_ops.override(use_fused_projections=1), torch.no_grad():
        yield


def single(attn: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [getattr(attn, name)(x) for name in NAMES]


def counts() -> tuple[int, dict[str, int]]:
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] in ("qkv_proj", "gated_mlp"):
            return row["tiers"][0]["calls"], {d["reason"]: d["calls"] for d in row["tiers"][0]["declined"]}
    return 0, {}


def check(attn: nn.Module, x: torch.Tensor, fused_calls: int, reason: str | None = None) -> None:
    """The call gives what the three Linears give, and takes the expected path."""
    amd_ops.reset_counters()
    want = single(attn, x)
    if reason is None:
        got = amd_ops.qkv_proj(attn, x)
    else:
        with pytest.warns(amd_ops.DeclinedWarning):
            got = amd_ops.qkv_proj(attn, x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    calls, declined = counts()
    assert calls == fused_calls
    assert list(declined) == ([] if reason is None else [reason])


X = torch.randn(2, 3, 24)


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal but for the last bit or two: torch's CPU kernels round differently at other widths and strides."""
    tolerance = 1e-5 if got.dtype is torch.float32 else 1.6e-2
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(32, 16, 16), (8, 8, 8), (64, 8, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3), (1,), (0, 3), ()])
def test_one_gemm_gives_the_same_numbers(
    bias: bool, sizes: tuple[int, int, int], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Grouped kv heads and a q of double width (qwen3-next) are only sizes here."""
    attn = Attention(bias, sizes).to(dtype)
    x = torch.randn(*shape, 24).to(dtype)
    want = single(attn, x)
    got = amd_ops.qkv_proj(attn, x)
    for a, b in zip(got, want, strict=True):
        near(a, b)
    assert counts() == (1, {})


@pytest.mark.parametrize("bias", [False, True])
def test_no_byte_more(bias: bool) -> None:
    attn = Attention(bias)
    before = unique_bytes(attn)
    keys, parameters = list(attn.state_dict()), dict(attn.named_parameters())
    amd_ops.qkv_proj(attn, X)
    assert unique_bytes(attn) == before
    assert list(attn.state_dict()) == keys
    assert all(dict(attn.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert all(type(parameter) is nn.Parameter and parameter.requires_grad for parameter in attn.parameters())
    held = attn.__dict__["_amd_packed"][NAMES]
    assert held.nbytes() == sum(p.numel() * 4 for p in attn.parameters())
    for name, whole in (("weight", held.weight), ("bias", held.bias)):
        if whole is not None:
            starts = [getattr(getattr(attn, linear), name).data_ptr() for linear in NAMES]
            assert starts == [rows.data_ptr() for rows in whole.split_with_sizes(held.sizes)]
    # Storages of their own over the same memory: savers take parameters with one storage for tied ones.
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in attn.parameters()}
    assert len(storages) == len(list(attn.parameters()))
    assert sum(storages.values()) == before


def test_the_peak_is_one_packed_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every allocation while packing: the matrix itself and nothing else; the originals' storages die one by one."""
    attn = Attention()
    old = [weakref.ref(p.untyped_storage()) for p in attn.parameters()]
    made = []
    empty = torch.empty
    monkeypatch.setattr(
        packing.torch, "empty", lambda *args, **kwargs: made.append(out := empty(*args, **kwargs)) or out
    )
    amd_ops.qkv_proj(attn, X)
    assert [tuple(tensor.shape) for tensor in made] == [(64, 24)]
    assert all(ref() is None for ref in old)


def test_packing_under_inference_mode_leaves_normal_tensors() -> None:
    attn = Attention()
    with torch.inference_mode():
        amd_ops.qkv_proj(attn, X)
    with torch.enable_grad():
        assert not attn.q_proj.weight.is_inference()
        sum(out.sum() for out in single(attn, X)).backward()
    assert attn.q_proj.weight.grad is not None


def test_a_forward_hook_still_fires() -> None:
    attn, seen = Attention(), []
    check(attn, X, 1)
    handle = attn.q_proj.register_forward_hook(lambda m, args, out: (seen.append(1), out + 1.0)[1])
    check(attn, X, 0, "a hook is registered on the Linear")
    assert len(seen) == 2
    handle.remove()
    check(attn, X, 1)


@pytest.mark.parametrize(
    "move", [lambda m: m.to(torch.float64), lambda m: m.half().float(), lambda m: m._apply(lambda t: t.clone())]
)
def test_moving_after_a_forward_stays_right(move: Any) -> None:
    attn = Attention(bias=True)
    amd_ops.qkv_proj(attn, X)
    before = unique_bytes(attn)
    attn = move(attn)
    x = X.to(attn.q_proj.weight.dtype)
    check(attn, x, 1)
    assert unique_bytes(attn) == before * x.element_size() // 4


def test_in_place_updates_are_seen() -> None:
    attn = Attention()
    amd_ops.qkv_proj(attn, X)
    attn.k_proj.weight.mul_(2.0)
    attn.v_proj.weight.data.zero_()
    check(attn, X, 1)
    optimiser = torch.optim.SGD(attn.parameters(), lr=0.1)
    attn.q_proj.weight.grad = torch.ones_like(attn.q_proj.weight)
    optimiser.step()
    check(attn, X, 1)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_keeps_right(assign: bool) -> None:
    attn, other = Attention(bias=True), Attention(bias=True)
    amd_ops.qkv_proj(attn, X)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    attn.load_state_dict(state, assign=assign)
    del state
    want = single(other, X)
    check(attn, X, 1)
    for a, b in zip(amd_ops.qkv_proj(attn, X), want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_state_dict_that_is_still_alive_ties_the_storage() -> None:
    attn = Attention()
    held = attn.state_dict()
    check(attn, X, 0, "a parameter's storage is shared with another tensor (tied, sharded or packed by somebody else)")
    held.clear()
    check(attn, X, 1)


def test_a_replaced_parameter_or_linear_is_noticed() -> None:
    attn = Attention()
    amd_ops.qkv_proj(attn, X)
    attn.k_proj.weight = nn.Parameter(torch.randn(16, 24))
    check(attn, X, 1)
    attn.v_proj = nn.Linear(24, 8, bias=False)
    check(attn, X, 1)
    attn.q_proj.weight.data = attn.q_proj.weight.data[:8]
    check(attn, X, 1)
    assert unique_bytes(attn) == (8 + 16 + 8) * 24 * 4
    with amd_ops.override(use_fused_projections=0):
        kept = [out.clone() for out in single(attn, X)]
    attn.k_proj.bias = nn.Parameter(torch.zeros(16))
    check(attn, X, 0, "some of the Linears have a bias and some have none")
    attn.k_proj.bias = None
    check(attn, X, 1)
    for a, b in zip(amd_ops.qkv_proj(attn, X), kept, strict=True):
        near(a, b)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_start_without_packed_weights(copier: Any) -> None:
    attn = Attention()
    amd_ops.qkv_proj(attn, X)
    twin = copier(attn)
    assert not twin.__dict__["_amd_packed"]
    twin.q_proj.weight.zero_()
    check(twin, X, 1)
    check(attn, X, 1)
    assert not amd_ops.qkv_proj(twin, X)[0].any()
    assert amd_ops.qkv_proj(attn, X)[0].any()


def test_a_pickle_needs_nothing_of_ours() -> None:
    attn = Attention()
    amd_ops.qkv_proj(attn, X)
    assert b"amd_ops.weights.packing" not in pickle.dumps(attn)


def test_a_shallow_copy_does_not_disturb_the_original() -> None:
    attn = Attention()
    amd_ops.qkv_proj(attn, X)
    held = attn.__dict__["_amd_packed"][NAMES]
    replica = copy.copy(attn)
    replica.__dict__["_modules"] = {name: copy.deepcopy(child) for name, child in attn._modules.items()}
    check(replica, X, 1)
    assert attn.__dict__["_amd_packed"][NAMES] is held
    assert held.fresh(attn) == ""
    check(attn, X, 1)


def test_torch_save_stores_the_weights_once(tmp_path: Any) -> None:
    attn = Attention()
    plain = io.BytesIO()
    torch.save(attn.state_dict(), plain)
    amd_ops.qkv_proj(attn, X)
    packed = io.BytesIO()
    torch.save(attn.state_dict(), packed)
    assert abs(len(packed.getvalue()) - len(plain.getvalue())) < 2000
    packed.seek(0)
    fresh = Attention()
    fresh.load_state_dict(torch.load(packed))
    for a, b in zip(single(fresh, X), single(attn, X), strict=True):
        assert torch.equal(a, b)


def test_linears_that_share_parameters_do_not_fight() -> None:
    """Two modules over the same Parameters: the second adopts the rows that the first packed."""
    first, second = Attention(), Attention()
    for name in NAMES:
        getattr(second, name).weight = getattr(first, name).weight
    for _ in range(2):
        check(first, X, 1)
        check(second, X, 1)
    weights = [module.__dict__["_amd_packed"][NAMES].weight for module in (first, second)]
    assert weights[0].is_set_to(weights[1])


def test_a_part_of_another_storage_is_left_alone() -> None:
    attn, whole = Attention(), torch.randn(100, 24)
    attn.q_proj.weight = nn.Parameter(whole[10:42])
    check(attn, X, 0, "a parameter's storage is shared with another tensor (tied, sharded or packed by somebody else)")
    whole.zero_()
    assert not amd_ops.qkv_proj(attn, X)[0].any(), "the tie still holds"


def test_tied_projections_are_left_alone() -> None:
    attn = Attention(sizes=(16, 16, 16))
    attn.v_proj.weight = attn.k_proj.weight
    check(attn, X, 0, "two of the Linears share a parameter")


def spoiled(how: str) -> Attention:
    attn = Attention(bias=True)
    if how == "quantised":
        attn.k_proj = Quantised(24, 16)
    if how == "adapter":
        attn.q_proj = Wrapper()
        attn.q_proj.base_layer = nn.Linear(24, 32)
    if how == "mixed bias":
        attn.k_proj.bias = None
    if how == "mixed dtype":
        attn.k_proj.double()
    if how == "patched":
        attn.v_proj.forward = attn.v_proj.forward.__func__.__get__(attn.v_proj)  # type: ignore[method-assign]
    if how == "shared memory":
        attn.share_memory()
    return attn


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("quantised", "Quantised is not exactly nn.Linear"),
        ("adapter", "Wrapper is not exactly nn.Linear"),
        ("mixed bias", "some of the Linears have a bias and some have none"),
        ("patched", "the Linear's forward has been patched"),
        ("shared memory", "a parameter lives in memory shared with another process"),
    ],
)
def test_whatever_is_not_plain_is_called_one_by_one(how: str, reason: str) -> None:
    attn = spoiled(how)
    pointers = [p.data_ptr() for p in attn.parameters()]
    check(attn, X, 0, reason)
    assert [p.data_ptr() for p in attn.parameters()] == pointers, "a refusal changes nothing"


def test_parameters_on_meta_are_refused() -> None:
    attn = Attention().to("meta")
    with pytest.warns(amd_ops.DeclinedWarning, match="on meta"):
        outs = amd_ops.qkv_proj(attn, X.to("meta"))
    assert all(out.is_meta for out in outs)


def test_frozen_weights_pass_gradients_on() -> None:
    attn = Attention()
    for parameter in attn.parameters():
        parameter.requires_grad_(False)
    x = X.clone().requires_grad_()
    with torch.enable_grad():
        sum(out.square().sum() for out in amd_ops.qkv_proj(attn, x)).backward()
    assert counts() == (1, {})
    y = X.clone().requires_grad_()
    with torch.enable_grad():
        sum(out.square().sum() for out in single(attn, y)).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_switched_off_means_one_by_one() -> None:
    attn = Attention()
    with amd_ops.override(use_fused_projections=0, use_aiter_gemm=1, tiers="torch"):
        got = amd_ops.qkv_proj(attn, X)
    assert "_amd_packed" not in attn.__dict__
    assert all(torch.equal(a, b) for a, b in zip(got, single(attn, X), strict=True))
    assert amd_ops.report().calls("linear", "torch") == 3


def test_strict_mode_makes_a_refusal_an_error() -> None:
    with amd_ops.override(strict=1), pytest.warns(amd_ops.DeclinedWarning), pytest.raises(amd_ops.DeclinedError):
        amd_ops.qkv_proj(spoiled("mixed bias"), X)


ACTIVATIONS = {"silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "": nn.ReLU()}


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("optimised", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_mlp_is_the_stock_mlp(kind: str, optimised: int, bias: bool, dtype: torch.dtype) -> None:
    mlp = Mlp(ACTIVATIONS[kind], bias).to(dtype)
    want = mlp(X.to(dtype))
    with amd_ops.override(use_optimized_ops=optimised):
        got = amd_ops.gated_mlp(mlp, X.to(dtype))
    near(got, want)
    assert counts() == (1, {})
    op = {"silu": "silu_and_mul", "gelu": "gelu_and_mul", "gelu_tanh": "gelu_tanh_and_mul"}.get(kind)
    assert op is None or amd_ops.report().calls(op) == optimised


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("silu", "silu"),
        ("gelu", "gelu"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python", ""),
        ("gelu_new", ""),
        ("relu", ""),
        ("quick_gelu", ""),
        ("gelu_python_tanh", ""),
    ],
)
def test_transformers_activations_are_recognised(name: str, kind: str) -> None:
    activations = pytest.importorskip("transformers.activations")
    if name not in activations.ACT2CLS:
        pytest.skip(f"this transformers has no {name}")
    module = activations.ACT2FN[name]
    assert activation_kind(module) == kind
    x = torch.randn(4, 8)
    if kind:
        ours = {"silu": amd_ops.silu_and_mul, "gelu": amd_ops.gelu_and_mul, "gelu_tanh": amd_ops.gelu_tanh_and_mul}[
            kind
        ]
        near(ours(torch.cat((x, torch.ones_like(x)), -1)), module(x))
    module.register_forward_hook(lambda m, args, out: out)
    assert activation_kind(module) == ""


def test_a_watched_activation_is_called() -> None:
    mlp, seen = Mlp(), []
    mlp.act_fn.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    with amd_ops.override(use_optimized_ops=1):
        amd_ops.gated_mlp(mlp, X)
    assert seen == [torch.Size((2, 3, 40))]


def test_other_names_and_a_stock_fused_linear() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3, self.w2 = nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24)
            self.act_fn = nn.SiLU()

    class Phi(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Linear(24, 80), nn.Linear(40, 24)
            self.activation_fn = nn.SiLU()

    expert, phi = Expert(), Phi()
    for optimised in (0, 1):
        with amd_ops.override(use_optimized_ops=optimised):
            want = expert.w2(expert.act_fn(expert.w1(X)) * expert.w3(X))
            near(amd_ops.gated_mlp(expert, X, gate="w1", up="w3", down="w2"), want)
            gate, up = phi.gate_up_proj(X).chunk(2, -1)
            want = phi.down_proj(up * phi.activation_fn(gate))
            got = amd_ops.gated_mlp(phi, X, gate_up="gate_up_proj", down="down_proj", act="activation_fn")
            near(got, want)


def test_hooks_on_gate_and_down_fire() -> None:
    mlp, seen = Mlp(), []
    mlp.down_proj.register_forward_hook(lambda m, args, out: seen.append("down"))
    amd_ops.gated_mlp(mlp, X)
    mlp.gate_proj.register_forward_hook(lambda m, args, out: seen.append("gate"))
    with pytest.warns(amd_ops.DeclinedWarning):
        amd_ops.gated_mlp(mlp, X)
    assert seen == ["down", "gate", "down"]


class Layer(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.self_attn, self.mlp = spoiled(how) if how else Attention(), Mlp()


def test_prepare_reports_and_restore_undoes() -> None:
    model = nn.ModuleList([Layer(), Layer("mixed bias"), Layer()])
    before = unique_bytes(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    seen: list[str] = []
    report = amd_ops.prepare(model, seen.append)
    assert report.bytes_added == 0
    assert unique_bytes(model) == before
    assert [(p.module, p.linears) for p in report.fused] == [
        ("0.self_attn", NAMES),
        ("0.mlp", ("gate_proj", "up_proj")),
        ("1.mlp", ("gate_proj", "up_proj")),
        ("2.self_attn", NAMES),
        ("2.mlp", ("gate_proj", "up_proj")),
    ]
    assert report.declined == [("1.self_attn", "some of the Linears have a bias and some have none")]
    assert seen[:2] == ["0.self_attn", "0.mlp"]
    assert "fused 5 groups" in str(report)
    assert "some of the Linears have a bias" in str(report)
    assert report.as_dict()["schema"] == "amd-ops.prepare/1"
    again = amd_ops.prepare(model)
    assert (len(again.fused), again.bytes_added) == (5, 0)
    amd_ops.restore(model)
    assert unique_bytes(model) == before
    assert not any("_amd_packed" in module.__dict__ for module in model.modules())
    assert len({p.untyped_storage()._cdata for p in model.parameters()}) == len(list(model.parameters()))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_prepare_works_with_the_toggles_off() -> None:
    with amd_ops.override(use_fused_projections=0):
        assert len(amd_ops.prepare(Layer()).fused) == 2


def test_save_and_load_round_trip(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    keys = list(model.state_dict())
    model.save_pretrained(tmp_path / "plain")
    report = amd_ops.prepare(model)
    assert len(report.fused) == 4
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "packed")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "packed")]
    assert sizes[0] == sizes[1]
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "packed")
    for (name, got), want in zip(back.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want), name


def test_accelerate_hooks_are_respected() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    assert accelerate
    attn = Attention()
    add_hook_to_module(attn.q_proj, AlignDevicesHook(io_same_device=True))
    check(attn, X, 0, "the Linear's forward has been patched")
