"""`overlay gen` with patch configs, through the command line as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rocm_overlay.app import run

from tests.patchgen.config_support import STOCK, package, write_config

TEXT = """
@config.override_method("ToyBase.shared", description="two")
def shared(self):
    return 2

config.add_import("math")
"""
CONFIG = "toy_patch_gen_config.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: one config, and a package that every call reads from."""
    package(tmp_path / "lib")
    write_config(tmp_path, TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["gen", *arguments, "--source", "lib"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file() and "lib" not in file.parts}


def test_writes_beside_the_config_and_says_what_was_applied(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, CONFIG, "-v")
    assert (code, out) == (0, "")
    text = (here / "generated/patched_toy.py").read_text()
    assert "[MODIFIED CLASS] ToyBase" in text
    assert f"{CONFIG}: config -> patched_toy.py: 1 applied, 1 already there\n" in err
    assert f"  {CONFIG}:7: method_override ToyBase.shared: applied, lines " in err
    assert "import_added math: already there (the stock module imports math already)" in err
    assert err.endswith("wrote generated/patched_toy.py\n")
    assert files(here) == {CONFIG, "patched_toy.py"}


def test_output_folder_mode_and_dotted_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "toy_patch_gen_config", "-o", "out", "--mode", "overlay")[0] == 0
    first, rest = (here / "out/patched_toy.py").read_text().split("\n", 1)
    assert first.startswith("# amd-patchgen/1 base=sha256:")
    assert rest == STOCK.replace("        return 1\n\n\nclass ToyA", "        return 2\n\n\nclass ToyA")


def test_dry_run_generates_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here)
    code, out, err = call(capsys, CONFIG, "--dry-run", "--diff")
    assert (code, files(here)) == (0, before)
    assert "+        return 2\n" in out
    assert err.endswith("nothing written\n")
    write_config(here, TEXT.replace("ToyBase.shared", "ToyBase.shard"))
    assert call(capsys, CONFIG, "--dry-run")[0] == 1, "a dry run finds what a run would find"


def test_diff_is_saved_beside_the_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, CONFIG, "--diff")[:2] == (0, "")
    diff = (here / "generated/patched_toy.diff").read_text()
    assert diff.startswith("--- a/transformers/models/toy/modeling_toy.py\n+++ b/patched_toy.py\n")
    assert "-        return 1\n+        return 2\n" in diff
    assert str(here) not in diff


def test_list_shows_every_config_below_this_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--list")
    expected = "config -> patched_toy.py (transformers.models.toy.modeling_toy, standalone, 2 patches)"
    assert (code, out) == (0, f"{here / CONFIG}: {expected}\n")
    code, out, _ = call(capsys, "--list", "--json")
    assert json.loads(out)["configs"][0]["patches"][0] == {"kind": "method_override", "target": "ToyBase.shared"}
    (here / "bad_patch_gen_config.py").write_text("raise ValueError('no')\n")
    code, out, err = call(capsys, "--list")
    assert (code, "patched_toy.py" in out) == (1, True)
    assert "bad_patch_gen_config.py:1: this config does not load" in err


def test_check_compares_bytes_and_fix_repairs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "--check")
    assert (code, "1 differ or are missing" in err, (here / "generated").exists()) == (1, True, False)
    assert call(capsys, "--check", "--fix")[0] == 0
    assert call(capsys, CONFIG, "--diff")[0] == 0
    assert call(capsys, "--check")[0] == 0
    diff = here / "generated/patched_toy.diff"
    diff.write_text(diff.read_text() + "\n")
    code, _, err = call(capsys, CONFIG, "--check")
    assert (code, "patched_toy.diff" in err) == (1, True)
    assert call(capsys, CONFIG, "--check", "--fix")[0] == 0
    stock = here / "lib/transformers/models/toy/modeling_toy.py"
    stock.write_text(stock.read_text() + "# upstream moved\n")
    assert call(capsys, "--check")[0] == 1, "a new stock text is drift"


@pytest.mark.parametrize("options", [["--check"], ["--list"], ["--check", "--fix"]])
def test_finding_no_config_is_a_failure(here: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    (here / CONFIG).unlink()
    code, _, err = call(capsys, *options)
    assert code == 9
    assert "no patch config below" in err


def test_a_config_that_does_not_load_fails_the_check_of_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, CONFIG)[0] == 0
    assert call(capsys, "--check")[0] == 0
    (here / "a_patch_gen_config.py").write_text("import absent_xyz\nabsent_xyz.f()\n")
    code, _, err = call(capsys, "--check")
    assert code == 1
    assert "a_patch_gen_config.py:1: this config does not load" in err
    assert "install absent_xyz" in err


def test_a_config_among_several_is_chosen_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (here / CONFIG).open("a") as file:
        file.write('cpu = PatchConfig(config.source_module, "cpu.py")\ncpu.exclude_from_output("ToyHead")\n')
    assert call(capsys, CONFIG, "-c", "cpu")[0] == 0
    assert (here / "generated/cpu.py").exists()
    assert call(capsys, CONFIG)[0] == 0
    code, _, err = call(capsys, CONFIG, "-c", "cpus")
    assert code == 1
    assert "nearest: cpu" in err
    assert call(capsys, "--check")[0] == 0, "all variables are checked"


def test_several_errors_are_all_shown_and_json_lists_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "config.drop_import('nothing')\nconfig.exclude_from_output('ToyHaed')\n"
    write_config(here, text)
    code, out, err = call(capsys, CONFIG, "--json")
    assert code == 1
    assert [one["id"] for one in json.loads(out)["errors"]] == ["config-target", "config-target"]
    assert "toy_patch_gen_config.py:6: no top-level import of nothing" in err
    assert "did you mean ToyHead?" in err


def test_json_has_the_account(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, CONFIG, "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["written"]) == (
        0,
        "amd-overlay.gen-config/1",
        ["generated/patched_toy.py"],
    )
    (file,) = document["files"]
    assert (file["release"], file["mode"]) == ("transformers==4.57.6", "standalone")
    assert [(one["target"], one["status"]) for one in file["patches"]] == [
        ("ToyBase.shared", "applied"),
        ("math", "already there"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--all"], "are for modeling files"),
        ([CONFIG, "--fix"], "--fix goes with --check"),
        ([CONFIG, "--check", "--dry-run"], "--check writes nothing already"),
        (["toy", "--mode", "standalone"], "go with a patch config"),
        ([CONFIG, "--mode", "inplace"], "inplace"),
    ],
)
def test_options_that_do_not_fit(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err


def test_the_same_bytes_from_any_folder(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(capsys, CONFIG, "--diff")[0] == 0
    before = {file.name: file.read_bytes() for file in (here / "generated").iterdir()}
    monkeypatch.chdir("/")
    assert run(["gen", str(here / CONFIG), "--diff", "--source", str(here / "lib")]) == 0
    assert {file.name: file.read_bytes() for file in (here / "generated").iterdir()} == before
