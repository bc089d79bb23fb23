"""Patches for Qwen3: RMSNorm, RoPE and SwiGLU through amd_ops, and decoder layers that know their number.

Generate (torch is not needed and transformers is only read: code under a patch decorator is text):

    overlay gen examples/patchgen_qwen3/qwen3_gpu_patch_gen_config.py -v --diff

writes examples/patchgen_qwen3/generated/patched_modeling_qwen3_gpu.py and its .diff.
"""

import torch
from rocm_overlay.patchgen import PatchConfig, create_patch_from_external
from torch import nn

import amd_ops

config = PatchConfig(
    source_module="transformers.models.qwen3.modeling_qwen3",
    target_file="patched_modeling_qwen3_gpu.py",
    description="Qwen3 GPU patches",
)

config.add_import("amd_ops")


# The weight keeps its stock name, so checkpoints load unchanged.
@config.replace_class("Qwen3RMSNorm", description="Use the fused RMSNorm kernel (one launch instead of six)")
class FusedRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Variance in fp32, the weight applied in the input's dtype: the llama form.
        return amd_ops.rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self):
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


@config.replace_function("apply_rotary_pos_emb", description="Use the fused RoPE kernel")
def fused_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    # position_ids is deprecated and unused in stock as well; it stays so that every stock call still fits.
    return amd_ops.apply_rope(q, k, cos, sin, unsqueeze_dim)


@config.modify_init("Qwen3DecoderLayer", description="Remember the layer's number")
def numbered_layer_init(original_init, self, config, layer_idx):
    original_init(self, config, layer_idx)
    self.layer_idx = layer_idx


# The class lives in a library of its own: the generated file imports it under the stock name.
config.patches.append(
    create_patch_from_external(
        target="Qwen3MLP",
        replacement_module="qwen3_layers",
        replacement_name="SwiGLUMLP",
        description="Use the SwiGLU layer of qwen3_layers",
    )
)

config.exclude_from_output("Qwen3ForTokenClassification", description="This product generates text only")
