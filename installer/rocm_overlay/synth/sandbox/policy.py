"""The import policy: what a program may mention at all. Read from the syntax tree, before anything is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = frozenset(("torch", "math", "typing", "collections", "functools", "itertools", "dataclasses", "__future__"))
# Parts of torch that read and write files, start processes, load code or talk to a network.
TORCH_DENIED = frozenset(
    [
        "classes",
        "cuda",
        "distributed",
        "export",
        "ffi",
        "from_file",
        "hub",
        "jit",
        "load",
        "load_library",
        "monitor",
        "multiprocessing",
        "onnx",
        "ops",
        "os",
        "package",
        "profiler",
        "save",
        "serialization",
        "storage",
        "sys",
        "tensorboard",
        "cpp_extension",
        "utils",
    ]
)
TORCH_ALLOWED = ("torch.utils.checkpoint",)
BUILTINS_DENIED = frozenset(
    [
        "breakpoint",
        "compile",
        "delattr",
        "eval",
        "exec",
        "exit",
        "globals",
        "help",
        "input",
        "locals",
        "memoryview",
        "open",
        "quit",
        "vars",
        "__import__",
    ]
)
_HARMLESS_DUNDERS = frozenset(
    ["__init__", "__name__", "__class__", "__call__", "__len__", "__iter__", "__getitem__", "__post_init__"]
)


def violations(tree: ast.AST) -> list[str]:
    """Return what the policy forbids in a program, each with its line, in order."""
    return [f"line {line}: {text}" for line, text in sorted(set(_walk(tree)))]


def _walk(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, f"import {name}") for name in map(_alias, node.names) if not importable(name))
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for name in (_alias(alias) for alias in node.names):
                if node.level or not importable(base) or not importable(f"{base}.{name}"):
                    yield line, f"from {base} import {name}"
        elif isinstance(node, ast.Name) and (node.id in BUILTINS_DENIED or _odd(node.id)):
            yield line, f"use of {node.id}"
        elif isinstance(node, ast.Attribute):
            if _odd(node.attr):
                yield line, f"attribute {node.attr}"
            elif not allowed(_dotted(node)):
                yield line, f"use of {_dotted(node)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _odd(node.value):
            yield line, f"text {node.value!r}"


def allowed(name: str) -> bool:
    """Say whether a dotted name may be imported or used. A name that starts with no known module is a local one."""
    parts = name.split(".")
    if parts[0] == "torch":
        inside = name.startswith(TORCH_ALLOWED) or any(one.startswith(name + ".") for one in TORCH_ALLOWED)
        return inside or not any(part in TORCH_DENIED or part.startswith("_") for part in parts[1:])
    return parts[0] in MODULES or len(parts) > 1 or not parts[0]


def importable(name: str) -> bool:
    """Say whether a module may be imported."""
    return name.split(".")[0] in MODULES and allowed(name)


def _alias(alias: ast.alias) -> str:
    return alias.name


def _odd(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in _HARMLESS_DUNDERS and name != "__"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
