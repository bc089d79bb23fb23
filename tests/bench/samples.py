"""Reports and samples made up for tests: nothing here was measured."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rocm_overlay.bench import report
from rocm_overlay.bench.matrix import Cell, Work, plan
from rocm_overlay.bench.process import Process
from rocm_overlay.bench.runner import Setup
from rocm_overlay.fingerprint import Fingerprint
from rocm_overlay.verify.target import Interpreter

SIZE = {
    "parameters": 10**6,
    "bytes": 2 * 10**6,
    "largest": 10**5,
    "layers": 2,
    "free": 10**12,
    "device": "cpu",
    "device_name": "made-up CPU",
}


def noisy_rounds(seed: int, *, slow: float = 1.0, rounds: int = 5, runs: int = 30) -> list[list[float]]:
    """Samples of a machine whose processes differ by 1 % and whose steps differ by 2 %, with a tail of hiccups."""
    draw = random.Random(seed)
    made = []
    for _ in range(rounds):
        base = 0.01 * slow * draw.gauss(1, 0.01)
        made.append([base * abs(draw.gauss(1, 0.02)) * (3 if draw.random() < 0.02 else 1) for _ in range(runs)])
    return made


def setup(cells: list[Cell], rounds: int = 5) -> Setup:
    """A setup of a machine that does not exist."""
    interpreter = Interpreter("/usr/bin/python3", "3.11.7", "2.13.0", "4.57.6", Path("/nowhere"), None)
    return Setup(
        interpreter=interpreter,
        model=Path("/models/tiny"),
        has_weights=True,
        sources=[],
        mode=cells[0].work.mode,
        dtype="bfloat16",
        seed=0,
        rounds=rounds,
        runs=3,
        warmup=1,
        timeout=60.0,
        cells=cells,
        subject=Fingerprint({}),
    )


def processes(cells: list[Cell], folder: Path, slow: dict[str, float] | None = None, seed: int = 0) -> list[Process]:
    """One process per cell and round; ``slow`` multiplies the times of the cells that it names."""
    import numpy
    from safetensors.numpy import save_file

    values = folder / "values.safetensors"
    save_file({"logits": numpy.ones((1, 4), "float32"), "tokens": numpy.ones((1, 4), "float32")}, values)
    made = []
    for index, cell in enumerate(cells):
        factor = (slow or {}).get(cell.name, 1.0)
        for number, itl in enumerate(noisy_rounds(seed * 100 + index, slow=factor)):
            runs = [
                {"ttft": itl[0] * 10, "itl": itl[k::3], "e2e": itl[0] * 10 + sum(itl[k::3]), "clock_jump": 0.0}
                for k in range(3)
            ]
            made.append(
                Process(
                    cell.id,
                    number,
                    status="ok",
                    loaded_s=1.0 + number / 10,
                    imported_s=2.0,
                    first={"ttft": 1.0, "itl": [0.1], "e2e": 1.1},
                    runs=runs,
                    memory={"max_ram": 10**9},
                    launches={"unit": "decoded token", "once": 100 - index, "raw": 120},
                    ops=[],
                    bandwidth=1e10,
                    values=str(values),
                )
            )
    return made


def made_up_report(
    folder: Path, matrix: str = "toggles", slow: dict[str, float] | None = None, isl: tuple[int, ...] = (128,)
) -> dict[str, Any]:
    """A whole report over made-up processes."""
    cells = plan(matrix, [Work(isl=length) for length in isl])
    return report.build(setup(cells), processes(cells, folder, slow), SIZE, 1.0).content
