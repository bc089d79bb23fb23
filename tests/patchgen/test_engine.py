"""The engine: header edits, accounts, laws, and errors that name the place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from rocm_overlay.errors import EditConflict, InternalError, MustFireError, SourceError
from rocm_overlay.overlays.recipes import rms_norm, rope
from rocm_overlay.patchgen.edits import AppliedEdit, Edit, splice, unsplice
from rocm_overlay.patchgen.engine import generate
from rocm_overlay.patchgen.header import GENERATOR
from rocm_overlay.patchgen.layout import MAX_COLUMNS
from rocm_overlay.patchgen.recipe import RecipeSet, Status
from rocm_overlay.patchgen.trees import open_tree

from tests.patchgen.support import DIGEST, MODELS, all_recipes, one, source
from tests.patchgen.test_recipe_rms_norm import LLAMA

NULL = RecipeSet((), "0" * 12)
BLOCK = r"""from importlib.util import find_spec as _amd_spec
if getattr(_amd_spec("amd_ops"), "origin", None):
    import amd_ops as _amd
else:  # not installed, or only a folder that an uninstall left behind
    import os as _amd_os, re as _amd_re, warnings as _amd_warnings
    _amd, _amd_asks = None, _amd_re.compile(r"(AMD_OPS|FORCE_E\w+|USE_(AITER|FUSED|OPTI|PRESH)\w+)=(?!0$|off$|$)").match
    if _amd_set := ", ".join(filter(_amd_asks, map("=".join, sorted(_amd_os.environ.items())))):
        if _amd_os.environ.get("AMD_OPS_STRICT") == "1": raise ImportError(f"{__name__}: no amd_ops for {_amd_set}")
        _amd_warnings.warn(f"amd_ops cannot be imported: stock code runs in spite of {_amd_set}", RuntimeWarning)
__amd_overlay__ = "sha256:BASE"
"""


def header(stock: bytes, newline: str = "\n") -> tuple[bytes, bytes]:
    base = sha256(stock).hexdigest()
    marker = (
        f"# amd-overlay/1 base=sha256:{base} generator={GENERATOR} recipes={DIGEST} "
        "(transformers source modified by transformers-rocm-overlay)"
    )
    block = BLOCK.replace("BASE", base)
    return (marker + newline).encode(), block.replace("\n", newline).encode()


def test_the_marker_is_line_one_and_the_import_block_follows_the_imports() -> None:
    stock = b"# coding=utf-8\n" + source(LLAMA)
    result = generate(stock, "x.py", one(rms_norm.RECIPE))
    marker, block = header(stock)
    assert result.overlay.startswith(marker + b"# coding=utf-8\nimport torch\nfrom torch import nn\n" + block + b"\n\n")
    assert [(edit.recipe, edit.qualname) for edit in result.edits] == [
        ("marker", "<module>"),
        ("import", "<module>"),
        ("rms_norm", "XRMSNorm.forward"),
    ]


def test_crlf_and_bom_are_kept() -> None:
    stock = b"\xef\xbb\xbf" + source(LLAMA).replace(b"\n", b"\r\n")
    result = generate(stock, "x.py", one(rms_norm.RECIPE))
    marker, block = header(stock, "\r\n")
    assert result.overlay.startswith(b"\xef\xbb\xbf" + marker + b"import torch\r\nfrom torch import nn\r\n" + block)
    assert result.overlay.count(b"\n") == result.overlay.count(b"\r\n")
    compile(result.overlay, "x.py", "exec")


@pytest.mark.parametrize("place", [b"import torch\n", b"        input_dtype = hidden_states.dtype\n"])
def test_mixed_line_ends_stay_where_they_are(place: bytes) -> None:
    stock = source(LLAMA)
    assert stock.count(place) == 1
    stock = stock.replace(place, place.replace(b"\n", b"\r\n"))
    result = generate(stock, "x.py", one(rms_norm.RECIPE))
    assert result.changed
    assert unsplice(result.overlay, result.edits) == stock
    assert place.replace(b"\n", b"\r\n") in result.overlay
    compile(result.overlay, "x.py", "exec")


@pytest.mark.parametrize(
    "lead",
    [
        '"""A docstring."""\nfrom __future__ import annotations\nimport torch\n',
        "from typing import (\n    Callable,\n)\nimport torch  # last\n",
        "import torch; import os\n",
    ],
)
def test_the_import_block_goes_below_every_leading_import(lead: str) -> None:
    stock = (lead + "flag = True\nimport late\n" + LLAMA).encode()
    result = generate(stock, "x.py", one(rms_norm.RECIPE))
    assert (lead.encode() + header(stock)[1] + b"flag = True\n") in result.overlay


def test_a_module_that_ends_in_its_imports_without_a_newline_is_still_fine() -> None:
    recipe = replace(rms_norm.RECIPE, match=lambda source, function: [])
    assert generate(b"import torch", "x.py", one(recipe)).overlay == b"import torch"


def test_a_module_without_imports_is_an_error() -> None:
    with pytest.raises(SourceError, match="does not begin with imports"):
        generate(LLAMA.encode(), "x.py", one(rms_norm.RECIPE))


def test_an_overlay_is_already_there_and_stays_as_it_is() -> None:
    stock = source(LLAMA)
    first = generate(stock, "x.py", all_recipes())
    again = generate(first.overlay, "x.py", all_recipes())
    assert again.overlay == first.overlay
    assert again.edits == ()
    assert {outcome.status for outcome in again.outcomes} == {Status.ALREADY}
    assert f"overlay of sha256:{first.stock_sha256}" in str(again.outcomes[0].reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"# amd-overlay/2 base=md5:1\nimport torch\n", "marker that this version cannot read"),
        (b"import torch\nimport amd_ops as _amd\n", r"x\.py:2: the file has no overlay marker but already uses a name"),
        (b'import torch\n__amd_overlay__ = "x"\n', "somebody edited it"),
    ],
)
def test_somebody_elses_edit_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        generate(text + LLAMA.encode(), "x.py", all_recipes())


def test_padding_changes_the_length_and_nothing_else() -> None:
    stock = source(LLAMA)
    plain, padded = (generate(stock, "x.py", all_recipes(), padding=n) for n in (0, 3))
    assert len(padded.overlay) == len(plain.overlay) + 3
    assert padded.overlay.split(b"\n")[1:] == plain.overlay.split(b"\n")[1:]
    assert generate(padded.overlay, "x.py", all_recipes()).outcomes[0].status is Status.ALREADY


def test_every_recipe_is_accounted_for_exactly_once() -> None:
    result = generate(source(LLAMA), "x.py", all_recipes())
    assert [outcome.recipe for outcome in result.outcomes] == [one.name for one in all_recipes().recipes]
    statuses = {outcome.recipe: outcome.status for outcome in result.outcomes}
    assert len(statuses) == len(result.outcomes) == len(all_recipes().recipes)
    assert {name for name, status in statuses.items() if status is Status.APPLIED} == {"rms_norm", "forms"}
    assert set(statuses.values()) == {Status.APPLIED, Status.NOT_APPLICABLE}


def test_a_conflict_is_reported_and_none_of_its_edits_is_made() -> None:
    copy = replace(rms_norm.RECIPE, name="copy")
    result = generate(source(LLAMA), "x.py", RecipeSet((rms_norm.RECIPE, copy), DIGEST))
    assert [outcome.status for outcome in result.outcomes] == [Status.APPLIED, Status.CONFLICT]
    reason = "rms_norm (XRMSNorm.forward) and copy (XRMSNorm.forward) both edit line 15"
    assert result.outcomes[1].reason == reason
    assert result.overlay == generate(source(LLAMA), "x.py", one(rms_norm.RECIPE)).overlay
    with pytest.raises(EditConflict, match=r"^x\.py: recipe copy: "):
        result.require_clean()


def test_a_must_fire_recipe_that_declined_says_where_and_why() -> None:
    gated = LLAMA.replace("def forward(self, hidden_states):", "def forward(self, hidden_states, gate=None):")
    with pytest.raises(MustFireError) as caught:
        generate(source(gated), "x.py", one(replace(rms_norm.RECIPE, must_fire=True)))
    assert str(caught.value).splitlines() == [
        "x.py:15: recipe rms_norm must find a site here and found none",
        f"  expected: {rms_norm.RECIPE.description}",
        "  found: XRMSNorm.forward: forward takes (self, hidden_states, gate), expected (self, hidden_states)",
    ]


def test_a_must_fire_recipe_without_candidate_names_the_nearest() -> None:
    near = "def apply_rotary_pos_embedding(q):\n    return q\n\nclass A:\n    def rope(self):\n        return 1\n"
    with pytest.raises(MustFireError, match=r"found: no candidate\n  nearest: "):
        generate(source(near), "x.py", one(replace(rope.RECIPE, must_fire=True)))


def test_a_recipe_that_writes_no_python_is_a_bug_not_an_overlay() -> None:
    broken = replace(rms_norm.RECIPE, edit=lambda source, site: [Edit(9, 9, b"def (", "rms_norm", "x")])
    with pytest.raises(InternalError, match="the edited file is not valid Python"):
        generate(source(LLAMA), "x.py", one(broken))


def test_a_byte_changed_outside_the_edits_is_a_bug_not_an_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(stock: bytes, edits: list[Edit]) -> tuple[bytes, tuple[AppliedEdit, ...]]:
        overlay, applied = splice(stock, edits)
        return overlay + b"# oops\n", applied

    monkeypatch.setattr("rocm_overlay.patchgen.engine.splice", careless)
    with pytest.raises(InternalError, match="bytes outside the recorded edits changed"):
        generate(source(LLAMA), "x.py", one(rms_norm.RECIPE))


def test_a_call_that_would_be_too_wide_is_broken_and_no_site_is_given_up() -> None:
    name = "a_very_long_attribute_name_" * 4
    wide = LLAMA.replace("self.variance_epsilon", f"self.{name}")
    result = generate(source(wide), "x.py", one(rms_norm.RECIPE))
    assert [len(one.sites) for one in result.outcomes] == [1]
    broken = f"return _amd.rms_norm(\n                hidden_states, self.weight, self.{name}\n"
    assert broken in result.overlay.decode()


@pytest.mark.parametrize("model", MODELS)
def test_null_run_is_the_identity(model: str, stock_tree: Callable[[str], Path]) -> None:
    tree = open_tree(stock_tree("4.57.6"))
    data = tree.read(tree.path_of(model))
    result = generate(data, model, NULL)
    assert (result.overlay, result.edits) == (data, ())


@pytest.mark.parametrize("model", MODELS)
def test_no_line_of_ours_passes_the_column_limit(model: str, stock_tree: Callable[[str], Path]) -> None:
    tree = open_tree(stock_tree("4.57.6"))
    result = generate(tree.read(tree.path_of(model)), model, all_recipes())
    stock = set(result.stock.decode().splitlines())
    # The import block is the same everywhere, and one of its lines is as long as ruff lets it be.
    block = next(edit.overlay for edit in result.edits if edit.recipe == "import")
    assert max(map(len, result.overlay[slice(*block)].decode().splitlines())) <= 120
    text = result.overlay[: block[0]] + result.overlay[block[1] :]
    ours = [line for line in text.decode().splitlines()[1:] if line not in stock]
    assert ours
    assert max(map(len, ours)) <= MAX_COLUMNS


def test_the_hint_of_a_recipe_never_hides_a_site(stock_tree: Callable[[str], Path]) -> None:
    """Without hints the same recipes find the same sites."""
    recipes = all_recipes()
    blind = replace(recipes, recipes=tuple(replace(one, hint=re.compile("")) for one in recipes.recipes))
    tree = open_tree(stock_tree("4.57.6"))
    for model in ("qwen3", "phi3", "mixtral", "bert", "opt"):
        data = tree.read(tree.path_of(model))
        assert generate(data, model, recipes) == generate(data, model, blind)


def test_recipes_have_different_names() -> None:
    names = [one.name for one in all_recipes().recipes]
    assert len(set(names)) == len(names) >= 10
