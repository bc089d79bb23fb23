"""What a starting interpreter runs in no-touch mode: it puts one finder in place and loads nothing else.

Executed from the `.pth` file of `overlay install --mode hook`, or from `path/sitecustomize.py` under `overlay run`. The
finder itself is loaded when the first module of ``transformers.models`` is asked for, so that every other Python of the
environment starts as fast as before.

Python 3.15 reads structured ``<name>.start`` files (PEP 829) and retires import lines in ``.pth`` files over three
years. Both forms need nothing but a call of `begin`, so a ``.start`` file can take the place of the ``.pth`` file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Gate:
    """Stands first on ``sys.meta_path`` until transformers is imported, then makes way for the real finder."""

    amd_overlay = True

    def __init__(self, settings: Mapping[str, object], served: str) -> None:
        self.settings = settings
        self.served = served

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        """Return None for everything outside ``transformers.models``; ask the real finder for what is inside."""
        if not fullname.startswith("transformers.models."):
            return None
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location("_amd_overlay_served", self.served)
        if spec is None or spec.loader is None:
            return None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        finder = module.ServedFinder(self.settings)
        sys.meta_path[:] = [finder if one is self else one for one in sys.meta_path]
        return finder.find_spec(fullname, path)


def begin(settings: Mapping[str, object], served: str) -> None:
    """Put the gate first, once per process: the ``.pth`` file and ``overlay run`` may both be there."""
    if not any(getattr(finder, "amd_overlay", False) for finder in sys.meta_path):
        sys.meta_path.insert(0, Gate(settings, served))
