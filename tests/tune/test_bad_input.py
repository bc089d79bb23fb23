"""Every bad input: refused or named with file:line and a remedy, and nothing overwritten."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import OverlayError
from rocm_overlay.tune import files, table
from rocm_overlay.tune.shapes import read_untuned
from rocm_overlay.tune.table import read_table

from .support import COLUMNS, Cli, cells, contents, write_table

HEAD = ",".join(COLUMNS)
GOOD = ",".join(cells()[name] for name in COLUMNS)


def line(**changes: object) -> str:
    row = cells(**changes)
    return ",".join(row[name] for name in COLUMNS)


def text(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


# name -> (bytes of the file, line of the complaint or 0, words of it)
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "missing columns": (text("M,N,K,us", "1,2,3,4"), 1, "has no column bias, dtype, outdtype, scaleAB, libtype"),
    "repeated column": (text(HEAD + ",us", GOOD + ",1"), 1, "names column us twice"),
    "no header": (text(GOOD), 1, "has no column"),
    "empty": (b"", 1, "is empty"),
    "blank lines": (b"\n\n  \n", 1, "is empty"),
    "text in M": (text(HEAD, GOOD, line(M="many")), 3, "M is 'many', not a whole number"),
    "fraction in N": (text(HEAD, line(N="4096.5")), 2, "N is '4096.5'"),
    "zero K": (text(HEAD, line(K=0)), 2, "K is 0, less than 1"),
    "negative M": (text(HEAD, line(M=-1)), 2, "M is -1"),
    "text in us": (text(HEAD, GOOD, GOOD, line(us="fast")), 4, "us is 'fast', not a time"),
    "negative us": (text(HEAD, line(us=-1)), 2, "negative times mark a shape the tuner could not run"),
    "endless us": (text(HEAD, line(us="inf")), 2, "us is 'inf'"),
    "nan us": (text(HEAD, line(us="nan")), 2, "us is 'nan'"),
    "text in bias": (text(HEAD, line(bias="maybe")), 2, "bias is 'maybe', not True or False"),
    "short dtype": (text(HEAD, line(dtype="bfloat16")), 2, "write torch.bfloat16"),
    "unknown dtype": (text(HEAD, line(outdtype="torch.int3")), 2, "outdtype is 'torch.int3'"),
    "text in cu_num": (text(HEAD, line(cu_num="all")), 2, "cu_num is 'all'"),
    "bad gfx": (text(HEAD, line(gfx="MI300X")), 2, "gfx is 'MI300X', not a name like gfx942"),
    "text in solidx": (text(HEAD, line(solidx="x")), 2, "solidx is 'x'"),
    "fraction in splitK": (text(HEAD, line(splitK="1.5")), 2, "splitK is '1.5'"),
    "empty libtype": (text(HEAD, line(libtype="")), 2, "libtype is ''"),
    "text in err_ratio": (text(HEAD, line(err_ratio="low")), 2, "err_ratio is 'low'"),
    "text in tflops": (text(HEAD, line(tflops="huge")), 2, "tflops is 'huge'"),
    "short line": (text(HEAD, GOOD, "1,2,3"), 3, "has 3 cells, the header has 18"),
    "long line": (text(HEAD, GOOD + ",1"), 2, "has 19 cells"),
    "conflict marks": (text(HEAD, GOOD, "<<<<<<< mine", GOOD), 3, "has 1 cells"),
    "open quote": (text(HEAD, '"' + GOOD), 2, "is not valid CSV"),
    "gzip": (gzip.compress(text(HEAD, GOOD)), 0, "is gzip-compressed"),
    "utf-16": (text(HEAD, GOOD).decode().encode("utf-16"), 1, "is UTF-16"),
    "latin-1": (text(HEAD, line(kernelName="k")) + b"caf\xe9\n", 3, "is not UTF-8"),
    "binary": (text(HEAD) + b"\x00\x01\x02\n", 2, "NUL byte"),
}


@pytest.mark.parametrize("command", ["merge", "user", "prune", "diff", "report"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_file_line_and_remedy(tmp_path: Path, tune: Cli, name: str, command: str) -> None:
    data, number, said = REFUSED[name]
    bad = tmp_path / "bad.csv"
    bad.write_bytes(data)
    good = write_table(tmp_path / "good.csv", cells())
    out = tmp_path / "out.csv"
    out.write_bytes(b"precious")
    before = contents(tmp_path)
    arguments: dict[str, list[object]] = {
        "merge": ["merge", good, bad, "-o", out],
        "user": ["merge", good, "--user", bad, "-o", out],
        "prune": ["prune", bad, "-o", out],
        "diff": ["diff", good, bad],
        "report": ["report", "--model", "llama-3.1-8b", "--table", bad, "--html", out],
    }
    answer = tune(*arguments[command], "--gpu", "gfx942:304", "--json")
    assert answer.code == 2
    error = answer.json()["error"]
    place = f"{bad}:{number}" if number else str(bad)
    assert place in answer.err
    assert said in answer.err
    assert error["remedy"]
    assert "Traceback" not in answer.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (_, number, _) in REFUSED.items()
        if number > 1 and name not in ("open quote", "latin-1", "binary")
    ],
)
def test_check_lists_every_broken_line(tmp_path: Path, tune: Cli, name: str) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_bytes(REFUSED[name][0] + text(line(us="slow")))
    answer = tune("check", bad, "--json")
    assert answer.code == 1
    found = [f for f in answer.json()["tables"][0]["findings"] if f["id"] == "bad-row"]
    assert found[0]["line"] == REFUSED[name][1]
    assert "us is 'slow'" in found[-1]["message"]


ODD: dict[str, tuple[bytes, str, int]] = {
    "bom": (b"\xef\xbb\xbf" + text(HEAD, GOOD), "bom", 1),
    "crlf": (text(HEAD, GOOD).replace(b"\n", b"\r\n"), "crlf", 1),
    "mixed ends": (text(HEAD) + GOOD.encode() + b"\r\n", "crlf", 2),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_readable_files_are_used_and_named(tmp_path: Path, tune: Cli, name: str) -> None:
    """aiter's reader takes them as well; the merged file has neither mark nor Windows line ends."""
    data, id_, number = ODD[name]
    odd = tmp_path / "odd.csv"
    odd.write_bytes(data)
    out = tmp_path / "out.csv"
    answer = tune("merge", odd, "-o", out, "--gpu", "gfx942:304")
    assert answer.code == 0
    assert f"{odd}:{number}: warning:" in answer.err
    assert f"[{id_}]" in answer.err
    assert odd.read_bytes() == data
    assert out.read_bytes() == text(HEAD, GOOD)
    assert tune("check", odd).code == 0
    assert tune("check", odd, "--strict").code == 1


def test_no_last_line_end_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{HEAD}\n\n{GOOD}\n\n{line(M=32)}".encode())
    found = read_table(path)
    assert [(row.key.m, row.line) for row in found.rows] == [(16, 3), (32, 5)]
    assert not found.findings


@pytest.mark.parametrize("command", ["merge", "check", "prune", "diff"])
@pytest.mark.parametrize("kind", ["directory", "missing", "pipe", "unreadable"])
def test_paths_that_are_no_readable_file(
    tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    path = tmp_path / "thing"
    make: dict[str, Callable[[], object]] = {
        "directory": path.mkdir,
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(path),
        "unreadable": lambda: path.write_bytes(text(HEAD, GOOD)),
    }
    make[kind]()
    if kind == "unreadable":
        # Root reads everything, so the refusal of the kernel is played.
        def denied(self: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "read_bytes", denied)
    out = tmp_path / "out.csv"
    arguments: dict[str, list[object]] = {
        "merge": ["merge", path, "-o", out, "--gpu", "gfx942:304"],
        "check": ["check", path],
        "prune": ["prune", path, "-o", out, "--gpu", "gfx942:304"],
        "diff": ["diff", path, path],
    }
    answer = tune(*arguments[command])
    assert answer.code == 2
    said = {
        "directory": "is a directory",
        "missing": "does not exist",
        "pipe": "not a regular file",
        "unreadable": "permission denied",
    }
    assert said[kind] in answer.err
    assert str(path) in answer.err
    assert not out.exists()


def test_huge_files_and_endless_tables_are_refused_before_they_are_read(
    tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as stream:
        stream.truncate(files.MAX_BYTES + 1)
    answer = tune("check", huge)
    assert answer.code == 2
    assert "more than 268435456" in answer.err
    monkeypatch.setattr(table, "MAX_ROWS", 3)
    long = write_table(tmp_path / "long.csv", *(cells(M=m) for m in range(1, 6)))
    with pytest.raises(OverlayError, match=r"long.csv:5: has more than 3 rows"):
        read_table(long)


def test_many_broken_lines_are_counted_not_repeated(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", *(cells(us="x") for _ in range(500)))
    broken = read_table(path).broken
    assert len(broken) == 51
    assert broken[-1].message == "has 450 more broken lines"


@pytest.mark.parametrize("name", ["gzip", "empty", "binary", "utf-16", "latin-1"])
def test_untuned_files_are_read_as_strictly(tmp_path: Path, name: str) -> None:
    bad = tmp_path / "untuned.csv"
    bad.write_bytes(REFUSED[name][0])
    with pytest.raises(OverlayError, match=r"untuned\.csv"):
        read_untuned(bad)


def test_broken_untuned_lines(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    good = "1,2,3,False,torch.bfloat16,torch.bfloat16,False"
    path.write_text(f"M,N,K,bias,dtype,outdtype,scaleAB\n{good}\n{good}\n,,,,,,\n1,2\n")
    with pytest.raises(OverlayError) as caught:
        read_untuned(path)
    assert [finding.line for finding in caught.value.findings] == [4, 5]
    path.write_text(f"M,N,K,bias,dtype,outdtype,scaleAB\n{good}\n{good}\n")
    assert len(read_untuned(path)[0]) == 1


def test_outputs_that_cannot_be_written(tmp_path: Path, tune: Cli) -> None:
    good = write_table(tmp_path / "good.csv", cells())
    (tmp_path / "folder").mkdir()
    (tmp_path / "real").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for target in ("folder", "link", "absent/out.csv"):
        answer = tune("merge", good, "-o", tmp_path / target, "--gpu", "gfx942:304")
        assert answer.code == 5, target
        assert target.split("/")[0] in answer.err
    assert (tmp_path / "real").read_text() == "mine"
    assert tune("merge", good, "--gpu", "gfx942:304").code == 2


@pytest.mark.parametrize("gpu", ["gfx1201", "304", "gfx942:0", "gfx942:x", "mi300", "gfx942:304:1", ""])
def test_gpus_that_are_none(tmp_path: Path, tune: Cli, gpu: str) -> None:
    good = write_table(tmp_path / "good.csv", cells())
    answer = tune("merge", good, "-o", tmp_path / "out.csv", "--gpu", gpu)
    assert answer.code == (2 if gpu else 9)
    assert "gfx942:304" in answer.err
