"""What is too near to KernelBench level 2, the test set that training data must not contain.

Compared are computations, not texts: the canonical graph of a program (sandbox.graph) with those of the problems,
either of the user's own copy of KernelBench or as hashed signatures that are shipped. No line of KernelBench is in this
package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocm_overlay.errors import BundleError, UsageError
from rocm_overlay.executor import Executor

from . import level2
from .sandbox.pool import Limits, job

MODES = ("off", "exact", "near")
_KIND = "rocm_overlay.synth.sandbox.reference:canonical"


@dataclass(frozen=True)
class Problem:
    """A problem: what it is called here, and its graph as digest and features."""

    name: str
    digest: str
    features: dict[str, int]


@dataclass(frozen=True)
class Filter:
    """Judges graphs: ``exact`` rejects the same computation, ``near`` also one with ``threshold`` of its features."""

    mode: str
    threshold: float
    problems: tuple[Problem, ...] = ()

    def nearest(self, graph: dict[str, Any]) -> tuple[str, float]:
        """Return the problem that is nearest to a canonical graph or to one of its results, and how near.

        1.0 is the same computation.
        """
        best = ("", 0.0)
        for part in (graph, *graph.get("parts", ())):
            for problem in self.problems:
                same = problem.digest == part["digest"]
                found = 1.0 if same else min(_similar(part["features"], problem.features), 0.999)
                if found > best[1]:
                    best = (problem.name, found)
        return best

    def judge(self, graph: dict[str, Any]) -> str:
        """Return why a program is too near to a problem, or ""."""
        if self.mode == "off":
            return ""
        name, found = self.nearest(graph)
        if found == 1.0:
            return f"the computation of KernelBench level 2 problem {name} (similarity 1.00)"
        if self.mode == "near" and found >= self.threshold:
            return (
                f"near to KernelBench level 2 problem {name} (similarity {found:.2f}, allowed below {self.threshold})"
            )
        return ""


def _similar(one: dict[str, int], other: dict[str, int]) -> float:
    """Jaccard's index of two multisets."""
    names = one.keys() | other.keys()
    both = sum(min(one.get(name, 0), other.get(name, 0)) for name in names)
    return both / max(sum(max(one.get(name, 0), other.get(name, 0)) for name in names), 1)


def shipped(path: Path = level2.SIGNATURES) -> tuple[Problem, ...]:
    """Return the hashed signatures of this package.

    Raises:
        BundleError: their file is missing or broken.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != level2.SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        return tuple(
            Problem(f"{row['problem']} ({level2.RECIPES[row['problem'] - 1]})", row["digest"], row["features"])
            for row in value["problems"]
        )
    except (OSError, ValueError, KeyError) as error:
        raise BundleError("bad-data", f"{path} cannot be read: {error}", remedy="reinstall the package") from error


def files(folder: Path) -> list[Path]:
    """Return the problems of a folder: that of level 2, or a checkout of KernelBench.

    Raises:
        UsageError: there are none.
    """
    for place in (folder / "KernelBench" / "level2", folder / "level2", folder):
        found = sorted(place.glob("*.py")) if place.is_dir() else []
        if found:
            return found
    raise UsageError(
        "no-kernelbench",
        f"kernelbench_dir {folder} holds no problem: no .py file in it or in its level2.",
        remedy="name a checkout of KernelBench, or its folder KernelBench/level2",
        paths=[folder],
    )


def of_folder(folder: Path, executor: Executor, limits: Limits, say: Callable[[str], None]) -> tuple[Problem, ...]:
    """Trace the problems of a folder, each in a confined process; what cannot be traced is said.

    Raises:
        UsageError: none of them can be.
    """
    paths = files(folder)
    answers = [(path, executor.submit(_job(path, limits))) for path in paths]
    problems = []
    for path, future in answers:
        answer = future.result()
        if answer["ok"]:
            problems.append(Problem(path.stem, answer["graph"]["digest"], answer["graph"]["features"]))
        else:
            say(f"{path}: not compared with: {answer['category']}: {answer['message']}")
    if not problems:
        raise UsageError(
            "no-kernelbench",
            f"none of the {len(paths)} files of {folder} could be traced; the reasons are above.",
            remedy="name the folder KernelBench/level2 of a checkout",
            paths=[folder],
        )
    return tuple(problems)


def _job(path: Path, limits: Limits) -> dict[str, Any]:
    source = path.read_text(encoding="utf-8", errors="replace")
    return job("Model", source, limits, kind=_KIND)


def make(
    mode: str, threshold: float, folder: Path | None, executor: Executor, limits: Limits, say: Callable[[str], None]
) -> Filter:
    """Return the filter that some settings ask for."""
    if mode == "off":
        return Filter(mode, threshold)
    problems: Sequence[Problem] = shipped() if folder is None else of_folder(folder, executor, limits, say)
    return Filter(mode, threshold, tuple(problems))
