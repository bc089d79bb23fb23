"""Finds an installed transformers, chooses overlays by hash and swaps files in a recoverable transaction.

Nothing in here imports torch, transformers or libcst.
"""
