"""Shuffled weights: eligibility, threshold, bytes, staleness, and that nobody but the GEMM ever sees them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import amd_ops
from amd_ops.backends import shuffled
from amd_ops.weights import preshuffle
from tests.aiter.support import BF16, ON, Gpu, rand
from tests.doubles import formulas
from tests.doubles.aiter import Faults, fake_aiter
from tests.parity import twins

TAKEN = [
    ("v0.1.7.post3", "gfx942"),
    ("v0.1.9.post1", "gfx942"),
    ("v0.1.20.post1", "gfx942"),
    ("v0.1.20.post1", "gfx950"),
]


class Net(nn.Module):
    """A tied head, a Linear of each kind of shape, and packable projections."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, size, bias=False) for size in (64, 32, 32))
        self.o_proj, self.odd, self.head = nn.Linear(64, 128), nn.Linear(64, 40), nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture(params=TAKEN, ids="-".join)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    torch.manual_seed(0)
    with (
        fake_aiter(request.param[0], request.param[1], 304) as double,
        amd_ops.override(**ON, strict=1, use_preshuffle=1, preshuffle_m_thresh=4),
        torch.no_grad(),
    ):
        amd_ops.reset_counters()
        yield Gpu(double)


@pytest.mark.parametrize(("rows", "threshold", "taken"), [(3, 4, 0), (4, 4, 1), (1, 0, 1), (9, -1, 0)])
def test_rows_decide(gpu: Gpu, rows: int, threshold: int, taken: int) -> None:
    module, x = nn.Linear(64, 128).to(BF16), rand(rows, 64)
    want = formulas.linear(x, module.weight, module.bias)
    amd_ops.prepare(module)
    with amd_ops.override(preshuffle_m_thresh=threshold):
        for _ in range(2):
            formulas.close(amd_ops.apply_linear(module, x), want, 1.0)
    assert len(list(shuffled.kept())) == 1
    assert gpu.double.marked == taken * 3  # the probe and both calls multiplied the copy


def test_prepare_needs_no_no_grad_around_it(gpu: Gpu) -> None:
    """A model just loaded wants gradients, and nobody writes no_grad around prepare()."""
    module, x = nn.Linear(64, 128).to(BF16), rand(4, 64)
    assert module.weight.requires_grad
    want = formulas.linear(x, module.weight, module.bias)
    with torch.enable_grad():
        assert [size for _, size in amd_ops.prepare(module).shuffling.copies] == [128 * 64 * 2]
    assert len(list(shuffled.kept())) == 1
    for _ in range(2):
        formulas.close(amd_ops.apply_linear(module, x), want, 1.0)
    assert gpu.double.marked == 3


def test_prepare_shows_bytes_and_reasons_and_restore_frees(gpu: Gpu) -> None:
    net = Net().to(BF16)
    report = amd_ops.prepare(net)
    copies = dict(report.shuffling.copies)
    assert copies == {"q_proj+k_proj+v_proj": 128 * 64 * 2, "o_proj": 128 * 64 * 2}
    assert report.bytes_added == 0
    assert report.shuffling.bytes_added == sum(copies.values()) == sum(held.nbytes for held in shuffled.kept())
    reasons = dict(report.shuffling.declined)
    assert "tied" in reasons["head"]
    assert "multiple" in reasons["odd"]
    assert str(128 * 64 * 2) in str(report)
    assert "o_proj" in str(report)
    amd_ops.restore(net)
    assert not shuffled.any_kept()


def test_the_packed_projections_multiply_the_shuffled_copy(gpu: Gpu) -> None:
    with amd_ops.override(use_fused_projections=1):
        net, x = Net().to(BF16).eval(), rand(2, 5, 64)
        amd_ops.prepare(net)
        assert len(list(shuffled.kept())) == 2
        for _ in range(2):
            got = amd_ops.qkv_proj(net, x)
        for part, name in zip(got, ("q_proj", "k_proj", "v_proj"), strict=True):
            formulas.close(part, formulas.linear(x, getattr(net, name).weight), 1.0)
        assert gpu.double.marked == 3  # the probe and both calls multiplied the copy
        net.k_proj.weight.mul_(-3.0)  # a write to one of the rows of the packed matrix
        assert len(list(shuffled.kept())) == 1
        with amd_ops.override(strict=0), pytest.warns(amd_ops.DeclinedWarning, match="anybody may write"):
            found = amd_ops.qkv_proj(net, x)[1]
        formulas.close(found, formulas.linear(x, net.k_proj.weight), 1.0)


CHANGES: dict[str, Any] = {
    "written": lambda module: module.weight.mul_(-2.0),
    "loaded": lambda module: module.load_state_dict(nn.Linear(64, 128).state_dict()),
    "data": lambda module: setattr(module.weight, "data", -module.weight.data),
    "replaced": lambda module: setattr(module, "weight", nn.Parameter(-module.weight)),
    "there and back": lambda module: module.to(torch.float32).to(BF16).weight.mul_(-1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(gpu: Gpu, change: str) -> None:
    module, x = nn.Linear(64, 128).to(BF16), rand(6, 64)
    amd_ops.prepare(module)
    for _ in range(2):
        amd_ops.apply_linear(module, x)
    assert len(list(shuffled.kept())) == 1
    CHANGES[change](module)
    assert not shuffled.any_kept()
    for _ in range(2):
        formulas.close(quiet(module, x), formulas.linear(x, module.weight, module.bias), 1.0)
    amd_ops.prepare(module)
    assert len(list(shuffled.kept())) == 1
    formulas.close(amd_ops.apply_linear(module, x), formulas.linear(x, module.weight, module.bias), 1.0)


def test_deepcopy_pickle_and_death_leave_copies_behind(gpu: Gpu) -> None:
    module, x = nn.Linear(64, 128).to(BF16), rand(6, 64)
    amd_ops.prepare(module)
    other = copy.deepcopy(module)
    assert type(other.weight) is type(module.weight) is nn.Parameter
    other.weight.mul_(-1.0)
    formulas.close(quiet(other, x), formulas.linear(x, other.weight, other.bias), 1.0)
    amd_ops.prepare(module)
    assert shuffled.any_kept()
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    assert stream.tell() < 128 * 64 * 2 * 1.5
    del module, other
    assert not shuffled.any_kept()


def test_saving_writes_stock_bytes(gpu: Gpu, tmp_path: Path) -> None:
    model = twins.pair("llama", "bfloat16").overlay
    model.save_pretrained(tmp_path / "stock")
    try:
        report = amd_ops.prepare(model)
        assert report.shuffling.copies or report.shuffling.declined
        model.save_pretrained(tmp_path / "ours")
    finally:
        amd_ops.restore(model)
    stock, ours = ((tmp_path / side / "model.safetensors").read_bytes() for side in ("stock", "ours"))
    assert stock == ours
    assert load_file(tmp_path / "ours" / "model.safetensors").keys()


def quiet(module: nn.Module, x: Tensor) -> Tensor:
    with amd_ops.override(strict=0), warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        return amd_ops.apply_linear(module, x)


def test_a_weight_that_something_else_holds_is_left_alone(gpu: Gpu) -> None:
    net, x = Net().to(BF16), rand(6, 64)
    alias = net.o_proj.weight.data
    reasons = dict(amd_ops.prepare(net).shuffling.declined)
    assert "tied" in reasons["head"]
    assert "held by another tensor too" in reasons["o_proj"]
    alias.mul_(-1.0)
    for module in (net.head, net.o_proj):
        formulas.close(quiet(module, x), formulas.linear(x, module.weight, module.bias), 1.0)


def test_without_prepare_no_copy_is_made_and_that_is_told(gpu: Gpu) -> None:
    module, x = nn.Linear(64, 128).to(BF16), rand(6, 64)
    with pytest.raises(amd_ops.DeclinedError, match="prepare"):
        amd_ops.apply_linear(module, x)
    formulas.close(quiet(module, x), formulas.linear(x, module.weight, module.bias), 1.0)
    assert not shuffled.any_kept()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 64), (BF16, 40)])
def test_what_the_layout_cannot_hold_stays_plain(gpu: Gpu, dtype: torch.dtype, size: int) -> None:
    module, x = nn.Linear(64, size).to(dtype), rand(6, 64, dtype=dtype)
    formulas.close(quiet(module, x), formulas.linear(x, module.weight, module.bias), 1.0)
    assert not shuffled.any_kept()


def test_gfx950_wants_multiples_of_64() -> None:
    for arch, taken in (("gfx942", True), ("gfx950", False)):
        with fake_aiter("v0.1.20.post1", arch, 256), amd_ops.override(**ON, use_preshuffle=1), torch.no_grad():
            done = preshuffle.preshuffle_weights(nn.Sequential(nn.Linear(96, 32)).to(BF16))
            assert bool(done.copies) is taken, done


@pytest.mark.parametrize("version", ["v0.1.5.post4"])
def test_old_gemms_never_see_a_shuffled_weight(version: str) -> None:
    with fake_aiter(version) as double, amd_ops.override(**ON, use_preshuffle=1), torch.no_grad():
        done = preshuffle.preshuffle_weights(nn.Sequential(nn.Linear(64, 64)).to(BF16))
        assert done.copies == []
        assert done.declined
        assert double.called("shuffle_weight") == []


def test_switching_off_frees_the_copies(gpu: Gpu) -> None:
    module, x = nn.Linear(64, 128).to(BF16), rand(6, 64)
    amd_ops.prepare(module)
    assert shuffled.any_kept()
    with amd_ops.override(use_preshuffle=0):
        assert not shuffled.any_kept()
        formulas.close(amd_ops.apply_linear(module, x), formulas.linear(x, module.weight, module.bias), 1.0)


def test_a_copy_of_a_wrong_kernel_is_declined() -> None:
    torch.manual_seed(0)
    with (
        fake_aiter(faults=Faults(wrong={"gemm_a16w16": lambda result: -result})),
        amd_ops.override(**ON, use_preshuffle=1, preshuffle_m_thresh=0),
        torch.no_grad(),
    ):
        module, x = nn.Linear(64, 128).to(BF16), rand(6, 64)
        amd_ops.prepare(module)
        formulas.close(quiet(module, x), formulas.linear(x, module.weight, module.bias), 1.0)
