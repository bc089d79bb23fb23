"""Entry points for hand-written modeling code: fuse or shuffle one module by name, and call it.

They keep the laws of the overlaid path: fused weights cost no memory and add no keys, a shuffled copy is no parameter
and no buffer, every choice is made by the toggles that were read once, and what is switched on can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata, util

from torch import Tensor, nn

from . import modules, reporting, toggles
from .checks import complaint
from .forward import projections
from .ops.attention import op as attention_op
from .ops.linear import apply_linear, plain_call
from .ops.linear import op as linear_op
from .weights import packing, preshuffle
from .weights.preshuffle import Shuffling

_undo: Callable[[], None] | None = None


def get_use_aiter_attention() -> bool:
    """Return True when attention may run in tier aiter in this process: asked for, and the backend can be used.

    Examples:
        >>> amd_ops.get_use_aiter_attention()  # no toggle asks for it
        False
    """
    return toggles.settings().use_aiter_attention and attention_op.can("aiter")


def get_use_aiter_gemm() -> bool:
    """Return True when linears may run in tier aiter in this process: asked for, and the backend can be used.

    Examples:
        >>> amd_ops.get_use_aiter_gemm()  # no toggle asks for it
        False
    """
    return toggles.settings().use_aiter_gemm and linear_op.can("aiter")


def fuse_qkv_projections(attn: nn.Module, names: tuple[str, ...] = projections.QKV) -> str:
    """Pack the q/k/v Linears of ``attn`` into one matrix; return "" or the reason why they stay apart.

    No buffer is registered and no byte added: each Linear's weight becomes its rows of the matrix. Call them through
    ``amd_ops.qkv_proj(attn, x)`` with USE_FUSED_PROJECTIONS on; undo with ``amd_ops.restore(attn)``.

    Examples:
        >>> attn = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 4), "v_proj": nn.Linear(8, 4)})
        >>> with torch.no_grad():
        ...     amd_ops.fuse_qkv_projections(attn)
        ''
    """
    return _fuse(attn, names)


def fuse_gate_up_projections(mlp: nn.Module, names: tuple[str, str] = ("gate_proj", "up_proj")) -> str:
    """Pack gate and up of ``mlp`` into one matrix, as ``fuse_qkv_projections`` does.

    Call the block through ``amd_ops.gated_mlp(mlp, x)``, which honours the biases and the module's own activation.

    Examples:
        >>> mlp = nn.ModuleDict({"gate_proj": nn.Linear(8, 8), "up_proj": nn.Linear(8, 8)})
        >>> with torch.no_grad():
        ...     amd_ops.fuse_gate_up_projections(mlp)
        ''
    """
    return _fuse(mlp, names)


def _fuse(owner: nn.Module, names: tuple[str, ...]) -> str:
    missing = [name for name in names if not isinstance(getattr(owner, name, None), nn.Module)]
    if missing:
        return f"{type(owner).__name__} has no {', '.join(missing)}"
    packed = packing.pack(owner, names)
    return packed if isinstance(packed, str) else ""


def preshuffle_linear_weights(
    model: nn.Module, layout: tuple[int, int] = (16, 16), require_multiple: int = 1
) -> Shuffling:
    """Make shuffled copies for every eligible nn.Linear of ``model``; the result lists bytes added and reasons.

    ``layout``: only (16, 16) has kernels; anything else raises ArgumentError. ``require_multiple``: skip weights whose
    N or K is no multiple of it (the layout itself needs 16 and 32, gfx950's kernels 64). Undo: ``amd_ops.restore``.

    Examples:
        >>> amd_ops.preshuffle_linear_weights(nn.Linear(16, 32)).copies  # no kernel reads a copy of fp32
        []
    """
    if tuple(layout) != (16, 16):
        raise complaint("preshuffle_linear_weights", "layout", layout, "(16, 16)")
    if require_multiple < 1:
        raise complaint("preshuffle_linear_weights", "require_multiple", require_multiple, "at least 1")
    return preshuffle.preshuffle_weights(model, require_multiple)


def linear_with_preshuffle(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, with the shuffled copy of its weight where there is one and x has PRESHUFFLE_M_THRESH rows.

    Examples:
        >>> amd_ops.linear_with_preshuffle(nn.Linear(4, 2), torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    return apply_linear(module, x)


def patch_linear_forward() -> Callable[[], None]:
    """Route every plain ``nn.Linear`` of this process through the linear op; return the function that undoes it.

    Subclasses (quantised, adapters) that have a forward of their own are not touched, hooks still run, and gradients
    are those of torch. The undo refuses to overwrite somebody else's patch that was put on top.

    Examples:
        >>> undo = amd_ops.patch_linear_forward()
        >>> undo()
    """
    global _undo
    if _undo is not None:
        return _undo
    original = nn.Linear.forward

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        if type(self) is nn.Linear and toggles.on.linear:
            return plain_call(self, input)
        return original(self, input)

    def undo() -> None:
        global _undo
        if _undo is not undo:
            return
        if nn.Linear.forward is not forward:
            raise RuntimeError("nn.Linear.forward was patched again after us: undo that patch first.")
        nn.Linear.forward = original  # type: ignore[method-assign]
        modules.accept_forward(None)
        _undo = None

    modules.accept_forward(forward)
    nn.Linear.forward = forward  # type: ignore[method-assign]
    _undo = undo
    return undo


def check_transformers_version(supported: Iterable[str] = ()) -> bool:
    """Return True when the installed transformers is one that files of ours replaced, or is named in ``supported``.

    A lower bound would let an overlay for 4.53 over 5.x. So: ``supported`` holds exact releases ("4.57.6") or lines
    ("4.57"); without it, the overlaid modules this process has imported decide. Nothing is imported to find out.

    Examples:
        >>> amd_ops.check_transformers_version(["1.0"])
        False
    """
    if util.find_spec("transformers") is None:
        return False
    named = tuple(supported)
    if not named:
        return bool(reporting.overlay_info())
    found = metadata.version("transformers").split(".")
    return any(found[: len(parts)] == parts for parts in (text.split(".") for text in named))


__all__ = [
    "check_transformers_version",
    "fuse_gate_up_projections",
    "fuse_qkv_projections",
    "get_use_aiter_attention",
    "get_use_aiter_gemm",
    "linear_with_preshuffle",
    "patch_linear_forward",
    "preshuffle_linear_weights",
]
