"""One rank: spreads stock and overlaid models over all ranks and compares what they compute.

Started by torchrun as ``python -m tests.ranks.worker SCENARIO FOLDER ARCHITECTURE...``; writes ``FOLDER/rank<N>.json``.
Two references: stock spread the same way (bit by bit with the toggles off), and stock in one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rocm_overlay.verify.cases import CASES, Outputs
from rocm_overlay.verify.compare import judge

import amd_ops
from tests.parity import twins
from tests.ranks.scenarios import SCENARIOS, training_alone

ON: dict[str, Any] = {
    "use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1,
    "tiers": "torch,eager",
}  # fmt: skip
# "packed": everything on, and the projections are packed before the model is spread. "kernelized": stock's classes.
TOGGLES: dict[str, dict[str, Any]] = {"off": {}, "on": ON, "packed": ON, "kernelized": ON}
PLANTED = "TESTS_RANKS_PLANT_A_FAULT"


def compare(scenario_name: str, architecture: str, folder: Path) -> dict[str, Any]:
    """Run every case with stock and under every set of toggles; each time on a new model, since training changes it."""
    scenario, saved = SCENARIOS[scenario_name], folder / architecture
    stock_class = twins.causal_class(twins.stock_module(architecture))
    overlay_class = twins.causal_class(twins.overlay_module(architecture))
    references = {name: run(scenario.spread(scenario.load(stock_class, saved))) for name, run in scenario.cases.items()}
    found: dict[str, Any] = {"alone": list(_against_one_process(stock_class, saved, references))}
    for title, toggles in TOGGLES.items():
        if title == "kernelized" and "training" not in scenario.cases:
            continue
        amd_ops.reset_counters()
        outputs = {}
        with amd_ops.override(**toggles):
            for name, run in scenario.cases.items():
                model = scenario.load(stock_class if title == "kernelized" else overlay_class, saved)
                if title == "packed":
                    amd_ops.prepare(model)
                if title == "kernelized":
                    amd_ops.kernelize_model(model)
                outputs[name] = run(scenario.spread(model))
            ops = amd_ops.report().as_dict()["ops"]
        deviating = [item for name in outputs for item in _deviating(name, references[name], outputs[name], title)]
        digests = {name: _digest(values) for name, values in outputs.items()}
        found[title] = {"deviating": deviating, "digests": digests, "ops": {op["op"]: op["tiers"] for op in ops}}
    return found


def _against_one_process(stock_class: Any, saved: Path, references: dict[str, Outputs]) -> Iterator[str]:
    for name, reference in references.items():
        model = stock_class.from_pretrained(saved).eval()
        alone = training_alone(model) if name == "training" else CASES[name].run(model, twins.INPUTS)
        yield from _deviating(name, alone, reference, "on")


def _deviating(case: str, reference: Outputs, found: Outputs, toggles: str) -> list[str]:
    off = toggles == "off"
    verdict = judge(reference, found, tier="off" if off else "torch", dtype="float32", bitwise=off)
    return [f"{case}: {item}" for item in verdict.deviating]


def _digest(outputs: Outputs) -> str:
    text = hashlib.sha256()
    for name, tensor in outputs.items():
        text.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return text.hexdigest()


def plant_a_fault() -> None:
    """Make this rank's norms wrong by a hundredth."""
    right = amd_ops.rms_norm
    amd_ops.rms_norm = lambda *args, **options: right(*args, **options) * 1.01


def main(scenario: str, folder: Path, architectures: list[str]) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    if os.environ.get(PLANTED) == str(dist.get_rank()):
        plant_a_fault()
    found = {architecture: compare(scenario, architecture, folder) for architecture in architectures}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
