"""What others need to see: `export` and `attest`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

from ..options import Models, Python, SitePackages, names, target_options

app = App()


@app.command(
    epilog=examples(
        "overlay export --transformers 4.57.6 > amd.patch && git -C transformers apply ../amd.patch",
        "overlay export --transformers 4.57.6 --models llama --root transformers",
    )
)
def export(
    transformers: Annotated[
        str | None,
        typer.Option("--transformers", metavar="RELEASE", help="This release; default: the one that is installed."),
    ] = None,
    models: Models = None,
    format_: Annotated[Literal["git-patch"], typer.Option("--format", help="The form of the patch.")] = "git-patch",
    root: Annotated[
        str, typer.Option("--root", metavar="DIR", help="Where the package lies in the checkout.")
    ] = "src/transformers",
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Print the overlays as a patch for a source checkout."""
    from rocm_overlay.install import export as room

    from ..reports import exporting as report

    options = target_options(python, site_packages)
    made = room.git_patch(options, transformers, names(models), root=root)
    return report.patch(made, as_json=json)


@app.command(epilog=examples("overlay attest > overlay.json", "overlay attest --format cyclonedx > overlay.cdx.json"))
def attest(
    format_: Annotated[
        Literal["json", "cyclonedx"], typer.Option("--format", help="Our own form, or CycloneDX 1.6.")
    ] = "json",
    python: Python = None,
    site_packages: SitePackages = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json, which is the default.")] = False,
) -> int:
    """Print what is installed with hashes before and after.

    For scanners that find files which differ from the package's RECORD.
    """
    from rocm_overlay.install import attest as room
    from rocm_overlay.install.transaction.errors import UsageError

    from ..reports import exporting as report

    if json and format_ == "cyclonedx":
        raise UsageError(
            "two-formats", "--json and --format cyclonedx exclude each other.", remedy="leave one of the two out"
        )
    return report.attestation(room.collect(target_options(python, site_packages)), format_)
