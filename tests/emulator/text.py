"""Assembler text to instructions: Triton's ``amdgcn``, or what llvm-objdump prints of machine code."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

_SUFFIX = re.compile(r"_(e32|e64|e64_dpp|dpp|sdwa)$")
_FLAGS = re.compile(
    r"^(?:[a-z_0-9]+:.*|offen|idxen|off|glc|slc|dlc|sc0|sc1|nt|lds|tfe|clamp|gds|fi|r128|a16|unorm|"
    r"done|end|compr|vm|mul:.*|div:.*|bound_ctrl)$"
)


@dataclass
class Instruction:
    """One instruction: its name, operands and modifiers as written, and where a branch leads (an index)."""

    name: str  # without encoding suffix
    full: str
    operands: list[str]
    mods: dict[str, str]
    text: str
    address: int  # bytes if known, else index
    target: int | None = None
    second: Instruction | None = None
    line: str = ""
    indexed: frozenset[int] = frozenset()  # operands whose register S_SET_GPR_IDX_ON moves

    def moved(self, by: int) -> Instruction:
        """The same with its indexed operands ``by`` registers further on."""
        operands = list(self.operands)
        for n in self.indexed:
            if n < len(operands) and re.fullmatch(r"v\d+", operands[n]):
                operands[n] = f"v{int(operands[n][1:]) + by}"
        return replace(self, operands=operands, indexed=frozenset())

    @property
    def where(self) -> str:
        """The text, and the source line where it is known: for messages."""
        return f"{self.text!r}" + (f" ({self.line})" if self.line else "")


_VERBATIM = ("s_waitcnt", "s_delay", "s_wait", "s_sendmsg", "s_getreg", "s_setreg")


def _split(text: str, at: str) -> list[str]:
    """Parts between ``at`` that stand outside brackets."""
    out, depth, now = [], 0, ""
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == at and depth == 0:
            out.append(now.strip())
            now = ""
        else:
            now += c
    return [*out, now.strip()] if now.strip() else out


def parse_one(text: str, address: int, line: str = "") -> Instruction:
    """Split one line; ``a :: b`` is a pair that runs at once."""
    if "::" in text:
        first, second = text.split("::")
        i = parse_one(first.strip().replace("v_dual_", "v_"), address, line)
        i.second = parse_one(second.strip().replace("v_dual_", "v_"), address, line)
        i.text = text
        return i
    full, _, rest = text.partition(" ")
    full = full.strip()
    operands: list[str] = []
    mods: dict[str, str] = {}
    for part in _split(rest.strip(), ","):
        if full.startswith(_VERBATIM):
            operands.append(part)
            continue
        head, *words = _split(part, " ")  # modifiers follow the last operand, separated by blanks
        if _FLAGS.match(head) and ":" in head and not head.startswith(("s[", "v[", "a[", "ttmp[")):
            words = [head, *words]
        else:
            operands.append(head)
        for word in filter(None, words):
            key, colon, value = word.partition(":")
            mods[key] = value if colon else "1"
    return Instruction(_SUFFIX.sub("", full), full, operands, mods, text, address, line=line)


_FILE = re.compile(r'\s*\.file\s+(\d+) "[^"]*" "([^"]*)"')
_PLACE = re.compile(r"\s*\.loc\s+(\d+) (\d+)")
_LABEL = re.compile(r"^([.\w$]+):$")


def from_triton(text: str, name: str) -> list[Instruction]:
    """Instructions of a kernel from the text that Triton's backend assembles (``compiled.asm["amdgcn"]``)."""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith(name + ":")), None)
    if start is None:
        raise ValueError(f"the text has no kernel {name}")
    files = {found[1]: found[2] for found in map(_FILE.match, lines) if found}
    labels: dict[str, int] = {}
    out: list[Instruction] = []
    where = ""
    for line in lines[start + 1 :]:
        if line.startswith((".Lfunc_end", "\t.section")):
            break
        place = _PLACE.match(line)
        if place:
            where = f"{files.get(place[1], '?')}:{place[2]}"
            continue
        code = re.sub(r"\s*(;|//).*$", "", line).strip()
        label = _LABEL.match(code)
        if label:
            labels[label[1]] = len(out)
        elif code and not code.startswith("."):
            out.append(parse_one(code, len(out), where))
    for i in out:
        if i.name.startswith(("s_branch", "s_cbranch")):
            i.target = labels[i.operands[0]]
    return out


_INDEXED = {"DST": 0, "SRC0": 1, "SRC1": 2, "SRC2": 3}


def _mark_indexed(program: list[Instruction]) -> None:
    """Note which operands S_SET_GPR_IDX_ON moves, up to S_SET_GPR_IDX_OFF. GFX9; no branch leads in between."""
    now: frozenset[int] = frozenset()
    for i in program:
        if i.name == "s_set_gpr_idx_on":
            now = frozenset(n for name, n in _INDEXED.items() if name in i.text)
        elif i.name == "s_set_gpr_idx_off":
            now = frozenset()
        elif i.name.startswith("v_"):
            i.indexed = now


_SYMBOL = re.compile(r"^([0-9a-f]{8,}) <(.*)>:")
_CODE = re.compile(r"^\s+(\S.*?)\s*// ([0-9A-F]+): ([0-9A-F ]+?)\s*(<.*>)?$")


def from_objdump(text: str, entry: int) -> list[Instruction]:
    """Instructions from ``llvm-objdump -d`` of a code object, from ``entry`` on to the end of that symbol."""
    out: list[Instruction] = []
    index: dict[int, int] = {}
    started = False
    for line in text.split("\n"):
        symbol = _SYMBOL.match(line)
        if symbol:
            if started and not symbol[2].startswith((".L", "L", "label", "_L")):
                break
            started = started or int(symbol[1], 16) == entry
            continue
        code = _CODE.match(line)
        if not started or not code:
            continue
        address = int(code[2], 16)
        index[address] = len(out)
        i = parse_one(code[1], address)
        if i.name.startswith(("s_branch", "s_cbranch")):
            word = int(code[3].split()[0], 16)
            i.target = address + 4 + 4 * struct.unpack("<h", struct.pack("<H", word & 0xFFFF))[0]
        out.append(i)
    _mark_indexed(out)
    if not out:
        raise ValueError(f"the disassembly has no code at {entry:#x}")
    for i in out:
        if i.target is not None:
            i.target = index.get(i.target, -1)
    return out
