"""Any order of our commands, of a package manager's, of edits and kills: no lost edit, no text of another release."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rocm_overlay.install import inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction import apply
from rocm_overlay.install.transaction.errors import FOREIGN, TARGET, UNRECOVERED, UNSUPPORTED, OverlayError
from rocm_overlay.install.transaction.fs import TEMPORARY
from rocm_overlay.install.transaction.place import JOURNAL
from rocm_overlay.install.transaction.states import State

from tests.install.faults import harness
from tests.install.support import LINE, STOCK, make_bundle, make_site, modeling, overlay_text, write_manifest

MODELS = tuple(STOCK)
RELEASES: dict[str, dict[str, bytes]] = {
    "1.0.0": STOCK,
    "1.0.1": {**STOCK, "two": STOCK["two"] + b"# changed by 1.0.1\n"},
    "2.0.0": {model: text + b"# of 2.0.0, for which there is no overlay\n" for model, text in STOCK.items()},
}
GENERATORS = {"A": 1, "B": 1234}
REFUSALS = (UNSUPPORTED, FOREIGN, UNRECOVERED, TARGET)
REACHED: Counter[str] = Counter()
"""What the histories met, so that a machine that only meets refusals is noticed."""
COMMANDS = ("install A", "install B", "install one", "revert", "revert --force", "recover")


def make_two_releases(folder: Path, generator: int) -> Path:
    """Write a bundle that has an overlay for every text of 1.0.0 and 1.0.1."""
    files = {}
    for release in ("1.0.0", "1.0.1"):
        make_bundle(folder, RELEASES[release], generator=generator, releases=("1.0.0", "1.0.1"))
        manifest = json.loads((folder / LINE / "manifest.json").read_bytes())
        files.update({file["payload"]: file for file in manifest["files"]})
    write_manifest(folder, {**manifest, "files": list(files.values())})
    return folder


def refused(body: Callable[[], object]) -> OverlayError | None:
    """Run a command; return its refusal."""
    try:
        body()
    except OverlayError as error:
        return error
    return None


class Environment(RuleBasedStateMachine):
    """One site folder, two bundles, and what a person would expect to find."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(dir=memory))
        self.site = self.root / "site"
        self.bundles = {name: make_two_releases(self.root / name, number) for name, number in GENERATORS.items()}
        self.version: str | None = None
        self.edits: dict[str, bytes] = {}
        self.count = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # -- the package manager ---------------------------------------------------------------------------------

    @initialize()
    def first(self) -> None:
        self.pip_install("1.0.0")

    @rule(version=st.sampled_from(["1.0.0", "1.0.0", "1.0.1", "2.0.0", None]))
    def package_manager(self, version: str | None) -> None:
        """Uninstall, or install, upgrade, downgrade, force-reinstall."""
        self.pip_uninstall()
        if version is not None:
            self.pip_install(version)

    def pip_install(self, version: str) -> None:
        """Remove what RECORD lists, then write new files."""
        self.pip_uninstall()
        fresh = make_site(self.root / "fresh", RELEASES[version], version=version)
        shutil.copytree(fresh, self.site, dirs_exist_ok=True)
        shutil.rmtree(fresh)
        self.version = version

    def pip_uninstall(self) -> None:
        self.site.mkdir(exist_ok=True)
        for info in self.site.glob("*.dist-info"):
            shutil.rmtree(info)
        for path in sorted((self.site / "transformers").rglob("*.py")):
            path.unlink()
        for folder in sorted((self.site / "transformers").rglob("*"), reverse=True):
            if folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()
        with contextlib.suppress(OSError):
            (self.site / "transformers").rmdir()
        self.version, self.edits = None, {}

    # -- people ----------------------------------------------------------------------------------------------

    @rule(model=st.sampled_from(MODELS), how=st.sampled_from(["append", "copy over", "stock", "delete", "state"]))
    def person(self, model: str, how: str) -> None:
        """Append to what is there, copy another project's file over it, put stock back, delete it, or our folder.

        Without our folder, what an unfinished transaction left half done can be told by hashes alone.
        """
        file = modeling(self.site, model)
        if how == "state":
            shutil.rmtree(self.site / ".amd-overlay", ignore_errors=True)
        if self.version is None or how == "state":
            return
        self.count += 1
        before = file.read_bytes() if file.exists() and how == "append" else b"# another overlay\n"
        self.edits.pop(model, None)
        if how == "delete":
            file.unlink(missing_ok=True)
        elif how == "stock":
            file.write_bytes(RELEASES[self.version][model])
        else:
            self.edits[model] = before + f"# edit {self.count}\n".encode()
            file.write_bytes(self.edits[model])

    # -- us --------------------------------------------------------------------------------------------------

    def command(self, name: str) -> Callable[[], object]:
        options = Options(site_packages=self.site, bundle=self.bundles["B" if name == "install B" else "A"])
        if name.startswith("install"):
            models = ["one"] if name == "install one" else None
            return lambda: operations.install(options, LINE, models)
        if name.startswith("revert"):
            return lambda: operations.revert(options, force=name.endswith("--force"))
        return lambda: operations.recover_only(options)

    @rule(name=st.sampled_from(COMMANDS[:3]))
    def install(self, name: str) -> None:
        self.run(name)

    @rule(name=st.sampled_from(COMMANDS))
    def run(self, name: str) -> None:
        missing = {model for model in MODELS if self.version and not modeling(self.site, model).exists()}
        refusal = refused(self.command(name))
        REACHED[name if refusal is None else f"{name}: exit {refusal.code}"] += 1
        if refusal is not None:
            assert refusal.code in REFUSALS, refusal
            assert refusal.remedy
            return
        if name.startswith("install"):
            for model in MODELS if name != "install one" else ["one"]:
                stock = RELEASES[self.version or ""][model]
                wanted = overlay_text(stock, GENERATORS["B" if name == "install B" else "A"])
                assert modeling(self.site, model).read_bytes() == wanted
        if name.startswith("revert") and self.version is not None:
            for model in MODELS:
                file = modeling(self.site, model)
                if model not in missing and model not in self.edits:
                    assert file.read_bytes() == RELEASES[self.version][model]
        strays = [path for path in self.site.rglob("*.ovtmp") if TEMPORARY.fullmatch(path.name)]
        assert strays == [] or name.startswith("revert")

    @rule(name=st.sampled_from(COMMANDS), point=st.integers(1, 120), after=st.booleans())
    def kill(self, name: str, point: int, after: bool) -> None:
        """Run a command in a child that dies at one of its writing calls."""
        code = harness.fork(lambda: harness.killed_by_patch(point, after, self.command(name)))
        assert code in (0, *REFUSALS, harness.KILLED), code
        if code == harness.KILLED:
            REACHED["killed with an open journal" if (self.site / JOURNAL).exists() else "killed"] += 1

    # -- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def no_text_of_another_release(self) -> None:
        if self.version is None:
            return
        for model, stock in RELEASES[self.version].items():
            file = modeling(self.site, model)
            if file.exists():
                ours = {overlay_text(stock, number) for number in GENERATORS.values()}
                assert file.read_bytes() in {stock, *ours, self.edits.get(model)}, (self.version, model)

    @invariant()
    def no_lost_edit(self) -> None:
        for model, text in list(self.edits.items()):
            file = modeling(self.site, model)
            if not file.exists() or file.read_bytes() != text:
                rescued = [path.read_bytes() for path in (self.site / ".amd-overlay/rescued").rglob("*.py")]
                assert text in rescued, f"the edit of {model} is gone"
                del self.edits[model]

    @invariant()
    def nothing_was_added(self) -> None:
        found = {path.relative_to(self.site).as_posix() for path in (self.site / "transformers").rglob("*.py")}
        assert found <= {"transformers/__init__.py"} | {f"transformers/models/{m}/modeling_{m}.py" for m in MODELS}

    @invariant()
    def the_state_has_a_name(self) -> None:
        interrupted = (self.site / ".amd-overlay" / "txn.json").exists()
        if interrupted:  # status would heal: the next rule may be one that meets the open journal
            return
        where = Options(site_packages=self.site, bundle=self.bundles["A"])
        if self.version is None:
            refusal = refused(lambda: inspection.status(where))
            assert refusal is None or refusal.code == TARGET
            return
        found = inspection.status(where)
        REACHED[found.state.value] += 1
        if found.state in (State.APPLIED, State.STALE):
            assert all(file.found == file.overlay for file in found.files)
        if self.edits and found.receipt is None and self.version == "1.0.0":
            assert found.state is State.FOREIGN


def _run(examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    # derandomize: the histories follow from the source text of Environment, and another text means other histories.
    run_state_machine_as_test(
        Environment,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            database=None,
            derandomize=examples < 100,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_forty_short_histories() -> None:
    REACHED.clear()
    _run(40, 25)
    wanted = {state.value for state in State} - {"INTERRUPTED", "STALE", "UNSUPPORTED"}
    assert {*wanted, *COMMANDS, "killed with an open journal", "install A: exit 4"} <= REACHED.keys(), REACHED


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_hundred_long_histories() -> None:
    REACHED.clear()
    _run(200, 50)
    assert {*(state.value for state in State), *COMMANDS} - REACHED.keys() <= {"INTERRUPTED"}, REACHED


def _lose_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "set_aside", lambda *arguments: "nowhere")


def test_the_machine_catches_a_lost_rescue(monkeypatch: pytest.MonkeyPatch) -> None:
    _lose_rescued(monkeypatch)
    with pytest.raises(AssertionError, match="is gone"):
        _run(99, 25, phases=[Phase.generate])
