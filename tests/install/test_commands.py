"""The program on real releases: what it changes, what it leaves alone, and every exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from rocm_overlay.install import catalog, operations
from rocm_overlay.install.transaction.fs import Fs

from tests.install.support import MODELS, Done, digest, environment, modeling, run_process, snapshot

Overlay = Callable[..., Done]


def install(overlay: Overlay, site: Path, *more: str) -> Done:
    return overlay("install", "--transformers", "4.57", "--site-packages", site, "--json", *more)


def overlaid(site: Path) -> list[str]:
    """Models whose file is the overlay that the bundle has for it."""
    hashes = {file.overlay_sha256: file.model for file in catalog.load("4.57").files}
    return sorted(hashes[found] for model in MODELS if (found := digest(modeling(site, model).read_bytes())) in hashes)


@pytest.mark.parametrize("release", ["4.57.1", "4.57.3", "4.57.6"])
def test_install_then_revert_leaves_everything_equal(
    release: str, real_site: Callable[[str], Path], overlay: Overlay
) -> None:
    site = real_site(release)
    modeling(site, "llama").chmod(0o640)
    modeling(site, "qwen3").chmod(0o444)
    before = snapshot(site)
    done = install(overlay, site)
    assert (done.code, done.json["action"], done.err) == (0, "installed", "")
    assert overlaid(site) == sorted(MODELS)
    changed = {name for name, found in snapshot(site).items() if found != before[name]}
    assert changed == {modeling(site, model).relative_to(site).as_posix() for model in MODELS}
    assert modeling(site, "llama").stat().st_mode & 0o777 == 0o640
    assert modeling(site, "qwen3").stat().st_mode & 0o777 == 0o444
    assert overlay("revert", "--site-packages", site).code == 0
    assert snapshot(site) == before
    assert {path.name for path in (site / ".amd-overlay").iterdir()} == {"blobs", "history.jsonl", "lock"}
    assert list((site / ".amd-overlay" / "blobs").iterdir()) == []


def test_a_second_install_writes_nothing(site: Path, overlay: Overlay) -> None:
    install(overlay, site)
    before = {path: path.lstat().st_mtime_ns for path in site.rglob("*")}
    again = install(overlay, site)
    assert (again.code, again.json["action"]) == (0, "nothing")
    assert {path: path.lstat().st_mtime_ns for path in site.rglob("*")} == before


def test_a_second_revert_and_a_revert_of_stock_write_nothing(site: Path, overlay: Overlay) -> None:
    before = {path: path.lstat().st_mtime_ns for path in site.rglob("*")}
    done = overlay("revert", "--site-packages", site)
    assert done.code == 0
    assert "nothing is installed here" in done.out
    assert {path: path.lstat().st_mtime_ns for path in site.rglob("*")} == before


def test_models_are_the_full_desired_set(site: Path, overlay: Overlay) -> None:
    before = snapshot(site)
    install(overlay, site, "--models", "llama,phi3")
    assert overlaid(site) == ["llama", "phi3"]
    done = install(overlay, site, "--models", "qwen3, llama")
    files = done.json["files"]
    assert files == {
        "installed": ["models/qwen3/modeling_qwen3.py"],
        "updated": [],
        "removed": ["models/phi3/modeling_phi3.py"],
        "unchanged": ["models/llama/modeling_llama.py"],
    }
    assert overlaid(site) == ["llama", "qwen3"]
    phi = modeling(site, "phi3").relative_to(site).as_posix()
    assert snapshot(site)[phi] == before[phi]
    overlay("revert", "--site-packages", site)
    assert snapshot(site) == before


def test_dry_run_writes_nothing(site: Path, overlay: Overlay) -> None:
    before = {path: path.lstat().st_mtime_ns for path in site.rglob("*")}
    done = install(overlay, site, "--dry-run")
    assert (done.code, done.json["action"]) == (0, "planned")
    assert len(done.json["files"]["installed"]) == len(MODELS)  # type: ignore[index]
    assert {path: path.lstat().st_mtime_ns for path in site.rglob("*")} == before


@pytest.mark.parametrize(
    ("release", "remedy"),
    [
        ("4.56.2", ["`overlay install --generate`"]),
        ("5.23.0", ["`overlay install`, which takes the installed release"]),  # has overlays, but others were asked for
    ],
)
def test_another_release_is_refused_with_found_supported_and_next(
    release: str, remedy: list[str], stock_tree: Callable[[str], Path], tmp_path: Path, overlay: Overlay
) -> None:
    tree = stock_tree(release)
    before = {path: path.lstat().st_mtime_ns for path in tree.iterdir()}
    done = install(overlay, tree)
    message = str(done.error["message"])
    assert done.code == done.error["code"] == 3
    assert release in message
    assert "4.57.6" in message
    assert all(words in str(done.error["remedy"]) for words in remedy)
    assert {path: path.lstat().st_mtime_ns for path in tree.iterdir()} == before


@pytest.mark.parametrize("wanted", ["4.57.1", "4.57.99", "!=4.57.6", "4.99"])
def test_a_supported_release_is_not_to_be_installed_again(site: Path, overlay: Overlay, wanted: str) -> None:
    done = overlay("install", "--transformers", wanted, "--site-packages", site, "--json")
    assert done.code == done.error["code"] == 3
    assert "`overlay install`" in str(done.error["remedy"])
    assert "pip install" not in str(done.error["remedy"])


def test_without_a_specifier_the_installed_release_is_taken(site: Path, overlay: Overlay) -> None:
    done = overlay("install", "--site-packages", site, "--models", "llama", "--json")
    assert (done.code, done.json["action"]) == (0, "installed")


def test_a_release_without_overlays_is_led_to_generate(stock_tree: Callable[[str], Path], overlay: Overlay) -> None:
    tree = stock_tree("4.56.2")
    for arguments in ([], ["--mode", "hook"], ["--transformers", "4.56"], ["--transformers", "4.57.1"]):
        done = overlay("install", *arguments, "--site-packages", tree, "--json")
        assert done.code == done.error["code"] == 3
        assert "`overlay install --generate`" in str(done.error["remedy"])
        assert "pip install" not in str(done.error["remedy"])
    assert "next: run `overlay install --generate`" in overlay("status", "--site-packages", tree).out
    assert "`overlay install --generate`" in overlay("doctor", "--site-packages", tree).out


@pytest.mark.parametrize("option", ["--python", "--site-packages"])
@pytest.mark.parametrize("command", [["install", "--transformers", "4.57"], ["revert"], ["status"], ["diff"]])
def test_an_empty_path_is_not_the_current_folder(
    site: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch, command: list[str], option: str
) -> None:
    monkeypatch.chdir(site)
    done = overlay(*command, option, "", "--json")
    assert done.code == done.error["code"] == 2
    assert f"{option} was given an empty text" in str(done.error["message"])
    assert not (site / ".amd-overlay").exists()


def test_a_hand_edited_file_is_refused(site: Path, overlay: Overlay) -> None:
    with modeling(site, "qwen3").open("a") as file:
        file.write("# my fix\n")
    before = snapshot(site)
    done = install(overlay, site)
    assert done.code == done.error["code"] == 4
    assert done.error["paths"] == [str(modeling(site, "qwen3"))]
    assert snapshot(site) == before
    assert not (site / ".amd-overlay").exists()
    assert install(overlay, site, "--models", "llama").code == 0


def test_a_text_of_another_release_is_an_edit(site: Path, stock_tree: Callable[[str], Path], overlay: Overlay) -> None:
    modeling(site, "llama").write_bytes(modeling(stock_tree("4.57.3"), "llama").read_bytes())
    assert install(overlay, site).code == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--transformers", "4.5x"], 2, ["4.5x", "4.57"]),
        (["--transformers", "4.99"], 3, ["4.99", "4.57.6"]),
        (["--transformers", "4.57", "--models", "lama"], 2, ["lama", "did you mean llama?"]),
        (["--transformers", "4.57", "--models", "LLAMA"], 2, ["LLAMA", "did you mean llama?"]),
        (["--transformers", "4.57", "--models", ","], 2, ["--models names no model", "llama"]),
        (["--transformers", "4.57", "--models", ""], 2, ["--models names no model", "llama"]),
        (["--transformers", "4.57", "--nonsense"], 2, ["--nonsense"]),
    ],
)
def test_wrong_arguments(site: Path, overlay: Overlay, arguments: list[str], code: int, words: list[str]) -> None:
    done = overlay("install", *arguments, "--site-packages", site, "--json")
    assert done.code == done.error["code"] == code
    for word in words:
        assert word in str(done.error["message"])
    assert str(done.error["remedy"])
    assert not (site / ".amd-overlay").exists()
    assert "Traceback" not in done.err


def test_a_busy_lock(site: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAY_LOCK_SECONDS", "0.1")
    (site / ".amd-overlay").mkdir()
    with filelock.FileLock(site / ".amd-overlay" / "lock", is_singleton=False):
        code = (
            "import sys; from rocm_overlay.app import run;"
            "sys.exit(run(['install', '--transformers', '4.57', '--site-packages', sys.argv[1], '--json']))"
        )
        done = run_process(str(site), code=code, OVERLAY_LOCK_SECONDS="0.1")
    assert done.code == done.error["code"] == 6
    assert overlaid(site) == []


def test_a_nonsense_lock_time(site: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAY_LOCK_SECONDS", "soon")
    done = install(overlay, site)
    assert done.code == 2
    assert "OVERLAY_LOCK_SECONDS" in str(done.error["message"])


def test_a_failure_after_the_commit_point_is_rolled_back(
    site: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace, seen = snapshot(site), Fs.replace, []

    def failing(self: Fs, source: str, name: str, at: int) -> None:
        if name.startswith("modeling_"):
            seen.append(name)
            if len(seen) == 4:
                raise OSError(5, "Input/output error")
        replace(self, source, name, at)

    monkeypatch.setattr(Fs, "replace", failing)
    done = install(overlay, site)
    assert done.code == done.error["code"] == 10
    assert snapshot(site) == before


def test_status_check_diff_and_their_exit_codes(site: Path, overlay: Overlay) -> None:
    where = ("--site-packages", site)
    assert overlay("status", "--check", *where).code == 1
    assert overlay("diff", "--exit-code", *where).code == 0
    install(overlay, site, "--models", "llama")
    status = overlay("status", "--check", "--json", *where)
    assert (status.code, status.json["state"], status.json["schema"]) == (0, "APPLIED", "amd-overlay.status/1")
    diff = overlay("diff", "--exit-code", *where)
    assert diff.code == 1
    assert diff.out.startswith("--- a/transformers/models/llama/modeling_llama.py\n+++ b/transformers/")
    assert "\n+# amd-overlay/1" in diff.out


def test_a_bug_has_its_own_code(site: Path, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "resolve", lambda **options: 1 / 0)
    done = install(overlay, site)
    assert done.code == done.error["code"] == 70
    assert "ZeroDivisionError" in done.err


@pytest.mark.parametrize("command", [["list"], ["env", "--profile", "max"], ["env", "--profile", "off"], ["env"]])
def test_commands_without_a_target(overlay: Overlay, command: list[str]) -> None:
    done = overlay(*command, "--json")
    assert (done.code, done.json["ok"]) == (0, True)
    assert overlay(*command).out


def test_env_prints_shell_that_amd_ops_accepts(overlay: Overlay) -> None:
    lines = overlay("env", "--profile", "max").out.splitlines()
    assert "export USE_AITER_ATTENTION=1" in lines
    script = "; ".join([*lines, "env"])
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert "USE_FUSED_PROJECTIONS=1" in shown


def test_version_and_help(overlay: Overlay) -> None:
    import rocm_overlay

    assert run_process("--version").out == f"overlay {rocm_overlay.__version__}\n"
    assert overlay("--version").out == f"overlay {rocm_overlay.__version__}\n"
    assert overlay("--help").code == 0
    assert overlay().code == 0, "a bare call is a question, as with gh and uv"


SIGNALLER = """
import os, sys, time
from rocm_overlay.install.transaction.fs import Fs
from rocm_overlay.cli import main
replace, left = Fs.replace, [int(os.environ["SIGNAL_AT"])]
def signalling(self, source, name, at):
    if name.startswith("modeling_"):
        left[0] -= 1
        if left[0] == 0:
            for number in os.environ["SIGNALS"].split(","):
                os.kill(os.getpid(), int(number))
    replace(self, source, name, at)
Fs.replace = signalling
main()
"""


def signalled(at: int, numbers: list[int], *arguments: str) -> Done:
    """Run the program and send it signals right before it replaces the ``at``-th file."""
    return run_process(
        *arguments, code=SIGNALLER, SIGNAL_AT=str(at), SIGNALS=",".join(str(int(number)) for number in numbers)
    )


QUICK_POINTS = {1, 2, 9, len(MODELS) // 2, len(MODELS) - 1, len(MODELS)}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=() if point in QUICK_POINTS else pytest.mark.full)
        for point in range(1, len(MODELS) + 1)
    ],
)
def test_sigkill_of_the_real_install_is_shown_by_status_and_healed_by_recover(site: Path, point: int) -> None:
    before, where = snapshot(site), ("--site-packages", str(site))
    done = signalled(point, [signal.SIGKILL], "install", "--transformers", "4.57", *where)
    assert done.code == -signal.SIGKILL
    assert len(overlaid(site)) == point - 1
    killed = snapshot(site)
    status = run_process("status", "--json", *where)
    assert status.json["state"] == "INTERRUPTED"
    assert "overlay recover" in str(status.json["notes"])
    assert snapshot(site) == killed, "looking changes nothing"
    assert run_process("recover", "--json", *where).json["recovered"]["outcome"] == "rolled back"  # type: ignore[index]
    assert snapshot(site) == before
    assert run_process("status", "--json", *where).json["state"] == "STOCK"


@pytest.mark.parametrize("point", [1, 5, len(MODELS)])
def test_sigkill_of_the_real_revert_is_healed_by_the_next_command(site: Path, overlay: Overlay, point: int) -> None:
    before, where = snapshot(site), ("--site-packages", str(site))
    install(overlay, site)
    assert signalled(point, [signal.SIGKILL], "revert", *where).code == -signal.SIGKILL
    healed = run_process("recover", "--json", *where)
    assert healed.json["recovered"]["outcome"] == "rolled forward"  # type: ignore[index]
    assert snapshot(site) == before


def test_sigkill_then_install_ends_installed(site: Path, overlay: Overlay) -> None:
    signalled(3, [signal.SIGKILL], "install", "--transformers", "4.57", "--site-packages", str(site))
    assert install(overlay, site).json["action"] == "installed"
    assert overlaid(site) == sorted(MODELS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_rolls_an_install_back(site: Path, number: int) -> None:
    before = snapshot(site)
    done = signalled(3, [number], "install", "--transformers", "4.57", "--site-packages", str(site), "--json")
    assert done.code == done.error["code"] == 130
    assert "Traceback" not in done.err
    assert snapshot(site) == before
    assert run_process("status", "--json", "--site-packages", str(site)).json["recovered"] is None


def test_one_signal_does_not_stop_a_revert(site: Path, overlay: Overlay) -> None:
    before = snapshot(site)
    install(overlay, site)
    assert signalled(3, [signal.SIGTERM], "revert", "--site-packages", str(site)).code == 0
    assert snapshot(site) == before


def test_a_second_signal_leaves_the_journal_for_the_next_command(site: Path) -> None:
    before, where = snapshot(site), ("--site-packages", str(site))
    done = signalled(3, [signal.SIGINT, signal.SIGINT], "install", "--transformers", "4.57", *where)
    assert done.code == 130
    assert (site / ".amd-overlay" / "txn.json").exists()
    assert run_process("recover", "--json", *where).json["recovered"]["outcome"] == "rolled back"  # type: ignore[index]
    assert snapshot(site) == before


def test_eight_installers_at_once(site: Path) -> None:
    command = [sys.executable, "-m", "rocm_overlay", "install", "--transformers", "4.57", "--site-packages", str(site)]
    running = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)
    ]
    results = [(process.communicate()[1], process.returncode) for process in running]
    assert results == [(b"", 0)] * 8, results
    assert overlaid(site) == sorted(MODELS)


def test_an_unknown_text_stops_recovery_until_force_rescues_it(site: Path, overlay: Overlay) -> None:
    before, where = snapshot(site), ("--site-packages", str(site))
    signalled(3, [signal.SIGKILL], "install", "--transformers", "4.57", *where)
    modeling(site, "gemma").write_bytes(b"mine\n")
    for command in (["recover"], ["revert"], ["install", "--transformers", "4.57"]):
        done = overlay(*command, *where, "--json")
        assert done.code == done.error["code"] == 7
        assert done.error["paths"] == [str(modeling(site, "gemma"))]
    assert overlay("status", *where, "--json").json["state"] == "INTERRUPTED"
    done = overlay("revert", "--force", *where, "--json")
    assert done.code == 0
    rescued = done.json["recovered"]["rescued"]  # type: ignore[index]
    assert [Path(path).read_bytes() for path in rescued] == [b"mine\n"]
    assert snapshot(site) == before
