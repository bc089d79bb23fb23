"""Shuffled weights for the tuned GEMM: which Linears may have a copy, when it is made, and how it is taken back.

A copy costs the weight's bytes once more, so it exists only where USE_PRESHUFFLE=1 or :func:`preshuffle_weights` asks
for it. Calls of fewer rows than PRESHUFFLE_M_THRESH keep the plain weight (decode can be slower on the shuffled one);
a negative threshold means never. What a copy is and how it goes stale: ``shuffled.py``.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import shuffled, toggles
from .backends import aiter
from .dispatch import Site, capturing
from .modules import why_not_plain
from .packing import Packed, States

_site = Site("preshuffle", "shuffled", lambda settings: settings.asked("USE_PRESHUFFLE"))
_refused: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], str]] = weakref.WeakKeyDictionary()
_was_on = False


@dataclass
class Shuffling:
    """What :func:`preshuffle_weights` did: (path, bytes added) of each copy, and (path, reason) of each Linear without
    one.
    """

    copies: list[tuple[str, int]] = field(default_factory=list)
    declined: list[tuple[str, str]] = field(default_factory=list)

    @property
    def bytes_added(self) -> int:
        """Bytes of all copies."""
        return sum(size for _, size in self.copies)


def preshuffle_weights(model: nn.Module, require_multiple: int = 1) -> Shuffling:
    """Make the shuffled copy of every Linear of ``model`` that may have one; projections that are packed share one.

    ``require_multiple``: N and K must also be multiples of this. Tied weights (lm_head and embedding), subclasses of
    nn.Linear, hooked and quantised ones keep the plain weight, each with its reason.
    """
    done, packed = Shuffling(), _packed_groups(model)
    members = {id(weight) for _, group in packed for weight in _row_weights(group)}
    shared = _shared_parameters(model)
    for path, group in packed:
        assert group.weight is not None
        _add(done, path, group.weight, _row_weights(group), "", require_multiple)
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight
        if id(weight) in members:
            continue
        reason = why_not_plain(module) or ("the weight is tied to another module's" if id(weight) in shared else "")
        _add(done, path, weight, (), reason, require_multiple)
    return done


def restore_weights(model: nn.Module) -> None:
    """Free the copies of ``model``'s weights."""
    for _, group in _packed_groups(model):
        assert group.weight is not None
        shuffled.drop(group.weight)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            shuffled.drop(parameter)


def consider(module: nn.Module, x: Tensor) -> None:
    """Make the copy of an untouched Linear's weight when a call of enough rows first needs it (USE_PRESHUFFLE=1).

    Nothing says here which model the module belongs to, so a weight that anything else holds too counts as tied.
    """
    if below_threshold(x) or shuffled.find(module.__dict__["_parameters"]["weight"]) is not None:
        return
    state = _stamp(module)
    known = _refused.get(module)
    reason = known[1] if known is not None and known[0] == state else _consider(module)
    if reason:
        _refused[module] = (state, reason)
        _site.declined(reason)
        return
    _site.fast.calls += 1


def consider_packed(packed: Packed, x: Tensor) -> None:
    """Make the copy of a packed matrix when a call of enough rows first needs it (USE_PRESHUFFLE=1)."""
    weight = packed.weight
    if weight is None or below_threshold(x) or shuffled.find(weight) is not None:
        return
    reason = _keep(weight, _row_weights(packed))
    if reason:
        _site.declined(reason)
        return
    _site.fast.calls += 1


def below_threshold(x: Tensor) -> bool:
    """Return True when ``x`` [..., K] has too few rows for the shuffled weight."""
    least = toggles.settings().preshuffle_m_thresh
    return least < 0 or x.numel() < least * x.shape[-1]


def _consider(module: nn.Module) -> str:
    # One reference is the module's own, one is this call's argument.
    if sys.getrefcount(module.__dict__["_parameters"]["weight"]) > 2:
        return "the weight is held elsewhere too (tied, or in use by the program): prepare(model) tells them apart"
    return _keep(module.__dict__["_parameters"]["weight"], ())


def _keep(weight: Tensor, parts: tuple[Tensor, ...]) -> str:
    reason = shuffled.why_not(weight) or aiter.why_not_shuffled(weight)
    if not reason and capturing():
        reason = "a stream is being captured"
    if not reason:
        shuffled.keep(weight, aiter.shuffler(), parts)
    return reason


def _add(
    done: Shuffling, path: str, weight: Tensor, parts: tuple[Tensor, ...], reason: str, require_multiple: int
) -> None:
    if not reason and (weight.shape[0] % require_multiple or weight.shape[1] % require_multiple):
        reason = f"N or K is no multiple of {require_multiple}"
    reason = reason or _keep(weight, parts)
    if reason:
        done.declined.append((path, reason))
        return
    held = shuffled.find(weight)
    assert held is not None
    done.copies.append((path, held.nbytes))


def _packed_groups(model: nn.Module) -> list[tuple[str, Packed]]:
    found = []
    for path, module in model.named_modules():
        states = module.__dict__.get("_amd_packed")
        if type(states) is States:
            for names, group in states.items():
                if not group.fresh(module, names):
                    found.append((f"{path}.{'+'.join(names)}".lstrip("."), group))
    return found


def _row_weights(group: Packed) -> tuple[Tensor, ...]:
    return tuple(parameter for own in group.rows for key, parameter, _ in own if key == "weight")


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _stamp(module: nn.Module) -> tuple[object, ...]:
    weight = module.__dict__["_parameters"]["weight"]
    return (id(weight), weight.data_ptr(), weight.dtype, toggles.settings())


def _follow() -> None:
    """Run at each change of settings: say when nothing can answer the request; free the copies when it is withdrawn."""
    global _was_on
    settings = toggles.settings()
    if _was_on and not settings.use_preshuffle:
        shuffled.drop_all()
    _was_on = settings.use_preshuffle
    if settings.use_preshuffle and not (settings.use_aiter_gemm or settings.use_optimized_ops):
        _site.declined("nothing reads shuffled weights while USE_AITER_GEMM is off")


toggles.when_settings_change(_follow)
toggles.when_refreshed(shuffled.drop_all)
