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

pytest.importorskip("libcst")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rocm_overlay.errors import FOREIGN, TARGET, UNRECOVERED, UNSUPPORTED, OverlayError
from rocm_overlay.install import inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction import apply
from rocm_overlay.install.transaction.fs import TEMPORARY
from rocm_overlay.install.transaction.place import JOURNAL
from rocm_overlay.install.transaction.states import State

from tests.install.faults import harness
from tests.install.support import (
    FITTING,
    LINE,
    STOCK,
    digest,
    make_bundle,
    make_site,
    modeling,
    overlay_text,
    write_manifest,
)

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
COMMANDS = (
    "install A", "install B", "install one", "install --adopt", "install own", "revert", "revert --force", "recover",
)  # fmt: skip
OWN = b'"""Model two, written anew."""\n\nprint("mine")\n'
EDIT = {model: FITTING + f"# as {model}\n".encode() for model in MODELS}
"""Edits that an overlay can be made from."""


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
        self.adopted: dict[str, bytes] = {}
        """Texts that were adopted and have not been seen since: the way back must have them."""
        self.written: set[bytes] = set()
        """Everything that a person ever wrote."""
        self.own = self.root / "own"
        (self.own / "models" / "two").mkdir(parents=True)
        (self.own / "models" / "two" / "modeling_two.py").write_bytes(OWN)
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

    @rule(
        model=st.sampled_from(MODELS),
        how=st.sampled_from(["append", "copy over", "fitting", "stock", "delete", "state"]),
    )
    def person(self, model: str, how: str) -> None:
        """Append to what is there, copy another project's file over it, put stock back, delete it, or our folder.

        Without our folder, what an unfinished transaction left half done can be told by hashes alone.
        """
        file = modeling(self.site, model)
        if how == "state":
            shutil.rmtree(self.site / ".amd-overlay", ignore_errors=True)
            self.adopted = {}
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
            self.edits[model] = EDIT[model] if how == "fitting" else before + f"# edit {self.count}\n".encode()
            self.written.add(self.edits[model])
            file.write_bytes(self.edits[model])

    # -- us --------------------------------------------------------------------------------------------------

    def command(self, name: str) -> Callable[[], object]:
        options = Options(site_packages=self.site, bundle=self.bundles["B" if name == "install B" else "A"])
        if name == "install own":
            return lambda: operations.install(options, LINE, replacements=self.own)
        if name.startswith("install"):
            models = ["one"] if name == "install one" else None
            return lambda: operations.install(options, LINE, models, adopt=name == "install --adopt")
        if name.startswith("revert"):
            return lambda: operations.revert(options, force=name.endswith("--force"))
        return lambda: operations.recover_only(options)

    @rule(name=st.sampled_from(COMMANDS[:5]))
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
            for model in {"install one": ["one"], "install own": ["two"]}.get(name, MODELS):
                stock = RELEASES[self.version or ""][model]
                wanted = overlay_text(stock, GENERATORS["B" if name == "install B" else "A"])
                found = modeling(self.site, model).read_bytes()
                mine = self.is_of_an_edit(found) or (model == "two" and found == OWN)
                assert found == OWN if name == "install own" else found == wanted or mine
            if name == "install --adopt":
                self.adopted.update({model: text for model, text in self.edits.items() if text == EDIT[model]})
        if name.startswith("revert") and self.version is not None:
            for model in MODELS:
                file = modeling(self.site, model)
                if model not in missing and model not in self.edits:
                    assert file.read_bytes() in {RELEASES[self.version][model], EDIT[model]}
        strays = [path for path in self.site.rglob("*.ovtmp") if TEMPORARY.fullmatch(path.name)]
        assert strays == []

    @rule(name=st.sampled_from(COMMANDS), point=st.integers(1, 120), after=st.booleans())
    def kill(self, name: str, point: int, after: bool) -> None:
        """Run a command in a child that dies at one of its writing calls."""
        code = harness.fork(lambda: harness.killed_by_patch(point, after, self.command(name)))
        assert code in (0, *REFUSALS, harness.KILLED), code
        if code == harness.KILLED:
            REACHED["killed with an open journal" if (self.site / JOURNAL).exists() else "killed"] += 1

    def is_of_an_edit(self, text: bytes) -> bool:
        """Tell whether a text is an overlay that was made from something that a person wrote."""
        return any(f"base=sha256:{digest(one)} ".encode() in text.split(b"\n", 1)[0] for one in self.written)

    def kept(self) -> list[bytes]:
        """Every text in our folder: set aside, or needed for the way back."""
        state = self.site / ".amd-overlay"
        return [path.read_bytes() for path in (*(state / "rescued").rglob("*.py"), *(state / "blobs").glob("*"))]

    # -- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def no_text_of_another_release(self) -> None:
        if self.version is None:
            return
        for model, stock in RELEASES[self.version].items():
            file = modeling(self.site, model)
            if file.exists():
                ours = {overlay_text(stock, number) for number in GENERATORS.values()}
                found = file.read_bytes()
                fine = {stock, *ours, self.edits.get(model), EDIT[model] if EDIT[model] in self.written else stock, OWN}
                assert found in fine or self.is_of_an_edit(found), (self.version, model)

    @invariant()
    def no_lost_edit(self) -> None:
        for model, text in list(self.edits.items()):
            file = modeling(self.site, model)
            if not file.exists() or file.read_bytes() != text:
                assert text in self.kept(), f"the edit of {model} is gone"
                del self.edits[model]

    @invariant()
    def no_lost_adopted_text(self) -> None:
        """What was adopted comes back, or is set aside, whatever a package manager did in between."""
        for model, text in list(self.adopted.items()):
            file = modeling(self.site, model)
            if file.exists() and file.read_bytes() == text:
                del self.adopted[model]  # it is the person's again
            else:
                assert text in self.kept(), f"the adopted text of {model} is gone"

    @invariant()
    def nothing_was_added(self) -> None:
        found = {path.relative_to(self.site).as_posix() for path in (self.site / "transformers").rglob("*.py")}
        assert found <= {"transformers/__init__.py"} | {f"transformers/models/{m}/modeling_{m}.py" for m in MODELS}

    @invariant()
    def the_state_has_a_name(self) -> None:
        where = Options(site_packages=self.site, bundle=self.bundles["A"])
        if (self.site / JOURNAL).exists():
            assert inspection.status(where).state is State.INTERRUPTED
            assert (self.site / JOURNAL).exists(), "looking recovers nothing"
            REACHED["INTERRUPTED"] += 1
            return
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


def test_sixty_short_histories() -> None:
    REACHED.clear()
    _run(60, 25)
    wanted = {state.value for state in State} - {"STALE", "UNSUPPORTED"}
    assert {*wanted, *COMMANDS, "killed with an open journal", "install A: exit 4"} <= REACHED.keys(), REACHED


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_hundred_long_histories() -> None:
    REACHED.clear()
    _run(200, 50)
    assert {*(state.value for state in State), *COMMANDS} <= REACHED.keys(), REACHED


def _lose_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "set_aside", lambda *arguments: "nowhere")


def test_the_machine_catches_a_lost_rescue(monkeypatch: pytest.MonkeyPatch) -> None:
    _lose_rescued(monkeypatch)
    with pytest.raises(AssertionError, match="is gone"):
        _run(99, 25, phases=[Phase.generate])
