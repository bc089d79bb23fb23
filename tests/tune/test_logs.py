"""Shapes from a server's log, and from a command while it runs."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from .support import Cli

NEW = (
    "[aiter] shape is M:{m}, N:6144, K:4096 dtype='torch.bfloat16' otype='torch.bfloat16' bias=False, scaleAB=False, "
    "bpreshuffle=False, not found tuned config in /x.csv, will use default config! using torch solution:0"
)
OLD = (
    "shape is M:{m}, N:6144, K:4096 dtype='torch.bfloat16' otype='torch.bfloat16' bias=True, scaleAB=False, "
    "bpreshuffle=False , not found tuned config in /x.csv, will use default config!"
)
HIT = (
    "INFO shape is M:{m}, N:64, K:64 dtype='torch.bfloat16' otype='torch.bfloat16' bias=False, scaleAB=False, "
    "bpreshuffle=False found padded_M: 16, N:64, K:64 is tuned on cu_num = 304 in /x.csv, libtype is asm"
)


def log(path: Path, *lines: str) -> Path:
    path.write_bytes(b"\xff\xfe startup\n" + "\n".join(lines).encode() + b"\n")
    return path


def test_misses_of_old_and_new_aiter(tmp_path: Path, tune: Cli) -> None:
    path = log(tmp_path / "server.log", NEW.format(m=1), "other", NEW.format(m=1), OLD.format(m=7), HIT.format(m=9))
    answer = tune("shapes", "--from-log", path, "--json")
    shapes = answer.json()["shapes"]
    assert [(s["m"], s["bias"], s["times"]) for s in shapes] == [(1, False, 2), (7, True, 1)]
    assert "2 shapes missed and 1 were found" in answer.err
    csv = tune("shapes", "--from-log", path, "--hits").out
    assert "9,64,64,False,torch.bfloat16,torch.bfloat16,False,False" in csv
    assert csv.count("\n") == 4


def test_torn_lines_are_counted(tmp_path: Path, tune: Cli) -> None:
    torn = NEW.format(m=1)
    path = log(tmp_path / "server.log", torn[:60] + "Loading weights" + torn[60:], NEW.format(m=2))
    answer = tune("shapes", "--from-log", path, "--json")
    assert answer.json()["unique"] == 1
    assert "1 table lines could not be read" in answer.err


def test_logs_without_shapes_and_files_that_are_no_logs(tmp_path: Path, tune: Cli) -> None:
    answer = tune("shapes", "--from-log", log(tmp_path / "a.log", "nothing"))
    assert answer.code == 0
    assert "AITER_LOG_LEVEL=INFO" in answer.err
    packed = tmp_path / "a.log.gz"
    packed.write_bytes(gzip.compress(b"x"))
    for path, said in (
        (packed, "gunzip -k a.log.gz"),
        (tmp_path, "is a directory"),
        (tmp_path / "no", "cannot be read"),
    ):
        answer = tune("shapes", "--from-log", path)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.err


def test_an_output_is_not_the_log(tmp_path: Path, tune: Cli) -> None:
    path = log(tmp_path / "server.log", NEW.format(m=1))
    before = path.read_bytes()
    assert tune("shapes", "--from-log", path, "-o", path).code == 2
    assert path.read_bytes() == before


def test_recorded_live(tmp_path: Path, tune: Cli) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        f"import os, sys\nprint({NEW.format(m=5)!r}, file=sys.stderr)\nprint({HIT.format(m=6)!r})\n"
        "assert os.environ['AITER_LOG_TUNED_CONFIG'] == '1'\nsys.exit(int(sys.argv[1]))\n"
    )
    out = tmp_path / "untuned.csv"
    answer = tune("shapes", "--record", "-o", out, "--json", "--", sys.executable, script, "0")
    assert (answer.code, [s["m"] for s in answer.json()["shapes"]]) == (0, [5])
    assert "not found tuned config" in answer.err, "the command's own output is passed on"
    assert out.read_text().endswith("5,6144,4096,False,torch.bfloat16,torch.bfloat16,False,False\n")
    assert tune("shapes", "--record", "--", sys.executable, script, "3").code == 3
    assert tune("shapes", "--record", "--", "/no/such/program").code == 9


@pytest.mark.parametrize("options", [[], ["--record"], ["--config", "gemma-2b", "--from-log", "x"]])
def test_one_origin(tune: Cli, options: list[str]) -> None:
    assert tune("shapes", *options).code == 2
