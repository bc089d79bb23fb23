"""Synthetic torch modules (`overlay synth`): sampled, validated in isolation, deduplicated, and used as fuzz corpus.

See docs/synth.md. Importing this package imports nothing heavy: torch lives in the validation processes.
"""
