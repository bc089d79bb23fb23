"""GEMM tuning tables that are found, right and used: shapes, merge, check, report, estimate and a driver for the device's tuner.

Standard library only: nothing in here imports torch, pandas or aiter, so that every command but the measuring ones runs on any machine.
"""
