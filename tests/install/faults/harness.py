"""Stops or fails the transaction at every call it makes to the file system, and judges what is left.

The tree has three files, one of each kind that matters: a plain file with an extended attribute, a link into a package
cache, and a read-only file that shares its inode with a neighbouring environment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocm_overlay.errors import OverlayError
from rocm_overlay.install.transaction import journal, receipt
from rocm_overlay.install.transaction.apply import Plan, Step, execute, preflight
from rocm_overlay.install.transaction.entry import Entry, sha256
from rocm_overlay.install.transaction.fs import TEMPORARY, Fs
from rocm_overlay.install.transaction.place import BLOBS, JOURNAL, STATE, Place
from rocm_overlay.install.transaction.receipt import (
    ADOPTED,
    BUNDLE,
    GENERATED,
    OWN,
    Receipt,
    ReceiptFile,
    ReceiptTarget,
)
from rocm_overlay.install.transaction.recovery import recover
from rocm_overlay.install.transaction.signals import Signals

from tests.forking import fork

PACKAGE, VERSION = "pkg", "1.0"
PATHS = ("a.py", "sub/b.py", "sub/c.py")
ORIGINS = {PATHS[0]: ADOPTED, PATHS[1]: OWN, PATHS[2]: GENERATED}
"""Of the first generation; the second one is the bundle's."""
WRITING = frozenset(
    {"create", "open_append", "write", "fchown", "fchmod", "set_xattr", "remove_xattr", "futime", "lutime", "lchown"}
    | {"fsync", "symlink", "link", "replace", "unlink", "mkdir"}
)
READING = frozenset({"open_directory", "open_read", "read", "lstat", "fstat", "readlink", "names", "xattrs"})
KILLED = 77


def stock(path: str) -> bytes:
    return f"# stock {path}\n".encode() * 20


def overlay(path: str, generation: int = 1) -> bytes:
    return f"# amd-overlay/1 generation {generation}\n".encode() + stock(path) + b"# changed\n" * generation


class FastFs(Fs):
    """Does not wait for the disk: durability is not what these tests are about."""

    def fsync(self, fd: int) -> None:
        pass


class FaultFs(FastFs):
    """Calls ``act(count, name, call)`` in place of every counted system call; ``call()`` makes it."""

    def __init__(self, act: Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any], counted: frozenset[str]):
        self.count = 0
        for name in counted:
            setattr(self, name, self._wrapped(act, name, getattr(self, name)))

    def _wrapped(self, act: Callable[..., Any], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return act(self.count, name, lambda: original(*args, **kwargs), args)

        return call


def kill(at: int, *, after: bool) -> Callable[..., Any]:
    def act(count: int, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if count == at and not after:
            os._exit(KILLED)
        try:
            return call()
        finally:
            if count == at:
                os._exit(KILLED)

    return act


def fail(at: int, number: int, *, persistent: bool) -> Callable[..., Any]:
    def act(count: int, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if count == at or (persistent and count > at):
            if name == "close":
                call()  # Linux frees the descriptor whatever close() reports
            raise OSError(number, os.strerror(number), "injected")
        return call()

    return act


def short_write(at: int) -> Callable[..., Any]:
    """Let one write store half of what was asked; from then on the disk is full."""

    def act(count: int, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if name == "write" and count == at:
            return os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        if name == "write" and count > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "injected")
        return call()

    return act


@dataclass
class World:
    """A site folder with the package, a neighbour and a cache beside it, and the state before any overlay."""

    root: Path
    before: dict[str, object] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        return self.root / "site"

    def place(self, fs: Fs | None = None) -> Place:
        return Place.of(self.site, PACKAGE, fs=fs or FastFs())

    def file(self, path: str) -> Path:
        return self.site / PACKAGE / path

    def state(self, path: str) -> object:
        """Everything about a file that revert promises to bring back."""
        file = self.file(path)
        status = file.lstat()
        target = os.readlink(file) if file.is_symlink() else None
        xattrs = None if target else {name: os.getxattr(file, name) for name in os.listxattr(file)}
        return (
            file.read_bytes(),
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            target,
            str(xattrs),
        )


def build(root: Path) -> World:
    world = World(root)
    (world.file("sub") / "__pycache__").mkdir(parents=True)
    (world.site / PACKAGE / "__pycache__").mkdir()
    for name in ("neighbour", "cache"):
        (root / name).mkdir()
    a, b, c = map(world.file, PATHS)
    a.write_bytes(stock(PATHS[0]))
    with contextlib.suppress(OSError):
        os.setxattr(a, "user.origin", b"wheel")
    a.chmod(0o640)
    (root / "cache" / "b.py").write_bytes(stock(PATHS[1]))
    b.symlink_to("../../../cache/b.py")
    c.write_bytes(stock(PATHS[2]))
    c.chmod(0o444)
    os.link(c, root / "neighbour" / "c.py")
    for number, file in enumerate((a, b, c)):
        os.utime(file, ns=(10**18, 10**18 + number * 10**9 + 123456789), follow_symlinks=False)
        (file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc").write_bytes(b"compiled stock")
    world.before = {path: world.state(path) for path in PATHS}
    return world


def make_receipt(files: tuple[ReceiptFile, ...]) -> Receipt:
    target = ReceiptTarget(None, None, "site", None, VERSION, None, None, "target")
    return Receipt("1.0", "test", "0" * 64, "0", "2026-01-01T00:00:00Z", target, files)


def install_plan(world: World, generation: int = 1, paths: tuple[str, ...] = PATHS) -> Plan:
    """Plan to make the overlays of ``paths`` the full set, from whatever is there."""
    place = world.place()
    current = receipt.load(place)
    old = current.by_path() if current else {}
    steps, files = [], []
    for path in PATHS:
        found = place.tree.observe(place.target(path))
        assert found is not None
        origin = old[path].stock if path in old else found.entry
        if path in paths:
            data = overlay(path, generation)
            mtime_ns = found.fresh_mtime(2 * 10**18)
            after = Entry(
                **{**found.entry.as_file().__dict__, "sha256": sha256(data), "size": len(data), "mtime_ns": mtime_ns}
            )
            source = ORIGINS[path] if generation == 1 else BUNDLE
            recorded = None if source == BUNDLE else sha256(b"what RECORD says")
            files.append(ReceiptFile(path, "m", origin, after.sha256, (), origin=source, recorded=recorded))
        else:
            data, after = stock(path), origin
        if found.entry.sha256 != after.sha256:
            steps.append(Step(path, found, after, data))
    before = current.to_json() if current else None
    return Plan(journal.INSTALL, VERSION, "now", tuple(steps), before, make_receipt(tuple(files)).to_json())


def revert_plan(world: World) -> Plan:
    place = world.place()
    current = receipt.load(place)
    assert current is not None
    steps = []
    for file in current.files:
        found = place.tree.observe(place.target(file.path))
        assert found is not None
        steps.append(Step(file.path, found, file.stock, stock(file.path)))
    return Plan(journal.REVERT, VERSION, "now", tuple(steps), current.to_json(), None)


def run(world: World, plan: Plan, fs: Fs | None = None) -> None:
    with Signals() as signals:
        execute(world.place(fs), plan, signals)


def command(world: World, plan: Plan, fs: Fs) -> None:
    """What install and revert do: prove that every folder accepts a file, then run."""
    place = world.place(fs)
    preflight(place, {place.folder(step.path) for step in plan.steps})
    run(world, plan, fs)


def next_command(world: World, fs: Fs | None = None) -> None:
    """What every command does first."""
    place = world.place(fs)
    recover(place, VERSION)
    for folder in (PACKAGE, f"{PACKAGE}/sub", STATE, BLOBS):
        place.tree.sweep(folder)


def judge(world: World, allowed: dict[str, dict[str, bytes]]) -> str:
    """Return the name of the end state reached, one of ``allowed`` (texts by path), or "BAD: ..."."""
    texts = {path: world.file(path).read_bytes() for path in PATHS}
    name = next((name for name, wanted in allowed.items() if texts == wanted), None)
    if name is None:
        return f"BAD: mixed or foreign texts { {path: text[:30] for path, text in texts.items()} }"
    changed = [path for path in PATHS if texts[path] != stock(path)]
    for path in PATHS:
        if path not in changed and world.state(path) != world.before[path]:
            return f"BAD: {path} has stock text but other metadata: {world.state(path)}, before {world.before[path]}"
        if path in changed and world.file(path).stat().st_mtime_ns // 10**9 in range(10**9, 10**9 + 3):
            return f"BAD: {path} has an overlay text in the second of the stock text"
        compiled = world.file(path).parent / "__pycache__" / f"{Path(path).stem}.cpython-311.pyc"
        wrong = b"compiled stock" if path in changed else b"compiled overlay"
        if compiled.exists() and compiled.read_bytes() == wrong:
            return f"BAD: stale bytecode for {path}"
    if (world.root / "neighbour" / "c.py").read_bytes() != stock(PATHS[2]):
        return "BAD: the neighbour was changed"
    if (world.root / "cache" / "b.py").read_bytes() != stock(PATHS[1]):
        return "BAD: the cache was changed"
    if (world.site / JOURNAL).exists():
        return "BAD: the journal is still there"
    strays = [str(file) for file in world.site.rglob("*") if TEMPORARY.fullmatch(file.name)]
    if strays:
        return f"BAD: temporary files {strays}"
    try:
        current = receipt.load(world.place())
    except OverlayError as error:
        return f"BAD: {error}"
    if sorted(current.by_path() if current else {}) != changed:
        return f"BAD: the receipt says {sorted(current.by_path()) if current else None}, changed are {changed}"
    for file in current.files if current else ():
        if sha256(world.file(file.path).read_bytes()) != file.overlay_sha256:
            return f"BAD: the receipt has another hash for {file.path}"
        blob = world.site / BLOBS / file.stock.sha256
        if not blob.exists() or sha256(blob.read_bytes()) != file.stock.sha256:
            return f"BAD: no blob with the stock text of {file.path}"
        if blob.stat().st_nlink != 1:
            return f"BAD: the blob for {file.path} shares its inode"
    return name


ALL_STOCK = {path: stock(path) for path in PATHS}
ALL_OVERLAY = {path: overlay(path) for path in PATHS}
UPGRADED = {**{path: overlay(path, 2) for path in PATHS[:2]}, PATHS[2]: stock(PATHS[2])}


@dataclass(frozen=True)
class Scenario:
    """A starting state, a transaction, and the end states it may leave."""

    name: str
    prepare: Callable[[World], None]
    act: Callable[[World, Fs], None]
    allowed: dict[str, dict[str, bytes]]

    def world(self, root: Path) -> World:
        """Return a fresh starting state; it is made once per folder and copied from then on."""
        template = root.parent / f"template of {self.name}"
        if template not in _TEMPLATES:
            made = build(template)
            self.prepare(made)
            _TEMPLATES[template] = made
        return copy(_TEMPLATES[template], root)


_TEMPLATES: dict[Path, World] = {}


def _nothing(world: World) -> None:
    pass


def _installed(world: World) -> None:
    run(world, install_plan(world))
    for path in PATHS:
        file = world.file(path)
        (file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc").write_bytes(b"compiled overlay")


def _stopped_install(world: World) -> None:
    fork(lambda: run(world, install_plan(world), _kill_at_replace(2)))
    assert (world.site / JOURNAL).exists()


def _stopped_revert(world: World) -> None:
    _installed(world)
    fork(lambda: run(world, revert_plan(world), _kill_at_replace(2)))
    assert (world.site / JOURNAL).exists()


class UnclosedFs(FastFs):
    """Kills the process before it removes the journal, which is the last step."""

    def unlink(self, name: str, at: int) -> None:
        if name == "txn.json":
            os._exit(KILLED)
        super().unlink(name, at)


def _kill_at_replace(at: int) -> Fs:
    """Kill before the ``at``-th replacement of a target."""
    seen = 0

    def act(count: int, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        nonlocal seen
        if name == "replace" and args[1] in {"a.py", "b.py", "c.py"}:
            seen += 1
            if seen == at:
                os._exit(KILLED)
        return call()

    return FaultFs(act, WRITING)


INSTALL = Scenario(
    "install", _nothing, lambda world, fs: command(world, install_plan(world), fs),
    {"stock": ALL_STOCK, "overlay": ALL_OVERLAY},
)  # fmt: skip
UPGRADE = Scenario(
    "upgrade", _installed, lambda world, fs: command(world, install_plan(world, 2, PATHS[:2]), fs),
    {"overlay": ALL_OVERLAY, "upgraded": UPGRADED},
)  # fmt: skip
REVERT = Scenario(
    "revert", _installed, lambda world, fs: command(world, revert_plan(world), fs),
    {"stock": ALL_STOCK, "overlay": ALL_OVERLAY},
)  # fmt: skip
RECOVER_INSTALL = Scenario("recover install", _stopped_install, next_command, {"stock": ALL_STOCK})
RECOVER_REVERT = Scenario("recover revert", _stopped_revert, next_command, {"stock": ALL_STOCK})
SCENARIOS = (INSTALL, UPGRADE, REVERT, RECOVER_INSTALL, RECOVER_REVERT)


def count(scenario: Scenario, root: Path, counted: frozenset[str]) -> int:
    """Return how many counted calls a fault-free run makes."""
    world = scenario.world(root)
    fs = FaultFs(lambda number, name, call, args: call(), counted)
    scenario.act(world, fs)
    shutil.rmtree(root)
    return fs.count


def killed_at(scenario: Scenario, world: World, fs: Fs) -> None:
    code = fork(lambda: scenario.act(world, fs))
    assert code == KILLED, f"{scenario.name} was to be killed and ended with {code}"


def end_state(world: World, scenario: Scenario) -> str:
    """Run the next command without faults and judge."""
    try:
        next_command(world)
    except (OverlayError, OSError) as error:
        return f"BAD: the next command failed: {error}"
    return judge(world, scenario.allowed)


def copy(world: World, root: Path) -> World:
    """Copy a world with times, modes, links and attributes, and with the inode that two environments share."""
    shutil.copytree(world.root, root, symlinks=True)
    copied = World(root, dict(world.before))
    original, shared = world.file(PATHS[2]), copied.file(PATHS[2])
    if original.stat().st_nlink == 2 and shared.exists():
        neighbour = root / "neighbour" / "c.py"
        neighbour.unlink()
        os.link(shared, neighbour)
    return copied


def killed_by_patch(at: int, after: bool, body: Callable[[], object]) -> None:
    """Run ``body``, which makes its own port, and kill this process at its ``at``-th writing call."""
    act, seen = kill(at, after=after), 0

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Fs, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            return act(seen, name, lambda: original(self, *args, **kwargs), args)

        return call

    for name in WRITING:
        setattr(Fs, name, counting(name, getattr(Fs, name)))
    body()
