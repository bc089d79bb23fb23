"""Before/after checks of one recipe on a small source, in the style of LibCST's own codemod tests."""

from __future__ import annotations

import textwrap

from rocm_overlay.install import catalog
from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen.edits import Edit, splice, unsplice
from rocm_overlay.patchgen.engine import Result, generate
from rocm_overlay.patchgen.recipe import AnyRecipe, Outcome, RecipeSet, Status

HEAD = "import torch\nfrom torch import nn\n\n\n"
DIGEST = "0123456789ab"
MODELS = (
    "deepseek_v3", "gemma", "gemma2", "gemma3", "gpt_oss", "llama", "mistral",
    "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
)  # fmt: skip
LINES = tuple(catalog.lines())
RELEASES_OF = {line: catalog.load(line).releases for line in LINES}
RELEASES = ("4.57.0", "4.57.1", "4.57.2", "4.57.3", "4.57.4", "4.57.5", "4.57.6")


def one(recipe: AnyRecipe) -> RecipeSet:
    """A set of this recipe alone."""
    return RecipeSet((recipe,), DIGEST)


def source(text: str) -> bytes:
    """A module with imports and the given body."""
    return (HEAD + textwrap.dedent(text).strip("\n") + "\n").encode("utf-8")


def body(result: Result) -> bytes:
    """The overlay without its two header edits."""
    kept = [edit for edit in result.edits if edit.recipe not in ("marker", "import")]
    edits = [Edit(*edit.stock, result.overlay[slice(*edit.overlay)], edit.recipe, edit.qualname) for edit in kept]
    return splice(result.stock, edits)[0]


def assert_edit(recipe: AnyRecipe, before: str, after: str) -> Result:
    """The recipe turns ``before`` into exactly ``after``; taking the edits out gives ``before`` back."""
    result = generate(source(before), "x.py", one(recipe))
    assert body(result).decode() == source(after).decode()
    assert unsplice(result.overlay, result.edits) == source(before)
    assert result.outcomes[0].status is Status.APPLIED
    compile(result.overlay, "x.py", "exec")
    again = generate(result.overlay, "x.py", one(recipe))
    assert again.overlay == result.overlay
    assert again.outcomes[0].status is Status.ALREADY
    return result


def assert_untouched(recipe: AnyRecipe, before: str, reason: str | None = None) -> Outcome:
    """The recipe leaves the file alone; with ``reason``, it says so about a candidate."""
    result = generate(source(before), "x.py", one(recipe))
    assert result.overlay == result.stock
    outcome = result.outcomes[0]
    assert outcome.status is Status.NOT_APPLICABLE
    assert outcome.sites == ()
    reasons = [declined.reason for declined in outcome.declined]
    if reason is None:
        assert reasons == []
    else:
        assert any(reason in text for text in reasons), reasons
    return outcome


def all_recipes() -> RecipeSet:
    """The recipes as they are released."""
    return recipe_set()
