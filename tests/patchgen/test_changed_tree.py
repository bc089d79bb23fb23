"""A tree that somebody else has changed: a gemma whose norms take a condition, as robot policies ship it.

The recipes act on the text that is there or say why not; the text that is there is what the overlay names as its base.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from rocm_overlay.patchgen.edits import unsplice
from rocm_overlay.patchgen.engine import Result, generate
from rocm_overlay.patchgen.recipe import Status
from rocm_overlay.patchgen.trees import open_tree

from tests.patchgen.support import all_recipes
from tests.patchgen.test_command import call

PATH = "models/gemma/modeling_gemma.py"

# What the change replaces in the stock file: (old, new). The norm may take a condition and then gives a gate as well.
CHANGES = (
    (
        "    def forward(self, x):\n        output = self._norm(x.float())\n",
        "    def forward(self, x, cond=None):\n        output = self._norm(x.float())\n        if cond is not None:\n"
        "            scale, shift, gate = self.modulation(cond)[:, None].chunk(3, dim=-1)\n"
        "            return (output * (1 + scale) + shift).type_as(x), gate\n",
    ),
    ("        return output.type_as(x)\n", "        return output.type_as(x), None\n"),
    (
        "        hidden_states = self.input_layernorm(hidden_states)\n",
        "        hidden_states, gate = self.input_layernorm(hidden_states, kwargs.pop('adarms_cond', None))\n",
    ),
)


@pytest.fixture(scope="module")
def changed(stock_tree: Callable[[str], Path]) -> bytes:
    """The stand-in, made from the stock file of 4.53.2."""
    text = (stock_tree("4.53.2") / "transformers" / PATH).read_text(encoding="utf-8")
    for old, new in CHANGES:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text.encode("utf-8")


@pytest.fixture(scope="module")
def result(changed: bytes) -> Result:
    return generate(changed, PATH, all_recipes())


def test_the_changed_norm_is_declined_with_its_reason(result: Result) -> None:
    norm = next(one for one in result.outcomes if one.recipe == "rms_norm")
    assert norm.status is Status.NOT_APPLICABLE
    assert [(one.qualname, one.reason) for one in norm.declined] == [
        ("GemmaRMSNorm.forward", "the body is none of the four forms")
    ]
    assert "rms_norm" not in {edit.recipe for edit in result.edits}


def test_everything_else_is_edited_as_in_the_stock_file(result: Result, stock_tree: Callable[[str], Path]) -> None:
    stock = generate((stock_tree("4.53.2") / "transformers" / PATH).read_bytes(), PATH, all_recipes())
    mine, theirs = ({one.recipe: len(one.sites) for one in made.outcomes} for made in (result, stock))
    assert theirs.pop("rms_norm") == 1
    assert mine.pop("rms_norm") == 0
    # A recipe that joins the norm to its neighbours, names its form, or knows every statement has less to do here.
    joined = {name for name in theirs if "norm" in name or name in ("forms", "plan")}
    assert all(mine[name] <= theirs[name] for name in joined)
    assert {name: mine[name] for name in mine if name not in joined} == {
        name: theirs[name] for name in theirs if name not in joined
    }


def test_the_base_is_the_changed_text_and_comes_back_exactly(result: Result, changed: bytes) -> None:
    digest = sha256(changed).hexdigest()
    assert result.overlay.startswith(f"# amd-overlay/1 base=sha256:{digest} ".encode())
    assert f'__amd_overlay__ = "sha256:{digest}"'.encode() in result.overlay
    assert unsplice(result.overlay, result.edits) == changed


def test_gen_all_reads_such_a_tree(changed: bytes, tmp_path: Path) -> None:
    package = tmp_path / "site-packages/transformers"
    file = package / PATH
    file.parent.mkdir(parents=True)
    file.write_bytes(changed)
    (package / "__init__.py").write_text('__version__ = "4.53.2"\n')
    code, _, err = call(all_files=True, source=package, output=tmp_path / "out")
    assert code == 1, "the other models and the shape of the norm are gone"
    assert "rms_norm GemmaRMSNorm.forward" in err
    assert (tmp_path / "out" / PATH).read_bytes() == generate(changed, PATH, all_recipes()).overlay
    assert open_tree(package).version == "4.53.2"
    assert file.read_bytes() == changed
