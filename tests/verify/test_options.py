"""More of `overlay verify`: cases, seeded configurations, outputs saved elsewhere, bad checkpoints, the plugin."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.app import run
from rocm_overlay.errors import UsageError
from rocm_overlay.verify import api, plan, switches, target

from examples.tiny_models import save_tiny

QUICK: dict[str, Any] = {"python": sys.executable, "tiers": "torch", "toggles": ["all"], "max_new_tokens": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


def test_outputs_of_another_machine_are_compared_within_tolerance(model: Path, tmp_path: Path) -> None:
    """Save on one machine, compare on another; here both are this one. Other weights are refused."""
    saved = tmp_path / "stock.safetensors"
    first = api.verify(model, **QUICK, cases="prefill,greedy", save=saved)
    assert first.ok
    assert first.problems == []
    assert not list(tmp_path.glob("*.partial"))
    second = api.verify(model, **QUICK, cases="prefill,greedy", compare=saved)
    assert second.ok
    assert {case["case"] for run in second.content["runs"] for case in run["cases"]} == {"prefill", "greedy"}
    assert second.content["runs"][1]["cases"][0]["worst"]["kl"] < 1e-9
    other = save_tiny("llama", tmp_path / "other", rope_theta=1000.0)
    weights = target.read_model(other).path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({k: v + 0.01 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="was saved with weights") as raised:
        api.verify(other, **QUICK, cases="prefill", compare=saved)
    assert "--save" in raised.value.remedy, "nothing is wrong with the model"
    for said, path in (("cannot be read", saved), ("is not what", tmp_path / "foreign.safetensors")):
        save_file({"a": torch.zeros(1)}, path) if path != saved else path.write_bytes(saved.read_bytes()[:50])
        with pytest.raises(UsageError, match=said) as raised:
            api.verify(model, **QUICK, cases="prefill", compare=path)
        assert "--save" in raised.value.remedy


@pytest.mark.parametrize("option", ["--save", "--json-file"])
@pytest.mark.parametrize("place", ["none/file", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    option: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "--model", str(tmp_path / "no-model"), option, str(tmp_path / place)]) == 5
    said = capsys.readouterr().err
    assert option in said
    assert "no-model" not in said, "told first: a model takes minutes"


def test_a_configuration_alone_gets_seeded_weights_and_a_fault_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own processes: the fault deviates, and switch, op and layer are in the report."""
    config = tmp_path / "config.json"
    shutil.copy(model / "config.json", config)
    find = target.find_sources

    def faulty(*arguments: Any) -> list[target.Source]:
        old = b"_amd.rms_norm(hidden_states, self.weight,"
        found = find(*arguments)
        assert all(source.overlay.count(old) == 1 for source in found)
        new = b"_amd.rms_norm(hidden_states, self.weight * 1.01,"
        return [replace(source, overlay=source.overlay.replace(old, new)) for source in found]

    monkeypatch.setattr(target, "find_sources", faulty)
    outcome = api.verify(config, **QUICK, cases="prefill")
    off, on = outcome.content["runs"]
    assert (off["status"], on["status"]) == ("ok", "deviates")
    assert [item["functions"] for item in on["culprit"]["switches"]] == [["rms_norm"]]
    assert on["culprit"]["layer"]["path"] == "model.layers.0.input_layernorm"
    assert on["cases"][0]["worst"]["kl"] > 0
    (problem,) = outcome.problems
    assert "rms_norm" in problem
    assert "model.layers.0.input_layernorm" in problem


def test_nan_weights_are_reported_and_compared(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = api.verify(folder, **QUICK, cases="prefill")
    assert outcome.content["nan_weights"] == ["model.layers.1.mlp.up_proj.weight"]
    assert outcome.content["runs"][0]["status"] == "ok"


def test_a_checkpoint_without_one_of_its_shards(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "config.json", tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(UsageError, match=r"lacks 1 of its shards: model-00002-of-00002\.safetensors"):
        target.read_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        target.read_model(tmp_path)


@pytest.mark.parametrize("text", ["", "prefil", "prefill,nothing"])
def test_cases_that_do_not_exist(text: str) -> None:
    with pytest.raises(UsageError, match="no case"):
        plan.parse_cases(text)


def test_named_sets_of_cases() -> None:
    assert plan.parse_cases(None) == plan.CASES
    assert set(plan.parse_cases("all")) == {*plan.CASES, *plan.MORE}
    assert plan.parse_cases("padded, prefill, padded") == ("padded", "prefill")
    from rocm_overlay.verify.cases import CASES

    assert set(plan.parse_cases("all")) == set(CASES)


def test_a_reference_that_is_no_file(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        api.verify(model, compare=tmp_path / "absent.safetensors")


def test_points_and_functions_are_read_off_the_text() -> None:
    text = (
        b"class A:\n    def forward(self, x):\n        if _amd and _amd.on.new_op:\n            return _amd.new_op(x)\n"
        b"        y = (\n            _amd.other(self)\n            if _amd and _amd.on.other_switch\n"
        b"            else self(x)\n        )\n\n\ndef rotate(x):\n    if _amd and _amd.on.rope:\n"
        b"        return _amd.turn(x)\n"
    )
    assert switches.functions_of([text]) == {"new_op": ["new_op"], "other_switch": ["other"], "rope": ["turn"]}
    assert [(point.qualname, point.switch, point.is_method) for point in switches.points_of("m", text)] == [
        ("A.forward", "new_op", True),
        ("A.forward", "other_switch", True),
        ("rotate", "rope", False),
    ]


def test_the_pytest_plugin_passes_fails_and_skips(model: Path, tmp_path: Path) -> None:
    test = tmp_path / "test_ours.py"
    test.write_text(
        "def test_parity(overlay_parity):\n"
        f"    outcome = overlay_parity({str(model)!r}, python={sys.executable!r}, toggles=['all'], tiers='eager')\n"
        "    assert {c['case'] for c in outcome.content['runs'][1]['cases']} == {'prefill'}\n"
        "    assert outcome.content['runs'][1]['tier'] == 'torch'\n"
    )
    registered = {point.value for point in metadata.entry_points(group="pytest11")}
    name = "rocm_overlay.verify.pytest_plugin"
    plugin = [] if name in registered else ["-p", name]
    base = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *plugin, str(test)]
    skipped = subprocess.run(base, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 skipped" in skipped.stdout, skipped.stdout + skipped.stderr
    assert "--overlay-parity" in skipped.stdout
    wanted = [*base, "--overlay-parity", "--overlay-parity-cases", "prefill", "--overlay-parity-tiers", "torch"]
    passed = subprocess.run(wanted, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in passed.stdout, passed.stdout + passed.stderr


def test_loading_the_plugin_imports_no_torch() -> None:
    code = "import sys, rocm_overlay.verify.pytest_plugin as p; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_outcome_that_is_not_ok_says_what_and_why() -> None:
    run = {"id": "all/torch", "status": "crashed", "message": "status 41", "cases": [], "culprit": None}
    outcome = api.Outcome({"ok": False, "runs": [run]})
    assert not outcome.ok
    assert outcome.problems == ["all/torch crashed: status 41"]
