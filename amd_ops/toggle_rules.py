"""The toggles as data: their names, the values they take, the ops and tiers they may name.

Standard library only, and nothing of this package: `overlay doctor` and every child process judge an environment by
these rules without importing torch. They load this file by its path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIERS = ("aiter", "triton", "torch", "eager")
PROVIDERS = ("ours", "aiter", "liger")
"""Whose kernels can serve tier triton: those of this package, of aiter.ops.triton, of liger_kernel."""
FAMILIES = ("USE_AITER_ATTENTION", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS", "USE_PRESHUFFLE")
SWITCHES = {
    "add_norm": ("USE_OPTIMIZED_OPS",),
    "attention": ("USE_AITER_ATTENTION", "FORCE_EAGER_ATTENTION"),
    "delta_rule": ("USE_OPTIMIZED_OPS",),
    "experts": ("USE_FUSED_PROJECTIONS",),
    "gated_mlp": ("USE_FUSED_PROJECTIONS", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS"),
    "gating": ("USE_OPTIMIZED_OPS",),
    "linear": ("USE_AITER_GEMM",),
    "loss": ("USE_FUSED_CROSS_ENTROPY",),
    "mlp_add": ("USE_FUSED_PROJECTIONS",),
    "moe": ("USE_FUSED_PROJECTIONS",),
    "packed": ("USE_FUSED_PROJECTIONS",),
    "plan": ("USE_FUSED_PROJECTIONS",),
    "preshuffle": ("USE_PRESHUFFLE",),
    "qk_rope": ("USE_OPTIMIZED_OPS",),
    "qkv": ("USE_FUSED_PROJECTIONS", "USE_AITER_GEMM"),
    "rms_norm": ("USE_OPTIMIZED_OPS",),
    "rope": ("USE_OPTIMIZED_OPS",),
    "router": ("USE_OPTIMIZED_OPS",),
}
"""What overlaid files test and ``AMD_OPS_STOCK`` names, with the toggles of which any one turns it on. q/k/v and the
MLP are ours also when only their linears or activation are."""
PLANNED = ("add_norm", "gated_mlp", "mlp_add", "qk_rope", "qkv", "rms_norm", "rope")
"""The switches whose computes a plan does itself: with one of them left to stock there is no plan. What else a layer
holds (attention, linears, experts) a plan calls as it is switched."""
_BOTH = ("torch", "eager")
OPS = {
    "add_rms_norm": TIERS,
    "add_shared": ("triton", *_BOTH),
    "apply_rope": TIERS,
    "attention": ("aiter", *_BOTH),
    "clamped_moe": ("triton", *_BOTH),
    "conv_step": ("triton", *_BOTH),
    "delta_step": ("triton", *_BOTH),
    "gated_rms_norm": ("triton", *_BOTH),
    "gelu_and_mul": TIERS,
    "gelu_tanh_and_mul": TIERS,
    "grouped_top_k": ("triton", *_BOTH),
    "join_rope": ("triton", *_BOTH),
    "linear": ("aiter", *_BOTH),
    "linear_add": _BOTH,
    "linear_cross_entropy": ("triton", *_BOTH),
    "moe": TIERS,
    "qk_norm_rope": ("triton", *_BOTH),
    "rms_norm": TIERS,
    "rope_into_cache": ("triton", *_BOTH),
    "router_logits": ("triton", *_BOTH),
    "sigmoid_gate": ("triton", *_BOTH),
    "silu_and_mul": TIERS,
    "sink_attention": ("triton", *_BOTH),
    "softmax_top_k": ("triton", *_BOTH),
    "top_k_softmax": ("triton", *_BOTH),
}
"""Every op with the tiers that it has, and what ``AMD_OPS_OP_TIERS`` names."""
PLACES = ("AMD_OPS_PROFILES",)
"""Variables of ours that name a place and choose nothing."""
PROFILE_SCHEMA = "amd-ops.profile/1"

_OURS = ("AMD_OP", "AMDOPS", "USE_", "FORCE_", "PRESHUF")
_DISTINCT = ("USE_AITER", "USE_OPTIMI", "USE_PRESHUF")
_FIX = "set AMD_OPS to off, auto or the path of a profile file"
REDO = "run `overlay qualify` on this machine, or set AMD_OPS to auto or off"


class ToggleError(ValueError):
    """A toggle has a value that is not accepted. The text names the toggle, what was found, what is accepted and what
    to do.

    Examples:
        >>> with amd_ops.override(use_aiter_gemm="perhaps"):
        ...     pass
        Traceback (most recent call last):
        amd_ops.toggle_rules.ToggleError: ...
    """


class ProfileError(ValueError):
    """A profile cannot be used. The text says why and what to do; it reads on after "AMD_OPS is <path>, "."""


@dataclass(frozen=True)
class Rule:
    """One toggle: ``read(text)`` returns its value or raises ToggleError; ``keyword`` is its name in override()."""

    name: str
    keyword: str
    default: str
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Complaint:
    """What is wrong with one variable. ``refused``: amd_ops does not start with it; else it warns."""

    name: str
    text: str
    refused: bool = True


def _one_of(name: str, *accepted: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in accepted:
            choices = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
            raise ToggleError(f"{name} is {text!r}, but only {choices} are accepted: set one of these or unset it.")
        return text

    return read


def _rows(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ToggleError(
            f"PRESHUFFLE_M_THRESH is {text!r}, but only a whole number of rows is accepted (negative = never): set one "
            "or unset it."
        ) from None


def _tiers(text: str) -> tuple[str, ...]:
    chosen = [part.strip() for part in text.split(",")]
    if any(part not in TIERS for part in chosen):
        raise ToggleError(
            f"AMD_OPS_TIERS is {text!r}, but only a comma list of {', '.join(TIERS)} is accepted"
            f"{_hint(chosen, TIERS)}: name one or unset it."
        )
    return tuple(tier for tier in TIERS if tier in chosen)


def _providers(text: str) -> tuple[str, ...]:
    """Read whose kernels to try in tier triton, in this order."""
    chosen = tuple(part.strip() for part in text.split(","))
    if any(part not in PROVIDERS for part in chosen) or len(set(chosen)) != len(chosen):
        raise ToggleError(
            f"AMD_OPS_TRITON_PROVIDERS is {text!r}, but only a comma list of {', '.join(PROVIDERS)}, each once, is "
            f"accepted{_hint(chosen, PROVIDERS)}: name one or unset it."
        )
    return chosen


def _switches(text: str) -> tuple[str, ...]:
    """Read the switches that stay off, so that their sites run stock's expressions."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in chosen if name not in SWITCHES]
    if unknown:
        raise ToggleError(
            f"AMD_OPS_STOCK names {unknown[0]!r}, but only {', '.join(SWITCHES)} are accepted"
            f"{_hint(unknown, SWITCHES)}: correct it or unset it."
        )
    return chosen


def _op_tiers(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read ``OP=TIER,TIER;OP=...``."""
    found = []
    for part in text.split(";"):
        if not part.strip():
            continue
        op, equals, named = (piece.strip() for piece in part.partition("="))
        chosen = [tier.strip() for tier in named.split(",")]
        if not op or not equals or any(tier not in TIERS for tier in chosen):
            raise ToggleError(
                f"AMD_OPS_OP_TIERS has {part.strip()!r}, but only OP=TIER,TIER;OP=... with tiers {', '.join(TIERS)} "
                f"is accepted{_hint(chosen if equals else [], TIERS)}: correct it or unset it."
            )
        if op not in OPS:
            raise ToggleError(
                f"AMD_OPS_OP_TIERS names {op!r}, but the ops are {', '.join(OPS)}{_hint([op], OPS)}: correct it or "
                "unset it."
            )
        lacking = [tier for tier in chosen if tier not in OPS[op]]
        if lacking:
            raise ToggleError(
                f"AMD_OPS_OP_TIERS has {part.strip()!r}, but {op} has no tier {lacking[0]}, only {', '.join(OPS[op])}: "
                "correct it or unset it."
            )
        found.append((op, tuple(tier for tier in TIERS if tier in chosen)))
    return tuple(found)


RULES = {
    rule.name: rule
    for rule in (
        *(Rule(name, name.lower(), "0", _one_of(name, "0", "1", "auto")) for name in FAMILIES),
        Rule("PRESHUFFLE_M_THRESH", "preshuffle_m_thresh", "128", _rows),
        Rule("USE_FUSED_CROSS_ENTROPY", "use_fused_cross_entropy", "0", _one_of("USE_FUSED_CROSS_ENTROPY", "0", "1")),
        Rule("FORCE_EAGER_ATTENTION", "force_eager_attention", "0", _one_of("FORCE_EAGER_ATTENTION", "0", "1")),
        Rule("AMD_OPS_STRICT", "strict", "0", _one_of("AMD_OPS_STRICT", "0", "1")),
        Rule("AMD_OPS_TIERS", "tiers", ",".join(TIERS), _tiers),
        Rule("AMD_OPS_STOCK", "stock", "", _switches),
        Rule("AMD_OPS_OP_TIERS", "op_tiers", "", _op_tiers),
        Rule("AMD_OPS_TRITON_PROVIDERS", "triton_providers", "ours", _providers),
    )
}
"""Every toggle but ``AMD_OPS`` itself, by name."""
KEYWORDS = {**{rule.keyword: rule.name for rule in RULES.values()}, "profile": "AMD_OPS"}
"""The keywords of override(), and the variable of each."""
REQUESTS = ("AMD_OPS", *FAMILIES, "USE_FUSED_CROSS_ENTROPY", "FORCE_EAGER_ATTENTION")
"""The toggles that ask for something other than stock."""


def is_toggle(name: str) -> bool:
    """Return whether an environment variable chooses what amd_ops does, or means to and is misspelt."""
    return name in KEYWORDS.values() or (name.startswith("AMD_OPS") and name not in PLACES)


def requested(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the toggles of an environment that ask for something other than stock, as they are set."""
    return {name: environ[name] for name in REQUESTS if environ.get(name, "0") not in ("", "0", "off")}


def in_force(environ: Mapping[str, str]) -> dict[str, str]:
    """Return every toggle of an environment that is set, as it is set."""
    return {name: environ[name] for name in KEYWORDS.values() if name in environ}


def complaints(environ: Mapping[str, str]) -> list[Complaint]:
    """Return everything in an environment that amd_ops refuses or warns about, as far as files and names tell it.

    What only the machine can tell (a profile that was qualified elsewhere) is not among them.
    """
    found = list(misspelt(environ))
    for name, rule in RULES.items():
        if name in environ:
            try:
                rule.read(environ[name])
            except ToggleError as error:
                found.append(Complaint(name, str(error)))
    policy = environ.get("AMD_OPS", "off")
    if policy not in ("off", "auto"):
        try:
            read_profile(Path(policy))
        except ValueError as error:
            found.append(Complaint("AMD_OPS", f"AMD_OPS is {policy!r}, {error}"))
    return found


def misspelt(environ: Mapping[str, str]) -> Iterator[Complaint]:
    """Yield names that no toggle has: all that begin with AMD_OPS, and others that are nearly one of ours."""
    known = (*KEYWORDS.values(), *PLACES)
    for name in environ:
        if name in known or not name.upper().startswith(_OURS):
            continue
        near = _nearest(name.upper(), known, cutoff=0.5 if name.startswith(_DISTINCT) else 0.84)
        if name.startswith("AMD_OPS"):
            which = f"did you mean {near}" if near else f"the toggles are {', '.join(known)}"
            yield Complaint(name, f"{name} is set, but amd_ops has no such toggle ({which}): correct it or unset it.")
        elif near is not None:
            text = f"{name} is set and does nothing (did you mean {near}?): correct it or unset it."
            yield Complaint(name, text, refused=False)


def read_profile(path: Path) -> dict[str, Any]:
    """Return a profile's content: its form, names, values and digest are checked. Raises ProfileError.

    Where it was qualified is not checked here: only a process with torch knows the machine.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"which is neither off, auto nor a readable profile ({error}): {_FIX}.") from None
    if not (
        isinstance(content, dict)
        and content.get("schema") == PROFILE_SCHEMA
        and isinstance(content.get("toggles"), dict)
    ):
        raise ProfileError(f'a file that is not a {PROFILE_SCHEMA!r} object with "toggles": {_FIX}.')
    for name, value in content["toggles"].items():
        if name not in RULES:
            raise ProfileError(f"which sets {name!r}; accepted are {', '.join(RULES)}: correct the profile.")
        try:
            RULES[name].read(as_text(value))
        except ToggleError as error:
            raise ProfileError(f"in which {error}") from None
    families = content.get("families", {})
    lists = families.values() if isinstance(families, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
        raise ProfileError(f'a file whose "families" is not an object of lists: {REDO}.')
    if "qualified" not in content and "digest" not in content:
        return content
    if content.get("digest") != digest(content):
        raise ProfileError(
            f"a file that was changed after `overlay qualify` wrote it: {REDO}. A profile of your own has only "
            '"schema" and "toggles".'
        )
    if not isinstance(content.get("qualified"), dict):
        raise ProfileError(f'a file whose "qualified" is not an object: {REDO}.')
    return content


def _no_number(name: str) -> None:
    """Refuse what Python's reader takes and JSON has no word for: no profile of ours holds it."""
    raise ValueError(f"{name} is no number of JSON")


def digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a profile without its digest: a change by hand shows."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def as_text(value: object) -> str:
    """Return a toggle's value as the environment would have it."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value)
    return str(value)


def _hint(found: list[str] | tuple[str, ...], known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = next((one for name in found if name not in known for one in [_nearest(name, tuple(known))] if one), None)
    return f" (did you mean {near}?)" if near else ""


def _nearest(name: str, known: tuple[str, ...], cutoff: float = 0.5) -> str | None:
    import difflib  # here: an environment without mistakes need not pay for it

    found = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return found[0] if found else None
