"""The end-to-end comparison: the same command with, without and again without the new table, in turns."""

from __future__ import annotations

import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ...statistics import MIN_ROUNDS, Verdict, faster, log_ratios
from ..places import VARIABLE

SCHEMA = "amd-overlay.tune.ab/1"
WITHOUT, WITH, AGAIN = SIDES = ("without", "with", "without again")


@dataclass(frozen=True)
class Comparison:
    """Raw samples of every side, one per round. Lower is better for seconds; ``higher`` says that the metric is a rate.

    ``again`` repeats the side without the table: it shows what no difference looks like.
    """

    command: tuple[str, ...]
    metric: str
    higher: bool
    without: tuple[float, ...]
    with_table: tuple[float, ...]
    again: tuple[float, ...]

    @property
    def judged(self) -> Verdict:
        """Judge times; a rate is the inverse of one."""
        without, ours, again = (
            [[1 / value if self.higher else value] for value in side]
            for side in (self.without, self.with_table, self.again)
        )
        return faster(ours, without, log_ratios(again, without))

    @property
    def verdict(self) -> str:
        """Return faster, slower or no change."""
        outcome = self.judged.outcome
        return "no change" if outcome == "same" else outcome

    def as_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "command": list(self.command),
            "metric": self.metric,
            "higher_is_better": self.higher,
            "without": list(self.without),
            "with": list(self.with_table),
            "without_again": list(self.again),
            "median_without": statistics.median(self.without),
            "median_with": statistics.median(self.with_table),
            "verdict": self.verdict,
            "judged": self.judged.as_json(),
        }

    def text(self) -> str:
        a, b = statistics.median(self.without), statistics.median(self.with_table)
        judged, runs = self.judged, len(self.without)
        said = f"{self.verdict} ({judged.reason})"
        return f"A/B, {runs} runs of each side: {a:.6g} without, {b:.6g} with the table ({self.metric}): {said}"


def compare(
    command: str,
    table: Path,
    environment: Mapping[str, str],
    *,
    runs: int,
    metric: str | None = None,
    higher: bool = False,
) -> Comparison:
    """Run a command ``runs`` times on each side, turning which side goes first; a failing command is an error."""
    if runs < MIN_ROUNDS:
        raise UsageError("bad-ab", f"--ab-runs {runs} is too few to see noise", remedy=f"use {MIN_ROUNDS} or more")
    try:
        words = shlex.split(command)
        pattern = re.compile(metric) if metric else None
    except (ValueError, re.error) as error:
        raise UsageError(
            "bad-ab", f"--ab or --ab-metric cannot be read: {error}", remedy="check the quotes and the pattern"
        ) from error
    if not words or (pattern is not None and pattern.groups != 1):
        raise UsageError(
            "bad-ab",
            "--ab needs a command, and --ab-metric one group",
            remedy=r"for example --ab-metric 'tok/s: ([\d.]+)'",
        )
    plain = {key: value for key, value in environment.items() if key != VARIABLE}
    environments = {WITHOUT: plain, WITH: {**plain, VARIABLE: str(table)}, AGAIN: plain}
    samples: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(runs):
        turn = number % len(SIDES)
        for side in (*SIDES[turn:], *SIDES[:turn]):
            samples[side].append(_sample(words, environments[side], pattern))
    found = (tuple(samples[side]) for side in SIDES)
    return Comparison(tuple(words), metric or "seconds", higher, *found)


def _sample(words: Sequence[str], environment: Mapping[str, str], pattern: re.Pattern[str] | None) -> float:
    started = time.monotonic()
    try:
        done = subprocess.run(
            list(words), env=dict(environment), capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise UsageError(
            "bad-ab", f"cannot start {words[0]}: {error.strerror or error}", remedy="check --ab"
        ) from error
    seconds = time.monotonic() - started
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise UsageError(
            "ab-failed", f"the A/B command ended with status {done.returncode}", remedy="run it by itself first"
        )
    if pattern is None:
        return seconds
    found = pattern.findall(done.stdout)
    try:
        value = float(found[-1])
        if not 0 < value < math.inf:
            raise ValueError
        return value
    except (IndexError, ValueError):
        message = f"the A/B command printed no number above 0 that matches {pattern.pattern!r}"
        raise UsageError("ab-failed", message, remedy="check --ab-metric against the command's output") from None
