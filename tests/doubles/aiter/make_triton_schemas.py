"""Write ``triton_schemas.json``: the public functions of ``aiter.ops.triton`` that the double has, per modelled tag.

Usage: ``python tests/doubles/aiter/make_triton_schemas.py CHECKOUT`` with a git checkout of aiter that has the tags.
Signatures are read from the sources, which are not imported; "cuts" are the chips with a file of attention cuts, and
"cut" names the numbers of one.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from make_schemas import READ_AT, VERSIONS

ROOT = "aiter/ops/triton"
MODULES = {
    "flash_attn_func": ("attention/mha.py", "mha.py"),
    "flash_attn_varlen_func": ("attention/mha.py", "mha.py"),
    "rms_norm": ("normalization/rmsnorm.py", "rmsnorm.py"),
    "rmsnorm2d_fwd_with_add": ("normalization/rmsnorm.py", "rmsnorm.py"),
    "rope_cached_thd_positions_2c_fwd": ("rope/rope.py", "rope.py"),
    "fused_silu_mul": ("activation.py",),
}
CUT = "-MHA-DEFAULT.json"


def show(checkout: Path, *arguments: str) -> str | None:
    """The output of a git command, None where it fails."""
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def parameters(source: str, name: str) -> list[str] | None:
    """``["x: torch.Tensor", "y = 1"]`` of a function at the top of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            given = node.args.args
            defaults = [None] * (len(given) - len(node.args.defaults)) + list(node.args.defaults)
            return [
                argument.arg
                + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
                + (f" = {ast.unparse(default)}" if default is not None else "")
                for argument, default in zip(given, defaults, strict=True)
            ]
    return None


def build(checkout: Path, version: str) -> dict[str, Any]:
    """What one tag has."""
    functions = {}
    for name, homes in MODULES.items():
        for home in homes:
            source = show(checkout, "show", f"{version}:{ROOT}/{home}")
            found = None if source is None else parameters(source, name)
            if found is not None:
                module = f"{ROOT}/{home}".removesuffix(".py").replace("/", ".")
                functions[f"{module}.{name}"] = found
                break
    files = show(checkout, "ls-tree", "-r", "--name-only", version, f"{ROOT}/configs") or ""
    paths = sorted(path for path in files.splitlines() if path.endswith(CUT))
    cut = json.loads(show(checkout, "show", f"{version}:{paths[0]}") or "")["fwd"]["default"]
    return {
        "functions": functions,
        "cuts": [Path(path).name.removesuffix(CUT) for path in paths],
        "cut": sorted(cut),
    }


def main() -> None:
    checkout = Path(sys.argv[1])
    target = Path(__file__).parent / "triton_schemas.json"
    target.write_text(
        json.dumps({version: build(checkout, READ_AT.get(version, version)) for version in VERSIONS}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
