"""What a qualification leaves behind: the profile, and one pytest file per point."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import WriteError
from ...files import write_atomic
from ...shared import rules
from .choose import Choice
from .session import Session

SCHEMA = "amd-ops.profile/1"
_ENVIRONMENT = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_ARCHS", "OMP_NUM_THREADS",
                "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "AITER_JIT_DIR", "HIP_FORCE_DEV_KERNARG")  # fmt: skip

_TEST = '''"""Proof of {name} on this machine. Written by `overlay qualify`; run it with pytest."""

from pathlib import Path

from rocm_overlay.verify.qualify.proof import prove


def test_{function}() -> None:
    """What the profile enables at this place agrees with what stock gave when the call was captured."""
    prove(Path(__file__).resolve().parent / "{work}", {point!r})
'''

_TEST_STARTS = b'"""Proof of '


def toggles_of(choice: Choice, supply: dict[str, Any]) -> dict[str, Any]:
    """Return the toggles of a profile: the families behind what is enabled, and what is held back."""
    enabled = [name for name in supply["switches"] if name not in choice.stock]
    families = sorted({family for found in supply["switches"].values() for family in found})
    wanted = {family for name in enabled for family in supply["switches"][name]}
    return {
        **{family: int(family in wanted) for family in families},
        "AMD_OPS_STOCK": ",".join(sorted(choice.stock)),
        "AMD_OPS_OP_TIERS": choice.text(),
    }


def run_of(choice: Choice, supply: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the toggles of a choice, and its limits as keywords of ``amd_ops.override``."""
    values = {name: str(value) for name, value in toggles_of(choice, supply).items()}
    limits = {"stock": values.pop("AMD_OPS_STOCK"), "op_tiers": values.pop("AMD_OPS_OP_TIERS")}
    return values, limits


def settings_of(choice: Choice, supply: dict[str, Any]) -> dict[str, str]:
    """Return a choice as keywords of ``amd_ops.override``."""
    toggles, limits = run_of(choice, supply)
    return {**{name.lower(): value for name, value in toggles.items()}, **limits}


def valid(path: Path, subject: str) -> dict[str, Any] | None:
    """Return the profile at ``path`` where it was qualified on this very subject and not changed since."""
    try:
        content = rules().read_profile(path)
    except ValueError:
        return None
    found: dict[str, Any] | None = content if content.get("subject") == subject else None
    return found


def profile(session: Session, supply: dict[str, Any], choice: Choice, told: dict[str, Any]) -> dict[str, Any]:
    """Return the profile's content, with its digest."""
    content = {
        "schema": SCHEMA,
        "toggles": toggles_of(choice, supply),
        "subject": session.subject(supply["machine"]),
        "families": {**supply["switches"], **supply["ops"]},
        "qualified": supply["machine"],
        "ranks": 1,  # the workers are one process each
        "model": {
            "path": str(session.model),
            "dtype": session.dtype,
            "sources": [source.as_json() for source in session.sources],
        },
        "verdicts": {
            "switches": {name: choice.stock.get(name, "enabled") for name in supply["switches"]},
            "candidates": list(session.results.values()),
            "supply": supply["supply"],
        },
        "environment": {
            "python": supply["python"],
            "threads": supply["threads"],
            **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        },
        **told,
    }
    return {**content, "digest": digest(content)}


def digest(content: dict[str, Any]) -> str:
    """As `amd_ops.profile.digest`, which this process does not import: it needs torch. A test holds both together."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises WriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> WriteError:
    """Return what is to be said of a place that cannot be written."""
    message = f"{path} cannot be written: {error.strerror}"
    return WriteError("profile-unwritable", message, remedy="name another place with -o", paths=[path])


def check_place(output: Path) -> None:
    """Refuse a place for the profile that cannot be one, before anything is run for it. Raises WriteError."""
    if output.is_dir():
        message, remedy = f"{output} is a folder", f"name a file, as in -o {output / 'profile.json'}"
        raise WriteError("profile-unwritable", message, remedy=remedy, paths=[output])


def work_of(output: Path) -> Path:
    """Return the folder of captures and results that belongs to a profile."""
    return output.resolve().with_name(output.stem + ".work")


def tests_of(output: Path) -> list[Path]:
    """Return the pytest files that belong to a profile."""
    folder = output.with_name(output.stem + "_tests")
    return [path for path in sorted(folder.glob("test_*.py")) if path.read_bytes().startswith(_TEST_STARTS)]


_APPLY_STARTS = (
    '"""Written by `overlay qualify`: the computes that were verified on this machine, one boolean each."""\n\n'
)
_APPLY = '''

def apply_overlay_kernels_to_{model}({parameters}) -> list[str]:
    """Put the computes that were verified here into the classes of transformers' {model}; return what was changed.

    One boolean per compute; those that were right and faster are on. Which tier runs an op is left to
    AMD_OPS={profile}.
    """
    return amd_ops.apply_overlay_kernels("{model}", {arguments})


def revert_overlay_kernels_from_{model}() -> list[str]:
    """Put back what apply_overlay_kernels_to_{model} changed."""
    return amd_ops.revert_overlay_kernels("{model}")
'''


def write_apply(session: Session, output: Path, points: Iterable[dict[str, Any]], choice: Choice) -> Path | None:
    """Write a module beside the profile with ``apply_overlay_kernels_to_<model>()``; None where nothing is verified.

    Each has one boolean for every compute that is right at all of its places in the model.
    """
    texts = []
    listed = list(points)
    for source in session.sources:
        there = [item for item in listed if item["place"]["module"] == source.module]
        wrong = {item["switch"] for item in there if session.results[item["id"]]["status"] != "valid"}
        verified = sorted({item["switch"] for item in there} - wrong)
        if not verified:
            continue
        model = source.path.split("/")[-2]
        parameters = ", ".join(["*", *(f"{name}: bool = {name not in choice.stock}" for name in verified)])
        off = sorted(set(rules().SWITCHES) - set(verified))
        arguments = ", ".join([f"{name}={name}" for name in verified] + [f"{name}=False" for name in off])
        texts.append(_APPLY.format(model=model, parameters=parameters, arguments=arguments, profile=output.name))
    path = output.with_name(output.stem + "_apply.py")
    if not texts:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(_APPLY_STARTS):
            path.unlink()  # of an earlier run: what it puts in is not verified now
        return None
    write(path, _APPLY_STARTS + "from __future__ import annotations\n\nimport amd_ops\n" + "".join(texts))
    return path


def write_tests(session: Session, output: Path, names: Iterable[str]) -> list[Path]:
    """Write one pytest file per point beside the profile and return them; those of an earlier run make way."""
    folder = output.with_name(output.stem + "_tests")
    for old in tests_of(output):
        old.unlink()
    made = []
    for point in names:
        function = "".join(letter if letter.isalnum() else "_" for letter in point)
        path = folder / f"test_{function}.py"
        work = os.path.relpath(session.work, folder)
        write(path, _TEST.format(name=point, function=function.lower(), work=work, point=point))
        made.append(path)
    return made
