"""A process of its own that writes to the tensors it is sent: a weight sync, a Hogwild worker."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor


def serve(inbox: Any, outbox: Any) -> None:
    """Add to each tensor what belongs to it, in the memory that was sent, and send back new tensors of these values."""
    torch.set_num_threads(1)
    while (sent := inbox.get()) is not None:
        with torch.no_grad():
            for tensor, more in sent:
                tensor.add_(more)
            outbox.put([tensor.detach().clone() for tensor, _ in sent])
        del sent


@functools.cache
def _queues() -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=serve, args=(inbox, outbox), daemon=True)
    process.start()
    atexit.register(lambda: (inbox.put(None), process.join(20)))
    return inbox, outbox


def written_elsewhere(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Send (tensor, what to add) to the other process; what it wrote is in the tensors, and comes back as new ones."""
    inbox, outbox = _queues()
    inbox.put(pairs)
    return [tensor.clone() for tensor in outbox.get(timeout=300)]
