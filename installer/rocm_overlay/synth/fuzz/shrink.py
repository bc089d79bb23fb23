"""Making a failing program small: keep a window of its statements, or one of its classes, as long as it still fails.

Works on the text of any program, whoever wrote it. A candidate that no longer runs does not fail in the same way and is
dropped by the same test that keeps the others.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

Trace = dict[str, Any]
StillFails = Callable[[list[str]], int | None]
_ENTRY = ("get_inputs", "get_init_inputs")
BATCH = 8


def shrink(source: str, name: str, still_fails: StillFails, trace: Callable[[str], Trace | None]) -> str:
    """Return the smallest program found.

    Args:
        source: a program that fails.
        name: its class.
        still_fails: given candidates, the index of the first that fails in the same way, or None.
        trace: the shapes of a program's values (fuzz.trace), or None where it does not run.
    """
    best = source
    while True:
        shapes = trace(best)
        smaller = shapes and _first(candidates(best, name, shapes), best, still_fails)
        if not smaller:
            return best
        best = smaller


def _first(found: Iterator[str], best: str, still_fails: StillFails) -> str | None:
    size = code_lines(best)
    batch: list[str] = []
    seen = {best}
    for text in found:
        if text in seen or (code_lines(text), len(text)) >= (size, len(best)):
            continue
        seen.add(text)
        batch.append(text)
        if len(batch) == BATCH:
            index = still_fails(batch)
            if index is not None:
                return batch[index]
            batch = []
    index = still_fails(batch) if batch else None
    return None if index is None else batch[index]


def code_lines(source: str) -> int:
    """Count the lines of classes and functions, blank ones and the two input functions left out."""
    tree = ast.parse(source)
    kept = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name not in _ENTRY]
    return sum(1 for node in kept for line in ast.unparse(node).splitlines() if line.strip())


def candidates(source: str, name: str, shapes: Trace) -> Iterator[str]:
    """Yield smaller programs, the smallest first: windows of forward's statements, then single classes."""
    tree = ast.parse(source)
    yield from _promoted(tree, name, shapes)
    kinds = ast.Assign | ast.Return | ast.For | ast.If
    body = [node for node in _forward(_named(tree, name)).body if isinstance(node, kinds)]
    length = 1
    while length <= len(body):
        for start in range(len(body) - length + 1):
            text = _window(tree, name, body[start : start + length], shapes)
            if text:
                yield text
        length = length + 1 if length < 3 else length * 2
    yield from _without_one(tree, name)


def _named(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == name), None)


def _forward(node: ast.ClassDef) -> ast.FunctionDef:
    found = _method(node, "forward")
    assert found is not None
    return found


def _loads(nodes: list[ast.stmt]) -> list[str]:
    """Names that are read before the statements themselves set them, in order."""
    known: set[str] = set()
    wanted: dict[str, None] = {}
    for statement in nodes:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in known:
                wanted[node.id] = None
        known |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return list(wanted)


def _window(tree: ast.Module, name: str, kept: list[Any], shapes: Trace) -> str | None:
    """The program that computes only these statements, from fresh inputs for what they read."""
    inputs = [one for one in _loads(kept) if shapes["locals"].get(one)]
    if not inputs:
        return None
    last = kept[-1]
    body: list[ast.stmt] = list(kept)
    if not isinstance(last, ast.Return):
        stored = [n.id for n in ast.walk(last) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        targets = [one for one in dict.fromkeys(stored) if shapes["locals"].get(one)]
        if not targets:
            return None
        body.append(ast.parse(f"return {', '.join(targets)}").body[0])
    new = copy.deepcopy(tree)
    forward = _forward(_named(new, name))
    forward.body = [*(_constants(tree, name, kept, inputs)), *copy.deepcopy(body)]
    forward.args.args = [ast.arg("self"), *(ast.arg(one) for one in inputs)]
    forward.args.defaults = []
    _set_inputs(new, [shapes["locals"][one] for one in inputs])
    return _cleaned(new, name)


def _constants(tree: ast.Module, name: str, kept: list[Any], inputs: list[str]) -> list[ast.stmt]:
    """Earlier statements that set what the window reads and that is no tensor, such as a shape."""
    first = kept[0].lineno
    earlier = [one for one in _forward(_named(tree, name)).body if one.lineno < first and isinstance(one, ast.Assign)]
    needed = set(_loads(kept)) - set(inputs)
    found: list[ast.stmt] = []
    for statement in reversed(earlier):
        stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if stored & needed:
            found.insert(0, copy.deepcopy(statement))
            needed |= set(_loads([statement])) - set(inputs)
    return found


def _promoted(tree: ast.Module, name: str, shapes: Trace) -> Iterator[str]:
    """For each submodule of a class of the program's own: that class as the whole program."""
    main = _named(tree, name)
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)} - {name}
    for node in ast.walk(main):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        call = _made(node.value, own)
        if call is None:
            continue
        # A list of modules is not called itself: its first one is.
        name_of = node.targets[0].attr if call is node.value else f"{node.targets[0].attr}.0"
        seen = shapes["calls"].get(name_of)
        if not seen or not all(seen):
            continue
        assert isinstance(call.func, ast.Name)
        kind = call.func.id
        new = copy.deepcopy(tree)
        new.body = [one for one in new.body if not (isinstance(one, ast.ClassDef) and one.name == name)]
        _rename(new, kind, name)
        call = _bound(tree, main, call)
        arguments = ", ".join(ast.unparse(one) for one in call.args)
        named = ", ".join(f"{one.arg!r}: {ast.unparse(one.value)}" for one in call.keywords)
        function = next(one for one in new.body if isinstance(one, ast.FunctionDef) and one.name == "get_init_inputs")
        function.body = ast.parse(f"return [{arguments}], {{{named}}}").body
        _set_inputs(new, seen)
        text = _cleaned(new, name)
        # Arguments that mean something only inside the old __init__ cannot be moved out of it.
        free = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
        if text and free <= {"nn", "torch", "F"}:
            yield text


def _made(value: ast.expr, own: set[str]) -> ast.Call | None:
    """The call that makes a module of a class of the program's own: the value itself, or what a list is made of."""
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.ListComp):
        value = value.args[0].elt
    found = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in own
    return value if found and isinstance(value, ast.Call) else None


class _Replaced(ast.NodeTransformer):
    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return copy.deepcopy(self.values.get(node.id, node))


def _bound(tree: ast.Module, main: ast.ClassDef, call: ast.Call) -> ast.Call:
    """The call with the values that get_init_inputs gives to the parameters of the class that makes it."""
    init = _method(main, "__init__")
    function = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "get_init_inputs")
    value = function.body[-1].value if isinstance(function.body[-1], ast.Return) else None
    if init is None or not isinstance(value, ast.Tuple) or not isinstance(value.elts[0], ast.List):
        return call
    names = [argument.arg for argument in init.args.args[1:]]
    values: dict[str, ast.expr] = dict(
        zip(names[len(names) - len(init.args.defaults) :], init.args.defaults, strict=True)
    )
    values.update(zip(names, value.elts[0].elts, strict=False))
    if isinstance(value.elts[1], ast.Dict):
        named = zip(value.elts[1].keys, value.elts[1].values, strict=True)
        values.update({str(k.value): v for k, v in named if isinstance(k, ast.Constant)})
    bound = _Replaced(values).visit(copy.deepcopy(call))
    assert isinstance(bound, ast.Call)
    return bound


def _without_one(tree: ast.Module, name: str) -> Iterator[str]:
    """Drop one statement of forward and read its input instead of its result."""
    body = _forward(_named(tree, name)).body
    for index, statement in enumerate(body):
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        for source in dict.fromkeys(n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)):
            if source in ("self", "torch", "nn", "F"):
                continue
            new = copy.deepcopy(tree)
            forward = _forward(_named(new, name))
            del forward.body[index]
            for node in ast.walk(forward):
                if isinstance(node, ast.Name) and node.id == statement.targets[0].id:
                    node.id = source
            text = _cleaned(new, name)
            if text:
                yield text


def _rename(tree: ast.Module, old: str, new: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == old:
            node.name = new
        elif isinstance(node, ast.Name) and node.id == old:
            node.id = new


def _set_inputs(tree: ast.Module, described: list[Any]) -> None:
    made = []
    for shape, dtype in described:
        if dtype.startswith("float"):
            made.append(f"torch.randn({tuple(shape)})")
        elif dtype == "bool":
            made.append(f"torch.rand({tuple(shape)}) > 0.5")
        else:
            made.append(f"torch.randint(0, 4, {tuple(shape)})")
    function = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "get_inputs")
    function.body = ast.parse(f"return [{', '.join(made)}]").body


def _cleaned(tree: ast.Module, name: str) -> str | None:
    """Take out attributes, classes and functions that nothing uses any more; None where nothing is computed."""
    main = _named(tree, name)
    used = {
        n.attr
        for one in main.body
        if one is not _method(main, "__init__")
        for n in ast.walk(one)
        if isinstance(n, ast.Attribute)
    }
    init = _method(main, "__init__")
    if init is not None:
        init.body = [one for one in init.body if not _sets_unused(one, used)]
        if len(init.body) == 1 and len(init.args.args) == 1:
            main.body.remove(init)
    while True:
        names = [
            n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name not in (*_ENTRY, name)
        ]
        unused = [one for one in names if not _mentioned(tree, one)]
        if not unused:
            break
        tree.body = [one for one in tree.body if one not in unused]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _sets_unused(statement: ast.stmt, used: set[str]) -> bool:
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Attribute):
        return False
    return statement.targets[0].attr not in used


def _mentioned(tree: ast.Module, one: Any) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == one.name
        for other in tree.body
        if other is not one
        for node in ast.walk(other)
    )
