"""Lets a worker of `overlay qualify` pose as a gfx942 with aiter, where the time of a call is that of its launches."""

import contextlib
import itertools

VERSION, ARCH, UNITS = "v0.1.20.post1", "gfx942", 304
LAUNCH_S = 1e-5
"""What a launch costs: at decode sizes a GPU waits for its host, so that fewer launches are less time."""
_SWAY = itertools.cycle((0.0, 0.004, -0.003, 0.001, -0.002, 0.003, -0.004))  # no two samples of a machine are alike

_KEPT = contextlib.ExitStack()


def pose():
    """Put aiter's double in place until the process ends, and a clock that counts launches in place of the CPU's."""
    from rocm_overlay.bench.launches import count
    from rocm_overlay.verify.qualify import replay, whole

    import amd_ops
    from tests.doubles.aiter import fake_aiter

    _KEPT.enter_context(fake_aiter(VERSION, ARCH, UNITS))
    known = {}  # counting takes longer than the call, and finds the same every time

    def launches(run):
        return count(run)["once"]

    def seconds(call, count, cuda):
        key = id(call), repr(amd_ops.settings())
        if key not in known:
            prepared = call.prepared()
            known[key] = call, launches(lambda: call.make(prepared))
        return count * _priced(known[key][1])

    def sample(step, cuda):
        step()
        return _priced(launches(step))

    replay._seconds, whole._sample = seconds, sample


def _priced(launched):
    return LAUNCH_S * launched * (1 + next(_SWAY))
