"""The commands of this room: what changes, shows, serves, exports and scans. Options only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ..commandline import App, DryRun, Gpu, Models, Python, Where, complete_models, complete_release, names
from ..console import counting, wants_json
from ..errors import UsageError
from . import report

app = App()


@app.command(
    "overlay install",
    "overlay install --generate",
    "overlay install --transformers 4.57.6 --models llama,qwen3 --python .venv/bin/python",
    "overlay install --transformers 4.57 --mode hook",
    "overlay install --transformers 4.57 --generated my-overlays",
)
# long: one option per line, nothing else
def install(
    *,
    transformers: Annotated[
        str | None,
        Option(
            metavar="SPEC",
            help="Expected release: 4.57, 4.57.6, 5.25.0.dev0 or '>=4.57,<4.58'; default: the installed one.",
            autocompletion=complete_release,
        ),
    ] = None,
    models: Annotated[
        str | None, Option(metavar="A,B", help="Only these; others go back to stock.", autocompletion=complete_models)
    ] = None,
    mode: Annotated[
        Literal["files", "hook"],
        Option(help="files: replace them; hook: add one .pth file that serves overlays at import."),
    ] = "files",
    generate: Annotated[
        bool, Option(help="Make the overlays here from the installed files, whatever their release.")
    ] = False,
    generated: Annotated[
        Path | None, Option(metavar="DIR", help="Use overlays that `overlay gen --all -o DIR` made.")
    ] = None,
    replacements: Annotated[
        Path | None, Option(metavar="DIR", help="Install your own models/NAME/modeling_NAME.py files.")
    ] = None,
    adopt: Annotated[
        bool, Option(help="Make overlays from edited files; the edit stays, revert returns exactly it.")
    ] = False,
    where: Where,
    dry_run: DryRun = False,
) -> int:
    """Replace modeling files of an installed transformers, atomically."""
    from . import operations
    from .hook import installed

    asked = where.options(dry_run), transformers, names(models)
    if mode == "hook":
        done = installed.install(*asked, generate=generate, generated=generated, replacements=replacements, adopt=adopt)
        return report.hook("install", done)
    outcome = operations.install(*asked, generate=generate, generated=generated, replacements=replacements, adopt=adopt)
    return report.outcome("install", outcome)


@app.command("overlay revert", "overlay revert --dry-run", "overlay revert --force")
def revert(
    *,
    force: Annotated[bool, Option(help="Also replace edited files, after keeping a copy.")] = False,
    where: Where,
    dry_run: DryRun = False,
) -> int:
    """Put every stock file back: bytes, mode, owner and time."""
    from . import operations

    outcome = operations.revert(where.options(dry_run), force=force)
    return report.outcome("revert", outcome)


@app.command("overlay recover", "overlay recover --site-packages .venv/lib/python3.11/site-packages")
def recover(where: Where) -> int:
    """Finish an interrupted install or revert.

    `install` and `revert` do this first, too; commands that only look do not.
    """
    from . import operations

    return report.outcome("recover", operations.recover_only(where.options()))


@app.command("overlay status", "overlay status --check --json", "overlay status --deep --python .venv/bin/python")
def status(
    *,
    check: Annotated[
        bool, Option(help="Exit 1 unless the state is APPLIED; with --deep, on any other difference.")
    ] = False,
    deep: Annotated[bool, Option(help="Hash every file of the package against its RECORD, not only ours.")] = False,
    where: Where,
) -> int:
    """Show what is applied, and whether the files agree."""
    from . import inspection
    from .transaction.states import State

    found = inspection.status(where.options(), deep=deep)
    fine = found.state is State.APPLIED and (found.deep is None or found.deep.clean)
    return report.status(found, 1 if check and not fine else 0)


@app.command("overlay diff", "overlay diff --exit-code", "overlay diff > changes.patch")
def diff(*, exit_code: Annotated[bool, Option(help="Exit 1 when there is a difference.")] = False, where: Where) -> int:
    """Print the difference from stock to the present files."""
    from . import inspection

    target, differences = inspection.diff(where.options())
    return report.diff(target, differences, 1 if exit_code and differences else 0)


@app.command("overlay doctor", "overlay doctor --import --launcher torchrun", "overlay doctor --fix --dry-run")
def doctor(
    *,
    fix: Annotated[bool, Option(help="Mend what can be mended safely.")] = False,
    dry_run: Annotated[bool, Option(help="With --fix: say what would be mended.")] = False,
    import_: Annotated[
        bool, Option("--import", help="Import torch and the overlaid models in a child process, and ask SDPA.")
    ] = False,
    launcher: Annotated[
        Literal["torchrun", "accelerate", "deepspeed"] | None,
        Option(help="Check which interpreter this launcher would start."),
    ] = None,
    where: Where,
) -> int:
    """Find what keeps an environment slow, broken or misleading.

    Exit 1 when there is a problem; warnings and notes leave it 0.
    """
    from .doctor import examine

    options = where.options(dry_run)
    result = examine(options, fix=fix, imports=import_, launcher=launcher)
    return report.examination(result)


@app.command("overlay info", "overlay info --json --python .venv/bin/python")
def info(where: Where) -> int:
    """Print what a bug report needs: versions, GPU, toggles, state.

    Nothing is imported and no GPU is asked.
    """
    from .info import collect

    return report.info(collect(where.options()))


@app.command("overlay list", "overlay list --json", name="list")
def list_() -> int:
    """List the releases and models that have overlays."""
    from . import catalog

    return report.listing([catalog.load(line) for line in catalog.lines()])


@app.command(
    "overlay run -- python serve.py",
    "overlay run --profile auto -- torchrun --nproc-per-node 8 train.py",
    "overlay run --models llama --dry-run --json -- python serve.py",
)
def run(
    command: Annotated[list[str], Argument(metavar="-- CMD ...", help="The command to run, after --.")],
    models: Models = None,
    profile: Annotated[str | None, Option(metavar="off|auto|max|FILE", help="Also set these toggles for CMD.")] = None,
    python: Python = None,
    dry_run: Annotated[bool, Option(help="Say what would be served; start nothing.")] = False,
) -> int:
    """Run a command with the overlays served by an import hook.

    Nothing is written. Subprocesses and torchrun ranks inherit the hook. Python's -I, -E and -S switch it off.
    """
    from .hook import running

    started = running.prepare(
        command, names(models), python=python, profile=profile, as_json=wants_json(), dry_run=dry_run
    )
    if dry_run:
        return report.planned(started)
    sys.stdout.flush()
    return running.replace_process(started)


@app.command('eval "$(overlay env --profile auto)"', "overlay env --profile max --gpu gfx942", "overlay env --json")
def env(
    profile: Annotated[
        Literal["off", "auto", "max"], Option(help="off: stock; auto: by GPU; max: everything on.")
    ] = "auto",
    gpu: Gpu = None,
    shell: Annotated[Literal["sh", "fish"], Option(help="Whose syntax: sh (bash, zsh) or fish.")] = "sh",
) -> int:
    """Print shell exports for a profile of run-time toggles.

    On a terminal each line has its reason; elsewhere -v prints the reasons on stderr.
    """
    from . import profiles

    return report.environment(profiles.make(profile, gpu), shell)


@app.command(
    "overlay export --transformers 4.57.6 > amd.patch && git -C transformers apply ../amd.patch",
    "overlay export --transformers 4.57.6 --models llama --root transformers",
)
def export(
    *,
    transformers: Annotated[
        str | None, Option(metavar="RELEASE", help="This release; default: the one that is installed.")
    ] = None,
    models: Models = None,
    format_: Annotated[Literal["git-patch"], Option("--format", help="The form of the patch.")] = "git-patch",
    root: Annotated[str, Option(metavar="DIR", help="Where the package lies in the checkout.")] = "src/transformers",
    where: Where,
) -> int:
    """Print the overlays as a patch for a source checkout."""
    from . import export as room

    options = where.options()
    made = room.git_patch(options, transformers, names(models), root=root)
    return report.patch(made)


@app.command(
    "overlay attest > overlay.json",
    "overlay attest --verify overlay.json",
    "overlay attest --format cyclonedx > overlay.cdx.json",
)
def attest(
    *,
    format_: Annotated[
        Literal["json", "cyclonedx"], Option("--format", help="Our own form, or CycloneDX 1.6.")
    ] = "json",
    verify: Annotated[
        Path | None, Option(metavar="FILE", help="Compare with an earlier one; exit 1 where files differ.")
    ] = None,
    where: Where,
) -> int:
    """Print what is installed with hashes before and after.

    For scanners that find files which differ from the package's RECORD.
    """
    from . import attest as room

    if wants_json() and format_ == "cyclonedx":
        raise UsageError(
            "two-formats", "--json and --format cyclonedx exclude each other.", remedy="leave one of the two out"
        )
    made = room.collect(where.options())
    if verify is not None:
        return report.compared(room.differences(made, room.read(verify)), verify)
    return report.attestation(made, format_)


@app.command(
    "overlay scan ./my-project",
    "overlay scan ./my-project --exclude 'third_party/*' --json",
    "overlay scan ./my-project --format sarif > scan.sarif",
)
def scan(
    path: Annotated[Path, Argument(metavar="PATH", help="A file or folder.")],
    exclude: Annotated[
        list[str] | None, Option(metavar="GLOB", help="Leave out paths below PATH that match; repeat for more.")
    ] = None,
    format_: Annotated[
        Literal["text", "json", "sarif"], Option("--format", help="For people, programs or code scanning.")
    ] = "text",
) -> int:
    """Find NVIDIA-only libraries in sources, and what replaces them.

    Exit 1 when something needs manual work, 0 when hipify or nothing is enough.
    """
    from .scan.engine import scan as look_through

    if wants_json() and format_ == "sarif":
        raise UsageError("two-formats", "--json and --format sarif exclude each other.", remedy="leave one of them out")
    with counting("files") as step:
        found = look_through(path, exclude or [], progress=step)
    return report.scan(found, "json" if wants_json() else format_)
