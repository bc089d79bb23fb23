"""A small package to patch, and one call from the text of a config to what it makes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from rocm_overlay.patchgen.config.generator import Generated, build
from rocm_overlay.patchgen.config.load import load
from rocm_overlay.patchgen.config.patches import ConfigError
from rocm_overlay.patchgen.config.stock import find_module

STOCK = '''\
# coding=utf-8
# Copyright 2025 The Toy authors. All rights reserved.
"""A toy model."""

import math
from typing import TYPE_CHECKING, Callable, Optional

from ...activations import ACT2FN
from ...utils import (
    auto_docstring,  # documents
    can_return_tuple,
    logging,
)
from .configuration_toy import ToyConfig

if TYPE_CHECKING:
    from ...cache_utils import Cache

try:
    import fast_toy

    HAS_FAST = True
except ImportError:
    HAS_FAST = False

logger = logging.get_logger(__name__)
LIMIT: int = 3
LIMIT += 1


class ToyNorm:
    def __init__(self, size, eps=1e-6):
        self.size = size
        self.eps = eps

    def forward(self, x):
        # stock norm
        return x + self.eps


# Copied from elsewhere.rotate
def rotate(q, k, position_ids=None, unsqueeze_dim=1):
    """Rotate."""
    return q, k


class ToyBase:
    def forward(self, x):
        return x

    def shared(self):
        return 1


class ToyAttention(ToyBase):
    """Attention."""

    def __init__(self, config: ToyConfig, layer_idx: int = 0):
        super().__init__()
        self.scale = math.sqrt(config)
        self.layer_idx = layer_idx

    @property
    def width(self):
        return 1

    @width.setter
    def width(self, value):
        self._width = value

    @staticmethod
    def double(x):
        return 2 * x

    @auto_docstring
    @can_return_tuple
    def forward(self, x, mask: Optional[int] = None):
        from .lazy_toy import late

        return late(x)  # the end


class ToyHead:
    pass


def build(config):
    return ToyAttention(config), ToyNorm(1, eps=2.0)


__all__ = ["ToyAttention", "ToyNorm", "ToyHead"]
__all__ += ["build"]
'''
NEIGHBOURS = {
    "__init__.py": '__version__ = "4.57.6"\n',
    "activations.py": "ACT2FN = {}\n",
    "cache_utils.py": "class Cache: ...\n",
    "utils.py": (
        "import logging as _logging\n\n\n"
        "class logging:\n    get_logger = staticmethod(_logging.getLogger)\n\n\n"
        "def auto_docstring(f):\n    f.documented = True\n    return f\n\n\n"
        "def can_return_tuple(f):\n    return f\n"
    ),
    "models/__init__.py": "",
    "models/toy/__init__.py": "",
    "models/toy/configuration_toy.py": "class ToyConfig: ...\n",
    "models/toy/lazy_toy.py": "def late(x):\n    return x * 10\n",
}
HEAD = """\
import torch
from torch import nn
from rocm_overlay.patchgen import PatchConfig, create_patch_from_external

config = PatchConfig("transformers.models.toy.modeling_toy", "patched_toy.py", description="Toy patches")
"""


def package(folder: Path, stock: str | bytes = STOCK) -> Path:
    """A transformers package with the toy model in it; returns its folder."""
    root = folder / "transformers"
    data = stock.encode("utf-8") if isinstance(stock, str) else stock
    for name, text in {**NEIGHBOURS, "models/toy/modeling_toy.py": data}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return root


def write_config(folder: Path, text: str, name: str = "toy_patch_gen_config.py") -> Path:
    """A config file: the usual head and the given lines."""
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
    return path


def generate(folder: Path, text: str, *, mode: str | None = None, stock: str | bytes = STOCK) -> Generated:
    """What a config makes of the toy model."""
    root = package(folder, stock)
    config = load(write_config(folder, text)).choose(None)
    module = find_module(config.source_module, config.place, root)
    return build(config, module, mode or config.mode)  # type: ignore[arg-type]


def refuse(folder: Path, text: str, *messages: str, mode: str | None = None, stock: str | bytes = STOCK) -> str:
    """The config is refused, and the error has every one of the messages; returns it."""
    with pytest.raises(ConfigError) as caught:
        generate(folder, text, mode=mode, stock=stock)
    found = str(caught.value)
    for message in messages:
        assert message in found, found
    return found


def line_of(text: str, needle: str) -> int:
    """The line of a config (head included) on which a text stands."""
    lines = (HEAD + textwrap.dedent(text)).splitlines()
    return next(number for number, line in enumerate(lines, 1) if needle in line)


def overlay_of(folder: Path, text: str, stock: str = STOCK) -> str:
    """An overlay-mode output without its marker line."""
    made = generate(folder, text, mode="overlay", stock=stock)
    first, rest = made.text.split("\n", 1)
    assert first.startswith("# amd-patchgen/1 base=sha256:")
    return rest
