"""A program inside its process: loaded from text, built, called. Every way to fail has a category."""

from __future__ import annotations

import copy
import linecache
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .compare import difference, flat

SEED = 1234
MAX_INPUT_ELEMENTS = 1 << 24


class Failure(Exception):
    """A check that did not pass. ``category`` is one of the statistics' error categories."""

    def __init__(self, category: str, message: str) -> None:
        super().__init__(message)
        self.category, self.message = category, message


@dataclass
class Loaded:
    """A program ready to run: its module in eval mode and a function that makes its inputs anew."""

    space: dict[str, Any]
    model: nn.Module
    inputs: list[torch.Tensor]


def load(name: str, source: str, builtins: dict[str, Any] | None = None) -> dict[str, Any]:
    """Execute a program's text as a module and return its names. inspect finds its text, as kernelize needs."""
    filename = f"<synth {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(f"synth_{name}")
    module.__file__ = filename
    if builtins is not None:
        module.__dict__["__builtins__"] = builtins
    sys.modules[module.__name__] = module
    with stage("runtime", "loading"):
        exec(compile(source, filename, "exec"), module.__dict__)
    return module.__dict__


def build(
    name: str, source: str, builtins: dict[str, Any] | None = None, most: int | None = MAX_INPUT_ELEMENTS
) -> Loaded:
    """Load a program, make its module (weights from a fixed seed) and its inputs, of ``most`` elements together.

    Raises:
        Failure: a required name is missing or gives something else than the contract says.
    """
    torch.manual_seed(SEED)
    space = load(name, source, builtins)
    return instantiate(name, space, most)


def instantiate(name: str, space: dict[str, Any], most: int | None = MAX_INPUT_ELEMENTS) -> Loaded:
    """Make the module and the inputs of a loaded program, from the fixed seed."""
    torch.manual_seed(SEED)
    kind = space.get(name)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise Failure("structure", f"{name} is not a class derived from nn.Module")
    with stage("runtime", "get_init_inputs()"):
        made = _function(space, "get_init_inputs")()
    arguments, named = _init_arguments(made)
    with stage("runtime", f"{name}()"):
        model = kind(*arguments, **named).eval()
    with stage("runtime", "get_inputs()"):
        inputs = _function(space, "get_inputs")()
    if not isinstance(inputs, list | tuple) or not inputs or not all(isinstance(x, torch.Tensor) for x in inputs):
        raise Failure("structure", "get_inputs() does not return a list of tensors")
    if most is not None and sum(x.numel() for x in inputs) > most:
        raise Failure("structure", f"get_inputs() returns more than {most} elements")
    return Loaded(space, model, list(inputs))


def run(loaded: Loaded, model: Any = None) -> Any:
    """Call the module on copies of its inputs, without gradients, from the fixed seed."""
    torch.manual_seed(SEED)
    inputs = [value.clone() for value in loaded.inputs]
    with torch.no_grad(), stage("runtime", "forward"):
        return (loaded.model if model is None else model)(*inputs)


def agree(loaded: Loaded, expected: Any, found: Any) -> str:
    """Compare with stock's result; return "" or what differs.

    A program may enlarge rounding without bound (a norm of nearly equal values). So where results differ, stock is run
    again with its inputs and weights moved by a few units in the last place: what that changes, rounding may change.
    """
    gap = difference(expected, found)
    return difference(expected, found, slack=sensitivity(loaded, expected)) if gap else ""


def sensitivity(loaded: Loaded, expected: Any) -> list[float]:
    """Return, for each tensor of a result, ten times the change that moving all inputs and weights by 1e-6 makes."""
    slack = [0.0] * len(flat(expected))
    for seed in range(3):
        dice = torch.Generator().manual_seed(seed)

        def moved(value: torch.Tensor, dice: torch.Generator = dice) -> torch.Tensor:
            if not value.is_floating_point():
                return value
            return value * (1.0 + 1e-6 * torch.randn(value.shape, generator=dice)).to(value.dtype)

        model = copy.deepcopy(loaded.model)
        with torch.no_grad():
            for weight in (*model.parameters(), *model.buffers()):
                weight.copy_(moved(weight))
            other = run(Loaded(loaded.space, model, [moved(value) for value in loaded.inputs]))
        changes = [
            (a.double() - b.double()).abs().nan_to_num().max().item()
            for a, b in zip(flat(expected), flat(other), strict=True)
        ]
        slack = [max(old, 10.0 * new) for old, new in zip(slack, changes, strict=True)]
    return slack


def check_results(value: Any) -> list[str]:
    """Return the shapes and dtypes of a result.

    Raises:
        Failure: it holds something else than tensors, an empty tensor, NaN or infinity.
    """
    try:
        tensors = flat(value)
    except TypeError as error:
        raise Failure("structure", str(error)) from error
    if not tensors or any(not tensor.numel() for tensor in tensors):
        raise Failure("structure", "forward returns no tensor, or an empty one")
    if any(tensor.is_floating_point() and not tensor.isfinite().all() for tensor in tensors):
        raise Failure("non-finite", "the result holds NaN or infinity")
    return [f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]


class stage:
    """Turn what the program raises into a Failure of a category; memory and shapes have their own."""

    def __init__(self, category: str, where: str) -> None:
        self.category, self.where = category, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Failure) or not isinstance(error, Exception | SystemExit):
            return
        raise Failure(_category(error, self.category), f"{self.where}: {first_line(error)}") from error


def _category(error: BaseException, default: str) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "memory"
    if default == "runtime" and isinstance(error, RuntimeError | IndexError | ValueError):
        return "shape" if any(word in text for word in ("shape", "size", "dimension", "channels")) else default
    return default


def first_line(error: BaseException) -> str:
    """Name an exception and the first line of its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:240] if text else 'no message'}"


def _function(space: dict[str, Any], name: str) -> Any:
    found = space.get(name)
    if not callable(found):
        raise Failure("structure", f"there is no function {name}()")
    return found


def _init_arguments(made: Any) -> tuple[list[Any], dict[str, Any]]:
    """``(args, kwargs)``, or a plain list of arguments as KernelBench writes it."""
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple) and isinstance(made[1], dict):
        return list(made[0]), made[1]
    if isinstance(made, list):
        return made, {}
    raise Failure("structure", "get_init_inputs() does not return (args, kwargs)")
