"""KernelBench level 2 in words of our own: which operators each of its hundred problems puts together, no line of it.

A recipe is a list of words. ``+w`` and ``*w`` stand for arithmetic with a weight or a number (``-`` and ``/`` are the
same here), ``&a`` keeps a value under a name, ``+a`` ``-a`` ``*a`` use it again. The filter reads hashed signatures:
`python -m rocm_overlay.synth.level2` writes each recipe as a program, traces it, and prints the digests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIGNATURES = Path(__file__).resolve().parent / "data" / "level2.json"
SCHEMA = "amd-overlay.synth.level2/1"
_SHIPPED = """
conv2d relu +w|convT2d +w clamp *w clamp *w|convT3d +w ln avgpool gelu|conv2d mish mish|convT2d +w tanh
conv3d softmax maxpool maxpool|conv3d relu leaky gelu sigmoid +w|conv3d *w maxpool gap +w sum|linear +w *w relu
convT2d maxpool hardtanh mean tanh|convT2d bn tanh maxpool gn|linear *w leaky|convT3d mean +w softmax tanh *w
matmul *w sum *w|convT3d bn &a mean a-|convT2d mish +w hardtanh *w|conv2d in *w|linear sum max1 mean lse lse
convT2d gelu gn|convT3d &a +w +a *a +a|conv2d +w *w sigmoid gn|linear *w &a +a clamp lse &b mish *b|conv3d gn mean
conv3d min1 softmax|conv2d min1 tanh tanh|convT3d +y &a hardswish *a|conv3d hardswish gn mean|linear in1 +y *y
linear mish mish|linear gn hardtanh|conv2d minw +w *w|conv2d *w min1|linear *w bn|convT3d ln gelu *w
conv2d +w hardswish maxpool mish|convT2d min1 sum gelu +w|linear &a sigmoid *a +w gn
avgpool convT3d clamp softmax *w|linear *w bn|linear &a *w +a|linear bn gelu relu|convT2d mean +w lse sum *w
conv3d maxpool lse relu|convT2d *w mean mean|linear sigmoid linear lse|conv2d +w tanh +w avgpool|conv3d mish tanh
conv3d *w tanh *w sigmoid|convT3d softmax sigmoid|convT3d *w avgpool +w *w|&a linear +w mean lse gelu +a
conv2d &a softplus tanh *a bn|linear *w hardtanh gelu|conv2d *w leaky gelu|linear maxpool1 sum *w
linear sigmoid sum|conv2d relu &a +w *w clamp *a|convT3d lse &a +w sigmoid *a *w +w clamp|linear &a sigmoid *a *w
convT3d &a sigmoid *a gn hardswish|convT3d relu gn|linear gn leaky &a +a|linear relu *w
linear lse leaky leaky gelu gelu|conv2d avgpool sigmoid sum|linear dropout softmax|conv2d gelu gap|linear minw +w
conv2d hardswish relu|linear &a sigmoid *w +a|conv2d *w leaky|convT3d bn avgpool avgpool|conv2d bn *w
convT3d leaky *w leaky maxpool|linear gn min1 +w|linear +w relu|convT3d *w bn gap|convT3d maxpool maxpool sum
conv3d *w in clamp *w max1|linear max1 &a mean a- gelu|linear &a sigmoid *a *w clamp tanh clamp
conv2d tanh *w +w maxpool|conv3d gn minw clamp dropout|linear bn *w softmax|conv2d gn *w maxpool clamp
linear *w gelu|conv2d +w +w mish|linear gn &a sigmoid *a *w &b sigmoid *b
convT3d maxpool softmax +w &a sigmoid *a max1|conv3d leaky +w clamp gelu|convT2d softmax +w *w sigmoid
conv2d &a gn tanh hardswish +a lse|convT2d +w minw gelu *w|linear +w hardtanh mish gn
linear +w &a sigmoid *a tanh gelu hardtanh|convT3d *w maxpool gap clamp|linear bn +w *w &a sigmoid *a
linear avgpool1 gelu *w max1|linear gelu softmax|convT3d clamp *w
"""
RECIPES = tuple(" ".join(text.split()) for text in _SHIPPED.replace("\n", "|").strip("|").split("|"))
_HEAVY = {"conv2d": 2, "convT2d": 2, "conv3d": 3, "convT3d": 3, "avgpool": 3, "linear": 0, "matmul": 0, "&a": 0}
_PLAIN = {
    "relu": "torch.relu(x)", "leaky": "F.leaky_relu(x, 0.1)", "gelu": "F.gelu(x)", "tanh": "torch.tanh(x)",
    "sigmoid": "torch.sigmoid(x)", "mish": "F.mish(x)", "hardswish": "F.hardswish(x)", "softplus": "F.softplus(x)",
    "hardtanh": "F.hardtanh(x)", "clamp": "torch.clamp(x, -1.0, 1.0)", "softmax": "torch.softmax(x, dim=1)",
    "mean": "x.mean(dim=1, keepdim=True)", "sum": "x.sum(dim=1, keepdim=True)",
    "lse": "torch.logsumexp(x, dim=1, keepdim=True)", "max1": "torch.max(x, dim=1, keepdim=True)[0]",
    "min1": "torch.min(x, dim=1, keepdim=True)[0]", "minw": "torch.minimum(x, torch.tensor(0.5))",
    "+w": "x + 0.5", "*w": "x * 2.0", "dropout": "x", "maxpool1": "F.max_pool1d(x.unsqueeze(1), 2).squeeze(1)",
    "avgpool1": "F.avg_pool1d(x.unsqueeze(1), 2).squeeze(1)", "+y": "x + y", "*y": "x * y", "a-": "a - x",
}  # fmt: skip
_BY_RANK = {
    "maxpool": "F.max_pool{n}d(x, 2)", "avgpool": "F.avg_pool{n}d(x, 2)", "gap": "F.adaptive_avg_pool{n}d(x, 1)",
}  # fmt: skip
_MODULES = {
    "conv2d": "nn.Conv2d(8, 8, 3, padding=1)", "conv3d": "nn.Conv3d(8, 8, 3, padding=1)",
    "convT2d": "nn.ConvTranspose2d(8, 8, 3, padding=1)", "convT3d": "nn.ConvTranspose3d(8, 8, 3, padding=1)",
    "linear": "nn.Linear({w}, {w})", "bn": "nn.BatchNorm{k}d(8)", "gn": "nn.GroupNorm(2, 8)", "ln": "nn.LayerNorm({w})",
    "in": "nn.InstanceNorm{n}d(8)",
}  # fmt: skip


def program(recipe: str, name: str = "Model") -> str:
    """Write a recipe as a module in the form of a KernelBench file.

    Args:
        recipe: words, as above; the first that is heavy decides the rank of the input.
        name: of the class.
    """
    words = recipe.split()
    rank = next((_HEAVY[word] for word in words if _HEAVY.get(word)), 0)
    width = 16 if rank else 8
    spell = {"n": rank, "k": rank or 1, "w": width}
    inits, lines = [], []
    for number, word in enumerate(words):
        if word in _MODULES:
            inits.append(f"        self.m{number} = {_MODULES[word].format(**spell)}")
            text = f"self.m{number}(x)"
        elif word == "in1":
            inits.append(f"        self.m{number} = nn.InstanceNorm2d(1)")
            text = f"self.m{number}(x.unsqueeze(1).unsqueeze(1)).squeeze(1).squeeze(1)"
        elif word == "matmul":
            inits.append(f"        self.m{number} = nn.Parameter(torch.rand({width}, {width}))")
            text = f"torch.matmul(x, self.m{number}.T)"
        elif word[0] == "&":
            lines.append(f"        {word[1:]} = x")
            continue
        else:
            arithmetic = f"x {word[0]} {word[1:]}"
            text = _PLAIN.get(word) or _BY_RANK.get(word, arithmetic).format(**spell)
        lines.append(f"        x = {text}")
    shape = (4, 8, *(16 for _ in range(rank)))
    second = "y" if any(word.endswith("y") for word in words) else ""
    tensor = f"torch.rand{shape}"
    return (
        "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
        f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        + "\n".join(inits)
        + f"\n\n    def forward(self, x{', y' if second else ''}):\n"
        + "\n".join(lines)
        + f"\n        return x\n\n\ndef get_inputs():\n    return [{tensor}{', ' + tensor if second else ''}]\n\n\n"
        "def get_init_inputs():\n    return []\n"
    )


def signatures() -> dict[str, Any]:
    """Trace every recipe and return the content of the file of signatures."""
    from .sandbox.reference import canonical_of

    rows = []
    for number, recipe in enumerate(RECIPES, start=1):
        found = canonical_of("Model", program(recipe), None)
        rows.append({"problem": number, "digest": found["digest"], "features": found["features"]})
    return {"schema": SCHEMA, "problems": rows}


def text(value: dict[str, Any]) -> str:
    """Return the file's text: a line per problem."""
    rows = ",\n".join(json.dumps(row, sort_keys=True, separators=(",", ":")) for row in value["problems"])
    return f'{{"schema": "{value["schema"]}", "problems": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    sys.stdout.write(text(signatures()))
