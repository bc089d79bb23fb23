"""Every op inside one graph: attention and GEMMs by their whole dispatch where a foreign kernel may run, the torch
formula everywhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import amd_ops
from tests.aiter.support import BF16, ON, rand
from tests.doubles import formulas
from tests.doubles.aiter import Double, fake_aiter, registry

VERSIONS = ["v0.1.9.post1", "v0.1.20.post1"]


def tables(rows: int) -> tuple[Tensor, Tensor]:
    cos, sin = formulas.rope_tables(torch.arange(rows)[None], 16, BF16)
    return cos, sin


Case = tuple[str, Callable[[int], tuple[Any, ...]], dict[str, Any]]
CASES: list[Case] = [
    ("linear", lambda n: (rand(2, n, 64), rand(48, 64) / 8, rand(48)), {}),
    ("rms_norm", lambda n: (rand(2, n, 32), rand(32)), {"eps": 1e-6}),
    ("add_rms_norm", lambda n: (rand(2, n, 32), rand(2, n, 32), rand(32)), {"eps": 1e-6}),
    ("silu_and_mul", lambda n: (rand(2, n, 32),), {}),
    ("gelu_and_mul", lambda n: (rand(2, n, 32),), {}),
    ("gelu_tanh_and_mul", lambda n: (rand(2, n, 32),), {}),
    ("apply_rope", lambda n: (rand(2, n, 4, 16).transpose(1, 2), rand(2, n, 2, 16).transpose(1, 2), *tables(n)), {}),
    ("apply_rope", lambda n: (rand(2, n, 4, 16), rand(2, n, 2, 16), *tables(n)), {"unsqueeze_dim": 2}),
    ("attention", lambda n: (rand(2, n, 4, 16), rand(2, n + 3, 2, 16), rand(2, n + 3, 2, 16)), {}),
    ("attention", lambda n: (rand(2, n, 4, 16), rand(2, n, 2, 16), rand(2, n, 2, 16)), {"sliding_window": 3}),
    ("attention", lambda n: (rand(2, n, 4, 16), rand(2, n, 2, 16), rand(2, n, 2, 16)), {"softcap": 5.0}),
]
IDS = [f"{name}{''.join(options)}" for name, _, options in CASES]
OPAQUE = [case for case in CASES if case[0] in ("linear", "attention")]
"""What a compiler cannot fuse with anything: the only ops of ours that a graph calls a foreign kernel for."""
OPAQUE_IDS = [f"{name}{''.join(options)}" for name, _, options in OPAQUE]
FORMULAS = [case for case in CASES if case not in OPAQUE]


@contextlib.contextmanager
def gpu(version: str = "v0.1.9.post1") -> Iterator[Double]:
    with fake_aiter(version, "gfx942", 304) as double, amd_ops.override(**ON), torch.no_grad():
        yield double


def compiled(name: str, options: dict[str, Any], **how: Any) -> Callable[..., Any]:
    op = getattr(amd_ops, name)
    return torch.compile(lambda *args: op(*args, **options), fullgraph=True, **{"backend": "aot_eager", **how})


def same(got: Any, want: Any) -> None:
    pairs = zip(got, want, strict=True) if isinstance(got, (tuple, list)) else [(got, want)]
    for left, right in pairs:
        assert torch.equal(left, right), float((left.double() - right.double()).abs().max())


@pytest.mark.parametrize(("name", "make", "options"), CASES, ids=IDS)
def test_torch_tier_is_one_graph_with_the_same_numbers(name: str, make: Any, options: dict[str, Any]) -> None:
    with amd_ops.override(**ON, tiers="torch,eager"), torch.no_grad():
        args = make(5)
        same(compiled(name, options)(*args), getattr(amd_ops, name)(*args, **options))


@pytest.mark.parametrize(
    ("name", "make", "options"), FORMULAS, ids=[f"{name}{''.join(options)}" for name, _, options in FORMULAS]
)
def test_what_a_compiler_fuses_better_is_never_a_foreign_call(name: str, make: Any, options: dict[str, Any]) -> None:
    with gpu() as double:
        args = make(5)
        function = compiled(name, options)
        function(*args)
        assert double.kernels() == []
        with amd_ops.override(tiers="torch,eager"):
            want = getattr(amd_ops, name)(*args, **options)
        same(function(*args), want)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "make", "options"), OPAQUE, ids=OPAQUE_IDS)
def test_tier_aiter_is_reached_from_a_graph(version: str, name: str, make: Any, options: dict[str, Any]) -> None:
    with gpu(version) as double:
        args = make(5)
        want = getattr(amd_ops, name)(*args, **options)
        function = compiled(name, options)
        same(function(*args), want)
        amd_ops.reset_counters()
        double.clear()
        same(function(*args), want)
        assert amd_ops.report().calls(name, "aiter") == 1, str(amd_ops.report())
        assert len(double.kernels()) == 1


@pytest.mark.parametrize(("name", "make", "options"), OPAQUE, ids=OPAQUE_IDS)
def test_lengths_that_grow_need_no_graph_each(name: str, make: Any, options: dict[str, Any]) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    with gpu():
        function = compiled(name, options, backend=counter, dynamic=True)
        made = []
        for length in (11, 12, 13):  # no size that another dimension has: torch would tie the two
            args = make(length)
            same(function(*args), getattr(amd_ops, name)(*args, **options))
            made.append(counter.frame_count)
    assert len(set(made)) == 1, made


def test_a_changed_toggle_makes_a_new_graph_and_back_again_none() -> None:
    counter = CompileCounterWithBackend("eager")
    with gpu():
        function, x, weight = compiled("linear", {}, backend=counter), rand(3, 64), rand(48, 64)
        for _ in range(3):
            function(x, weight)
            assert amd_ops.report().calls("linear", "aiter") > 0
            with amd_ops.override(tiers="torch"):
                amd_ops.reset_counters()
                function(x, weight)
                assert amd_ops.report().calls("linear") == 0  # torch's own ops: nothing of ours in the graph
    assert counter.frame_count == 2


def test_gradients_and_autocast_keep_the_formula() -> None:
    with gpu() as double, torch.enable_grad():
        x = rand(3, 32).requires_grad_()
        function = compiled("silu_and_mul", {})
        function(x).sum().backward()
        want = x.grad
        assert want is not None
        x.grad = None
        amd_ops.silu_and_mul(x).sum().backward()
        assert x.grad is not None
        same(want, x.grad)
        linear = compiled("linear", {})
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.randn(3, 64), torch.randn(16, 64), None).dtype is BF16
        assert double.kernels() == []


def test_a_linear_module_goes_through_the_op_unless_it_is_watched() -> None:
    with gpu() as double:
        module, x = nn.Linear(64, 48).to(BF16), rand(3, 64)
        same(torch.compile(amd_ops.apply_linear, fullgraph=True, backend="aot_eager")(module, x), module(x))
        assert "gemm_a16w16" in double.kernels()
        double.clear()
        torch._dynamo.reset()  # by default torch itself does not look for hooks that come after the first trace
        module.register_forward_hook(lambda _, __, out: out + 1)
        same(torch.compile(amd_ops.apply_linear, fullgraph=True, backend="aot_eager")(module, x), module(x))
        assert double.kernels() == []


@pytest.mark.parametrize(("name", "make", "options"), CASES, ids=IDS)
def test_nothing_is_read_back_to_the_host(
    name: str, make: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph capture forbids. The probe compares numbers and the double's kernels count; both are exempt."""
    launch = registry.run_kernel

    def exempt(*given: Any) -> Any:
        with _disable_current_modes():
            return launch(*given)

    monkeypatch.setattr(registry, "run_kernel", exempt)
    with gpu() as double:
        op, args = getattr(amd_ops, name), make(1)
        op(*args, **options)
        double.clear()
        with HostReads() as reads:
            op(*args, **options)
        assert reads.found == []
        assert len(double.kernels()) == 1


class HostReads(TorchDispatchMode):
    """Notes every op that hands a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal") or (name == "_to_copy" and "cpu" in str(kwargs)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.full
@pytest.mark.parametrize(("name", "make", "options"), OPAQUE, ids=OPAQUE_IDS)
def test_inductor_agrees(name: str, make: Any, options: dict[str, Any]) -> None:
    with gpu():
        args = make(5)
        want = getattr(amd_ops, name)(*args, **options)
        function = compiled(name, options, backend="inductor")
        function(*args)
        same(function(*args), want)
