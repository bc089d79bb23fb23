"""Waves of AMD GPUs (GFX9 wave64, GFX11/12 wave32), instruction by instruction in numpy.

All waves of a launch advance together: the instruction at the lowest program counter (or, ``fair``, the one where the
wave stands that has run the fewest) runs for every wave that stands there, over an array [waves, lanes]. Registers that
an instruction does not define for a lane are untouched. Hardware that approximates (rcp, rsq, exp, log, sin, cos, sqrt)
answers the nearest value, or one next to it: ``jitter``.

What a wave finds in its registers at the start is LLVM's "User Guide for AMDGPU Backend", "Initial Kernel Execution
State". ``g`` below is the waves an instruction runs for: an array of indices, or a slice for all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arithmetic import F32, F64, I32, I64, U32, U64, Array, Unknown, halves, pack, unpack_mask
from .codeobject import Kernel
from .local_memory import LocalMemory
from .memory import Fault, Memory
from .operands import EXEC, M0, number, register
from .text import Instruction

VIEW = {"u": U32, "i": I32, "f": F32, "U": U64, "I": I64, "d": F64}
UNSET = 0xDEADBEEF
"""What registers hold that nothing has set."""
RUNNING, WAITING, DONE = 0, 1, 2
Build = Callable[["Machine", Instruction], Callable[[Any], None]]
Size = tuple[int, int, int]


class Machine:
    """One launch."""

    def __init__(
        self,
        program: Sequence[Instruction],
        kernel: Kernel,
        memory: Memory,
        arch: str,
        build: Build,
        grid: Size,
        block: Size,
        kernarg: int,
        lds: int,
        *,
        jitter: bool = False,
        seed: int = 0,
        preload: bytes = b"",
        groups: Sequence[Size] | None = None,
        strict_lds: bool = True,
        fair: bool = False,
    ) -> None:
        self.program, self.memory, self.arch, self.build, self.jitter = list(program), memory, arch, build, jitter
        self.random, self.fair = np.random.default_rng(seed), fair
        self.lanes = kernel.wave
        self.cdna, self.rdna4 = arch.startswith("gfx9"), arch.startswith("gfx12")
        x, y, z = grid
        ids = list(groups) if groups is not None else [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
        per_group = -(-block[0] * block[1] * block[2] // self.lanes)
        self.count = count = len(ids) * per_group
        self.V = np.full((512 if self.cdna else 256, count, self.lanes), UNSET, U32)
        self.A = self.V[256:] if self.cdna else None
        self.S = np.full((128, count), UNSET, U32)
        self.E = np.zeros((count, self.lanes), bool)
        self.scc = np.zeros(count, bool)
        self.pc = np.zeros(count, np.int64)
        self.status = np.full(count, RUNNING, np.int8)
        self.age = np.zeros(count, np.int64)  # instructions of a wave
        self.group = np.repeat(np.arange(len(ids)), per_group)
        self.lds = LocalMemory(len(ids), lds, count, strict_lds)
        self.scratch = np.full((count, self.lanes, kernel.scratch or 1), 0xCD, np.uint8)
        self.scratch_size = kernel.scratch
        self._start(kernel, block, ids, per_group, kernarg, preload)
        self.executed = 0  # wave instructions
        self.steps = 0
        self.histogram: dict[str, int] = {}
        self.trace: Callable[[Machine, Instruction, Any], None] | None = None
        self._built: dict[int, Callable[[Any], None]] = {}

    def _start(
        self, kernel: Kernel, block: Size, ids: list[Size], per_group: int, kernarg: int, preload: bytes
    ) -> None:
        """Set EXEC, v0 and the scalar registers that the kernel's descriptor asks for."""
        wave = np.tile(np.arange(per_group), len(ids))
        lane = wave[:, None] * self.lanes + np.arange(self.lanes)
        self.E = lane < block[0] * block[1] * block[2]
        self._store_exec(slice(None))
        x, y, z = lane % block[0], lane // block[0] % block[1], lane // (block[0] * block[1])
        self.V[0] = x | (y << 10) | (z << 20)
        at = 0
        for bit, size in ((0, 4), (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 1)):
            if kernel.properties >> bit & 1:
                if bit == 3:
                    self.S[at], self.S[at + 1] = kernarg & 0xFFFFFFFF, kernarg >> 32
                at += size
        for i in range(0, len(preload), 4):
            self.S[at + i // 4] = struct.unpack_from("<I", preload, i)[0]
        xs, ys, zs = (np.repeat([i[k] for i in ids], per_group).astype(U32) for k in range(3))
        if self.rdna4:  # the workgroup's place is in trap registers
            self.S[108 + 9], self.S[108 + 7] = xs, ys | (zs << U32(16))
            self.S[108 + 8] = wave.astype(U32) << U32(25)
        else:
            at = kernel.user_sgprs
            for bit, value in ((7, xs), (8, ys), (9, zs)):
                if kernel.rsrc2 >> bit & 1:
                    self.S[at] = value
                    at += 1
        self.S[M0] = 0

    # ---- registers
    def _store_exec(self, g: Any) -> None:
        words = pack(self.E[g])
        self.S[EXEC, g] = (words & U64(0xFFFFFFFF)).astype(U32)
        self.S[EXEC + 1, g] = (words >> U64(32)).astype(U32)

    def load_exec(self, g: Any) -> None:
        words = self.S[EXEC, g].astype(U64)
        if self.lanes == 64:
            words = words | (self.S[EXEC + 1, g].astype(U64) << U64(32))
        self.E[g] = unpack_mask(words, self.lanes)

    def mask_of(self, token: str) -> Callable[[Any], Array]:
        """A lane mask in SGPRs, VCC or EXEC."""
        value = number(token, "U")
        if value is not None:
            word = np.array([value & ((1 << self.lanes) - 1)], U64)
            return lambda g: unpack_mask(word, self.lanes)
        reg = register(token)
        if reg is None:
            raise Unknown(f"mask {token}")
        first = reg[1]

        def read(g: Any) -> Array:
            words = self.S[first, g].astype(U64)
            if self.lanes == 64:
                words = words | (self.S[first + 1, g].astype(U64) << U64(32))
            return unpack_mask(words, self.lanes)

        return read

    def set_mask(self, token: str) -> Callable[[Any, Array], None]:
        if token in ("null", "off"):
            return lambda g, mask: None
        first = register(token)[1]  # type: ignore[index]

        def write(g: Any, mask: Array) -> None:
            words = pack(mask)
            self.S[first, g] = (words & U64(0xFFFFFFFF)).astype(U32)
            if self.lanes == 64:
                self.S[first + 1, g] = (words >> U64(32)).astype(U32)
            if first == EXEC:
                self.load_exec(g)

        return write

    def raw(self, token: str, kind: str, offset: int = 0) -> Callable[[Any], Array]:
        """Bits of an operand: uint32 or uint64 [waves, lanes] (or [.., 1] if it is the same for all lanes)."""
        wide = kind in "UId"
        value = number(token, kind)
        if value is not None:
            constant = np.array([[value]], U64 if wide else U32)
            return lambda g: constant
        if token in ("null", "off"):
            constant = np.zeros((1, 1), U64 if wide else U32)
            return lambda g: constant
        if token in ("src_scc", "scc"):
            return lambda g: self.scc[g].astype(U32)[:, None]
        if token in ("src_vccz", "vccz"):
            return lambda g: (~self.mask_of("vcc")(g).any(axis=1)).astype(U32)[:, None]
        if token in ("src_execz", "execz"):
            return lambda g: (~self.E[g].any(axis=1)).astype(U32)[:, None]
        if token in ("src_shared_base", "src_private_base", "src_shared_limit", "src_private_limit"):
            raise Unknown(token)
        reg = register(token)
        if reg is None:
            raise Unknown(f"operand {token}")
        bank, first, _count = reg
        first += offset
        if bank == "s":
            if wide:
                return lambda g: (self.S[first, g].astype(U64) | (self.S[first + 1, g].astype(U64) << U64(32)))[:, None]
            return lambda g: self.S[first, g][:, None]
        bank_array = self.bank(token)[0]
        if wide:
            return lambda g: bank_array[first, g].astype(U64) | (bank_array[first + 1, g].astype(U64) << U64(32))
        return lambda g: bank_array[first, g]

    def bank(self, token: str) -> tuple[Array, int]:
        """The file of vector registers that a token names, and the first of them."""
        found = register(token)
        if found is None or found[0] == "s" or (found[0] == "a" and self.A is None):
            raise Unknown(f"vector register {token}")
        return (self.V if found[0] == "v" else self.A), found[1]

    def scalar(self, token: str) -> int:
        """The number of the first scalar register that a token names."""
        found = register(token)
        if found is None or found[0] != "s":
            raise Unknown(f"scalar register {token}")
        return found[1]

    def source(
        self, token: str, kind: str, half: bool = False, lane_view: Callable | None = None
    ) -> Callable[[Any], Array]:
        """A typed VALU operand with its modifiers."""
        neg = absolute = sext = False
        if token.startswith("sext(") and token.endswith(")"):
            sext, token = True, token[5:-1]
        if token.startswith("neg("):
            neg, token = True, token[4:-1]
        if token.startswith("-") and number(token, kind) is None:
            neg, token = True, token[1:]
        if token.startswith("abs("):
            absolute, token = True, token[4:-1]
        if token.startswith("|") and token.endswith("|"):
            absolute, token = True, token[1:-1]
        if token.endswith(".h") or token.endswith(".l"):
            half, token = token.endswith(".h"), token[:-2]
        read = self.raw(token, kind)
        if lane_view is not None:
            inner = read
            read = lambda g: lane_view(g, inner(g), sext)  # noqa: E731

        def get(g: Any) -> Array:
            x = read(g)
            if kind in "hwx":
                x = halves(x, half)
                x = x.view(np.float16) if kind == "h" else x.view(np.int16) if kind == "x" else x
            else:
                if not x.flags.c_contiguous:
                    x = np.ascontiguousarray(x)
                x = x.view(VIEW[kind])
            if absolute:
                x = np.abs(x)
            if neg:
                x = -x
            return x

        return get

    def put(self, token: str, kind: str, half: bool = False) -> Callable[[Any, Array, Array | None], None]:
        """Write a VALU result to the active lanes."""
        if token.endswith(".h") or token.endswith(".l"):
            half, token = token.endswith(".h"), token[:-2]
        found = register(token)
        if found is not None and found[0] == "s":
            first = found[1]

            def to_scalar(g: Any, x: Array, on: Array | None = None) -> None:
                self.S[first, g] = np.broadcast_to(x, (self.n(g), self.lanes))[:, 0].astype(U32)

            return to_scalar
        target, first = self.bank(token)

        def write(g: Any, x: Array, on: Array | None = None) -> None:
            on = self.E[g] if on is None else on
            if kind in "hwx":
                x = np.asarray(x)
                x = x.view(np.uint16).astype(U32) if x.dtype != U32 else x & U32(0xFFFF)
                old = target[first, g]
                # GFX9 clears the other half of a 16-bit result, GFX11 and newer keep it
                if half:
                    x = (old & U32(0xFFFF)) | (x << U32(16))
                elif not self.cdna:
                    x = (old & U32(0xFFFF0000)) | x
            elif kind in "UId":
                bits = np.asarray(x).view(U64)
                self.put_register(target, first + 1, g, (bits >> U64(32)).astype(U32), on)
                x = (bits & U64(0xFFFFFFFF)).astype(U32)
            else:
                x = np.asarray(x)
                x = x.view(U32) if x.dtype.itemsize == 4 else x.astype(U32)
            self.put_register(target, first, g, x, on)

        return write

    def put_register(self, target: Array, index: int, g: Any, x: Array, on: Array) -> None:
        """Write 32 bits to the lanes ``on`` of one vector register."""
        if isinstance(g, slice):
            np.copyto(target[index], x, where=on)
        else:
            now = target[index, g]
            np.copyto(now, x, where=on)
            target[index, g] = now

    def n(self, g: Any) -> int:
        """How many waves ``g`` is."""
        return self.count if isinstance(g, slice) else len(g)

    def touched(self, g: Any, touch: Array) -> tuple[Array, Array]:
        """Wave and lane of everything that is set in ``touch`` [waves of g, lanes]."""
        wave, lane = np.nonzero(touch)
        return (wave if isinstance(g, slice) else np.asarray(g)[wave]), lane

    # ---- running
    def restart(self, program: Sequence[Instruction]) -> None:
        """Let every wave begin another program with the registers as they are."""
        self.program, self._built = list(program), {}
        self.pc[:], self.status[:] = 0, RUNNING

    def run(self, limit: int = 10_000_000) -> None:
        """Run every wave to its end."""
        with np.errstate(all="ignore"):
            while self._step():
                if self.steps > limit:
                    raise Fault("too many steps: an endless loop?")

    def _step(self) -> bool:
        """Run one instruction for all waves that stand there; False when every wave is done."""
        running = self.status == RUNNING
        if not running.any():
            waiting = self.status == WAITING
            if waiting.any():  # the other waves of their workgroups have ended
                self._open(waiting, np.unique(self.group[waiting]))
            return bool(waiting.any())
        if self.fair:
            now = int(self.pc[np.where(running, self.age, np.iinfo(np.int64).max).argmin()])
        else:
            now = int(self.pc[running].min())
        here = running & (self.pc == now)
        g: Any = slice(None) if here.all() else np.flatnonzero(here)
        if not 0 <= now < len(self.program):
            raise Fault(f"a wave ran out of the program at {now}")
        i = self.program[now]
        if now not in self._built:
            try:
                self._built[now] = self.build(self, i)
            except (Unknown, KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
                raise Unknown(f"{i.where}: {type(error).__name__}: {error}") from error
        self.pc[g] = now + 1
        self.age[g] += 1
        self._built[now](g)
        if self.trace is not None:
            self.trace(self, i, g)
        n = self.n(g)
        self.executed += n
        self.steps += 1
        self.histogram[i.full] = self.histogram.get(i.full, 0) + n
        return True

    def wait(self, g: Any) -> None:
        """Hold waves at a barrier; a workgroup whose waves all wait (or are done) goes on."""
        self.status[g] = WAITING
        for group in np.unique(self.group[g]):
            members = self.group == group
            if (self.status[members] != RUNNING).all():
                self._open(members & (self.status == WAITING), np.array([group]))

    def _open(self, waves: Array, groups: Array) -> None:
        self.status[waves] = RUNNING
        self.lds.epoch[groups] += 1
