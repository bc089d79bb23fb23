"""From a model's config.json to the matrix products of its forward pass."""

from .registry import MODEL_TYPES, read_model
from .spec import Linear, Model

__all__ = ["MODEL_TYPES", "Linear", "Model", "read_model"]
