"""One set of rules: amd_ops and `overlay doctor` judge every value of every toggle alike."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
from rocm_overlay.install.doctor import context, toggles
from rocm_overlay.install.session import Options
from rocm_overlay.shared import rules

import amd_ops
from amd_ops import dispatch, toggle_rules
from amd_ops.toggles import ToggleWarning

FINE = [
    *((name, value) for name in toggle_rules.FAMILIES for value in ("0", "1", "auto")),
    *((name, value) for name in ("FORCE_EAGER_ATTENTION", "AMD_OPS_STRICT") for value in ("0", "1")),
    *(("PRESHUFFLE_M_THRESH", value) for value in ("0", "-1", "128", " 7 ", "+3", "1_000")),
    *(("AMD_OPS_TIERS", value) for value in ("torch", "eager, torch", "aiter,triton,torch,eager", "torch,torch")),
    *(("AMD_OPS_STOCK", value) for value in ("", "rope", "attention, qkv", "moe,,experts")),
    *(("AMD_OPS_OP_TIERS", value) for value in ("", ";", "rms_norm=eager", "attention=aiter,torch;linear= eager")),
    *(("AMD_OPS_TRITON_PROVIDERS", value) for value in ("ours", "liger,ours", "aiter, liger ,ours")),
    ("AMD_OPS", "off"),
    ("AMD_OPS", "auto"),
    ("AMD_OPS_PROFILES", "/nowhere"),
    ("USE_TORCH", "1"),
    ("USE_FLASH_ATTENTION", "1"),
]
REFUSED = [
    *((name, value) for name in toggle_rules.FAMILIES for value in ("", "yes", "AUTO", "2")),
    *((name, value) for name in ("FORCE_EAGER_ATTENTION", "AMD_OPS_STRICT") for value in ("", "auto", "on")),
    *(("PRESHUFFLE_M_THRESH", value) for value in ("", "many", "1.5", "--3", "0x10")),
    *(("AMD_OPS_TIERS", value) for value in ("", "torch,cuda", "egaer", "torch,")),
    *(("AMD_OPS_STOCK", value) for value in ("atention", "USE_AITER_GEMM", "rms-norm")),
    *(
        ("AMD_OPS_OP_TIERS", value)
        for value in (
            "rms_norm",
            "=eager",
            "rms_norm=",
            "rms_norm=cuda",
            "atention=eager",
            "qkv_proj=eager",
            "attention=triton",
            "softmax_top_k=aiter,torch",
            "linear=eager;attention=triton",
        )
    ),
    *(("AMD_OPS_TRITON_PROVIDERS", value) for value in ("", "triton", "ours,ours", "ours,")),
    ("AMD_OPS", ""),
    ("AMD_OPS", "on"),
    ("AMD_OPS", "/no/such/profile.json"),
    ("AMD_OPS_TIRES", "torch"),
    ("AMD_OPS_FOO", "1"),
    ("AMD_OPSS", "auto"),
]
SAID = [
    ("USE_OPTIMISED_OPS", "1"),
    ("USE_AITER_ATENTION", "1"),
    ("USE_AITER", "1"),
    ("USE_FUSED_PROJECTION", "1"),
    ("use_aiter_gemm", "1"),
    ("PRESHUFFLE_M_TRESH", "3"),
    ("FORCE_EAGER_ATENTION", "1"),
]
PROFILES = [
    ({"schema": "amd-ops.profile/1", "toggles": {"USE_OPTIMIZED_OPS": 1}}, True),
    ({"schema": "amd-ops.profile/1", "toggles": {}}, True),
    ({"schema": "amd-ops.profile/2", "toggles": {}}, False),
    ({"schema": "amd-ops.profile/1"}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {"USE_MAGIC": 1}}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {"USE_OPTIMIZED_OPS": "maybe"}}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {"AMD_OPS_OP_TIERS": "attention=triton"}}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {}, "digest": "0"}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {}, "digest": float("nan")}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {"AMD_OPS_STOCK": "rope"}, "families": {"rope": 3}}, False),
    ({"schema": "amd-ops.profile/1", "toggles": {"AMD_OPS_STOCK": "rope"}, "families": [1]}, False),
    ([], False),
]


def by_doctor(name: str, value: str) -> set[str]:
    """The ids of doctor's findings about the values of an environment that has this variable alone."""
    machine = dataclasses.replace(context.Machine.this(), environ={name: value})
    seen = context.Context(Options(), machine, None, (), None, None, None, context.record.Record(False), None, False)
    found = list(toggles.values(seen))
    assert all(name in one.evidence[0] for one in found)
    return {one.id for one in found}


def by_amd_ops(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The same in doctor's words, from what amd_ops does with this environment."""
    for other in toggle_rules.KEYWORDS.values():
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            amd_ops.refresh()
        except amd_ops.ToggleError as error:
            return {"toggle-value"} if name in str(error) else {f"names another: {error}"}
        finally:
            monkeypatch.delenv(name)
            amd_ops.refresh()
    return {"toggle-misspelt" for one in said if one.category is ToggleWarning}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, value, set()) for name, value in FINE),
        *((name, value, {"toggle-value"}) for name, value in REFUSED),
        *((name, value, {"toggle-misspelt"}) for name, value in SAID),
    ],
)
def test_doctor_and_amd_ops_judge_alike(
    name: str, value: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_amd_ops(name, value, monkeypatch) == expected
    assert by_doctor(name, value) == expected


def test_enough_values_are_compared() -> None:
    assert len({*FINE, *REFUSED, *SAID}) + len(PROFILES) >= 100


@pytest.mark.parametrize(("content", "fine"), PROFILES)
def test_profiles_are_judged_alike(
    content: object, fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    expected = set() if fine else {"toggle-value"}
    assert by_amd_ops("AMD_OPS", str(path), monkeypatch) == expected
    assert by_doctor("AMD_OPS", str(path)) == expected


def test_a_misspelt_name_is_an_error_in_strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_OPTIMISED_OPS", "1")
    monkeypatch.setenv("AMD_OPS_STRICT", "1")
    with pytest.raises(amd_ops.ToggleError, match="did you mean USE_OPTIMIZED_OPS"):
        amd_ops.refresh()
    monkeypatch.undo()
    amd_ops.refresh()


def test_the_ops_and_tiers_of_the_rules_are_those_that_exist() -> None:
    ops = {
        name: tuple(tier.name for tier in op.tiers) for name, op in dispatch.ops.items() if isinstance(op, dispatch.Op)
    }
    ours = {name: tiers for name, tiers in ops.items() if not name.startswith("test")}
    assert ours == toggle_rules.OPS
    assert amd_ops.on.__slots__ == tuple(toggle_rules.SWITCHES)


def test_the_tool_reads_the_same_file() -> None:
    assert rules().RULES.keys() == toggle_rules.RULES.keys()
    assert rules().is_toggle("AMD_OPS_TIRES")
    assert rules().is_toggle("USE_AITER_GEMM")
    assert not rules().is_toggle("AMD_OPS_PROFILES")
    assert not rules().is_toggle("USE_TORCH")
