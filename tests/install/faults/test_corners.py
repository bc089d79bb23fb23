# long: the corners of one transaction, each a few lines, share one set of fixtures
"""Corners of the transaction that no fault leads to: refusals, damaged state, metadata that a system will not set."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import (
    BusyError,
    CancelledError,
    ForeignError,
    OverlayError,
    RolledBackError,
    UnrecoveredError,
    WriteError,
)
from rocm_overlay.install.transaction import apply, blobs, journal, lock, receipt, states
from rocm_overlay.install.transaction.apply import Plan, execute, preflight
from rocm_overlay.install.transaction.decode import MalformedError, Reader, dump, parse
from rocm_overlay.install.transaction.entry import FILE, Entry, sha256
from rocm_overlay.install.transaction.fs import Tree
from rocm_overlay.install.transaction.place import BLOBS, HISTORY, JOURNAL, LOCK, RECEIPT, STATE, Place, now_ns
from rocm_overlay.install.transaction.recovery import BACK, COMPLETED, FORWARD, ORPHANED, recover
from rocm_overlay.install.transaction.signals import HardStop, Signals

from tests.forking import fork
from tests.install.faults import harness
from tests.install.faults.harness import ALL_OVERLAY, ALL_STOCK, INSTALL, PATHS, World


@pytest.fixture
def world(disk: Path) -> World:
    return harness.build(disk / "world")


@pytest.fixture
def stopped(disk: Path) -> World:
    return harness.RECOVER_INSTALL.world(disk / "stopped")


class RefusingFs(harness.FastFs):
    """Refuses some calls with an error; everything else works."""

    def __init__(self, number: int, *names: str) -> None:
        self.refused: list[str] = []
        for name in names:
            setattr(self, name, self._refuse(number, name))

    def _refuse(self, number: int, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.refused.append(name)
            raise OSError(number, os.strerror(number))

        return call


def texts(world: World) -> dict[str, bytes]:
    return {path: world.file(path).read_bytes() for path in PATHS}


# -- refusals before anything is changed -------------------------------------------------------------------------


def test_preflight_names_the_folder_that_refuses(world: World) -> None:
    place = world.place(RefusingFs(errno.EROFS, "create"))
    with pytest.raises(WriteError, match=r"pkg/sub.*Read-only file system.*Nothing was changed") as caught:
        preflight(place, {"pkg/sub"})
    assert caught.value.id == "cannot-write"
    preflight(world.place(), {"pkg", "pkg/sub"})
    assert sorted(path.name for path in world.file("sub").iterdir()) == ["__pycache__", "b.py", "c.py"]


def test_a_probe_that_another_command_swept_is_no_trouble(world: World) -> None:
    class SweptFs(harness.FastFs):
        def fsync(self, fd: int) -> None:
            for file in world.file("").glob(".probe.*.ovtmp"):
                file.unlink()

    preflight(world.place(SweptFs()), {"pkg"})


def test_no_space_says_how_much_is_free(world: World) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(WriteError, match=r"KiB are free") as caught:
            preflight(world.place(RefusingFs(number, "write")), {"pkg"})
        assert caught.value.id == "no-space"


def test_an_error_without_a_text_is_shown_as_it_is(world: World) -> None:
    refusal = lock.cannot_write(world.place(), world.site, OSError("changed by another process"))
    assert "changed by another process" in refusal.message


def test_the_holder_of_the_root_itself_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lstat(self: Path) -> Any:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(PermissionError):
        lock._holder(Path("/a/b"))


def test_the_lock_is_one_and_says_who_waits(world: World) -> None:
    place = world.place()
    with lock.locked(place, 0.1):
        with pytest.raises(
            BusyError, match=r"lock is held by another overlay command, also after waiting 0\.1 s"
        ) as no:
            _take(place)
        assert no.value.paths == (str(world.site / STATE / "lock"),)
    _take(place)
    assert (world.site / STATE / "lock").stat().st_mode & 0o777 == 0o644


def test_a_lock_held_by_a_dead_process_is_free(world: World) -> None:
    def die_holding_it() -> None:
        with lock.locked(world.place(), 0.1):
            os._exit(harness.KILLED)

    assert fork(die_holding_it) == harness.KILLED
    _take(world.place())


def test_a_lock_that_cannot_be_made_is_a_refusal(world: World) -> None:
    with (
        pytest.raises(WriteError, match="Permission denied"),
        lock.locked(world.place(RefusingFs(errno.EACCES, "mkdir")), 0.1),
    ):
        pass


def _take(place: Place) -> None:
    with lock.locked(place, 0.1):
        pass


def test_an_open_journal_of_another_process_is_not_overwritten(world: World, stopped: World) -> None:
    theirs = (stopped.site / JOURNAL).read_bytes()
    plan = harness.install_plan(world)
    world.place().prepare()
    (world.site / JOURNAL).write_bytes(theirs)
    with pytest.raises(BusyError, match="Another overlay transaction is open"):
        harness.run(world, plan)
    assert (world.site / JOURNAL).read_bytes() == theirs
    assert texts(world) == ALL_STOCK
    assert list(world.site.rglob("*.ovtmp")) == []
    assert list((world.site / BLOBS).iterdir()) == []


@pytest.mark.parametrize("moment", ["before staging", "after staging"])
def test_an_edit_while_we_prepare_stays(world: World, moment: str) -> None:
    plan = harness.install_plan(world)

    class EditingFs(harness.FastFs):
        def create(self, name: str, at: int) -> int:
            if name.startswith(".a." if moment == "before staging" else ".c."):
                world.file("a.py").write_bytes(b"mine\n")
            return super().create(name, at)

    with pytest.raises(WriteError, match=r"a\.py was changed by another process"):
        harness.run(world, plan, EditingFs())
    assert texts(world) == {**ALL_STOCK, "a.py": b"mine\n"}
    assert list(world.site.rglob("*.ovtmp")) == []
    assert not (world.site / JOURNAL).exists()


def test_an_edit_after_the_commit_point_stays_and_a_person_decides(world: World) -> None:
    class EditingFs(harness.FastFs):
        def replace(self, source: str, name: str, at: int) -> None:
            super().replace(source, name, at)
            if name == "b.py":
                world.file("sub/c.py").chmod(0o644)
                world.file("sub/c.py").unlink()
                world.file("sub/c.py").write_bytes(b"mine\n")

    with pytest.raises(UnrecoveredError, match="neither the one before nor the one after"):
        harness.run(world, harness.install_plan(world), EditingFs())
    assert world.file("sub/c.py").read_bytes() == b"mine\n"
    with pytest.raises(UnrecoveredError):
        recover(world.place(), harness.VERSION)
    done = recover(world.place(), harness.VERSION, force=True)
    assert done is not None
    assert (done.outcome, [Path(path).read_bytes() for path in done.rescued]) == (BACK, [b"mine\n"])
    assert done.rescued[0].endswith(f"/rescued/{done.id}/sub/c.py")
    assert texts(world) == ALL_STOCK


def test_an_edit_right_after_the_last_replacement_is_met_by_the_verification(world: World) -> None:
    class EditingFs(harness.FastFs):
        seen = 0

        def replace(self, source: str, name: str, at: int) -> None:
            super().replace(source, name, at)
            if name == "c.py":
                world.file("a.py").write_bytes(b"mine\n")

    with pytest.raises(UnrecoveredError, match=r"a\.py"):
        harness.run(world, harness.install_plan(world), EditingFs())
    assert world.file("a.py").read_bytes() == b"mine\n"


def test_an_edit_during_recovery_is_met(stopped: World) -> None:
    class EditingFs(harness.FastFs):
        def replace(self, source: str, name: str, at: int) -> None:
            super().replace(source, name, at)
            stopped.file("a.py").write_bytes(b"mine\n")

    with pytest.raises(UnrecoveredError, match="changed while it was being restored"):
        recover(stopped.place(EditingFs()), harness.VERSION)
    assert stopped.file("a.py").read_bytes() == b"mine\n"


@pytest.mark.parametrize("stage", ["prepare", "replace"])
def test_a_bug_of_ours_is_not_dressed_up(world: World, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"prepare": "stage", "replace": "publish"}[stage]
    original = getattr(Tree, name)
    failed: list[str] = []

    def failing(self: Tree, path: str, *args: Any) -> Any:
        if path == "pkg/sub/b.py" and not failed:
            failed.append(path)
            raise ZeroDivisionError
        return original(self, path, *args)

    plan = harness.install_plan(world)
    with monkeypatch.context() as patched:
        patched.setattr(Tree, name, failing)
        with pytest.raises(ZeroDivisionError):
            harness.run(world, plan)
    assert harness.judge(world, INSTALL.allowed) == "stock"


def test_a_signal_while_files_are_replaced_puts_everything_back(world: World) -> None:
    sent: list[int] = []

    class SignalledFs(harness.FastFs):
        def replace(self, source: str, name: str, at: int) -> None:
            super().replace(source, name, at)
            if name == "a.py" and not sent:
                sent.append(signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CancelledError, match="SIGTERM received; the files are as they were"):
        harness.run(world, harness.install_plan(world), SignalledFs())
    assert signal.getsignal(signal.SIGTERM) is before
    assert harness.end_state(world, INSTALL) == "stock"


def test_the_second_signal_stops_at_once() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(HardStop):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(CancelledError, match="SIGINT"):
            signals.check()


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    seen = []

    def body() -> None:
        with Signals() as signals:
            signals.check()
            seen.append((signal.getsignal(signal.SIGINT), signals._previous))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, {})]


# -- the disk refuses things that can be done without ------------------------------------------------------------


def test_a_history_that_cannot_be_written_is_a_remark(world: World) -> None:
    with Signals() as signals:
        done = execute(world.place(RefusingFs(errno.EIO, "open_append")), harness.install_plan(world), signals)
    assert ["history.jsonl could not be written" in note for note in done.notes] == [True]
    assert texts(world) == ALL_OVERLAY


def test_the_history_has_one_line_per_transaction_up_to_its_limit(world: World) -> None:
    harness.run(world, harness.install_plan(world))
    harness.run(world, harness.revert_plan(world))
    lines = [json.loads(line) for line in (world.site / HISTORY).read_text().splitlines()]
    assert [(line["kind"], line["version"], line["time"], line["files"]) for line in lines] == [
        ("install", "1.0", "now", list(PATHS)),
        ("revert", "1.0", "now", list(PATHS)),
    ]
    assert (world.site / HISTORY).stat().st_mode & 0o777 == 0o644
    (world.site / HISTORY).write_bytes(b"x" * apply.HISTORY_LIMIT)
    harness.run(world, harness.install_plan(world))
    assert (world.site / HISTORY).stat().st_size == apply.HISTORY_LIMIT


def test_a_recovery_that_cannot_tidy_says_so(stopped: World) -> None:
    class UntidyFs(harness.FastFs):
        def unlink(self, name: str, at: int) -> None:
            if len(name) == 64:
                raise OSError(errno.EIO, "no")
            super().unlink(name, at)

    done = recover(stopped.place(UntidyFs()), harness.VERSION)
    assert done is not None
    assert done.outcome == BACK
    assert ["tidying up" in note for note in done.notes] == [True]
    assert not (stopped.site / JOURNAL).exists()


def test_attributes_that_the_system_refuses_are_named(world: World) -> None:
    if not os.listxattr(world.file("a.py")):
        pytest.skip("this file system has no user attributes")
    with Signals() as signals:
        done = execute(world.place(RefusingFs(errno.EPERM, "set_xattr")), harness.install_plan(world), signals)
    assert ["extended attribute user.origin could not be set" in note for note in done.notes] == [True]
    with pytest.raises(WriteError, match="Input/output"):
        harness.run(world, _reverted_first(world), RefusingFs(errno.EIO, "set_xattr"))


def _reverted_first(world: World) -> Plan:
    harness.run(world, harness.revert_plan(world))
    os.setxattr(world.file("a.py"), "user.origin", b"wheel")
    return harness.install_plan(world)


def test_a_disk_without_attributes_works(world: World) -> None:
    for name in os.listxattr(world.file("a.py")):
        os.removexattr(world.file("a.py"), name)
    fs = RefusingFs(errno.ENOTSUP, "xattrs")
    harness.run(world, harness.install_plan(world), fs)
    assert fs.refused
    assert texts(world) == ALL_OVERLAY


def test_attributes_that_a_folder_gives_to_new_files_are_removed(world: World) -> None:
    if not os.listxattr(world.file("a.py")):
        pytest.skip("this file system has no user attributes")

    class LabellingFs(harness.FastFs):
        def create(self, name: str, at: int) -> int:
            fd = super().create(name, at)
            os.setxattr(fd, "user.inherited", b"label")
            return fd

        def remove_xattr(self, fd: int, name: str) -> None:
            if not os.fstat(fd).st_mode & 0o200:  # what the kernel tells everybody but root
                raise PermissionError(errno.EACCES, "the file is read-only")
            super().remove_xattr(fd, name)

    harness.run(world, harness.install_plan(world), LabellingFs())
    assert os.listxattr(world.file("a.py")) == ["user.origin"]
    harness.run(world, harness.revert_plan(world), LabellingFs())
    assert harness.judge(world, INSTALL.allowed) == "stock"


def test_a_write_that_stores_nothing_is_an_error(world: World) -> None:
    class FullFs(harness.FastFs):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return 0

    with pytest.raises(WriteError, match="nothing could be written"):
        harness.run(world, harness.install_plan(world), FullFs())
    assert texts(world) == ALL_STOCK


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")
def test_root_gives_what_it_adds_to_the_owner_of_the_folder(world: World) -> None:
    for path in [world.site, *world.site.rglob("*")]:
        os.chown(path, 12345, 23456, follow_symlinks=False)
    world.before = {path: world.state(path) for path in PATHS}
    harness.run(world, harness.install_plan(world))
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in world.site.rglob("*")}
    assert owners == {(12345, 23456)}
    harness.run(world, harness.revert_plan(world))
    assert harness.judge(world, INSTALL.allowed) == "stock"


# -- paths and kinds of files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x.py", "pkg/../../x.py", "pkg//a.py", "/etc/x.py"])
def test_a_path_that_leads_out_is_never_opened(world: World, path: str) -> None:
    with pytest.raises(ValueError, match="is not a path below"):
        world.place().tree.observe(path)


def test_only_regular_files_are_read(world: World) -> None:
    os.mkfifo(world.file("pipe.py"))
    (world.site / "pkg" / "folder.py").mkdir()
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="not a regular file"):
        world.place().tree.observe("pkg/folder.py")
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_text_that_is_gone_everywhere_is_named(world: World) -> None:
    world.place().prepare()
    with pytest.raises(UnrecoveredError, match=r"pkg/a\.py is neither in .*blobs nor in the bundle") as caught:
        blobs.fetch(world.place(), "a.py", "0" * 64, blobs.no_second_source)
    assert caught.value.id == "text-lost"
    with pytest.raises(UnrecoveredError):
        blobs.fetch(world.place(), "a.py", "0" * 64, lambda path, digest: b"another text")
    assert blobs.fetch(world.place(), "a.py", sha256(b"t"), lambda path, digest: b"t") == b"t"


# -- recovery with damaged or foreign state ----------------------------------------------------------------------


def test_recovery_without_a_journal_does_nothing(world: World) -> None:
    assert recover(world.place(), harness.VERSION) is None


def test_recovery_of_a_finished_install_only_closes(world: World) -> None:
    plan = harness.install_plan(world)
    assert fork(lambda: harness.run(world, plan, harness.UnclosedFs())) == harness.KILLED
    done = recover(world.place(), harness.VERSION)
    assert done is not None
    assert (done.id, done.kind, done.outcome, done.paths) == (plan.id, "install", COMPLETED, PATHS)
    assert harness.judge(world, INSTALL.allowed) == "overlay"


def test_recovery_takes_a_lost_blob_from_the_second_source(stopped: World) -> None:
    for blob in (stopped.site / BLOBS).iterdir():
        blob.unlink()
    with pytest.raises(UnrecoveredError) as caught:
        recover(stopped.place(), harness.VERSION)
    assert caught.value.id == "text-lost"
    done = recover(stopped.place(), harness.VERSION, lambda path, digest: harness.stock(path))
    assert done is not None
    assert done.outcome == BACK
    assert harness.judge(stopped, INSTALL.allowed) == "stock"


def test_recovery_writes_an_unreadable_receipt_anew(disk: Path) -> None:
    world = harness.RECOVER_REVERT.world(disk / "world")
    (world.site / RECEIPT).write_bytes(b"{")
    done = recover(world.place(), harness.VERSION)
    assert done is not None
    assert done.outcome == FORWARD
    assert harness.judge(world, INSTALL.allowed) == "stock"


def test_recovery_restores_a_file_that_somebody_deleted(stopped: World) -> None:
    stopped.file("sub/c.py").unlink()
    done = recover(stopped.place(), harness.VERSION)
    assert done is not None
    assert texts(stopped) == ALL_STOCK


def test_another_release_with_our_text_in_it_is_left_alone(stopped: World) -> None:
    before = texts(stopped)
    with pytest.raises(UnrecoveredError, match=r"belongs to transformers 1\.0, found 2\.0, and 1 file") as caught:
        recover(stopped.place(), "2.0")
    assert caught.value.id == "release-changed"
    assert texts(stopped) == before
    assert (stopped.site / JOURNAL).exists()


def test_the_journal_of_another_release_is_set_aside(stopped: World) -> None:
    text = json.loads((stopped.site / JOURNAL).read_bytes())
    for path in PATHS:
        stopped.file(path).unlink()
        stopped.file(path).write_bytes(b"of release 2.0\n")
    done = recover(stopped.place(), "2.0")
    assert done is not None
    assert done.outcome == ORPHANED
    assert [json.loads(Path(path).read_bytes()) for path in done.rescued] == [text]
    assert not (stopped.site / JOURNAL).exists()
    assert not (stopped.site / RECEIPT).exists()
    assert set(texts(stopped).values()) == {b"of release 2.0\n"}


def test_an_uninstalled_package_lets_go_of_its_journal(disk: Path) -> None:
    world = harness.RECOVER_REVERT.world(disk / "world")
    for path in PATHS:
        world.file(path).unlink()
    done = recover(world.place(), None)
    assert done is not None
    assert done.outcome == ORPHANED


def test_a_revert_that_creates_a_missing_file_goes_forward(disk: Path) -> None:
    world = harness.build(disk / "world")
    harness.run(world, harness.install_plan(world))
    world.file("a.py").unlink()
    current = receipt.load(world.place())
    assert current is not None
    steps = tuple(
        apply.Step(file.path, world.place().tree.observe(f"pkg/{file.path}"), file.stock, harness.stock(file.path))
        for file in current.files
    )
    plan = Plan(journal.REVERT, harness.VERSION, "now", steps, current.to_json(), None)
    assert plan.journal("pkg").changes[0].before is None
    code = fork(lambda: harness.run(world, plan, harness._kill_at_replace(2)))
    assert code == harness.KILLED
    assert journal_round_trips(world)
    done = recover(world.place(), harness.VERSION)
    assert done is not None
    assert done.outcome == FORWARD
    assert harness.judge(world, INSTALL.allowed) == "stock"


def journal_round_trips(world: World) -> bool:
    loaded = journal.load(world.place())
    assert loaded is not None
    return dump(loaded.to_json()) == (world.site / JOURNAL).read_bytes()


# -- documents ---------------------------------------------------------------------------------------------------

ENTRY = Entry(FILE, "0" * 64, 1, 0o644, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pipe"}, "does not fit"),
        ({"kind": "link"}, "does not fit"),
        ({"link_target": "x"}, "does not fit"),
        ({"sha256": "0" * 63}, "not a sha256"),
        ({"sha256": "0" * 63 + "G"}, "not a sha256"),
        ({"size": "1"}, "expected an integer, found a string"),
        ({"size": True}, "expected an integer, found true or false"),
        ({"xattrs": []}, "expected an object, found a list"),
        ({"xattrs": {"a": 1}}, "expected a string, found an integer"),
    ],
)
def test_a_wrong_entry_is_one_sentence(change: dict[str, object], words: str) -> None:
    good = ENTRY.to_json()
    assert Entry.from_json(Reader(good, "x")) == ENTRY
    with pytest.raises(MalformedError, match=words):
        Entry.from_json(Reader({**good, **change}, "x"))
    for key in good:
        with pytest.raises(MalformedError, match=f"{key} is missing"):
            Entry.from_json(Reader({name: value for name, value in good.items() if name != key}, "x"))


@pytest.mark.parametrize(
    ("read", "value", "words"),
    [
        (lambda reader: reader.texts("k"), ["a", 1], "x: k: expected a list of strings"),
        (lambda reader: reader.texts("k"), "a", "x: k: expected a list, found a string"),
        (lambda reader: reader.integers("k", 2), [1], "x: k: expected 2 integers"),
        (lambda reader: reader.integers("k", 2), [1, True], "x: k: expected 2 integers"),
        (lambda reader: list(reader.objects("k")), [1], r"x: k\[0\]: expected an object, found an integer"),
        (lambda reader: reader.child("k").text("n"), {"n": None}, r"x: k\.n: expected a string, found null"),
        (lambda reader: reader.matching("k", journal.MODULE_PATH), "../a.py", r"'\.\./a\.py' is not allowed here"),
        (lambda reader: reader.text("k"), 1.5, "found float"),
        (lambda reader: reader.get("other"), 1, "x: other is missing"),
    ],
)
def test_a_wrong_value_names_its_place(read: Callable[[Reader], object], value: object, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        read(Reader({"k": value}, "x"))


def test_right_values_are_read() -> None:
    reader = Reader({"texts": ["a"], "numbers": [1, 2], "none": None, "text": "t", "whole": 3, "inner": [{}]}, "x")
    assert (reader.texts("texts"), reader.integers("numbers", 2), reader.integer("whole")) == (("a",), (1, 2), 3)
    assert (reader.optional_text("none"), reader.optional_text("text")) == (None, "t")
    assert [inner.where for inner in reader.objects("inner")] == ["x: inner[0]"]


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b"[]", b""])
def test_what_is_no_json_object_is_one_sentence(data: bytes) -> None:
    with pytest.raises(MalformedError, match=r"^x: (not valid JSON|expected an object)"):
        parse(data, "x")


def test_documents_are_ascii_and_fixed() -> None:
    assert dump({"b": "\u00e4", "a": 1}) == b'{\n "a": 1,\n "b": "\\u00e4"\n}\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "amd-overlay.txn/2"}, "found amd-overlay.txn/2, expected amd-overlay.txn/1"),
        ({"kind": "upgrade"}, "kind: found 'upgrade'"),
        ({"receipt_after": 3}, "receipt_after: expected an object"),
    ],
)
def test_a_wrong_journal_is_one_sentence(stopped: World, change: dict[str, object], words: str) -> None:
    value = json.loads((stopped.site / JOURNAL).read_bytes())
    (stopped.site / JOURNAL).write_bytes(dump({**value, **change}))
    with pytest.raises(UnrecoveredError, match=words) as caught:
        journal.load(stopped.place())
    assert caught.value.id == "journal-unreadable"
    assert "upgrade transformers-rocm-overlay" in caught.value.remedy


def test_an_install_that_would_add_a_file_is_no_journal(stopped: World) -> None:
    value = json.loads((stopped.site / JOURNAL).read_bytes())
    value["changes"][2]["before"] = None
    (stopped.site / JOURNAL).write_bytes(dump(value))
    with pytest.raises(UnrecoveredError, match="it never adds one"):
        journal.load(stopped.place())


def test_a_receipt_round_trips_and_a_wrong_hash_is_refused(world: World) -> None:
    harness.run(world, harness.install_plan(world))
    current = receipt.load(world.place())
    assert current is not None
    assert dump(current.to_json()) == (world.site / RECEIPT).read_bytes()
    value = current.to_json()
    files = value["files"]
    assert isinstance(files, list)
    for change, words in (({"overlay_sha256": "x"}, "not a sha256"), ({"path": "/a.py"}, "not allowed here")):
        (world.site / RECEIPT).write_bytes(dump({**value, "files": [{**files[0], **change}]}))
        with pytest.raises(UnrecoveredError, match=words):
            receipt.load(world.place())
    with pytest.raises(MalformedError, match=r"schema: found .*receipt/2, expected"):
        receipt.Receipt.from_json(Reader({**value, "schema": "amd-overlay.receipt/2"}, "receipt"))


def test_an_error_carries_all_that_a_person_needs() -> None:
    error = ForeignError("id", "message", remedy="do this", paths=[Path("/a")])
    assert error.to_json() == {
        "code": 4, "id": "id", "message": "message", "paths": ["/a"], "remedy": "do this",
        "place": None, "expected": None, "found": None, "nearest": None, "findings": [],
    }  # fmt: skip
    assert str(error) == "message"
    assert OverlayError("id", "m", remedy="r").code == 70
    codes = {kind.__name__: kind.code for kind in OverlayError.__subclasses__()}
    assert codes == {
        "UsageError": 2, "UnsupportedError": 3, "ForeignError": 4, "WriteError": 5, "BusyError": 6,
        "UnrecoveredError": 7, "BundleError": 8, "TargetError": 9, "RolledBackError": 10, "CancelledError": 130,
        "GeneratorError": 1, "SeveralErrors": 70,  # of gen, and of several inputs: theirs when one is made
    }  # fmt: skip


def test_the_time_of_a_new_text_avoids_every_second_that_bytecode_may_carry(world: World) -> None:
    found = world.place().tree.observe("pkg/sub/b.py")
    assert found is not None
    link, cached = world.file("sub/b.py").lstat().st_mtime_ns, (world.root / "cache" / "b.py").stat().st_mtime_ns
    assert found.seconds == {link // 10**9, cached // 10**9}
    fresh = found.fresh_mtime(link + 5)
    assert fresh % 10**9 == 0
    assert fresh // 10**9 not in found.seconds
    assert link < fresh <= link + 3 * 10**9
    assert found.fresh_mtime(7 * 10**9 + 3) == 7 * 10**9


def test_states_are_named_from_the_files() -> None:
    S, O, X = states.FileState.STOCK, states.FileState.OVERLAY, states.FileState.FOREIGN  # noqa: E741
    named = states.with_receipt
    assert [named([O], stale=False), named([O], stale=True), named([S], stale=False), named([O, S], stale=True)] == [
        states.State.APPLIED, states.State.STALE, states.State.WIPED, states.State.PARTIAL,
    ]  # fmt: skip
    assert named([O, X], stale=False) is states.State.DRIFTED
    assert states.without_receipt([S], supported=True) is states.State.STOCK
    assert states.without_receipt([S], supported=False) is states.State.UNSUPPORTED
    assert states.without_receipt([S, states.FileState.MISSING], supported=True) is states.State.FOREIGN
    assert states.without_receipt([S, states.FileState.ABSENT], supported=True) is states.State.STOCK
    assert states.without_receipt([S, states.FileState.UNSEEN], supported=True) is states.State.UNSUPPORTED
    assert states.without_receipt([S, O], supported=True) is states.State.FOREIGN


def test_a_late_failure_and_an_early_one_are_different_ends(world: World) -> None:
    early = harness.FaultFs(harness.fail(1, errno.EIO, persistent=False), frozenset({"replace"}))
    with pytest.raises(WriteError):
        harness.run(world, harness.install_plan(world), early)
    assert harness.end_state(world, INSTALL) == "stock"
    late = RefusingFs(errno.EIO)
    late.replace = _fail_once_at("b.py", late.replace)  # type: ignore[method-assign]
    with pytest.raises(RolledBackError, match="every file is as it was before"):
        harness.run(world, harness.install_plan(world), late)
    assert harness.judge(world, INSTALL.allowed) == "stock"


def _fail_once_at(name: str, original: Callable[..., None]) -> Callable[..., None]:
    failed: list[str] = []

    def call(source: str, target: str, at: int) -> None:
        if target == name and not failed:
            failed.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(source, target, at)

    return call


def test_a_blob_that_is_there_is_not_written_again(world: World) -> None:
    world.place().prepare()
    blobs.put(world.place(), b"text")
    blob = world.site / BLOBS / sha256(b"text")
    inode = blob.stat().st_ino
    blobs.put(world.place(), b"text")
    assert (blob.stat().st_ino, blob.stat().st_mode & 0o777) == (inode, 0o444)
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    blobs.put(world.place(), b"text")
    assert blob.read_bytes() == b"text"


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_link_is_lost_only_to_a_repeated_refusal(world: World, refusals: int) -> None:
    harness.run(world, harness.install_plan(world))

    class ShyFs(harness.FastFs):
        left = refusals

        def open_read(self, name: str, at: int, *, follow: bool = False) -> int:
            if follow and name.startswith(".b.") and self.left:
                self.left -= 1
                raise PermissionError(errno.EACCES, "no")
            return super().open_read(name, at, follow=follow)

    with Signals() as signals:
        done = execute(world.place(ShyFs()), harness.revert_plan(world), signals)
    assert texts(world) == ALL_STOCK
    assert world.file("sub/b.py").is_symlink() == (refusals == 1)
    assert [note for note in done.notes if "restored as a file" in note] == list(done.notes)
    assert len(done.notes) == refusals - 1


def test_a_link_whose_target_is_gone_comes_back_as_a_file(world: World) -> None:
    harness.run(world, harness.install_plan(world))
    (world.root / "cache" / "b.py").unlink()
    harness.run(world, harness.revert_plan(world))
    assert texts(world) == ALL_STOCK
    assert not world.file("sub/b.py").is_symlink()


def test_attributes_that_cannot_be_read_are_a_refusal(world: World) -> None:
    with pytest.raises(WriteError, match="Input/output"):
        harness.run(world, harness.install_plan(world), RefusingFs(errno.EIO, "xattrs"))
    assert texts(world) == ALL_STOCK


def test_attributes_that_are_there_already_are_not_set_again(world: World) -> None:
    if not os.listxattr(world.file("a.py")):
        pytest.skip("this file system has no user attributes")

    class InheritingFs(harness.FastFs):
        def create(self, name: str, at: int) -> int:
            fd = super().create(name, at)
            if name.startswith(".a."):
                os.setxattr(fd, "user.origin", b"wheel")
            return fd

        def set_xattr(self, fd: int, name: str, value: bytes) -> None:
            raise AssertionError("set again")

    harness.run(world, harness.install_plan(world), InheritingFs())
    assert os.getxattr(world.file("a.py"), "user.origin") == b"wheel"


def test_a_disk_that_loses_bytes_without_a_word_is_met_by_reading_back(world: World) -> None:
    class LosingFs(harness.FastFs):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            super().write(fd, bytes(data)[:-1])
            return len(data)

    with pytest.raises(WriteError, match="read back differs"):
        harness.run(world, harness.install_plan(world), LosingFs())
    assert texts(world) == ALL_STOCK


def test_the_lock_file_can_be_read_by_all_and_written_by_its_owner(world: World) -> None:
    place = world.place()
    with lock.locked(place, 1):
        assert (world.site / LOCK).stat().st_mode & 0o7777 == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_is_told_in_kibibytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(world.site)._replace(free=2_000_000 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = lock.cannot_write(world.place(), world.site / LOCK, OSError(errno.ENOSPC, "No space left on device"))
    assert "; 2000000 KiB are free." in error.message


def test_now_is_a_whole_second_of_the_clock() -> None:
    before = time.time_ns()
    now = now_ns()
    assert now % 10**9 == 0
    assert before - 10**9 < now <= time.time_ns()


def test_a_probe_is_synced(world: World) -> None:
    """A disk may take a write and refuse to keep it: only a sync tells."""
    fs = RefusingFs(errno.ENOSPC, "fsync")
    with pytest.raises(OSError, match="No space"):
        world.place(fs).tree.probe("pkg", ".probe.ovtmp")
    assert fs.refused == ["fsync"]
