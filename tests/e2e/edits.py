"""Edits of transformers 4.53.2's gemma as robot-policy teams make them: whole texts out of the stock one.

Each edit adds an argument that does something, so that an overlay which loses the edit computes another thing.
"""

from __future__ import annotations


def _put(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, (text.count(old), old)
        text = text.replace(old, new)
    return text


# long: one change after the other
def adaptive_norm(stock: str) -> str:
    """A norm that takes a condition and returns a gate, a gated residual, and a cache that may be read only."""
    return _put(
        stock,
        (
            "    def __init__(self, dim: int, eps: float = 1e-6):\n        super().__init__()\n        self.eps = eps\n"
            "        self.weight = nn.Parameter(torch.zeros(dim))\n",
            "    def __init__(self, dim: int, eps: float = 1e-6, cond_dim: Optional[int] = None):\n"
            "        super().__init__()\n        self.eps = eps\n"
            "        self.weight = nn.Parameter(torch.zeros(dim))\n"
            "        self.cond = nn.Linear(cond_dim, 2 * dim) if cond_dim else None\n",
        ),
        (
            "    def forward(self, x):\n        output = self._norm(x.float())\n",
            "    def forward(self, x, cond=None):\n        output = self._norm(x.float())\n",
        ),
        (
            "        output = output * (1.0 + self.weight.float())\n        return output.type_as(x)\n",
            "        output = output * (1.0 + self.weight.float())\n"
            "        if cond is None or self.cond is None:\n            return output.type_as(x), None\n"
            "        scale, gate = self.cond(cond).unsqueeze(1).chunk(2, dim=-1)\n"
            "        return (output * (1.0 + scale.float())).type_as(x), gate\n",
        ),
        (
            "class GemmaDecoderLayer(",
            "def gated_residual(residual, hidden_states, gate):\n"
            "    return residual + (hidden_states if gate is None else hidden_states * gate)\n\n\n"
            "class GemmaDecoderLayer(",
        ),
        (
            "        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)\n"
            "        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)\n",
            '        cond_dim = getattr(config, "cond_dim", None)\n'
            "        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps, cond_dim)\n"
            "        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps, cond_dim)\n",
        ),
        (
            "# necessary, but kept here for BC\n",
            "# necessary, but kept here for BC\n        adarms_cond: Optional[torch.Tensor] = None,\n",
        ),
        (
            "        hidden_states = self.input_layernorm(hidden_states)\n",
            "        hidden_states, gate = self.input_layernorm(hidden_states, adarms_cond)\n",
        ),
        (
            "        hidden_states = residual + hidden_states\n\n        # Fully Connected\n",
            "        hidden_states = gated_residual(residual, hidden_states, gate)\n\n        # Fully Connected\n",
        ),
        (
            "        hidden_states = self.post_attention_layernorm(hidden_states)\n"
            "        hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states\n",
            "        hidden_states, gate = self.post_attention_layernorm(hidden_states, adarms_cond)\n"
            "        hidden_states = self.mlp(hidden_states)\n"
            "        hidden_states = gated_residual(residual, hidden_states, gate)\n",
        ),
        ("        hidden_states = self.norm(hidden_states)\n", "        hidden_states, _ = self.norm(hidden_states)\n"),
        (
            "            key_states, value_states = past_key_value.update(key_states, value_states, self.layer_idx, "
            "cache_kwargs)\n",
            '            if kwargs.pop("read_only_cache", False):\n'
            "                past_key_value = copy.deepcopy(past_key_value)\n"
            "            key_states, value_states = past_key_value.update(key_states, value_states, self.layer_idx, "
            "cache_kwargs)\n",
        ),
        (
            "from typing import Callable, Optional, Union\n",
            "import copy\nfrom typing import Callable, Optional, Union\n",
        ),
    )


def attention_bias(stock: str) -> str:
    """An attention that adds a learnt bias to its queries where an argument asks for it."""
    return _put(
        stock,
        (
            "        self.is_causal = True\n\n        self.q_proj",
            "        self.is_causal = True\n        self.query_bias = nn.Parameter(torch.ones(self.head_dim))\n\n"
            "        self.q_proj",
        ),
        (
            "        cos, sin = position_embeddings\n        query_states, key_states = apply",
            '        if kwargs.pop("adarms_cond", None) is not None:\n'
            "            query_states = query_states + self.query_bias\n"
            "        cos, sin = position_embeddings\n        query_states, key_states = apply",
        ),
    )


def scaled_mlp(stock: str) -> str:
    """An MLP with a scale of its own, which an argument switches on."""
    return _put(
        stock,
        (
            "    def forward(self, x):\n        down_proj = self.down_proj(",
            "    def forward(self, x, cond=None):\n"
            "        if cond is not None:\n            x = x * (1.0 + cond.mean())\n"
            "        down_proj = self.down_proj(",
        ),
        (
            "# necessary, but kept here for BC\n",
            "# necessary, but kept here for BC\n        adarms_cond: Optional[torch.Tensor] = None,\n",
        ),
        (
            "        hidden_states = self.mlp(hidden_states)\n",
            "        hidden_states = self.mlp(hidden_states, adarms_cond)\n",
        ),
    )
