"""The operator lists, the plans, and the programs that the sampler writes (none is run here)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rocm_overlay.install.transaction.errors import BundleError
from rocm_overlay.synth.examine import Rejected, examine
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sampler.compose import compose
from rocm_overlay.synth.sampler.expressions import evaluate, evaluate_shape
from rocm_overlay.synth.sampler.plan import Counts, class_name, derive, sample
from rocm_overlay.synth.sandbox import policy

LISTS = catalogue.load()


def test_the_lists_are_long_and_name_everything_once() -> None:
    names = [one.name for category in LISTS.operators.values() for one in category]
    assert len(names) == len(set(names))
    assert sum(len(LISTS.operators[kind]) for kind in ("core", "compound", "supporting")) >= 250
    used = {helper for category in LISTS.operators.values() for one in category for helper in one.uses}
    needed = {need for helper in LISTS.helpers.values() for need in helper.needs}
    assert used | needed == set(LISTS.helpers)


@pytest.mark.parametrize("name", sorted(LISTS.helpers))
def test_helpers_keep_the_policy(name: str) -> None:
    assert policy.violations(ast.parse(LISTS.helpers[name].code)) == []


def test_transformer_operators_weigh_most() -> None:
    heaviest = {one.name for one in LISTS.operators["compound"] if one.weight >= 4}
    assert {"LlamaRMSNorm", "RopeGQAttention", "LlamaMLP", "DecoderLayer", "apply_rotary_pos_emb"} <= heaviest


def test_expressions() -> None:
    assert evaluate("c // 2 + 1", {"c": 9}) == 5
    assert evaluate("d % n == 0", {"d": 8, "n": 3}) is False
    assert evaluate_shape("..., o", (2, 4, 8), {"o": 3}) == (2, 4, 3)
    assert evaluate_shape("b, c * 2, ...", (2, 4, 8, 8), {"b": 2, "c": 4}) == (2, 8, 8, 8)
    with pytest.raises(ValueError, match="not an expression"):
        evaluate("__import__('os')", {})


def test_a_broken_list_is_named(tmp_path: Path) -> None:
    for name in (*catalogue.CATEGORIES, "helpers"):
        (tmp_path / f"{name}.toml").write_text("")
    (tmp_path / "core.toml").write_text('[[operator]]\nname = "nn.X"\ninputs = ["cube"]\ninit = "nn.X()"\n')
    with pytest.raises(BundleError, match=r"core\.toml: operator nn\.X: inputs and output"):
        catalogue.load(tmp_path)


def test_p_and_ranges_decide_the_counts() -> None:
    fixed = sample(LISTS, Counts((2, 2), (1, 1), (3, 3)), 1)
    assert (len(fixed.core), len(fixed.compound), len(fixed.supporting)) == (2, 1, 3)

    def size(p: float) -> int:
        return sum(len(sample(LISTS, Counts((0, 9), (0, 9), (1, 9), p), seed).operators) for seed in range(100))

    assert size(1.0) == 100
    assert size(0.0) == 2700
    assert size(0.5) < size(0.2)


def test_one_seed_one_program() -> None:
    first, again = (compose(sample(LISTS, Counts(), 7), LISTS) for _ in range(2))
    assert first == again
    assert derive(0, 1) != derive(0, 2) != derive(1, 1)


def test_what_is_asked_for_is_nearly_always_there() -> None:
    asked = missing = 0
    seen = set()
    for slot in range(300):
        plan = sample(LISTS, Counts(), derive(3, slot))
        made = compose(plan, LISTS)
        asked += len(plan.operators)
        missing += len({one.name for one in plan.operators} - set(made.operators))
        seen |= set(made.operators)
        try:
            assert examine(made.source).name == made.name
        except Rejected as error:
            assert error.category == "quality"
        assert f"class {made.name}(nn.Module)" in made.source
    assert missing / asked < 0.1
    assert len(seen) >= 250


def test_long_names_are_cut_and_stay_different() -> None:
    long = class_name(["nn.Linear"] * 40)
    assert len(long) < 110
    assert long != class_name(["nn.Linear"] * 41)
    assert class_name(["nn.Conv2d", "F.relu", "torch.mean.tokens"]) == "SynthModel_Conv2d_relu_mean_tokens"
