"""What is compared, inside the confined process of one program: the program as written, and with our code in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import amd_ops
from amd_ops.kernelize import kernelize_model, kernelize_report, unkernelize_model
from rocm_overlay.synth.sandbox import compare, program
from rocm_overlay.synth.sandbox.program import Failure, Loaded
from rocm_overlay.synth.sandbox.validate import compare_compiled

TIERS = ("torch", "eager")
_ON = {
    "use_optimized_ops": 1,
    "use_fused_projections": 1,
    "use_aiter_gemm": 1,
    "use_aiter_attention": 1,
}
_HEAD = "overlay"


def ops(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """amd_ops: every call of a torch function that we have an op for goes to the op, one tier at a time.

    Classes and functions in the forms that models have (norms, gated activations, rotary embedding) go there, too.
    """
    loaded = program.build(job["name"], job["source"], builtins)
    expected = _stock(loaded)
    touched = 0
    for tier in TIERS:
        with _toggles(tier):
            again = program.instantiate(job["name"], loaded.space)
            with _own_forms(again.space) as forms, _Reroute() as mode:
                found = _run(again, tier)
            touched = max(touched, mode.calls + forms[0])
        _agree(loaded, expected, found, tier)
    return {"touched": touched}


def kernelize(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """kernelize_model: the first call proves, the second uses what was proven, and unkernelize gives stock back."""
    loaded = program.build(job["name"], job["source"], builtins)
    expected = _stock(loaded)
    for tier in TIERS:
        again = program.instantiate(job["name"], loaded.space)
        with _toggles(tier):
            with _stage("kernelize"):
                kernelize_model(again.model, mode="inference", device="cpu")
                report = kernelize_report(again.model)
            for call in ("first", "second"):
                _agree(
                    loaded,
                    expected,
                    _run(again, f"kernelized, {tier}, {call} call"),
                    f"kernelized, {tier}, {call} call",
                )
            with _stage("unkernelize"):
                unkernelize_model(again.model)
                amd_ops.restore(again.model)
        _agree(loaded, expected, _run(again, "unkernelized"), "unkernelized", exact=True)
    return {"touched": len(report.applied)}


def recipes(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """The recipes: the generated overlay of the program's text, off (bit for bit) and on, tier by tier."""
    loaded = program.build(job["name"], job["source"], builtins)
    expected = _stock(loaded)
    text, sites = overlay(job["source"])
    if not sites:
        return {"touched": 0}
    space = program.load(f"{_HEAD}_{job['name']}", text)
    _agree(loaded, expected, _run(program.instantiate(job["name"], space), "overlay, off"), "overlay, off", exact=True)
    for tier in TIERS:
        with _toggles(tier):
            changed = program.instantiate(job["name"], space)
            for call in ("first", "second"):
                _agree(
                    loaded, expected, _run(changed, f"overlay, {tier}, {call} call"), f"overlay, {tier}, {call} call"
                )
    return {"touched": sites}


def compiled(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """torch.compile: the program, and its overlay with everything on, against eager stock."""
    loaded = program.build(job["name"], job["source"], builtins)
    expected = _stock(loaded)
    compare_compiled(copy.copy(loaded), expected, job["backend"])
    text, sites = overlay(job["source"])
    if sites:
        space = program.load(f"{_HEAD}_{job['name']}", text)
        with _toggles("torch"):
            changed = program.instantiate(job["name"], space)
            with _stage("overlay compiled"):
                compare_compiled(changed, expected, job["backend"])
    return {"touched": 1 + sites}


def overlay(source: str) -> tuple[str, int]:
    """Return the overlay of a program's text, and at how many sites it differs."""
    from rocm_overlay.overlays.recipes import recipe_set
    from rocm_overlay.patchgen.engine import generate

    with _stage("patchgen"):
        result = generate(source.encode("utf-8"), "program.py", recipe_set()).require_clean()
    return result.overlay.decode("utf-8"), sum(len(one.sites) for one in result.outcomes)


def _stock(loaded: Loaded) -> Any:
    expected = program.run(loaded)
    program.check_results(expected)
    return expected


@contextmanager
def _toggles(tier: str) -> Iterator[None]:
    """Everything on, limited to one of our tiers; what has no such tier runs as stock."""
    with amd_ops.override(tiers=tier, **_ON):
        yield


def _run(loaded: Loaded, variant: str) -> Any:
    with _stage(variant):
        return program.run(loaded)


@contextmanager
def _stage(variant: str) -> Iterator[None]:
    """Stock ran this program, so whatever our side raises is a finding."""
    try:
        yield
    except Failure as failure:
        category = "differs" if failure.category == "mismatch" else "raises"
        raise Failure(category, f"{variant}: {failure.message}") from failure
    except Exception as error:  # every error of the replaced side is what is being looked for
        raise Failure("raises", f"{variant}: {program.first_line(error)}") from error


def _agree(loaded: Loaded, expected: Any, found: Any, variant: str, *, exact: bool = False) -> None:
    gap = compare.difference(expected, found, exact=True) if exact else program.agree(loaded, expected, found)
    if gap:
        raise Failure("differs", f"{variant}: {gap}")


class _Reroute(TorchFunctionMode):
    """Send calls of torch's functions to our ops, where an op has the same meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replaced = _replaced(func, args, kwargs)
        if replaced is None:
            return func(*args, **kwargs)
        self.calls += 1
        return replaced()


def _replaced(func: Any, args: Any, kwargs: Any) -> Callable[[], Any] | None:
    if func is F.linear and not kwargs and args[1].dim() == 2:
        return lambda: amd_ops.linear(*args)
    if func is F.rms_norm and len(args) == 4 and args[2] is not None and args[3] is not None and args[2].dim() == 1:
        return lambda: amd_ops.rms_norm(args[0], args[2], args[3])
    if func is F.scaled_dot_product_attention and len(args) == 3 and args[0].dim() == 4:
        known = {"attn_mask", "is_causal", "enable_gqa", "scale", "dropout_p"}
        causal = bool(kwargs.get("is_causal", False))
        # SDPA's flag counts from the first key, ours from the last one: the same only for squares.
        if (
            set(kwargs) <= known
            and not kwargs.get("dropout_p")
            and not (causal and args[0].shape[2] != args[1].shape[2])
        ):
            q, k, v = (x.transpose(1, 2) for x in args)
            options = {"attention_mask": kwargs.get("attn_mask"), "scaling": kwargs.get("scale"), "is_causal": causal}
            return lambda: amd_ops.attention(q, k, v, **options).transpose(1, 2)
    return None


@contextmanager
def _own_forms(space: dict[str, Any]) -> Iterator[list[int]]:
    """Replace the program's own classes and functions of known names for the length of a block; count their calls."""
    count = [0]
    kept: list[tuple[Any, Any]] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            return function(*args, **kwargs)

        return call

    for name, forward in _FORMS.items():
        found = space.get(name)
        if isinstance(found, type):
            kept.append((found, found.__dict__["forward"]))
            found.forward = counted(forward)  # type: ignore[attr-defined]
    functions = {name: space[name] for name in _FUNCTIONS if callable(space.get(name))}
    space.update({name: counted(amd_ops.apply_rope) for name in functions})
    try:
        yield count
    finally:
        for found, forward in kept:
            found.forward = forward
        space.update(functions)


def _norm(form: str, eps: str) -> Callable[..., Any]:
    return lambda self, x: amd_ops.rms_norm(x, self.weight, getattr(self, eps), form=form)


_FORMS: dict[str, Callable[..., Any]] = {
    "LlamaRMSNorm": _norm("llama", "variance_epsilon"),
    "GemmaRMSNorm": _norm("gemma", "eps"),
    "Fp32RMSNorm": _norm("fp32_weight", "variance_epsilon"),
    "T5LayerNorm": _norm("t5", "variance_epsilon"),
    "SiluAndMul": lambda self, x: amd_ops.silu_and_mul(x),
    "GeluTanhAndMul": lambda self, x: amd_ops.gelu_tanh_and_mul(x),
    "GatedMLP": amd_ops.gated_mlp,
    "SwiGLU": lambda self, x: amd_ops.gated_mlp(self, x, gate="w1", up="w3", down="w2", act=""),
    "PhiMLP": lambda self, x: amd_ops.gated_mlp(self, x, gate_up="gate_up_proj", act="activation_fn"),
}
_FUNCTIONS = ("apply_rotary_pos_emb", "apply_partial_rotary")
