"""What the commands of this room show: a summary first, details for those who ask, one JSON object for programs."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import (
    complain,
    detail,
    duration,
    elapsed,
    facts,
    notes,
    print_document,
    print_json,
    raw,
    say,
    show,
    table,
    verbose,
    wants_json,
)
from ..shared import rules
from .spec import GENERATE
from .transaction.receipt import OWN
from .transaction.states import FileState, State

if TYPE_CHECKING:
    from .attest import Attestation
    from .catalog import Manifest
    from .deep import Deep
    from .doctor import Examination
    from .export import Patch
    from .hook.installed import HookOutcome
    from .hook.running import Started
    from .info import Info
    from .inspection import Status
    from .operations import Outcome
    from .profiles import Profile
    from .scan import Scan
    from .scan.table import Change
    from .target import Target
    from .transaction.recovery import Recovered

SEVERITIES = ("problem", "warning", "note")
UNSET = "no toggle is set, so overlays compute what was there before: AMD_OPS=auto in the environment turns them on"
OWN_ALONE = "these files are your own, which no toggle changes"


def files(count: int) -> str:
    """``1 file``, ``49 files``."""
    return f"{count} file{'' if count == 1 else 's'}"


def _summary(*parts: str | None) -> None:
    show(" \u00b7 ".join(part for part in parts if part))


def _unless_a_toggle_is_set(origins: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> None:
    """Say that overlaid files alone change nothing, to whoever may expect more; ``origins`` are those of the files."""
    if {*origins} == {OWN}:
        show(OWN_ALONE)
    elif not rules().requested(environ):
        show(UNSET)


def outcome(command: str, result: Outcome) -> int:
    """Report an install, revert or recover; return exit code 0."""
    changes, done = result.changes, result.done
    remarks = (*(result.recovered.notes if result.recovered else ()), *result.notes)
    if wants_json():
        return print_json(
            command,
            {
                **_common(result, "files", result.hook),
                "notes": remarks,
                "files": facts(changes, "installed updated removed unchanged"),
                "transaction": done.id if done else None,
                "rescued": done.rescued if done else (),
                "recovered": result.recovered and facts(result.recovered, "id kind outcome paths rescued"),
                "adopted": changes.adopted,
            },
        )
    if result.recovered:
        show(_recovery_line(result.recovered))
    if result.hook is not None:
        show(f"hook {'would be ' if result.action == 'planned' else ''}removed: {result.hook}")
    if result.hook is None or changes.plan is not None:
        _summary(_done(command, result), _release(result.target), _way_back(result))
    show(_where(result.target), indent="  ")
    detail(*(f"overlay  {path}" for path in changes.installed + changes.updated), indent="  ")
    detail(*(f"stock    {path}" for path in changes.removed), indent="  ")
    show(*(f"your text was kept in {path}" for path in (done.rescued if done else ())), indent="  ")
    if command == "install" and result.manifest is not None:
        _unless_a_toggle_is_set(file.origin for file in result.manifest.files)
    notes(remarks)
    return 0


def _common(result: Outcome | HookOutcome, mode: str, hook: str | None) -> dict[str, object]:
    return {
        "action": result.action,
        "target": result.target.to_json(),
        "overlay": _overlay(result.manifest),
        "mode": mode,
        "hook": hook,
        "notes": result.notes,
    }


def _done(command: str, result: Outcome) -> str:
    changes = result.changes
    if result.action == "nothing" and command == "install":
        return f"nothing to do: {files(len(changes.unchanged))} are already as wanted"
    if result.action == "nothing" and command == "revert" and not changes.unchanged:
        return "nothing is installed here"
    if result.action in ("nothing", "recovered"):
        return "nothing is left open"
    would = "would be " if result.action == "planned" else ""
    changed = changes.installed + changes.updated
    yours = {file.path for file in result.manifest.files if file.origin == OWN} if result.manifest else set()
    own = sum(path in yours for path in changed)
    parts = [f"{files(len(changed) - own)} {would}overlaid"] if len(changed) > own else []
    parts += [f"{files(own)} of your own {would}put in place"] if own else []
    parts += [f"{files(len(changes.removed))} {would}back to stock"] if changes.removed else []
    parts += [f"{len(changes.unchanged)} unchanged"] if changes.unchanged else []
    return (", ".join(parts) or "no files") + ("; nothing was written" if would else f" in {duration(elapsed())}")


def _release(target: Target) -> str | None:
    return f"transformers {target.version}" if target.version else None


def _way_back(result: Outcome) -> str | None:
    return "revert with `overlay revert`" if result.action == "installed" else None


def hook(command: str, result: HookOutcome) -> int:
    """Report an install of the import hook; return exit code 0."""
    served = [file.path for file in result.files if file.served]
    nothing = result.action == "nothing"
    if wants_json():
        listed = {"installed": [] if nothing else served, "unchanged": served if nothing else []}
        body = {"files": {**listed, "updated": [], "removed": []}, "transaction": None, "recovered": None}
        return print_json(command, {**_common(result, "hook", result.path), **body, "rescued": [], "adopted": []})
    would = {"planned": "would be ", "nothing": "are already "}.get(result.action, "")
    _summary(f"{files(len(served))} {would}served at import", _release(result.target), "remove with `overlay revert`")
    show(_where(result.target), str(result.path), indent="  ")
    detail(*(f"served   {path}" for path in served), indent="  ")
    _unless_a_toggle_is_set()
    notes(result.notes)
    return 0


def status(found: Status, code: int) -> int:
    """Report desired against actual; return ``code``, which `--check` decides."""
    receipt = found.receipt
    if wants_json():
        desired = receipt and {
            **facts(receipt, "line manifest_sha256 time"),
            "version": receipt.overlay_version,
            "transformers": receipt.target.version,
        }
        body = {
            "state": found.state.value,
            "target": found.target.to_json(),
            "receipt": desired,
            "files": [{**vars(file), "state": file.state.value} for file in found.files],
            "recovered": None,  # from when looking recovered, too; programs read it
            "mode": found.mode,
            "deep": found.deep and {**vars(found.deep), "clean": found.deep.clean},
            "notes": found.notes,
        }
        return print_json("status", body, code=code)
    counts = Counter(file.word for file in found.files)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda one: -one[1]))
    _summary(found.state.value, _release(found.target) or "no transformers", counted and f"files: {counted}")
    show(_where(found.target), indent="  ")
    if found.state is State.UNSUPPORTED:
        show(f"next: {GENERATE}", indent="  ")
    elif not code and found.state not in (State.APPLIED, State.STOCK):
        show("next: run `overlay doctor`", indent="  ")
    if receipt is not None:
        text = f"overlay {receipt.overlay_version}, manifest {receipt.manifest_sha256[:12]}, applied {receipt.time}"
        show(text, indent="  ")
    expected = FileState.OVERLAY if found.state is State.APPLIED and found.mode == "files" else FileState.STOCK
    rows = [(file.model, file.path, file.word) for file in found.files if verbose() or file.state is not expected]
    table(("model", "file", "now"), rows)
    if found.deep is not None:
        _deep(found.deep)
    if found.state is State.APPLIED:
        _unless_a_toggle_is_set(file.origin for file in (receipt.files if receipt else ()))
    notes(found.notes)
    if code and found.state is not State.APPLIED:
        spec = found.target.version or "RELEASE"
        step = f"overlay install --transformers {spec}" if found.state is State.STOCK else "overlay doctor"
        complain(f"overlay status: not applied ({found.state.value})", f"  next: run `{step}`")
    elif code:
        complain(
            "overlay status: the package has other differences from its RECORD", "  next: see the files listed above"
        )
    return code


def _deep(deep: Deep) -> None:
    if not deep.recorded:
        show("deep: the distribution has no RECORD, so nothing can be compared")
        return
    show(
        f"deep: {deep.checked} files hashed, {len(deep.overlaid)} overlaid, "
        f"{'no other difference' if deep.clean else 'other differences:'}"
    )
    for word in ("modified", "missing", "unreadable", "added"):
        show(*(f"{word:10} {path}" for path in getattr(deep, word)), indent="  ")


def diff(target: Target, differences: Sequence[tuple[str, bytes]], code: int) -> int:
    """Report unified diffs; return ``code``, which `--exit-code` decides."""
    if wants_json():
        listed = [{"path": path, "diff": text.decode("utf-8", "replace")} for path, text in differences]
        print_json("diff", {"target": target.to_json(), "files": listed}, code=code)
    else:
        raw(b"".join(text for _, text in differences))
    return code


def info(found: Info) -> int:
    """Print one block to paste into a report of a problem; return exit code 0."""
    if wants_json():
        return print_json("info", found.body)
    for name, value in found.body.items():
        if isinstance(value, dict):
            told = {key: one for key, one in value.items() if one is not None}
            value = [one if key == "version" and name != "toggles" else f"{key} {one}" for key, one in told.items()]
        show(f"{name:<13} {(', '.join(value) if isinstance(value, list) else value) or 'none'}")
    return 0


def listing(manifests: Sequence[Manifest]) -> int:
    """Report what the bundle has; details are the recipes behind each model."""
    if wants_json():
        lines = [
            {
                **(_overlay(manifest) or {}),
                "releases": manifest.releases,
                "models": {model: sum(file.model == model for file in manifest.files) for model in manifest.models()},
            }
            for manifest in manifests
        ]
        return print_json("list", {"lines": lines})
    for manifest in manifests:
        models = sorted(manifest.models())
        show(f"transformers {manifest.line} ({', '.join(manifest.releases)}): {len(models)} models")
        if not verbose():
            show(", ".join(models), indent="  ")
            continue
        rows = []
        for model in models:
            mine = [file for file in manifest.files if file.model == model]
            recipes = sorted({edit.recipe for file in mine for edit in file.edits} - {"marker", "import"})
            rows.append((model, str(len(mine)), ", ".join(recipes)))
        table(("model", "stock texts", "recipes"), rows)
    if not manifests:
        show("this bundle has no overlays")
    return 0


def _where(target: Target) -> str:
    """The line below a summary, which has named the release."""
    return f"in {target.package} ({target.kind}, python: {target.executable or 'not asked'})"


def _overlay(manifest: Manifest | None) -> dict[str, object] | None:
    return None if manifest is None else {**facts(manifest, "line version"), "manifest_sha256": manifest.sha256}


def _recovery_line(recovered: Recovered) -> str:
    return f"an interrupted {recovered.kind} was {recovered.outcome} ({len(recovered.paths)} files)"


def examination(result: Examination) -> int:
    """Print findings, worst first; return the exit code."""
    fixed = dict(result.fixed)
    if wants_json():
        body = {
            **facts(result, "state dry_run"),
            "target": result.target and result.target.to_json(),
            "findings": [{**one.to_json(), "fixed": fixed.get(one.id)} for one in result.findings],
        }
        return print_json("doctor", body, code=result.code)
    counts = Counter(one.severity for one in result.findings)
    counted = ", ".join(f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in SEVERITIES)
    _summary(result.state, _release(result.target) if result.target else None, counted)
    if result.target is not None:
        show(_where(result.target), indent="  ")
    for one in result.findings:
        show("", f"{one.severity}: {one.id}: {one.kind.meaning}")
        show(*one.evidence, indent="    ")
        if one.id in fixed:
            show(f"fix: {fixed[one.id]}", indent="  ")
        elif one.remedy != "nothing to do":
            show(f"next: {one.remedy}", indent="  ")
    if result.state == State.APPLIED.value:
        _unless_a_toggle_is_set()
    return result.code


def patch(made: Patch) -> int:
    """Print a patch as bytes, or as one JSON object with a text per file."""
    if wants_json():
        listed = [{"path": path, "model": model, "patch": text.decode("utf-8")} for path, model, text in made.files]
        body = {"release": made.release, "format": "git-patch", "overlay_version": made.version, "files": listed}
        return print_json("export", body)
    raw(b"".join(text for _, _, text in made.files))
    return 0


def compared(found: list[dict[str, str | None]], against: Path) -> int:
    """Report what is no longer as it was attested; return 1 where something is not."""
    code = 1 if found else 0
    if wants_json():
        return print_json("attest", {"against": str(against), "differences": found}, code=code)
    if not found:
        show(f"every file is as {against} says")
        return 0
    rows = [(one["path"] or "", (one["expected"] or "none")[:12], (one["found"] or "none")[:12]) for one in found]
    table(("file", "attested", "now"), rows)
    differ = "1 file differs" if len(found) == 1 else f"{len(found)} files differ"
    complain(f"overlay attest: {differ} from {against}", "  next: run `overlay status`")
    return 1


def attestation(made: Attestation, form: str) -> int:
    """Print the document in the form that was asked for."""
    if form == "cyclonedx":
        print_document(made.to_cyclonedx())
    else:
        print_json("attest", made.to_json())
    return 0


def planned(started: Started) -> int:
    """Say what a command would import; it was not started."""
    assert started.target is not None
    if wants_json():
        body = {
            "command": started.command,
            "variables": {name: started.environ[name] for name in started.set_variables},
            "target": started.target.to_json(),
            "files": [facts(file, "path model served why") for file in started.files],
            "notes": started.notes,
        }
        return print_json("run", body)
    served = sum(file.served for file in started.files)
    show(f"would run with {served} of {len(started.files)} files served: {shlex.join(started.command)}")
    show(f"{_release(started.target) or 'no transformers'} {_where(started.target)}", indent="  ")
    rows = [
        (file.model, file.path, "served" if file.served else file.why or "")
        for file in started.files
        if verbose() or not file.served
    ]
    table(("model", "file", "at import"), rows)
    _unless_a_toggle_is_set(environ=started.environ)
    notes(started.notes)
    return 0


def environment(profile: Profile, shell: str) -> int:
    """Print shell lines that set a profile, each with the reason for it where somebody reads them."""
    if wants_json():
        variables = {one.name: one.value for one in profile.settings}
        reasons = {one.name: one.reason for one in profile.settings}
        body = {"profile": profile.name, "gpu": profile.gpu, "variables": variables, "reasons": reasons}
        return print_json("env", body)
    # Lines that are evaluated may be joined, and a comment would hide what follows: then reasons go to stderr.
    explained = sys.stdout.isatty()
    if explained:
        print(f"# profile {profile.name}, GPU: {profile.gpu or 'none found'}")
    for one in profile.settings:
        line = _shell_line(one.name, one.value, shell)
        print(f"# {one.reason}\n{line}" if explained else line)
        if verbose() and not explained:
            say(f"{one.name}: {one.reason}")
    return 0


def _shell_line(name: str, value: str | None, shell: str) -> str:
    if shell == "fish":
        return f"set -e {name};" if value is None else f"set -gx {name} {shlex.quote(value)};"
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"


_HIPIFY = {"automatic": "yes", "partial": "in part", "manual": "no", "none": "no"}


def scan(found: Scan, form: str) -> int:
    """Print the findings in the form asked for; return the exit code."""
    if form == "sarif":
        from .scan.sarif import document

        print_document(document(found))
    elif form == "json":
        print_json("scan", _scan_body(found), code=found.code)
    else:
        _scan_text(found)
    return found.code


def _scan_body(found: Scan) -> dict[str, object]:
    return {
        "root": str(found.root),
        "files": found.files,
        "manual": found.code == 1,
        "libraries": [
            {
                **facts(entry, "id nvidia amd hipify manual differs sources"),
                "header": _change(entry.header),
                "link": _change(entry.link),
                "places": places,
                "files": files,
            }
            for entry, places, files in found.by_entry()
        ],
        "findings": [
            {"id": one.entry.id, **facts(one, "path line column text replacement snippet")} for one in found.findings
        ],
        "skipped": [{"path": path, "reason": reason} for path, reason in found.skipped],
    }


def _change(change: Change | None) -> dict[str, str] | None:
    return None if change is None else {"from": change.old, "to": change.new}


def _scan_text(found: Scan) -> None:
    verdict = "some of it needs manual work" if found.code else "nothing needs manual work"
    show(f"{files(found.files)}, {len(found.findings)} places: {verdict}")
    for one in found.findings:
        becomes = f" -> {one.replacement}" if one.replacement else ""
        show(f"{one.path}:{one.line}:{one.column}: {one.entry.id}: {one.text}{becomes}")
    rows = [
        (entry.nvidia, entry.amd, _HIPIFY[entry.hipify], str(places), str(files_))
        for entry, places, files_ in found.by_entry()
    ]
    if rows:
        show("")
    table(("found", "on AMD", "hipify", "places", "files"), rows)
    for entry, _, _ in found.by_entry():
        show("", f"{entry.nvidia}: {entry.differs}")
        for word, change in (("header", entry.header), ("link", entry.link)):
            if change is not None:
                show(f"{word}: {change.old} -> {change.new}", indent="  ")
    notes(f"{path} was not looked at: {reason}" for path, reason in found.skipped)
