"""Runs in a worker on stock code: keeps inputs and results around every integration point during a short generate.

As little as possible: per point and kind of instance, one call with many positions and one with a single one.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .codec import Unsaveable, encode

MAX_CALLS = 4  # per place


@dataclass
class Recorder:
    """Writes captures below ``folder`` until ``cap`` bytes are used; ``emit`` tells what was kept and what was not."""

    folder: Path
    cap: int
    emit: Callable[..., None]
    used: int = 0
    seen: dict[str, set[Any]] = field(default_factory=dict)
    states: set[str] = field(default_factory=set)

    def wants(self, place: str, key: Any) -> bool:
        """True when a call of this place and kind has not been kept yet."""
        known = self.seen.setdefault(place, set())
        if key in known or len(known) >= MAX_CALLS:
            return False
        known.add(key)
        return True

    def save(self, place: str, module: Any, path: str, before: tuple[Any, dict[str, Any]], result: Any) -> None:
        """Write one call: ``before`` are its encoded arguments and their tensors."""
        arguments, tensors = before
        layout = {"arguments": arguments, "result": encode(result, tensors, None), "path": path, "place": place}
        state = _state(module) if module is not None and path not in self.states else {}
        size = sum(t.numel() * t.element_size() for t in (*tensors.values(), *state.values()))
        if self.used + size > self.cap:
            self.emit("not-captured", place=place, reason=f"the size cap is reached ({size} more bytes are needed)")
            return
        self.used += size
        if state:
            self.states.add(path)
            _write(self.folder / "state" / f"{path}.safetensors", state, {})
        number = len(list(self.folder.glob(f"{place}.*.safetensors")))
        _write(self.folder / f"{place}.{number}.safetensors", tensors, {"call": json.dumps(layout)})
        self.emit("captured", place=place, number=number, bytes=size)


def _state(module: Any) -> dict[str, torch.Tensor]:
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in named}


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write whole or not at all; a disk that fills leaves no part of the file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def watching(model: Any, places: list[dict[str, Any]], recorder: Recorder) -> Iterator[None]:
    """Wrap the classes and functions of ``places`` ({"module", "qualname"}) while the block runs."""
    paths = {id(module): path for path, module in model.named_modules()}
    undo: list[tuple[Any, str, Any]] = []
    for place in places:
        owner, _, method = place["qualname"].partition(".")
        home = sys.modules.get(place["module"])
        if home is None or not hasattr(home, owner):
            recorder.emit("not-captured", place=place["qualname"], reason="the model does not use this file")
            continue
        target, name = (getattr(home, owner), method) if method else (home, owner)
        original = getattr(target, name)
        undo.append((target, name, original))
        setattr(target, name, _recording(original, place["qualname"], bool(method), paths, recorder))
    try:
        yield
    finally:
        for target, name, original in reversed(undo):
            setattr(target, name, original)


def _recording(
    original: Callable[..., Any], place: str, is_method: bool, paths: dict[int, str], recorder: Recorder
) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        module = args[0] if is_method else None
        path = paths.get(id(module), "") if is_method else ""
        given = args[1:] if is_method else args
        if (is_method and not path) or not recorder.wants(place, _kind(module, given, kwargs)):
            return original(*args, **kwargs)
        tensors: dict[str, torch.Tensor] = {}
        try:
            layer = getattr(module, "layer_idx", None)
            before = encode([list(given), kwargs], tensors, layer), tensors
        except Unsaveable as error:
            recorder.emit("not-captured", place=place, reason=str(error))
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        recorder.save(place, module, path, before, result)
        return result

    return recorded


def _kind(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tells calls apart: the sizes of the module, its window, one position or several."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    shapes = tuple(tuple(p.shape) for p in module.parameters()) if module is not None else ()
    rows = None if first is None else (first.dim(), min(first.shape[-2], 2) if first.dim() > 1 else 1)
    return shapes, getattr(module, "sliding_window", None), rows
