"""Reports: plain lines for people, one versioned JSON object for programs. Colour and tables only on a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rocm_overlay.install.catalog import Manifest
    from rocm_overlay.install.inspection import Status
    from rocm_overlay.install.operations import Outcome
    from rocm_overlay.install.target import Target
    from rocm_overlay.install.transaction.errors import OverlayError
    from rocm_overlay.install.transaction.recovery import Recovered


class _Raw(io.RawIOBase):
    """A file descriptor whose first failure is kept instead of raised; what is written after it is dropped.

    The work of a command must not look failed, and its exit code must not depend on when the reader of a pipe left.
    """

    def __init__(self, fd: int, problem: OSError | None = None) -> None:
        self.fd = fd
        self.problem = problem

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return self.problem is None and os.isatty(self.fd)

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        if self.problem is None:
            try:
                return os.write(self.fd, view)
            except OSError as error:
                self.problem = error
        return view.nbytes


@contextmanager
def guarded() -> Iterator[_Raw | None]:
    """Replace stdout and stderr of the process by streams that keep failures; yield that of stdout.

    Streams that somebody else put there, as tests do, stay and give None.
    """
    kept = sys.stdout, sys.stderr
    raw = None
    if sys.stdout is sys.__stdout__:
        raw, sys.stdout = _stream(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        _, sys.stderr = _stream(sys.stderr, 2)
    try:
        yield raw
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept


def _stream(old: TextIO | None, fd: int) -> tuple[_Raw, io.TextIOWrapper]:
    """Return a stream like ``old``, which is None where the process was started with a closed descriptor."""
    if old is None:
        raw = _Raw(fd, OSError(errno.EBADF, os.strerror(errno.EBADF)))
        return raw, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    old.flush()
    raw = _Raw(old.fileno())
    text = io.TextIOWrapper(
        io.BufferedWriter(raw), old.encoding, "backslashreplace", line_buffering=fd == 2 or raw.isatty()
    )
    return raw, text


def unwritten(command: str, code: int, problem: OSError) -> None:
    """Say that the report is lost, unless its reader left, as `head` does; the exit code stays that of the work."""
    if not isinstance(problem, BrokenPipeError):
        reason = problem.strerror or str(problem)
        print(
            f"overlay {command}: the report could not be written ({reason}); the work itself ended with exit code "
            f"{code}\n  next: run `overlay status` to see what is applied",
            file=sys.stderr,
        )


def outcome(command: str, result: Outcome, *, as_json: bool) -> int:
    """Report an install, revert or recover; return exit code 0."""
    changes, done = result.changes, result.done
    notes = result.notes
    if as_json:
        _print_json(
            command,
            {
                "action": result.action,
                "target": result.target.to_json(),
                "overlay": _overlay(result.manifest),
                "files": {
                    "installed": list(changes.installed),
                    "updated": list(changes.updated),
                    "removed": list(changes.removed),
                    "unchanged": list(changes.unchanged),
                },
                "transaction": done.id if done else None,
                "rescued": list(done.rescued if done else ()),
                "recovered": _recovered(result.recovered),
                "notes": list(notes),
            },
        )
        return 0
    print(_where(result.target))
    if result.recovered:
        print(_recovery_line(result.recovered))
    print(_summary(command, result))
    for path in changes.installed + changes.updated:
        print(f"  overlay  {path}")
    for path in changes.removed:
        print(f"  stock    {path}")
    for path in done.rescued if done else ():
        print(f"  your text was kept in {path}")
    _notes(notes)
    return 0


def status(found: Status, *, as_json: bool) -> None:
    """Report desired against actual."""
    receipt = found.receipt
    if as_json:
        desired = None
        if receipt is not None:
            desired = {
                "line": receipt.line,
                "version": receipt.overlay_version,
                "manifest_sha256": receipt.manifest_sha256,
                "transformers": receipt.target.version,
                "time": receipt.time,
            }
        files = [{**file.__dict__, "state": file.state.value} for file in found.files]
        _print_json(
            "status",
            {
                "state": found.state.value,
                "target": found.target.to_json(),
                "receipt": desired,
                "files": files,
                "recovered": _recovered(found.recovered),
                "notes": list(found.notes),
            },
        )
        return
    print(_where(found.target))
    if found.recovered:
        print(_recovery_line(found.recovered))
    print(f"state: {found.state.value}")
    if receipt is not None:
        print(f"overlay {receipt.overlay_version}, manifest {receipt.manifest_sha256[:12]}, applied {receipt.time}")
    rows = [(file.model, file.path, file.state.value) for file in found.files]
    _table(("model", "file", "now"), rows)
    _notes(found.notes)


def diff(target: Target, differences: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """Report unified diffs."""
    if as_json:
        files = [{"path": path, "diff": text} for path, text in differences]
        _print_json("diff", {"target": target.to_json(), "files": files})
        return
    # A patch is bytes: in the encoding of a terminal it could not be applied, and some cannot show it at all.
    sys.stdout.flush()
    for _, text in differences:
        sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()


def listing(manifests: Sequence[Manifest], *, as_json: bool) -> None:
    """Report what the bundle has."""
    if as_json:
        lines = [
            {
                **(_overlay(manifest) or {}),
                "releases": list(manifest.releases),
                "models": {model: sum(file.model == model for file in manifest.files) for model in manifest.models()},
            }
            for manifest in manifests
        ]
        _print_json("list", {"lines": lines})
        return
    for manifest in manifests:
        print(f"transformers {manifest.line}: {', '.join(manifest.releases)}  (overlay {manifest.version})")
        rows = []
        for model in manifest.models():
            files = [file for file in manifest.files if file.model == model]
            recipes = sorted({edit.recipe for file in files for edit in file.edits} - {"marker", "import"})
            rows.append((model, str(len(files)), ", ".join(recipes)))
        _table(("model", "stock texts", "recipes"), rows)
    if not manifests:
        print("this bundle has no overlays")


def environment(profile: str, assignments: dict[str, str | None], *, as_json: bool) -> None:
    """Print shell lines that set a profile."""
    if as_json:
        _print_json("env", {"profile": profile, "variables": assignments})
        return
    for name, value in assignments.items():
        print(f"unset {name}" if value is None else f"export {name}={value}")


def failure(command: str, error: OverlayError, *, as_json: bool) -> int:
    """Report a refusal; return its exit code."""
    if as_json:
        _print_json(command, {"error": error.to_json()}, ok=False)
    print(
        f"overlay {command}: {error.message}" if command != "overlay" else f"overlay: {error.message}", file=sys.stderr
    )
    print(f"  next: {error.remedy}", file=sys.stderr)
    return error.code


def bug(command: str, error: Exception, *, as_json: bool) -> None:
    """Report a bug of ours, with its traceback."""
    import traceback

    from rocm_overlay.install.transaction.errors import BUG

    traceback.print_exception(type(error), error, error.__traceback__)
    message = f"{type(error).__name__}: {error}"
    remedy = "this is a bug in overlay: please report it with the lines above, then run `overlay status`"
    print(f"overlay {command}: {message}\n  next: {remedy}", file=sys.stderr)
    if as_json:
        details = {"code": BUG, "id": "bug", "message": message, "paths": [], "remedy": remedy}
        _print_json(command, {"error": details}, ok=False)


def _print_json(command: str, body: dict[str, object], *, ok: bool = True) -> None:
    value = {"schema": f"amd-overlay.{command}/1", "ok": ok, **body}
    print(json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1))


def _where(target: Target) -> str:
    release = f"transformers {target.version}" if target.version else "no transformers"
    return f"{release} in {target.package} ({target.kind}, python: {target.executable or 'not asked'})"


def _overlay(manifest: Manifest | None) -> dict[str, object] | None:
    if manifest is None:
        return None
    return {"line": manifest.line, "version": manifest.version, "manifest_sha256": manifest.sha256}


def _recovered(recovered: Recovered | None) -> dict[str, object] | None:
    if recovered is None:
        return None
    return {**recovered.__dict__, "paths": list(recovered.paths), "rescued": list(recovered.rescued)}


def _recovery_line(recovered: Recovered) -> str:
    return f"an interrupted {recovered.kind} was {recovered.outcome} ({len(recovered.paths)} files)"


def _summary(command: str, result: Outcome) -> str:
    changes = result.changes
    if result.action == "nothing" and command != "install":
        counted = len(changes.unchanged)
        return "nothing is installed here" if command == "revert" and not counted else "nothing is left open"
    if result.action == "nothing":
        return f"nothing to do: {len(changes.unchanged)} files are already as wanted"
    if result.action == "recovered":
        return "nothing is left open"
    counts = [
        f"{len(paths)} {word}"
        for paths, word in (
            (changes.installed, "installed"),
            (changes.updated, "updated"),
            (changes.removed, "back to stock"),
            (changes.unchanged, "unchanged"),
        )
        if paths
    ]
    version = f" {result.manifest.version}" if result.manifest else ""
    would = "would be: " if result.action == "planned" else ""
    return f"{command}{version}: {would}{', '.join(counts) or 'no files'}"


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows: with rich on a terminal, as aligned text elsewhere."""
    if not rows:
        return
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        from rich.console import Console
        from rich.table import Table

        table = Table(*header, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
