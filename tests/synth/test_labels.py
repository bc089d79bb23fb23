"""What is seen of a program while it runs: its operators place by place, whatever its text looks like."""

from __future__ import annotations

import pytest
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sandbox import labels, program, validate

LISTS = catalogue.load()
KNOWN = validate.lists({"lists": LISTS.described()})
HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"


def seen(init: str, body: str, helpers: str = "", more: str = "") -> list[str]:
    """The operators of a program with this __init__, this forward, and these compound operators."""
    code = "\n\n\n".join(one.code for one in LISTS.with_helpers(helpers.split()))
    lines = [f"        {line}" for line in ["super().__init__()", *init.splitlines()]]
    source = f"{HEAD}{code}\n\n\n{more}class SynthModel_X(nn.Module):\n    def __init__(self):\n" + "\n".join(lines)
    source += "\n\n    def forward(self, x):\n" + "\n".join(f"        {line}" for line in body.splitlines())
    source += (
        "\n\n\ndef get_inputs():\n    return [torch.randn(2, 4, 16)]\n\n\ndef get_init_inputs():\n    return [], {}\n"
    )
    found: list[str] = labels.observe(program.build("SynthModel_X", source), KNOWN)[1]["operators"]
    return found


BLOCK = """class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x):
        return F.silu(self.a(x))


"""


LOOP = "for b in self.b:\n    x = b(x)\nreturn x"


@pytest.mark.parametrize(
    ("init", "body", "helpers", "operators"),
    [
        ("self.a = nn.Linear(16, 16)", "return self.a(self.a(x))", "", ["nn.Linear", "nn.Linear"]),
        ("self.n = nn.Sequential(nn.ReLU(), nn.ReLU())", "return self.n(x)", "", ["nn.ReLU", "nn.ReLU"]),
        ("self.b = nn.ModuleList([Block(), Block()])", LOOP, "", ["nn.Linear", "F.silu"]),
        ("self.a = nn.Linear(16, 16)", "y = self.a(x)\nreturn x * x", "", ["torch.mul"]),
        ("self.a = nn.Linear(16, 16)", "return torch.sin(x)", "", ["torch.sin"]),
        ("self.t = nn.TransformerEncoderLayer(16, 2)", "return self.t(x)", "", ["nn.TransformerEncoderLayer"]),
        ("self.d = nn.Dropout(0.5)", "return self.d(x).add_(1)", "", ["nn.Dropout", "torch.add"]),
        ("", "return softcap(x, 30.0)", "softcap", ["softcap"]),
        ("self.g = GQAttention(16, 4, 2, 8)", "return self.g(x)", "GQAttention", ["GQAttention"]),
        (
            "self.p = ParallelBlock(16)\nself.g = GQAttention(16, 4, 1, 8)",
            "return self.g(self.p(x))",
            "ParallelBlock GQAttention",
            ["ParallelBlock", "GQAttention"],
        ),
        ("self.p = ParallelBlock(16)", "return self.p(x)", "ParallelBlock", ["ParallelBlock"]),
    ],
)  # fmt: skip
def test_places_are_told_apart(init: str, body: str, helpers: str, operators: list[str]) -> None:
    assert seen(init, body, helpers, BLOCK) == operators


def test_every_operator_of_the_lists_is_seen_where_it_is_written() -> None:
    """Each form of each operator, alone in a program."""
    import random

    from rocm_overlay.synth.sampler.compose import compose
    from rocm_overlay.synth.sampler.plan import Plan

    lacking = []
    for kind in ("core", "compound", "supporting"):
        for one in LISTS.operators[kind]:
            plan = Plan(
                random.Random(one.name).randint(0, 999), **{"core": (), "compound": (), "supporting": (), kind: (one,)}
            )
            written = compose(plan, LISTS)
            found = labels.observe(program.build(written.name, written.source), KNOWN)[1]
            if one.name not in found["operators"]:
                lacking.append((one.name, found["operators"]))
    assert lacking == []
