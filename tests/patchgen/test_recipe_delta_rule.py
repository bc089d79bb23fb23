"""The delta_rule recipe: a convolution, a rule and a norm, each by a call that may give nothing."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.delta_rule import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

CONV = """
def update(hidden, state, weight, bias=None, activation=None):
    _, size, length = hidden.shape
    width = state.shape[-1]

    new = torch.cat([state, hidden], dim=-1).to(weight.dtype)
    state.copy_(new[:, :, -width:])
    out = F.conv1d(new, weight.unsqueeze(1), bias, padding=0, groups=size)
    out = F.silu(out[:, :, -length:])
    out = out.to(hidden.dtype)
    return out
"""
CHOSEN = """    out = out[:, :, -length:]
    if activation is not None:
        out = ACT2FN[activation](out)
    return out.to(hidden.dtype)
"""
CONV_GUARD = """    if _amd and _amd.on.delta_rule:
        _amd_step = _amd.causal_conv(hidden, state, weight, bias, {})
        if _amd_step is not None:
            return _amd_step
"""
FIRST = "    _, size, length"


def chosen(text: str) -> str:
    """The convolution of transformers 5, whose activation is an argument."""
    return text[: text.index("    out = F.silu(")] + CHOSEN


@pytest.mark.parametrize("named", [False, True])
def test_a_convolution(named: bool) -> None:
    before = chosen(CONV) if named else CONV
    guard = CONV_GUARD.format("activation" if named else '"silu"')
    assert_edit(RECIPE, before, before.replace(FIRST, guard + FIRST))


NORM = """
class Gated(nn.Module):
    def forward(self, x, gate=None):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        # Norm before gate
        x = x * torch.rsqrt(variance + self.eps)
        x = self.weight * x.to(dtype)
        x = x * F.silu(gate.to(torch.float32))

        return x.to(dtype)
"""
NORM_GUARD = """        if _amd and _amd.on.delta_rule:
            _amd_step = _amd.gated_norm(x, gate, self.weight, self.eps, {})
            if _amd_step is not None:
                return _amd_step
"""


@pytest.mark.parametrize(("activation", "word"), [("F.silu", '"silu"'), ("ACT2FN[self.activation]", "self.activation")])
def test_a_norm(activation: str, word: str) -> None:
    before = NORM.replace("F.silu", activation)
    assert_edit(RECIPE, before, before.replace("        dtype =", NORM_GUARD.format(word) + "        dtype ="))


UNIT = """
def unit(x, dim=-1, eps=1e-6):
    inv = torch.rsqrt((x * x).sum(dim=dim, keepdim=True) + eps)
    return x * inv


"""
EARLY = """def torch_delta_rule(query, key, value, g, beta, state, final, normed=False):
    dtype = query.dtype
    if normed:
        query = unit(query, dim=-1, eps=1e-6)
        key = unit(key, dim=-1, eps=1e-6)
    query, key, value, beta, g = [
        x.transpose(1, 2).contiguous().to(torch.float32) for x in (query, key, value, beta, g)
    ]

    batch, heads, length, size = key.shape
    columns = value.shape[-1]
    scale = 1 / (query.shape[-1] ** 0.5)
    query = query * scale

    out = torch.zeros(batch, heads, length, columns).to(value)
    last = torch.zeros(batch, heads, size, columns).to(value) if state is None else state.to(value)

    for i in range(length):
        q_t = query[:, :, i]
        k_t = key[:, :, i]
        v_t = value[:, :, i]
        g_t = g[:, :, i].exp().unsqueeze(-1).unsqueeze(-1)
        beta_t = beta[:, :, i].unsqueeze(-1)

        last = last * g_t
        memory = (last * k_t.unsqueeze(-1)).sum(dim=-2)
        delta = (v_t - memory) * beta_t
        last = last + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
        out[:, :, i] = (last * q_t.unsqueeze(-1)).sum(dim=-2)

    if not final:
        last = None
    out = out.transpose(1, 2).contiguous().to(dtype)
    return out, last


"""
LATE = """def torch_delta_rule(query, key, value, g, beta, state=None, final=False, normed=False, **kwargs):
    dtype = query.dtype
    batch, length, shared, size = key.shape
    heads, columns = value.shape[-2:]
    decay = g
    if shared != heads:
        query = query.repeat_interleave(heads // shared, dim=2)
        key = key.repeat_interleave(heads // shared, dim=2)
    query, key, value, beta, decay = [
        x.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        for x in (query, key, value, beta, decay)
    ]
    if normed:
        query = unit(query, dim=-1, eps=1e-6)
        key = unit(key, dim=-1, eps=1e-6)
    query = query / (query.shape[-1] ** 0.5)
    if state is None:
        shape = (batch, heads, size, columns)
        last = torch.zeros(shape, dtype=value.dtype, device=value.device)
    else:
        last = state.to(value)
    out = torch.zeros_like(value)
    for i in range(length):
        q_t, k_t, v_t = query[:, :, i], key[:, :, i], value[:, :, i]
        decay_t = decay[:, :, i].exp()[..., None, None]
        last = last * decay_t
        beta_t = beta[:, :, i].unsqueeze(-1)
        memory = (last * k_t.unsqueeze(-1)).sum(dim=-2)
        delta = (v_t - memory) * beta_t
        last = last + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
        out[:, :, i] = (last * q_t.unsqueeze(-1)).sum(dim=-2)
    last = None if not final else last
    out = out.transpose(1, 2).contiguous().to(dtype)
    return out, last


"""
EARLY_SITE = """class Layer(nn.Module):
    def forward(self, q, k, v, b, a, known, state, cache):
        beta = b.sigmoid()
        # If the model is loaded in fp16, without the .float() here, A might be -inf
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias)
        if self.heads // self.shared > 1:
            q = q.repeat_interleave(self.heads // self.shared, dim=2)
            k = k.repeat_interleave(self.heads // self.shared, dim=2)

        if not known:
            out, last = self.chunk(
                q, k, v, g=g, beta=beta, initial_state=None, output_final_state=cache is not None,
                use_qk_l2norm_in_kernel=True,
            )

        else:
            out, last = self.rule(
                q, k, v, g=g, beta=beta, initial_state=state, output_final_state=cache is not None,
                use_qk_l2norm_in_kernel=True,
            )
        return out, last
"""
OURS_EARLY = """class Layer(nn.Module):
    def forward(self, q, k, v, b, a, known, state, cache):
        _amd_delta = None
        if _amd and _amd.on.delta_rule and known:
            _amd_delta = _amd.gated_delta_rule(
                q, k, v, b, a, self.A_log, self.dt_bias, state,
                self.rule, torch_delta_rule, True,
            )
        beta = b.sigmoid() if _amd_delta is None else None
        # If the model is loaded in fp16, without the .float() here, A might be -inf
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias) if _amd_delta is None else None
        if _amd_delta is None and self.heads // self.shared > 1:
            q = q.repeat_interleave(self.heads // self.shared, dim=2)
            k = k.repeat_interleave(self.heads // self.shared, dim=2)

        if _amd_delta is not None:
            out, last = _amd_delta
        elif not known:
"""
_LATE_CALL = """(
                q, k, v, g=g, beta=beta, state=state, final=cache is not None, normed=True,
                cu=kwargs.pop("cu_seq_lens_q", None), **kwargs,
            )
"""
LATE_SITE = f"""class Layer(nn.Module):
    def forward(self, q, k, v, b, a, length, state, cache, **kwargs):
        beta = b.sigmoid()
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias)

        if state is not None and length == 1:
            out, last = torch_delta_rule{_LATE_CALL}        else:
            out, last = torch_chunk{_LATE_CALL}        return out, last
"""
OURS_LATE = """class Layer(nn.Module):
    def forward(self, q, k, v, b, a, length, state, cache, **kwargs):
        _amd_delta = None
        if _amd and _amd.on.delta_rule and state is not None and length == 1:
            _amd_delta = _amd.gated_delta_rule(
                q, k, v, b, a, self.A_log, self.dt_bias, state,
                torch_delta_rule, torch_delta_rule, False, kwargs,
            )
        beta = b.sigmoid() if _amd_delta is None else None
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias) if _amd_delta is None else None

        if _amd_delta is not None:
            out, last = _amd_delta
        elif state is not None and length == 1:
"""


def test_a_rule_that_brings_heads_to_unit_length_in_their_dtype() -> None:
    rest = EARLY_SITE[EARLY_SITE.index("            out, last = self.chunk") :]
    assert_edit(RECIPE, UNIT + EARLY + EARLY_SITE, UNIT + EARLY + OURS_EARLY + rest)


def test_a_rule_that_does_so_in_fp32() -> None:
    rest = LATE_SITE[LATE_SITE.index("            out, last = torch_delta_rule") :]
    assert_edit(RECIPE, UNIT + LATE + LATE_SITE, UNIT + LATE + OURS_LATE + rest)


def test_a_line_that_would_be_too_long_is_broken() -> None:
    long = "a" * 40
    text = (UNIT + LATE + LATE_SITE).replace("A_log", f"A_log_{long}")
    g = f"        g = (-self.A_log_{long}.float().exp() * F.softplus(a.float() + self.dt_bias)\n"
    rest = LATE_SITE[LATE_SITE.index("            out, last = torch_delta_rule") :]
    lines = [line.replace("A_log", f"A_log_{long}") for line in OURS_LATE.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("        g = "))
    lines[at] = f"{g}            if _amd_delta is None else None)"
    assert_edit(RECIPE, text, UNIT + LATE + "\n".join(lines) + "\n" + rest)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-self.A_log", "self.A_log"),
        ("beta = b.sigmoid()", "beta = 2 * b.sigmoid()"),
        ("length == 1", "length <= 1"),
        ("normed=True", "normed=False"),
    ],
)
def test_other_statements_are_no_candidate(old: str, new: str) -> None:
    assert old in LATE_SITE
    assert_untouched(RECIPE, UNIT + LATE + LATE_SITE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("padding=0", "padding=1"),
        ("new[:, :, -width:]", "new[:, :, :width]"),
        ("variance + self.eps", "variance - self.eps"),
        ("* F.silu(gate", "* F.gelu(gate"),
    ],
)
def test_other_functions_are_no_candidate(old: str, new: str) -> None:
    assert (CONV + NORM).count(old) == 1
    assert_untouched(RECIPE, (CONV if old in CONV else NORM).replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(v_t - memory) * beta_t", "v_t * beta_t", "no function in torch that we know"),
        ("+ eps)", "+ 2 * eps)", "no function in torch that we know"),
        ("query / (query.shape[-1] ** 0.5)", "query", "no function in torch that we know"),
        ("g, beta, state=None", "beta, g, state=None", "no function in torch that we know"),
        ("g=g, beta=beta", "beta=g, g=beta", "no function in torch that we know"),
        ("        return out, last", "        return out, last, beta", "beta is used later"),
    ],
)
def test_what_is_declined_and_why(old: str, new: str, reason: str) -> None:
    text = UNIT + LATE + LATE_SITE
    assert old in text
    assert_untouched(RECIPE, text.replace(old, new), reason)


def test_a_convolution_of_what_is_no_parameter_is_declined() -> None:
    text = CONV.replace(", bias=None", "").replace("bias, padding", "shift, padding")
    assert_untouched(RECIPE, text, "shift is no parameter")
