"""Toggles: the environment, read once, becomes one frozen ``Settings`` and the switches that overlaid files read.

A toggle that is set decides for itself. ``AMD_OPS`` decides for those that are unset: ``off`` leaves them off,
``auto`` follows the device policy below, a profile file names values. Nothing in here runs during a forward: only
``refresh`` and ``override`` change anything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from . import device, gemm_tables, profile
from .backends.triton import target as triton_target
from .toggle_rules import FAMILIES, KEYWORDS, PLANNED, PROVIDERS, RULES, SWITCHES, TIERS, ToggleError, as_text, misspelt

__all__ = ["FAMILIES", "KEYWORDS", "PROVIDERS", "RULES", "TIERS", "Settings", "Switches", "ToggleError"]

_ALL_BUT_GEMM = {"USE_AITER_ATTENTION": True, "USE_OPTIMIZED_OPS": True, "USE_FUSED_PROJECTIONS": True}


class ToggleWarning(UserWarning):
    """A variable is set that looks like a toggle and is none."""


@dataclass(frozen=True)
class Settings:
    """What the toggles resolved to. Field names are the override() keywords; ``sources`` says who decided each
    toggle.

    Examples:
        >>> with amd_ops.override(tiers="torch,eager") as settings:
        ...     settings.tiers, settings.use_aiter_gemm
        (('torch', 'eager'), False)
    """

    use_aiter_attention: bool
    use_aiter_gemm: bool
    use_optimized_ops: bool
    use_fused_projections: bool
    use_preshuffle: bool
    preshuffle_m_thresh: int
    use_fused_cross_entropy: bool
    force_eager_attention: bool
    strict: bool
    tiers: tuple[str, ...]
    profile: str
    sources: tuple[tuple[str, str], ...]
    stock: tuple[str, ...] = ()
    op_tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    profile_note: str = ""
    triton_providers: tuple[str, ...] = ("ours",)

    def tiers_of(self, op: str) -> tuple[str, ...]:
        """Return the tiers that op ``op`` may use: those of ``op_tiers`` where it is named there, within ``tiers``."""
        limit = dict(self.op_tiers).get(op, self.tiers)
        return tuple(tier for tier in self.tiers if tier in limit)

    def asked(self, name: str) -> bool:
        """Return True when somebody asked for toggle ``name`` by hand: only such a request can warn or be an error."""
        return dict(self.sources).get(name) in ("environment", "override", "profile") and bool(
            getattr(self, name.lower())
        )

    def as_dict(self) -> dict[str, object]:
        """Return the settings as JSON-ready values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        op_tiers = {op: list(tiers) for op, tiers in self.op_tiers}
        lists = {name: list(getattr(self, name)) for name in ("tiers", "stock", "triton_providers")}
        return {**values, **lists, "op_tiers": op_tiers, "sources": dict(self.sources)}


class Switches:
    """Plain booleans that the guards in overlaid files read; all False when every toggle is off.

    Examples:
        >>> with amd_ops.override(use_optimized_ops=1):
        ...     amd_ops.on.rms_norm, amd_ops.on.attention
        (True, False)
    """

    __slots__ = tuple(SWITCHES)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> bool: ...

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, False)

    def follow(self, settings: Settings) -> None:
        """Set every switch as toggle_rules.SWITCHES says, without those of ``settings.stock``."""
        for name, toggles in SWITCHES.items():
            asked = any(getattr(settings, toggle.lower()) for toggle in toggles)
            setattr(self, name, asked and name not in settings.stock)
        if settings.preshuffle_m_thresh < 0:
            self.preshuffle = False
        # A plan runs whole layers, with these computes in it: none of them may be left to stock.
        if not (settings.use_optimized_ops and all(getattr(self, name) for name in PLANNED)):
            self.plan = False

    def __repr__(self) -> str:
        return "Switches(" + ", ".join(f"{name}={getattr(self, name)}" for name in self.__slots__) + ")"


on = Switches()
_raw: dict[str, tuple[str, str]] = {}
_settings: Settings | None = None
_on_change: list[Callable[[], None]] = []
_on_refresh: list[Callable[[], None]] = [device.forget]


def settings() -> Settings:
    """Return the settings in force.

    Examples:
        >>> amd_ops.settings().use_optimized_ops
        False
    """
    if _settings is None:
        refresh()
    assert _settings is not None
    return _settings


def refresh() -> Settings:
    """Read the environment again, forget what was learnt about device and backends, and bind every op anew.

    Examples:
        >>> import os
        >>> os.environ["AMD_OPS_TIERS"] = "eager"
        >>> amd_ops.refresh().tiers
        ('eager',)
        >>> del os.environ["AMD_OPS_TIERS"]
        >>> amd_ops.refresh().tiers
        ('aiter', 'triton', 'torch', 'eager')
    """
    global _raw
    raw = _from_environment(os.environ)
    for forget in _on_refresh:
        forget()
    resolved = _resolve(raw)
    _raw = raw
    return _install(resolved)


@contextmanager
def override(**toggles: object) -> Iterator[Settings]:
    """Set toggles for the length of a ``with`` block, in the whole process: ``override(use_aiter_attention=1,
    tiers="torch,eager")``.

    Keywords are the lower-case names of the environment variables; ``AMD_OPS_TIERS``, ``AMD_OPS_STRICT`` and
    ``AMD_OPS`` are ``tiers``, ``strict`` and ``profile``. Raises ``ToggleError`` on an unknown keyword or value,
    before anything changes.

    Examples:
        >>> with amd_ops.override(use_optimized_ops=1, tiers="torch,eager"):
        ...     amd_ops.settings().tiers
        ('torch', 'eager')
    """
    global _raw
    before_settings = settings()
    before_raw = _raw
    raw = {**_raw}
    for keyword, value in toggles.items():
        if keyword not in KEYWORDS:
            raise ToggleError(
                f"override() has no toggle {keyword!r}; accepted are {', '.join(KEYWORDS)}: use one of them."
            )
        raw[KEYWORDS[keyword]] = (as_text(value), "override")
    resolved = _resolve(raw)
    _raw = raw
    try:
        yield _install(resolved)
    finally:
        _raw = before_raw
        _install(before_settings)


def _install(resolved: Settings) -> Settings:
    global _settings
    _settings = resolved
    on.follow(resolved)
    for listener in _on_change:
        listener()
    return resolved


def when_settings_change(listener: Callable[[], None]) -> None:
    """Call ``listener`` after every change of settings (ops bind anew)."""
    _on_change.append(listener)


def when_refreshed(forget: Callable[[], None]) -> None:
    """Call ``forget`` at the start of every refresh (backends drop what they learnt)."""
    _on_refresh.append(forget)


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the toggles that are set. A misspelt one is an error, or a warning where the name may be another's."""
    for one in misspelt(environ):
        if one.refused or environ.get("AMD_OPS_STRICT") == "1":
            raise ToggleError(one.text)
        warnings.warn(f"amd_ops: {one.text}", ToggleWarning, stacklevel=3)
    return {name: (environ[name], "environment") for name in KEYWORDS.values() if name in environ}


def _resolve(raw: Mapping[str, tuple[str, str]]) -> Settings:
    """Turn raw texts into settings; asks for the device only where some toggle is ``auto``."""
    policy = raw.get("AMD_OPS", ("off", "default"))[0]
    chosen = _chosen(policy, raw)
    # What was qualified is no request by hand: under auto a call that it declines is neither told nor an error.
    source = "auto" if policy == "auto" else "profile"
    merged: dict[str, tuple[str, str]] = {**{name: (text, source) for name, text in chosen.toggles.items()}, **raw}
    unset = ("auto", "auto") if policy == "auto" and not chosen.found else ("0", "default")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, rule in RULES.items():
        text, sources[name] = merged.get(name, unset if name in FAMILIES else (rule.default, "default"))
        values[rule.keyword] = rule.read(text)
    for name in FAMILIES:
        text = values[name.lower()]
        values[name.lower()] = _auto(name) if text == "auto" else text == "1"
        if text == "auto":
            sources[name] = "auto"
    for keyword in ("use_fused_cross_entropy", "force_eager_attention", "strict"):
        values[keyword] = values[keyword] == "1"
    return Settings(**values, profile=policy, sources=tuple(sources.items()), profile_note=chosen.note)


def _auto(name: str) -> bool:
    """Device policy of ``auto``: aiter's linears only where tuned bf16 rows ship (gfx950), fusion everywhere,
    shuffling never.
    """
    found = device.current()
    arch = found.arch if found else ""
    if arch == "gfx950":
        return {**_ALL_BUT_GEMM, "USE_AITER_GEMM": True}.get(name, False)
    if arch == "gfx942" or arch.startswith(("gfx11", "gfx12")):
        return _ALL_BUT_GEMM.get(name, False)
    return name == "USE_FUSED_PROJECTIONS"


def _chosen(policy: str, raw: Mapping[str, tuple[str, str]]) -> profile.Chosen:
    try:
        return profile.choose(policy, raw.keys())
    except profile.ProfileError as error:
        raise ToggleError(f"AMD_OPS is {policy!r}, {error}") from None


gemm_tables.use_environment(lambda: os.environ)
triton_target.use_environment(lambda: os.environ)
profile.use_environment(lambda: os.environ)
