"""One before/after test per feature of a patch config."""

from __future__ import annotations

from pathlib import Path

from rocm_overlay.patchgen.recipe import Status

from tests.patchgen.config_support import STOCK, generate, overlay_of

NORM = """\
class ToyNorm:
    def __init__(self, size, eps=1e-6):
        self.size = size
        self.eps = eps

    def forward(self, x):
        # stock norm
        return x + self.eps
"""


def test_replace_class_takes_the_stock_name_everywhere(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.replace_class("ToyNorm", description="fused")
        class FusedNorm:  # a comment
            def __init__(self, size, eps=1e-6):
                super(FusedNorm, self).__init__()
                self.twin: "FusedNorm" = None

            def forward(self, x):
                return x  # FusedNorm stays in comments
        """,
    )
    expected = """\
class ToyNorm:  # a comment
    def __init__(self, size, eps=1e-6):
        super(ToyNorm, self).__init__()
        self.twin: "ToyNorm" = None

    def forward(self, x):
        return x  # FusedNorm stays in comments
"""
    assert after == STOCK.replace(NORM, expected)


def test_replace_function_goes_with_its_copied_from_comment(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        '''
        # Our comment.
        @config.replace_function(
            "rotate", description="fused (unbalanced"
        )
        # Between.
        def fast_rotate(
            q,
            k,  # the key
            position_ids=None,
            unsqueeze_dim=1,
        ):
            """Fast."""
            text = """
        kept column
        """
            return k, q
            # trailing
        ''',
    )
    before = STOCK[STOCK.index("# Copied from") : STOCK.index("class ToyBase")]
    expected = '''\
# Our comment.
# Between.
def rotate(
    q,
    k,  # the key
    position_ids=None,
    unsqueeze_dim=1,
):
    """Fast."""
    text = """
kept column
"""
    return k, q
    # trailing


'''
    assert after == STOCK.replace(before, expected)


def test_override_method_keeps_stock_decorators_and_the_columns_of_strings(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        '''
        @config.override_method("ToyAttention.forward", description="own")
        def own_forward(self, x, mask: Optional[int] = None):
            """Docs

            more."""
            # a comment
            text = """
        kept column
        """

            return x, text
        ''',
    )
    before = STOCK[STOCK.index("    def forward(self, x, mask") : STOCK.index("\n\nclass ToyHead")]
    expected = '''\
    def forward(self, x, mask: Optional[int] = None):
        """Docs

        more."""
        # a comment
        text = """
kept column
"""

        return x, text
'''
    assert after == STOCK.replace(before, expected)


def test_override_method_with_decorators_of_its_own_brings_all_of_them(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.override_method("ToyAttention.double")
        @staticmethod
        def double(x):
            return x + x

        @config.override_method("ToyAttention.width")
        def width(self):
            return 2

        @config.override_method("ToyAttention.width")
        @width.setter
        def width(self, value):
            self._width = -value
        """,
    )
    expected = STOCK.replace("return 2 * x", "return x + x").replace(
        "        return 1\n\n    @width", "        return 2\n\n    @width"
    )
    assert after == expected.replace("self._width = value", "self._width = -value")


def test_override_method_can_add_one(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.override_method("ToyNorm.extra", add=True)
        def extra(self):
            return 1

        @config.override_method("ToyAttention.shared", add=True)
        def shared(self):
            return 2
        """,
    )
    expected = STOCK.replace(NORM, NORM + "\n    def extra(self):\n        return 1\n")
    end = "        return late(x)  # the end\n"
    assert after == expected.replace(end, end + "\n    def shared(self):\n        return 2\n")


def test_modify_init_wraps_the_stock_init(tmp_path: Path) -> None:
    text = '''
    @config.modify_init("ToyAttention", description="more")
    def modified_init(original_init, self, config, layer_idx: int = 0):
        """Doc."""
        # first
        original_init(self, config, layer_idx)
        self.custom = 7
    '''
    after = overlay_of(tmp_path, text)
    head = "    def __init__(self, config: ToyConfig, layer_idx: int = 0):\n"
    tail = "        self.layer_idx = layer_idx\n"
    expected = STOCK.replace(head, head.replace("__init__", "__original_init")).replace(
        tail,
        tail
        + '''
    def __init__(self, config, layer_idx: int = 0):
        """Doc."""
        original_init = __class__.__original_init
        # first
        original_init(self, config, layer_idx)
        self.custom = 7
''',
    )
    assert after == expected


def test_modify_init_works_in_a_class_and_in_its_subclass(tmp_path: Path) -> None:
    stock = """\
class A:
    def __init__(self, x):
        self.x = x


class B(A):
    def __init__(self, x):
        super().__init__(x)
        self.y = x
"""
    made = generate(
        tmp_path,
        """
        @config.modify_init("A")
        def a_init(original_init, self, x):
            original_init(self, x)
            self.a = 1

        @config.modify_init("B")
        def b_init(stock_init, self, x):
            stock_init(self, x + 1)
            self.b = 2
        """,
        stock=stock,
    )
    names: dict[str, type] = {}
    exec(made.text, names)
    assert vars(names["B"](1)) == {"x": 2, "y": 2, "a": 1, "b": 2}


def test_imports_blocks_and_helpers_follow_the_import_section(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.add_helper
        def helper(x):
            # comment
            return dist, all_gather, gather, np, FLAG

        config.add_post_import_block("FLAG = dist.is_available()\\n")
        config.add_import("torch.distributed", names=["all_gather", "all_reduce as gather"])
        config.add_import("numpy", alias="np")
        config.add_import("torch.distributed", alias="dist")
        config.add_import("math")
        """,
    )
    anchor = "    from ...cache_utils import Cache\n"
    expected = STOCK.replace(
        anchor,
        anchor
        + """\
from torch.distributed import all_gather, all_reduce as gather
import numpy as np
import torch.distributed as dist

FLAG = dist.is_available()


def helper(x):
    # comment
    return dist, all_gather, gather, np, FLAG
""",
    )
    assert after == expected


def test_a_helper_after_a_definition(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.add_helper(after="ToyHead")
        class Second(ToyHead):
            pass
        """,
    )
    assert after == STOCK.replace(
        "class ToyHead:\n    pass\n", "class ToyHead:\n    pass\n\n\nclass Second(ToyHead):\n    pass\n"
    )


def test_an_import_that_is_there_ends_as_already_there(tmp_path: Path) -> None:
    made = generate(tmp_path, 'config.add_import("math")\nconfig.exclude_from_output("ToyHead")\n')
    assert [one.status for one in made.outcomes] == [Status.ALREADY, Status.APPLIED]
    assert "import_added" not in made.text


def test_drop_import_and_import_from_elsewhere(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        config.drop_import("can_return_tuple", "math")
        config.add_import("my_math", names=["can_return_tuple"])
        config.add_import("my_math", alias="math")
        """,
    )
    expected = STOCK.replace("    can_return_tuple,\n", "").replace("import math\n", "")
    anchor = "    from ...cache_utils import Cache\n"
    assert after == expected.replace(anchor, anchor + "from my_math import can_return_tuple\nimport my_math as math\n")


def test_exclude_from_output_and_from_all(tmp_path: Path) -> None:
    made = generate(tmp_path, 'config.exclude_from_output("ToyHead", "build")\n')
    assert "ToyHead" not in made.text.split("# =====", 4)[-1]
    assert '__all__ = ["ToyAttention", "ToyNorm"]\n__all__ += []\n' in made.text
    assert "def build" not in made.text


def test_name_map_shares_code_between_architectures(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.override_method("ToyBase.forward", name_map={"Qwen": "Toy", "qwen": "toy"})
        def forward(self, x):
            # Qwen in a comment
            qwen = f"Qwen {QwenNorm(1)}"
            return QwenNorm, self.qwen_state, "QwenNorm", qwen
        """,
    )
    before = "class ToyBase:\n    def forward(self, x):\n        return x\n"
    expected = """\
class ToyBase:
    def forward(self, x):
        # Qwen in a comment
        toy = f"Qwen {ToyNorm(1)}"
        return ToyNorm, self.toy_state, "QwenNorm", toy
"""
    assert after == STOCK.replace(before, expected)


def test_external_reference_is_an_import_at_the_place_of_the_class(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        config.patches.append(
            create_patch_from_external(
                target="ToyNorm", replacement_module="lib.norms", replacement_name="FusedNorm"
            )
        )
        """,
    )
    assert after == STOCK.replace(NORM, "from lib.norms import FusedNorm as ToyNorm\n")


def test_other_code_of_the_config_follows_a_renamed_replacement(tmp_path: Path) -> None:
    after = overlay_of(
        tmp_path,
        """
        @config.replace_class("ToyHead")
        class NewHead:
            x = 1

        @config.replace_function("build")
        def new_build(config):
            return NewHead, NewHead.x
        """,
    )
    assert "def build(config):\n    return ToyHead, ToyHead.x\n" in after
    assert "NewHead" not in after


def test_optional_patches_end_as_not_applicable(tmp_path: Path) -> None:
    made = generate(
        tmp_path,
        """
        config.drop_import("absent", optional=True)
        config.exclude_from_output("ToyHead")

        @config.override_method("ToyNorm.absent", optional=True)
        def absent(self):
            return 1
        """,
    )
    assert [one.status.value for one in made.outcomes] == ["not applicable", "applied", "not applicable"]
    assert "absent" not in made.text


def test_called_instead_of_decorating(tmp_path: Path) -> None:
    direct = """
    def own(self, x):
        return -x

    config.override_method("ToyBase.forward", replacement=own)
    """
    decorated = """
    @config.override_method("ToyBase.forward")
    def own(self, x):
        return -x
    """
    assert overlay_of(tmp_path, direct) == overlay_of(tmp_path, decorated)


def test_standalone_output(tmp_path: Path) -> None:
    made = generate(
        tmp_path,
        """
        config.add_import("math")

        @config.override_method("ToyAttention.forward", description="first\\nreason")
        def forward(self, x, mask=None):
            return x

        @config.modify_init("ToyAttention", description="second reason")
        def init(original_init, self, config, layer_idx=0):
            original_init(self, config, layer_idx)

        @config.replace_function("rotate", description="fused")
        def rotate(q, k, position_ids=None, unsqueeze_dim=1):
            return k, q
        """,
    )
    text = made.text
    assert text.startswith("# " + "=" * 78 + "\n#  AUTO-GENERATED FILE - DO NOT EDIT DIRECTLY\n")
    for line in (
        "#  Source: transformers.models.toy.modeling_toy\n#  Based on: transformers==4.57.6 (sha256:",
        "#  Patches applied:\n#    - method_override: ToyAttention.forward\n#    - init_modification: ToyAttention\n"
        "#    - function_replacement: rotate\n# ====",
        "# [MODIFIED CLASS] ToyAttention\n# Methods patched: __init__, forward\n"
        "# Reason: first reason\n# Reason: second reason\n# " + "=" * 70 + "\nclass ToyAttention(ToyBase):",
        "# [PATCHED FUNCTION] rotate\n# Reason: fused\n# " + "=" * 70 + "\ndef rotate(q, k",
        "from transformers.utils import (\n    auto_docstring,  # documents\n    can_return_tuple,\n    logging,\n)\n",
        "from transformers.models.toy.configuration_toy import ToyConfig\n",
        "if TYPE_CHECKING:\n    from transformers.cache_utils import Cache\n",
        "try:\n    import fast_toy\n\n    HAS_FAST = True\nexcept ImportError:\n    HAS_FAST = False\n",
    ):
        assert line in text, text
    assert '\n# Copyright 2025 The Toy authors. All rights reserved.\n"""A toy model."""\n' in text
    assert "from ." not in text


def test_lines_of_the_account_are_those_of_the_output(tmp_path: Path) -> None:
    made = generate(
        tmp_path,
        """
        @config.replace_function("rotate")
        def rotate(q, k, position_ids=None, unsqueeze_dim=1):
            return k, q

        @config.override_method("ToyBase.shared")
        def shared(self):
            return 5
        """,
    )
    lines = made.text.splitlines()
    (first, last), (begin, end) = (one.lines for one in made.outcomes)  # type: ignore[misc]
    assert lines[first - 1].startswith("# ====")
    assert lines[last - 1] == "    return k, q"
    assert lines[begin - 1 : end] == ["    def shared(self):", "        return 5"]
