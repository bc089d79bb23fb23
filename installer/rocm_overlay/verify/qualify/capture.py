"""Runs in a worker on stock code: keeps inputs and results around every integration point during a short generate.

As little as possible: one call per kind (many positions or one, which cache, padded or not, which window), each weight
once. Of a module that an edit uses in part (a decoder layer, the top of a model), the other children are kept as the
answers that they gave.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .codec import Unsaveable, caches_of, encode, positions

Tensors = dict[str, torch.Tensor]

MAX_CALLS = 16  # per place
_ROOT = "(root)"


def key_of(place: dict[str, Any]) -> str:
    """Return the name of a place in files and tables: functions of one name may lie in two modules."""
    return f"{place['module'].rpartition('.')[2]}.{place['qualname']}"


@dataclass
class Recorder:
    """Writes captures below ``folder`` until ``cap`` bytes are used; ``emit`` tells what was kept and what was not."""

    folder: Path
    cap: int
    emit: Callable[..., None]
    used: int = 0
    seen: dict[str, set[Any]] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    states: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    more: dict[str, int] = field(default_factory=dict)  # kinds of calls beyond MAX_CALLS

    def wants(self, place: str, key: Any) -> bool:
        """True when a call of this place and kind has not been kept yet."""
        known = self.seen.setdefault(place, set())
        if key in known:
            return False
        known.add(key)
        if len(known) > MAX_CALLS:
            self.more[place] = len(known) - MAX_CALLS
            return False
        return True

    def lost(self, place: str, reason: str) -> None:
        """Tell once that a call of a place was not kept."""
        if (place, reason) not in self.told:
            self.told.add((place, reason))
            self.emit("not-captured", place=place, reason=reason)

    def save(
        self, place: str, layout: dict[str, Any], tensors: dict[str, torch.Tensor], states: dict[str, Any]
    ) -> None:
        """Write one call and, by the path of their owner, the weights that no earlier call needed."""
        new = {owner: state for owner, state in states.items() if owner not in self.states}
        values = (*tensors.values(), *(value for state in new.values() for value in state.values()))
        size = sum(value.numel() * value.element_size() for value in values)
        if self.used + size > self.cap:
            self.lost(place, f"the size cap is reached ({size} more bytes are needed; raise --max-capture)")
            return
        self.used += size
        for owner, state in new.items():
            self.states.add(owner)
            kept = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
            _write(self.folder / "state" / f"{owner or _ROOT}.safetensors", kept, {})
        number = self.saved[place] = self.saved.get(place, 0) + 1
        _write(self.folder / f"{place}.{number - 1}.safetensors", tensors, {"call": json.dumps(layout)})
        self.emit("captured", place=place, number=number - 1, bytes=size)


def state_file(folder: Path, owner: str) -> Path:
    """Return where the weights lie that the module at path ``owner`` holds itself."""
    return folder / "state" / f"{owner or _ROOT}.safetensors"


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
    """Wrap the classes and functions of ``places`` while the block runs; in the end tell of every place without a call.

    A place is {"module", "qualname", "needs"}: ``needs`` names the children that its edits use, None all of them.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    undo: list[tuple[Any, str, Any]] = []
    for place in places:
        home = sys.modules.get(place["module"])
        owner, _, method = place["qualname"].partition(".")
        if home is None or not hasattr(home, owner):
            continue
        target, name = (getattr(home, owner), method) if method else (home, owner)
        original = getattr(target, name)
        undo.append((target, name, original))
        setattr(target, name, _recording(original, place, paths, recorder))
    try:
        yield
    finally:
        for target, name, original in reversed(undo):
            setattr(target, name, original)
    for place in places:
        _account(model, place, recorder)


def _account(model: Any, place: dict[str, Any], recorder: Recorder) -> None:
    """Tell why a place has no call, or not every kind of call."""
    key = key_of(place)
    if key in recorder.more:
        recorder.lost(key, f"{recorder.more[key]} more kinds of calls than the {MAX_CALLS} that are kept")
    if key in recorder.saved or any(name == key for name, _ in recorder.told):
        return
    home = sys.modules.get(place["module"])
    owner, _, method = place["qualname"].partition(".")
    cls = getattr(home, owner, None)
    if home is None or cls is None:
        recorder.emit("not-used", place=key, reason="the model does not load this file")
    elif method and not any(isinstance(module, cls) for module in model.modules()):
        recorder.emit("not-used", place=key, reason=f"the model has no {owner}")
    else:
        recorder.lost(key, "nothing called it in the runs that were captured")


def _recording(
    original: Callable[..., Any], place: dict[str, Any], paths: dict[int, str], recorder: Recorder
) -> Callable[..., Any]:
    """Wrap a method or function. Its signature stays: generate() chooses by it what to pass."""
    key, is_method, needs = key_of(place), "." in place["qualname"], place.get("needs")

    @functools.wraps(original)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        module = args[0] if is_method else None
        path = paths.get(id(module)) if is_method else ""
        given = args[1:] if is_method else args
        if path is None or not recorder.wants(key, _kind(module, given, kwargs)):
            return original(*args, **kwargs)
        layer = None if needs is not None else _layer(module)
        reads = getattr(module, "layer_idx", None) if layer is None else layer  # also where its children answer
        tensors: dict[str, torch.Tensor] = {}
        try:
            arguments = encode([list(given), kwargs], tensors, reads)
            states = {} if module is None else _states(module, path, needs)
        except Unsaveable as error:
            recorder.lost(key, str(error))
            return original(*args, **kwargs)
        with _answers(module, needs, tensors) as answers:
            result = original(*args, **kwargs)
        try:
            # What a call leaves in a cache is its own only where no child answers in place of what would write there.
            caches = [] if layer is None else list(caches_of([list(given), kwargs]))
            after = encode(caches, tensors, layer)
            layout = {"arguments": arguments, "result": encode(result, tensors, None), "after": after,
                      "answers": answers, "path": path, "owners": list(states), **place}  # fmt: skip
        except Unsaveable as error:
            recorder.lost(key, str(error))
            return result
        if "failed" in answers:
            recorder.lost(key, answers["failed"])
        else:
            recorder.save(key, layout, tensors, states)
        return result

    return recorded


def answered(module: Any, needs: list[str] | None) -> list[str]:
    """Return the children whose answers are kept in place of their weights: those that no edit needs."""
    if module is None or needs is None:
        return []
    return [
        name for name, child in module.named_children()
        if name not in needs and any(True for _ in (*child.parameters(), *child.buffers()))
    ]  # fmt: skip


@contextlib.contextmanager
def _answers(module: Any, needs: list[str] | None, tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
    """Yield what the children that no edit needs answer to their calls, in order; "failed" where it cannot be kept."""
    found: dict[str, Any] = {name: [] for name in answered(module, needs)}

    def keep(name: str) -> Callable[..., None]:
        def hook(child: Any, args: Any, result: Any) -> None:
            try:
                found[name].append(encode(result, tensors, None))
            except Unsaveable as error:
                found["failed"] = f"{name} answers with what cannot be kept: {error}"

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in list(found)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _states(module: Any, path: str, needs: list[str] | None) -> dict[str, dict[str, torch.Tensor]]:
    """Return the parameters and buffers below a module by the path of the module that holds them."""
    left_out = tuple(f"{name}." for name in answered(module, needs))
    found = {}
    for name, one in module.named_modules(remove_duplicate=False):
        if f"{name}.".startswith(left_out) and left_out:
            continue
        own = {**one._parameters, **one._buffers}
        kept = {leaf: value for leaf, value in own.items() if value is not None}
        if kept:
            found[".".join(part for part in (path, name) if part)] = kept
    return found


def _layer(module: Any) -> int | None:
    """Return the one layer whose part of a cache a module uses."""
    if module is None:
        return None
    numbers = {one.layer_idx for one in module.modules() if isinstance(getattr(one, "layer_idx", None), int)}
    return numbers.pop() if len(numbers) == 1 else None


def _kind(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tells calls apart: the module's sizes and window, one position or several, which arguments, which cache."""
    given = (*args, *(kwargs[name] for name in sorted(kwargs)))
    first = next((value for value in given if isinstance(value, torch.Tensor)), None)
    rows = None if first is None else first.dim(), min(positions(args, kwargs), 2)
    caches = tuple(_cache_kind(cache, _layer(module)) for cache in caches_of(list(given)))
    present = tuple(value is not None for value in given)
    if module is None:
        return rows, present, caches
    shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
    window = tuple(str(getattr(module, name, None)) for name in ("sliding_window", "is_sliding", "attention_type"))
    return hash(shapes), window, rows, present, caches


def _cache_kind(cache: Any, layer: int | None) -> Any:
    layers = getattr(cache, "layers", None)
    if layer is None or not isinstance(layers, list) or layer >= len(layers):
        return type(cache).__name__
    return type(cache).__name__, type(layers[layer]).__name__, getattr(layers[layer], "is_initialized", None)
