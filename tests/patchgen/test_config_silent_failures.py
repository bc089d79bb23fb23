"""Inputs with which other generators report success and do nothing or harm: ours does it right or says why not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.patchgen import ModelingCodeGenerator
from rocm_overlay.patchgen.config.load import load
from rocm_overlay.patchgen.config.patches import ConfigErrors

from tests.patchgen.config_support import STOCK, generate, line_of, overlay_of, refuse, write_config

TRIVIAL = """
@config.override_method("ToyBase.shared")
def shared(self):
    return 2
"""


def standalone(tmp_path: Path, stock: str = STOCK) -> str:
    return generate(tmp_path, TRIVIAL, stock=stock).text


def test_conditional_blocks_and_their_names_stay_and_are_not_hoisted(tmp_path: Path) -> None:
    text = standalone(tmp_path)
    assert "if TYPE_CHECKING:\n    from transformers.cache_utils import Cache\n" in text
    assert "\nfrom transformers.cache_utils" not in text
    assert text.count("import fast_toy") == text.count("    import fast_toy") == 1
    assert "    HAS_FAST = False\n" in text


def test_function_local_imports_stay_local(tmp_path: Path) -> None:
    text = standalone(tmp_path)
    assert text.count("import late") == 1
    assert "        from transformers.models.toy.lazy_toy import late\n" in text


def test_every_module_level_statement_stays(tmp_path: Path) -> None:
    kinds = (
        "A: int = 1\nA += 1\nfor B in (1, 2):\n    A += B\nwith open(__file__) as F:\n    pass\nassert A\nprint(A)\n"
        "if A:\n\n    class Under:\n        pass\n\n\nAlias = dict[str, int]\n"
    )
    stock = STOCK.replace("__all__ = ", f"{kinds}__all__ = ")
    assert kinds in standalone(tmp_path, stock)


def test_all_and_its_additions_stay(tmp_path: Path) -> None:
    assert '__all__ = ["ToyAttention", "ToyNorm", "ToyHead"]\n__all__ += ["build"]\n' in standalone(tmp_path)


@pytest.mark.parametrize("docstring", ['"""A toy model."""\n', ""])
def test_licence_and_module_docstring_keep_their_place(tmp_path: Path, docstring: str) -> None:
    text = standalone(tmp_path, STOCK.replace('"""A toy model."""\n', docstring))
    assert "# Copyright 2025 The Toy authors. All rights reserved.\n" + docstring in text
    names: dict[str, object] = {}
    exec(compile(text[: text.index("import math")], "x", "exec"), names)
    assert names.get("__doc__") == ("A toy model." if docstring else None)


def test_modify_init_takes_effect_and_calls_the_stock_init(tmp_path: Path) -> None:
    """The generated package is imported for real: neighbours through absolute names."""
    made = generate(
        tmp_path,
        """
        @config.modify_init("ToyAttention")
        def init(original_init, self, config, layer_idx=0):
            original_init(self, config, layer_idx)
            self.custom = self.scale + 1
        """,
    )
    (tmp_path / "patched.py").write_bytes(made.output)
    code = "import patched; a = patched.ToyAttention(4); print(a.scale, a.custom, a.forward(2))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout == "2.0 3.0 20\n", done.stderr


def test_modify_init_that_never_calls_the_stock_init_is_refused(tmp_path: Path) -> None:
    text = """
    @config.modify_init("ToyAttention")
    def init(original_init, self, config, layer_idx=0):
        self.custom = 1
    """
    refuse(tmp_path, text, "original_init is never called", 'override_method("ToyAttention.__init__")')


@pytest.mark.parametrize(
    ("call", "message", "close"),
    [
        ('override_method("ToyAtention.forward")', "there is no class ToyAtention", "did you mean ToyAttention?"),
        ('replace_class("ToyNrm")', "there is no class ToyNrm", "did you mean ToyNorm?"),
        ('replace_function("rotat")', "there is no function rotat", "did you mean rotate?"),
        ('replace_function("ToyNorm")', "ToyNorm is no function", "found: a class at"),
        ('replace_class("rotate")', "rotate is no class", "found: a function at"),
        ('modify_init("ToyHead")', "ToyHead has no method __init__", "a method of ToyHead"),
    ],
)
def test_targets_that_are_not_there_are_errors_with_the_nearest_name(
    tmp_path: Path, call: str, message: str, close: str
) -> None:
    text = f"""
    @config.{call}
    def anything(original, self, x):
        return original(x)
    """
    found = refuse(tmp_path, text, message, close)
    assert f"toy_patch_gen_config.py:{line_of(text, '@config')}: " in found


def test_a_typo_in_a_method_adds_no_dead_method(tmp_path: Path) -> None:
    text = """
    @config.override_method("ToyAttention.forwrad")
    def forward(self, x):
        return x
    """
    line = STOCK[: STOCK.index("class ToyAttention")].count("\n") + 1
    close = "ToyAttention.forwrad: did you mean ToyAttention.forward?"
    refuse(tmp_path, text, close, f"modeling_toy.py:{line}")


def test_a_method_that_is_inherited_is_not_added_silently(tmp_path: Path) -> None:
    text = """
    @config.override_method("ToyAttention.shared")
    def shared(self):
        return 2
    """
    refuse(tmp_path, text, "has no method shared of its own", "ToyBase.shared, inherited", "add=True")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('override_method("ToyNorm.forward")', 'override_method("ToyNorm.forward")'),
        ('override_method("ToyNorm.forward")', 'replace_class("ToyNorm")'),
        ('modify_init("ToyNorm")', 'override_method("ToyNorm.__init__")'),
        ('replace_function("rotate")', 'replace_function("rotate")'),
    ],
)
def test_two_patches_on_one_target_conflict(tmp_path: Path, first: str, second: str) -> None:
    text = f"""
    @config.{first}
    def one(self, x): ...

    @config.{second}
    def two(self, x): ...
    """
    found = refuse(tmp_path, text, "two patches claim ")
    assert f"config.py:{line_of(text, 'def two') - 1}: two patches claim" in found
    assert f"toy_patch_gen_config.py:{line_of(text, 'def one') - 1}" in found


def test_excluding_a_patched_definition_conflicts(tmp_path: Path) -> None:
    refuse(tmp_path, TRIVIAL + 'config.exclude_from_output("ToyBase")\n', "two patches claim ToyBase.shared")


def test_a_parenthesis_in_a_description_is_only_text(tmp_path: Path) -> None:
    made = generate(tmp_path, TRIVIAL.replace('shared")', 'shared", description="second (unbalanced")'))
    assert "# Reason: second (unbalanced\n" in made.text
    assert "    def shared(self):\n        return 2\n" in made.text


def test_a_description_cannot_leave_its_comment(tmp_path: Path) -> None:
    made = generate(tmp_path, TRIVIAL.replace('shared")', 'shared", description="a\\nraise SystemExit")'))
    assert "# Reason: a raise SystemExit\n" in made.text


def test_a_config_variable_of_another_name_is_found(tmp_path: Path) -> None:
    path = write_config(tmp_path, TRIVIAL)
    path.write_text(path.read_text().replace("config = ", "gpu = ").replace("@config.", "@gpu."))
    loaded = load(path)
    assert list(loaded.configs) == ["gpu"]
    assert loaded.choose(None).patches[0].definition.text == "def shared(self):\n    return 2\n"  # type: ignore[attr-defined]


def test_property_and_staticmethod_are_neither_skipped_nor_doubled(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.override_method("ToyAttention.width")
        @property
        def width(self):
            return 3

        @config.override_method("ToyAttention.double")
        @staticmethod
        def double(x):
            return x
        """,
    )
    assert after.count("@property") == after.count("@staticmethod") == 1
    assert "    @property\n    def width(self):\n        return 3\n" in after
    assert "    @staticmethod\n    def double(x):\n        return x\n" in after


def test_a_longer_name_or_a_comment_is_not_mistaken_for_the_class(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        # class Fused is our name for it; FusedMore is another thing
        @config.replace_class("ToyHead")
        class Fused(ToyBase):
            class FusedMore:
                pass

            def forward(self, x):
                return super(Fused, self).forward(x), self.Fused, "class Fused"
        """,
    )
    expected = """\
# class Fused is our name for it; FusedMore is another thing
class ToyHead(ToyBase):
    class FusedMore:
        pass

    def forward(self, x):
        return super(ToyHead, self).forward(x), self.Fused, "class Fused"
"""
    assert expected in after


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("q, k, unsqueeze_dim=1", "parameter position_ids is lost"),
        ("q, k, unsqueeze_dim=1, position_ids=None", "parameter position_ids is unsqueeze_dim now"),
        ("q, k, position_ids=None, unsqueeze_dim=1, *, more", "parameter more has no default"),
        ("q, k, position_ids=None, *, unsqueeze_dim=1", "unsqueeze_dim can no longer be passed by position"),
        ("q, k, position_ids, unsqueeze_dim=1", "parameter position_ids has no default"),
    ],
)
def test_a_lost_parameter_is_an_error_unless_accepted(tmp_path: Path, signature: str, reason: str) -> None:
    text = f"""
    @config.replace_function("rotate")
    def rotate({signature}):
        return q, k
    """
    refuse(tmp_path, text, "calls of rotate that fit stock do not fit", reason, "signature_change=True")
    accepted = text.replace('("rotate")', '("rotate", signature_change=True)')
    assert f"def rotate({signature}):" in overlay_of(tmp_path, accepted)


UNION = """
from rocm_overlay.patchgen import PatchConfig
import torch

config = PatchConfig("transformers.models.llama.modeling_llama", "patched.py")

@config.override_method("LlamaForCausalLM.forward", signature_change=True)
def forward(self, input_ids, logits_to_keep: int | torch.Tensor = 0, **kwargs):
    return self.model(input_ids, **kwargs)
"""


@pytest.mark.parametrize(("release", "reads"), [("4.53.3", False), ("4.57.6", False), ("5.23.0", True)])
def test_an_annotation_that_stops_the_import_is_an_error(
    tmp_path: Path, wheel: Callable[[str], Path], release: str, reads: bool
) -> None:
    """A config made for transformers 5 on an older release, whose auto_docstring chokes on ``int | Tensor``."""
    path = tmp_path / "llama_patch_gen_config.py"
    path.write_text(UNION)
    generator = ModelingCodeGenerator(load(path).choose(None), source=wheel(release))
    if reads:
        assert "int | torch.Tensor" in generator.generate()
        return
    with pytest.raises(ConfigErrors) as caught:
        generator.generate(tmp_path / "out/patched.py")
    text = str(caught.value)
    assert "cannot read an annotation of LlamaForCausalLM.forward: the file would not import" in text
    assert "found: logits_to_keep: int | torch.Tensor" in text
    assert text.startswith(f"{path}:{UNION[: UNION.index('def ')].count(chr(10)) + 1}: ")
    assert not (tmp_path / "out").exists()
    path.write_text(UNION.replace("int | torch.Tensor", "Optional[int]").replace("import torch", "import typing"))
    assert "Optional[int]" in ModelingCodeGenerator(load(path).choose(None), source=wheel(release)).generate()


def test_a_name_that_nothing_defines_is_an_error_that_names_the_import(tmp_path: Path) -> None:
    text = """
    from torch.nn import functional as F
    import torch.distributed as dist

    @config.override_method("ToyBase.shared")
    def shared(self):
        return F.relu(dist), mystery
    """
    refuse(
        tmp_path,
        text,
        "nothing in the generated file defines F",
        'config.add_import("torch.nn", names=["functional as F"])',
        'config.add_import("torch.distributed", alias="dist")',
        "nothing in the generated file defines mystery",
    )


def test_the_namespace_of_an_overlay_never_shrinks(tmp_path: Path) -> None:
    text = 'config.drop_import("Callable")\n'
    refuse(tmp_path, text, "keeps every name", "lost: Callable", mode="overlay")
    assert "Callable" not in generate(tmp_path, text).text.split("Patches applied")[1].split("\n", 2)[2]
    refuse(tmp_path, 'config.exclude_from_output("ToyHead")\n', "keeps every name", mode="overlay")


def test_what_is_still_used_cannot_go(tmp_path: Path) -> None:
    refuse(tmp_path, 'config.exclude_from_output("ToyNorm")\n', "ToyNorm is gone from the output but still used")
    refuse(tmp_path, 'config.drop_import("math")\n', "math is gone from the output but still used")


def test_an_added_name_that_stock_defines_below_is_not_lost_silently(tmp_path: Path) -> None:
    refuse(tmp_path, 'config.add_import("lib", names=["ToyNorm"])\n', "so this one would be lost")
    refuse(tmp_path, 'config.add_post_import_block("ToyNorm = 1")\n', "so this one would be lost")
    refuse(tmp_path, 'config.add_import("lib", names=["math"])\n', "imports math from somewhere else")
    helper = "@config.add_helper\ndef rotate():\n    pass\n"
    refuse(tmp_path, helper, "the stock module defines rotate already")


def test_a_config_without_patches_is_an_error(tmp_path: Path) -> None:
    refuse(tmp_path, "", "has no patches")


def test_only_applied_patches_are_in_the_header(tmp_path: Path) -> None:
    same = """
    @config.override_method("ToyBase.shared")
    def shared(self):
        return 1
    """
    other = TRIVIAL.replace("ToyBase.shared", "ToyNorm.forward").replace("(self)", "(self, x)")
    made = generate(tmp_path, other + textwrap.dedent(same))
    assert [one.status.value for one in made.outcomes] == ["applied", "already there"]
    header = made.text[: made.text.index("# coding")]
    assert "method_override: ToyNorm.forward" in header
    assert "ToyBase.shared" not in header


def test_the_diff_is_as_small_as_the_patches(tmp_path: Path) -> None:
    after = overlay_of(tmp_path, TRIVIAL)
    assert after == STOCK.replace(
        "        return 1\n\n\nclass ToyAttention", "        return 2\n\n\nclass ToyAttention"
    )
