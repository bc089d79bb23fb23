"""Execute every case on a chip, keep what was seen in figures/CHIP.json, and write docs/emulator-results.md from all.

python -m tests.emulator.figures [CHIP ...]       # every chip by default; --page: no run, only the page
python -m tests.emulator.figures --add FAMILY     # a family that has not been executed yet, beside what was seen
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .arithmetic import Unknown
from .case import CHIPS, NAMES, Case
from .judging import bound, distance, wrong
from .launch import Options
from .memory import Fault
from .triton_cases import all_cases, cuts_of
from .triton_launch import on

PAGE = Path(__file__).resolve().parents[2] / "docs" / "emulator-results.md"
SEEN = Path(__file__).with_name("figures")
HEAD = """# Executed kernels: figures

Our Triton kernels, compiled by Triton {triton} for five chips and executed instruction by instruction on a CPU
([how](emulator.md)); no GPU took part. Every case and dtype on every chip with the cut that the host chooses; in
bfloat16 on gfx942 and gfx1100 every cut that tuning may pick, half of them with approximations (rcp, rsq, exp, log)
1 ulp off. Written by `python -m tests.emulator.figures`.

**{launches} launches, {executed:,} wave instructions of {names} kinds, {unknown} unknown; {wrong} answers outside their
bound.**

*differ* is the largest share of elements that are not stock's bits in any launch, *ulps* the largest difference in
units of the last place at the size of the terms; *allowed* is what the tests hold them to.

| kernel | dtype | result | answers | differ | ulps | allowed |
|---|---|---|---|---|---|---|"""


def launches(chips: tuple[str, ...] = tuple(CHIPS)) -> int:
    """How many launches a run over these chips makes."""
    return sum(case.launches * len(cuts_of(case, arch)) for arch in chips for case in all_cases())


def families() -> list[str]:
    """The first word of every case's name, once, in order."""
    return list(dict.fromkeys(case.name.split()[0] for case in all_cases()))


def executed(arch: str, family: str | None = None) -> dict[str, Any]:
    """Execute every case on one chip, or those of one family; what was seen, as plain values."""
    import triton

    rows: dict[str, dict[str, Any]] = {}
    kinds: Counter[str] = Counter()
    seen: dict[str, Any] = {"chip": arch, "triton": triton.__version__, "launches": 0, "unknown": [], "wrong": []}
    for case in all_cases():
        if family not in (None, case.name.split()[0]):
            continue
        print(f"{arch} {case.id}", file=sys.stderr)
        for number, cut in enumerate(cuts_of(case, arch)):
            via = on(arch, Options(jitter=number % 2 == 1, seed=number))
            try:
                answers = case.answers(via, cut)
            except (Unknown, Fault) as error:
                seen["unknown" if isinstance(error, Unknown) else "wrong"].append(f"{case.id} {cut}: {error}")
                continue
            seen["launches"] += len(via.results)
            for result in via.results:
                kinds.update(result.machine.histogram)
            for answer in answers:
                _note(rows, case, answer)
                if reason := wrong(case, answer):
                    seen["wrong"].append(f"{case.id} {cut}: {reason}")
    return {**seen, "executed": sum(kinds.values()), "kinds": sorted(kinds), "rows": list(rows.values())}


def added(arch: str, family: str) -> dict[str, Any]:
    """What was seen on one chip, and a family that was not among it."""
    before = json.loads((SEEN / f"{arch}.json").read_text())
    if any(row["family"] == family for row in before["rows"]):
        raise SystemExit(f"{family} is among what was seen on {arch}: run every case of the chip again")
    new = executed(arch, family)
    if new["triton"] != before["triton"]:
        raise SystemExit(f"{arch} was seen with triton {before['triton']}, not {new['triton']}: run every case again")
    sums = {key: before[key] + new[key] for key in ("launches", "unknown", "wrong", "executed", "rows")}
    return {**before, **sums, "kinds": sorted({*before["kinds"], *new["kinds"]})}


def _note(rows: dict[str, dict[str, Any]], case: Case, answer: Any) -> None:
    family, dtype = case.name.split()[0], NAMES[case.dtype]
    new = {
        "family": family,
        "dtype": dtype,
        "result": answer.name,
        "answers": 0,
        "share": 0.0,
        "ulps": 0.0,
        "allowed": [],
    }
    row = rows.setdefault(f"{family} {dtype} {answer.name}", new)
    (ulps, share), limit = distance(answer), bound(case, answer)
    row["answers"], row["share"], row["ulps"] = row["answers"] + 1, max(row["share"], share), max(row["ulps"], ulps)
    allowed = "bits" if answer.exact else f"{limit.ulps:g} ulps" + (f", {limit.share:.1%}" if limit.share < 1 else "")
    row["allowed"] = sorted({*row["allowed"], allowed})


def page() -> str:
    """The page as Markdown, from the files of every chip."""
    chips = [json.loads((SEEN / f"{arch}.json").read_text()) for arch in CHIPS]
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in (row for chip in chips for row in chip["rows"]):
        key = row["family"], row["dtype"], row["result"]
        old = merged.setdefault(key, {**row, "answers": 0})
        merged[key] = {
            "answers": old["answers"] + row["answers"], "share": max(old["share"], row["share"]),
            "ulps": max(old["ulps"], row["ulps"]), "allowed": sorted({*old["allowed"], *row["allowed"]}),
        }  # fmt: skip
    lines = [
        HEAD.format(
            triton=" and ".join(sorted({chip["triton"] for chip in chips})),
            launches=sum(chip["launches"] for chip in chips),
            executed=sum(chip["executed"] for chip in chips),
            names=len({kind for chip in chips for kind in chip["kinds"]}),
            unknown=sum(len(chip["unknown"]) for chip in chips),
            wrong=sum(len(chip["wrong"]) for chip in chips) or "no",
        )
    ]
    for key, row in sorted(merged.items()):
        seen = f"{row['answers']} | {row['share']:.2%} | {row['ulps']:.0f}"
        lines.append(f"| {' | '.join(key)} | {seen} | {' or '.join(row['allowed'])} |")
    lines += ["", "| chip | launches | wave instructions |", "|---|---|---|"]
    lines += [f"| {chip['chip']} | {chip['launches']} | {chip['executed']:,} |" for chip in chips]
    return "\n".join([*lines, ""])


def main() -> int:
    """Execute and write; 1 where an answer is outside its bound or an instruction is unknown."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.figures", description=__doc__.splitlines()[0])
    parser.add_argument("chips", nargs="*", metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--page", action="store_true", help="execute nothing")
    parser.add_argument("--add", metavar="FAMILY", help="execute this family alone; it must be new")
    given = parser.parse_args()
    bad = []
    for arch in [] if given.page else given.chips or CHIPS:
        found = added(arch, given.add) if given.add else executed(arch)
        SEEN.mkdir(exist_ok=True)
        (SEEN / f"{arch}.json").write_text(json.dumps(found, indent=1) + "\n")
        bad += found["unknown"] + found["wrong"]
    if all((SEEN / f"{arch}.json").is_file() for arch in CHIPS):
        PAGE.write_text(page())
    print("\n".join(bad), file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
