"""The run-time layer that overlaid modeling files call: ops with tiers, chosen ahead of forward, counted and explained.

Everything public is named here. Importing reads the toggles once and raises ``ToggleError`` on a bad one; it
imports torch and nothing else of ours, and aiter only when a toggle asks for it and an op is called.
"""

from __future__ import annotations

from . import device
from .checks import ArgumentError
from .dispatch import DeclinedError, DeclinedWarning, Verdict, reset_counters
from .forward.attention import route_attention
from .forward.delta import causal_conv, gated_delta_rule, gated_norm
from .forward.experts import moe_experts, softmax_moe
from .forward.gating import shared_expert
from .forward.latent import latent_key, latent_rope
from .forward.projections import gated_mlp, qkv_proj
from .forward.qk_rope import qk_norm_rope, qk_rope, rope_into_cache
from .forward.residual import add_norm, linear_add, mlp_add
from .forward.router import grouped_router, softmax_router, top_k_router
from .forward.stacked import clamped_experts, stacked_experts
from .gemm_tables import extend_aiter_gemm_configs
from .ops.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from .ops.attention import attention
from .ops.cross_entropy import causal_lm_loss, linear_cross_entropy
from .ops.delta import conv_step, delta_step, gated_rms_norm
from .ops.gating import add_shared, sigmoid_gate
from .ops.latent import join_rope
from .ops.linear import apply_linear, linear
from .ops.moe import clamped_moe, moe, softmax_top_k
from .ops.norm import add_rms_norm, rms_norm
from .ops.rope import apply_rope, takes_rope
from .ops.router import grouped_top_k, router_logits, top_k_softmax
from .ops.sink_attention import sink_attention
from .plans import planned
from .preparation import prepare, restore
from .reporting import explain, overlay_info, report
from .toggles import Settings, ToggleError, on, override, refresh, settings

# Entry points for hand-written modeling code, loaded when one is first used.
_MODULE_API = (
    "check_transformers_version",
    "fuse_gate_up_projections",
    "fuse_qkv_projections",
    "get_use_aiter_attention",
    "get_use_aiter_gemm",
    "linear_with_preshuffle",
    "patch_linear_forward",
    "preshuffle_linear_weights",
)
# Layer and function replacement is a room of its own: it is loaded when one of these names is first used.
_KERNELIZE = (
    "apply_function_kernel",
    "apply_overlay_kernels",
    "kernelize_model",
    "kernelize_report",
    "kernelized",
    "register_external_layer",
    "register_function_kernel",
    "register_kernels",
    "register_layer_kernel",
    "restore_function_kernels",
    "revert_overlay_kernels",
    "unkernelize_model",
    "use_kernels",
)
# One pair per curated model, e.g. apply_overlay_kernels_to_llama.
_OF_A_MODEL = ("apply_overlay_kernels_to_", "revert_overlay_kernels_from_")

__all__ = [
    "ArgumentError",
    "DeclinedError",
    "DeclinedWarning",
    "Settings",
    "ToggleError",
    "Verdict",
    "add_norm",
    "add_rms_norm",
    "add_shared",
    "apply_linear",
    "apply_rope",
    "attention",
    "causal_conv",
    "causal_lm_loss",
    "clamped_experts",
    "clamped_moe",
    "conv_step",
    "delta_step",
    "device",
    "explain",
    "extend_aiter_gemm_configs",
    "gated_delta_rule",
    "gated_mlp",
    "gated_norm",
    "gated_rms_norm",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "grouped_router",
    "grouped_top_k",
    "join_rope",
    "latent_key",
    "latent_rope",
    "linear",
    "linear_add",
    "linear_cross_entropy",
    "mlp_add",
    "moe",
    "moe_experts",
    "on",
    "overlay_info",
    "override",
    "planned",
    "prepare",
    "qk_norm_rope",
    "qk_rope",
    "qkv_proj",
    "refresh",
    "report",
    "reset_counters",
    "restore",
    "rms_norm",
    "rope_into_cache",
    "route_attention",
    "router_logits",
    "settings",
    "shared_expert",
    "sigmoid_gate",
    "silu_and_mul",
    "sink_attention",
    "softmax_moe",
    "softmax_router",
    "softmax_top_k",
    "stacked_experts",
    "takes_rope",
    "top_k_router",
    "top_k_softmax",
]


def __getattr__(name: str) -> object:
    if name in _KERNELIZE or name.startswith(_OF_A_MODEL):
        from . import kernelize

        return getattr(kernelize, name)
    if name in _MODULE_API:
        from . import module_api

        return getattr(module_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from .kernelize.curated_models import CURATED

    of_models = [f"{verb}{model}" for model in CURATED for verb in _OF_A_MODEL]
    return sorted([*globals(), *_KERNELIZE, *_MODULE_API, *of_models])


refresh()
