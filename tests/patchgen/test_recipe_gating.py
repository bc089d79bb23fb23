"""The gating recipe: an attention's output times a sigmoid, and what a shared expert adds."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes import moe
from rocm_overlay.overlays.recipes.gating import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

ATTENTION = """
class Attention(nn.Module):
    def forward(self, hidden_states, shape):
        query, gate = torch.chunk(self.q_proj(hidden_states), 2, dim=-1)
        gate = gate.reshape(*shape, -1)

        out = self.attend(query).reshape(*shape, -1).contiguous()
        out = out * torch.sigmoid(gate)
        return self.o_proj(out)
"""
OURS = ATTENTION.replace(
    "gate = gate.reshape(*shape, -1)", "gate = gate if _amd and _amd.on.gating else gate.reshape(*shape, -1)"
).replace(
    "out = out * torch.sigmoid(gate)",
    "out = _amd.sigmoid_gate(out, gate) if _amd and _amd.on.gating else out * torch.sigmoid(gate)",
)
BLOCK = """
class Block(nn.Module):
    def forward(self, hidden):
        shared = self.shared_expert(hidden)
        out = self.experts(hidden)

        shared = F.sigmoid(self.shared_expert_gate(hidden)) * shared

        out = out + shared
        return out
"""
OURS_BLOCK = """
class Block(nn.Module):
    def forward(self, hidden):
        shared = self.shared_expert(hidden)
        out = self.experts(hidden)

        _amd_shared = None
        if _amd and _amd.on.gating:
            _amd_shared = _amd.shared_expert(out, shared, self.shared_expert_gate, hidden)
        shared = F.sigmoid(self.shared_expert_gate(hidden)) * shared if _amd_shared is None else None

        out = out + shared if _amd_shared is None else _amd_shared
        return out
"""


def test_a_gate_of_an_attentions_output() -> None:
    assert_edit(RECIPE, ATTENTION, OURS)


def test_a_shared_expert() -> None:
    assert_edit(RECIPE, BLOCK, OURS_BLOCK)


def test_lines_that_would_be_too_long_are_broken() -> None:
    name = "the_hidden_states_of_all_tokens_of_the_batch_as_rows"
    before, after = BLOCK.replace("hidden", name), OURS_BLOCK.replace("hidden", name)
    after = after.replace(
        f"_amd.shared_expert(out, shared, self.shared_expert_gate, {name})",
        f"_amd.shared_expert(\n                out, shared, self.shared_expert_gate, {name}\n            )",
    ).replace(
        f"shared = F.sigmoid(self.shared_expert_gate({name})) * shared if _amd_shared is None else None",
        f"shared = (F.sigmoid(self.shared_expert_gate({name})) * shared\n            if _amd_shared is None else None)",
    )
    assert_edit(RECIPE, before, after)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (ATTENTION, "torch.sigmoid(gate)", "torch.sigmoid(gate.float())"),
        (ATTENTION, "reshape(*shape, -1)\n\n", "reshape(*shape, 4)\n\n"),
        (BLOCK, "F.sigmoid(self", "F.silu(self"),
        (BLOCK, "out = out + shared", "out = out - shared"),
    ],
)
def test_other_statements_are_no_candidate(text: str, old: str, new: str) -> None:
    assert text.count(old) == 1
    assert_untouched(RECIPE, text.replace(old, new))


@pytest.mark.parametrize(
    ("text", "old", "new", "reason"),
    [
        (ATTENTION, "return self.o_proj(out)", "return self.o_proj(out), gate", "gate is used elsewhere"),
        (ATTENTION, "self.attend(query)", "self.attend(query, gate)", "gate is used elsewhere"),
        (BLOCK, "return out", "return out, shared", "shared is used elsewhere"),
        (BLOCK, "_gate(hidden)", "_gate(hidden + 1)", "hidden + 1 is not a plain name"),
    ],
)
def test_what_is_declined_and_why(text: str, old: str, new: str, reason: str) -> None:
    assert old in text
    assert_untouched(RECIPE, text.replace(old, new), reason)


def test_an_ending_that_the_moe_recipe_repeats_has_the_call() -> None:
    from tests.patchgen.test_recipe_moe import BLOCK, guarded

    shared = """        shared = self.shared_expert(hidden_states)
        shared = F.sigmoid(self.shared_expert_gate(hidden_states)) * shared

        final = final + shared
"""
    repeated = """                shared = self.shared_expert(hidden_states)
                _amd_shared = None
                if _amd.on.gating:
                    _amd_shared = _amd.shared_expert(final, shared, self.shared_expert_gate, hidden_states)
                if _amd_shared is None:
                    shared = F.sigmoid(self.shared_expert_gate(hidden_states)) * shared
                    final = final + shared
                else:
                    final = _amd_shared
"""
    before = BLOCK.replace("        final = final.reshape(", f"{shared}        final = final.reshape(")
    assert_edit(moe.RECIPE, before, guarded(before, tail=repeated))
