"""Command lines: both forms, bad input before any work, JSON, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rocm_overlay.cli.app import run
from rocm_overlay.synth import cli

from .support import program, synth


def test_both_forms_mean_the_same() -> None:
    seed = cli.normalised([".parallel", "num_total_samples=5", "num_core_ops_range=[1,5]", "--num_worker=2"])
    assert seed == ["parallel", "--num-total-samples", "5", "--num-core-ops-range", "[1,5]", "--num-worker=2"]


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
    (["parallel", "model_name=openai", "llm_model=m"], "OPENAI_API_KEY"),
    (["parallel", "model_name=openai"], "No model"),
    (["parallel", "model_name=gemini", "llm_model=m"], "GEMINI_API_KEY"),
    (["parallel", "model_name=local", "llm_model=m", "base_url=ftp://x"], "not a web address"),
    (["parallel", "model_name=local", "llm_model=m", "prompts=none"], "no prompts 'none'"),
    (["fuzz", "target=everything"], "ops, kernelize, recipes, compile"),
    (["fuzz"], "target"),
    (["validate", "nowhere"], "does not exist"),
    (["nonsense"], "nonsense"),
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
