"""Tests of amd_ops on the tiers that a CPU runs."""
