"""``overlay drift A B``: argument parsing is the CLI's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO

from rocm_overlay.overlays.recipes import recipe_set

from ..command import exit_code
from ..errors import PatchgenError, TargetError
from ..output import write_files
from ..report import write_json
from ..trees import BundleTree, Tree, named_tree
from .compare import compare
from .page import page
from .report import SCHEMA, as_json, counts, lines, worst


def run(
    old: str | Path,
    new: str | Path,
    *,
    models: Sequence[str] = (),
    html: Path | None = None,
    json_output: bool = False,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Compare two transformers packages (folder, wheel, or a release of ours) at the sites of the recipes.

    Returns 0 same, 1 regenerable, 2 conflict; 4 a file is not stock source, 5 the page cannot be written, 9 no package
    or model.
    """
    out = out or sys.stdout
    err = err or sys.stderr
    try:
        first, second = named_tree(str(old)), named_tree(str(new))
        models = models or _common(first, second, err)
        files = compare(first, second, recipe_set(), models, lambda text: print(text, file=err))
        if html is not None:
            text = page(files, _name(first), _name(second))
            write_files(html.parent, {html.name: text.encode("utf-8")})
    except PatchgenError as error:
        if json_output:
            listed = [{"id": error.kind, "message": error.message, "text": str(error)}]
            write_json({"schema": SCHEMA, "errors": listed}, out)
        print(f"error: {error}", file=err)
        return exit_code(error)
    if json_output:
        document = as_json(files, _about(first), _about(second))
        write_json(document, out)
    else:
        for line in lines(files):
            print(line, file=out)
    print(counts(files), file=err)
    return int(worst(files))


def _common(old: Tree, new: Tree, err: TextIO) -> Sequence[str]:
    """The models to compare where one side has only what is committed: a model that is not committed is not gone."""
    if not isinstance(old, BundleTree) and not isinstance(new, BundleTree):
        return ()
    mine, yours = ({PurePosixPath(path).parent.name for path in tree.modeling_files} for tree in (old, new))
    both = sorted(mine & yours)
    if not both:
        raise TargetError("the two have no model in common", expected="two releases that share a committed model")
    print(f"comparing the {len(both)} models that are known of both", file=err)
    return both


def _name(tree: Tree) -> str:
    return tree.version or tree.root.name


def _about(tree: Tree) -> dict[str, str | None]:
    return {"path": tree.root.as_posix(), "version": tree.version}
