"""The experts recipe: calls of experts that are 3-D parameters, and the mark on loops that are known."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes import forms
from rocm_overlay.overlays.recipes.experts import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

GATED = """
@use_experts_implementation
class Experts(nn.Module):
    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        final = torch.zeros_like(hidden_states)
        with torch.no_grad():
            expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts + 1)
            expert_mask = expert_mask.permute(2, 1, 0)
            expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()

        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            if expert_idx == self.num_experts:
                continue
            top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[token_idx]
            gate, up = nn.functional.linear(current_state, self.gate_up_proj[expert_idx]).chunk(2, dim=-1)
            current = self.act_fn(gate) * up
            current = nn.functional.linear(current, self.down_proj[expert_idx])
            current = current * top_k_weights[token_idx, top_k_pos, None]
            final.index_add_(0, token_idx, current.to(final.dtype))

        return final
"""
CLAMPED = """
@use_experts_implementation(is_concatenated=False, is_transposed=True, has_bias=True)
class Experts(nn.Module):
    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate = gate.clamp(min=None, max=self.limit)
        up = up.clamp(min=-self.limit, max=self.limit)
        glu = gate * torch.sigmoid(gate * self.alpha)
        gated_output = (up + 1) * glu
        return gated_output

    def forward(self, hidden_states: torch.Tensor, router_indices=None, routing_weights=None) -> torch.Tensor:
        next_states = torch.zeros_like(hidden_states, dtype=hidden_states.dtype, device=hidden_states.device)
        with torch.no_grad():
            expert_mask = torch.nn.functional.one_hot(
                router_indices, num_classes=self.num_experts
            )
            expert_mask = expert_mask.permute(2, 1, 0)
            expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            if expert_idx == self.num_experts:
                continue
            top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[token_idx]
            gate_up = current_state @ self.gate_up_proj[expert_idx] + self.gate_up_proj_bias[expert_idx]
            gated_output = self._apply_gate(gate_up)
            out = gated_output @ self.down_proj[expert_idx] + self.down_proj_bias[expert_idx]
            weighted_output = out * routing_weights[token_idx, top_k_pos, None]
            next_states.index_add_(0, token_idx, weighted_output.to(hidden_states.dtype))
        return next_states
"""
BLOCK = """

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.experts = Experts(config)

    def forward(self, h, ids, w):
        {line}
        return h
"""
OURS = "_amd.stacked_experts(self.experts, h, ids, w) if _amd and _amd.on.experts else self.experts(h, ids, w)"


@pytest.mark.parametrize("experts", [GATED, CLAMPED], ids=["gated", "clamped"])
def test_a_call_becomes_a_conditional_expression(experts: str) -> None:
    before = experts + BLOCK.format(line="h = self.experts(h, ids, w)")
    assert_edit(RECIPE, before, experts + BLOCK.format(line=f"h = {OURS}"))


def test_methods_of_the_result_act_on_the_whole_choice() -> None:
    before = GATED + BLOCK.format(line="h = self.experts(h, ids, w).view(1)")
    two_lines = f"h = ({OURS.replace(' else ', chr(10) + '            else ')}).view(1)"
    assert_edit(RECIPE, before, GATED + BLOCK.format(line=two_lines))
    block = BLOCK.replace("ids", "i")
    before = GATED + block.format(line="h = self.experts(h, i, w).sum()")
    assert_edit(RECIPE, before, GATED + block.format(line=f"h = ({OURS.replace('ids', 'i')}).sum()"))


@pytest.mark.parametrize(
    "line",
    [
        "h = self.experts(h, ids)",
        "h = self.experts(h, ids, w=w)",
        "h = self.experts(h, *ids, w)",
        "h = self.experts(h, ids, w[0])",
        "h = self.experts(h, ids, w) + h",
        "h = h + self.experts(h, ids, w)",
        "h = self.other(h, ids, w)",
        "h = other.experts(h, ids, w)",
        "h = f(self.experts(h, ids, w))",
    ],
)
def test_no_candidate(line: str) -> None:
    assert_untouched(RECIPE, GATED + BLOCK.format(line=line))


CHANGES = [
    (GATED, "self.act_fn(gate) * up", "self.act_fn(up) * gate"),
    (GATED, "self.act_fn(gate) * up", "self.act_fn(gate)"),
    (GATED, "num_experts + 1", "num_experts + 2"),
    (GATED, "[token_idx, top_k_pos, None]", "[top_k_pos, token_idx, None]"),
    (GATED, "        return final", "        return final * 2"),
    (GATED, "        final = torch", "        hidden_states = hidden_states * 2\n        final = torch"),
    (GATED, "top_k_index: torch.Tensor,\n        top_k_weights", "top_k_weights: torch.Tensor,\n        top_k_index"),
    (GATED, "    def forward", "    def _apply_gate(self, both):\n        return both\n\n    def forward"),
    (CLAMPED, "max=self.limit", "max=7.0"),
    (CLAMPED, "(up + 1) * glu", "up * glu"),
    (CLAMPED, "gate_up[..., ::2], gate_up[..., 1::2]", "gate_up.chunk(2, dim=-1)"),
    (CLAMPED, "_apply_gate(self, gate_up: torch.Tensor)", "_other_gate(self, gate_up: torch.Tensor)"),
]


@pytest.mark.parametrize(("experts", "old", "new"), CHANGES)
def test_another_loop_is_neither_called_nor_marked(experts: str, old: str, new: str) -> None:
    assert old in experts
    changed = experts.replace(old, new)
    assert_untouched(
        RECIPE,
        changed + BLOCK.format(line="h = self.experts(h, ids, w)"),
        "the loop of Experts is not one that we know",
    )
    assert_untouched(forms.RECIPE, changed)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("self.experts = Experts(config)", "self.experts = Imported(config)", "the loop of Imported"),
        ("self.experts = Experts(config)", "self.experts = config.experts", "not to be seen"),
        ("        self.experts = Experts(config)\n", "", "not to be seen"),
        (
            "self.experts = Experts(config)",
            "self.experts = Experts(config) if config.moe else None",
            "not to be seen",
        ),
    ],
)
def test_experts_of_another_class_are_left_alone(old: str, new: str, reason: str) -> None:
    block = BLOCK.format(line="h = self.experts(h, ids, w)")
    assert old in block
    assert_untouched(RECIPE, GATED + block.replace(old, new), reason)


@pytest.mark.parametrize(("experts", "form"), [(GATED, "gated"), (CLAMPED, "clamped")])
def test_the_loop_is_marked(experts: str, form: str) -> None:
    assert_edit(forms.RECIPE, experts, f'{experts}\n    forward._amd_experts = "{form}"\n')
