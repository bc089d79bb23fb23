"""Launch Triton kernels in the emulator: compiled for a chip that is not there, executed from the assembler text.

``on(arch)`` is a ``via`` for the launchers of ``amd_ops.backends.triton``, and wraps any ``triton.jit`` function:

    on("gfx942")(kernel)[(blocks,)](x, y, n, BLOCK=1024, num_warps=4)      # x and y are CPU tensors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.triton.compiling import compiled

from . import text
from .codeobject import Kernel, load
from .launch import Options, Result, run
from .text import Instruction

_COMPILER = ("num_warps", "num_stages", "waves_per_eu", "matrix_instr_nonkdim")
_programs: dict[Any, Program] = {}


@dataclass(frozen=True)
class Program:
    """One compiled variant: instructions, descriptor, bytes of LDS, parameters passed, arguments in all."""

    instructions: list[Instruction]
    kernel: Kernel
    lds: int
    names: list[str]
    arguments: int


@dataclass
class on:
    """Launch on ``arch``. ``results`` are those of the launches so far; ``change`` edits a compiled kernel's text (to
    plant a fault); ``outputs`` names the parameters whose memory begins unwritten.
    """

    arch: str
    options: Options = field(default_factory=Options)
    outputs: tuple[str, ...] = ()
    change: Callable[[str], str] | None = None
    results: list[Result] = field(default_factory=list)

    def __call__(self, kernel: Any) -> Any:
        return _Launcher(self, kernel)

    def execute(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """One launch."""
        program = program_of(kernel, args, named, self.arch, self.change)
        given = {**dict(zip(kernel.arg_names, args, strict=False)), **named}
        values = [float(given[n]) if isinstance(given[n], float) else given[n] for n in program.names]
        values += [None] * (program.arguments - len(values))  # memory for scratch and profiling, which Triton adds
        outputs = [n for n, name in enumerate(program.names) if name in self.outputs]
        warps = named.get("num_warps", 4)
        x, y, z = (*grid, 1, 1)[:3]
        found = run(
            program.instructions, program.kernel, self.arch, values, (x, y, z), (warps * program.kernel.wave, 1, 1),
            lds=program.lds, outputs=outputs, options=self.options,
        )  # fmt: skip
        self.results.append(found)


@dataclass(frozen=True)
class _Launcher:
    owner: on
    kernel: Any

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **named: self.owner.execute(self.kernel, grid, args, named)


def program_of(
    kernel: Any, args: tuple[Any, ...], named: dict[str, Any], arch: str, change: Callable[[str], str] | None = None
) -> Program:
    """Compile one launch, or return what was compiled for its like."""
    key = (kernel.fn.__module__, kernel.fn.__qualname__, arch, *(_kind(v) for v in args), *sorted(
        (k, _kind(v)) for k, v in named.items()
    ))  # fmt: skip
    if change is None and key in _programs:
        return _programs[key]
    options = [name for name in _COMPILER if name in named]
    result = compiled(kernel, args, named, arch, options)
    assembly = result.asm["amdgcn"]
    code = load(result.asm["hsaco"])
    (found,) = code.kernels.values()
    changed = assembly if change is None else change(assembly)
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **named}
    names = [p.name for p in kernel.params if _is_argument(p, given.get(p.name))]
    explicit = sum(not arg[".value_kind"].startswith("hidden_") for arg in found.meta[".args"])
    program = Program(text.from_triton(changed, found.name), found, result.metadata.shared, names, explicit)
    if change is None:
        _programs[key] = program
    return program


def _is_argument(parameter: Any, value: Any) -> bool:
    """Whether a parameter is passed at launch: constants, what is absent and a 1 are compiled in."""
    one = type(value) is int and value == 1 and not parameter.do_not_specialize
    return not (parameter.is_constexpr or value is None or one)


def _kind(value: Any) -> Any:
    """What a value means for the compiler, a little finer than Triton's own key."""
    if isinstance(value, Tensor):
        return value.dtype
    return value
