"""Zero-copy packing of Linears that read the same input: one matrix holds all their weights, each Linear keeps its
rows of it.

Every Linear's ``weight.data`` (and bias) is re-pointed to its rows, so names, parameters, state_dict, in-place
updates and saving work as before and no byte is stored twice. Whatever later moves, replaces, wraps or watches one of
them is noticed by a check at every use, and the caller then runs the Linears one by one until they can be packed again.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from . import modules
from .dispatch import capturing, new_lock_after_fork

_lock = threading.RLock()
new_lock_after_fork(__name__)
# The packed matrices that are in use, by address: modules that share parameters share one.
_wholes: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


class States(dict[tuple[str, ...], "Packed"]):
    """A module's packed groups by their Linears' names. Copies and pickles of the module carry an empty one of these.

    The pickle is a plain empty dict, so that a pickled model loads where amd_ops is not installed.
    """

    def __reduce__(self) -> tuple[type[dict[Any, Any]], tuple[()]]:
        return dict, ()

    def __copy__(self) -> States:
        return States()

    def __deepcopy__(self, memo: dict[int, Any]) -> States:
        return States()


class Packed:
    """The packed matrix of some Linears of one module."""

    __slots__ = ("bias", "linears", "owner", "rows", "sizes", "weight", "whole")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self.owner: int = 0
        self.linears: tuple[nn.Module, ...] = ()
        # Per Linear: (parameter name, parameter, its rows of the packed tensor).
        self.rows: tuple[tuple[tuple[str, nn.Parameter, Tensor], ...], ...] = ()
        self.sizes: list[int] = []
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        # What experts.py keeps with a packed list of experts.
        self.whole: Any = None

    def fresh(self, owner: nn.Module, names: tuple[str, ...]) -> str:
        """Return "" while the packed matrix still is the weights of ``owner``'s Linears ``names``, else what changed.

        Runs at every use, so it repeats why_not_plain's tests in the cheapest order and asks for the reason only on
        failure.
        """
        if self.weight is None or self.owner != id(owner):
            return "not packed"
        if modules.linears_patched() or modules.watched_globally():
            return "nn.Linear is patched or watched globally"
        children, bare = owner.__dict__["_modules"], self.bias is None
        for name, linear, own in zip(names, self.linears, self.rows, strict=True):
            if children.get(name) is not linear:
                return "a Linear was replaced"
            state = linear.__dict__
            if (
                type(linear) is not nn.Linear
                or state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or "forward" in state
            ):
                return modules.why_not_plain(linear)
            parameters = state["_parameters"]
            if bare and parameters["bias"] is not None:
                return "a bias was added"
            for key, parameter, rows in own:
                if parameters[key] is not parameter or not parameter.is_set_to(rows):
                    return "a parameter moved or was replaced"
        return ""

    def needs_grad(self) -> bool:
        """Return True when autograd would want gradients of these parameters."""
        return any(parameter.requires_grad for own in self.rows for _, parameter, _ in own)

    def nbytes(self) -> int:
        """Size of the packed matrix and bias (which replace the separate ones)."""
        return sum(part.numel() * part.element_size() for part in (self.weight, self.bias) if part is not None)


def pack(state: Packed, owner: nn.Module, names: tuple[str, ...]) -> str:
    """Pack ``owner``'s Linears ``names`` into ``state``; return "" or the reason why they stay as they are.

    A state that went stale because some of the Linears changed gives the others storage of their own first.
    """
    return pack_linears(state, owner, tuple(owner.__dict__["_modules"].get(name) for name in names))


def pack_linears(state: Packed, owner: nn.Module, linears: tuple[nn.Module | None, ...]) -> str:
    """As pack(), for Linears that may sit anywhere below ``owner``."""
    with _lock:
        reason = why_not(linears)
        if reason:
            return reason
        present = [linear for linear in linears if linear is not None]
        weights = [linear.__dict__["_parameters"]["weight"] for linear in present]
        biases = [linear.__dict__["_parameters"]["bias"] for linear in present]
        biases = [] if biases[0] is None else biases
        if _whole(weights) is None:
            unpack(state)
        reason = _storage_reason(weights) or _storage_reason(biases)
        if reason:
            return reason
        with torch.inference_mode(False), torch.no_grad():
            state.weight = _together(weights)
            state.bias = _together(biases) if biases else None
            state.linears, state.owner = tuple(present), id(owner)
            state.sizes = [weight.shape[0] for weight in weights]
            kinds = [("weight", weights), ("bias", biases)] if biases else [("weight", weights)]
            keyed = [[(key, part, part.detach()) for part in parts] for key, parts in kinds]
            state.rows = tuple(zip(*keyed, strict=True))
        return ""


def unpack(state: Packed) -> None:
    """Give every parameter storage of its own again and empty the state."""
    with _lock, torch.inference_mode(False), torch.no_grad():
        for _, parameter, rows in (entry for own in state.rows for entry in own):
            if parameter.is_set_to(rows):
                parameter.data = rows.clone()
        state.clear()


def why_not(linears: tuple[nn.Module | None, ...], *, alike: bool = True) -> str:
    """Return "" when these Linears are of a kind that may be packed, else the reason.

    Without ``alike`` they need not read inputs of one width (they are packed in several matrices then).
    """
    if any(linear is None for linear in linears):
        return "one of the Linears is missing"
    for linear in linears:
        assert linear is not None
        reason = modules.why_not_plain(linear)
        if reason:
            return reason
    present = [linear.__dict__["_parameters"] for linear in linears if linear is not None]
    weights = [parameters["weight"] for parameters in present]
    biases = [parameters["bias"] for parameters in present if parameters["bias"] is not None]
    if biases and len(biases) != len(weights):
        return "some of the Linears have a bias and some have none"
    first = weights[0]
    if any(weight.dim() != 2 or (alike and weight.shape[1] != first.shape[1]) for weight in weights):
        return "the Linears read inputs of different width"
    if len({id(parameter) for parameter in (*weights, *biases)}) != len(weights) + len(biases):
        return "two of the Linears share a parameter"
    for parameter in (*weights, *biases):
        if parameter.dtype != first.dtype or parameter.device != first.device:
            return "the parameters differ in dtype or device"
        if parameter.is_meta or not parameter.is_floating_point() or parameter.is_inference():
            return "a parameter is on meta, not floating point, or made under inference mode"
    if capturing():
        return "a stream is being captured"
    return ""


def _storage_reason(parameters: list[nn.Parameter]) -> str:
    """Re-pointing a parameter would tear it from whatever else lives in its storage: refuse, unless the rows are
    packed together already.
    """
    if not parameters or _whole(parameters) is not None:
        return ""
    for parameter in parameters:
        storage = parameter.untyped_storage()
        if parameter.device.type == "cpu" and storage.is_shared():
            return "a parameter lives in memory shared with another process"
        if not _alone(parameter, storage):
            return "a parameter's storage is shared with another tensor (tied, sharded or packed by somebody else)"
    return ""


def _alone(parameter: nn.Parameter, storage: torch.UntypedStorage) -> bool:
    """Return True when nobody but ``parameter`` (and this handle) holds the storage.

    torch has no public name for the count; where it is missing, only a storage of exactly the parameter's size is
    trusted.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return storage.nbytes() == parameter.numel() * parameter.element_size()
    return bool(count(storage._cdata) <= 2)


def _together(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor that holds all parameters' rows, each parameter re-pointed to its own; adopts one that does already.

    A parameter gets a storage object of its own over its rows (a DLPack view, which keeps the matrix alive): tools that
    save models take parameters with one storage for tied ones, and drop all but the first.
    """
    whole = _whole(parameters)
    if whole is not None:
        return whole
    first = parameters[0]
    sizes = [parameter.shape[0] for parameter in parameters]
    whole = torch.empty((sum(sizes), *first.shape[1:]), dtype=first.dtype, device=first.device)
    for parameter, rows in zip(parameters, whole.split_with_sizes(sizes), strict=True):
        rows.copy_(parameter)
        parameter.data = torch.from_dlpack(rows)  # type: ignore[attr-defined]
    _wholes[whole.data_ptr()] = whole
    return whole


def _whole(parameters: list[nn.Parameter]) -> Tensor | None:
    """Return the packed matrix that consists of exactly these parameters, made for another module that shares them."""
    whole = _wholes.get(parameters[0].data_ptr())
    if whole is None or whole.dtype is not parameters[0].dtype or whole.device != parameters[0].device:
        return None
    sizes = [parameter.shape[0] for parameter in parameters]
    if whole.shape != (sum(sizes), *parameters[0].shape[1:]):
        return None
    pairs = zip(parameters, whole.split_with_sizes(sizes), strict=True)
    same = all(
        parameter.data_ptr() == rows.data_ptr() and parameter.stride() == rows.stride() for parameter, rows in pairs
    )
    return whole if same else None
