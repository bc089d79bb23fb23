"""The environment becomes settings, or one clear sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import amd_ops
from amd_ops import device, profile

ALL = ("rms_norm", "rope", "qkv", "attention", "gated_mlp", "linear")


def switched_on() -> set[str]:
    return {name for name in ALL if getattr(amd_ops.on, name)}


def test_everything_is_off_by_default() -> None:
    assert switched_on() == set()
    assert amd_ops.settings().tiers == ("aiter", "triton", "torch", "eager")
    assert amd_ops.settings().preshuffle_m_thresh == 128


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("USE_AITER_ATTENTION", {"attention"}),
        ("FORCE_EAGER_ATTENTION", {"attention"}),
        ("USE_OPTIMIZED_OPS", {"rms_norm", "rope", "gated_mlp"}),
        ("USE_FUSED_PROJECTIONS", {"qkv", "gated_mlp"}),
        ("USE_AITER_GEMM", {"linear", "qkv", "gated_mlp"}),
    ],
)
def test_a_toggle_throws_its_switches(monkeypatch: pytest.MonkeyPatch, name: str, switches: set[str]) -> None:
    monkeypatch.setenv(name, "1")
    assert switched_on() == set(), "nothing changes before refresh()"
    amd_ops.refresh()
    assert switched_on() == switches
    monkeypatch.setenv(name, "0")
    amd_ops.refresh()
    assert switched_on() == set()


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("USE_AITER_GEMM", "maybe", "0, 1 or auto"),
        ("USE_AITER_ATTENTION", "true", "0, 1 or auto"),
        ("USE_OPTIMIZED_OPS", "", "0, 1 or auto"),
        ("USE_FUSED_PROJECTIONS", "2", "0, 1 or auto"),
        ("USE_PRESHUFFLE", "AUTO", "0, 1 or auto"),
        ("FORCE_EAGER_ATTENTION", "auto", "0 or 1"),
        ("AMD_OPS_STRICT", "yes", "0 or 1"),
        ("PRESHUFFLE_M_THRESH", "many", "whole number"),
        ("AMD_OPS_TIERS", "torch,cuda", "aiter, triton, torch, eager"),
        ("AMD_OPS_TIERS", "", "aiter, triton, torch, eager"),
        ("AMD_OPS_TRITON_PROVIDERS", "triton", "ours, aiter, liger"),
        ("AMD_OPS_TRITON_PROVIDERS", "ours,ours", "each once"),
        ("AMD_OPS", "on", "off, auto or the path"),
    ],
)
def test_a_bad_value_is_one_sentence_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    before = amd_ops.settings()
    monkeypatch.setenv(name, value)
    with pytest.raises(amd_ops.ToggleError) as raised:
        amd_ops.refresh()
    text = str(raised.value)
    assert name in text
    assert repr(value) in text
    assert accepted in text
    assert "\n" not in text
    assert amd_ops.settings() is before
    assert isinstance(raised.value, ValueError)


def test_a_bad_value_fails_the_import() -> None:
    environ = {**os.environ, "USE_AITER_GEMM": "maybe"}
    code = "try:\n    import amd_ops\nexcept ValueError as error:\n    print(type(error).__name__, error)"
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.startswith("ToggleError USE_AITER_GEMM is 'maybe'")


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("gfx942", {"rms_norm", "rope", "gated_mlp", "qkv", "attention"}),
        ("gfx950", set(ALL)),
        ("gfx1100", {"rms_norm", "rope", "gated_mlp", "qkv", "attention"}),
        ("gfx1201", {"rms_norm", "rope", "gated_mlp", "qkv", "attention"}),
        ("gfx90a", {"gated_mlp", "qkv"}),
        (None, {"gated_mlp", "qkv"}),
    ],
)
def test_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch, arch: str | None, expected: set[str]) -> None:
    found = None if arch is None else device.Device("cuda", arch, 304)
    monkeypatch.setattr(device, "_probe", lambda: found)
    monkeypatch.setenv("AMD_OPS", "auto")
    amd_ops.refresh()
    assert switched_on() == expected
    assert not amd_ops.settings().use_preshuffle
    monkeypatch.setenv("USE_FUSED_PROJECTIONS", "0")
    monkeypatch.setenv("USE_AITER_GEMM", "0")
    amd_ops.refresh()
    assert "qkv" not in switched_on(), "a toggle that is set wins over AMD_OPS"


def test_one_toggle_may_be_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_probe", lambda: device.Device("cuda", "gfx950", 256))
    monkeypatch.setenv("USE_AITER_GEMM", "auto")
    amd_ops.refresh()
    assert amd_ops.settings().use_aiter_gemm
    assert not amd_ops.settings().asked("USE_AITER_GEMM"), "auto is not a request by hand"


def test_the_device_is_not_probed_unless_auto_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_probe", lambda: pytest.fail("probed"))
    monkeypatch.setenv("USE_AITER_ATTENTION", "1")
    amd_ops.refresh()


def test_a_profile_decides_what_is_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    content = {"USE_OPTIMIZED_OPS": 1, "USE_FUSED_PROJECTIONS": "1", "AMD_OPS_TIERS": "torch,eager"}
    path.write_text(json.dumps({"schema": profile.SCHEMA, "toggles": content}))
    monkeypatch.setenv("AMD_OPS", str(path))
    monkeypatch.setenv("USE_FUSED_PROJECTIONS", "0")
    amd_ops.refresh()
    resolved = amd_ops.settings()
    assert resolved.use_optimized_ops
    assert not resolved.use_fused_projections
    assert resolved.tiers == ("torch", "eager")
    assert dict(resolved.sources)["USE_OPTIMIZED_OPS"] == "profile"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "amd-ops.profile/2", "toggles": {}}',
        '{"schema": "amd-ops.profile/1", "toggles": []}',
        '{"schema": "amd-ops.profile/1", "toggles": {"USE_MAGIC": 1}}',
        '{"schema": "amd-ops.profile/1", "toggles": {"USE_OPTIMIZED_OPS": "maybe"}}',
    ],
)
def test_a_malformed_profile_is_a_toggle_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    monkeypatch.setenv("AMD_OPS", str(path))
    with pytest.raises(amd_ops.ToggleError):
        amd_ops.refresh()


def test_override_holds_for_its_block_and_nests() -> None:
    with amd_ops.override(use_optimized_ops=1, tiers=("torch", "eager"), strict=True) as resolved:
        assert resolved is amd_ops.settings()
        assert resolved.tiers == ("torch", "eager")
        assert resolved.strict
        with amd_ops.override(use_optimized_ops=0):
            assert not amd_ops.on.rms_norm
            assert amd_ops.settings().strict
        assert amd_ops.on.rms_norm
    assert switched_on() == set()


def test_override_is_undone_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="boom"), amd_ops.override(use_optimized_ops=1):
        raise RuntimeError("boom")
    assert switched_on() == set()


@pytest.mark.parametrize("bad", [{"use_magic": 1}, {"use_optimized_ops": "maybe"}, {"tiers": ()}])
def test_override_refuses_before_anything_changes(bad: dict[str, object]) -> None:
    before = amd_ops.settings()
    with pytest.raises(amd_ops.ToggleError), amd_ops.override(**bad):
        pytest.fail("entered")
    assert amd_ops.settings() is before


def test_settings_are_json() -> None:
    assert json.loads(json.dumps(amd_ops.settings().as_dict()))["tiers"] == ["aiter", "triton", "torch", "eager"]


def test_a_request_for_shuffled_weights_is_told() -> None:
    with pytest.warns(amd_ops.DeclinedWarning, match="nothing reads shuffled"), amd_ops.override(use_preshuffle=1):
        assert "nothing reads shuffled weights" in str(amd_ops.report())
    amd_ops.reset_counters()
    with (
        pytest.warns(amd_ops.DeclinedWarning),
        pytest.raises(amd_ops.DeclinedError, match="preshuffle"),
        amd_ops.override(use_preshuffle=1, strict=1),
    ):
        pytest.fail("entered")
    assert not amd_ops.settings().use_preshuffle
