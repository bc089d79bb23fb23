"""The moe recipe: three shapes of a loop over experts, and the endings that can be repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rocm_overlay.overlays.recipes.moe import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

BLOCK = """
class Block(nn.Module):
    def forward(self, hidden_states):
        batch, length, size = hidden_states.shape
        hidden_states = hidden_states.view(-1, size)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        # we cast back to the input dtype
        routing_weights = routing_weights.to(hidden_states.dtype)
        final = torch.zeros((batch * length, size), dtype=hidden_states.dtype, device=hidden_states.device)
        expert_mask = torch.nn.functional.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_layer = self.experts[expert_idx]
            idx, top_x = torch.where(expert_mask[expert_idx].squeeze(0))
            current_state = hidden_states[None, top_x].reshape(-1, size)
            current = expert_layer(current_state) * routing_weights[top_x, idx, None]
            final.index_add_(0, top_x, current.to(hidden_states.dtype))
        final = final.reshape(batch, length, size)
        return final, router_logits
"""
FIRST = "        routing_weights = F.softmax("
GUARD = """        if _amd and _amd.on.moe:
            _amd_moe = _amd.softmax_moe(self.experts, hidden_states, router_logits, self.top_k, {})
            if _amd_moe is not None:
                final = _amd_moe
{}                final = final.reshape(batch, length, size)
                return final, router_logits
"""
RENORMALISE = "        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)\n"


def guarded(text: str, renormalise: str = "True", tail: str = "") -> str:
    return text.replace(FIRST, GUARD.format(renormalise, tail) + FIRST)


def test_a_softmax_routed_block() -> None:
    assert_edit(RECIPE, BLOCK, guarded(BLOCK))


def test_a_block_that_is_asked_whether_to_renormalise() -> None:
    before = BLOCK.replace(RENORMALISE, f"        if self.norm_topk_prob:  # the only difference\n    {RENORMALISE}")
    assert_edit(RECIPE, before, guarded(before, "self.norm_topk_prob"))


def test_a_shared_expert_is_repeated_with_the_ending() -> None:
    extra = "        shared = self.shared_expert(hidden_states)\n        final = final + shared\n"
    before = BLOCK.replace("        final = final.reshape", extra + "        final = final.reshape")
    tail = "".join(f"        {line}\n" for line in extra.splitlines())
    assert_edit(RECIPE, before, guarded(before, tail=tail))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (RENORMALISE, ""),
        ("F.softmax(router_logits, dim=1", "F.softmax(router_logits * 2, dim=0"),
        ("* routing_weights[top_x, idx, None]", "* routing_weights[idx, top_x, None]"),
        ("self.experts[expert_idx]", "self.experts[expert_idx + 1]"),
        ("final.index_add_(0, top_x", "final.index_copy_(0, top_x"),
        ("routing_weights.to(hidden_states.dtype)", "routing_weights.to(torch.float)"),
    ],
)
def test_another_loop_is_no_candidate(old: str, new: str) -> None:
    assert old in BLOCK
    assert_untouched(RECIPE, BLOCK.replace(old, new))


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("return final, routing_weights", "reads routing_weights, which is left behind"),
        ("return final, expert_mask", "reads expert_mask"),
        ("self.seen = 1", "the method does not end in a return"),
        ("return (\n            final\n        )", "is not one simple statement"),
    ],
)
def test_an_ending_that_cannot_be_repeated(ending: str, reason: str) -> None:
    assert_untouched(RECIPE, BLOCK.replace("return final, router_logits", ending), reason)


LOOP = """
class Moe(nn.Module):
    def moe(self, hidden_states, topk_indices, topk_weights):
        final = torch.zeros_like(hidden_states, dtype=topk_weights.dtype)
        mask = torch.nn.functional.one_hot(topk_indices, num_classes=len(self.experts))
        mask = mask.permute(2, 0, 1)
        for expert_idx in range(len(self.experts)):
            expert = self.experts[expert_idx]
            own = mask[expert_idx]
            token_indices, weight_indices = torch.where(own)
            if token_indices.numel() > 0:
                weights = topk_weights[token_indices, weight_indices]
                states = hidden_states[token_indices]
                output = expert(states)
                weighted = output * weights.unsqueeze(-1)
                final.index_add_(0, token_indices, weighted)
        return final.type(hidden_states.dtype)
"""
EARLY = """        if _amd and _amd.on.moe:
            _amd_moe = _amd.{}
            if _amd_moe is not None:
                return _amd_moe
"""


def test_a_method_that_only_loops() -> None:
    first = "        final = torch.zeros_like"
    call = EARLY.format("moe_experts(self.experts, hidden_states, topk_indices, topk_weights)")
    assert_edit(RECIPE, LOOP, LOOP.replace(first, call + first))
    assert_untouched(RECIPE, LOOP.replace("return final.type(hidden_states.dtype)", "return final"))


def clamped() -> str:
    """gpt_oss's experts, read from the installed transformers: eighty lines that a copy would only repeat."""
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    text = Path(modeling.__file__).read_text(encoding="utf-8")
    found = re.search(r"\nclass GptOssExperts\(nn\.Module\):.*?(?=\n\nclass )", text, re.DOTALL)
    assert found is not None
    return re.sub(r'"""\n        When training.*?"""\n', '"""Experts."""\n', found.group(), flags=re.DOTALL)


def test_experts_with_a_clamped_gate() -> None:
    text = clamped()
    if "use_experts_implementation" in text or "batch_size = hidden_states.shape[0]" not in text:
        pytest.skip("the installed transformers writes these experts in another way")
    first = "        batch_size = hidden_states.shape[0]\n"
    call = EARLY.format("clamped_experts(self, hidden_states, router_indices, routing_weights)")
    assert_edit(RECIPE, text, text.replace(first, call + first))
    neighbours = (
        ("::2]", "::3]"),
        ("(up + 1)", "(up + 2)"),
        ("max=self.limit", "max=7.0"),
        (".sum(dim=0)", ".mean(dim=0)"),
    )
    for old, new in neighbours:
        assert old in text
        assert_untouched(RECIPE, text.replace(old, new))
