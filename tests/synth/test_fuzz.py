"""Fuzzing finds a planted fault in every target and makes it small; the code as it is has none."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.synth import fuzz, settings
from rocm_overlay.synth.fuzz.session import TARGETS, Session, save
from rocm_overlay.synth.fuzz.shrink import code_lines, shrink

from .support import ROOT, program

# Small programs, mostly of the compound operators that our code replaces.
SMALL = {"num_core_ops_range": "0", "num_compound_ops_range": "[1,4]", "num_supporting_ops_range": "[0,3]"}
PLANTED = {"ops": "ops", "kernelize": "kernelize", "recipes": "recipes", "compile": "compiled"}


def session(target: str, mutant: str = "", **more: Any) -> Session:
    made = settings.make(num_worker=1, compile_backend="aot_eager", seed=11, **{**SMALL, **more})
    prelude = (f"tests.synth.mutants:{mutant}",) if mutant else ()
    return Session(target, made, prelude, (str(ROOT), str(ROOT / "installer")))


@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_fault_is_found_and_made_small(target: str, tmp_path: Path) -> None:
    with session(target, PLANTED[target], num_total_samples=24) as mutant:
        findings = mutant.run(mutant.fresh_corpus(), print)
        assert findings, mutant.counts
        smallest = min(findings, key=lambda finding: finding.lines)
        assert smallest.lines <= 15, smallest.source
        assert not mutant.ask([smallest.source])[0]["ok"]
    path, test = save(smallest, tmp_path)
    compile(test.read_text(), str(test), "exec")
    # The regression test is about the fault, not about the program: without the fault it passes.
    assert fuzz.check(target, path) == ""


@pytest.mark.parametrize("target", TARGETS)
def test_the_code_as_it_is_has_no_finding(target: str) -> None:
    with session(target, num_total_samples=12) as real:
        assert real.run(real.fresh_corpus(), print) == []
    assert real.counts["touched"] >= 6, real.counts
    assert real.counts["invalid"] == 0, real.counts


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
def test_a_larger_corpus(target: str) -> None:
    wide = {"num_core_ops_range": "[1,5]", "num_compound_ops_range": "[0,4]", "num_supporting_ops_range": "[2,10]"}
    with session(target, num_total_samples=150, **wide) as real:
        assert real.run(real.fresh_corpus(), print) == []


def test_shrinking_works_on_any_program() -> None:
    """Without processes: 'fails' means that the program still calls erf on something."""
    body = "a = self.proj(x)\nb = torch.sin(a)\nc = torch.erf(b)\nd = c + a\nreturn d"
    shapes = {"locals": {name: [[2, 4, 8], "float32"] for name in "xabcd"}, "calls": {}}

    def still_fails(texts: list[str]) -> int | None:
        return next((index for index, text in enumerate(texts) if "torch.erf" in text), None)

    small = shrink(program(body), "SynthModel_Small", still_fails, lambda text: shapes)
    assert code_lines(small) == 4
    tree = ast.parse(small)
    assert "self.proj" not in small
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["get_inputs", "get_init_inputs"]
