"""The journal of runs that may be killed: bench, qualify, synth, tune and verify go on by it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay.journal import Journal, NotAJournalError, OtherRunError

SCHEMA = "amd-overlay.test/1"
SETTINGS = {"seed": 1, "shape": (1, 2)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "journal.jsonl"


def begun(path: Path, parts: int = 3) -> Journal:
    journal = Journal(path, SCHEMA, SETTINGS)
    for number in range(parts):
        journal.append({"part": number})
    return journal


def test_a_second_run_finds_what_the_first_finished(path: Path) -> None:
    assert not begun(path).resumed
    again = Journal(path, SCHEMA, SETTINGS)
    assert again.resumed
    assert again.records == [{"part": 0}, {"part": 1}, {"part": 2}]


def test_a_kill_at_any_byte_loses_at_most_the_last_part(path: Path) -> None:
    begun(path)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        again = Journal(path, SCHEMA, SETTINGS)
        kept = [{"part": number} for number in range(max(whole[:length].count(b"\n") - 1, 0))]
        assert again.records == kept
        again.append({"part": "next"})
        assert Journal(path, SCHEMA, SETTINGS).records == [*kept, {"part": "next"}]


def test_a_run_with_other_settings_is_refused(path: Path) -> None:
    begun(path)
    before = path.read_bytes()
    with pytest.raises(OtherRunError) as raised:
        Journal(path, SCHEMA, {"seed": 2, "shape": (1, 2), "margin": 3})
    assert raised.value.names == ["seed", "margin"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "mine",
        "mine\n",
        "[]\n",
        "{}\n",
        f'{{"schema": "{SCHEMA}"}}\n',
        '{"schema": "amd-overlay.other/1", "settings": {}}\n',
    ],
)
def test_a_file_that_is_no_journal_of_this_kind_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(NotAJournalError):
        Journal(path, SCHEMA, SETTINGS)
    assert path.read_text() == text


def test_a_damaged_line_in_the_middle_is_refused(path: Path) -> None:
    begun(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[2:]]))
    with pytest.raises(NotAJournalError, match="not JSON"):
        Journal(path, SCHEMA, SETTINGS)


def test_every_part_is_synced_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    journal = begun(path, 0)
    journal.append({"part": 0})
    assert sizes == [path.read_bytes().index(b"\n") + 1, path.stat().st_size]


def test_after_a_full_disk_the_journal_is_as_before(path: Path) -> None:
    """A limit on the size of files stops a write in the middle of a line, as a full disk does."""
    begun(path)
    before = path.read_bytes()
    limit = len(before) + 10
    code = (
        "import sys; from pathlib import Path; from rocm_overlay.journal import Journal\n"
        f"journal = Journal(Path({str(path)!r}), {SCHEMA!r}, {json.dumps(SETTINGS)})\n"
        "try: journal.append({'part': 'x' * 100})\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode in (27, 28)  # EFBIG, ENOSPC
    assert path.read_bytes() == before
