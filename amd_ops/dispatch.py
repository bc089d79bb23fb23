"""Dispatch: every op has tiers in order; which of them can run at all is settled when the op is bound, ahead of its
first forward.

What an op pays per call when one tier is left is one counter and one call through a slot. A tier that is ruled out at
binding (toggle off, no device, arch not allowed, backend missing) costs nothing per call and still appears in the
report with its reason and the calls it missed. A live tier may have a check on its arguments (cheap tests first) and
a probe that compares each variant with the eager formula once.

Reasons are short sentences of low cardinality: they are counted by text.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch

from . import modes, toggles
from .checks import PASSED_ON
from .toggles import Settings

logger = logging.getLogger("amd_ops")
logger.addHandler(logging.NullHandler())

_lock = threading.RLock()
"""Held while an op is bound: two threads that call it first must not mix their chains and counters."""


class Choice(str):
    """A reason that is no failure: the lower tier is the right answer here. Counted, never a warning or an error."""

    __slots__ = ()


EMPTY = Choice("empty input")
"""There is nothing to compute."""
MAX_REASONS = 100
OTHER_REASONS = "other reasons (the list is full)"

Run = Callable[..., Any]
Public = TypeVar("Public", bound=Callable[..., Any])
Check = Callable[..., str]


class DeclinedError(RuntimeError):
    """Strict mode: a requested tier cannot run. Also raised, in any mode, when no tier is left that can.

    Examples:
        >>> with amd_ops.override(use_aiter_gemm=1, tiers="aiter"):
        ...     amd_ops.linear(torch.zeros(1, 2), torch.zeros(3, 2))
        Traceback (most recent call last):
        amd_ops.dispatch.DeclinedError: ...
    """


class DeclinedWarning(UserWarning):
    """A requested tier cannot run and a lower one took over. Given once per op, tier and reason.

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("error", amd_ops.DeclinedWarning)  # a test suite that wants the fast tiers or nothing
    """


@dataclass(frozen=True)
class Verdict:
    """Whether ``tier`` runs, and if not, why.

    Examples:
        >>> amd_ops.Verdict(False, "aiter", "a gradient is needed").reason
        'a gradient is needed'
    """

    ok: bool
    tier: str
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """A tier that may run in this process.

    run(*args) computes. check(*args) returns "" or the reason why these arguments do not fit. variant(*args) names
    the kernel variant these arguments would use; probe(*args) runs that variant on made-up data and returns "" when
    it agrees with eager. ``provider`` names whose kernels these are where they stand in for the tier's own.

    bind(*args) serves plans: once check and variant have said yes, it returns what computes further calls whose
    arguments have the dtypes, shapes and layouts of these, without looking at them again; None where that depends on
    their values.

    ``passes`` is a reason that breaks no request where a lower tier that was asked for as well is live: it is counted,
    and that tier takes over without a warning.
    """

    run: Run
    check: Check | None = None
    variant: Callable[..., Hashable] | None = None
    probe: Check | None = None
    verdicts: dict[Hashable, str] = field(default_factory=dict)
    provider: str = ""
    bind: Callable[..., Run | None] | None = None
    passes: str = ""


@dataclass(frozen=True)
class Refusal:
    """Say why a tier cannot run in this process; ``unmet`` where the user requested it, which is then warned about."""

    reason: str
    unmet: bool = False
    provider: str = ""


Offered = Candidate | Refusal
Offer = Callable[[Settings], Offered | tuple[Offered, ...]]
"""What a tier answers when an op is bound: one offer, or those of its providers in the order in which to try them."""


@dataclass
class Tally:
    """What happened to one tier of one op; ``name`` is the tier's, or ``tier:provider`` (see Candidate)."""

    name: str
    calls: int = 0
    first_call_s: float | None = None
    declined: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    unmet: bool = False

    @property
    def tier(self) -> str:
        """The tier's name alone."""
        return self.name.partition(":")[0]


@dataclass
class Tier:
    """A tier's name and how to ask for it; ``wanted(settings)`` says whether its declines are broken requests."""

    name: str
    offer: Offer
    wanted: Callable[[Settings], bool] = lambda settings: False


class Op:
    """One operation: its public function, its tiers from best to last, and its counters.

    The public function does ``op.calls += 1; return op.call(*args)``. ``call`` starts as a binder and becomes the
    bound chain.
    """

    __slots__ = (
        "_counted_from",
        "_links",
        "_live",
        "_sole",
        "arrange",
        "call",
        "calls",
        "name",
        "signature",
        "tallies",
        "tiers",
    )

    def __init__(self, name: str, tiers: Sequence[Tier], arrange: Callable[..., tuple[Any, ...]] | None = None) -> None:
        self.name = name
        self.tiers = tuple(tiers)
        self.tallies = {tier.name: Tally(tier.name) for tier in self.tiers}
        self.arrange = arrange
        self.signature: inspect.Signature | None = None
        self.calls = 0
        self._counted_from = 0
        self._sole: Tally | None = None
        self._live: frozenset[str] | None = None
        self._links: list[tuple[Tally, Candidate]] = []
        self.call: Run = self._bind_then_call
        ops[name] = self

    def public(self, function: Public) -> Public:
        """Decorate the public function: explain() then understands its arguments."""
        self.signature = inspect.signature(function)
        return function

    def unbind(self) -> None:
        """Fold the calls that needed no counting of their own into the tallies and go back to the binder."""
        with _lock:
            self.fold()
            self._sole, self._live = None, None
            self.call = self._bind_then_call
            for tally in self.tallies.values():
                tally.refused = ""

    def fold(self) -> None:
        """Credit calls since the last fold: to the only live tier, and as missed calls to every refused one."""
        new = self.calls - self._counted_from
        self._counted_from = self.calls
        if not new:
            return
        if self._sole is not None:
            self._sole.calls += new
        for tally in self.tallies.values():
            if tally.refused:
                tally.declined[tally.refused] = tally.declined.get(tally.refused, 0) + new

    def zero(self) -> None:
        """Set the counter to zero; tallies are zeroed by reset_counters()."""
        self.calls = self._counted_from = 0

    def can(self, tier: str) -> bool:
        """Return True when ``tier`` is live in this process (its check may still decline single calls)."""
        if self._live is None:
            self.bind()
        return self._live is not None and tier in self._live

    def bind(self) -> None:
        """Ask every tier for a candidate and build the chain; warn about requests that are refused for good."""
        with _lock:
            self._bind(toggles.settings())

    def _bind(self, settings: Settings) -> None:
        live: list[tuple[Tally, Candidate]] = []
        for tier, offer in self.all_offers(settings):
            tally = self._tally(tier.name, offer.provider)
            tally.unmet = tier.wanted(settings)
            if isinstance(offer, Candidate):
                live.append((tally, offer))
                continue
            tally.refused = offer.reason
            if offer.unmet:
                complain(self.name, tally.name, offer.reason)
                if settings.strict:
                    self._live, self.call = frozenset(), _raiser(self.name, tally.name, offer.reason)
                    return
        self._live, self._links = frozenset(tally.tier for tally, _ in live), live
        self.call = self._chain(live, settings.strict)

    def bound(self, *args: Any) -> Bound:
        """Return how to compute calls like this one without asking again."""
        if self._live is None:
            self.bind()
        declined: list[tuple[Tally, str]] = []
        for tally, candidate in self._links:
            reason = candidate.check(*args) if candidate.check is not None else ""
            if not reason and candidate.variant is None:
                return Bound(self, candidate.run, tally, declined)
            if not reason and candidate.variant is not None:
                key = candidate.variant(*args)
                known = candidate.verdicts.get(key)
                reason = _prove(tally, candidate, key, args) if known is None else known
                if not reason:
                    fast = candidate.bind(*args) if candidate.bind is not None else None
                    run = None if fast is None else self._guarded(tally, candidate, key, fast)
                    return Bound(self, self.call) if run is None else Bound(self, run, tally, declined)
            declined.append((tally, reason))
            if _breaks(tally, reason, _quiet(tally, candidate, self._links)):
                complain(self.name, tally.name, reason)
                if toggles.settings().strict:
                    raise DeclinedError(_strict_sentence(self.name, tally.name, reason))
        return Bound(self, self.call)

    def _guarded(self, tally: Tally, candidate: Candidate, key: Hashable, fast: Run) -> Run:
        """A kernel that raises is out, as in the chain, and the rest of the chain answers and counts."""

        def run(*args: Any) -> Any:
            try:
                return fast(*args)
            except PASSED_ON:
                raise
            except Exception as error:  # noqa: BLE001 - kept as the verdict, which the chain counts and tells
                candidate.verdicts[key] = f"raised {_short(error)}"
            tally.calls -= 1  # it is credited to this tier with the others
            return self.call(*args)

        return run

    def _tally(self, tier: str, provider: str) -> Tally:
        """The tally of a tier, or of a provider in it, which is kept in front of the tier's own."""
        name = f"{tier}:{provider}" if provider else tier
        if name not in self.tallies:
            known = list(self.tallies.values())
            known.insert(list(self.tallies).index(tier), Tally(name))
            self.tallies = {tally.name: tally for tally in known}
        return self.tallies[name]

    def offers(self, tier: Tier, settings: Settings) -> tuple[Offered, ...]:
        """Return what ``tier`` offers, or why the settings leave it out."""
        if tier.name not in settings.tiers:
            return (Refusal("AMD_OPS_TIERS leaves it out"),)
        if tier.name not in settings.tiers_of(self.name):
            return (Refusal("the profile or AMD_OPS_OP_TIERS leaves it out"),)
        offer = tier.offer(settings)
        return offer if isinstance(offer, tuple) else (offer,)

    def all_offers(self, settings: Settings) -> Iterator[tuple[Tier, Offered]]:
        """Yield the offers of every tier, best first; a tier is asked when its turn comes."""
        for tier in self.tiers:
            for offer in self.offers(tier, settings):
                yield tier, offer

    def offered(self, tier: Tier, settings: Settings) -> Offered:
        """Return the first candidate of ``tier``, or why it has none."""
        offers = self.offers(tier, settings)
        return next((offer for offer in offers if isinstance(offer, Candidate)), offers[-1])

    def _chain(self, live: list[tuple[Tally, Candidate]], strict: bool) -> Run:
        self._sole = None
        if live and live[0][1].check is None and live[0][1].variant is None:
            self._sole, run = live[0][0], live[0][1].run
            return run if self._sole.first_call_s is not None else self._first(self._sole, run)
        chain: Run = _exhausted(self.name)
        for tally, candidate in reversed(live):
            chain = _link(self.name, tally, candidate, chain, strict, _quiet(tally, candidate, live))
        return chain

    def _first(self, tally: Tally, run: Run) -> Run:
        """Run with a clock once, so that one-off costs show in the report, then get out of the way."""

        def first(*args: Any) -> Any:
            result = _timed(tally, run, args)
            if self._sole is tally:
                self.call = run
            return result

        return first

    def _bind_then_call(self, *args: Any) -> Any:
        with _lock:
            if self._live is None:
                self._bind(toggles.settings())
            call = self.call
        return call(*args)


@dataclass(frozen=True)
class Bound:
    """A call of an op that asks nothing any more: what computes it, whose call it is, and who declined it and why.

    Without a tally, ``run`` is the whole chain, which counts for itself.
    """

    op: Op
    run: Run
    tally: Tally | None = None
    declined: Sequence[tuple[Tally, str]] = ()

    def credit(self, times: int) -> None:
        """Count ``times`` calls."""
        self.op.calls += times
        if self.tally is None:
            return
        if self.tally is not self.op._sole:
            self.tally.calls += times
        for tally, reason in self.declined:
            tally.declined[reason] = tally.declined.get(reason, 0) + times


class Site:
    """A place in a model's forward that takes our path or falls back to the stock modules; reported beside the ops."""

    __slots__ = ("fast", "name", "slow", "strict", "tallies", "wanted")
    signature: inspect.Signature | None = None

    def __init__(self, name: str, fast: str, wanted: Callable[[Settings], bool]) -> None:
        self.name = name
        self.fast, self.slow = Tally(fast), Tally("stock")
        self.tallies = {fast: self.fast, "stock": self.slow}
        self.wanted = wanted
        self.strict = False
        ops[name] = self

    @property
    def calls(self) -> int:
        """Calls of both paths."""
        return self.fast.calls + self.slow.calls

    def unbind(self) -> None:
        """Follow the settings."""
        settings = toggles.settings()
        self.strict, self.fast.unmet = settings.strict, self.wanted(settings)

    def fold(self) -> None:
        """Nothing is counted late here."""

    def zero(self) -> None:
        """Set the counters to zero."""
        self.slow.calls = 0

    def declined(self, reason: str) -> None:
        """Count one fall-back to the stock modules and why; strict mode raises where the fast path was asked for."""
        self.slow.calls += 1
        decline(self.name, self.fast, reason, self.strict)


ops: dict[str, Op | Site] = {}
_complained: set[tuple[str, str, str]] = set()


def _quiet(tally: Tally, candidate: Candidate, live: list[tuple[Tally, Candidate]]) -> tuple[str, ...]:
    """The reasons of a live tier that break no request, beside the choices."""
    below = live[[other for other, _ in live].index(tally) + 1 :]
    covered = any(other.unmet and other.tier != tally.tier for other, _ in below)
    return (candidate.passes,) if covered else ()


def _breaks(tally: Tally, reason: str, quiet: tuple[str, ...]) -> bool:
    """Whether a decline with this reason breaks a request: it is told, and an error in strict mode."""
    return tally.unmet and not isinstance(reason, Choice) and reason not in quiet


def _link(op: str, tally: Tally, candidate: Candidate, rest: Run, strict: bool, quiet: tuple[str, ...] = ()) -> Run:
    """One step of a chain: run this tier if its check and its variant's verdict allow it, else the rest of the
    chain.
    """
    check, run, variant, verdicts = candidate.check, candidate.run, candidate.variant, candidate.verdicts

    def simple(*args: Any) -> Any:
        reason = check(*args) if check is not None else ""
        if reason:
            decline(op, tally, reason, strict, quiet)
            return rest(*args)
        tally.calls += 1
        return run(*args) if tally.first_call_s is not None else _timed(tally, run, args)

    def proven(*args: Any) -> Any:
        assert variant is not None
        reason = check(*args) if check is not None else ""
        if not reason:
            key = variant(*args)
            known = verdicts.get(key)
            reason = _prove(tally, candidate, key, args) if known is None else known
            if not reason:
                try:
                    result = run(*args)
                except PASSED_ON:
                    raise
                except Exception as error:  # noqa: BLE001 - kept, counted and told; strict mode raises
                    reason = verdicts[key] = f"raised {_short(error)}"
                else:
                    tally.calls += 1
                    return result
        decline(op, tally, reason, strict, quiet)
        return rest(*args)

    return simple if variant is None else proven


def _prove(tally: Tally, candidate: Candidate, key: Hashable, args: tuple[Any, ...]) -> str:
    """Probe a variant once. Under stream capture nothing may be built or compared: decline for now, without a
    verdict.
    """
    if capturing():
        return "this variant has not been probed yet and a stream is being captured"
    start = time.perf_counter()
    try:
        with modes.unseen():
            reason = candidate.probe(*args) if candidate.probe is not None else ""
    except PASSED_ON:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a first call raises is this variant's verdict
        reason = f"its probe raised {_short(error)}"
    candidate.verdicts[key] = reason
    if tally.first_call_s is None:
        tally.first_call_s = time.perf_counter() - start
    return reason


def _timed(tally: Tally, run: Run, args: tuple[Any, ...]) -> Any:
    start = time.perf_counter()
    result = run(*args)
    tally.first_call_s = time.perf_counter() - start
    return result


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _raiser(op: str, tier: str, reason: str) -> Run:
    def refuse(*args: Any) -> Any:
        raise DeclinedError(_strict_sentence(op, tier, reason))

    return refuse


def _exhausted(op: str) -> Run:
    def refuse(*args: Any) -> Any:
        raise DeclinedError(
            f"{op}: no tier is left that can run this call; see amd_ops.report() for the reasons and AMD_OPS_TIERS."
        )

    return refuse


def _strict_sentence(op: str, tier: str, reason: str) -> str:
    return f"{op}: tier {tier} was asked for and cannot run: {reason} (AMD_OPS_STRICT=1 makes this an error)."


def decline(op: str, tally: Tally, reason: str, strict: bool, quiet: tuple[str, ...] = ()) -> None:
    """Count a decline; the first of its kind is a warning if the tier was asked for, and an error in strict mode.
    Neither happens for a choice, nor for a reason in ``quiet``.
    """
    told = _breaks(tally, reason, quiet)
    declined = tally.declined
    if reason not in declined:
        if len(declined) >= MAX_REASONS:
            reason = OTHER_REASONS
        if told:
            complain(op, tally.name, reason)
    declined[reason] = declined.get(reason, 0) + 1
    if strict and told:
        raise DeclinedError(_strict_sentence(op, tally.name, reason))


def complain(op: str, tier: str, reason: str) -> None:
    """Warn once per (op, tier, reason), through ``warnings`` for people and ``logging`` for services."""
    if (op, tier, reason) in _complained:
        return
    _complained.add((op, tier, reason))
    text = f"amd_ops: {op}: tier {tier} was asked for and cannot run: {reason}. A lower tier runs instead."
    logger.warning(text)
    warnings.warn(text, DeclinedWarning, stacklevel=_callers_level())


_LIBRARIES = ("amd_ops", "torch", "transformers", "accelerate", "peft")


def _callers_level() -> int:
    """Return the ``stacklevel`` that makes a warning of `complain` name the line of the user's own code.

    That is the nearest caller outside of this package, of torch and of the libraries whose models call it.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            return level
        frame, level = frame.f_back, level + 1
    return level


def capturing() -> bool:
    """Return True while a CUDA/HIP graph is being captured on the current stream."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and bool(torch.cuda.is_current_stream_capturing())


def always(run: Run, check: Check | None = None) -> Offer:
    """Offer of a tier that needs no device and no toggle."""
    candidate = Candidate(run, check)
    return lambda settings: candidate


def _unbind_all() -> None:
    for op in ops.values():
        op.unbind()


def reset_counters() -> None:
    """Set all counters to zero and forget which warnings were given.

    Examples:
        >>> amd_ops.reset_counters()
    """
    _complained.clear()
    for op in ops.values():
        op.zero()
        for tally in op.tallies.values():
            tally.calls, tally.first_call_s = 0, None
            tally.declined.clear()


def new_lock_after_fork(module: str) -> None:
    """Give ``module`` a fresh ``_lock`` in every forked child: a thread that held it does not exist there."""

    def renew() -> None:
        sys.modules[module].__dict__["_lock"] = threading.RLock()

    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=renew)


new_lock_after_fork(__name__)
toggles.when_settings_change(_unbind_all)
toggles.when_refreshed(_complained.clear)
