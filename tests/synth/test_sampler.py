"""The operator lists, the plans, and the programs that the sampler writes (none is run here)."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rocm_overlay.errors import BundleError, UsageError
from rocm_overlay.synth import settings
from rocm_overlay.synth.examine import examine
from rocm_overlay.synth.pipeline import plan_for
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sampler.compose import compose
from rocm_overlay.synth.sampler.expressions import evaluate, evaluate_shape
from rocm_overlay.synth.sampler.plan import Counts, class_name, derive, sample
from rocm_overlay.synth.sandbox import labels, policy

LISTS = catalogue.load()


def test_the_lists_are_long_and_name_everything_once() -> None:
    names = [one.name for category in LISTS.operators.values() for one in category]
    assert len(names) == len(set(names))
    assert sum(len(LISTS.operators[kind]) for kind in ("core", "compound", "supporting")) >= 250
    forms = [form for category in LISTS.operators.values() for one in category for form in one.forms]
    used = {helper for form in forms for helper in form.uses}
    needed = {need for helper in LISTS.helpers.values() for need in helper.needs}
    assert used | needed == set(LISTS.helpers)


@pytest.mark.parametrize("name", sorted(LISTS.helpers))
def test_helpers_keep_the_policy(name: str) -> None:
    assert policy.violations(ast.parse(LISTS.helpers[name].code)) == []


def test_transformer_operators_weigh_most() -> None:
    heaviest = {one.name for one in LISTS.operators["compound"] if one.weight >= 4}
    assert {"LlamaRMSNorm", "RopeGQAttention", "GatedMLP", "DecoderLayer", "apply_rotary_pos_emb"} <= heaviest


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


def test_every_name_is_one_of_torch() -> None:
    """A language model is asked for these names: what torch does not have, no program can call."""
    names = [one.name for kind in ("core", "supporting") for one in LISTS.operators[kind]]
    assert [name for name in names if labels.resolved(name) is None] == []
    assert len(names) == len(set(names))
    written = {*LISTS.helpers}
    assert [name for name in LISTS.names("compound") if name not in written] == []


RANGE = st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))


@given(
    core=RANGE, compound=RANGE, supporting=RANGE, p=st.sampled_from([0.0, 0.15, 0.5, 1.0]), seed=st.integers(0, 10**6)
)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ranges_hold_and_every_planned_operator_is_written(
    core: tuple[int, int], compound: tuple[int, int], supporting: tuple[int, int], p: float, seed: int
) -> None:
    if core[0] + compound[0] + supporting[0] == 0:
        core = (1, max(core[1], 1))
    ranges: dict[str, tuple[int, int]] = {"core": core, "compound": compound, "supporting": supporting}
    asked: dict[str, Any] = {f"num_{kind}_ops_range": one for kind, one in ranges.items()}
    made = settings.make(p_value=p, seed=seed, **asked)
    plan = plan_for(LISTS, made, 0)
    for kind, bounds in ranges.items():
        assert bounds[0] <= len(getattr(plan, kind)) <= bounds[1]
    written = compose(plan, LISTS)
    assert Counter(written.operators) == Counter(one.name for one in plan.operators)
    assert examine(written.source, written.name).name == written.name


def test_programs_have_the_form_of_real_ones() -> None:
    """Of 200: classes of their own or loops, arguments of the constructor, branches, several inputs, few bridges."""
    made = settings.make(seed=3)
    programs = [compose(plan_for(LISTS, made, slot), LISTS) for slot in range(200)]
    assert len({name for one in programs for name in one.operators}) >= 230
    bridges = sum(one.bridges for one in programs)
    assert bridges / (bridges + sum(len(one.operators) for one in programs)) <= 0.08
    own = sum("Block" in one.source for one in programs)
    loops = sum("for block in self." in one.source or "for _ in range(self." in one.source for one in programs)
    assert own >= 0.4 * len(programs)
    assert loops >= 0.15 * len(programs)
    assert sum("return [], {}" not in one.source for one in programs) >= 0.4 * len(programs)
    assert sum("if self.use_" in one.source for one in programs) >= 0.05 * len(programs)
    assert sum("nn.Sequential(" in one.source for one in programs) >= 0.2 * len(programs)
    assert sum("def forward(self, x, y1" in one.source.split("class SynthModel")[1] for one in programs) >= 20
    sized = sum(".view(" in one.source or ".reshape(" in one.source for one in programs)
    literal = sum(1 for one in programs for line in _main(one.source) if ".view(1" in line or ".view(2" in line)
    assert sized >= literal
    assert literal <= 0.05 * len(programs)


def _main(source: str) -> list[str]:
    return source.split("class SynthModel")[1].splitlines()


NEVER = """
[[operator]]
name = "nn.Tanh"
inputs = ["seq"]
when = ["d == 1000"]
init = "nn.Tanh()"
"""


def test_a_plan_of_what_cannot_meet_is_left_before_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(NEVER)
    lists = catalogue.load(extra=tmp_path / "mine.toml")
    only = catalogue.Catalogue({**lists.operators, "core": lists.operators["core"][-1:]}, lists.helpers)
    made = settings.make(num_core_ops_range="1", num_compound_ops_range="0", num_supporting_ops_range="0")
    with pytest.raises(UsageError, match=r"None of 50 draws gave operators that fit together.*no place for nn\.Tanh"):
        plan_for(only, made, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[operator]\n", "cannot be read"),
        ('[[operator]]\nname = "nn.X"\ninputs = ["cube"]\ninit = "nn.X()"\n', "inputs and output must be of"),
        ('[[operator]]\nname = "nn.X"\nsize = 3\n', "unknown keys size"),
        ("[[operator]]\nweight = 3\n", "it has no name"),
        ('[[operator]]\nname = "nn.X"\ncategory = "odd"\n', "category is 'odd'"),
        ('[[operator]]\nname = "nn.X"\ninputs = ["seq"]\ninit = "nn.X({q})"\n', "KeyError: 'q'"),
        ('[[operator]]\nname = "nn.X"\ninputs = ["seq"]\ninit = "nn.X()"\nwhen = ["d ** 2"]\n', "not an expression"),
        ('[[operator]]\nname = "nn.X"\ninputs = ["seq"]\ninit = "nn.X()"\nuses = ["Y"]\n', "unknown helper of Y"),
        ('[[helper]]\nname = "Y"\n', "lacks 'code'"),
        ('core_operator = ["nn.X"]\n', "unknown keys core_operator"),
    ],
)
def test_a_broken_file_of_the_users_is_a_wrong_use(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        catalogue.load(extra=tmp_path / "mine.toml")
    assert said in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_names_alone_are_for_language_models(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('core_operators = ["nn.Conv2d", "nn.YourNewOperator"]\n')
    lists = catalogue.load(extra=tmp_path / "mine.toml")
    assert "nn.YourNewOperator" in lists.names("core")
    assert "nn.YourNewOperator" not in lists.written().names("core")


def test_long_names_are_cut_and_stay_different() -> None:
    long = class_name(["nn.Linear"] * 40)
    assert len(long) < 110
    assert long != class_name(["nn.Linear"] * 41)
    assert class_name(["nn.Conv2d", "F.relu", "torch.Tensor.expand"]) == "SynthModel_Conv2d_relu_expand"
