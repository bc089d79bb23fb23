"""From one line of assembler to what it does: which module builds which instruction. An unknown one is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import Unknown
from .lds import build_ds
from .machine import DONE, Machine
from .matrix import build_matrix
from .operands import M0
from .packed import build_packed
from .scalar import build_scalar
from .scalar_memory import build_scalar_load
from .text import Instruction
from .vector import SPECIAL, build_compare, build_mix, build_vector, deferred
from .vector_memory import build_buffer, build_global, build_scratch

Run = Callable[[Any], None]
# Waits, hints, caches: what orders memory in hardware needs no order here, where every instruction ends at once.
_NOTHING = (
    "s_nop", "s_waitcnt", "s_wait_", "s_delay_alu", "s_clause", "s_setprio", "s_sleep", "s_inst_prefetch",
    "s_set_inst_prefetch", "s_icache_inv", "s_dcache", "s_code_end", "s_setreg", "s_sethalt", "s_sendmsg", "s_ttrace",
    "s_prefetch", "s_round_mode", "s_denorm_mode", "s_incperflevel", "s_wakeup", "s_barrier_signal", "v_nop",
    "buffer_gl0_inv", "buffer_gl1_inv", "buffer_wbl2", "buffer_inv", "buffer_wbinvl1", "global_inv", "global_wb",
)  # fmt: skip
# The first prefix that fits decides.
_BUILDERS: tuple[tuple[tuple[str, ...], Callable[[Machine, Instruction], Run]], ...] = (
    (("s_load_", "s_buffer_load_"), build_scalar_load),
    (("s_",), build_scalar),
    (("v_mfma", "v_wmma"), build_matrix),
    (("v_cmp",), build_compare),
    (("v_fma_mixlo_f16", "v_fma_mixhi_f16", "v_mad_mixlo_f16", "v_mad_mixhi_f16"), build_mix),
    (("v_pk_",), build_packed),
    (("v_",), build_vector),
    (("ds_",), build_ds),
    (("buffer_",), build_buffer),
    (("global_", "flat_"), build_global),
    (("scratch_",), build_scratch),
)


def build(m: Machine, i: Instruction) -> Run:
    """What an instruction does to the waves it runs for."""
    if i.second is not None:
        return _both(m, i, i.second)
    if i.name.startswith("s_set_gpr_idx"):
        return _set_index(m, i)
    if i.indexed:
        return _indexed(m, i)
    if i.name.startswith(_NOTHING):
        return lambda g: None
    if i.name.startswith("s_barrier"):
        return lambda g: m.wait(np.arange(m.count) if isinstance(g, slice) else g)
    if i.name == "s_endpgm":
        return lambda g: m.status.__setitem__(g, DONE)
    if i.name in SPECIAL:
        return SPECIAL[i.name](m, i)
    for prefixes, builder in _BUILDERS:
        if i.name.startswith(prefixes):
            return builder(m, i)
    raise Unknown(f"instruction {i.full}")


def _both(m: Machine, one: Instruction, other: Instruction) -> Run:
    """GFX11's v_dual_*: both halves read before either writes."""
    first, second = deferred(m, one), deferred(m, other)

    def run(g: Any) -> None:
        for write in [first(g), second(g)]:
            write()

    return run


def _set_index(m: Machine, i: Instruction) -> Run:
    """S_SET_GPR_IDX_ON: which operands are indexed is known from the text (``mark_indexed``); M0 keeps the index."""
    if i.name == "s_set_gpr_idx_off":
        return lambda g: None
    if i.name != "s_set_gpr_idx_on":
        raise Unknown(f"instruction {i.full}")
    read = m.raw(i.operands[0], "u")
    return lambda g: m.S[M0].__setitem__(g, np.broadcast_to(read(g)[:, 0], (m.n(g),)) & np.uint32(0xFF))


def _indexed(m: Machine, i: Instruction) -> Run:
    """Between S_SET_GPR_IDX_ON and _OFF: vector registers counted from M0 on, for each index its own instruction."""
    built: dict[int, Run] = {}

    def run(g: Any) -> None:
        waves = np.arange(m.count) if isinstance(g, slice) else g
        for index in np.unique(m.S[M0, waves]):
            if int(index) not in built:
                built[int(index)] = build(m, i.moved(int(index)))
            built[int(index)](waves[m.S[M0, waves] == index])

    return run
