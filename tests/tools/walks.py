"""How many of our files a reader opens on two walks through the program, and how often a walk changes files.

    python -m tests.tools.walks layer      # one hidden_states through a Llama layer, prefill, warm
    python -m tests.tools.walks step       # what one layer more adds to a planned decode step
    python -m tests.tools.walks install    # `overlay install --models llama`: into the environment it runs in

Counted with Python's profiler: a hop is a call that enters another file of ours. Table in docs/design.md.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = (ROOT / "amd_ops", ROOT / "installer")
TOGGLES = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}


class Walk:
    """A profile function that counts hops between our files; ``overlaid`` is the path of the generated text."""

    def __init__(self, overlaid: str = "") -> None:
        self.overlaid = overlaid
        self.hops: Counter[tuple[str, str, str]] = Counter()
        self._stack: list[tuple[FrameType, str]] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and self._stack and self._stack[-1][0] is frame:
            self._stack.pop()
        if event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if str(path) == self.overlaid:
            name = path.name
        elif any(path.is_relative_to(folder) for folder in OURS):
            name = path.relative_to(ROOT).as_posix()
        else:
            return
        before = self._stack[-1][1] if self._stack else ""
        if before != name:
            self.hops[before, name, frame.f_code.co_name] += 1
        self._stack.append((frame, name))

    def told(self) -> str:
        """Return the figures of docs/design.md."""
        arrows = {(before, after) for before, after, _ in self.hops if before}
        files = {after for _, after, _ in self.hops}
        return f"{self.hops.total()} hops, {len(arrows)} arrows, {len(files)} files: {', '.join(sorted(files))}"


def overlaid_llama(folder: Path) -> tuple[Any, str]:
    """Import the overlaid text of the installed release's llama; return the module and its path."""
    from rocm_overlay.install.hook.sources import SourceFinder

    from tests.verify.support import generated

    source = generated("llama")
    path = folder / "modeling_llama.py"
    path.write_bytes(source.overlay)
    for name in [name for name in sys.modules if name.startswith("transformers.models.llama")]:
        del sys.modules[name]
    SourceFinder({source.module: path}).install()
    return __import__(source.module, fromlist=["LlamaForCausalLM"]), str(path)


def small(module: Any, layers: int) -> Any:
    """Return a Llama of bf16 with random weights."""
    import torch
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    kind: Any = LlamaConfig
    config = kind(**shape, num_hidden_layers=layers, vocab_size=128)
    return module.LlamaForCausalLM(config).eval().to(torch.bfloat16)


def layer(folder: Path) -> Walk:
    """Walk through the second layer of two, in a prefill that has been made before."""
    import torch

    module, path = overlaid_llama(folder)
    model, walk = small(module, 2), Walk(path)
    watched, forward = model.model.layers[1], module.LlamaDecoderLayer.forward

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        sys.setprofile(walk if self is watched else None)
        try:
            return forward(self, *args, **kwargs)
        finally:
            sys.setprofile(None)

    ids = torch.arange(64)[None]
    for _ in range(3):
        model(ids)
    module.LlamaDecoderLayer.forward = recorded
    model(ids)
    return walk


def step(folder: Path) -> Walk:
    """Return what a third layer adds to a decode step that has a plan."""
    import torch

    module, path = overlaid_llama(folder)
    walks = []
    for layers in (2, 3):
        model, walk = small(module, layers), Walk(path)
        cache = model(torch.arange(8)[None], use_cache=True).past_key_values
        for number in range(7):
            sys.setprofile(walk if number == 6 else None)
            model(torch.arange(1)[None], past_key_values=cache, use_cache=True)
            sys.setprofile(None)
        walks.append(walk)
    walks[1].hops -= walks[0].hops
    return walks[1]


def install() -> Walk:
    """Walk through the program's own command."""
    walk = Walk()
    sys.argv = ["overlay", "install", "--models", "llama"]
    sys.setprofile(walk)
    try:
        runpy.run_module("rocm_overlay", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
    return walk


def main() -> None:
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which == "install":
        print(install().told())
    elif which in ("layer", "step"):
        import torch

        import amd_ops

        warnings.simplefilter("ignore")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(torch.no_grad())
            stack.enter_context(amd_ops.override(**TOGGLES, tiers="torch,eager"))
            print((layer if which == "layer" else step)(folder).told())
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
