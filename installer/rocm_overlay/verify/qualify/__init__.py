"""Qualification: which faster path is right *and* faster on this machine, for this model; the answer is a profile."""
