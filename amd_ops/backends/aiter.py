"""The only file that knows aiter: which of its functions serve which op, what they accept, and how each is proved.

That aiter imports, or that an op is registered, says nothing about a kernel: ops are registered before anything is
built. So a function is used only when its argument names are known ones, a call only when it meets the kernels'
preconditions (several of which no kernel checks: strides, devices, missing autograd), and a variant only after one
call of it agreed with the eager formula.

Preconditions and version differences: facts of aiter v0.1.5 to v0.1.20.post1. Arguments are chosen by name, never by
version.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import device, masks, toggles
from ..dispatch import Candidate, Offer, Refusal
from ..gemm_tables import GemmTable, ensure_merged_table
from ..toggles import Settings
from .probing import apart, disagreement, made_up, unusable

ARCHES = ("gfx942", "gfx950")
"""Where the kernels used here are known to run (CK, assembly and HIP); Radeon and gfx90a are not among them."""

HALF = (torch.float16, torch.bfloat16)
_NEOX = 0
_ASM_ROWS = 128

_candidates: dict[str, Candidate | str] = {}
_import_error: str | None = None
_gemm_table: GemmTable | None = None


class Unusable(Exception):
    """This aiter cannot serve an op; the text says why."""


def wanted(toggle: str) -> Callable[[Settings], bool]:
    """Return whether tier aiter was asked for by hand through ``toggle``."""
    return lambda settings: settings.asked(toggle)


def offer(op: str, toggle: str, reference: Callable[..., Any]) -> Offer:
    """Return the offer of tier aiter for ``op``: its family's ``toggle``, and the eager function that probes compare
    with.
    """

    def ask(settings: Settings) -> Candidate | Refusal:
        if not getattr(settings, toggle.lower()):
            return Refusal(f"{toggle} is off")
        if op == "attention" and settings.force_eager_attention:
            return Refusal("FORCE_EAGER_ATTENTION=1 skips it")
        # USE_AITER_* name aiter: no device for it breaks the request. USE_OPTIMIZED_OPS asks for the best there is.
        named = toggle.startswith("USE_AITER") and settings.asked(toggle)
        found = device.current()
        if found is None:
            return Refusal(device.why_none(), unmet=named)
        if found.arch not in ARCHES:
            return Refusal(f"{found.arch} is not one of {', '.join(ARCHES)}, where aiter's kernels run", unmet=named)
        if op not in _candidates:
            _candidates[op] = _make(op, reference, found.type)
        made = _candidates[op]
        return made if isinstance(made, Candidate) else Refusal(made, unmet=settings.asked(toggle))

    return ask


def forget() -> None:
    """Drop every verdict, also that of the import."""
    global _import_error
    _import_error = None
    _candidates.clear()
    _uniform_offsets.cache_clear()


toggles.when_refreshed(forget)


def gemm_table() -> GemmTable | None:
    """Return which tuning table aiter's GEMM reads, None while nothing has asked for that GEMM."""
    return _gemm_table


def _settle_gemm_table() -> None:
    """Put the merged table in place. Once per process: aiter's loader reads the variable at its import and never
    again.
    """
    global _gemm_table
    found = device.current()
    if _gemm_table is None and found is not None:
        _gemm_table = ensure_merged_table(found.arch, found.cu_count)


def _make(op: str, reference: Callable[..., Any], kind: str) -> Candidate | str:
    try:
        return _MAKERS[op](reference, kind)
    except Unusable as reason:
        return str(reason)


# -- finding functions


def _module(name: str) -> Any:
    """Import a module of aiter. Off ROCm, on unknown chips and half-built trees it raises nearly anything; keep the
    reason.
    """
    global _import_error
    if _import_error is not None:
        raise Unusable(_import_error)
    try:
        return importlib.import_module(name)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = f"import {name} failed: {type(error).__name__}: {text[0][:160] if text else ''}".rstrip(": ")
        if name == "aiter":
            _import_error = reason
        raise Unusable(reason) from error


def _function(name: str, home: str = "aiter") -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return a public function of aiter and its argument names (from the registered schema where the wrapper hides
    them).
    """
    _module("aiter")
    found = getattr(_module(home), name, None)
    if found is None:
        raise Unusable(f"this aiter has no {name}")
    names = _names(name, found)
    if names is None:
        raise Unusable(f"the arguments of aiter's {name} cannot be read")
    return found, names


def _names(name: str, function: Callable[..., Any]) -> tuple[str, ...] | None:
    try:
        parameters = inspect.signature(function).parameters.values()
        if all(p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.KEYWORD_ONLY for p in parameters):
            return tuple(p.name for p in parameters)
    except (TypeError, ValueError):
        pass  # a builtin: the schema below decides
    packet = getattr(torch.ops.aiter, name, None)
    if packet is None:
        return None
    return tuple(argument.name for argument in packet.default._schema.arguments if argument.name != "dummy")


def _expect(name: str, names: tuple[str, ...], first: tuple[str, ...], *needed: str) -> None:
    if names[: len(first)] != first or not set(needed) <= set(names):
        raise Unusable(f"aiter's {name}({', '.join(names)}) is not a form known here")


# -- activations


def _activation(name: str, reference: Callable[..., Any], kind: str) -> Candidate:
    """``name(out, input)`` writes activated-first-half * second-half; it reads no strides and checks no shapes."""
    function, names = _function(name)
    _expect(name, names, ("out", "input"))

    def check(x: Tensor) -> str:
        if x.dtype not in HALF:
            return f"{x.dtype} is neither fp16 nor bf16"
        if x.shape[-1] % 2:
            return "the last dimension is odd"
        return unusable(kind, x) or ("" if x.is_contiguous() else "the input is not contiguous")

    def run(x: Tensor) -> Tensor:
        out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
        function(out, x)
        return out

    def compare(x: Tensor) -> str:
        sample = made_up((3, x.shape[-1]), x.dtype, x.device, 1)
        return disagreement(run(sample), reference(sample.float()))

    return Candidate(run, check, lambda x: x.dtype, apart(compare))


# -- norms


def _norm_options(form: str, name: str, names: tuple[str, ...]) -> dict[str, Any] | str:
    """Map a form to the flags of a norm function, or say why it has none for it.

    The plain kernels round once (fp32_weight); use_model_sensitive_rmsnorm rounds before the weight (llama, and t5
    with half precision weights). A version without the flag rounds llama once: at most one bf16 step apart.
    """
    if form == "gemma":
        return {"gemma_norm": True} if "gemma_norm" in names else f"this aiter's {name} has no gemma_norm"
    if form in ("llama", "t5") and "use_model_sensitive_rmsnorm" in names:
        return {"use_model_sensitive_rmsnorm": 1}
    return {}


def _norm_check(kind: str, x: Tensor, weight: Tensor) -> str:
    if x.dtype not in HALF:
        return f"{x.dtype} is neither fp16 nor bf16"
    if weight.dtype is not x.dtype:
        return f"the weight is {weight.dtype}, the input {x.dtype}"
    return unusable(kind, x, weight) or ("" if weight.is_contiguous() else "the weight is not contiguous")


def _rows(x: Tensor) -> Tensor:
    """[..., D] -> contiguous [rows, D], the only form the norm kernels read."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _rms_norm(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rmsnorm2d_fwd(input, weight, epsilon, ...)`` returns a new tensor; gemma's offset only exists in
    ``rmsnorm(out, ...)``.
    """
    plain, names = _function("rmsnorm2d_fwd")
    _expect("rmsnorm2d_fwd", names, ("input", "weight", "epsilon"))
    try:
        offset, offset_names = _function("rmsnorm")
        _expect("rmsnorm", offset_names, ("out", "input", "weight", "epsilon"))
    except Unusable:
        offset, offset_names = None, ()

    def check(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        if form == "gemma":
            if offset is None or "gemma_norm" not in offset_names:
                return "this aiter's rms norm has no offset weight (gemma_norm)"
            if x.shape[-1] > 8192:
                return "the offset-weight kernel takes rows of up to 8192"
        return _norm_check(kind, x, weight)

    def run(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
        rows = _rows(x)
        if form == "gemma":
            assert offset is not None
            out = torch.empty_like(rows)
            offset(out, rows, weight, eps, gemma_norm=True)
        else:
            options = _norm_options(form, "rmsnorm2d_fwd", names)
            assert isinstance(options, dict)
            out = plain(rows, weight, eps, **options)
        return out.view(x.shape)

    def compare(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        sample = made_up((5, x.shape[-1]), x.dtype, x.device, 2)
        scale = made_up((x.shape[-1],), x.dtype, x.device, 3)
        return disagreement(run(sample, scale, eps, form), reference(sample.float(), scale.float(), eps, form))

    return Candidate(run, check, lambda x, weight, eps, form: (x.dtype, form, x.shape[-1]), apart(compare))


def _add_rms_norm(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rmsnorm2d_fwd_with_add(out, input, residual_in, residual_out, weight, epsilon, ...)``; flags by keyword:
    their order moved.
    """
    name = "rmsnorm2d_fwd_with_add"
    function, names = _function(name)
    _expect(name, names, ("out", "input", "residual_in", "residual_out", "weight", "epsilon"))

    def check(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        options = _norm_options(form, name, names)
        if isinstance(options, str):
            return options
        if residual.dtype is not x.dtype:
            return f"the residual is {residual.dtype}, the input {x.dtype}"
        if residual.shape != x.shape:
            return "the residual's shape is not the input's"
        return _norm_check(kind, x, weight) or unusable(kind, residual)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
        rows, before = _rows(x), _rows(residual)
        out, after = torch.empty_like(rows), torch.empty_like(rows)
        options = _norm_options(form, name, names)
        assert isinstance(options, dict)
        function(out, rows, before, after, weight, eps, **options)
        return out.view(x.shape), after.view(x.shape)

    def compare(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        shape = (5, x.shape[-1])
        samples = [made_up(shape, x.dtype, x.device, seed) for seed in (4, 5)]
        scale = made_up(shape[1:], x.dtype, x.device, 6)
        got = run(samples[0], samples[1], scale, eps, form)
        want = reference(samples[0].float(), samples[1].float(), scale.float(), eps, form)
        return disagreement(got[0], want[0]) or disagreement(got[1], want[1])

    return Candidate(run, check, lambda x, residual, weight, eps, form: (x.dtype, form, x.shape[-1]), apart(compare))


# -- linear


def _linear(reference: Callable[..., Any], kind: str) -> Candidate:
    """``gemm_a16w16(A [M, K], B [N, K], bias)``. Probed with the real weight per row class: the kernel choice depends
    on all three.
    """
    _settle_gemm_table()
    function, names = _function("gemm_a16w16", "aiter.tuned_gemm")
    _expect("gemm_a16w16", names, ("A", "B", "bias"))

    def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        if x.dtype not in HALF:
            return f"{x.dtype} is neither fp16 nor bf16"
        if weight.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
            return "input, weight and bias differ in dtype"
        if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
            return "the shapes are not [..., K] and [N, K] with at least two dimensions"
        if weight.shape[1] % 8:
            return "K is not a multiple of 8"
        reason = unusable(kind, x, weight) if bias is None else unusable(kind, x, weight, bias)
        if reason:
            return reason
        if not weight.is_contiguous() or (bias is not None and (not bias.is_contiguous() or bias.dim() != 1)):
            return "weight or bias is not contiguous"
        return ""

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Reshape here: gemm_a16w16 answers a 3-D input that it cannot view with F.linear, without saying so.
        out: Tensor = function(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    def variant(x: Tensor, weight: Tensor, bias: Tensor | None) -> Hashable:
        count = x.numel() // x.shape[-1]
        return x.dtype, weight.shape, bias is not None, count.bit_length()

    def compare(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        sample = made_up((x.numel() // x.shape[-1], x.shape[-1]), x.dtype, x.device, 7)
        want = F.linear(sample, weight, bias)
        if not want.any():  # weights of zeros prove nothing
            weight = made_up(tuple(weight.shape), weight.dtype, weight.device, 16)
            want = F.linear(sample, weight, bias)
        return disagreement(run(sample, weight, bias), want)

    return Candidate(run, check, variant, apart(compare))


# -- rope


def _rope(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rope_cached_2c_fwd`` turns q and k in one launch: inputs [S, B, H, D] by strides, tables [S, 1, 1, R] for all
    rows alike.

    Where the rows of a batch have positions of their own, the positions form reads one table of all rows' angles.
    """
    shared, names = _function("rope_cached_2c_fwd")
    common = ("rotate_style", "reuse_freqs_front_part", "nope_first", "transpose_output")
    _expect("rope_cached_2c_fwd", names, ("input_x", "input_y", "cos", "sin", *common))
    single, single_names = _function("rope_cached_positions_2c_fwd")
    _expect("rope_cached_positions_2c_fwd", single_names, ("input_x", "input_y", "cos", "sin", "positions", *common))

    def check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> str:
        if q.dtype not in HALF or k.dtype is not q.dtype:
            return f"q is {q.dtype}, k {k.dtype}: both must be fp16 or both bf16"
        if cos.dtype is not q.dtype or sin.dtype is not q.dtype:
            return f"the tables are {cos.dtype}, q is {q.dtype}"
        if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or unsqueeze_dim not in (1, 2):
            return "q and k are not [B, H, S, D] or [B, S, H, D] with tables [B, S, R]"
        reason = unusable(kind, q, k, cos, sin)
        if reason:
            return reason
        if q.stride(3) != 1 or k.stride(3) != 1:
            return "the last dimension of q or k is not dense"
        if cos.shape[2] % 2 or cos.shape[2] > q.shape[3] or k.shape[3] != q.shape[3]:
            return "the tables' width does not fit the heads"
        if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[3 - unsqueeze_dim]:
            return "the tables' length or batch does not fit q"
        return ""

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
        order, back = ((2, 0, 1, 3), (1, 2, 0, 3)) if unsqueeze_dim == 1 else ((1, 0, 2, 3), (1, 0, 2, 3))
        x, y = q.permute(order), k.permute(order)
        batch, length, width = cos.shape
        if batch == 1 or (cos.stride(0) == 0 and sin.stride(0) == 0):
            tables = [table[0].contiguous().view(length, 1, 1, width) for table in (cos, sin)]
            turned = shared(x, y, *tables, _NEOX, False, False, True)
        else:
            tables = [table.contiguous().view(batch * length, 1, 1, width) for table in (cos, sin)]
            positions = torch.arange(batch * length, device=q.device).view(batch, length).t().contiguous()
            turned = single(x, y, *tables, positions, _NEOX, False, False, True)
        if not isinstance(turned, (tuple, list)) or len(turned) != 2:
            raise TypeError("aiter's rope did not return two tensors")
        return turned[0].permute(back), turned[1].permute(back)

    def variant(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> Hashable:
        own = cos.shape[0] != 1 and (cos.stride(0) != 0 or sin.stride(0) != 0)
        return q.dtype, q.shape[3], cos.shape[2], unsqueeze_dim, own

    def compare(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> str:
        own = cos.shape[0] != 1 and (cos.stride(0) != 0 or sin.stride(0) != 0)
        shape = (2, 3, 5, q.shape[3]) if unsqueeze_dim == 1 else (2, 5, 3, q.shape[3])
        xs = [made_up(shape, q.dtype, q.device, 8), made_up(shape, q.dtype, q.device, 9)]
        tables = [made_up((2 if own else 1, 5, cos.shape[2]), q.dtype, q.device, seed) for seed in (10, 11)]
        got = run(xs[0], xs[1], tables[0], tables[1], unsqueeze_dim)
        want = reference(*(x.float() for x in (*xs, *tables)), unsqueeze_dim)
        return disagreement(got[0], want[0]) or disagreement(got[1], want[1])

    return Candidate(run, check, variant, apart(compare))


# -- attention


@functools.lru_cache(maxsize=64)
def _uniform_offsets(batch: int, length: int, where: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=where)


def _attention(reference: Callable[..., Any], kind: str) -> Candidate:
    """``flash_attn_func`` [B, S, H, D] (it chooses among aiter's kernels) and ``flash_attn_varlen_func`` for padding
    and soft caps.
    """
    dense, dense_names = _function("flash_attn_func")
    _expect("flash_attn_func", dense_names, ("q", "k", "v"), "softmax_scale", "causal", "window_size")
    packed, packed_names = _function("flash_attn_varlen_func")
    lengths = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    _expect("flash_attn_varlen_func", packed_names, ("q", "k", "v"), *lengths, "softmax_scale", "causal", "window_size")
    flash = _Flash(dense, packed, "sink_ptr" in dense_names, "logits_soft_cap" in packed_names, kind)

    def compare(*args: Any) -> str:
        return flash.compare(reference, *args)

    return Candidate(flash.run, flash.check, flash.variant, apart(compare))


def _settled(args: tuple[Any, ...]) -> tuple[bool, bool, int | None]:
    """What a call amounts to after its mask's plan: packed form or dense, causal, and the window where it hides
    anything.
    """
    q, k, _, _, causal, _, _, window, softcap, _, call = args
    plan, columns = call.plan, k.shape[2]
    if plan is not None:
        causal, window = plan.causal, plan.window
        columns = plan.longest_keys if plan.keys is None else plan.keys[1] - plan.keys[0]
    packed = softcap is not None or (plan is not None and plan.keys is None)
    return packed, bool(causal) and q.shape[2] > 1, None if window is None or window >= columns else window


class _Flash:
    """The attention functions of one aiter: what they take, and calls in their layouts."""

    def __init__(
        self, dense: Callable[..., Any], packed: Callable[..., Any], sinks: bool, caps: bool, kind: str
    ) -> None:
        self.dense, self.packed, self.sinks, self.caps, self.kind = dense, packed, sinks, caps, kind

    def check(self, *args: Any) -> str:
        """Cheap tests first; the mask, which costs a host sync once per forward, last."""
        q, k, v, _, causal, mask, dropout, window, softcap, sinks, call = args
        if q.dtype not in HALF or k.dtype is not q.dtype or v.dtype is not q.dtype:
            return f"{q.dtype} is neither fp16 nor bf16" if q.dtype not in HALF else "q, k and v differ in dtype"
        if dropout:
            return "dropout is on"
        sizes = (q.shape[3], v.shape[3])
        if max(sizes) > 256 or sizes[0] % 8 or sizes[1] % 8:
            return f"head_dim {sizes[0]}/{sizes[1]}: at most 256 and multiples of 8"
        reason = unusable(self.kind, q, k, v) if sinks is None else unusable(self.kind, q, k, v, sinks)
        if reason:
            return reason
        if q.stride(3) != 1 or k.stride(3) != 1 or v.stride(3) != 1:
            return "the last dimension of q, k or v is not dense"
        if softcap is not None and not self.caps:
            return "this aiter has no soft cap"
        if sinks is not None and not self.sinks:
            return "this aiter has no sinks"
        if mask is not None:
            if causal or window is not None:
                return "a mask together with causality or a window"
            call.plan = masks.plan_for(mask, q.shape[0], q.shape[2], k.shape[2], call.layer)
            if call.plan.reason:
                return str(call.plan.reason)
        return self._lost(args)

    def _lost(self, args: tuple[Any, ...]) -> str:
        """The v3 assembly kernels know no window and no sinks and drop them without a word.

        aiter keeps shapes with a window away from them, but takes a window of one key for none.
        """
        q, v, softcap, sinks = args[0], args[2], args[8], args[9]
        packed, _, window = _settled(args)
        chosen = q.dtype is torch.bfloat16 and q.shape[3] in (128, 192) and v.shape[3] == 128 and softcap is None
        if not chosen or (window is not None and window > 1) or not (packed or q.shape[2] > _ASM_ROWS):
            return ""
        if sinks is not None:
            return "aiter would take an assembly kernel that drops the sinks"
        return "" if window is None else "aiter would take an assembly kernel that drops the window of one key"

    def variant(self, *args: Any) -> Hashable:
        """What chooses among aiter's kernels: layout, dtype, head sizes, grouping, flags, and the class of q_len."""
        q, k, v, _, _, _, _, _, softcap, sinks, _ = args
        packed, restricted, window = _settled(args)
        length = 0 if q.shape[2] == 1 else 1 if q.shape[2] <= _ASM_ROWS else 2
        heads = q.shape[1] // k.shape[1]
        flags = (restricted, window is not None, softcap is not None, sinks is not None)
        return packed, q.dtype, q.shape[3], v.shape[3], heads, length, *flags

    def run(self, *args: Any) -> Tensor:
        """Dense where every query sees the same span of keys, packed otherwise."""
        q, k, v, scaling, _, _, _, _, softcap, sinks, call = args
        plan = call.plan
        _, causal, window = _settled(args)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if plan is not None and plan.keys is not None:
            start, stop = plan.keys
            k, v = k[:, start:stop], v[:, start:stop]
        future = 0 if causal or q.shape[1] == 1 else -1  # without causality a window only bounds the past
        options: dict[str, Any] = {
            "softmax_scale": q.shape[3] ** -0.5 if scaling is None else scaling,
            "causal": causal,
            "window_size": (-1, -1) if window is None else (window - 1, future),
        }
        if sinks is not None:
            options["sink_ptr"] = sinks.float().contiguous()
        if softcap is not None:
            options["logits_soft_cap"] = softcap
        if plan is not None and plan.keys is None:
            return self._padded(q, k, v, plan, options)
        if softcap is not None:
            return self._uniform(q, k, v, options)
        out: Tensor = self.dense(q, k, v, **options)
        return out.contiguous()

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, options: dict[str, Any]) -> Tensor:
        """Gather the real tokens, attend, scatter back; queries that are padding get zeros."""
        out = torch.zeros((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
        out[plan.queries_at] = self.packed(
            q[plan.queries_at],
            k[plan.keys_at],
            v[plan.keys_at],
            cu_seqlens_q=plan.query_offsets,
            cu_seqlens_k=plan.key_offsets,
            max_seqlen_q=plan.longest_queries,
            max_seqlen_k=plan.longest_keys,
            **options,
        )
        return out

    def _uniform(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """Only the packed function has a soft cap: a batch of equal lengths in packed form."""
        batch, rows, columns = q.shape[0], q.shape[1], k.shape[1]
        out: Tensor = self.packed(
            q.reshape(-1, *q.shape[2:]),
            k.reshape(-1, *k.shape[2:]),
            v.reshape(-1, *v.shape[2:]),
            cu_seqlens_q=_uniform_offsets(batch, rows, q.device),
            cu_seqlens_k=_uniform_offsets(batch, columns, q.device),
            max_seqlen_q=rows,
            max_seqlen_k=columns,
            **options,
        )
        return out.reshape(batch, rows, *out.shape[1:])

    def compare(self, reference: Callable[..., Any], *args: Any) -> str:
        """Probe a call of the same variant, small: keys longer than queries, so that a wrong alignment shows."""
        q, k, v, scaling, _, _, _, _, softcap, sinks, call = args
        plan = call.plan
        _, causal, window = _settled(args)
        rows = 1 if q.shape[2] == 1 else 9 if q.shape[2] <= _ASM_ROWS else _ASM_ROWS + 7
        heads, columns, where = q.shape[1] // k.shape[1], rows + 24, q.device
        xs = [
            made_up((2, count, length, size), q.dtype, where, seed)
            for seed, count, length, size in (
                (12, 2 * heads, rows, q.shape[3]),
                (13, 2, columns, q.shape[3]),
                (14, 2, columns, v.shape[3]),
            )
        ]
        window = None if window is None else 7
        logits = None if sinks is None else made_up((2 * heads,), torch.float32, where, 15)
        cap = None if softcap is None else 2.0
        pads = (0, 5) if plan is not None and plan.keys is None else (0, 0)
        guess, hidden = _padding(pads, rows, columns, causal, window, where)
        made = type(call)()
        made.plan = guess
        rest = (0.0, None if guess is not None else window, cap, logits, made)
        flag = causal and guess is None
        got = self.run(*xs, scaling, flag, hidden, *rest)
        want = reference(*(x.float() for x in xs), scaling, flag, hidden, *rest)
        return disagreement(got, want)


def _padding(
    pads: tuple[int, int], rows: int, columns: int, causal: bool, window: int | None, where: torch.device
) -> tuple[masks.Plan | None, Tensor | None]:
    """The plan and the bool mask of a left-padded batch of two, as transformers would build it; None without
    padding.
    """
    if pads == (0, 0):
        return None, None
    own = torch.arange(columns - rows, columns, device=where).view(1, rows, 1)
    key = torch.arange(columns, device=where).view(1, 1, columns)
    hidden = (key >= torch.tensor(pads, device=where).view(2, 1, 1)).expand(2, rows, columns)
    if causal and rows > 1:
        hidden = hidden & (key <= own)
    if window is not None:
        hidden = hidden & (key > own - window)
    mask = hidden.unsqueeze(1)
    return masks.analyse(mask, 2, rows, columns), mask


_MAKERS: dict[str, Callable[[Callable[..., Any], str], Candidate]] = {
    "attention": _attention,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "apply_rope": _rope,
    **{name: functools.partial(_activation, name) for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")},
}
