"""PatchConfig: patches written as decorated Python, put into a copy of a stock module."""
