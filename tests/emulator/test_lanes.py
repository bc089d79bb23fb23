"""Moves between lanes, matrix instructions and local memory, against index arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .arithmetic import Unknown
from .memory import Fault
from .single import Wave

LANE = np.arange(64)


def moved(text: str, arch: str = "gfx942", before: int = 999) -> list[int]:
    """Where the values of v1 come from: v0 holds the lane's number."""
    wave = Wave(arch)
    lanes = np.arange(wave.lanes)
    return wave.set("v0", lanes).set("v1", before).run(text).get("v1").tolist()


DPP = {
    "quad_perm:[1,0,3,2]": lambda n: n ^ 1,
    "row_ror:4": lambda n: n // 16 * 16 + (n % 16 - 4) % 16,
    "row_mirror": lambda n: n // 16 * 16 + 15 - n % 16,
    "row_half_mirror": lambda n: n // 8 * 8 + 7 - n % 8,
}


@pytest.mark.parametrize("control", sorted(DPP))
@pytest.mark.parametrize("arch", ["gfx942", "gfx1100"])
def test_dpp_inside_a_row(arch: str, control: str) -> None:
    lanes = 64 if arch == "gfx942" else 32
    got = moved(f"v_mov_b32_dpp v1, v0 {control} row_mask:0xf bank_mask:0xf", arch)
    assert got == [DPP[control](n) for n in range(lanes)]


def test_dpp_beyond_a_row_keeps_or_clears() -> None:
    kept = moved("v_mov_b32_dpp v1, v0 row_shr:3 row_mask:0xf bank_mask:0xf")
    assert kept == [n - 3 if n % 16 >= 3 else 999 for n in range(64)]
    cleared = moved("v_mov_b32_dpp v1, v0 row_shr:3 row_mask:0xf bank_mask:0xf bound_ctrl:1")
    assert cleared == [n - 3 if n % 16 >= 3 else 0 for n in range(64)]
    rows = moved("v_mov_b32_dpp v1, v0 row_bcast:15 row_mask:0xa bank_mask:0xf")
    assert rows == [n // 16 * 16 - 1 if n // 16 in (1, 3) else 999 for n in range(64)]
    halves = moved("v_mov_b32_dpp v1, v0 row_bcast:31 row_mask:0xc bank_mask:0xf")
    assert halves == [31 if n >= 32 else 999 for n in range(64)]


def test_a_sum_over_the_wave_by_dpp() -> None:
    """The reduction that the compiler emits on GFX9."""
    wave = Wave().set("v0", LANE + 1)
    for control in ("quad_perm:[1,0,3,2]", "quad_perm:[2,3,0,1]", "row_half_mirror", "row_mirror"):
        wave.run(f"v_add_u32_dpp v0, v0, v0 {control} row_mask:0xf bank_mask:0xf")
    wave.run("v_add_u32_dpp v0, v0, v0 row_bcast:15 row_mask:0xa bank_mask:0xf")
    wave.run("v_add_u32_dpp v0, v0, v0 row_bcast:31 row_mask:0xc bank_mask:0xf", "v_readlane_b32 s0, v0, 63")
    assert int(wave.get("s0")) == 64 * 65 // 2


def test_permlanes_and_swizzles() -> None:
    crossed = moved("v_permlanex16_b32 v1, v0, s2, s3", "gfx1100")
    assert len(set(crossed)) <= 32
    wave = Wave("gfx1100").set("v0", np.arange(32)).set("s2", 0x76543210).set("s3", 0xFEDCBA98)
    assert wave.run("v_permlanex16_b32 v1, v0, s2, s3").get("v1").tolist() == [n ^ 16 for n in range(32)]
    assert moved("ds_swizzle_b32 v1, v0 offset:swizzle(SWAP,16)") == [n ^ 16 for n in range(64)]
    assert moved('ds_swizzle_b32 v1, v0 offset:swizzle(BITMASK_PERM,"ppiip")') == [n ^ 6 for n in range(64)]
    wave = Wave("gfx950").set("v0", LANE).set("v1", LANE + 100).run("v_permlane32_swap_b32 v0, v1")
    assert wave.get("v0").tolist() == [*range(32), *range(100, 132)]
    assert wave.get("v1").tolist() == [*range(32, 64), *range(132, 164)]


def test_bpermute_reads_any_lane() -> None:
    wave = Wave().set("v0", LANE * 3).set("v2", (63 - LANE) * 4)
    assert wave.run("ds_bpermute_b32 v1, v2, v0").get("v1").tolist() == [(63 - n) * 3 for n in range(64)]


def test_only_active_lanes_write() -> None:
    wave = Wave().set("v0", LANE).set("v1", 7)
    wave.run(
        "v_cmp_gt_u32_e32 vcc, 10, v0", "s_and_saveexec_b64 s[0:1], vcc", "v_mov_b32 v1, v0", "s_mov_b64 exec, s[0:1]"
    )
    assert wave.get("v1").tolist() == [n if n < 10 else 7 for n in range(64)]


@pytest.mark.parametrize(
    ("text", "size", "depth", "kind"),
    [
        ("v_mfma_f32_32x32x8_f16", 32, 8, "f16"),
        ("v_mfma_f32_16x16x16_f16", 16, 16, "f16"),
        ("v_mfma_f32_32x32x8_bf16", 32, 8, "bf16"),
        ("v_mfma_f32_16x16x16_bf16", 16, 16, "bf16"),
        ("v_mfma_i32_16x16x32_i8", 16, 32, "i8"),
        ("v_mfma_i32_32x32x16_i8", 32, 16, "i8"),
    ],
)
def test_mfma_is_a_matrix_product(text: str, size: int, depth: int, kind: str) -> None:
    """Packed lane by lane here, from the layout tables of the ISA document."""
    torch.manual_seed(0)
    made = torch.randint(-9, 10, (2, size, depth))
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8}[kind]
    a, b = made.to(dtype)
    wave, each = Wave(), depth * size // 64
    for register, matrix in (("v0", a), ("v4", b)):
        lanes = torch.stack([matrix[n % size, n // size * each : n // size * each + each] for n in range(64)])
        words = lanes.contiguous().view(torch.uint8).numpy().view(np.uint32)
        for k in range(words.shape[1]):
            wave.set(f"v{int(register[1:]) + k}", words[:, k])
    count = size * size // 64
    wave.run(f"{text} v[16:{15 + count}], v[0:1], v[4:5], 0")
    want = (a.double() @ b.double().T).numpy()
    for r in range(count):
        got = wave.get(f"v{16 + r}", np.int32 if kind == "i8" else np.float32)
        for n in range(64):
            row = 8 * (r // 4) + 4 * (n // 32) + r % 4 if size == 32 else 4 * (n // 16) + r
            assert got[n] == want[row, n % size]


def test_local_memory_keeps_what_was_written_and_checks_the_rest() -> None:
    wave = Wave(lds=512).set("v0", LANE * 8).set("v2", LANE).set("v3", LANE + 64)
    wave.run("ds_write_b64 v0, v[2:3]", "ds_read2_b32 v[4:5], v0 offset0:0 offset1:1")
    assert wave.get("v4").tolist() == LANE.tolist()
    assert wave.get("v5").tolist() == (LANE + 64).tolist()
    with pytest.raises(Fault, match="of 512 bytes of LDS"):
        wave.run("ds_read_b32 v4, v0 offset:512")
    with pytest.raises(Fault, match="nobody wrote"):
        Wave(lds=512).set("v0", LANE * 8).run("ds_read_b32 v1, v0")


def test_a_race_between_two_waves_is_a_fault_and_a_barrier_heals_it() -> None:
    """Each wave writes its half and reads the other's."""
    lines = ["v_lshlrev_b32 v1, 2, v0", "ds_write_b32 v1, v0", "v_xor_b32 v2, 0x100, v1", "ds_read_b32 v3, v2"]
    ids = np.arange(128).reshape(2, 64)
    racing = Wave(lds=512, waves=2)
    racing.machine.V[0] = ids
    with pytest.raises(Fault, match="race"):
        racing.run(*lines)
    waiting = Wave(lds=512, waves=2)
    waiting.machine.V[0] = ids
    waiting.run(*lines[:2], "s_barrier", *lines[2:])
    assert waiting.machine.V[3].tolist() == ids[::-1].tolist()


def test_memory_is_checked() -> None:
    wave = Wave()
    base = wave.memory.add("x", np.arange(256, dtype=np.uint8))
    empty = wave.memory.add("out", np.zeros(256, np.uint8), known=False)
    wave.set("s0", base & 0xFFFFFFFF).set("s1", base >> 32).set("s2", empty & 0xFFFFFFFF).set("s3", empty >> 32)
    wave.set("v0", LANE * 4)
    wave.run("global_load_dword v1, v0, s[0:1]", "global_store_dword v0, v1, s[2:3]")
    assert wave.memory.bytes_of("out").tolist() == list(range(256))
    assert wave.memory.writes_of("out").tolist() == [1] * 256
    with pytest.raises(Fault, match=r"outside every buffer .*from the start of x, 256 long"):
        wave.run("global_load_dword v1, v0, s[0:1] offset:4")
    with pytest.raises(Fault, match="misaligned"):
        wave.set("v2", LANE * 2).run("global_load_dword v1, v2, s[0:1]")
    with pytest.raises(Fault, match="two lanes store to the same byte"):
        wave.set("v2", 0).run("global_store_dword v2, v1, s[2:3]")
    unread = Wave()
    at = unread.memory.add("out", np.zeros(256, np.uint8), known=False)
    unread.set("s0", at & 0xFFFFFFFF).set("s1", at >> 32).set("v0", LANE * 4)
    with pytest.raises(Fault, match="nobody wrote"):
        unread.run("global_load_dword v1, v0, s[0:1]")


def test_a_buffers_range_masks_lanes_and_counts_soffset() -> None:
    wave = Wave()
    base = wave.memory.add("x", np.arange(512, dtype=np.uint8))
    for n, value in enumerate((base & 0xFFFFFFFF, base >> 32, 128, 0x20000)):
        wave.set(f"s{n}", value)
    wave.set("s4", 64).set("v0", LANE * 4)
    wave.run("buffer_load_dword v1, v0, s[0:3], 0 offen", "buffer_load_dword v2, v0, s[0:3], s4 offen")
    assert [bool(x) for x in wave.get("v1")] == [n < 32 for n in range(64)]
    assert [bool(x) for x in wave.get("v2")] == [n < 16 for n in range(64)]


@pytest.mark.parametrize(
    "text", ["v_no_such_thing v0, v1", "image_load v0, v1", "s_setpc_b64 s[0:1]", "v_add_f32 v0, q1, v2"]
)
def test_what_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(Unknown, match=text.split()[0]):
        Wave().run(text)
