"""Draws docs/pictures/install.svg and dispatch.svg: steps from top to bottom, with what happens beside them.

    python docs/tools/pictures.py [--check]

Plain SVG without scripts or fonts of other hosts. The text is the reason for these pictures, so it is in here as data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
WIDTH, LEFT, BOX, NOTE = 880, 24, 440, 510
LINE, PAD, GAP, TOP = 19, 12, 26, 56
STYLES = {"plain": ("#eef2f5", "#607d8b"), "turn": ("#fff3e0", "#e65100"), "end": ("#e8f5e9", "#2e7d32")}


@dataclass(frozen=True)
class Step:
    """A box: its heading, its text, and what is written beside it (an arrow leads there when ``leaves``)."""

    title: str
    text: tuple[str, ...]
    note: tuple[str, ...] = ()
    leaves: bool = False
    style: str = "plain"

    @property
    def height(self) -> int:
        return 2 * PAD + LINE * (1 + len(self.text))


INSTALL = (
    Step(
        "1  Find the target",
        ("which interpreter, which transformers; nothing is imported",),
        ("two candidates: exit 9, nothing changed",),
        leaves=True,
    ),
    Step(
        "2  Classify every file by SHA-256",
        ("stock, our overlay, or somebody's edit",),
        ("unknown text: exit 3 or 4, nothing changed",),
        leaves=True,
    ),
    Step(
        "3  Lock, and finish what was interrupted",
        ("one flock for the environment; classify again",),
        ("held by another: exit 6, nothing changed",),
        leaves=True,
    ),
    Step(
        "4  Keep",
        ("copies of the stock texts in .amd-overlay/blobs, synced",),
        ("killed here: unused copies, collected later",),
    ),
    Step(
        "5  Stage",
        ("the new texts beside their targets, with mode,", "owner and attributes; synced and hashed again"),
        ("killed here: temporary files, removed by", "the next command"),
    ),
    Step(
        "6  Journal: the commit point",
        ("txn.json names every path, its hash before and after",),
        (
            "stopped from here on, kill -9 and power cut",
            "included: the next command finishes it;",
            "an install goes back, a revert forward",
        ),
        style="turn",
    ),
    Step(
        "7  Replace",
        ("per file: still the hash from before? then os.replace,", "and its stale bytecode goes"),
        (
            "a reader sees the old file or the new one,",
            "never half of one; hard links into a package",
            "cache are never written through",
        ),
    ),
    Step(
        "8  Verify, receipt, clear the journal",
        ("every hash read again; receipt.json says what is applied",),
        ("overlay revert needs only this folder:", "no network, no bundle"),
        style="end",
    ),
)

DISPATCH = (
    Step(
        "Import: read the toggles once",
        ("USE_..., AMD_OPS... become one frozen Settings", "and the switches amd_ops.on"),
        ("a value that is not accepted is an error here",),
    ),
    Step(
        "Overlaid line in the forward",
        ("_amd.rms_norm(...)", "    if _amd and _amd.on.rms_norm else <the stock expression>"),
        ("switch off, or amd_ops not installed:", "the stock expression, unchanged"),
        leaves=True,
    ),
    Step(
        "First call: bind the op",
        ("each tier in order is asked what it offers in this process:", "aiter, triton, torch, eager"),
        ("a tier that cannot run here is left out;", "its reason stands in report(), with the", "calls that it missed"),
    ),
    Step(
        "Every call: check",
        ("dtype, shape, strides, device, gradients; cheap tests first",),
        ("does not fit: the reason is counted, and", "the next tier is asked (strict: an error)"),
        leaves=True,
    ),
    Step(
        "First call of a kernel variant: probe",
        ("run it on made-up data, compare with the eager formula",),
        ("wrong, or raised: this variant is never", "used again in this process"),
        leaves=True,
        style="turn",
    ),
    Step(
        "Run, and count",
        ("amd_ops.report(): tier, calls, first call, declined and why",),
        ("no environment read, no file, no logging", "in a forward"),
        style="end",
    ),
)


def text(x: int, y: int, line: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}"{weight}>{escape(line)}</text>'


def draw(title: str, steps: Sequence[Step]) -> str:
    """Return the picture as SVG text."""
    parts, y = [f'<text x="{LEFT}" y="34" font-size="17" font-weight="600">{escape(title)}</text>'], TOP
    for number, step in enumerate(steps):
        height = max(step.height, PAD + LINE * len(step.note))
        fill, stroke = STYLES[step.style]
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{BOX}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'
        )
        parts.append(text(LEFT + 14, y + PAD + 14, step.title, bold=True))
        parts += [text(LEFT + 14, y + PAD + 14 + LINE * (row + 1), line) for row, line in enumerate(step.text)]
        middle = y + height // 2
        if step.leaves:
            parts.append(f'<path d="M{LEFT + BOX} {middle}H{NOTE - 8}" class="arrow" stroke-dasharray="5 4"/>')
        first = middle - LINE * (len(step.note) - 1) // 2 + 5
        parts += [text(NOTE, first + LINE * row, line) for row, line in enumerate(step.note)]
        if number + 1 < len(steps):
            parts.append(f'<path d="M{LEFT + BOX // 2} {y + height}v{GAP - 7}" class="arrow"/>')
        y += height + GAP
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif" font-size="13.5" '
        f'fill="#263238"><title>{escape(title)}</title>\n'
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8Z" fill="#607d8b"/></marker></defs>\n'
        "<style>.arrow{stroke:#607d8b;stroke-width:1.5;fill:none;marker-end:url(#tip)}</style>\n"
        f'<rect width="{WIDTH}" height="{y}" rx="8" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


PICTURES = {"install.svg": ("An install", INSTALL), "dispatch.svg": ("A dispatch", DISPATCH)}


def main(arguments: Sequence[str]) -> int:
    """Write the pictures, or exit 1 where one is not what would be drawn."""
    stale = [n for n, one in PICTURES.items() if not (FOLDER / n).is_file() or (FOLDER / n).read_text() != draw(*one)]
    if "--check" not in arguments:
        for name, one in PICTURES.items():
            (FOLDER / name).write_text(draw(*one))
    print(f"not current: {', '.join(stale)}" if stale else "current")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
