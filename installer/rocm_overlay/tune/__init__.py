"""GEMM tuning tables that are found, right and used: shapes, merge, check, report, estimate, and driving the tuner.

Standard library only: nothing in here imports torch, pandas or aiter, so that every command but the measuring ones
runs on any machine. (The scripts in on_device/ do; they are started under the device's interpreter, never imported.)
"""
