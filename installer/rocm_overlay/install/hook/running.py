"""`overlay run`: the environment of a command whose Python processes, and theirs, import overlays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ...shared import rules
from .. import catalog, profiles
from ..target import Target, resolve
from .served import SCHEMA
from .view import ServedFile, known_models, served_files

VARIABLE = "AMD_OVERLAY_HOOK"
HOOK_PATH = Path(__file__).parent / "path"
_PYTHON = re.compile(r"python[0-9.]*")


@dataclass(frozen=True)
class Started:
    """A command with its environment, and what is known about the interpreter that it starts."""

    command: tuple[str, ...]
    environ: dict[str, str]
    set_variables: tuple[str, ...]
    target: Target | None
    files: tuple[ServedFile, ...]
    notes: tuple[str, ...]


def prepare(
    command: Sequence[str],
    models: Sequence[str] | None = None,
    *,
    python: str | None = None,
    profile: str | None = None,
    as_json: bool = False,
    dry_run: bool = False,
    bundle: Path = catalog.BUNDLE,
    environ: Mapping[str, str] | None = None,
) -> Started:
    """Return what would be started. Asks an interpreter only with ``dry_run``. Raises UsageError."""
    if as_json and not dry_run:
        raise UsageError(
            "json-needs-dry-run",
            "--json: standard output belongs to the command.",
            remedy="add --dry-run to see what would be served as JSON, or leave --json out",
        )
    if shutil.which(command[0]) is None:
        raise UsageError(
            "no-command",
            f"There is no executable {command[0]!r}.",
            remedy="write the command after --, for example `overlay run -- python serve.py`",
        )
    chosen = known_models(models, bundle)
    settings = {"schema": SCHEMA, "bundle": str(bundle.resolve()), "models": chosen}
    base = dict(os.environ if environ is None else environ)
    added = {
        "PYTHONPATH": os.pathsep.join([str(HOOK_PATH), *filter(None, [base.get("PYTHONPATH")])]),
        VARIABLE: json.dumps(settings, ensure_ascii=True, sort_keys=True),
    }
    values = _toggles(profile, base)
    added.update({name: value for name, value in values.items() if value is not None})
    unset = tuple(name for name, value in values.items() if value is None)
    whole = {name: value for name, value in {**base, **added}.items() if name not in unset}
    target: Target | None = None
    files: tuple[ServedFile, ...] = ()
    if dry_run:
        target = resolve(python=python or _interpreter(command), writes=False)
        files = served_files(target, bundle, chosen)
    notes = (_in_force(whole), *_warnings(command))
    return Started(tuple(command), whole, tuple(sorted(added)), target, files, notes)


def _toggles(profile: str | None, base: Mapping[str, str]) -> dict[str, str | None]:
    """Return what a profile, or the file of one, adds to an environment; None means that it has to be unset."""
    if profile is None:
        return {}
    if profile in profiles.PROFILES:
        return {one.name: one.value for one in profiles.make(profile, None).settings if one.name not in base}
    path = Path(profile)
    try:
        rules().read_profile(path)
    except ValueError as error:
        raise UsageError(
            "bad-profile",
            f"--profile {profile}: it is {error}",
            remedy=f"pass {', '.join(profiles.PROFILES)} or a file that `overlay qualify` wrote",
            paths=[path],
        ) from None
    return {"AMD_OPS": str(path.resolve())}


def _in_force(environ: Mapping[str, str]) -> str:
    """Say which toggles the command gets, or that without one nothing is faster than stock."""
    if not rules().requested(environ):
        return "no toggle is set, so models compute stock: add --profile auto, or set AMD_OPS=auto"
    return "toggles in force: " + ", ".join(f"{name}={value}" for name, value in rules().in_force(environ).items())


def replace_process(started: Started) -> int:
    """Become the command: same process id, its own signals and exit code. Raises UsageError where it cannot start."""
    for note in started.notes:
        os.write(2, f"note: {note}\n".encode("utf-8", "backslashreplace"))
    try:
        os.execvpe(started.command[0], list(started.command), started.environ)
    except OSError as error:
        raise UsageError(
            "cannot-start",
            f"{started.command[0]} cannot be started ({error.strerror}).",
            remedy="check that it is an executable for this machine",
            paths=[started.command[0]],
        ) from error


def _warnings(command: Sequence[str]) -> tuple[str, ...]:
    """Python's own switches that keep the hook out."""
    if _PYTHON.fullmatch(Path(command[0]).name) is None:
        return ()
    for word in command[1:]:
        if not word.startswith("-") or word in ("-c", "-m", "-"):
            break
        if not word.startswith("--") and set(word[1:]) & set("IES"):
            return (f"{word} keeps Python from reading PYTHONPATH or sitecustomize: nothing will be served",)
    return ()


def _interpreter(command: Sequence[str]) -> str | None:
    """Return the Python that a command starts: itself, or the one in the first line of the script. None if unknown."""
    found = shutil.which(command[0])
    if found is None:
        return None
    if _PYTHON.fullmatch(Path(found).name):
        return found
    return shebang_python(Path(found))


def shebang_python(script: Path) -> str | None:
    """Return the interpreter that a launcher script names, also in the form that long paths are written in."""
    try:
        with script.open("rb") as file:
            head = file.read(2048)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    lines = head.decode("utf-8", "surrogateescape").splitlines()
    words = lines[0][2:].split()
    if not words:
        return None
    if Path(words[0]).name == "env":
        name = next((word for word in words[1:] if not word.startswith("-")), None)
        return shutil.which(name) if name and _PYTHON.fullmatch(name) else None
    if _PYTHON.fullmatch(Path(words[0]).name):
        return words[0]
    wrapped = re.match(r"""'''exec' ["']?([^"' ]+)["']?""", lines[1]) if len(lines) > 1 else None
    return wrapped[1] if wrapped else None


def prefix_of(python: str) -> str | None:
    """Ask an interpreter for its prefix; None where it does not answer."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", "import sys; print(sys.prefix)"], capture_output=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout.strip()) or None
