"""What a qualification leaves on disk, whenever it is stopped, and what it takes from there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import UsageError, WriteError
from rocm_overlay.fingerprint import Fingerprint
from rocm_overlay.verify.qualify import arms, choose, command, document, steps
from rocm_overlay.verify.qualify.session import Session

from examples.tiny_models import save_tiny


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("profile.json", '{"schema": "amd-ops.profile/1", "toggles": {'),
        ("profile.json", "[]"),
        ("profile.json", '{"schema": "amd-ops.profile/1", "toggles": {}, "digest": NaN}'),
        ("profile.json", '{"schema": "amd-ops.profile/1", "toggles": {}, "digest": "by hand"}'),
        ("profile.work/replay.json", "[]"),
        ("profile.work/replay.json", '{"model": "there"}'),
    ],
)
def test_warmup_of_what_was_changed_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "profile.work").mkdir()
    (tmp_path / "profile.json").write_text('{"schema": "amd-ops.profile/1", "toggles": {}}')
    (tmp_path / "profile.work/replay.json").write_text("{}")
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as raised:
        command.warm(tmp_path / "profile.json")
    assert "\n" not in raised.value.message
    assert raised.value.remedy.startswith("run `overlay qualify`")


class Subject(Session):
    """A session whose subject is what a test says."""

    about = "one"

    def _subject(self, machine: dict[str, Any]) -> Fingerprint:
        return Fingerprint({"about": self.about, **machine})


def test_a_kill_while_old_captures_are_removed_never_leaves_them_to_another_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Subject(None, tmp_path, False, [], "float32", tmp_path)  # type: ignore[arg-type]
    assert session.open({}) is False
    (session.captures / "a.safetensors").write_bytes(b"of the first subject")
    session.keep_capture({"places": {}})
    session.keep({"id": "a"})
    assert session.open({}) is True
    assert session.captured is not None
    session.about = "two"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            session.open({})
    session.open({})
    assert session.captured is None
    assert list(session.captures.iterdir()) == []


def test_the_arguments_of_a_forward_are_part_of_the_subject(tmp_path: Path) -> None:
    def subject(inputs: str | None) -> str:
        session = Session(None, tmp_path, False, [], "float32", tmp_path, inputs)  # type: ignore[arg-type]
        session._fingerprint = Fingerprint({})
        return session.subject({})

    assert len({subject(None), subject("one"), subject("another")}) == 3


def test_a_plan_that_could_not_be_timed_stays_at_stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(None, tmp_path, False, [], "float32", tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(arms, "_plain", lambda *_: "they are what the profile is")
    monkeypatch.setattr(steps, "whole", lambda *_: "the process ended with status -9")
    found = arms.Found(choose.Choice(), [], [], [])
    supply = {"switches": {"plan": ["USE_OPTIMIZED_OPS"], "rope": ["USE_OPTIMIZED_OPS"]}}
    told = arms.settle(session, None, supply, found, 1.0, print, steps.unwatched(print))  # type: ignore[arg-type]
    assert "not timed" in told["summary"]
    assert list(found.choice.stock) == ["plan"]
    assert "status -9" in found.choice.stock["plan"]


def test_a_function_of_an_earlier_run_makes_way_where_nothing_is_verified(tmp_path: Path) -> None:
    session = Session(None, tmp_path, False, [], "float32", tmp_path)  # type: ignore[arg-type]
    path, output = tmp_path / "profile_apply.py", tmp_path / "profile.json"
    path.write_text("# mine\n")
    assert document.write_apply(session, output, [], choose.Choice()) is None
    assert path.read_text() == "# mine\n", "a file of the user's stays"
    path.write_text(document._APPLY_STARTS + "import amd_ops\n")
    assert document.write_apply(session, output, [], choose.Choice()) is None
    assert not path.exists()


def test_a_place_that_cannot_hold_a_profile_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "profile.json", "cannot be written")):
        model = save_tiny("llama", tmp_path / "llama")
        with pytest.raises(WriteError, match=said) as raised:
            command.qualify(command.Options(model, output, python=sys.executable), lambda text: None)
        assert "-o" in raised.value.remedy
    assert not tmp_path.with_name(f"{tmp_path.name}.work").exists()
