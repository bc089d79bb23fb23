"""The recipes, in the order in which they are tried. One file each; none of them knows an architecture by name."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

from rocm_overlay.patchgen.recipe import AnyRecipe, RecipeSet

from . import (
    attention,
    delta_rule,
    experts,
    forms,
    gated_mlp,
    gating,
    latent,
    linear,
    loss,
    low_rank,
    moe,
    plan,
    qk_norm_rope,
    qkv,
    residual,
    rms_norm,
    rope,
    router,
)

ALL: tuple[AnyRecipe, ...] = (
    rms_norm.RECIPE,
    rope.RECIPE,
    qkv.RECIPE,
    low_rank.RECIPE,
    attention.RECIPE,
    gated_mlp.RECIPE,
    linear.RECIPE,
    loss.RECIPE,
    forms.RECIPE,
    residual.RECIPE,
    qk_norm_rope.RECIPE,
    moe.RECIPE,
    experts.RECIPE,
    router.RECIPE,
    delta_rule.RECIPE,
    gating.RECIPE,
    latent.RECIPE,
    plan.RECIPE,
)


@cache
def digest() -> str:
    """First 12 hex digits over the names and texts of the recipe files."""
    total = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py"), key=lambda one: one.name):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{file.name}\0{len(text)}\0".encode("ascii") + text)
    return total.hexdigest()[:12]


def recipe_set() -> RecipeSet:
    """Every recipe, each of which may fire."""
    return RecipeSet(ALL, digest())
