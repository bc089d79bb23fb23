"""`overlay scan`: which NVIDIA-only libraries a source tree uses, what takes their place, and if hipify does it."""

from .engine import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
