"""What only looks: `status`, `diff`, `doctor` and `list`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

from .. import output
from ..options import Python, SitePackages, target_options

app = App()


@app.command(
    epilog=examples(
        "overlay status", "overlay status --check --json", "overlay status --deep --python .venv/bin/python"
    )
)
def status(
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 unless the state is APPLIED; with --deep, on any other difference.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash every file of the package against its RECORD, not only ours.")
    ] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Show what is applied, and whether the files agree."""
    from rocm_overlay.install import inspection
    from rocm_overlay.install.transaction.states import State

    found = inspection.status(target_options(python, site_packages), deep=deep)
    output.status(found, as_json=json)
    fine = found.state is State.APPLIED and (found.deep is None or found.deep.clean)
    return 1 if check and not fine else 0


@app.command(epilog=examples("overlay diff", "overlay diff --exit-code", "overlay diff > changes.patch"))
def diff(
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when there is a difference.")] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Print the difference from stock to the present files."""
    from rocm_overlay.install import inspection

    target, differences = inspection.diff(target_options(python, site_packages))
    output.diff(target, differences, as_json=json)
    return 1 if exit_code and differences else 0


@app.command(
    epilog=examples(
        "overlay doctor",
        "overlay doctor --import --launcher torchrun",
        "overlay doctor --fix --dry-run",
    )
)
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended safely.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: say what would be mended.")] = False,
    import_: Annotated[
        bool, typer.Option("--import", help="Import torch and the overlaid models in a child process, and ask SDPA.")
    ] = False,
    launcher: Annotated[
        Literal["torchrun", "accelerate", "deepspeed"] | None,
        typer.Option("--launcher", help="Check which interpreter this launcher would start."),
    ] = None,
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Find what keeps an environment slow, broken or misleading.

    Exit 1 when there is a problem; warnings and notes leave it 0.
    """
    from rocm_overlay.install.doctor import examine

    from ..reports.doctor import show

    options = target_options(python, site_packages, dry_run)
    result = examine(options, fix=fix, imports=import_, launcher=launcher)
    return show(result, as_json=json)


@app.command(name="list", epilog=examples("overlay list", "overlay list --json"))
def list_(json: Json = False) -> int:
    """List the releases and models that have overlays."""
    from rocm_overlay.install import catalog

    output.listing([catalog.load(line) for line in catalog.lines()], as_json=json)
    return 0
