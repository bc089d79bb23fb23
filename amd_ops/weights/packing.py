"""Zero-copy packing of Linears that read the same input: one matrix holds all their weights, each Linear keeps its
rows of it.

Every Linear's ``weight.data`` (and bias) is re-pointed to its rows, so names, parameters, state_dict, in-place
updates and saving work as before and no byte is stored twice. A packed matrix is used only while every parameter that
the modules have *now* lies at its own rows: the memory that stock would read is looked at, whoever moved, replaced,
shared or wrapped what. Nothing here keeps a module, a parameter or the matrix alive: the rows do, so its bytes are free
as soon as the last parameter has left.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import frozen, modules
from ..dispatch import capturing, new_lock_after_fork

KEY = "_amd_packed"
"""Where a module keeps its packed groups, in its ``__dict__``."""

_lock = threading.RLock()
new_lock_after_fork(__name__)
# The packed matrices that are in use, by address: modules that share parameters share one.
_wholes: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


def lock() -> threading.RLock:
    """Return the lock under which groups are packed and unpacked."""
    return _lock


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


class Part(NamedTuple):
    """Where one parameter of a Linear lies in the packed matrix."""

    key: str
    address: int
    shape: torch.Size
    strides: tuple[int, ...]


class Packed:
    """The packed matrix of some Linears of one module: made complete, and never changed after that."""

    __slots__ = ("_bias", "_weight", "dtype", "linears", "names", "owner", "parts", "sizes", "whole")

    def __init__(self, owner: nn.Module, names: tuple[str, ...], linears: list[nn.Module]) -> None:
        keys = ("weight",) if linears[0].__dict__["_parameters"]["bias"] is None else ("weight", "bias")
        packed = [[linear.__dict__["_parameters"][key] for linear in linears] for key in keys]
        wholes = [weakref.ref(_together(parameters)) for parameters in packed]
        self._weight = wholes[0]
        self._bias = wholes[1] if len(wholes) > 1 else None
        self.owner, self.names = id(owner), names
        self.linears = [weakref.ref(linear) for linear in linears]
        self.dtype: torch.dtype = packed[0][0].dtype
        self.sizes: list[int] = [weight.shape[0] for weight in packed[0]]
        self.parts = [
            tuple(Part(key, one.data_ptr(), one.shape, one.stride()) for key, one in zip(keys, own, strict=True))
            for own in zip(*packed, strict=True)
        ]
        # What experts.py keeps with a packed list of experts.
        self.whole: Any = None

    @property
    def weight(self) -> Tensor | None:
        """The packed matrix [sum of N, K], None when no parameter lives in it any more."""
        return self._weight()

    @property
    def bias(self) -> Tensor | None:
        """The packed bias [sum of N], or None."""
        return None if self._bias is None else self._bias()

    def fresh(self, owner: nn.Module) -> str:
        """Return "" while the packed matrix is the weights that ``owner``'s Linears have now, else what changed.

        Runs at every use, so it repeats why_not_plain's tests in the cheapest order and asks for the reason only on
        failure. While the matrix is alive, nothing else can lie at the addresses of its rows.
        """
        if self.owner != id(owner) or self._weight() is None:
            return NOT_PACKED
        if modules.linears_patched() or modules.watched_globally():
            return "nn.Linear is patched or watched globally"
        children, dtype, bare = owner.__dict__["_modules"], self.dtype, self._bias is None
        for name, own in zip(self.names, self.parts, strict=True):
            linear = children.get(name)
            if type(linear) is not nn.Linear or modules.altered(linear.__dict__):
                return "a Linear was replaced" if linear is None else modules.why_not_plain(linear)
            parameters = linear.__dict__["_parameters"]
            if bare and parameters.get("bias") is not None:
                return "a bias was added"
            for key, address, shape, strides in own:
                now = parameters.get(key)
                if type(now) is not nn.Parameter:
                    if frozen.address(now) == address:
                        continue
                    return MOVED
                if now.data_ptr() != address or now.shape != shape or now.stride() != strides or now.dtype is not dtype:
                    return MOVED
        return ""

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the group's Linears have now."""
        linears = [linear.__dict__["_parameters"] for linear in (ref() for ref in self.linears) if linear is not None]
        return [one for parameters in linears for one in parameters.values() if one is not None]

    def needs_grad(self) -> bool:
        """Return True when autograd would want gradients of these parameters."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def untrainable(self) -> bool:
        """Return True where a frozen parameter wants a gradient: autograd would hand its memory around."""
        return any(one.requires_grad and type(one) is not nn.Parameter for one in self.parameters())

    def differentiable(self, x: Tensor) -> list[nn.Parameter]:
        """Return the weights and then the biases where autograd records what is done with them and ``x``, else [].

        With frozen parameters that want no gradient the matrix itself is used, which gives ``x`` its own; those that
        want one are for ``untrainable`` to refuse.
        """
        owned = [linear.__dict__["_parameters"] for linear in (ref() for ref in self.linears) if linear is not None]
        keys = ("weight",) if self._bias is None else ("weight", "bias")
        found = [parameters[key] for key in keys for parameters in owned]
        if not x.requires_grad and not any(one.requires_grad for one in found):
            return []
        return [] if any(type(one) is not nn.Parameter for one in found) else found

    def nbytes(self) -> int:
        """Size of the packed matrix and bias (which replace the separate ones)."""
        return sum(part.numel() * part.element_size() for part in (self.weight, self.bias) if part is not None)


def nbytes() -> int:
    """Return the bytes of all packed matrices and biases that are alive."""
    return sum(whole.numel() * whole.element_size() for whole in tuple(_wholes.values()))


NOT_PACKED = "not packed"
MOVED = "a parameter moved or was replaced"


def group(owner: nn.Module, names: tuple[str, ...]) -> Packed | None:
    """Return what was packed for ``owner``'s Linears ``names``, however stale it may be by now."""
    states = owner.__dict__.get(KEY)
    return states.get(names) if type(states) is States else None


def pack(owner: nn.Module, names: tuple[str, ...]) -> Packed | str:
    """Pack ``owner``'s Linears ``names``, unless another thread just has; or return the reason why they stay as they
    are. What went stale because some of the Linears changed gives the others storage of their own first.
    """
    children = owner.__dict__["_modules"]
    with _lock:
        known = group(owner, names)
        if known is not None and not known.fresh(owner):
            return known
        return pack_linears(owner, names, tuple(children.get(name) for name in names))


def pack_linears(owner: nn.Module, names: tuple[str, ...], linears: tuple[nn.Module | None, ...]) -> Packed | str:
    """As pack(), for Linears that may sit anywhere below ``owner``; the group is kept under ``names``."""
    with _lock:
        reason = why_not(linears)
        if reason:
            return reason
        present = [linear for linear in linears if linear is not None]
        weights = [linear.__dict__["_parameters"]["weight"] for linear in present]
        biases = [linear.__dict__["_parameters"]["bias"] for linear in present]
        biases = [] if biases[0] is None else biases
        for parameter in (*weights, *biases):
            frozen.thaw(parameter, "packed anew")
        known = group(owner, names)
        if known is not None and known.owner == id(owner) and _whole(weights) is None:
            unpack(known)
        reason = _storage_reason(weights) or _storage_reason(biases)
        if reason:
            return reason
        with torch.inference_mode(False), torch.no_grad():
            made = Packed(owner, names, present)
        # Published when it is complete: readers hold no lock.
        _states(owner)[names] = made
        return made


def _states(owner: nn.Module) -> States:
    """The module's own groups: new, unpickled or a shallow copy's, which carries those of the original."""
    states = owner.__dict__.get(KEY)
    if type(states) is not States or any(packed.owner != id(owner) for packed in states.values()):
        states = owner.__dict__[KEY] = States()
    return states


def unpack(packed: Packed) -> None:
    """Give every parameter that still lies in the packed matrix storage of its own again."""
    with _lock, torch.inference_mode(False), torch.no_grad():
        whole = [part for part in (packed.weight, packed.bias) if part is not None]
        for parameter in packed.parameters() if whole else []:
            frozen.thaw(parameter, "unpacked")
            if any(_within(parameter, part) for part in whole):
                parameter.data = parameter.detach().clone()


def _within(parameter: Tensor, whole: Tensor) -> bool:
    """Return True when a parameter's first element lies in ``whole``."""
    first = whole.data_ptr()
    return first <= parameter.data_ptr() < first + whole.numel() * whole.element_size()


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
        if not alone(parameter, storage):
            return "a parameter's storage is shared with another tensor (tied, sharded or packed by somebody else)"
    return ""


def alone(parameter: Tensor, storage: torch.UntypedStorage) -> bool:
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
        _repoint(parameter, rows, whole)
    _wholes[whole.data_ptr()] = whole
    return whole


def _repoint(parameter: nn.Parameter, rows: Tensor, whole: Tensor) -> None:
    """Let ``parameter`` live in ``rows``: its storage holds the rows, the rows hold the matrix; nobody else does."""
    if any(size < 2 for size in rows.shape):  # DLPack would make another view of these, which holds nothing
        strides = [1 if size < 2 else stride for size, stride in zip(rows.shape, rows.stride(), strict=True)]
        rows = rows.as_strided(rows.shape, strides)
    alive = weakref.ref(rows)
    rows._amd_whole = whole  # type: ignore[attr-defined]
    parameter.data = torch.from_dlpack(rows)  # type: ignore[attr-defined]
    storage: Any = parameter.untyped_storage()
    del rows
    if alive() is None:  # an older torch, whose views do not keep their Python object
        storage._amd_whole = whole
    if hasattr(storage, "_swap_data_ptr_"):
        storage.resize_ = _Resize(weakref.ref(storage))


class _Resize:
    """``resize_`` of a storage that lies over rows of a packed matrix: it first becomes one of its own, as stock's is.

    Tools that free and refill weights in place (``untyped_storage().resize_(0)``) need that; torch resizes no memory
    that it did not allocate.
    """

    def __init__(self, storage: weakref.ref[Any]) -> None:
        self._storage = storage

    def __call__(self, size: int) -> Any:
        storage: Any = self._storage()
        own: Any = torch.UntypedStorage(storage.nbytes(), device=storage.device)  # type: ignore[no-untyped-call]
        own.copy_(storage)
        storage._swap_data_ptr_(own)
        del storage.resize_
        return storage.resize_(size)


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
        parameter.data_ptr() == rows.data_ptr() and parameter.is_contiguous() and parameter.shape == rows.shape
        for parameter, rows in pairs
    )
    return whole if same else None


def matrix_of(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the packed matrix whose rows ``parts`` are, one directly behind the other, as they lie in memory now."""
    whole = _wholes.get(parts[0].data_ptr())
    if whole is None or whole.dtype is not parts[0].dtype or whole.device != parts[0].device:
        return None
    at, rows, width, rest = whole.data_ptr(), 0, whole.element_size(), whole.shape[1:]
    for part in parts:
        if part.data_ptr() != at or part.shape[1:] != rest or part.dtype is not whole.dtype or not part.is_contiguous():
            return None
        at += part.numel() * width
        rows += part.shape[0]
    return whole if rows == whole.shape[0] else None
