"""Reports: plain lines for people, one versioned JSON object for programs. Colour and tables only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rocm_overlay.install.catalog import Manifest
    from rocm_overlay.install.deep import Deep
    from rocm_overlay.install.hook.installed import HookOutcome
    from rocm_overlay.install.inspection import Status
    from rocm_overlay.install.operations import Outcome
    from rocm_overlay.install.target import Target
    from rocm_overlay.install.transaction.errors import OverlayError
    from rocm_overlay.install.transaction.recovery import Recovered


def outcome(command: str, result: Outcome, *, as_json: bool) -> int:
    """Report an install, revert or recover; return exit code 0."""
    changes, done = result.changes, result.done
    notes = result.notes
    if as_json:
        print_json(
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
                "adopted": list(changes.adopted),
                "mode": "files",
                "hook": result.hook,
                "notes": list(notes),
            },
        )
        return 0
    print(where(result.target))
    if result.recovered:
        print(_recovery_line(result.recovered))
    if result.hook is not None:
        print(f"hook {'would be ' if result.action == 'planned' else ''}removed: {result.hook}")
    if result.hook is None or result.changes.plan is not None:
        print(_summary(command, result))
    for path in changes.installed + changes.updated:
        print(f"  overlay  {path}")
    for path in changes.removed:
        print(f"  stock    {path}")
    for path in done.rescued if done else ():
        print(f"  your text was kept in {path}")
    print_notes(notes)
    return 0


def hook(command: str, result: HookOutcome, *, as_json: bool) -> int:
    """Report an install of the import hook; return exit code 0."""
    served = [file.path for file in result.files if file.served]
    if as_json:
        print_json(
            command,
            {
                "action": result.action,
                "target": result.target.to_json(),
                "overlay": _overlay(result.manifest),
                "files": {
                    "installed": [] if result.action == "nothing" else served,
                    "updated": [],
                    "removed": [],
                    "unchanged": served if result.action == "nothing" else [],
                },
                "transaction": None,
                "rescued": [],
                "recovered": None,
                "adopted": [],
                "mode": "hook",
                "hook": result.path,
                "notes": list(result.notes),
            },
        )
        return 0
    print(where(result.target))
    would = {"planned": "would be: ", "nothing": "nothing to do: "}.get(result.action, "")
    print(f"{command} {result.manifest.version} as a hook: {would}{len(served)} files served at import")
    print(f"  {result.path}")
    for path in served:
        print(f"  served   {path}")
    print_notes(result.notes)
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
        print_json(
            "status",
            {
                "state": found.state.value,
                "target": found.target.to_json(),
                "receipt": desired,
                "files": files,
                "recovered": _recovered(found.recovered),
                "mode": found.mode,
                "deep": None if found.deep is None else {**_lists(found.deep), "clean": found.deep.clean},
                "notes": list(found.notes),
            },
        )
        return
    print(where(found.target))
    if found.recovered:
        print(_recovery_line(found.recovered))
    print(f"state: {found.state.value}")
    if receipt is not None:
        print(f"overlay {receipt.overlay_version}, manifest {receipt.manifest_sha256[:12]}, applied {receipt.time}")
    rows = [(file.model, file.path, file.state.value) for file in found.files]
    table(("model", "file", "now"), rows)
    if found.deep is not None:
        _deep(found.deep)
    print_notes(found.notes)


def _deep(deep: Deep) -> None:
    if not deep.recorded:
        print("deep: the distribution has no RECORD, so nothing can be compared")
        return
    print(
        f"deep: {deep.checked} files hashed, {len(deep.overlaid)} overlaid, "
        f"{'no other difference' if deep.clean else 'other differences:'}"
    )
    for word in ("modified", "missing", "unreadable", "added"):
        for path in getattr(deep, word):
            print(f"  {word:10} {path}")


def _lists(value: object) -> dict[str, object]:
    return {name: list(one) if isinstance(one, tuple) else one for name, one in vars(value).items()}


def diff(target: Target, differences: Sequence[tuple[str, bytes]], *, as_json: bool) -> None:
    """Report unified diffs."""
    if as_json:
        files = [{"path": path, "diff": text.decode("utf-8", "replace")} for path, text in differences]
        print_json("diff", {"target": target.to_json(), "files": files})
        return
    raw(b"".join(text for _, text in differences))


def raw(data: bytes) -> None:
    """Write bytes: in the encoding of a terminal a patch could not be applied, and some cannot show it at all."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
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
        print_json("list", {"lines": lines})
        return
    for manifest in manifests:
        print(f"transformers {manifest.line}: {', '.join(manifest.releases)}  (overlay {manifest.version})")
        rows = []
        for model in manifest.models():
            files = [file for file in manifest.files if file.model == model]
            recipes = sorted({edit.recipe for file in files for edit in file.edits} - {"marker", "import"})
            rows.append((model, str(len(files)), ", ".join(recipes)))
        table(("model", "stock texts", "recipes"), rows)
    if not manifests:
        print("this bundle has no overlays")


def failure(command: str, error: OverlayError, *, as_json: bool) -> int:
    """Report a refusal; return its exit code."""
    if as_json:
        print_json(command, {"error": error.to_json()}, ok=False)
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
        print_json(command, {"error": details}, ok=False)


def print_json(command: str, body: Mapping[str, object], *, ok: bool = True) -> None:
    print_document({"schema": f"amd-overlay.{command}/1", "ok": ok, **body})


def print_document(value: Mapping[str, object]) -> None:
    """Print JSON whose form is another's (SARIF, CycloneDX), or ours with its envelope."""
    print(json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1))


def where(target: Target) -> str:
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


def print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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
