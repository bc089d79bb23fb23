"""What the commands are asked for, checked before any work: the seed's parameters and ours."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from rocm_overlay import executor
from rocm_overlay.errors import TargetError, UsageError, WriteError
from rocm_overlay.executor import EXECUTORS
from rocm_overlay.fingerprint import Fingerprint, sha256, surroundings

from .kernelbench import MODES
from .sampler.plan import Counts, Range
from .sandbox.pool import Limits

BACKENDS = ("none", "eager", "aot_eager", "inductor")
OWN_PROVIDERS = ("offline", "openai", "gemini", "local")


PLUGINS = "rocm_overlay.synth_providers"


def plugins() -> dict[str, EntryPoint]:
    """Return the providers that other packages register, by name."""
    return {one.name: one for one in entry_points(group=PLUGINS)}


def provider_names() -> list[str]:
    """Return all that ``model_name`` can be."""
    return [*OWN_PROVIDERS, *sorted(set(plugins()) - set(OWN_PROVIDERS))]


@dataclass(frozen=True)
class DefaultModel:
    """The model that is asked where none is named, and the day on which that was decided."""

    name: str
    since: str


# Small models that write short files well. Another choice costs other money, so it is made here and dated.
DEFAULT_MODELS = {
    "openai": DefaultModel("gpt-5.4-mini", "2026-11-30"),
    "gemini": DefaultModel("gemini-3.8-flash", "2026-11-30"),
}
MOST_OPERATORS = 100
MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Settings:
    """All parameters of a run. Those that change what is generated are part of ``plan``."""

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
    prompts_dir: Path | None = None
    operators_file: Path | None = None
    kernelbench_filter: str = "near"
    kernelbench_threshold: float = 0.8
    kernelbench_dir: Path | None = None
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

    @property
    def key(self) -> Fingerprint:
        """What a resumed run must have in common with the one it goes on with."""
        return surroundings().planned(self.plan())

    def plan(self) -> dict[str, Any]:
        """The parameters that change what is generated; files and folders count by what they hold."""
        names: tuple[str, ...] = (
            "model_name",
            "num_core_ops_range",
            "num_compound_ops_range",
            "num_supporting_ops_range",
            "p_value",
        )
        names += ("temperature", "compile_backend", "seed", "prompts", "llm_model", "max_retries", "prompts_dir")
        names += ("operators_file", "kernelbench_filter", "kernelbench_threshold", "kernelbench_dir")
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        files = [value] if value.is_file() else sorted(path for path in value.rglob("*") if path.is_file())
        return {path.relative_to(value.parent).as_posix(): sha256(path) for path in files}
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


def make(*groups: object, **given: Any) -> Settings:
    """Return checked settings of groups of options and of single ones.

    Texts are read as ranges where a range is wanted, None means the default.

    Raises:
        UsageError: a value that makes no sense; nothing has been done.
    """
    for group in groups:
        given |= vars(group)
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("num_core_ops_range", "num_compound_ops_range", "num_supporting_ops_range"):
        if name in values:
            values[name] = parse_range(name, values[name])
    settings = Settings(**values)
    _check_ranges(settings)
    _check_numbers(settings)
    allowed = {"compile_backend": BACKENDS, "executor": EXECUTORS, "kernelbench_filter": MODES}
    for name, values_ in allowed.items():
        if getattr(settings, name) not in values_:
            raise bad(name, getattr(settings, name), f"one of {', '.join(values_)}")
    _check_paths(settings)
    return settings


def _check_paths(settings: Settings) -> None:
    if settings.model_name not in provider_names():
        raise bad("model_name", settings.model_name, f"one of {', '.join(provider_names())}")
    for name, kind in (("operators_file", "file"), ("prompts_dir", "folder"), ("kernelbench_dir", "folder")):
        path = getattr(settings, name)
        if path is not None and not (path.is_file() if kind == "file" else path.is_dir()):
            raise bad(name, str(path), f"a {kind} that is there")


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
        "kernelbench_threshold": (0.05, 1.0),
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
