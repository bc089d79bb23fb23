"""Text before it is run: extraction, policy, structure, duplicates."""

from __future__ import annotations

import ast

import pytest
from rocm_overlay.synth.examine import Rejected, examine, extract
from rocm_overlay.synth.sandbox import policy

from .support import program


def test_the_longest_block_is_the_program() -> None:
    assert extract("Sure!\n```python\nx = 1\n```\nand\n```\nimport torch\ny = 2\n```") == "import torch\ny = 2\n"
    assert extract("x = 1") == "x = 1\n"
    assert extract("```bash\npip install torch\n```\n```python\nimport torch\nx = 1\n```") == "import torch\nx = 1\n"
    with pytest.raises(Rejected, match="cut off"):
        extract("Sure:\n```python\nimport torch\nclass A")
    with pytest.raises(Rejected, match="no code"):
        extract("```python\n\n```")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("import os", "import os"),
        ("from os import system", "from os import system"),
        ("import torch, socket", "import socket"),
        ("from . import x", "from . import x"),
        ("import torch.utils.cpp_extension", "torch.utils.cpp_extension"),
        ("from torch import hub", "from torch import hub"),
        ("torch.load('x')", "torch.load"),
        ("torch.serialization.os.system('x')", "torch.serialization.os.system"),
        ("open('x')", "use of open"),
        ("eval('1')", "use of eval"),
        ("().__class__.__bases__[0].__subclasses__()", "attribute __bases__"),
        ("getattr(torch, '__loader__')", "text '__loader__'"),
        ("__builtins__", "use of __builtins__"),
        ("torch.ops.aten.silu(x)", "torch.ops"),
        ("torch._C._cuda_init()", "torch._C"),
    ],
)
def test_the_policy_names_what_it_forbids(text: str, named: str) -> None:
    assert any(named in found for found in policy.violations(ast.parse(text)))


def test_ordinary_programs_keep_the_policy() -> None:
    text = "import math\nfrom typing import Any\nimport torch.utils.checkpoint\nfrom torch.nn import functional as F\n"
    assert policy.violations(ast.parse(text + program())) == []


@pytest.mark.parametrize(
    ("source", "category"),
    [
        ("def f(:", "syntax"),
        ("x = '\0'", "syntax"),
        ("import os\n" + program(), "policy"),
        (program().replace("get_inputs", "inputs"), "structure"),
        (program().replace("SynthModel_", "Other"), "structure"),
        (program().replace("forward", "backward"), "structure"),
    ],
)
def test_what_is_rejected(source: str, category: str) -> None:
    with pytest.raises(Rejected) as caught:
        examine(source)
    assert caught.value.category == category


def test_renaming_does_not_make_a_new_program() -> None:
    first = examine(program("h = self.proj(x)\nreturn F.silu(h) * h"))
    other = program("value = self.layer(x)\nreturn F.silu(value) * value", "self.layer = nn.Linear(8, 8)", "Other")
    other = other.replace("        return F", "        # not the same text\n        return F")
    assert examine(other).shape == first.shape
    assert examine(program("h = self.proj(x)\nreturn F.gelu(h) * h")).shape != first.shape
    renamed = first.renamed("SynthModel_Linear_silu_mul")
    assert examine(renamed.source, renamed.name).shape == first.shape
    assert "Small" not in renamed.source
