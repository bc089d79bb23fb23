"""Contract tests of tier aiter: amd_ops against the stand-in of tests/doubles/aiter."""
