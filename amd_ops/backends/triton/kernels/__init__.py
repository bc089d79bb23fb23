"""The Triton kernels. Importing a module of this folder imports triton; ``launch.py`` decides when that may happen."""
