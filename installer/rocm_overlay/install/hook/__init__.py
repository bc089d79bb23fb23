"""No-touch mode: overlays are served under stock module names, and no file of transformers is changed."""

from .sources import SourceFinder

__all__ = ["SourceFinder"]
