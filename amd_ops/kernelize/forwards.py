"""Source text of kernelized forwards: the original's own parameters, a branch on ``self.training``, guards inline.

Text instead of ``*args, **kwargs`` because a call through named parameters costs half as much, keeps the original's
keyword names for callers, and can be traced by torch.compile. When a guard fails the original forward runs.
"""

from __future__ import annotations

import inspect
import linecache
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from itertools import count
from typing import Any

import torch

from .errors import RegistrationError, SignatureError

# A guard becomes one Python expression over the guarded tensor `_t`, so that a true guard costs no call. Arithmetic on
# a shape costs more than all the rest: shapes that were right are remembered, so many at most.
_REMEMBERED = 1024


@dataclass(frozen=True)
class Guard:
    """What a kernel needs of its input at call time.

    ``argument`` names the parameter of forward that is looked at (None: the first one).
    ``dtypes`` are the dtypes it takes; ``min_rows`` and ``max_rows`` bound ``numel // shape[-1]`` (both inclusive);
    ``last_dim_multiple`` must divide ``shape[-1]``; ``no_grad`` requires that gradients are off;
    ``check(tensor) -> str | None`` is any other condition and returns the reason when it does not hold.
    """

    dtypes: tuple[torch.dtype, ...] = ()
    min_rows: int | None = None
    max_rows: int | None = None
    last_dim_multiple: int | None = None
    no_grad: bool = False
    check: Callable[[torch.Tensor], str | None] | None = None
    argument: str | None = None

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if not isinstance(dtype, torch.dtype):
                raise RegistrationError(f"guard: {dtype!r} is not a torch.dtype")
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise RegistrationError(f"guard: min_rows {self.min_rows} is above max_rows {self.max_rows}")
        if self.last_dim_multiple is not None and self.last_dim_multiple < 1:
            raise RegistrationError(f"guard: last_dim_multiple must be at least 1, found {self.last_dim_multiple}")


def parse_guard(guard: Guard | dict[str, Any] | None, where: str) -> Guard | None:
    """Accept a Guard or the same as a mapping, with dtypes as names (``"bfloat16"``)."""
    if guard is None or isinstance(guard, Guard):
        return guard
    if not isinstance(guard, dict):
        raise RegistrationError(f"{where}: guard must be a Guard or a mapping, found {type(guard).__name__}")
    fields = dict(guard)
    names = fields.pop("dtypes", ())
    listed = (names,) if isinstance(names, str | torch.dtype) else tuple(names)
    # A name that torch does not have stays a string, which Guard refuses.
    dtypes: Any = tuple(getattr(torch, name, name) if isinstance(name, str) else name for name in listed)
    try:
        return Guard(dtypes=dtypes, **fields)
    except TypeError as error:
        raise RegistrationError(f"{where}: guard: {error}") from error


def guard_expression(guard: Guard | None, backward: bool, space: dict[str, Any], tag: str) -> str:
    """Return the guard as source text over `_t`, "" when nothing is asked.

    Values the text needs are put into ``space`` under names that end in ``tag``; ``backward`` says whether the kernel
    has one.
    """
    space["_Tensor"] = torch.Tensor
    terms = []
    if guard is not None and (guard.dtypes or guard.check or _bounds_shape(guard)):
        terms.append("isinstance(_t, _Tensor)")
        if guard.dtypes:
            names = [f"_dtype{number}{tag}" for number in range(len(guard.dtypes))]
            space.update(zip(names, guard.dtypes, strict=True))
            first, *others = names
            terms.append(f"({' or '.join([f'(_y := _t.dtype) is {first}', *(f'_y is {name}' for name in others)])})")
        if _bounds_shape(guard):
            space[f"_shapes{tag}"], space[f"_fits{tag}"] = _remembering(guard)
            terms.append(f"(_t.shape in _shapes{tag} or _fits{tag}(_t))")
        if guard.check is not None:
            space[f"_check{tag}"] = guard.check
            terms.append(f"_check{tag}(_t) is None")
    if not backward or (guard is not None and guard.no_grad):
        space["_grad"] = torch.is_grad_enabled
        terms.append("not _grad()")
    return " and ".join(terms)


def _bounds_shape(guard: Guard) -> bool:
    return guard.min_rows is not None or guard.max_rows is not None or guard.last_dim_multiple is not None


def _remembering(guard: Guard) -> tuple[set[torch.Size], Callable[[torch.Tensor], bool]]:
    """Return the shapes that were found right, and the test that adds one."""
    shapes: set[torch.Size] = set()

    def fits(value: torch.Tensor) -> bool:
        if _shape_reason(guard, value):
            return False
        if not torch.compiler.is_dynamo_compiling():  # a trace guards on what it reads and must not write
            if len(shapes) >= _REMEMBERED:
                shapes.clear()
            shapes.add(value.shape)
        return True

    return shapes, fits


def _shape_reason(guard: Guard, value: torch.Tensor) -> str:
    """Say which bound a shape breaks; "" when none."""
    rows = value.numel() // max(value.shape[-1], 1) if value.dim() else 0
    if (guard.min_rows or 0) > rows or (guard.max_rows is not None and rows > guard.max_rows) or not value.dim():
        return f"{rows} rows outside {guard.min_rows or 0}..{'' if guard.max_rows is None else guard.max_rows}"
    if guard.last_dim_multiple and value.shape[-1] % guard.last_dim_multiple:
        return f"last dimension {value.shape[-1]} is no multiple of {guard.last_dim_multiple}"
    return ""


def guard_reason(guard: Guard | None, backward: bool, value: Any) -> str:
    """Say which condition failed for a value. Only called after the expression was false, so it may be slow."""
    if guard is not None and not isinstance(value, torch.Tensor):
        return f"guarded argument is {type(value).__name__}, not a tensor"
    if guard is not None:
        if guard.dtypes and value.dtype not in guard.dtypes:
            return f"dtype {value.dtype} not in {', '.join(map(str, guard.dtypes))}"
        if _bounds_shape(guard) and (broken := _shape_reason(guard, value)):
            return broken
        found = guard.check(value) if guard.check is not None else None
        if found is not None:
            return found
    if not backward:
        return "gradients are on and the kernel has no backward"
    return "gradients are on and the guard asks for no_grad"


Forward = Callable[..., Any]
_serial = count()
OURS: weakref.WeakSet[Forward] = weakref.WeakSet()
"""Every forward that was made to stand in a class."""


class Home:
    """The class whose forward is replaced, the forward that was looked at, and ours where the class itself has it."""

    __slots__ = ("cls", "original", "ours")

    def __init__(self, cls: Any) -> None:
        self.cls, self.original = cls, cls.forward
        self.ours: Forward | None = None

    def take(self, forward: Forward) -> Forward:
        """Know ``forward`` as the one that is going to stand in the class."""
        self.ours = forward
        OURS.add(forward)
        return forward

    def names(self, miss: Callable[[str], None]) -> dict[str, Any]:
        """What the lines of ``unless_replaced`` name."""
        late = "the forward of its class was replaced since"
        return {"_amd_class": self.cls, "_amd_original": self.original, "_amd_home": self,
                "_amd_late": lambda: miss(late)}  # fmt: skip


@dataclass(frozen=True)
class Branch:
    """What one state of a module runs: a kernel's forward under its guard, or (``forward`` None) the original."""

    forward: Forward | None
    guard: Guard | None = None
    backward: bool = True
    reason: str = ""

    def __bool__(self) -> bool:
        return self.forward is not None


def build(home: Home, train: Branch, infer: Branch, miss: Callable[[str], None]) -> Forward:
    """Build the forward of a kernelized class.

    ``home`` is the original class, ``miss(reason)`` counts a call that goes to its forward. The result takes the
    original's parameters, with its defaults.
    """
    original = home.original
    space: dict[str, Any] = {"_original": original, **home.names(miss)}
    parameters = list(inspect.signature(original, follow_wrapped=False).parameters.values())
    head, call = _header(parameters, space)
    body = [f"def forward({head}):", *(f"    {line}" for line in unless_replaced(call))]
    if train == infer:
        body += _branch(train, "t", call, parameters, space, miss)
    else:
        inside = _branch(train, "t", call, parameters, space, miss)
        body += [f"    if {parameters[0].name}.training:", *(f"    {line}" for line in inside)]
        body += _branch(infer, "i", call, parameters, space, miss)
    function = _compile("\n".join(body) + "\n", space)
    _dress(function, original)
    OURS.add(function)
    return function


def unless_replaced(call: str) -> list[str]:
    """Return the lines with which a forward begins: a patch of its class that came after us wins, and is counted.

    Spelled out where it runs, because a call would cost four times as much. Names: those of ``Home.names``.
    """
    return [
        "if (_amd_now := _amd_class.forward) is not _amd_original and _amd_now is not _amd_home.ours:",
        "    _amd_late()",
        f"    return _amd_now({call})",
    ]


def from_expression(home: Home, expression: str, tested: str, names: dict[str, Any]) -> Forward:
    """Build ``def forward(...): return expression`` with the original's parameters, for inputs whose dtype is proven.

    ``tested`` is the parameter whose dtype counts; ``names`` holds the expression's names and ``_proof``, a
    proof.Proof.
    """
    space, original = dict(names), home.original
    proof = space["_proof"]
    space.update(_proven=proof.proven, _first=proof.first, **home.names(proof.place.miss))
    head, call = _header(list(inspect.signature(original).parameters.values()), space)
    lines = [f"if {tested}.dtype in _proven:", f"    return {expression}", f"return _first({call})"]
    text = "\n    ".join([f"def forward({head}):", *unless_replaced(call), *lines]) + "\n"
    function = _compile(text, space)
    _dress(function, original)
    return function


def plain_expression(original: Forward, expression: str, names: dict[str, Any]) -> Forward:
    """Build ``def forward(...): return expression`` with the original's parameters and no test."""
    space = dict(names)
    head, _ = _header(list(inspect.signature(original).parameters.values()), space)
    return _compile(f"def forward({head}):\n    return {expression}\n", space)


def _dress(function: Any, original: Forward) -> None:
    function.__name__ = getattr(original, "__name__", "forward")
    function.__qualname__ = getattr(original, "__qualname__", "forward")
    function.__doc__ = original.__doc__
    function.__signature__ = inspect.signature(original)


def _header(parameters: list[Parameter], space: dict[str, Any]) -> tuple[str, str]:
    """Return the parameter list and the argument list that passes them on, the first parameter (self) included."""
    head: list[str] = []
    call: list[str] = []
    keyword_only = False
    for index, p in enumerate(parameters):
        default = ""
        if p.default is not Parameter.empty:
            space[f"_d_{p.name}"] = p.default
            default = f"=_d_{p.name}"
        if p.kind is Parameter.VAR_POSITIONAL:
            head.append(f"*{p.name}")
            call.append(f"*{p.name}")
            keyword_only = True
        elif p.kind is Parameter.VAR_KEYWORD:
            head.append(f"**{p.name}")
            call.append(f"**{p.name}")
        elif p.kind is Parameter.KEYWORD_ONLY:
            head += ([] if keyword_only else ["*"]) + [f"{p.name}{default}"]
            call.append(f"{p.name}={p.name}")
            keyword_only = True
        else:
            head.append(f"{p.name}{default}")
            call.append(p.name)
            last = index + 1 == len(parameters) or parameters[index + 1].kind is not Parameter.POSITIONAL_ONLY
            if p.kind is Parameter.POSITIONAL_ONLY and last:
                head.append("/")
    return ", ".join(head), ", ".join(call)


def _value(parameters: list[Parameter], guard: Guard | None) -> list[str]:
    """Name the argument that guards look at `_t`."""
    name = guard.argument if guard is not None else None
    for p in parameters[1:]:
        if p.kind is Parameter.VAR_POSITIONAL and name is None:
            return [f"    _t = {p.name}[0] if {p.name} else None"]
        if p.kind is not Parameter.VAR_KEYWORD and (name is None or p.name == name):
            return [f"    _t = {p.name}"]
    if name is not None:
        raise SignatureError(
            f"guard looks at argument {name!r}, forward has {', '.join(p.name for p in parameters[1:]) or 'none'}"
        )
    return ["    _t = None"]


def _branch(
    branch: Branch,
    tag: str,
    call: str,
    parameters: list[Parameter],
    space: dict[str, Any],
    miss: Callable[[str], None],
) -> list[str]:
    """Return the lines of one branch; ``tag`` keeps its names apart from the other branch's."""
    original = f"    return _original({call})"
    if not branch:
        if not branch.reason:
            return [original]
        space[f"_miss_{tag}"] = lambda: miss(branch.reason)
        return [f"    _miss_{tag}()", original]
    space[f"_kernel_{tag}"] = branch.forward
    kernel = f"return _kernel_{tag}({call})"
    test = guard_expression(branch.guard, branch.backward, space, f"_{tag}")
    if not test:
        return [f"    {kernel}"]
    space[f"_miss_{tag}"] = lambda value: miss(guard_reason(branch.guard, branch.backward, value))
    return [*_value(parameters, branch.guard), f"    if {test}:", f"        {kernel}", f"    _miss_{tag}(_t)", original]


def _compile(text: str, space: dict[str, Any]) -> Forward:
    """Compile one function; its text is in linecache, so that tracebacks and torch.compile show it."""
    name = f"<amd_ops kernelized forward {next(_serial)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space["__builtins__"] = __builtins__
    exec(compile(text, name, "exec"), space)
    made: Forward = space["forward"]
    return made
