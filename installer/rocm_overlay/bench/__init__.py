"""Benchmarks of stock against overlaid code: one fresh process per cell and round, interleaved, raw samples kept."""
