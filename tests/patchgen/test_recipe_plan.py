"""The plan recipe: a loop, the layers in it and their attention, all three of a known form or none of them edited."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.plan import RECIPE, canonical, program
from rocm_overlay.patchgen.engine import generate

from tests.patchgen.support import assert_edit, one, source
from tests.patchgen.test_recipe_rope import FULL as ROTATION

ATTENTION = '''
class Attention(nn.Module):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **kwargs):
        """Attend."""
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)

        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )

        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights
'''
LAYER = """
class Layer(nn.Module):
    def forward(self, hidden_states, attention_mask=None, past_key_values=None, position_embeddings=None, **kwargs):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states
"""
MODEL = """
class Model(nn.Module):
    def forward(self, hidden_states, causal_mask, position_embeddings, past_key_values=None, **kwargs):
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask[decoder_layer.attention_type],
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        return self.norm(hidden_states)
"""
FILE = "\n\n".join(part.strip("\n") for part in (ROTATION, ATTENTION, LAYER, MODEL))
STEPS = "keep input_layernorm @self_attn add keep post_attention_layernorm mlp add"


def after(text: str) -> str:
    text = text.replace(
        "        return attn_output, attn_weights\n",
        "        return attn_output, attn_weights\n\n"
        '    forward._amd_attention = apply_rotary_pos_emb, "head norms", "", forward\n',
    )
    text = text.replace(
        "        return hidden_states\n",
        f'        return hidden_states\n\n    forward._amd_decoder = "{STEPS}", forward\n',
    )
    return text.replace(
        "in self.layers[: self.config.num_hidden_layers]:",
        "in (_amd.planned(self, self.layers, self.config.num_hidden_layers) if _amd and _amd.on.plan\n"
        "            else self.layers[: self.config.num_hidden_layers]):",
    )


def test_the_loop_and_the_two_forwards_are_edited() -> None:
    assert_edit(RECIPE, FILE, after(FILE))


def test_a_loop_that_counts_says_so() -> None:
    stock = "for decoder_layer in self.layers[: self.config.num_hidden_layers]:"
    counted = FILE.replace(stock, "for i, x in enumerate(self.layers):")
    counted = counted.replace("= decoder_layer(", "= x(").replace("decoder_layer.attention_type", "i")
    wanted = after(counted).replace(
        "enumerate(self.layers)",
        "enumerate(_amd.planned(self, self.layers, each=True) if _amd and _amd.on.plan else self.layers)",
    )
    assert_edit(RECIPE, counted, wanted)


KEEPING = """
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            layer_outputs = decoder_layer(
                hidden_states,
                attention_mask=causal_mask[decoder_layer.attention_type],
                output_attentions=output_attentions,
                position_embeddings=position_embeddings,
            )
            hidden_states = layer_outputs[0]
            if output_attentions:
                all_self_attns += (layer_outputs[1],)
"""
TUPLE = """
        outputs = (hidden_states,)
        if output_attentions:
            outputs += (weights,)
        return outputs
"""
KEPT = (
    FILE[: FILE.index("        for decoder_layer")] + KEEPING.lstrip("\n") + "        return self.norm(hidden_states)\n"
)
KEPT = KEPT.replace("        return hidden_states\n", TUPLE.lstrip("\n"))
KEPT = KEPT.replace("position_embeddings=None, **kwargs):", "position_embeddings=None, output_attentions=False):")
KEPT = KEPT.replace(
    "            position_embeddings=position_embeddings,\n            **kwargs,\n",
    "            position_embeddings=position_embeddings,\n",
)


def test_a_loop_that_keeps_hidden_states_runs_through_its_layers_then() -> None:
    assert_edit(
        RECIPE,
        KEPT,
        after(KEPT)
        .replace(TUPLE, f'{TUPLE}\n    forward._amd_decoder = "{STEPS} tuple", forward\n')
        .replace(
            "in (_amd.planned(self, self.layers, self.config.num_hidden_layers) if _amd and _amd.on.plan\n"
            "            else self.layers[: self.config.num_hidden_layers]):",
            "in (\n"
            "            _amd.planned(self, self.layers, self.config.num_hidden_layers)\n"
            "            if _amd and _amd.on.plan and not output_hidden_states\n"
            "            else self.layers[: self.config.num_hidden_layers]\n"
            "        ):",
        ),
    )


def test_what_the_weights_are_asked_for_by_is_no_name() -> None:
    renamed = source(KEPT.replace("output_attentions", "more"))
    assert b'mlp add tuple", forward' in generate(renamed, "x.py", one(RECIPE)).overlay


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layer_outputs[1],)", "layer_outputs[2],)"),
        ("output_attentions", "use_cache"),  # which does not end a plan
        ("        if output_attentions:\n            outputs", "        if self.wanted:\n            outputs"),
        ("        if output_attentions:\n            outputs", "        if WANTED:\n            outputs"),
        ("hidden_states = layer_outputs[0]", "hidden_states = layer_outputs[0] * 2"),
        ("all_hidden_states += (hidden_states,)", "all_hidden_states += (hidden_states * 2,)"),
        ("output_attentions=output_attentions,\n                position", "position"),
        (
            "            if output_attentions:\n                all",
            "            if output_router_logits:\n                all",
        ),
        ("        if output_attentions:\n            outputs", "        if use_cache:\n            outputs"),
        ("outputs = (hidden_states,)", "outputs = (residual,)"),
    ],
)
def test_a_loop_that_keeps_something_else_is_left_alone(old: str, new: str) -> None:
    assert old in KEPT
    changed = source(KEPT.replace(old, new))
    assert generate(changed, "x.py", one(RECIPE)).overlay == changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hidden_states = self.mlp(hidden_states)\n", "hidden_states = self.mlp(hidden_states) * 2\n"),
        ("attention_mask=attention_mask,\n            past", "attention_mask=attention_mask + 1,\n            past"),
        ("        return hidden_states\n", "        return (hidden_states,)\n"),
        ("self.q_norm(self.q_proj(hidden_states).view(hidden_shape))", "self.q_proj(hidden_states).view(hidden_shape)"),
        ("scaling=self.scaling", "scaling=self.scaling * 2"),
        ("= self.o_proj(attn_output)\n", "= self.o_proj(attn_output * self.gate)\n"),
        ("past_key_values.update(key_states, value_states", "past_key_values.update(value_states, key_states"),
        (")\n        return self.norm", ")\n            self.seen += 1\n        return self.norm"),
        ("causal_mask[decoder_layer.attention_type]", "causal_mask[decoder_layer.index]"),
        ("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, -x1), dim=-1)"),
    ],
)  # fmt: skip
def test_one_statement_of_another_form_leaves_the_whole_file_alone(old: str, new: str) -> None:
    assert old in FILE
    changed = source(FILE.replace(old, new))
    result = generate(changed, "x.py", one(RECIPE))
    assert result.overlay == changed
    assert result.outcomes[0].declined


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        (
            "residual + hidden_states\n        residual",
            "residual + self.attn_dropout(hidden_states)\n        residual",
            STEPS.replace("attn add", "attn ?attn_dropout add"),
        ),
        (
            "residual + hidden_states\n        return",
            "residual + hidden_states * self.factor\n        return",
            STEPS.replace("mlp add", "mlp *factor add"),
        ),
        (
            "hidden_states = self.mlp(hidden_states)\n",
            "hidden_states, _ = self.block(hidden_states)\n",
            STEPS.replace("mlp", "block"),
        ),
    ],
)
def test_the_forms_of_a_layer(old: str, new: str, steps: str) -> None:
    forward = LAYER.split("nn.Module):\n")[1].replace(old, new)
    assert program(forward) == steps


CHOICE = """
        if self.self_attn.is_sliding:
            tables = local_tables
        else:
            tables = global_tables
"""


def test_a_layer_may_choose_the_tables_of_its_attention() -> None:
    forward = LAYER.split("nn.Module):\n")[1].replace(
        "position_embeddings=None", "global_tables=None, local_tables=None"
    )
    forward = forward.replace("=position_embeddings", "=tables").replace(
        "        hidden_states, _", f"{CHOICE}        hidden_states, _"
    )
    assert program(forward) == STEPS.replace("@", "is_sliding?local_tables:global_tables@")
    assert program(forward.replace("self.self_attn.is", "self.mlp.is")) is None
    assert program(forward.replace("= local_tables", "= residual")) is None
    assert program(forward.replace("attention_mask=attention_mask", "attention_mask=tables")) is None
    assert program(forward.replace("        tables = local", "        cosines = local")) is None


def test_names_and_layout_do_not_count_and_everything_else_does() -> None:
    first = "def forward(self, a, *, b: int = 1) -> int:\n    '''Add.'''\n    c: int = a + self.d(b)\n    return c\n"
    assert canonical(first) == canonical("def forward(self, x, *, y):\n    z = x + self.d(y)\n    return z\n")
    assert canonical(first) != canonical(first.replace("self.d", "self.e"))
    assert canonical(first) != canonical(first.replace("a + self.d(b)", "self.d(b) + a"))
