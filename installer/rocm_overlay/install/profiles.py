"""What `overlay env` prints: our toggles, and the ROCm variables that decide more than we do, each with its reason.

The names of our toggles are the public interface of amd_ops, which is not imported here: it needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gpu import Gpu, gpus, parse

PROFILES = ("off", "auto", "max")
FAMILIES = {
    "USE_AITER_ATTENTION": "attention through aiter, else SDPA",
    "USE_OPTIMIZED_OPS": "fused norms, rotary embedding and activations",
    "USE_FUSED_PROJECTIONS": "one GEMM for q/k/v and one for gate/up, without extra memory",
    "USE_AITER_GEMM": "linears through aiter's tuned GEMMs; tuned bf16 rows ship for gfx950 only",
    "USE_PRESHUFFLE": "weights in the layout of aiter's kernels; no tuned bf16 row for it ships for any GPU",
}


@dataclass(frozen=True)
class Setting:
    """One variable: ``value`` None means that it has to be unset."""

    name: str
    value: str | None
    reason: str


@dataclass(frozen=True)
class Profile:
    """A named set of variables for one GPU (None: none was found)."""

    name: str
    gpu: str | None
    settings: tuple[Setting, ...]


def make(name: str, gpu: str | None, found: tuple[Gpu, ...] | None = None) -> Profile:
    """Return a profile for ``gpu``, or for the first GPU of this machine. Raises UsageError for a name that is none."""
    if gpu is not None:
        gpu = parse(gpu).arch
    else:
        present = gpus() if found is None else found
        gpu = present[0].arch if present else None
    if name == "off":
        ours = [Setting("AMD_OPS", "off", "stock code runs"), *(Setting(one, "0", "off") for one in FAMILIES)]
        return Profile(name, gpu, tuple(ours))
    if name == "auto":
        ours = [
            Setting("AMD_OPS", "auto", "unset toggles follow the GPU and what was proved on it"),
            *(Setting(one, None, "left to AMD_OPS=auto") for one in FAMILIES),
        ]
    else:
        ours = [
            *(Setting(one, "auto" if one == "USE_PRESHUFFLE" else "1", why) for one, why in FAMILIES.items()),
            Setting("AMD_OPS", "off", "no default for other toggles: those above are all that is asked for"),
        ]
    return Profile(name, gpu, (*ours, *_rocm(gpu, everything=name == "max")))


def _rocm(gpu: str | None, *, everything: bool) -> list[Setting]:
    """Return the variables of ROCm and torch; none where there is no AMD GPU."""
    if gpu is None:
        return []
    settings = [
        Setting(
            "HIP_FORCE_DEV_KERNARG", "1", "kernel arguments in device memory: shorter launches, as AMD's images set it"
        ),
        Setting("GPU_ARCHS", None, "aiter takes the last of several values at run time, whatever the GPU is"),
    ]
    if Gpu(gpu, 0).is_rdna:
        settings.append(
            Setting(
                "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL",
                "1",
                "without it SDPA has no fused kernel on Radeon and runs the quadratic math one; read once, at import",
            )
        )
    else:
        settings.append(
            Setting("TORCH_BLAS_PREFER_HIPBLASLT", "1", "hipBLASLt before rocBLAS, as AMD's Instinct images set it")
        )
    if everything:
        settings += [
            Setting("PYTORCH_TUNABLEOP_ENABLED", "1", "torch uses the GEMM solutions that were measured for it"),
            Setting("PYTORCH_TUNABLEOP_TUNING", "0", "nothing is measured while serving: tune beforehand"),
        ]
    return settings
