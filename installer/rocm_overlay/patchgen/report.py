"""What a run says: unified diffs, one account per file, and the coverage table over many files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..console import facts
from ..install import patches
from .engine import Result
from .recipe import Outcome, RecipeSet, Status

Json = dict[str, object]


def unified_diff(stock: bytes, overlay: bytes, path: str) -> bytes:
    """Return the diff of a file, with labels that depend on nothing but its path inside the package."""
    return patches.unified(stock, overlay, f"a/{path}", f"b/{path}")


def outcome_json(outcome: Outcome) -> Json:
    """One recipe on one file."""
    return {
        **facts(outcome, "recipe reason"),
        "status": outcome.status.value,
        "sites": [{"qualname": qualname, "line": line} for qualname, line in outcome.sites],
        "declined": [facts(one, "qualname line reason") for one in outcome.declined],
    }


def table(results: Iterable[Result], recipes: RecipeSet) -> list[Json]:
    """Per recipe: files by status, sites edited, and how often each reason declined one."""
    files: dict[str, Counter[str]] = {one.name: Counter() for one in recipes.recipes}
    sites: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {one.name: Counter() for one in recipes.recipes}
    for result in results:
        for outcome in result.outcomes:
            files[outcome.recipe][outcome.status.value] += 1
            sites[outcome.recipe] += len(outcome.sites)
            reasons[outcome.recipe].update(_kind(one.reason) for one in outcome.declined)
    return [
        {
            "recipe": one.name,
            "description": one.description,
            "files": {status.value: files[one.name][status.value] for status in Status},
            "sites": sites[one.name],
            "declined": dict(sorted(reasons[one.name].items())),
        }
        for one in recipes.recipes
    ]


def _kind(reason: str) -> str:
    """A reason without what differs from file to file, so that equal reasons count together."""
    head = reason.split(": ", 1)[0]
    words = head.split()
    return " ".join("N" if word.rstrip(",").isdigit() else word for word in words)


def file_line(result: Result) -> str:
    """One line for people: the path, and each recipe's sites or why it has none."""
    if any(one.status is Status.ALREADY for one in result.outcomes):
        return f"{result.path}: already there ({result.outcomes[0].reason})"
    parts = []
    for outcome in result.outcomes:
        if outcome.status is Status.APPLIED:
            parts.append(f"{outcome.recipe} {len(outcome.sites)}")
        elif outcome.status is Status.CONFLICT:
            parts.append(f"{outcome.recipe} CONFLICT ({outcome.reason})")
    return f"{result.path}: {', '.join(parts) or 'not applicable'}"


def declined_lines(result: Result) -> list[str]:
    """One line per candidate that was left alone."""
    return [
        f"{result.path}:{one.line}: {outcome.recipe} declined {one.qualname}: {one.reason}"
        for outcome in result.outcomes
        for one in outcome.declined
    ]
