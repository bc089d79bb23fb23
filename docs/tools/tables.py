"""Writes the tables of the pages and of README.md from what the code, the overlays and the committed results say.

    python docs/tools/tables.py            # write
    python docs/tools/tables.py --check    # exit 1 where a page says something else

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; ``TABLES`` makes each by its name.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from rocm_overlay.install import catalog

import amd_ops
from amd_ops import toggles
from docs.tools import reach

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/toggles.md", "docs/models.md", "docs/gpus.md", "docs/environment.md", "docs/coverage.md")
ARCHES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "no GPU")
# What was run with what, beside the releases of docs/parity.md: (transformers, torch, aiter, device, state, evidence).
SUPPORT = (
    ("4.53.2: one stack of Gemma, PaliGemma, SigLIP", "2.13.0 CPU", "none", "CPU", "proved",
     "`tests/docs/test_examples.py`"),
    ("every other release above", "", "", "", "generated and compared as text; not run", "`overlays`"),
    ("4.57.6", "2.13.0 CPU", "double", "CPU posing as gfx942", "by double", "`tests/aiter`, `docs/parity.md`"),
    ("none: ops alone", "2.13.0 CPU", "Python layer of 0.1.9.post1, 0.1.20.post1, e4048607; kernels faked",
     "CPU posing as gfx942", "by double", "`docs/aiter-real-layer.md`"),
    ("none: Triton kernels", "2.13.0 CPU", "none", "Triton 3.7.0's interpreter", "proved",
     "`tests/triton/interpreted`"),
    ("none: Triton kernels", "2.13.0 CPU", "none", "gfx90a, gfx942, gfx950, gfx1100, gfx1201", "compiled",
     "`tests/triton/test_compiled.py`"),
    ("none: Triton kernels", "2.13.0 CPU", "none", "instructions of gfx90a, gfx942, gfx950, gfx1100, gfx1201 on a CPU",
     "executed in an emulator", "`docs/emulator-results.md`"),
    ("4.57.6: `route_attention`", "2.13.0 CPU", "Python layer and machine code of 0.1.7.post2.dev18",
     "instructions of gfx942 on a CPU", "executed in an emulator", "`tests/emulator/test_aiter.py`"),
    ("any", "a ROCm build", "any", "any AMD GPU", "not run", ""),
)  # fmt: skip
PARITY = {"equal": "equal", "within": "within tolerance", "no case": "no case", "not built": "not built by itself"}
_PLACE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

# What a toggle means; its name, default, values and effects are read from amd_ops.toggles.
MEANINGS = {
    "USE_AITER_ATTENTION": "attention through `amd_ops`: aiter's kernels where they fit, else SDPA",
    "USE_AITER_GEMM": "linears through aiter's tuned GEMM",
    "USE_OPTIMIZED_OPS": "norms, rope, and the gated activation where gate and up come from one GEMM",
    "USE_FUSED_PROJECTIONS": "q/k/v and gate/up as one GEMM each, without a byte of memory more",
    "USE_PRESHUFFLE": "shuffled copies of eligible bf16 weights for aiter's GEMM; their bytes come on top",
    "PRESHUFFLE_M_THRESH": "rows from which on the shuffled copy is used; negative: never",
    "USE_FUSED_CROSS_ENTROPY": "training: the loss of a causal model without its logits; `outputs.logits` is None then",
    "FORCE_EAGER_ATTENTION": "the plain formula instead of any attention kernel",
    "AMD_OPS": "what unset toggles are: stock (`off`), the GPU's policy (`auto`), or a profile of `overlay qualify`",
    "AMD_OPS_STRICT": "a request that cannot be honoured is an error instead of a warning",
    "AMD_OPS_TIERS": "the tiers that may run, in their own order",
    "AMD_OPS_STOCK": "switches whose places stay on stock expressions, for example `rope,rms_norm`",
    "AMD_OPS_OP_TIERS": "tiers for single ops",
    "AMD_OPS_TRITON_PROVIDERS": "whose kernels serve tier triton, the first that can",
}
VALUES = {
    **dict.fromkeys(toggles.FAMILIES, "`0`, `1`, `auto`"),
    "PRESHUFFLE_M_THRESH": "a whole number",
    "USE_FUSED_CROSS_ENTROPY": "`0`, `1`",
    "FORCE_EAGER_ATTENTION": "`0`, `1`",
    "AMD_OPS": "`off`, `auto`, a file",
    "AMD_OPS_STRICT": "`0`, `1`",
    "AMD_OPS_TIERS": "a comma list",
    "AMD_OPS_STOCK": "a comma list",
    "AMD_OPS_OP_TIERS": "`OP=TIER,TIER;OP=...`",
    "AMD_OPS_TRITON_PROVIDERS": "a comma list of `ours`, `aiter`, `liger`",
}


def rows(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def names() -> list[str]:
    """The environment variables, families first, in the order of ``MEANINGS``; all of them or KeyError."""
    missing = set(toggles.KEYWORDS.values()) ^ set(MEANINGS)
    if missing:
        raise KeyError(f"MEANINGS and amd_ops.toggles differ in {sorted(missing)}")
    return list(MEANINGS)


def default(name: str) -> str:
    """The value that an unset variable has."""
    text = "off" if name == "AMD_OPS" else toggles.RULES[name].default
    return "all" if name == "AMD_OPS_TIERS" else f"`{text}`" if text else "none"


def switches(name: str) -> str:
    """The switches that turn on with a toggle, as overlaid files read them."""
    if name not in (*toggles.FAMILIES, "USE_FUSED_CROSS_ENTROPY", "FORCE_EAGER_ATTENTION"):
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a toggle alone may be of no use, and says so
        with amd_ops.override(**{name.lower(): 1}):
            return ", ".join(f"`{one}`" for one in toggles.Switches.__slots__ if getattr(amd_ops.on, one))


def toggles_table() -> str:
    keywords = {name: keyword for keyword, name in toggles.KEYWORDS.items()}
    head = ("Variable", "Values", "Default", "Meaning", "`override` keyword", "Switches")
    body = [(f"`{n}`", VALUES[n], default(n), MEANINGS[n], f"`{keywords[n]}`", switches(n)) for n in names()]
    return rows(head, body)


def short_toggles() -> str:
    return rows(("Variable", "Default", "Meaning"), [(f"`{n}`", default(n), MEANINGS[n]) for n in names()])


def policy_table() -> str:
    """What ``AMD_OPS=auto`` turns on, by architecture, where nothing was qualified on the device."""

    def chosen(arch: str, name: str) -> str:
        device = None if arch == "no GPU" else SimpleNamespace(arch=arch)
        with patch.object(toggles.device, "current", return_value=device):
            return "on" if toggles._auto(name) else "off"

    return rows(("", *ARCHES), [(f"`{n}`", *(chosen(arch, n) for arch in ARCHES)) for n in toggles.FAMILIES])


def launches_table() -> str:
    """Kernels per layer and decode step, from benchmarks/results/launches_cpu.json; "-": stock has no such cache."""
    found = json.loads((ROOT / "benchmarks/results/launches_cpu.json").read_text())["rows"]
    kinds = (("stock", "stock", "decode"), ("overlaid, dynamic cache", "overlaid", "decode"),
             ("overlaid, static cache", "overlaid", "static decode"))  # fmt: skip
    body = [
        (title, *(f"{row[build][case]['kernels']:.0f}" if case in row[build] else "-" for row in found))
        for title, build, case in kinds
    ]
    return rows(("", *(row["model"] for row in found)), body)


def parity() -> dict[str, dict[str, list[str]]]:
    """The cells of docs/parity.md, by release and by model."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in (ROOT / "docs/parity.md").read_text().split("\n## transformers ")[1:]:
        release, *lines = part.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        found[release.strip()] = {model: rest for model, *rest in cells if model != "model"}
    return found


def verdict(cell: str) -> str:
    """The first words of a cell of the parity matrix; what is not known to be good is shown as it is."""
    return next((text for start, text in PARITY.items() if cell.startswith(start)), cell)


def parity_table() -> str:
    """Per release, how many architectures are equal or within tolerance in each column of docs/parity.md."""

    def counted(column: tuple[str, ...]) -> str:
        verdicts = [verdict(cell) for cell in column]
        kinds = sorted(set(verdicts), key=lambda kind: (kind in PARITY.values(), kind))  # what is unknown comes first
        return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)

    body = [
        (release, *(counted(column) for column in zip(*models.values(), strict=True)))
        for release, models in parity().items()
    ]
    return rows(("transformers", "toggles off", "torch tier", "eager tier", "aiter's double"), body)


def models_table() -> str:
    """Every architecture with a committed overlay, per line: what docs/parity.md says with toggles off, and on."""
    lines = {line: catalog.load(line) for line in catalog.lines()}
    known = sorted({entry.model for one in lines.values() for entry in one.files})
    compared = {release.rpartition(".")[0]: models for release, models in parity().items()}

    def cell(model: str, line: str) -> str:
        if not any(entry.model == model for entry in lines[line].files):
            return ""
        off, on, *_ = compared.get(line, {}).get(model, ["not compared"] * 2)
        return verdict(off) if verdict(off) == verdict(on) else f"{verdict(off)}; {verdict(on)}"

    return rows(("model", *lines), [(model, *(cell(model, line) for line in lines)) for model in known])


def support_table() -> str:
    """The support matrix: the releases that docs/parity.md compares, then ``SUPPORT``."""
    matrix = [(release, "2.13.0 CPU", "none", "CPU", "proved", "`docs/parity.md`") for release in parity()]
    return rows(("transformers", "torch", "aiter", "device", "state", "evidence"), [*matrix, *SUPPORT])


def lines_table() -> str:
    """Per release line: its releases, and its architectures."""
    loaded = [catalog.load(line) for line in catalog.lines()]
    body = [(one.line, ", ".join(one.releases), len({entry.model for entry in one.files})) for one in loaded]
    return rows(("line", "releases", "architectures"), body)


def reach_table() -> str:
    """Per release: what the recipes reach, and what small models of the generated files gave."""
    head = ("release", "files", "with an edit", "lost", *reach.STATES, "with earlier recipes")
    return rows(head, reach.summary())


TABLES: dict[str, Callable[[], str]] = {
    "toggles": toggles_table,
    "short-toggles": short_toggles,
    "policy": policy_table,
    "launches": launches_table,
    "parity": parity_table,
    "models": models_table,
    "lines": lines_table,
    "support": support_table,
    "reach": reach_table,
}


def current(text: str) -> str:
    """Return the page with every table made anew."""
    return _PLACE.sub(lambda place: place[1] + TABLES[place["name"]]() + place[3], text)


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages; 1 where ``--check`` finds one that is not current."""
    stale = []
    for name in PAGES:
        path = ROOT / name
        before = path.read_text()
        after = current(before)
        if after != before:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(after)
    for name in stale:
        print(f"{name}: {'not current' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
