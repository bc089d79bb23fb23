"""Command lines: both forms, bad input before any work, JSON, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rocm_overlay.app import run
from rocm_overlay.synth import cli, commands
from rocm_overlay.synth.pipeline import Judge, Outcome
from rocm_overlay.synth.providers import Reply
from rocm_overlay.synth.sampler.plan import Plan
from rocm_overlay.synth.settings import Settings

from .support import program, synth


def test_both_forms_mean_the_same() -> None:
    seed = cli.normalised([".parallel", "num_total_samples=5", "num_core_ops_range=[1,5]", "--num_worker=2"])
    assert seed == ["parallel", "--num-total-samples", "5", "--num-core-ops-range", "[1,5]", "--num-worker=2"]


SEED = """
.single_debug
.parallel num_total_samples=1000
.parallel num_total_samples=5000 num_worker=20 model_name=gemini num_core_ops_range=[1,5] num_compound_ops_range=[0,4] num_supporting_ops_range=[2,10] p_value=0.25 output_dir=./generated_programs
.parallel num_total_samples=10000 num_core_ops_range=[3,8] num_compound_ops_range=[1,6] num_supporting_ops_range=[5,15] p_value=0.15 temperature=0.8
.parallel num_total_samples=10000 num_core_ops_range=[1,3] num_compound_ops_range=[0,2] num_supporting_ops_range=[2,6] p_value=0.4 temperature=0.3
.parallel num_total_samples=2000 p_value=0.1
.parallel num_total_samples=2000 p_value=0.3
.parallel num_total_samples=2000 p_value=0.5
"""  # noqa: E501 - command lines as they are written elsewhere


@pytest.mark.parametrize("line", SEED.strip().splitlines())
def test_command_lines_of_the_project_this_comes_from(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them word by word, the program's name apart; what is run in the end gets what the line says."""
    taken: list[Settings] = []

    def take(settings: Settings, *, fresh: bool = False) -> int:
        taken.append(settings)
        return 0

    monkeypatch.setattr(commands, "parallel", take)
    monkeypatch.setattr(commands, "single_debug", take)
    assert run(["synth", *line.split()]) == 0
    for name, value in (word.split("=") for word in line.split()[1:]):
        found = getattr(taken[0], name)
        shown = f"[{found[0]},{found[1]}]" if isinstance(found, tuple) else str(found)
        assert shown == value.removeprefix("./")


BAD = [
    (["parallel", "num_core_ops_range=[5,1]"], "0 <= low <= high"),
    (["parallel", "num_core_ops_range=[-1,2]"], "0 <= low <= high"),
    (["parallel", "num_core_ops_range=[1,2,3]"], "[low,high]"),
    (["parallel", "num_core_ops_range=many"], "[low,high]"),
    (["parallel", "num_supporting_ops_range=[2,1000]"], "<= 100"),
    (["parallel", "num_core_ops_range=0", "num_compound_ops_range=0", "num_supporting_ops_range=0"], "at least one"),
    (["parallel", "num_core_ops_range=[0,3]", "num_supporting_ops_range=[0,1]"], "at least one operator"),
    (["parallel", "p_value=1.5"], "from 0 to 1"),
    (["parallel", "p_value=nan"], "from 0 to 1"),
    (["parallel", "p_value=x"], "x"),
    (["parallel", "temperature=-1"], "from 0 to 2"),
    (["parallel", "num_total_samples=0"], "from 1"),
    (["parallel", "num_worker=0"], "from 1"),
    (["parallel", "max_retries=0"], "from 1"),
    (["parallel", "validation_timeout=0"], "from 0.1"),
    (["parallel", "model_name=oracle"], "offline, openai, gemini, local"),
    (["parallel", "compile_backend=nvcc"], "one of none"),
    (["parallel", "executor=dask"], "process, ray"),
    (["parallel", "num_workers=3"], "did you mean num_worker"),
    (["parallel", "model_name=openai"], "OPENAI_API_KEY"),
    (["parallel", "model_name=gemini"], "GEMINI_API_KEY"),
    (["parallel", "kernelbench_filter=maybe"], "one of off, exact, near"),
    (["parallel", "kernelbench_threshold=2"], "from 0.05 to 1"),
    (["parallel", "kernelbench_dir=nowhere"], "a folder that is there"),
    (["parallel", "operators_file=nowhere.toml"], "a file that is there"),
    (["parallel", "prompts_dir=nowhere"], "a folder that is there"),
    (["merge", "nowhere"], "is not a folder"),
    (["generate"], "did you mean `overlay synth parallel`?"),
    (["paralel"], "did you mean `overlay synth parallel`?"),
    (["parallel", "model_name=local", "llm_model=m", "base_url=ftp://x"], "not a web address"),
    (["parallel", "model_name=local", "llm_model=m", "prompts=none"], "no prompts 'none'"),
    (["fuzz", "target=everything"], "ops, kernelize, recipes, compile"),
    (["fuzz"], "target"),
    (["validate", "nowhere"], "does not exist"),
    (["nonsense"], "use one of fuzz, merge, parallel, single_debug, validate"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL", "GEMINI_API_KEY", "GOOGLE_API_KEY", "GEMINI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert run(["synth", *arguments, "--json"]) == 2
    answer = capsys.readouterr()
    assert said in answer.err
    assert json.loads(answer.out)["error"]["code"] == 2
    assert list(tmp_path.iterdir()) == []


PROMPTS = [
    ('system = "s"\nuser = "{{ coore }}"\n', "'coore' is undefined"),
    ('system = "s"\nuser = "{% for %}"\n', "cannot be rendered"),
    ('system = "s"\n', "lacks the text `system` or `user`"),
    ("system = s\n", "cannot be read"),
]


@pytest.mark.parametrize(("text", "said"), PROMPTS, ids=["variable", "template", "text", "toml"])
@pytest.mark.parametrize("where", ["file", "folder"])
def test_prompts_of_the_users_that_are_wrong(
    text: str,
    said: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text)
    chosen = ["prompts=mine.toml"] if where == "file" else ["prompts=mine", f"prompts_dir={tmp_path}"]
    assert run(["synth", "parallel", "model_name=local", "llm_model=m", *chosen]) == 2
    answer = capsys.readouterr()
    assert said in answer.err
    assert "mine.toml" in answer.err
    assert "reinstall" not in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_operators_of_the_users(tmp_path: Path) -> None:
    entry = '[[operator]]\nname = "torch.frac"\ncategory = "core"\nweight = 100000\ninputs = ["seq", "image", "vec"]\n'
    (tmp_path / "mine.toml").write_text(entry + 'call = "torch.frac({x})"\n')
    done = synth("single_debug", f"operators_file={tmp_path / 'mine.toml'}", "compile_backend=none", "seed=2", "--json")
    value = done.json()
    assert done.code == 0, done.err
    assert "torch.frac" in value["operators"]
    (tmp_path / "mine.toml").write_text('core_operators = ["nn.YourNewOperator"]\n')
    done = synth("single_debug", f"operators_file={tmp_path / 'mine.toml'}", "compile_backend=none")
    assert done.code == 0
    assert "cannot write nn.YourNewOperator" in done.err
    (tmp_path / "mine.toml").write_text(entry.replace("frac", "fracc") + 'call = "torch.frac({x})"\n')
    done = synth("single_debug", f"operators_file={tmp_path / 'mine.toml'}", "compile_backend=none")
    assert (done.code, "torch has no torch.fracc" in done.err) == (2, True)


def test_an_output_that_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run(["synth", "parallel", f"output_dir={tmp_path / 'file'}", "compile_backend=none"]) == 5
    assert "cannot be written" in capsys.readouterr().err


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(["synth", "single_debug"]) == 9
    assert "compile_backend=aot_eager" in capsys.readouterr().err


def test_a_key_in_the_dot_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rocm_overlay.synth.providers.base import find_key

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OPENAI_API_KEY=from-file\n")
    assert find_key(("OPENAI_API_KEY",), needed=True) == "from-file"
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert find_key(("OPENAI_API_KEY",), needed=True) == "from-environment"


def test_one_program_with_everything(tmp_path: Path) -> None:
    done = synth("single_debug", "seed=4", "compile_backend=aot_eager", "--json")
    value = done.json()
    assert (done.code, value["ok"], value["schema"]) == (0, True, "amd-overlay.synth.single_debug/1")
    assert value["answer"]["compile_seconds"] > 0
    assert f"class {value['name']}" in value["source"]
    assert set(value["attempt"]["requested"]) <= set(value["operators"])
    assert value["missing"] == []
    assert value["similarity"] < 0.8
    assert "core: " in done.err


def test_validate_reports_each_file(tmp_path: Path) -> None:
    (tmp_path / "SynthModel_Good.py").write_text(program(name="Good"))
    (tmp_path / "SynthModel_Wrong.py").write_text(program(name="Another"))
    (tmp_path / "SynthModel_Bad.py").write_text(program("return x @ x", name="Bad"))
    (tmp_path / "SynthModel_Evil.py").write_text("import os\n" + program(name="Evil"))
    (tmp_path / "SynthModel_Latin.py").write_bytes(b"# \xe9\n")
    done = synth("validate", tmp_path, "compile_backend=none", "--json")
    rows = {Path(row["path"]).stem.removeprefix("SynthModel_"): row for row in done.json()["programs"]}
    assert done.code == 1
    assert {name: row.get("category") for name, row in rows.items() if not row["ok"]} == {
        "Wrong": "structure",
        "Bad": "shape",
        "Evil": "policy",
        "Latin": "syntax",
    }
    assert "import os" in rows["Evil"]["message"]
    assert synth("validate", tmp_path / "SynthModel_Good.py", "compile_backend=none").code == 0


def test_a_program_that_is_not_valid_is_explained_to_who_asked_for_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attempt(judge: Judge, plan: Plan) -> Outcome:
        return Outcome(plan, Reply("not a program"), category="syntax", message="line 1: invalid syntax")

    monkeypatch.setattr(Judge, "attempt", attempt)
    assert run(["synth", "single_debug", "-q", "compile_backend=none"]) == 1
    out, err = capsys.readouterr()
    assert out == "not a program\n", "what was asked for as data"
    assert err == "overlay synth single_debug: syntax: line 1: invalid syntax\n  next: try another seed=N\n"
