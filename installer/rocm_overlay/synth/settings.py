"""What the commands are asked for, checked before any work: the seed's parameters and ours."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rocm_overlay import executor
from rocm_overlay.executor import EXECUTORS
from rocm_overlay.install.transaction.errors import TargetError, UsageError, WriteError

from .sampler.plan import Counts, Range
from .sandbox.pool import Limits

BACKENDS = ("none", "eager", "aot_eager", "inductor")
PROVIDERS = ("offline", "openai", "gemini", "local")
MOST_OPERATORS = 100
MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Settings:
    """All parameters of a run. Those that change what is generated are part of ``fingerprint``."""

    num_total_samples: int = 100
    num_worker: int = 2
    model_name: str = "offline"
    num_core_ops_range: Range = (1, 5)
    num_compound_ops_range: Range = (0, 4)
    num_supporting_ops_range: Range = (2, 10)
    p_value: float = 0.25
    temperature: float = 0.7
    max_retries: int = 3
    validation_timeout: float = 60.0
    memory_limit_mb: int = 2048
    output_dir: Path = Path("generated_programs")
    compile_backend: str = "inductor"
    executor: str = "process"
    seed: int = 0
    prompts: str = "default"
    llm_model: str = ""
    base_url: str = ""
    max_tokens: int = 4096
    request_timeout: float = 120.0
    requests_per_minute: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0

    @property
    def counts(self) -> Counts:
        """How many operators are sampled."""
        return Counts(self.num_core_ops_range, self.num_compound_ops_range, self.num_supporting_ops_range, self.p_value)

    @property
    def limits(self) -> Limits:
        """What one validation may use."""
        return Limits(self.validation_timeout, self.memory_limit_mb << 20)

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on with."""
        names: tuple[str, ...] = (
            "model_name",
            "num_core_ops_range",
            "num_compound_ops_range",
            "num_supporting_ops_range",
            "p_value",
        )
        names += ("temperature", "compile_backend", "seed", "prompts", "llm_model", "max_retries")
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def bad(name: str, value: object, expected: str) -> UsageError:
    """The error of one parameter."""
    return UsageError("bad-parameter", f"{name} is {value!r}, expected {expected}.", remedy=f"set {name}=...")


def parse_range(name: str, text: str | Range) -> Range:
    """Return ``[low,high]`` (brackets optional, one number means both)."""
    if isinstance(text, tuple):
        return text
    parts = text.strip().removeprefix("[").removesuffix("]").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2:
        raise bad(name, text, "[low,high], for example [1,5]")
    return numbers[0], numbers[1]


def make(**given: Any) -> Settings:
    """Return checked settings; texts are read as ranges where a range is wanted, None means the default.

    Raises:
        UsageError: a value that makes no sense; nothing has been done.
    """
    known = {item.name for item in fields(Settings)}
    values = {name: value for name, value in given.items() if value is not None and name in known}
    for name in ("num_core_ops_range", "num_compound_ops_range", "num_supporting_ops_range"):
        if name in values:
            values[name] = parse_range(name, values[name])
    settings = Settings(**values)
    _check_ranges(settings)
    _check_numbers(settings)
    for name, allowed in (("model_name", PROVIDERS), ("compile_backend", BACKENDS), ("executor", EXECUTORS)):
        if getattr(settings, name) not in allowed:
            raise bad(name, getattr(settings, name), f"one of {', '.join(allowed)}")
    return settings


def _check_ranges(settings: Settings) -> None:
    for name in ("num_core_ops_range", "num_compound_ops_range", "num_supporting_ops_range"):
        low, high = getattr(settings, name)
        if low < 0 or high < low or high > MOST_OPERATORS:
            raise bad(name, [low, high], f"0 <= low <= high <= {MOST_OPERATORS}")
    if settings.num_core_ops_range[1] + settings.num_compound_ops_range[1] + settings.num_supporting_ops_range[1] == 0:
        raise bad("num_core_ops_range", [0, 0], "at least one operator in one of the three ranges")
    if sum(getattr(settings, f"num_{kind}_ops_range")[0] for kind in ("core", "compound", "supporting")) == 0:
        raise bad("num_core_ops_range", settings.num_core_ops_range[0], "a smallest program of at least one operator")


def _check_numbers(settings: Settings) -> None:
    bounds: dict[str, tuple[float, float]] = {
        "num_total_samples": (1, MOST_SAMPLES),
        "num_worker": (1, 1024),
        "p_value": (0.0, 1.0),
        "temperature": (0.0, 2.0),
        "max_retries": (1, 1000),
        "validation_timeout": (0.1, 86400),
        "memory_limit_mb": (64, 1 << 20),
        "max_tokens": (1, 1 << 20),
        "request_timeout": (0.1, 86400),
        "requests_per_minute": (0.0, 1e9),
        "price_in": (0.0, 1e9),
        "price_out": (0.0, 1e9),
    }
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise bad(name, value, f"a number from {low:g} to {high:g}")


def check_machine(settings: Settings) -> None:
    """Make sure that this machine has what the run needs, before anything is started.

    Raises:
        TargetError: no torch, no C compiler for inductor, no ray.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise TargetError(
            "no-torch", "Programs are validated with torch, which is not installed.", remedy="pip install torch"
        )
    if settings.compile_backend == "inductor" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise TargetError(
            "no-compiler",
            "torch.compile's inductor backend needs a C++ compiler, and none was found.",
            remedy="install g++, or set compile_backend=aot_eager (no code is generated) or compile_backend=none",
        )
    executor.check(settings.executor)


def prepare_folder(folder: Path) -> None:
    """Make the output folder and prove that it can be written.

    Raises:
        WriteError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise WriteError(
            "unwritable",
            f"output_dir {folder} cannot be written: {error.strerror or error}.",
            remedy="choose another output_dir, or make room",
            paths=[folder],
        ) from error
