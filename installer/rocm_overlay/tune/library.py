"""The bundled ``tuning_csv`` folder, written by this module and by nothing else.

``python -m rocm_overlay.tune.library`` writes the untuned tables of every config in ``tuning_csv/configs`` for every
device; ``--check`` makes them again in memory and compares. Tuned tables are never made here: they come from
`overlay tune run` on the device they name.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DIFFERENT, OverlayError
from .device import Device
from .files import json_bytes, read_bytes, write_atomic
from .models import read_model
from .places import bundle
from .shapes import LADDERS, Shape, render_untuned, unique, uses

SCHEMA = "amd-overlay.tune.untuned/1"
UNTUNED = "bf16_untuned_gemm.csv"
META = "meta.json"
DEVICES = (Device("gfx942", 304), Device("gfx942", 80), Device("gfx950", 256))
DTYPE = "torch.bfloat16"
LADDER = LADDERS["all"]
FUSIONS = (frozenset[str](), frozenset({"qkv", "gate_up"}))
# Degrees of tensor parallelism people run beside 1.
DEGREES = {
    "llama-3.1-70b": (1, 2, 4, 8),
    "llama-3.1-405b": (8,),
    "qwen2.5-32b": (1, 2, 4, 8),
    "qwen2.5-72b": (1, 2, 4, 8),
    "qwen3-32b": (1, 2, 4, 8),
    "mixtral-8x7b": (1, 2, 4, 8),
    "deepseek-v3": (8,),
}


@dataclass(frozen=True)
class Bundled:
    """A file of the folder and what it must hold."""

    path: Path
    data: bytes


def configs(root: Path) -> list[Path]:
    return sorted((root / "configs").glob("*.json"))


def shapes_of(config: Path) -> tuple[tuple[Shape, ...], str]:
    """Return every shape the tuner should see for a config, fused and not, and the model's type."""
    found: list[Shape] = []
    model_type = ""
    for tp in DEGREES.get(config.stem, (1,)):
        for fused in FUSIONS:
            model = read_model(config, fused=fused, tp=tp)
            model_type = model.model_type
            found += [use.shape for use in uses(model, LADDER, DTYPE)]
    return unique(found), model_type


def expected(root: Path) -> Iterator[Bundled]:
    """Yield every generated file of the folder."""
    for config in configs(root):
        shapes, model_type = shapes_of(config)
        table = render_untuned(shapes)
        digest = hashlib.sha256(read_bytes(config)).hexdigest()
        for device in DEVICES:
            folder = root / device.folder / config.stem
            meta = {
                "schema": SCHEMA,
                "model": config.stem,
                "model_type": model_type,
                "gpu": str(device),
                "config": f"configs/{config.name}",
                "config_sha256": digest,
                "dtype": DTYPE,
                "m_ladder": list(LADDER),
                "fused": [sorted(fused) for fused in FUSIONS],
                "tp": list(DEGREES.get(config.stem, (1,))),
                "rows": len(shapes),
                "sha256": hashlib.sha256(table).hexdigest(),
                "command": "python -m rocm_overlay.tune.library",
                "measured_with": None,
            }
            yield Bundled(folder / UNTUNED, table)
            yield Bundled(folder / META, json_bytes(meta))


def differences(root: Path) -> list[str]:
    """Return what differs from what would be written: changed, missing and left-over files."""
    found = []
    wanted = set()
    for file in expected(root):
        wanted.add(file.path)
        if not file.path.is_file():
            found.append(f"missing: {file.path.relative_to(root)}")
        elif file.path.read_bytes() != file.data:
            found.append(f"differs: {file.path.relative_to(root)}")
    for name in (UNTUNED, META):
        for path in sorted(root.glob(f"*/*/{name}")):
            if path not in wanted:
                found.append(f"left over: {path.relative_to(root)}")
    return found


def write(root: Path) -> int:
    """Write every file whose content differs; return how many were written."""
    written = 0
    for file in expected(root):
        if not file.path.is_file() or file.path.read_bytes() != file.data:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file.path, file.data, 0o644)
            written += 1
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rocm_overlay.tune.library", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare instead of writing; exit status 1 on a difference"
    )
    parser.add_argument("--root", type=Path, default=bundle(), help="the tuning_csv folder")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            found = differences(options.root)
            print("\n".join(found) if found else f"{options.root}: as generated", file=sys.stderr)
            return DIFFERENT if found else 0
        print(f"{options.root}: {write(options.root)} files written", file=sys.stderr)
        return 0
    except OverlayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
