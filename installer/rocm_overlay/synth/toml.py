"""Reading TOML: the standard library's reader, or tomli on Python 3.10."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rocm_overlay.errors import BundleError, TargetError


def read(path: Path) -> dict[str, Any]:
    """Return a TOML file's table.

    Raises:
        BundleError: the file is missing or broken.
        TargetError: Python 3.10 without tomli.
    """
    if sys.version_info >= (3, 11):
        import tomllib as reader
    else:
        try:
            import tomli as reader  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise TargetError(
                "no-tomli",
                "Python 3.10 needs tomli to read the operator lists.",
                remedy="run `pip install tomli`",
            ) from error
    try:
        return dict(reader.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BundleError(
            "bad-data", f"{path} cannot be read: {error}", remedy="correct the file, or reinstall the package"
        ) from error
