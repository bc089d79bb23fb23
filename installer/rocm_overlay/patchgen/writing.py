"""Write generated files: everything is staged first, then put in place; a refused folder is left as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..errors import WriteError


def write_files(output: Path, files: Mapping[str, bytes], *, exact: bool = False) -> None:
    """Put files into a folder, which is created when absent.

    Args:
        output: the folder; neither it nor any folder or file to be written below it may be a symbolic link.
        files: bytes by POSIX path relative to ``output``.
        exact: remove every other file below ``output``.

    Raises:
        WriteError: the folder cannot be written; nothing was changed.
    """
    _refuse_links(output, files)
    try:
        parent = output.parent
        parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output if output.is_dir() else parent))
    except OSError as error:
        raise _cannot_write(output, error) from error
    try:
        made = stage / "made"
        _write_all(made, files)
        if not output.exists():
            os.replace(made, output)
            return
        _probe(output, files)
        for path in sorted(files):
            target = output / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / path, target)
        if exact:
            _remove_others(output, files, stage)
    except OSError as error:
        raise _cannot_write(output, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def holds(file: Path, data: bytes) -> bool:
    """Say whether a file is there with these bytes."""
    try:
        return file.read_bytes() == data
    except OSError:
        return False


def refuse_package(output: Path) -> None:
    """Refuse an output folder that is a transformers package: replacing installed files is the installer's work.

    Raises:
        WriteError: it is one.
    """
    if (output / "models" / "auto").is_dir() and (output / "__init__.py").is_file():
        raise WriteError(
            "output",
            f"{output} is a transformers package",
            expected="a folder of your own",
            remedy="`overlay install` replaces installed files with a way back",
        )


def _refuse_links(output: Path, files: Mapping[str, bytes]) -> None:
    if output.is_symlink():
        raise WriteError("output", f"the output folder {output} is a symbolic link", expected="a real folder")
    if output.exists() and not output.is_dir():
        raise WriteError("output", f"the output folder {output} is a file", expected="a folder")
    for path in sorted(files):
        below = output
        for part in PurePosixPath(path).parts:
            below = below / part
            if below.is_symlink():
                raise WriteError("output", f"{below} is a symbolic link", expected="a real folder or file, or nothing")
        if below.is_dir():
            raise WriteError("output", f"{below} is a folder", expected="a file, or nothing")


def _write_all(stage: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _probe(output: Path, files: Mapping[str, bytes]) -> None:
    """Create and remove a file in every existing folder that will be written, before the first replacement."""
    for folder in sorted({(output / path).parent for path in files}):
        existing = folder
        while not existing.exists():
            existing = existing.parent
        handle, name = tempfile.mkstemp(dir=existing)
        os.close(handle)
        os.unlink(name)


def _remove_others(output: Path, files: Mapping[str, bytes], stage: Path) -> None:
    kept = {output / path for path in files}
    for file in sorted(output.rglob("*"), reverse=True):
        if stage in file.parents or file == stage or "__pycache__" in file.parts:
            continue
        if file.is_dir() and not file.is_symlink():
            if not any(file.iterdir()):
                file.rmdir()
        elif file not in kept:
            file.unlink()


def _cannot_write(output: Path, error: OSError) -> WriteError:
    return WriteError(
        "output",
        f"cannot write {error.filename or output}",
        expected="a folder that this user may write, with enough space",
        found=error.strerror or str(error),
        remedy="choose another folder with -o",
    )
