"""Serves other source texts under stock module names, so that an overlaid model runs without a file being replaced.

Used by ``overlay verify`` (both texts in fresh processes, whatever is installed). Standard library only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType


class _UncachedLoader(SourceFileLoader):
    """Compiles the source on every import: reads and writes no ``__pycache__`` beside it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class SourceFinder(MetaPathFinder):
    """A finder for ``sys.meta_path`` that maps absolute module names to source files.

    The module keeps its stock name and package: relative imports, pickling by name and ``sys.modules`` work as usual.
    Its ``__file__`` is the given file, so `inspect.getsource` shows the text that runs. transformers reads names from
    that path, which is why a file must be called like its module (``.../models/llama/modeling_llama.py``).

    Raises `ValueError` for a name without a package, a file of another name, or a path that is no file.
    """

    def __init__(self, sources: Mapping[str, str | Path]) -> None:
        self._sources = {name: _checked(name, Path(path)) for name, path in sources.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a mapped module, None for every other name."""
        source = self._sources.get(fullname)
        if source is None:
            return None
        return spec_from_file_location(fullname, source, loader=_UncachedLoader(fullname, str(source)))

    def install(self) -> None:
        """Put the finder first on ``sys.meta_path``; `RuntimeError` when a mapped module is imported already."""
        late = sorted(self._sources.keys() & sys.modules.keys())
        if late:
            raise RuntimeError(
                f"{', '.join(late)} is imported already, so another source cannot be served for it: "
                "install the finder before anything imports the model"
            )
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Take the finder off ``sys.meta_path``; modules that it served stay loaded."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def __enter__(self) -> SourceFinder:
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def _checked(name: str, path: Path) -> Path:
    package, _, stem = name.rpartition(".")
    if not package:
        raise ValueError(f"{name!r} has no package: only a module inside a package can be served")
    if path.name != f"{stem}.py":
        raise ValueError(f"{path} cannot be served as {name}: the file must be called {stem}.py")
    if not path.is_file():
        raise ValueError(f"{path} cannot be served as {name}: there is no such file")
    return path.resolve()
