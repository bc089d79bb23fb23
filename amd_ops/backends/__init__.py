"""Backends: kernels that come from outside torch."""

from __future__ import annotations


class Unusable(Exception):
    """A backend cannot serve an op, or run in this process at all; the text says why."""
