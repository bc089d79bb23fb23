"""Files of the user are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rocm_overlay.files import write_atomic


def test_a_file_is_replaced_with_the_mode_asked_for_or_the_umasks(tmp_path: Path) -> None:
    target = tmp_path / "profile.json"
    target.write_bytes(b"old")
    before = os.umask(0o027)
    try:
        write_atomic(target, b"new")
        assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", 0o640)
        write_atomic(target, b"newer", 0o644)
    finally:
        os.umask(before)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"newer", 0o644)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_it_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "profile.json"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
