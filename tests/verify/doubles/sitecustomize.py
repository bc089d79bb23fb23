"""Put on PYTHONPATH of worker processes: gives ops of amd_ops a tier ``triton`` that is a double, good or bad.

OVERLAY_TEST_DOUBLES: ``OP=KIND,...`` with the kinds below. OVERLAY_TEST_GPU=1: the process has what stands for a gfx942
(aiter's double; our Triton kernels are interpreted), on which a launch takes its time and nothing else does. Nothing
happens without them.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time


def burn(seconds):
    """Use CPU time: a sleep would not be seen by a clock that leaves neighbours out."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def slow_down_stocks_norm():
    """Let ``torch.rsqrt`` take a millisecond: stock's expression of a norm calls it, the fast double does not."""
    import torch

    plain = torch.rsqrt

    def rsqrt(*args, **kwargs):
        burn(0.001)
        return plain(*args, **kwargs)

    torch.rsqrt = rsqrt


def run_of(tiers):
    """Return what tier torch runs."""
    from amd_ops import toggles

    return next(tier.offer(toggles.settings()).run for tier in tiers if tier.name == "torch")


def doubles(kind, op):
    """Return ``run`` of the double for an op, or None to leave the op as it is."""
    torch_run = run_of(op.tiers)

    def scaled(result):
        return tuple(map(scaled, result)) if isinstance(result, tuple) else result * 1.01

    def fast(*args):
        import torch

        x, weight, eps, form = args
        return torch.rms_norm(x, weight.shape, weight, eps) if form == "llama" else torch_run(*args)

    def slow(*args):
        burn(0.002)
        return torch_run(*args)

    def wrong(*args):
        return scaled(torch_run(*args))

    def crash(*args):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(*args):
        time.sleep(3600)

    return {"fast": fast, "same": torch_run, "slow": slow, "wrong": wrong, "crash": crash, "hang": hang}[kind]


def apply(amd_ops):
    from amd_ops import dispatch, toggle_rules

    for part in os.environ["OVERLAY_TEST_DOUBLES"].split(","):
        name, _, kind = part.partition("=")
        op = dispatch.ops[name]
        double = dispatch.Tier("triton", dispatch.always(doubles(kind, op)))
        tiers = [tier for tier in op.tiers if tier.name != "triton"]
        if kind == "fast":  # clearly faster than torch's tier and than stock, whatever else this machine does
            slow_down_stocks_norm()
            run = run_of(tiers)

            def burning(*args, run=run):
                burn(0.001)
                return run(*args)

            tiers = [dispatch.Tier("torch", dispatch.always(burning)) if t.name == "torch" else t for t in tiers]
        op.tiers = (tiers[0], double, *tiers[1:])
        toggle_rules.OPS[name] = tuple(tier.name for tier in op.tiers)  # what AMD_OPS_OP_TIERS may name
        op.tallies = {tier.name: dispatch.Tally(tier.name) for tier in op.tiers}
        op.unbind()


def become_a_gpu():
    """Serve aiter's double, and let the time of a piece of work be that of its launches, give or take a hundredth."""
    import random

    from rocm_overlay.bench.launches import count
    from rocm_overlay.verify.qualify import replay, whole

    from amd_ops import toggles
    from tests.doubles.aiter import fake_aiter

    gpu.enter_context(fake_aiter("v0.1.20.post1", "gfx942", 304))
    noise, known = random.Random(0), {}

    def launches(work, key):
        if key not in known:
            known[key] = count(work)["once"]
        return 1e-5 * known[key] * noise.uniform(0.99, 1.01)

    def seconds(call, count, cuda):
        return count * launches(call.result, (id(call), repr(toggles.settings())))

    made, step_of = {}, whole._stepper

    def stepper(model, inputs):
        key = repr(toggles.settings())
        if key not in made:
            made[key] = step_of(model, inputs)
        return made[key]

    replay._seconds = seconds
    whole._stepper = stepper
    whole._sample = lambda step, cuda: launches(step, repr(toggles.settings()))


gpu = contextlib.ExitStack()


class Finder(importlib.abc.MetaPathFinder):
    """Lets amd_ops load as it would, then changes it."""

    def find_spec(self, name, path=None, target=None):
        if name != "amd_ops":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            if os.environ.get("OVERLAY_TEST_GPU"):
                become_a_gpu()
            if os.environ.get("OVERLAY_TEST_DOUBLES"):
                apply(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("OVERLAY_TEST_DOUBLES") or os.environ.get("OVERLAY_TEST_GPU"):
    sys.meta_path.insert(0, Finder())
