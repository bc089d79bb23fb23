"""Write ``backward_schemas.json``: the ops behind attention's backward, which the collected signatures leave out.

Usage: ``python tests/doubles/aiter/make_backward_schemas.py CHECKOUT`` with a git checkout of aiter that has the tags.
Signatures are read from the sources, which are not imported, and become dispatcher schemas by the rule of
``make_schemas.py``. ``test_schemas.py`` compares with what torch printed for one of the ops.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from make_schemas import READ_AT, VERSIONS, derive_schema
from make_triton_schemas import parameters, show

MODULE = "aiter.ops.mha"
OPS = ("mha_bwd", "mha_varlen_bwd", "fmha_v3_bwd", "fmha_v3_varlen_bwd")


def _plain(parameter: str) -> str:
    """One spelling of a type for every tag: ``Tensor | None`` for ``Optional[torch.Tensor]``."""
    return re.sub(r"Optional\[(\w+)\]", r"\1 | None", parameter.replace("torch.", ""))


def build(checkout: Path, version: str) -> dict[str, Any]:
    """The ops of one tag, by name."""
    source = show(checkout, "show", f"{version}:aiter/ops/mha.py") or ""
    decorators = {
        node.name: [ast.unparse(item) for item in node.decorator_list]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for name in OPS:
        given = parameters(source, name)
        if given is None or not any("compile_ops" in text for text in decorators[name]):
            raise ValueError(f"{version}: {name} is no compiled op")
        entry = {"decorators": decorators[name], "params": [_plain(text) for text in given], "returns": "4 tensors"}
        found[name] = {"module": MODULE, "schema": derive_schema(name, entry), "printed": False}
    return found


def main() -> None:
    checkout = Path(sys.argv[1])
    target = Path(__file__).parent / "backward_schemas.json"
    made = {version: build(checkout, READ_AT.get(version, version)) for version in VERSIONS}
    target.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
