"""Our own small Triton kernels: the fast tier where aiter's kernels do not run. This import brings no triton."""
