"""Stock bytes and recipes in, overlay bytes and a complete account out."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import EditConflict, InternalError, MustFireError, Place, nearest
from .edits import AppliedEdit, Edit, find_conflict, splice, unsplice
from .header import import_edit, marker_edit, read_marker
from .modules import is_scripted
from .recipe import AnyRecipe, Decline, Outcome, RecipeSet, Site, Status
from .source import Source


@dataclass(frozen=True)
class Result:
    """The overlay of one file. Where nothing applied, ``overlay`` is ``stock`` and ``edits`` is empty."""

    path: str
    stock: bytes
    stock_sha256: str
    overlay: bytes
    edits: tuple[AppliedEdit, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def changed(self) -> bool:
        """True where at least one recipe applied."""
        return bool(self.edits)

    @property
    def conflicts(self) -> tuple[Outcome, ...]:
        """The recipes that could not be applied because another one claims the same bytes."""
        return tuple(one for one in self.outcomes if one.status is Status.CONFLICT)

    def require_clean(self) -> Result:
        """Return self.

        Raises:
            EditConflict: a recipe is in conflict.
        """
        for outcome in self.conflicts:
            raise EditConflict(f"recipe {outcome.recipe}: {outcome.reason}", place=Place(self.path))
        return self


def generate(
    data: bytes,
    path: str,
    recipes: RecipeSet,
    *,
    padding: int = 0,
    label: str | None = None,
    source: Source | None = None,
) -> Result:
    """Apply recipes to one file.

    Args:
        data: the stock file.
        path: how the result is called: the path inside the package.
        recipes: what to apply, in order.
        padding: extra length of the marker line.
        label: how the file is called in messages; default ``path``.
        source: the file, where it was parsed before.

    Raises:
        SourceError: the file cannot be read, or somebody else has edited it.
        MustFireError: a must-fire recipe found no site that it may edit.
        InternalError: the result broke a law of the generator; a bug.
    """
    source = source or Source(data, label or path)
    marker = read_marker(source)
    if marker:
        reason = f"overlay of sha256:{marker.base} by generator {marker.generator}, recipes {marker.recipes}"
        outcomes = tuple(Outcome(one.name, Status.ALREADY, reason=reason) for one in recipes.recipes)
        return Result(path, data, source.sha256, data, (), outcomes)
    edits: list[Edit] = []
    accounts: list[Outcome] = []
    for recipe in recipes.recipes:
        made, outcome = _apply(recipe, source, edits)
        if recipe.must_fire and not made:
            raise _must_fire(recipe, source, outcome)
        edits += made
        accounts.append(outcome)
    if edits:
        edits += [marker_edit(source, recipes.digest, padding), import_edit(source)]
    overlay, applied = splice(data, edits)
    result = Result(path, data, source.sha256, overlay, applied, tuple(accounts))
    assert_laws(result)
    return result


def _apply(recipe: AnyRecipe, source: Source, others: list[Edit]) -> tuple[list[Edit], Outcome]:
    if not recipe.hint.search(source.text):
        return [], Outcome(recipe.name, Status.NOT_APPLICABLE)
    made: list[Edit] = []
    sites: list[tuple[str, int]] = []
    parts: list[Mapping[str, str]] = []
    declined: list[Decline] = []
    for site in _sites(recipe, source):
        reason, edits = _edit(recipe, source, site)
        line = source.line(site.node)
        if reason is None:
            made += edits
            sites.append((site.function.qualname, line))
            parts.append(dict(recipe.parts(site)))
        else:
            declined.append(Decline(site.function.qualname, line, reason))
    conflict = find_conflict([*others, *made])
    if conflict:
        first, second = conflict
        reason = (
            f"{first.recipe} ({first.qualname}) and {second.recipe} ({second.qualname}) both edit line "
            f"{source.line_at(second.start)}"
        )
        return [], Outcome(recipe.name, Status.CONFLICT, declined=tuple(declined), reason=reason)
    status = Status.APPLIED if made else Status.NOT_APPLICABLE
    return made, Outcome(recipe.name, status, tuple(sites), tuple(declined), parts=tuple(parts))


def _sites(recipe: AnyRecipe, source: Source) -> Iterator[Site[object]]:
    for function in source.functions_near(recipe.hint):
        yield from recipe.match(source, function)


def _edit(recipe: AnyRecipe, source: Source, site: Site[object]) -> tuple[str | None, list[Edit]]:
    reason = "TorchScript compiles this function" if is_scripted(site.function) else recipe.guard(source, site)
    if reason is not None:
        return reason, []
    edits = recipe.edit(source, site)
    if not edits:
        return "a statement to edit shares its line with another one", []
    return None, [replace(edit, recipe=recipe.name) for edit in edits]


def _must_fire(recipe: AnyRecipe, source: Source, outcome: Outcome) -> MustFireError:
    found, close, line = "no candidate", None, None
    if outcome.status is Status.CONFLICT:
        found = f"conflict: {outcome.reason}"
    elif outcome.declined:
        first = outcome.declined[0]
        found, line = f"{first.qualname}: {first.reason}", first.line
    else:
        close = nearest(recipe.name, (function.qualname for function in source.functions)) or _by_word(recipe, source)
    return MustFireError(
        f"recipe {recipe.name} must find a site here and found none",
        place=Place(source.path, line),
        expected=recipe.description,
        found=found,
        nearest=close,
    )


def _by_word(recipe: AnyRecipe, source: Source) -> str | None:
    """The first function whose text has the recipe's hint: where a reader should look."""
    for function in source.functions:
        if recipe.hint.search(source.code(function.node)):
            return f"{function.qualname} (line {source.line(function.node)})"
    return None


def assert_laws(result: Result, *, parse: bool = True) -> None:
    """Law 9: taking the edits out gives stock back. And what we write is Python (``parse`` False: known to be).

    Raises:
        InternalError: a law is broken.
    """
    if unsplice(result.overlay, result.edits) != result.stock:
        raise InternalError("bytes outside the recorded edits changed", place=Place(result.path))
    if not result.edits or not parse:
        return
    try:
        with warnings.catch_warnings():
            # Stock files may hold escapes that newer Pythons warn about; that is not our edit.
            warnings.simplefilter("ignore")
            ast.parse(result.overlay)
    except SyntaxError as error:
        raise InternalError(
            "the edited file is not valid Python", place=Place(result.path, error.lineno), found=str(error)
        ) from error
