"""Two patches on one definition: neither may win silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .definition import accessor_in
from .patches import AddHelper, CodePatch, Patch, PatchConflictError


def find_conflicts(patches: Sequence[Patch]) -> Iterator[PatchConflictError]:
    """Yield one error per pair of patches that claim the same class, function, method or name."""
    for index, second in enumerate(patches):
        for first in patches[:index]:
            shared = _shared(first, second)
            if shared:
                yield PatchConflictError(
                    f"two patches claim {shared}",
                    place=second.place,
                    expected="one patch per definition",
                    found=f"{first.kind} of {first.target} at {first.place}",
                    remedy="merge them into one patch",
                )


def _shared(first: Patch, second: Patch) -> str | None:
    for one in first.claims:
        for two in second.claims:
            if one == two and _accessor(first) == _accessor(second):
                return one
            # A class and a method in it: the method's patch would vanish with the class.
            if one.startswith(f"{two}.") or two.startswith(f"{one}."):
                return max(one, two, key=len)
    return None


def _accessor(patch: Patch) -> str:
    """The getter and the setter of one property are two definitions."""
    if isinstance(patch, CodePatch) and not isinstance(patch, AddHelper):
        return accessor_in(patch.definition.text)
    return ""
