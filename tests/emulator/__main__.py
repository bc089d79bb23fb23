"""Execute a kernel of a .co file, or show what is in one.

python -m tests.emulator show FILE.co
python -m tests.emulator check FILE.co [KERNEL]
python -m tests.emulator run FILE.co KERNEL --grid 4,1,1 --block 256 --arg bf16[4,64]:random --arg i32:64 ...
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from . import instructions, objdump, text
from .arithmetic import Unknown
from .codeobject import BadCodeObject, CodeObject, Kernel, load
from .launch import BadArguments, Options, run_code
from .machine import Machine
from .memory import Fault, Memory

DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64,
    "i8": torch.int8, "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip
FILLS = ("random", "zeros", "ones", "ramp")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line of what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("show", "kernels, their needs and arguments"), ("check", "which instructions are unknown")):
        command = commands.add_parser(name, help=about)
        command.add_argument("file", type=Path)
        if name == "check":
            command.add_argument("kernel", nargs="?")
    command = commands.add_parser("run", help="execute a kernel")
    command.add_argument("file", type=Path)
    command.add_argument("kernel")
    command.add_argument("--grid", type=_size, default=(1, 1, 1), help="workgroups: X[,Y[,Z]]")
    command.add_argument("--block", type=_size, required=True, help="threads of a workgroup: X[,Y[,Z]]")
    command.add_argument(
        "--arg",
        action="append",
        default=[],
        help="DTYPE[SHAPE]:FILL, i32:VALUE, fp32:VALUE, null, or AT@ in front of one: its byte offset",
    )
    command.add_argument("--jitter", action="store_true", help="let rcp, rsq, exp and log be 1 ulp off")
    command.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        elf = given.file.read_bytes()
        {"show": _show, "check": _check, "run": _run}[given.command](elf, load(elf), given)
    except (OSError, BadCodeObject, BadArguments, Fault, Unknown, ValueError, objdump.NoDisassembler) as error:
        print(f"{given.file}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _size(text_: str) -> tuple[int, int, int]:
    parts = [int(part) for part in text_.split(",")]
    if not 1 <= len(parts) <= 3 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text_} is not X[,Y[,Z]] of positive numbers")
    x, y, z = (*parts, 1, 1)[:3]
    return x, y, z


def _show(elf: bytes, code: CodeObject, given: Any) -> None:
    print(f"{code.arch}, {len(code.kernels)} kernels")
    for kernel in code.kernels.values():
        print(f"{kernel.name}: wave{kernel.wave}, {kernel.lds} bytes of LDS, {kernel.kernarg} bytes of arguments")
        for arg in kernel.meta.get(".args", []):
            print(f"  {arg['.offset']:4d} {arg['.size']:2d} {arg['.value_kind']} {arg.get('.name', '')}".rstrip())


def _check(elf: bytes, code: CodeObject, given: Any) -> None:
    """Build every instruction without running any."""
    assembly = objdump.disassemble(elf, code.arch)
    for kernel in code.kernels.values():
        if given.kernel not in (None, kernel.name):
            continue
        program = text.from_objdump(assembly, kernel.entry)
        machine = Machine(
            program, kernel, Memory(), code.arch, instructions.build, (1, 1, 1), (64, 1, 1), 0, kernel.lds
        )
        unknown: Counter[str] = Counter()
        for i in program:
            try:
                instructions.build(machine, i)
            except (Unknown, KeyError, TypeError, IndexError, ValueError) as error:
                unknown[f"{i.full}: {error}"] += 1
        print(f"{kernel.name}: {len(program)} instructions, {sum(unknown.values())} unknown")
        for what, count in unknown.most_common():
            print(f"  {count:5d} {what}")


def _run(elf: bytes, code: CodeObject, given: Any) -> None:
    torch.manual_seed(given.seed)
    if given.kernel not in code.kernels:
        raise BadArguments(f"no kernel {given.kernel}: there are {', '.join(code.kernels) or 'none'}")
    kernel = code.kernels[given.kernel]
    values = _values(kernel, given.arg)
    result = run_code(
        elf, code, given.kernel, values, given.grid, given.block, options=Options(given.jitter, given.seed)
    )
    rate = result.executed / max(result.seconds, 1e-9) / 1e3
    print(f"{result.executed} wave instructions in {result.seconds:.2f} s ({rate:.0f} k/s)")
    for n, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            x = value.double()
            stored = int((result.written(n) > 0).sum()) if f"arg{n}" in [b.name for b in result.memory.buffers] else 0
            print(f"arg{n} {tuple(value.shape)}: min {x.min():.6g}, max {x.max():.6g}, {stored} bytes stored")


def _values(kernel: Kernel, texts: list[str]) -> list[Any]:
    """Arguments as written. Where the kernel has no metadata each needs its offset: ``16@i32:5``."""
    values, described = [], []
    for given in texts:
        at, sign, rest = given.rpartition("@")
        value = _value(rest)
        kind, size = ("global_buffer", 8) if value is None or isinstance(value, torch.Tensor) else ("by_value", 4)
        if sign:
            described.append({".value_kind": kind, ".offset": int(at), ".size": size})
        values.append(value)
    if described:
        if len(described) != len(values):
            raise BadArguments("either every --arg has an offset or none")
        kernel.meta[".args"] = described
        kernel.kernarg = max(kernel.kernarg, max(arg[".offset"] for arg in described) + 8)
    elif not kernel.meta.get(".args"):
        raise BadArguments(f"{kernel.name} has no metadata of its arguments: give each an offset, as 16@i32:5")
    return values


def _value(given: str) -> Any:
    if given == "null":
        return None
    name, _, fill = given.partition(":")
    dtype, bracket, shape = name.partition("[")
    if dtype not in DTYPES:
        raise BadArguments(f"{given}: no dtype {dtype} (one of {', '.join(DTYPES)})")
    if not bracket:
        return float(fill) if DTYPES[dtype].is_floating_point else int(fill, 0)
    sizes = [int(part) for part in shape.rstrip("]").split(",")]
    if fill not in FILLS:
        raise BadArguments(f"{given}: fill with one of {', '.join(FILLS)}")
    if fill == "random":
        return torch.randn(sizes).mul(1 if DTYPES[dtype].is_floating_point else 20).to(DTYPES[dtype])
    if fill == "ramp":
        return torch.arange(torch.Size(sizes).numel()).view(sizes).to(DTYPES[dtype])
    return torch.full(sizes, int(fill == "ones"), dtype=DTYPES[dtype])


if __name__ == "__main__":
    sys.exit(main())
