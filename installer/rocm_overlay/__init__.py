"""The `overlay` program: replaces transformers modeling files, verifies them and puts every byte back."""

__version__ = "0.1.0"
