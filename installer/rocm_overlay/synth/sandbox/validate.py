"""The validation of one program, in its own process: eager, determinism, labels, and torch.compile against eager."""

from __future__ import annotations

import time
from typing import Any

import torch

from . import labels
from .compare import difference
from .program import Failure, Loaded, agree, build, check_results, first_line, run

BACKENDS = ("none", "eager", "aot_eager", "inductor")


def validate(job: dict[str, Any], builtins: dict[str, Any] | None) -> dict[str, Any]:
    """Run a program and, with a backend, compare its compiled form; return what was found out.

    Raises:
        Failure: a check did not pass.
    """
    start = time.perf_counter()
    loaded = build(job["name"], job["source"], builtins)
    expected = run(loaded)
    shapes = check_results(expected)
    gap = difference(expected, run(loaded), exact=True)
    if gap:
        raise Failure("nondeterministic", f"two runs from one seed differ: {gap}")
    eager = time.perf_counter() - start
    found = {"outputs": shapes, "inputs": check_shapes(loaded), "eager_seconds": round(eager, 4)}
    # A run of its own: torch's modules take other paths while somebody watches, which may change the last bits.
    found["labels"] = labels.observe(loaded, lists(job))[1]
    if job.get("backend", "none") != "none":
        start = time.perf_counter()
        compare_compiled(loaded, expected, job["backend"])
        found["compile_seconds"] = round(time.perf_counter() - start, 4)
    return found


def lists(job: dict[str, Any]) -> labels.Lists:
    """What a job says about the operator lists."""
    known = job.get("lists", {})
    return labels.Lists(
        tuple(known.get("names", ())), frozenset(known.get("compounds", ())), frozenset(known.get("helpers", ()))
    )


def warm_up() -> None:
    """Do once, before any program is there, what the first run of each kind would otherwise do in every process."""
    name = "SynthModel_Warm"
    source = (
        "import torch\nfrom torch import nn\nclass SynthModel_Warm(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.m = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n        return torch.relu(self.m(x))\n"
        "def get_inputs():\n    return [torch.ones(2, 4)]\ndef get_init_inputs():\n    return [], {}\n"
    )
    labels.observe(build(name, source), labels.Lists())


def check_shapes(loaded: Loaded) -> list[str]:
    """Return the shapes of the inputs, after making sure that get_inputs() gives the same ones every time."""
    shapes = [f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in loaded.inputs]
    again = [f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in loaded.space["get_inputs"]()]
    if shapes != again:
        raise Failure("structure", f"get_inputs() gives {again} the second time, {shapes} the first")
    return shapes


def compare_compiled(loaded: Loaded, expected: Any, backend: str) -> None:
    """Compile the module, run it twice and compare with eager.

    Raises:
        Failure: it does not compile (category compile), or computes something else (mismatch).
    """
    torch._dynamo.reset()
    # dynamic=False: these programs have fixed shapes, and one compilation is all that is asked for.
    compiled = torch.compile(loaded.model, backend=backend, dynamic=False)
    for _ in range(2):
        try:
            found = run(loaded, compiled)
        except Failure as failure:
            category = failure.category if failure.category == "memory" else "compile"
            raise Failure(category, f"{backend}: {failure.message}") from failure
        except Exception as error:  # the compiler's own errors are the program's result here
            raise Failure("compile", f"{backend}: {first_line(error)}") from error
        gap = agree(loaded, expected, found)
        if gap:
            raise Failure("mismatch", f"{backend} against eager: {gap}")
