"""Everything that planning and status look at: the place, the release in it, its RECORD and our receipt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .record import Record
from .target import Target
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
