"""Whole models: the overlaid text beside the stock one, in one process, on the same weights."""
