"""What is no code object, not this chip's, or does not fit: an error that says so; of the command, too."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import objdump
from .__main__ import main
from .codeobject import BadCodeObject, load
from .launch import BadArguments, run_code
from .objdump import NoDisassembler

triton = pytest.importorskip("triton", reason="triton is not installed: the extra `interpret` brings it")
if "amd" not in pytest.importorskip("triton.backends").backends or triton.knobs.runtime.interpret:
    pytest.skip("this triton has no AMD backend, or interprets kernels", allow_module_level=True)

from amd_ops.backends.triton import configs, gate  # noqa: E402
from amd_ops.backends.triton.target import Target  # noqa: E402

from .triton_launch import on, program_of  # noqa: E402


@functools.cache
def _compiled() -> tuple[bytes, Any]:
    """A small kernel's code object."""
    from tests.triton.compiling import Recorder, compiled

    recorder = Recorder(gate.kernels.gate)
    cut = configs.for_columns(64, True, Target("cuda", "gfx942", 64, 304))
    gate.launch_gate(torch.zeros(2, 128, dtype=torch.bfloat16), "silu", cut, via=lambda _: recorder)
    args, named = recorder.launches[0]
    result = compiled(gate.kernels.gate, args, named, "gfx942", ("num_warps",))
    elf = result.asm["hsaco"]
    return elf, load(elf)


def _numbers() -> int:
    """How many arguments are passed by value; Triton adds two pointers behind them."""
    return sum(arg[".value_kind"] == "by_value" for arg in _compiled()[1].kernels["gate"].meta[".args"])


def test_a_code_object_tells_its_kernels_and_arguments() -> None:
    elf, code = _compiled()
    assert code.arch == "gfx942"
    (kernel,) = code.kernels.values()
    assert (kernel.name, kernel.wave) == ("gate", 64)
    assert [arg[".size"] for arg in kernel.meta[".args"]][:3] == [8, 8, 4]
    assert elf[kernel.entry :]


@pytest.mark.parametrize("length", [0, 3, 40, 64, 200, 1500])
def test_a_truncated_file_is_no_code_object(length: int) -> None:
    elf, _ = _compiled()
    with pytest.raises(BadCodeObject, match=r"truncated|no 64-bit ELF"):
        load(elf[:length])


def test_bytes_after_the_header_that_make_no_sense_are_an_error() -> None:
    elf, _ = _compiled()
    with pytest.raises(BadCodeObject):
        load(elf[:64] + bytes(range(256)) * 20)


def test_a_foreign_elf_is_named() -> None:
    with pytest.raises(BadCodeObject, match="not for AMD GPUs"):
        load(Path(sys.executable).resolve().read_bytes())
    with pytest.raises(BadCodeObject, match="no 64-bit ELF"):
        load(b"PK\x03\x04 a zip")


def test_arguments_that_do_not_fit_the_metadata_are_refused() -> None:
    elf, code = _compiled()
    x = torch.zeros(2, 128, dtype=torch.bfloat16)
    for values, message in (
        ([x], "no value for"),
        ([x] * 40, "takes .* arguments, 40 were given"),
        ([x, 5, *[1] * 20], "takes .* arguments|is a tensor, int was given"),
        ([x, x, x], "by value, Tensor was given|no value for"),
    ):
        with pytest.raises(BadArguments, match=message):
            run_code(elf, code, "gate", values, (1, 1, 1), (64, 1, 1))
    with pytest.raises(BadArguments, match="no kernel rope in this code object: it has gate"):
        run_code(elf, code, "rope", [], (1, 1, 1), (64, 1, 1))


def test_a_number_too_wide_for_its_argument_is_refused() -> None:
    elf, code = _compiled()
    x = torch.zeros(2, 128, dtype=torch.bfloat16)
    values = [x, x, 1 << 40, *[1] * (_numbers() - 1), None, None]
    with pytest.raises(BadArguments, match="which 4 bytes do not hold"):
        run_code(elf, code, "gate", values, (1, 1, 1), (64, 1, 1))


def test_without_a_disassembler_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    elf, _ = _compiled()
    monkeypatch.setattr(objdump, "installed", list)
    assert objdump.missing("gfx942") == "no llvm-objdump that knows gfx942 is installed (Debian and Ubuntu: llvm-19)"
    with pytest.raises(NoDisassembler, match="llvm-19"):
        objdump.disassemble(elf, "gfx942")


def test_the_assembler_text_and_the_machine_code_are_the_same_program() -> None:
    """What Triton prints and what llvm-objdump reads back execute alike, to the instruction."""
    if reason := objdump.missing("gfx942"):
        pytest.skip(reason)
    torch.manual_seed(0)
    cut = configs.for_columns(64, True, Target("cuda", "gfx942", 64, 304))
    x = torch.randn(3, 128).bfloat16()
    via = on("gfx942")
    want = gate.launch_gate(x, "silu", cut, via=via)
    elf, code = _compiled()
    args = (x, torch.empty_like(want), 1, 1, 1, 128, 0, 0, 1)
    program = program_of(gate.kernels.gate, args, {"D": 64, "KIND": "silu", "BLOCK": 64, "num_warps": 1}, "gfx942")
    values = [dict(zip(gate.kernels.gate.arg_names, args, strict=False))[name] for name in program.names]
    values += [None] * (program.arguments - len(values))
    done = run_code(elf, code, "gate", values, (3, 1, 1), (64, 1, 1))
    assert torch.equal(args[1], want)
    assert done.executed == via.results[0].executed


def test_the_command_shows_checks_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elf, _ = _compiled()
    file = tmp_path / "gate.co"
    file.write_bytes(elf)
    assert main(["show", str(file)]) == 0
    assert "gfx942, 1 kernels\ngate: wave64" in capsys.readouterr().out
    if reason := objdump.missing("gfx942"):
        pytest.skip(reason)
    assert main(["check", str(file)]) == 0
    assert " 0 unknown" in capsys.readouterr().out
    arguments = ["bf16[1,128]:random", "bf16[1,64]:zeros", *[f"i32:{n}" for n in (1, 1, 1)]]
    arguments += ["i32:0"] * (_numbers() - 3) + ["null"] * 2
    given = [part for argument in arguments for part in ("--arg", argument)]
    assert main(["run", str(file), "gate", "--block", "64", *given]) == 0
    assert "arg1 (1, 64): min" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "no-such-file.co"], "FileNotFoundError"),
        (["show", __file__], "BadCodeObject: no 64-bit ELF file"),
        (["run", "{co}", "rope", "--block", "64"], "no kernel rope"),
        (["run", "{co}", "gate", "--block", "64", "--arg", "bf15[2]:random"], "no dtype bf15"),
        (["run", "{co}", "gate", "--block", "64", "--arg", "bf16[2]:noise"], "fill with one of"),
        (["run", "{co}", "gate", "--block", "64", "--arg", "null"], "no value for"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "gate.co"
    file.write_bytes(_compiled()[0])
    assert main([argument.format(co=file) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_module_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulator", "--help"], capture_output=True, text=True, check=True
    )
    assert "show" in done.stdout
