"""The parity matrix: every architecture with an overlay for the installed release, against stock, on each tier.

    python -m tests.verify.matrix --write              # writes the installed release's section of docs/parity.md
    python -m tests.verify.matrix --check              # exit 1 where the file says something else than a run does
    python -m tests.verify.matrix --models a,b         # prints these rows

Columns: toggles off (every bit), torch tier, eager tier, and a double of aiter on a fake gfx942 (bf16). Models are
small, with seeded weights; what a cell says does not depend on the machine. Stock and overlay run in forked processes:
the overlay's has every overlaid file of the release, as an installation has.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import transformers.generation
from rich.progress import track
from rocm_overlay.install import catalog
from rocm_overlay.install.hook.sources import SourceFinder
from rocm_overlay.verify.cases import Outputs
from rocm_overlay.verify.compare import difference, judge

from tests.numeric.worker import module_name
from tests.verify import matrix_builds
from tests.verify.matrix_builds import COLUMNS, DOUBLED, Results, dtype_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "parity.md"


def architectures() -> dict[str, catalog.FileEntry]:
    """Return the overlays made for the installed release by model type."""
    release = transformers.__version__
    entries = [entry for line in catalog.lines() for entry in catalog.load(line).files]
    return {entry.model: entry for entry in sorted(entries, key=lambda e: e.model) if release in entry.releases}


def row(model: str, folder: Path) -> list[str]:
    """Return the cells of a model; ``folder`` holds the overlaid files."""
    entry = architectures()[model]
    stock = _forked(lambda: matrix_builds.stock(model, entry.path))
    if stock.failed:
        return [f"not built: stock: {stock.failed}"] * len(COLUMNS)

    def run() -> Results:
        SourceFinder({module_name(one.path): folder / one.path for one in architectures().values()}).install()
        return matrix_builds.overlaid(model, entry.path, stock.how)

    overlaid = _forked(run)
    if overlaid.failed:
        return [f"**deviates**: {overlaid.failed}"] * len(COLUMNS)
    return [_cell(column, stock, overlaid) for column in COLUMNS]


def _cell(column: str, stock: Results, overlaid: Results) -> str:
    done, deviating = 0, []
    dtype = dtype_of(column)
    for case, want in stock.outputs[dtype].items():
        if isinstance(want, str) or (column == "aiter double" and "training" in case):
            continue  # stock cannot run this case at this size, or aiter's ops have no backward
        done += 1
        found = overlaid.outputs[column][case]
        if isinstance(found, str):
            deviating.append(f"{case} ({found})")
            continue
        arch = DOUBLED if column == "aiter double" else ""
        verdict = judge(want, found, tier=column.split()[0], dtype=dtype, bitwise=column == "off", arch=arch)
        if not verdict.ok and not (dtype != "float32" and _is_own_rounding(case, stock, want, found)):
            deviating.append(f"{case} ({verdict.worst.name} {verdict.worst.max_rel:.1e})")
    if deviating:
        return "**deviates**: " + ", ".join(deviating)
    if not done:
        return "no case"
    cases = _count(done, "case")
    return f"equal, {cases}" if column == "off" else f"within, {cases}, {_count(overlaid.ops[column], 'op')}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _is_own_rounding(case: str, stock: Results, want: Outputs, found: Outputs) -> bool:
    """True when the double's result is no further from the same weights in fp32 than four times what stock's own bf16
    is: twice for other places of the roundings, twice because it cuts, as its chip's kernels do, where stock rounds.

    Multipliers on the residual stream make rounding count for more than the table allows, in stock as in ours.
    """
    exact = stock.outputs["exact"][case]
    if isinstance(exact, str):
        return False
    names = [name for name in want if want[name].is_floating_point() and not name.startswith("pads")]
    if any(want[name].shape != found[name].shape for name in names):
        return False
    own = max(difference(name, exact[name], want[name].float()).max_rel for name in names)
    ours = max(difference(name, exact[name], found[name].float()).max_rel for name in names)
    return ours <= 4 * own


def _forked(run: Callable[[], Results]) -> Results:
    """Run in a child that starts with no modeling file imported; what stops it is its ``failed``."""
    assert not any(name.startswith("transformers.models.llama.modeling") for name in sys.modules), "not a fresh process"
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                found = run()
            except BaseException as error:  # noqa: BLE001 - handed to the parent, which says so in the row
                traceback.print_exc()
                found = Results(failed=f"{type(error).__name__}: {str(error)[:80]}")
            pickle.dump(found, file)
            file.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            return Results(failed=f"the process ended with status {status}")
        file.seek(0)
        loaded: Results = pickle.load(file)
        return loaded


def lines(models: list[str]) -> list[str]:
    """Return these models' lines of the table."""
    torch.set_num_threads(1)  # a forked child has no other thread
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="overlay-matrix-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        for entry in architectures().values():
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.overlay_bytes())
        shown = track(models, description="architectures", disable=not sys.stderr.isatty())
        return [f"| {model} | " + " | ".join(row(model, folder)) + " |" for model in shown]


def section() -> str:
    """Return the heading of the installed release."""
    return f"## transformers {transformers.__version__}"


def render() -> str:
    """Return the section of the installed release."""
    header = ["| model | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    return "\n".join([section(), "", *header, *lines(list(architectures())), ""])


INTRO = """# Parity matrix

Small models with seeded weights, stock against overlaid code, eager attention (composites: the default one). *equal*:
every bit is that of stock. *within*: every case is within the tolerance table of `overlay verify` (fp32; bf16 for
aiter, which is a double that runs on a CPU: stricter than the real one about arguments, and rounding towards zero as
gfx942's kernels do; there also where it is no further from fp32 than four times stock's own bf16, and every token goes
to every expert, for one rounding of two equal scores chooses another). The number of ops says how many ran on that
tier. The cases of a composite are the classes of its file: a forward and, in fp32, 8 greedy tokens. Written by
`python -m tests.verify.matrix --write`, once per installed release;
tests hold sampled rows to it.
"""


def merged(text: str, new: str, intro: str = INTRO) -> str:
    """Return the document with the section of one release replaced, sections in order of release."""
    parts = [part for part in text.split("\n## ") if part.startswith("transformers ")]
    name = new.splitlines()[0].removeprefix("## ")
    kept = {part.splitlines()[0]: part.rstrip("\n") for part in parts}
    kept[name] = new.removeprefix("## ").rstrip("\n")
    return intro + "".join(f"\n## {part}\n" for _, part in sorted(kept.items()))


def main() -> int:
    """Write or check the document, or print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    group.add_argument("--models")
    chosen = parser.parse_args()
    if chosen.models:
        print("\n".join(lines(chosen.models.split(","))))
        return 0
    before = DOC.read_text(encoding="utf-8") if DOC.is_file() else ""
    after = merged(before, render())
    if chosen.write:
        DOC.write_text(after, encoding="utf-8")
    elif before != after:
        print(f"{DOC} is not what a run gives; write it anew with --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
