"""Compile a recorded launch of a kernel for an AMD chip that is not there, and read what the compiler says about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amd_ops.backends.triton.target import wave_of

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


class Recorder:
    """Stands in for a kernel: keeps what it would be launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((args, kwargs))


def compiled(kernel: Any, args: tuple[Any, ...], named: dict[str, Any], arch: str, options: Sequence[str]) -> Any:
    """One launch for ``arch``, specialised by Triton's rules; ``options`` are those of ``named`` for the compiler.

    A tensor is aligned; an integer is 1, a multiple of 16, or neither; what is absent is a constant.
    """
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = {**dict(zip(kernel.arg_names, args, strict=False)), **named}
    for index, parameter in enumerate(kernel.params):
        value = values.get(parameter.name)
        one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16], ["tt.pointer_range", 32]]
        elif parameter.is_constexpr or value is None or one:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("hip", arch, wave_of(arch))
    return triton.compile(source, target=target, options={name: named[name] for name in options})


def number(text: str, key: str) -> int:
    """A number of the kernel's description at the end of its amdgcn text."""
    found = re.search(rf"\.{key}:\s+(\d+)", text)
    assert found is not None, key
    return int(found.group(1))
