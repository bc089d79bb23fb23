"""What qualify captures: every kind of site, on every kind of cache; whatever is not captured is named."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.errors import UsageError
from rocm_overlay.verify.qualify import capture, child, command, steps
from rocm_overlay.verify.qualify.calls import Call, Weights
from rocm_overlay.verify.qualify.codec import Unsaveable, decode, encode, float_tensors, positions
from rocm_overlay.verify.qualify.runs import runs_of
from rocm_overlay.verify.qualify.session import Session
from rocm_overlay.verify.switches import needs_of, points_of
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from examples.tiny_models import build, tiny_config

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ("qwen3", "gemma3", "mixtral", "bert", "whisper", "clip")
"""Head norms and a plan, two windows, experts, an encoder, an encoder-decoder, images."""


def surveyed(python: str, *arguments: str) -> str:
    """What tests.verify.survey says in a process of its own."""
    command = [python, "-W", "ignore", "-m", "tests.verify.survey", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def models_of(told: str) -> list[str]:
    """The models that a survey has a line for."""
    return [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]


def test_no_place_of_sampled_models_is_lost_and_every_call_can_be_made_again() -> None:
    assert models_of(surveyed(sys.executable, *SAMPLE)) == list(SAMPLE)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("release", ["4.53.3", "4.57.6", "5.23.0", "5.24.0"])
def test_no_place_of_any_curated_model_is_lost_and_its_tests_pass(
    release: str, python_with: Callable[[str], str]
) -> None:
    told = surveyed(python_with(release), "--prove")
    assert told.count(" passed in ") == len(models_of(told)) >= 40


# -- caches


def filled(kind: str, layers: int = 2) -> Any:
    """A cache with different contents in each layer."""
    config = tiny_config("llama", num_hidden_layers=layers)
    cache: Any = DynamicCache() if kind == "dynamic" else StaticCache(config, max_cache_len=8)
    for layer in range(layers):
        new = torch.full((1, 2, 3, 16), float(layer + 1))
        cache.update(new, -new, layer, {"cache_position": torch.arange(3)})
    return cache


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_comes_back_as_its_own_class_with_one_layers_tensors(kind: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    kept = json.loads(json.dumps(encode([filled(kind)], tensors, 1)))
    assert sum(value.is_floating_point() for value in tensors.values()) == 2, "keys and values of one layer"
    (back,) = decode(kept, tensors)
    assert type(back) is type(filled(kind))
    assert [float(one.max()) for one in float_tensors(back, caches=True)] == [2.0, 0.0 if kind == "static" else -2.0]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_update_of_a_copy_leaves_the_captured_tensors_alone(kind: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    kept = encode(filled(kind), tensors, 1)
    before = {name: value.clone() for name, value in tensors.items()}
    for _ in range(2):
        cache = decode(kept, tensors)
        new = torch.full((1, 2, 1, 16), 9.0)
        keys, _ = cache.update(new, new, 1, {"cache_position": torch.tensor([3])})
        assert keys.shape[2] == (4 if kind == "dynamic" else 8)
        assert float(keys[0, 0, 3, 0]) == 9.0
    assert all(torch.equal(before[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(("shape", "dtype", "count"), [
    ((2, 20, 64), torch.bfloat16, 20), ((2, 4, 1, 16), torch.float32, 1), ((1, 20), torch.long, 20),
    ((2, 1), torch.long, 1), ((5,), torch.long, 5), ((5,), torch.float32, 1), ((), torch.long, 1),
])  # fmt: skip
def test_positions_are_the_last_axis_of_ids_and_the_one_before_it_of_states(
    shape: tuple[int, ...], dtype: torch.dtype, count: int
) -> None:
    tensor, mask = torch.zeros(shape, dtype=dtype), torch.zeros(2, 1, 7, 9)
    assert (
        positions((tensor,), {"attention_mask": mask}) == positions((), {"attention_mask": mask, "x": tensor}) == count
    )
    assert positions((None,), {"attention_mask": mask}) == 0


def test_an_output_comes_back_with_its_fields_and_without_its_cache() -> None:
    tensors: dict[str, torch.Tensor] = {}
    given = BaseModelOutputWithPast(last_hidden_state=torch.ones(1, 2), past_key_values=filled("dynamic"))
    back = decode(json.loads(json.dumps(encode(given, tensors, None))), tensors)
    assert torch.equal(back.last_hidden_state, torch.ones(1, 2))
    assert torch.equal(back[0], torch.ones(1, 2))
    assert len(tensors) == 1


def test_classes_of_others_are_not_kept() -> None:
    with pytest.raises(Unsaveable, match="Recorder"):
        encode(capture.Recorder(Path(), 0, print), {}, None)
    with pytest.raises(Unsaveable, match="range"):
        encode([range(3)], {}, None)


# -- places


def test_what_an_edit_needs_is_read_off_its_text() -> None:
    text = b"""
class Top(nn.Module):
    def forward(self, x):
        return _amd.apply_linear(self.lm_head, x) if _amd and _amd.on.linear else self.lm_head(x)
class Attention(nn.Module):
    def forward(self, x):
        q = _amd.qkv_proj(self, x) if _amd.on.qkv else None
        return _amd.apply_linear(self.o_proj, q) if _amd.on.linear else self.o_proj(q)
def rotate(q):
    return _amd.apply_rope(q) if _amd.on.rope else q
"""
    needs = needs_of(text)
    assert needs["Top.forward"] == ["lm_head"]
    assert needs["Attention.forward"] is None
    assert [point.qualname for point in points_of("m", text)] == [
        "Top.forward", "Attention.forward", "Attention.forward", "rotate"
    ]  # fmt: skip


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heavy = nn.Linear(4, 4)
        self.used = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *, logits_to_keep: int = 0) -> torch.Tensor:
        return self.used(self.heavy(x) + x)


class Top(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.idle = Idle()

    def forward(self, x: torch.Tensor, what: Any = None) -> torch.Tensor:
        del what
        result: torch.Tensor = self.part(x)
        return result


class Idle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Absent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def watched(folder: Path, places: dict[str, Any], run: Callable[[Any], object]) -> tuple[Any, list[dict[str, Any]]]:
    """Run a model of this file while its places are captured; return it and what was told."""
    told: list[dict[str, Any]] = []
    recorder = capture.Recorder(folder, 1 << 20, lambda event, **values: told.append({"event": event, **values}))
    torch.manual_seed(0)
    model = Top().eval()
    listed = [{"module": __name__, "qualname": name, "needs": needs} for name, needs in places.items()]
    with torch.no_grad(), capture.watching(model, listed, recorder):
        run(model)
    return model, told


def test_children_that_no_edit_needs_are_kept_as_answers(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    model, told = watched(tmp_path, {"Part.forward": ["used"]}, lambda model: model(x))
    assert [one["event"] for one in told] == ["captured"]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["part.used.safetensors"]
    blank = copy.deepcopy(model).to("meta")
    (file,) = tmp_path.glob("*.safetensors")
    call = Call(Weights(blank, tmp_path, torch.device("cpu")), file)
    for _ in range(2):
        assert torch.equal(call.run()[0], model(x))
    assert call.double()[0].dtype is torch.float64


def test_the_top_of_a_model_is_a_place_as_any_other(tmp_path: Path) -> None:
    _, told = watched(tmp_path, {"Top.forward": ["part"]}, lambda model: model(torch.randn(2, 4)))
    assert [one["event"] for one in told] == ["captured"]


def test_one_compute_that_is_missing_in_the_capture_is_reported_with_the_reason(tmp_path: Path) -> None:
    places = {"Top.forward": None, "Part.forward": None, "Idle.forward": None, "Absent.forward": None, "Gone.f": None}
    _, told = watched(tmp_path, places, lambda model: model(torch.randn(2, 4), what=object()))
    found = {one["place"].partition(".")[2]: (one["event"], one.get("reason", "")) for one in told}
    assert found == {
        "Top.forward": ("not-captured", "an argument is a object, which cannot be kept"),
        "Part.forward": ("captured", ""),
        "Idle.forward": ("not-captured", "nothing called it in the runs that were captured"),
        "Absent.forward": ("not-used", "the model has no Absent"),
        "Gone.f": ("not-used", "the model does not load this file"),
    }


def test_more_kinds_of_calls_than_are_kept_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MAX_CALLS", 1)

    def run(model: Any) -> None:
        model(torch.randn(2, 4))
        model(torch.randn(1, 4))

    _, told = watched(tmp_path, {"Part.forward": None}, run)
    assert told[-1]["reason"] == "1 more kinds of calls than the 1 that are kept"


def test_the_signature_stays_while_a_method_is_watched(tmp_path: Path) -> None:
    seen = []
    before = inspect.signature(Part.forward)
    watched(tmp_path, {"Part.forward": None}, lambda model: seen.append(inspect.signature(model.part.forward)))
    assert "logits_to_keep" in seen[0].parameters
    assert inspect.signature(Part.forward) == before


# -- runs


class NoCache(nn.Module):
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_config("llama")
        self.weight = nn.Parameter(torch.ones(1))
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids * self.weight


def test_a_forward_that_takes_no_cache_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocm_overlay.verify.qualify.runs.kind_of", lambda model: "causal")
    monkeypatch.setattr("rocm_overlay.verify.inputs.kind_of", lambda model: "causal")
    static = next(run for run in runs_of(NoCache(), 0) if "static" in run.name)
    with pytest.raises(TypeError, match=r"NoCache\.forward takes no past_key_values"):
        static.make()


def test_a_forward_that_passes_on_what_it_does_not_name_is_given_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 names a cache in the model below only."""
    monkeypatch.setattr("rocm_overlay.verify.qualify.runs.kind_of", lambda model: "causal")
    monkeypatch.setattr("rocm_overlay.verify.inputs.kind_of", lambda model: "causal")
    model, given = NoCache(), []
    monkeypatch.setattr(model, "generate", lambda **words: given.append(words), raising=False)
    monkeypatch.setattr(model, "forward", lambda input_ids, **words: input_ids)
    next(run for run in runs_of(model, 0) if "static" in run.name).make()
    assert [words["cache_implementation"] for words in given] == ["static", "static"]


def test_inputs_of_a_file_are_what_the_forward_is_given(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build(tiny_config("llama"))
    save_file({"input_ids": torch.ones(1, 5, dtype=torch.long)}, tmp_path / "inputs.safetensors")
    runs = runs_of(model, 0, str(tmp_path / "inputs.safetensors"))
    assert [run.name for run in runs] == ["forward", "generate", "generate, static cache"]
    runs[0].make()
    model.forward = NoCache().forward
    save_file({"pixel_values": torch.ones(1, 5)}, tmp_path / "inputs.safetensors")
    with pytest.raises(ValueError, match=r"holds 'pixel_values', which \w+\.forward does not take"):
        runs_of(model, 0, str(tmp_path / "inputs.safetensors"))


def test_a_model_whose_inputs_are_not_known_gets_a_way_to_pass_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(session: Session, do: str, on_event: Any, **options: Any) -> None:
        on_event({"event": "run-failed", "run": "generate", "reason": "ValueError: pixel_values are needed"})

    monkeypatch.setattr(child, "run", failing)
    session = Session(None, tmp_path, False, [], "float32", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"generate: ValueError: pixel_values are needed") as caught:
        steps.capture(session, 1, steps.unwatched(lambda text: None))
    assert "--inputs" in str(caught.value.remedy)
    with pytest.raises(UsageError, match="is no file"):
        command.qualify(command.Options(tmp_path, inputs=tmp_path / "none"), lambda text: None)


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_tells_complete_from_partial(
    complete: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "qualify", lambda options, say, counted: {"complete": complete, "left_out": {}})
    assert command.run(command.Options(tmp_path)) == code
