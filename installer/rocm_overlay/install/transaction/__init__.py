"""The recoverable transaction over files. Imports the standard library, packaging and filelock, nothing else."""
