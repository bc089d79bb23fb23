"""Everything that planning and status look at: the place, the release in it, its RECORD and our receipt."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from .record import Record
from .target import Target
from .transaction.entry import Observed
from .transaction.errors import TargetError
from .transaction.place import Place
from .transaction.receipt import Receipt

StockText = Callable[[str, str], "bytes | None"]


@dataclass(frozen=True)
class Situation:
    """Everything that planning looks at. ``receipt`` is None where it belongs to another release."""

    place: Place
    target: Target
    record: Record
    receipt: Receipt | None
    receipt_on_disk: dict[str, object] | None
    stock_text: StockText

    def observe(self, path: str) -> Observed | None:
        """Read a file of the package; None where it is missing. Raises TargetError where it cannot be read safely."""
        try:
            return self.place.tree.observe(self.place.target(path))
        except OSError as error:
            full = self.target.package / path
            linked = error.errno in (errno.ENOTDIR, errno.ELOOP)
            reason = "a folder on the way to it is a link" if linked else error.strerror or str(error)
            raise TargetError(
                "linked-folder" if linked else "unreadable",
                f"{full} cannot be handled: {reason}, expected a file in a folder of its own. Nothing was written.",
                remedy="install transformers as ordinary files that you may read, or leave this model out (--models)",
                paths=[full],
            ) from error
