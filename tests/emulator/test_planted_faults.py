"""Faults planted in compiled kernels are noticed: as a fault of memory, or as numbers that are not stock's.

Some are planted in the assembler text, where a mistake of the compiler would be, some between host and kernel, where
one of the launcher would be. What cannot be planted (the compiler needs no such instruction) is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed: the extra `interpret` brings it")
if "amd" not in pytest.importorskip("triton.backends").backends or triton.knobs.runtime.interpret:
    pytest.skip("this triton has no AMD backend, or interprets kernels", allow_module_level=True)

from .case import Case, target_of  # noqa: E402
from .judging import wrong  # noqa: E402
from .memory import Fault  # noqa: E402
from .triton_cases import all_cases  # noqa: E402
from .triton_launch import on  # noqa: E402

CASES = {case.id: case for case in all_cases()}


def replaced(pattern: str, by: str, which: int = 0) -> Callable[[str], str]:
    """Change one instruction that a pattern finds, the first by default; ``which`` -1 is the last."""

    def change(text: str) -> str:
        found = list(re.finditer(pattern, text, re.MULTILINE))
        assert found, f"the kernel has no {pattern}"
        at = found[which]
        return text[: at.start()] + at.expand(by) + text[at.end() :]

    return change


def everywhere(pattern: str, by: str) -> Callable[[str], str]:
    """Change every instruction that a pattern finds."""

    def change(text: str) -> str:
        assert re.search(pattern, text, re.MULTILINE), f"the kernel has no {pattern}"
        return re.sub(pattern, by, text, flags=re.MULTILINE)

    return change


# Fault -> (case, chip, change of the assembler text)
IN_THE_CODE: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "a rounding constant too small": ("rms_norm gemma 5x1000-bf16", "gfx942", everywhere(r"0x7fff\b", "0x7000")),
    "rounds towards zero": ("silu 3x1000-bf16", "gfx942", everywhere(r"0x7fff\b", "0")),
    "a sum without its last step": (
        "rms_norm gemma 5x1000-bf16", "gfx942", replaced(r"^\s+v_add_f32_dpp.*$", "\ts_nop 0", -1),
    ),
    "a wrong lane in a sum": (
        "rms_norm gemma 18x128 heads-bf16", "gfx942", replaced(r"quad_perm:\[1,0,3,2\]", "quad_perm:[0,0,3,2]"),
    ),
    "a barrier left out": ("add_rms_norm llama 3x4096-bf16", "gfx942",
                           everywhere(r"^\s+s_barrier$", "\ts_nop 0")),
    "an exponential of the wrong sign": ("silu 3x1000-bf16", "gfx942", everywhere("0x3fb8aa3b", "0xbfb8aa3b")),
    "a difference that is a sum": (
        "rope 2x3x5+1x128/128-bf16", "gfx942", everywhere(r"v_sub_f32_e32", "v_add_f32_e32"),
    ),
    "a reciprocal for a root": ("rms_norm llama 5x1000-bf16", "gfx942", everywhere("v_rsq_f32_e32", "v_rcp_f32_e32")),
    "a root that is not turned over": (
        "rms_norm fp32_weight 5x1000-bf16", "gfx1100", everywhere("v_rsq_f32_e32", "v_sqrt_f32_e32"),
    ),
    "a store of the wrong width": (
        "silu 3x1000-bf16", "gfx942", everywhere(r"(global|buffer)_store_dwordx4", r"\1_store_dwordx2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(IN_THE_CODE))
def test_a_fault_in_the_code_is_noticed(fault: str) -> None:
    name, arch, change = IN_THE_CODE[fault]
    assert noticed(CASES[name], arch, on(arch, change=change))


class Changing(on):
    """Changes the named arguments of a launch before it is executed."""

    def __init__(self, arch: str, alter: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(arch)
        self.alter = alter

    def execute(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """One launch with what ``alter`` returns put in place."""
        given = dict(zip(kernel.arg_names, args, strict=False))
        changed = {**given, **named, **self.alter({**given, **named})}
        grid = changed.pop("grid", grid)
        positional = tuple(changed[name] for name in given)
        rest = {name: value for name, value in changed.items() if name not in given}
        super().execute(kernel, grid, positional, rest)


# Fault -> (case, chip, which arguments become what)
IN_THE_ARGUMENTS: dict[str, tuple[str, str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "rows counted too high": ("rms_norm gemma 67x100-bf16", "gfx942", lambda a: {"rows": a["rows"] + 8}),
    "rows counted too low": ("rms_norm gemma 67x100-bf16", "gfx942", lambda a: {"rows": a["rows"] - 1}),
    "a row stride of the next tensor": ("rms_norm fp32_weight 5x72 sliced-bf16", "gfx942", lambda a: {"x_s0": 72}),
    "eps times a million": ("rms_norm llama 5x1000-bf16", "gfx942", lambda a: {"eps": 1.0}),
    "a program too few": ("silu 3x1000-bf16", "gfx942", lambda a: {"grid": (2,)}),
    "the halves of a gate swapped": ("silu 3x1000-bf16", "gfx1100", lambda a: {"KIND": "gelu"}),
    "sine and cosine swapped": ("rope 2x3x5+1x128/128-bf16", "gfx942", lambda a: {"cos": a["sin"], "sin": a["cos"]}),
    "k heads counted as q heads": ("rope 2x3x5+1x128/128-bf16", "gfx942", lambda a: {"k_heads": a["q_heads"]}),
    "a table of the first batch for all": ("rope 2x3x5+1x128/128-bf16", "gfx942", lambda a: {"cos_sb": 0}),
    "turned back": ("rope 2x3x5+1x128/128-bf16", "gfx1100", lambda a: {"BACKWARD": True}),
    "the slot of another token": (
        "rope_into_cache plain 4+2x64/64 at int64 [4, 2, 7]-bf16", "gfx942",
        lambda a: {"positions": torch.tensor([2, 4, 7])},
    ),
    "a cache bound that is too high": (
        "rope_into_cache llama 5+1x80/32 at int32 [8, 9, -1]-bf16", "gfx942", lambda a: {"slots": 10},
    ),
    "a cache whose rows lie elsewhere": (
        "rope_into_cache plain 4+2x64/64 at int64 [4, 2, 7]-bf16", "gfx942", lambda a: {"ko_ss": a["ko_ss"] // 2},
    ),
    "one expert counted where a token has two": ("moe silu 72/24-bf16", "gfx942", lambda a: {"K": 1}),
    "an expert's rows that lie elsewhere": ("moe silu 72/24-bf16", "gfx1100", lambda a: {"s_r": a["s_r"] - 1}),
    "a token's shares for the next token": (
        "clamped_moe clamped 72/40-bf16", "gfx942",
        lambda a: {"weights": a["weights"].flip(0)} if "weights" in a else {},
    ),
    "shares that are not divided by their sum": (
        "softmax_top_k 5x60/4 normalised-bf16", "gfx942", lambda a: {"NORMALISE": False},
    ),
    "a head norm left out": ("qk_norm_rope llama 2x3x5+2x128/128-bf16", "gfx942", lambda a: {"FORM": ""}),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(IN_THE_ARGUMENTS))
def test_a_fault_in_the_arguments_is_noticed(fault: str) -> None:
    name, arch, alter = IN_THE_ARGUMENTS[fault]
    assert noticed(CASES[name], arch, Changing(arch, alter))


def noticed(case: Case, arch: str, via: on) -> str:
    """What shows the fault: the first wrong answer or the fault of memory; "" where nothing does."""
    cut = case.cuts(target_of(arch))[0]
    try:
        answers = case.answers(via, cut)
    except Fault as fault:
        return str(fault)
    return next((reason for answer in answers if (reason := wrong(case, answer))), "")


def test_there_are_enough_faults() -> None:
    assert len(IN_THE_CODE) + len(IN_THE_ARGUMENTS) >= 15
