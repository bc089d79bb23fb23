"""Backends: kernels that come from outside torch."""
