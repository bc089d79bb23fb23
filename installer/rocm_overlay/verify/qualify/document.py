"""What a qualification leaves behind: the profile, and one pytest file per point."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...files import write_atomic
from ...install.transaction.errors import WriteError
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


def profile(session: Session, supply: dict[str, Any], choice: Choice, told: dict[str, Any]) -> dict[str, Any]:
    """Return the profile's content, with its digest."""
    content = {
        "schema": SCHEMA,
        "toggles": toggles_of(choice, supply),
        "families": {**supply["switches"], **supply["ops"]},
        "qualified": supply["machine"],
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
        message = f"{path} cannot be written: {error.strerror}"
        raise WriteError("profile-unwritable", message, remedy="name another place with -o", paths=[path]) from None


def write_tests(session: Session, output: Path, names: Iterable[str]) -> list[Path]:
    """Write one pytest file per point beside the profile and return them."""
    folder = output.with_name(output.stem + "_tests")
    made = []
    for point in names:
        function = "".join(letter if letter.isalnum() else "_" for letter in point)
        path = folder / f"test_{function}.py"
        work = os.path.relpath(session.work, folder)
        write(path, _TEST.format(name=point, function=function.lower(), work=work, point=point))
        made.append(path)
    return made
