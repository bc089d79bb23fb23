"""Toggles: the environment, read once, becomes one frozen :class:`Settings` and the switches that overlaid files read.

A toggle that is set decides for itself. ``AMD_OPS`` decides for those that are unset: ``off`` leaves them off,
``auto`` follows the device policy below, a profile file names values. Nothing in here runs during a forward: only
:func:`refresh` and :func:`override` change anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

from . import device, gemm_tables, profile
from .backends.triton import target as triton_target

TIERS = ("aiter", "triton", "torch", "eager")
PROVIDERS = ("ours", "aiter", "liger")
"""Whose kernels can serve tier triton: those of this package, of aiter.ops.triton, of liger_kernel."""
FAMILIES = ("USE_AITER_ATTENTION", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS", "USE_PRESHUFFLE")

_THREE = ("0", "1", "auto")
_TWO = ("0", "1")
_DEFAULTS = {
    "PRESHUFFLE_M_THRESH": "128",
    "FORCE_EAGER_ATTENTION": "0",
    "AMD_OPS_STRICT": "0",
    "AMD_OPS_TIERS": ",".join(TIERS),
    "AMD_OPS_STOCK": "",
    "AMD_OPS_OP_TIERS": "",
    "AMD_OPS_TRITON_PROVIDERS": "ours",
}
_KEYWORDS = {
    **{name.lower(): name for name in FAMILIES},
    "preshuffle_m_thresh": "PRESHUFFLE_M_THRESH",
    "force_eager_attention": "FORCE_EAGER_ATTENTION",
    "strict": "AMD_OPS_STRICT",
    "tiers": "AMD_OPS_TIERS",
    "stock": "AMD_OPS_STOCK",
    "op_tiers": "AMD_OPS_OP_TIERS",
    "triton_providers": "AMD_OPS_TRITON_PROVIDERS",
    "profile": "AMD_OPS",
}
_ALL_BUT_GEMM = {"USE_AITER_ATTENTION": True, "USE_OPTIMIZED_OPS": True, "USE_FUSED_PROJECTIONS": True}


class ToggleError(ValueError):
    """A toggle has a value that is not accepted. The text names the toggle, what was found, what is accepted and what
    to do.
    """


@dataclass(frozen=True)
class Settings:
    """What the toggles resolved to. Field names are the override() keywords; ``sources`` says who decided each
    toggle.
    """

    use_aiter_attention: bool
    use_aiter_gemm: bool
    use_optimized_ops: bool
    use_fused_projections: bool
    use_preshuffle: bool
    preshuffle_m_thresh: int
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
    """Plain booleans that the guards in overlaid files read; all False when every toggle is off."""

    __slots__ = (
        "add_norm",
        "attention",
        "experts",
        "gated_mlp",
        "linear",
        "mlp_add",
        "moe",
        "preshuffle",
        "qk_rope",
        "qkv",
        "rms_norm",
        "rope",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, False)

    def follow(self, settings: Settings) -> None:
        """Set every switch from ``settings``. q/k/v and the MLP are also ours when only their linears or activation
        are.
        """
        self.rms_norm = self.rope = self.add_norm = self.qk_rope = settings.use_optimized_ops
        self.attention = settings.use_aiter_attention or settings.force_eager_attention
        self.linear = settings.use_aiter_gemm
        self.preshuffle = settings.use_preshuffle and settings.preshuffle_m_thresh >= 0
        self.mlp_add = self.moe = self.experts = settings.use_fused_projections
        self.qkv = settings.use_fused_projections or settings.use_aiter_gemm
        self.gated_mlp = self.qkv or settings.use_optimized_ops
        for name in settings.stock:
            setattr(self, name, False)

    def __repr__(self) -> str:
        return "Switches(" + ", ".join(f"{name}={getattr(self, name)}" for name in self.__slots__) + ")"


on = Switches()
_raw: dict[str, tuple[str, str]] = {}
_settings: Settings | None = None
_on_change: list[Callable[[], None]] = []
_on_refresh: list[Callable[[], None]] = [device.forget]


def settings() -> Settings:
    """Return the settings in force."""
    if _settings is None:
        refresh()
    assert _settings is not None
    return _settings


def refresh() -> Settings:
    """Read the environment again, forget what was learnt about device and backends, and bind every op anew."""
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
    ``AMD_OPS`` are ``tiers``, ``strict`` and ``profile``. Raises :class:`ToggleError` on an unknown keyword or value,
    before anything changes.
    """
    global _raw
    before_settings = settings()
    before_raw = _raw
    raw = {**_raw}
    for keyword, value in toggles.items():
        if keyword not in _KEYWORDS:
            raise ToggleError(
                f"override() has no toggle {keyword!r}; accepted are {', '.join(_KEYWORDS)}: use one of them."
            )
        raw[_KEYWORDS[keyword]] = (profile.as_text(value), "override")
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
    return {name: (environ[name], "environment") for name in _KEYWORDS.values() if name in environ}


def _resolve(raw: Mapping[str, tuple[str, str]]) -> Settings:
    """Turn raw texts into settings; asks for the device only where some toggle is ``auto``."""
    policy = raw.get("AMD_OPS", ("off", "default"))[0]
    chosen = _chosen(policy, raw)
    # What was qualified is no request by hand: under auto a call that it declines is neither told nor an error.
    source = "auto" if policy == "auto" else "profile"
    merged: dict[str, tuple[str, str]] = {**{name: (text, source) for name, text in chosen.toggles.items()}, **raw}
    values: dict[str, bool] = {}
    sources: dict[str, str] = {}
    for name in FAMILIES:
        text, source = merged.get(name, ("auto", "auto") if policy == "auto" and not chosen.found else ("0", "default"))
        _accept(name, text, _THREE)
        values[name.lower()] = _auto(name) if text == "auto" else text == "1"
        sources[name] = "auto" if text == "auto" else source
    rest = {name: merged.get(name, (default, "default")) for name, default in _DEFAULTS.items()}
    sources.update({name: source for name, (_, source) in rest.items()})
    for name in ("FORCE_EAGER_ATTENTION", "AMD_OPS_STRICT"):
        _accept(name, rest[name][0], _TWO)
    return Settings(
        **values,
        preshuffle_m_thresh=_integer("PRESHUFFLE_M_THRESH", rest["PRESHUFFLE_M_THRESH"][0]),
        force_eager_attention=rest["FORCE_EAGER_ATTENTION"][0] == "1",
        strict=rest["AMD_OPS_STRICT"][0] == "1",
        tiers=_tier_list(rest["AMD_OPS_TIERS"][0]),
        profile=policy,
        sources=tuple(sources.items()),
        stock=_switch_list(rest["AMD_OPS_STOCK"][0]),
        op_tiers=_op_tier_list(rest["AMD_OPS_OP_TIERS"][0]),
        profile_note=chosen.note,
        triton_providers=_provider_list(rest["AMD_OPS_TRITON_PROVIDERS"][0]),
    )


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


def _accept(name: str, text: str, accepted: tuple[str, ...]) -> None:
    if text not in accepted:
        choices = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
        raise ToggleError(f"{name} is {text!r}, but only {choices} are accepted: set one of these or unset it.")


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ToggleError(
            f"{name} is {text!r}, but only a whole number of rows is accepted (negative = never): set one or unset it."
        ) from None


def _tier_list(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    if not text.strip() or any(part not in TIERS for part in chosen):
        raise ToggleError(
            f"AMD_OPS_TIERS is {text!r}, but only a comma list of {', '.join(TIERS)} is accepted: name one or unset it."
        )
    return tuple(tier for tier in TIERS if tier in chosen)


def _provider_list(text: str) -> tuple[str, ...]:
    """Read ``AMD_OPS_TRITON_PROVIDERS``: whose kernels to try in tier triton, in this order."""
    chosen = tuple(part.strip() for part in text.split(","))
    if any(part not in PROVIDERS for part in chosen) or len(set(chosen)) != len(chosen):
        raise ToggleError(
            f"AMD_OPS_TRITON_PROVIDERS is {text!r}, but only a comma list of {', '.join(PROVIDERS)}, each once, is "
            "accepted: name one or unset it."
        )
    return chosen


def _switch_list(text: str) -> tuple[str, ...]:
    """Read ``AMD_OPS_STOCK``: a comma list of switches that stay off, so that their sites run stock's expressions."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in chosen if name not in Switches.__slots__]
    if unknown:
        names = ", ".join(Switches.__slots__)
        raise ToggleError(f"AMD_OPS_STOCK names {unknown[0]!r}, but only {names} are accepted: correct it or unset it.")
    return chosen


def _op_tier_list(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read ``AMD_OPS_OP_TIERS``: ``OP=TIER,TIER;OP=...``. Ops are not checked: they are registered later."""
    found = []
    for part in text.split(";"):
        op, equals, tiers = (piece.strip() for piece in part.partition("="))
        chosen = tuple(tier.strip() for tier in tiers.split(","))
        if not part.strip():
            continue
        if not op or not equals or any(tier not in TIERS for tier in chosen):
            raise ToggleError(
                f"AMD_OPS_OP_TIERS has {part.strip()!r}, but only OP=TIER,TIER;OP=... with tiers {', '.join(TIERS)} "
                "is accepted: correct it or unset it."
            )
        found.append((op, tuple(tier for tier in TIERS if tier in chosen)))
    return tuple(found)


def _chosen(policy: str, raw: Mapping[str, tuple[str, str]]) -> profile.Chosen:
    accepted = [name for name in _KEYWORDS.values() if name != "AMD_OPS"]
    try:
        return profile.choose(policy, accepted, raw.keys())
    except profile.ProfileError as error:
        raise ToggleError(f"AMD_OPS is {policy!r}, {error}") from None


gemm_tables.use_environment(lambda: os.environ)
triton_target.use_environment(lambda: os.environ)
profile.use_environment(lambda: os.environ)
