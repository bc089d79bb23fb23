"""``overlay drift A B``: argument parsing is the CLI's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rocm_overlay.overlays.recipes import recipe_set

from ...console import notes, print_json, show, verbose, wants_json
from ...errors import TargetError
from ..trees import BundleTree, Tree, named_tree
from ..writing import write_files
from .compare import compare
from .page import page
from .report import PLACES, as_json, counts, lines, needs_review, worst


def run(
    old: str | Path,
    new: str | Path,
    *,
    models: Sequence[str] = (),
    html: Path | None = None,
) -> int:
    """Compare two transformers packages (folder, wheel, or a release of ours) at the sites of the recipes.

    Returns 0 same, 1 regenerable, 2 degraded or conflict. Raises OverlayError: 4 a file is not stock source, 5 the page
    cannot be written, 9 no package or model.
    """
    first, second = named_tree(str(old)), named_tree(str(new))
    models = models or _common(first, second)
    files = compare(first, second, recipe_set(), models, shown=True)
    if html is not None:
        text = page(files, _name(first), _name(second))
        write_files(html.parent, {html.name: text.encode("utf-8")})
    code = worst(files).exit_status
    if wants_json():
        return print_json("drift", as_json(files, _about(first), _about(second)), code=code)
    show(counts(files), *lines(files, None if verbose() else PLACES, texts=verbose()))
    if not verbose() and any(needs_review(site) for one in files for site in one.sites):
        notes(["-v shows stock and our edit of each release"])
    return code


def _common(old: Tree, new: Tree) -> Sequence[str]:
    """The models to compare where one side has only what is committed: a model that is not committed is not gone."""
    if not isinstance(old, BundleTree) and not isinstance(new, BundleTree):
        return ()
    mine, yours = ({PurePosixPath(path).parent.name for path in tree.modeling_files} for tree in (old, new))
    both = sorted(mine & yours)
    if not both:
        expected = "two releases that share a committed model"
        raise TargetError("target", "the two have no model in common", expected=expected)
    notes([f"comparing the {len(both)} models that are known of both"])
    return both


def _name(tree: Tree) -> str:
    return tree.version or tree.root.name


def _about(tree: Tree) -> dict[str, str | None]:
    return {"path": tree.root.as_posix(), "version": tree.version}
