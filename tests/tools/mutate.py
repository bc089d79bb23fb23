"""Changes the transaction in small ways, one at a time, and asks whether the tests notice.

    python -m tests.tools.mutate [--sample N] [--seed S] [--jobs N] [--module NAME ...]

Each mutant lives in a forked child of a process that has loaded pytest but nothing of ours: an import hook serves the
changed module, the chosen tests run until the first failure. Nothing is written below the sources. Exit 1 below 90 %.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path

import filelock  # noqa: F401 - loaded before the forks
import hypothesis  # noqa: F401 - loaded before the forks
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "installer" / "rocm_overlay" / "install" / "transaction"
PACKAGE = "rocm_overlay.install.transaction"
TESTS = (
    "tests/install/faults/test_leftovers.py",
    "tests/install/faults/test_corners.py",
    "tests/install/test_states.py",
    "tests/install/test_metadata.py",
    "tests/install/test_bad_input.py",
    "tests/install/test_bases.py",
    "tests/install/faults/test_faults.py",
    "tests/install/faults/test_powercut.py",
)
CPU_SECONDS = 100
"""A mutant that computes for ever counts as noticed: four times what the tests need. A busy machine is not one."""
SECONDS = 3600
"""One that waits for ever, too."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.Mod: ast.Mult,
}  # fmt: skip


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in place of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)  # type: ignore[arg-type]
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, (ast.If, ast.While)):
        negated = copy.copy(node)
        negated.test = ast.UnaryOp(ast.Not(), node.test)
        yield negated
    elif isinstance(node, (ast.Expr, ast.AugAssign)) and not isinstance(getattr(node, "value", None), ast.Constant):
        if not isinstance(getattr(node, "value", None), ast.Yield):
            yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise):
        yield ast.Pass()


class _Replace(ast.NodeTransformer):
    """Put a node in the place of the ``wanted``-th one."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.seen, self.line = wanted, 0, 0

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.AnnAssign, ast.arg)):  # an annotation is no code
            note, node.annotation = node.annotation, None
            self.generic_visit(node)
            node.annotation = note
            return node
        for other in changed(node):
            self.seen += 1
            if self.seen == self.wanted:
                self.line = getattr(node, "lineno", 0)
                return ast.copy_location(other, node)
        returns = getattr(node, "returns", None)
        if returns is not None:
            node.returns = None  # type: ignore[attr-defined]
        self.generic_visit(node)
        if returns is not None:
            node.returns = returns  # type: ignore[attr-defined]
        return node


def mutants() -> list[tuple[Path, int]]:
    """Return every mutant as a file and a number in it."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        counter = _Replace(-1)
        counter.visit(ast.parse(path.read_bytes()))
        found += [(path, number) for number in range(1, counter.seen + 1)]
    return found


def mutate(path: Path, number: int) -> tuple[str, int]:
    """Return the changed source and the line that changed."""
    transformer = _Replace(number)
    tree = transformer.visit(ast.parse(path.read_bytes()))
    return ast.unparse(ast.fix_missing_locations(tree)), transformer.line


class _Finder(MetaPathFinder):
    """Serves one changed module."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        source = self.source

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> object:  # type: ignore[override]
                return compile(source, self.path, "exec")

        return spec_from_loader(fullname, Loader(fullname, str(self.path)))


def start(path: Path, number: int) -> int:
    """Run the tests on a mutant in a child; its exit status is 0 where nothing was noticed."""
    child = os.fork()
    if child:
        return child
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    code = 1
    try:
        if number:
            name = PACKAGE if path.stem == "__init__" else f"{PACKAGE}.{path.stem}"
            sys.meta_path.insert(0, _Finder(name, path, mutate(path, number)[0]))
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not full", "--no-header"]
            # pytest rewrites the asserts of every plugin's distribution, which is ours: it would load the plain module.
            arguments += ["--assert=plain"]
            code = int(pytest.main([*arguments, f"--basetemp={folder}/t", *TESTS]))
    finally:
        os._exit(code)


def main() -> int:
    """Run the mutants and print the survivors and the share that was noticed."""
    parser = argparse.ArgumentParser(description="mutation run over the transaction")
    parser.add_argument("--sample", type=int, help="only so many mutants, chosen with --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", action="append", help="only this file of the transaction, such as fs; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.chdir(ROOT)
    every = [one for one in mutants() if not options.module or one[0].stem in options.module]
    chosen = every if options.sample is None else random.Random(options.seed).sample(every, options.sample)
    child = start(FOLDER / "fs.py", 0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        print("the tests fail without any mutant")
        return 1
    running: dict[int, tuple[Path, int]] = {}
    survivors, endless, waiting = [], 0, list(chosen)
    while waiting or running:
        while waiting and len(running) < options.jobs:
            one = waiting.pop()
            running[start(*one)] = one
        child, status = os.wait()
        path, number = running.pop(child)
        endless += os.waitstatus_to_exitcode(status) in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)
        if os.waitstatus_to_exitcode(status) == 0:
            survivors.append((path.name, mutate(path, number)[1], number))
            print("survived: {}:{} (mutant {})".format(*survivors[-1]), flush=True)
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen)} of {len(every)} mutants run, {len(chosen) - len(survivors)} noticed: {share:.1%}")
    print(f"{endless} of those noticed were stopped because they did not end")
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
