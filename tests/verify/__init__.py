"""Tests of `overlay verify` and of the import hook under it."""
