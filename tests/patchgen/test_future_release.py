"""A release that is not out yet, played through: plausible changes of upstream's, made to a stock file of the newest
line. What still fits is edited, whatever is lost is reported, and nothing breaks.
"""

from __future__ import annotations

import ast
import re

import pytest
from rocm_overlay.install import catalog, statics
from rocm_overlay.patchgen import losses
from rocm_overlay.patchgen.engine import Result, generate

from tests.patchgen.support import LINES, all_recipes

PATH = "models/llama/modeling_llama.py"
LINE = LINES[-1]
VERSION = f"{LINE.split('.')[0]}.{int(LINE.split('.')[1]) + 1}.0.dev0"


def stock() -> str:
    (entry,) = [one for one in catalog.load(LINE).files if one.model == "llama"]
    return entry.stock_bytes().decode("utf-8")


def changed(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


def cache_renamed(text: str) -> str:
    """Every forward calls the cache something else, as 5.24 did."""
    return re.sub(r"(?<![\w.`\"])cache(?=\b(?!\())", "kv_store", text)


def norm_with_other_attributes(text: str) -> str:
    """RMSNorm calls its weight and its epsilon something else."""
    head, body = text.split("class LlamaRMSNorm", 1)
    norm, rest = body.split("\nclass ", 1)
    norm = norm.replace("self.weight", "self.gain").replace("self.variance_epsilon", "self.eps")
    return f"{head}class LlamaRMSNorm{norm}\nclass {rest}"


def new_decorator(text: str) -> str:
    """Attention's forward gets one more decorator."""
    at = '    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")\n    def forward(\n'
    return changed(text, at, f"    @record_inputs\n{at}")


def attention_split(text: str) -> str:
    """Projections and rotation become a method of their own; forward updates the cache and attends."""
    made = """        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
"""
    called = "        query_states, key_states, value_states = self.project(hidden_states, position_embeddings)\n"
    text = changed(text, made, called)
    method = (
        "    def project(self, hidden_states, position_embeddings):\n"
        "        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)\n"
        f"{made}        return query_states, key_states, value_states\n\n"
    )
    at = '    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")\n    def forward(\n'
    head, rest = text.split("class LlamaAttention", 1)
    return f"{head}class LlamaAttention{rest.replace(at, method + at, 1)}"


def mlp_moved(text: str) -> str:
    """The MLP comes from a file that all architectures share."""
    head, body = text.split("class LlamaMLP(nn.Module):", 1)
    rest = body.split("\ndef repeat_kv", 1)[1]
    text = f"{head}def repeat_kv{rest}"
    line = "from ...modeling_layers import "
    return changed(text, line, "from ...modeling_layers import GatedMLP as LlamaMLP\n" + line)


def played(text: str) -> tuple[Result, list[losses.Loss]]:
    result = generate(text.encode("utf-8"), PATH, all_recipes()).require_clean()
    ast.parse(result.overlay)
    assert statics.problems(result.stock, result.overlay) == []
    found = losses.find_losses(VERSION, [result])
    lines = text.splitlines()
    for one in found:
        assert one.release.startswith(f"{LINE}.")
        assert one.line is not None
        assert one.line <= len(lines)
        assert one.reason
    return result, list(found)


@pytest.mark.parametrize("change", [cache_renamed, norm_with_other_attributes, new_decorator])
def test_what_recipes_are_not_bound_to_loses_nothing(change: object) -> None:
    text = change(stock())  # type: ignore[operator]
    assert text != stock()
    _, found = played(text)
    assert found == []


def test_a_split_attention_loses_the_cache_and_says_where() -> None:
    result, found = played(attention_split(stock()))
    assert [(one.what, one.qualname) for one in found] == [
        ("plan", "LlamaAttention.forward"),
        ("plan", "LlamaDecoderLayer.forward"),
        ("plan", "LlamaModel.forward"),
        ("qk_rope", "LlamaAttention.forward"),
        ("qk_rope.cache", "LlamaAttention.forward"),
    ], "a plan of the whole model needs the cache, too"
    kept = {name for one in result.outcomes if one.recipe == "qkv" for name, _ in one.sites}
    assert kept == {"LlamaAttention.project"}, "q, k and v are still fused, where they are made now"
    declined = [no.reason for one in result.outcomes if one.recipe == "qk_rope" for no in one.declined]
    assert declined == ["neither head norms nor a cache update stand directly beside the rotation"]


def test_an_mlp_that_moved_away_is_a_loss_for_each_recipe() -> None:
    _, found = played(mlp_moved(stock()))
    assert {(one.what, one.qualname) for one in found} == {
        ("gated_mlp", "LlamaMLP.forward"),
        ("forms", "LlamaMLP.forward"),
    }
    assert all(one.reason.startswith("the function is gone") for one in found)


def test_all_of_them_at_once() -> None:
    text = stock()
    for change in (attention_split, mlp_moved, new_decorator, norm_with_other_attributes, cache_renamed):
        text = change(text)
    result, found = played(text)
    assert sorted(one.what for one in found) == ["forms", "gated_mlp", *["plan"] * 3, "qk_rope", "qk_rope.cache"]
    assert {one.recipe for one in result.outcomes if one.sites} >= {"rms_norm", "rope", "qkv", "attention", "linear"}
    told = list(losses.lines(found))
    assert any(line.startswith("lost ") for line in told)
    assert all(f"  {PATH}:" in line for line in told if not line.startswith("lost "))
