"""Tables, configs and calls that the tests of `overlay tune` share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.app import run

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    "gfx",
    "cu_num",
    "M",
    "N",
    "K",
    "bias",
    "dtype",
    "outdtype",
    "scaleAB",
    "bpreshuffle",
    "libtype",
    "solidx",
    "splitK",
    "us",
    "kernelName",
    "err_ratio",
    "tflops",
    "bw",
]
BF16 = "torch.bfloat16"
ASM = "_ZN5aiter39bf16gemm_fp32bf16_tn_64x64_splitk_cleanE"


def cells(**changes: object) -> dict[str, str]:
    """Return a good row as text, with some cells changed; None leaves a column out."""
    row: dict[str, Any] = {
        "gfx": "gfx942",
        "cu_num": 304,
        "M": 16,
        "N": 4096,
        "K": 4096,
        "bias": False,
        "dtype": BF16,
        "outdtype": BF16,
        "scaleAB": False,
        "bpreshuffle": False,
        "libtype": "asm",
        "solidx": 5,
        "splitK": 1,
        "us": 12.5,
        "kernelName": ASM,
        "err_ratio": 0.01,
        "tflops": 42.9,
        "bw": 2700.0,
    }
    row.update(changes)
    return {name: str(value) for name, value in row.items() if value is not None}


def write_table(path: Path, *rows: Mapping[str, str], columns: list[str] | None = None) -> Path:
    names = columns or (list(rows[0]) if rows else COLUMNS)
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


def config(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(values), "utf-8")
    return path


def llama(path: Path, **changes: object) -> Path:
    values: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    values.update(changes)
    return config(path, **{key: value for key, value in values.items() if value != "absent"})


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Calls `overlay tune` in this process, as a shell would see it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Answer:
        self.capsys.readouterr()
        code = run(["tune", *(str(argument) for argument in arguments)])
        captured = self.capsys.readouterr()
        return Answer(code, captured.out, captured.err)


def child_environment(**extra: str) -> dict[str, str]:
    """Return an environment in which a new interpreter finds this checkout."""
    paths = [str(ROOT), str(ROOT / "installer"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **extra}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
