"""Every kind of finding: its id, what it means and what to do. `docs/doctor.md` is generated from this file."""

from __future__ import annotations

from dataclasses import dataclass

PROBLEM = "problem"
WARNING = "warning"
NOTE = "note"


@dataclass(frozen=True)
class Kind:
    """One kind of finding. ``fixable``: `overlay doctor --fix` mends it."""

    id: str
    severity: str
    meaning: str
    remedy: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that was found: its kind, the facts that show it, and the paths concerned."""

    kind: Kind
    evidence: tuple[str, ...]
    paths: tuple[str, ...] = ()
    advice: str | None = None

    @property
    def id(self) -> str:
        return self.kind.id

    @property
    def severity(self) -> str:
        return self.kind.severity

    @property
    def remedy(self) -> str:
        """What to do: of the kind, unless this case needs another answer."""
        return self.advice or self.kind.remedy

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id,
            "severity": self.severity,
            "meaning": self.kind.meaning,
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "paths": list(self.paths),
            "fixable": self.kind.fixable,
        }


KINDS: tuple[Kind, ...] = (
    Kind("no-target", PROBLEM, "No transformers could be looked at.", "name one with --python or --site-packages"),
    Kind(
        "interrupted",
        PROBLEM,
        "A transaction was left open by a process that was stopped.",
        "run `overlay recover`",
        fixable=True,
    ),
    Kind(
        "drifted",
        PROBLEM,
        "Managed files no longer hold the text that was installed.",
        "run `overlay diff`, then `overlay revert --force`, which keeps your text in .amd-overlay/rescued/",
    ),
    Kind("partial", PROBLEM, "Some files are overlaid and some are stock again.", "run `overlay install` again"),
    Kind(
        "wiped",
        WARNING,
        "The receipt says overlaid, but a reinstall has put stock back.",
        "run `overlay install` again, with the options of the first time",
    ),
    Kind(
        "orphaned",
        WARNING,
        "The receipt or hook belongs to another release of transformers.",
        "run `overlay revert`, which forgets it, then `overlay install` again",
    ),
    Kind(
        "stale-overlay", WARNING, "The bundle has newer overlays than those installed.", "run `overlay install` again"
    ),
    Kind(
        "hook-broken",
        PROBLEM,
        "The hook file leads to a tool that is gone, or is damaged: stock is imported.",
        "run `overlay revert`, or install transformers-rocm-overlay again",
        fixable=True,
    ),
    Kind(
        "stray-temporaries",
        WARNING,
        "Temporary files of a stopped process lie beside the modules.",
        "run `overlay recover`",
        fixable=True,
    ),
    Kind(
        "poisoned-cache",
        PROBLEM,
        "An edited file shares its inode with a package cache: every environment made from "
        "that cache gets the edit, and reinstalling does not heal it.",
        "run `uv cache clean transformers`, then reinstall transformers in every environment that used the cache",
    ),
    Kind(
        "shared-inodes",
        NOTE,
        "Stock files share inodes with a package cache or another environment. Overlay never "
        "writes through them; editors and `cp` do.",
        "never edit these files in place",
    ),
    Kind(
        "stale-bytecode",
        PROBLEM,
        "Python would run compiled code of a text that is no longer there.",
        "delete these .pyc files",
        fixable=True,
    ),
    Kind(
        "foreign-files",
        PROBLEM,
        "Files hold a text that is not stock, and no receipt of ours says why.",
        "reinstall transformers, or make overlays from your text with `overlay install --adopt`: the edit stays",
    ),
    Kind(
        "damaged-install",
        PROBLEM,
        "Files of the package are missing.",
        "reinstall transformers",
    ),
    Kind(
        "unsupported-text",
        PROBLEM,
        "Stock files of this release have a text that no overlay was made for.",
        "run `overlay install --generate`, which makes the overlays here from the installed files",
    ),
    Kind(
        "unsupported",
        PROBLEM,
        "There are no overlays for this release.",
        "run `overlay install --generate`, which makes the overlays here from the installed files",
    ),
    Kind(
        "receipt-lost",
        WARNING,
        "Overlays are there, but the receipt that lists them is gone.",
        "run `overlay install` again, which writes a new one, or `overlay revert`",
    ),
    Kind(
        "adopted-by-older-version",
        PROBLEM,
        "An older version of this program replaced an edited text by the overlay of the stock text: the edit is off.",
        "run `overlay revert`, which returns your text, or `overlay install --adopt`, which makes an overlay from it",
    ),
    Kind(
        "unlisted-files",
        PROBLEM,
        "Modeling files that the package's RECORD does not list: a repackager left them out, or somebody added them.",
        "reinstall transformers from its own wheel, or take the files as they are with `overlay install --adopt`",
    ),
    Kind(
        "other-overlay",
        WARNING,
        "Another tool changes the same transformers.",
        "use one of the two; for files that were copied in, reinstall transformers and delete what is left",
    ),
    Kind(
        "added-files",
        WARNING,
        "Python files below transformers/ that its RECORD does not list. They outlive an "
        "uninstall and leave an importable ghost.",
        "delete them, or move them to a package of their own",
    ),
    Kind(
        "several-transformers",
        WARNING,
        "The interpreter's path has more than one transformers; the first one wins.",
        "uninstall the copies that are not used",
    ),
    Kind(
        "development-install",
        NOTE,
        "A checkout, a link or the system's own transformers: overlay does not write to it.",
        "use `overlay run -- CMD`, or a patch from `overlay export`",
    ),
    Kind(
        "launcher",
        PROBLEM,
        "The launcher on PATH starts another interpreter, whose transformers is not this one.",
        "start it as `python -m torch.distributed.run` (or `python -m accelerate.commands.launch`) of this environment",
    ),
    Kind("launcher-missing", WARNING, "The launcher is not on PATH.", "activate the environment, or use `python -m`"),
    Kind(
        "running-processes",
        WARNING,
        "Processes have imported from this environment and keep the code that they started with.",
        "start them again after an install or revert",
    ),
    Kind(
        "not-writable",
        WARNING,
        "This user cannot write where the modeling files are.",
        "run overlay as the owner, or write nothing: `overlay run -- CMD`",
    ),
    Kind(
        "read-only-tree",
        WARNING,
        "The file system of the environment is mounted read-only.",
        "write nothing: `overlay run -- CMD`",
    ),
    Kind(
        "permissions",
        WARNING,
        "Overlaid files may be read by fewer people than their neighbours.",
        "run `overlay revert` and `overlay install` as the owner of the environment",
    ),
    Kind(
        "conda-altered",
        NOTE,
        "`conda doctor` reports overlaid files as altered, and its --fix puts stock back.",
        "run `overlay status --check` after conda has been at work",
    ),
    Kind(
        "amd-ops-missing",
        PROBLEM,
        "The interpreter cannot import amd_ops, so overlays run stock expressions.",
        "install transformers-rocm-overlay in that environment",
    ),
    Kind(
        "registry-route",
        NOTE,
        "transformers 5 has kernel hooks of its own for norms, rope and attention.",
        "use the overlay for what they lack: fused projections, linears, gated activations",
    ),
    Kind("gpu", NOTE, "The AMD GPUs that the kernel driver lists.", "nothing to do"),
    Kind(
        "no-gpu",
        NOTE,
        "No AMD GPU found: only the torch and eager tiers will run.",
        "nothing to do",
    ),
    Kind(
        "mixed-gpus",
        WARNING,
        "GPUs of different architectures: kernels and tables fit one of them.",
        "choose with HIP_VISIBLE_DEVICES",
    ),
    Kind(
        "kfd-access",
        PROBLEM,
        "A GPU is there, but this user cannot open it.",
        "add the user to the groups video and render; for a container pass --device /dev/kfd --device /dev/dri",
    ),
    Kind(
        "torch-not-rocm",
        PROBLEM,
        "A GPU is there, but the installed torch is not built for ROCm.",
        "install a ROCm build of torch",
    ),
    Kind("aiter-missing", NOTE, "aiter is not installed: its tier is skipped.", "install aiter to use its kernels"),
    Kind(
        "aiter-unbuildable",
        PROBLEM,
        "aiter compiles kernels at first use, and the compiler is not there.",
        "install hipcc (ROCm's development packages), or an aiter wheel with prebuilt kernels",
    ),
    Kind(
        "aotriton-experimental",
        WARNING,
        "On Radeon SDPA has no fused kernel without this variable, and says nothing.",
        "export TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 before torch is imported",
    ),
    Kind(
        "gpu-archs",
        WARNING,
        "GPU_ARCHS holds several values: aiter takes the last one, whatever the GPU is.",
        "unset GPU_ARCHS, which is for building",
    ),
    Kind(
        "aiter-configs-shared",
        WARNING,
        "aiter merges its tables into a folder that all users and containers share.",
        "make one file with `overlay tune merge` and name it in AITER_CONFIG_GEMM_BF16",
    ),
    Kind(
        "toggle-value",
        PROBLEM,
        "A toggle has a name or a value that amd_ops refuses.",
        "correct it as the line says, or unset it",
    ),
    Kind(
        "toggle-misspelt",
        WARNING,
        "A variable looks like a toggle and is none, so it does nothing.",
        "correct its name, or unset it",
    ),
    Kind(
        "toggle-without-overlay",
        WARNING,
        "Toggles are set, but no overlay reaches the interpreter: stock code runs.",
        "run `overlay install`, or start the program with `overlay run -- CMD`",
    ),
    Kind(
        "toggle-without-gpu",
        WARNING,
        "Toggles ask for GPU kernels, but there is no AMD GPU.",
        "unset them, or check that the GPU is visible here",
    ),
    Kind(
        "toggle-overrides",
        WARNING,
        "AMD_OPS names a profile or auto, and a toggle beside it decides for itself: the profile has no say there.",
        "unset the toggle, or leave AMD_OPS off",
    ),
    Kind("toggle-ineffective", NOTE, "A toggle is set that this GPU does not profit from.", "unset it, or measure it"),
    Kind(
        "import-failed",
        PROBLEM,
        "A managed module cannot be imported.",
        "read the error; `overlay revert` restores stock",
    ),
    Kind(
        "import-mismatch",
        PROBLEM,
        "A managed module runs another text than its file or the hook says.",
        "delete its __pycache__, and check for another copy on the path",
    ),
    Kind("import-skipped", NOTE, "Nothing was imported.", "name the interpreter with --python"),
    Kind(
        "sdpa-refused",
        WARNING,
        "SDPA refuses its fused kernels for common shapes and runs the quadratic math.",
        "read torch's reasons; on Radeon export TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1",
    ),
)
BY_ID = {kind.id: kind for kind in KINDS}


def finding(id: str, *evidence: str, paths: tuple[object, ...] = (), advice: str | None = None) -> Finding:
    """Make a finding of a registered kind. KeyError for an id that nobody registered."""
    return Finding(BY_ID[id], tuple(evidence), tuple(str(path) for path in paths), advice)


def table() -> str:
    """Return the table of `docs/doctor.md`."""
    rows = ["| id | severity | what it means | what to do | --fix |", "|---|---|---|---|---|"]
    for kind in KINDS:
        fix = "yes" if kind.fixable else ""
        rows.append(f"| `{kind.id}` | {kind.severity} | {kind.meaning} | {kind.remedy} | {fix} |")
    return "\n".join(rows) + "\n"
