"""Shuffled weights for the tuned GEMM: which weights may have a copy, when it is made, and how it is taken back.

A copy costs the weight's bytes once more and cannot see who writes to the weight. So it exists only where its owner
says so: ``prepare(model)`` under USE_PRESHUFFLE=1 (or ``preshuffle_weights``) freezes the weights and makes their
copies, ``restore(model)`` gives both back, and whoever takes hold of a frozen weight's memory ends its copy
(frozen.py). Calls of fewer rows than PRESHUFFLE_M_THRESH keep the plain weight (decode can be slower on the shuffled
one); a negative threshold means never.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import toggles
from ..backends import aiter, shuffled
from ..dispatch import Site, capturing
from ..frozen import thaw
from ..modules import why_not_plain
from .packing import KEY, States

_site = Site("preshuffle", "shuffled", lambda settings: settings.asked("USE_PRESHUFFLE"))
STACKED = ("gate_up_proj", "down_proj")
"""Experts that are 3-D parameters: what their module calls them."""
UNFROZEN = "anybody may write to the weight: prepare(model) freezes it and makes its shuffled copy"
_was_on = False


@dataclass
class Shuffling:
    """What ``preshuffle_weights`` did: (path, bytes added) of each copy, and (path, reason) of each Linear without
    one.
    """

    copies: list[tuple[str, int]] = field(default_factory=list)
    declined: list[tuple[str, str]] = field(default_factory=list)

    @property
    def bytes_added(self) -> int:
        """Bytes of all copies."""
        return sum(size for _, size in self.copies)


@torch.no_grad()  # where gradients are wanted, to look for a copy takes hold of the weight and thaws it
def preshuffle_weights(model: nn.Module, require_multiple: int = 1) -> Shuffling:
    """Make the shuffled copy of every Linear of ``model`` that may have one; projections that are packed share one.

    ``require_multiple``: N and K must also be multiples of this. Tied weights (lm_head and embedding), subclasses of
    nn.Linear, hooked and quantised ones keep the plain weight, each with its reason.
    """
    done, packed = Shuffling(), _packed_groups(model)
    members = {id(owner) for _, _, owners in packed for owner in owners}
    shared = _shared_parameters(model)
    for path, weight, owners in packed:
        _add(done, path, weight, owners, "", require_multiple)
    for path, module in model.named_modules():
        for name, weight in _single(module):
            if id(weight) in members:
                continue
            reason = why_not_plain(module) if isinstance(module, nn.Linear) else ""
            reason = reason or ("the weight is tied to another module's" if id(weight) in shared else "")
            _add(done, f"{path}.{name}".strip("."), weight, (weight,), reason, require_multiple)
    return done


def _single(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights of one module that a kernel could read shuffled, with their names where they are not ``weight``."""
    if isinstance(module, nn.Linear):
        weight = module.__dict__["_parameters"].get("weight")
        return [] if weight is None else [("", weight)]
    parameters = module.__dict__["_parameters"]
    found = [(name, parameters.get(name)) for name in STACKED]
    return [(name, one) for name, one in found if one is not None] if all(one is not None for _, one in found) else []


def restore_weights(model: nn.Module) -> None:
    """Free the copies of ``model``'s weights, which anybody may write to again."""
    for parameter in model.parameters():
        thaw(parameter, "restored")


def count(weight: Tensor, x: Tensor) -> None:
    """Count whether a call of enough rows finds the copy of ``weight`` (USE_PRESHUFFLE=1)."""
    if below_threshold(x):
        return
    if shuffled.find(weight) is not None:
        _site.fast.calls += 1
    else:
        _site.declined(UNFROZEN)


def below_threshold(x: Tensor) -> bool:
    """Return True when ``x`` [..., K] has too few rows for the shuffled weight."""
    least = toggles.settings().preshuffle_m_thresh
    return least < 0 or x.numel() < least * x.shape[-1]


def _add(
    done: Shuffling, path: str, weight: Tensor, owners: tuple[nn.Parameter, ...], reason: str, require_multiple: int
) -> None:
    if not reason and (weight.shape[-2] % require_multiple or weight.shape[-1] % require_multiple):
        reason = f"N or K is no multiple of {require_multiple}"
    reason = reason or shuffled.why_not(weight) or aiter.why_not_shuffled(weight)
    if not reason and capturing():
        reason = "a stream is being captured"
    plain = weight if reason else shuffled.plain_of(weight)
    reason = reason or shuffled.keep(plain, aiter.shuffler(), owners)
    if reason:
        done.declined.append((path, reason))
        return
    held = shuffled.find(plain if type(plain) is Tensor else shuffled.plain_of(weight))
    assert held is not None
    done.copies.append((path, held.nbytes))


def _packed_groups(model: nn.Module) -> list[tuple[str, Tensor, tuple[nn.Parameter, ...]]]:
    """Paths, matrices and parameters of what is packed now; experts' matrices as [E, N, K]."""
    found = []
    for path, module in model.named_modules():
        states = module.__dict__.get(KEY)
        for names, group in states.items() if type(states) is States else ():
            rows = tuple(one for one in group.parameters() if one.dim() > 1)
            weight = group.weight
            if weight is None or group.owner != id(module):
                continue
            if names[0] == "*":
                weight = weight.view(len(list(module.children())), -1, weight.shape[1])
            elif group.fresh(module):
                continue
            found.append((f"{path}.{'+'.join(names)}".lstrip("."), weight, rows))
    return found


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


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
