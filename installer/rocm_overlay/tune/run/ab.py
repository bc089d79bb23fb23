"""The end-to-end comparison: the same command with and without the new table, in turns, judged by intervals."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TuneError
from ..places import VARIABLE

SCHEMA = "amd-overlay.tune.ab/1"
MIN_RUNS = 3


@dataclass(frozen=True)
class Comparison:
    """Raw samples of both sides. Lower is better for seconds; ``higher`` says that the metric is a rate."""

    command: tuple[str, ...]
    metric: str
    higher: bool
    without: tuple[float, ...]
    with_table: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """Return faster, slower or no change: only intervals (lowest to highest sample) that do not overlap count."""
        a, b = self.without, self.with_table
        if max(b) < min(a):
            return "slower" if self.higher else "faster"
        if min(b) > max(a):
            return "faster" if self.higher else "slower"
        return "no change"

    def as_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "command": list(self.command),
            "metric": self.metric,
            "higher_is_better": self.higher,
            "without": list(self.without),
            "with": list(self.with_table),
            "median_without": statistics.median(self.without),
            "median_with": statistics.median(self.with_table),
            "verdict": self.verdict,
        }

    def text(self) -> str:
        a, b = statistics.median(self.without), statistics.median(self.with_table)
        runs = len(self.without)
        return f"A/B, {runs} runs each: {a:.6g} without, {b:.6g} with the table ({self.metric}): {self.verdict}"


def compare(
    command: str,
    table: Path,
    environment: Mapping[str, str],
    *,
    runs: int,
    metric: str | None = None,
    higher: bool = False,
) -> Comparison:
    """Run a command ``runs`` times on each side, alternating which side goes first; a failing command is an error."""
    if runs < MIN_RUNS:
        raise TuneError("bad-ab", f"--ab-runs {runs} is too few to see noise", f"use {MIN_RUNS} or more")
    try:
        words = shlex.split(command)
        pattern = re.compile(metric) if metric else None
    except (ValueError, re.error) as error:
        raise TuneError(
            "bad-ab", f"--ab or --ab-metric cannot be read: {error}", "check the quotes and the pattern"
        ) from error
    if not words or (pattern is not None and pattern.groups != 1):
        raise TuneError(
            "bad-ab", "--ab needs a command, and --ab-metric one group", r"for example --ab-metric 'tok/s: ([\d.]+)'"
        )
    plain = {key: value for key, value in environment.items() if key != VARIABLE}
    sides = {"without": plain, "with": {**plain, VARIABLE: str(table)}}
    samples: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(runs):
        order = ("without", "with") if number % 2 == 0 else ("with", "without")
        for side in order:
            samples[side].append(_sample(words, sides[side], pattern))
    return Comparison(tuple(words), metric or "seconds", higher, tuple(samples["without"]), tuple(samples["with"]))


def _sample(words: Sequence[str], environment: Mapping[str, str], pattern: re.Pattern[str] | None) -> float:
    started = time.monotonic()
    try:
        done = subprocess.run(
            list(words), env=dict(environment), capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise TuneError("bad-ab", f"cannot start {words[0]}: {error.strerror or error}", "check --ab") from error
    seconds = time.monotonic() - started
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise TuneError("ab-failed", f"the A/B command ended with status {done.returncode}", "run it by itself first")
    if pattern is None:
        return seconds
    found = pattern.findall(done.stdout)
    try:
        return float(found[-1])
    except (IndexError, ValueError):
        message = f"the A/B command printed no number that matches {pattern.pattern!r}"
        raise TuneError("ab-failed", message, "check --ab-metric against the command's output") from None
