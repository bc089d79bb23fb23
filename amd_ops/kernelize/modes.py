"""Modes a kernel serves and modes a model is kernelized for."""

from __future__ import annotations

from enum import Flag, auto

from .errors import RegistrationError


class Mode(Flag):
    """TRAIN needs a backward, INFERENCE does not, COMPILE means that the kernel may be traced by torch.compile."""

    TRAIN = auto()
    INFERENCE = auto()
    COMPILE = auto()


_NAMES = {
    "train": Mode.TRAIN,
    "training": Mode.TRAIN,
    "inference": Mode.INFERENCE,
    "infer": Mode.INFERENCE,
    "compile": Mode.COMPILE,
    "torch_compile": Mode.COMPILE,
}
BOTH = Mode.TRAIN | Mode.INFERENCE


def parse_mode(text: str | Mode | None, where: str) -> Mode | None:
    """Parse ``"train"``, ``"inference|compile"``, ``"train+compile"`` or a Mode; None stays None (any mode).

    Raises RegistrationError that names ``where``, the value found and the accepted words.
    """
    if text is None or isinstance(text, Mode):
        return text
    if not isinstance(text, str):
        raise RegistrationError(f"{where}: mode must be a string or a Mode, found {type(text).__name__}")
    mode = Mode(0)
    for word in text.lower().replace("+", "|").replace(",", "|").split("|"):
        word = word.strip()
        if word not in _NAMES:
            raise RegistrationError(
                f"{where}: unknown mode {text!r}; use train, inference, compile or a sum such as 'train+compile'"
            )
        mode |= _NAMES[word]
    return mode


def mode_name(mode: Mode | None) -> str:
    """Return the spelling that parse_mode reads back; 'any' for None."""
    if mode is None:
        return "any"
    parts = [
        name
        for name, bit in (("train", Mode.TRAIN), ("inference", Mode.INFERENCE), ("compile", Mode.COMPILE))
        if bit in mode
    ]
    return "+".join(parts)


def serves(kernel: Mode | None, *, training: bool, compiled: bool) -> int | None:
    """Rank a kernel's mode for one state of a module: 0 is the best, None means that it does not serve it.

    A training kernel also serves inference (it only keeps more), an inference kernel never serves training. A kernel
    registered for compile may run eagerly, one that is not may not be traced. A registration that names only
    ``compile`` says nothing about train or inference and serves both when compiled.
    """
    if kernel is None:
        return 3
    if compiled and Mode.COMPILE not in kernel:
        return None
    states = kernel & BOTH
    if not states:
        return 2 if compiled else None
    wanted = Mode.TRAIN if training else Mode.INFERENCE
    if wanted in states:
        rank = 0 if states == wanted else 1
    elif not training:
        rank = 2
    else:
        return None
    return rank + (0 if (Mode.COMPILE in kernel) == compiled else 1)
