"""The rms_norm recipe: four numeric forms, and everything that only looks like them."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.rms_norm import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

LLAMA = '''
class XRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        """
        Equivalent to T5LayerNorm
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)
'''
GEMMA = '''
class Norm(nn.Module):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        """Normalise."""
        # fp32 first
        output = self._norm(x.float())
        # then the weight
        output = output * (1.0 + self.weight.float())
        return output.type_as(x)
'''
DECLINED = "the body is none of the four forms"


def test_llama_form() -> None:
    guard = """        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(hidden_states, self.weight, self.variance_epsilon)
"""
    first = "        input_dtype = hidden_states.dtype\n"
    result = assert_edit(RECIPE, LLAMA, LLAMA.replace(first, guard + first))
    assert result.outcomes[0].sites == (("XRMSNorm.forward", 15),)


def test_attribute_and_argument_names_are_read_off_the_body() -> None:
    before = LLAMA.replace("hidden_states", "x").replace("variance_epsilon", "eps").replace("self.weight", "self.scale")
    first = "        input_dtype = x.dtype\n"
    guard = "        if _amd and _amd.on.rms_norm:\n            return _amd.rms_norm(x, self.scale, self.eps)\n"
    assert_edit(RECIPE, before, before.replace(first, guard + first))


def test_gemma_form_goes_above_the_comment_and_below_the_docstring() -> None:
    guard = """        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(x, self.weight, self.eps, form="gemma")
"""
    assert_edit(RECIPE, GEMMA, GEMMA.replace("        # fp32 first\n", guard + "        # fp32 first\n"))


@pytest.mark.parametrize(
    "product",
    ["(self.weight * hidden_states)", "(self.weight.to(torch.float32) * hidden_states)"],
    ids=["olmo2", "helium"],
)
def test_fp32_weight_form(product: str) -> None:
    before = LLAMA.replace("self.weight * hidden_states.to(input_dtype)", f"{product}.to(input_dtype)")
    guard = """        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(hidden_states, self.weight, self.variance_epsilon, form="fp32_weight")
"""
    first = "        input_dtype = hidden_states.dtype\n"
    assert_edit(RECIPE, before, before.replace(first, guard + first))


T5 = """
class XLayerNorm(nn.Module):
    def forward(self, hidden_states):
        # no bias, no subtraction of the mean
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)

        # convert into half-precision if necessary
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            hidden_states = hidden_states.to(self.weight.dtype)

        return self.weight * hidden_states
"""


def test_t5_form() -> None:
    guard = """        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(hidden_states, self.weight, self.variance_epsilon, form="t5")
"""
    first = "        # no bias"
    assert_edit(RECIPE, T5, T5.replace(first, guard + first))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[torch.float16, torch.bfloat16]", "[torch.float16]"),
        ("hidden_states.to(torch.float32).pow", "hidden_states.pow"),
        ("return self.weight * hidden_states", "return self.weight + hidden_states"),
    ],
)
def test_t5_neighbours_are_no_candidates(old: str, new: str) -> None:
    assert old in T5
    assert_untouched(RECIPE, T5.replace(old, new))


@pytest.mark.parametrize(
    ("weight", "form"),
    [
        ("output = output * self.weight.float()\n        return output.type_as(x)", ', form="fp32_weight"'),
        ("return output * self.weight", ""),
    ],
    ids=["moshi", "llama4"],
)
def test_other_forms_with_a_helper(weight: str, form: str) -> None:
    before = GEMMA.replace("output = output * (1.0 + self.weight.float())\n        return output.type_as(x)", weight)
    if not form:
        before = before.replace("self._norm(x.float())", "self._norm(x.float()).type_as(x)")
    guard = f"""        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(x, self.weight, self.eps{form})
"""
    assert_edit(RECIPE, before, before.replace("        # fp32 first\n", guard + "        # fp32 first\n"))


def test_gemma3n_computes_its_product_in_one_statement() -> None:
    product = "output = self._norm(x.float()) * self.weight.float()"
    head, tail = GEMMA.split("        output = self._norm(x.float())\n")
    before = f"{head}        {product}\n        return output.type_as(x)\n"
    assert tail.endswith("return output.type_as(x)\n")
    guard = """        if _amd and _amd.on.rms_norm:
            return _amd.rms_norm(x, self.weight, self.eps, form="fp32_weight")
"""
    assert_edit(RECIPE, before, before.replace("        # fp32 first\n", guard + "        # fp32 first\n"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.weight * hidden_states.to(input_dtype)", "(self.weight * hidden_states).to(torch.float16)"),
        ("self.weight * hidden_states.to(input_dtype)", "self.weight.to(torch.float32) * hidden_states"),
        ("return self.weight *", "return (1 + self.weight) *"),
        (".pow(2).mean(-1, keepdim=True)", ".pow(2).mean(1, keepdim=True)"),
        ("torch.rsqrt(variance + self.variance_epsilon)", "torch.rsqrt(variance) + self.variance_epsilon"),
        ("hidden_states.to(torch.float32)", "hidden_states.to(torch.float64)"),
        # a residual in between
        ("        variance =", "        hidden_states = hidden_states + self.residual\n        variance ="),
        ("        return self.weight", "        hidden_states = hidden_states * self.m\n        return self.weight"),
    ],
)
def test_another_formula_is_declined(old: str, new: str) -> None:
    assert old in LLAMA
    assert_untouched(RECIPE, LLAMA.replace(old, new), DECLINED)


def test_a_gated_norm_is_declined() -> None:
    gated = LLAMA.replace("def forward(self, hidden_states):", "def forward(self, hidden_states, gate=None):")
    assert_untouched(RECIPE, gated, "forward takes (self, hidden_states, gate), expected (self, hidden_states)")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(1.0 + self.weight.float())", "(1.0 + self.weight)"),
        ("(1.0 + self.weight.float())", "(self.weight.float() - 1.0)"),
        ("type_as(x)", "type_as(output)"),
    ],
)
def test_gemma_neighbours_are_no_gemma(old: str, new: str) -> None:
    assert_untouched(RECIPE, GEMMA.replace(old, new).replace("class Norm", "class XRMSNorm"), DECLINED)


def test_a_gemma_forward_with_another_helper_is_declined() -> None:
    other = GEMMA.replace("x.pow(2).mean(-1, keepdim=True)", "x.var(-1, keepdim=True)")
    assert_untouched(RECIPE, other, DECLINED)
    assert_untouched(RECIPE, GEMMA.replace("def _norm(", "def _other("), DECLINED)
    assert_untouched(RECIPE, GEMMA.replace("_norm(self, x)", "_norm(self, x, scale=1)"), DECLINED)
    assert_untouched(RECIPE, GEMMA.replace("_norm(self, x)", "_norm(self, y)"), DECLINED)


def test_one_attribute_in_two_roles_is_declined() -> None:
    strange = LLAMA.replace("self.variance_epsilon", "self.weight")
    assert_untouched(RECIPE, strange, "weight and eps are the same attribute")


def test_frozen_batch_norm_is_not_even_a_candidate() -> None:
    assert_untouched(
        RECIPE,
        """
class XFrozenBatchNorm2d(nn.Module):
    def forward(self, x):
        weight = self.weight.reshape(1, -1, 1, 1)
        bias = self.bias.reshape(1, -1, 1, 1)
        running_var = self.running_var.reshape(1, -1, 1, 1)
        running_mean = self.running_mean.reshape(1, -1, 1, 1)
        epsilon = 1e-5
        scale = weight * (running_var + epsilon).rsqrt()
        bias = bias - running_mean * scale
        return x * scale + bias
""",
    )


def test_a_scripted_forward_is_declined() -> None:
    scripted = LLAMA.replace("    def forward", "    @torch.jit.script_if_tracing\n    def forward")
    assert_untouched(RECIPE, scripted, "TorchScript compiles this function")


def test_a_function_outside_a_class_is_no_candidate() -> None:
    lines = LLAMA.split("    def forward")[1]
    assert_untouched(RECIPE, "def forward" + lines.replace("\n    ", "\n"))
