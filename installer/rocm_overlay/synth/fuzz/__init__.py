"""The corpus put to work: stock against replaced for amd_ops, kernelize, the recipes and torch.compile.

``check(target, path)`` is what saved regression tests call.
"""

from __future__ import annotations

from pathlib import Path


def check(target: str, path: Path, backend: str = "aot_eager") -> str:
    """Run one program against a target in a confined process; return "" or what differs."""
    from rocm_overlay.synth.fuzz.session import Session
    from rocm_overlay.synth.settings import make

    with Session(target, make(num_worker=1, compile_backend=backend)) as session:
        answer = session.ask([path.read_text(encoding="utf-8")])[0]
    return "" if answer["ok"] else f"{answer['category']}: {answer['message']}"
