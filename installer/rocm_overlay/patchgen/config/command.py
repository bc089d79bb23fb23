"""``overlay gen`` for patch configs: generate, list, compare. Argument parsing is the CLI's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...console import facts, print_json, raw, say, show, wants_json
from ...errors import DriftError, OverlayError, TargetError, several
from ...install import patches
from ..header import GENERATOR
from ..options import Options
from ..recipe import Status
from ..writing import holds, refuse_package, write_files
from .generator import Generated, PatchOutcome, build
from .load import Loaded, discover, find_file, load
from .stock import find_module

SCHEMA = "amd-overlay.gen-config/1"


@dataclass(frozen=True)
class Job:
    """One config variable of one file."""

    path: Path
    name: str
    made: Generated
    output: Path

    def files(self, diff: bool) -> dict[str, bytes]:
        """What belongs in the output folder."""
        target = self.made.config.target_file
        files = {target: self.made.output}
        if diff:
            files[_diff_name(target)] = diff_of(self.made)
        return files


def run(options: Options) -> int:
    """Carry out the command for the named config, or with ``--list`` or ``--check`` for all below this folder.

    Raises:
        OverlayError: anything that keeps a config from being generated; nothing was written.
    """
    found = [find_file(options.target)] if options.target else discover(Path.cwd())
    if not found:
        raise TargetError(
            "target", f"no patch config below {Path.cwd()}", expected="files named *_patch_gen_config.py", found="none"
        )
    loaded, errors = _load_all(found)
    if options.list_sites:
        _list(loaded)
        if errors:
            raise several(errors)
        return 0
    jobs = []
    for one in loaded:
        try:
            jobs += _jobs(one, options)
        except OverlayError as error:
            errors.append(error)
    if errors:
        raise several(errors)
    written = _check(jobs, options) if options.check else _write(jobs, options)
    _report(jobs, written, options)
    return 0


def _load_all(paths: Sequence[Path]) -> tuple[list[Loaded], list[OverlayError]]:
    loaded: list[Loaded] = []
    errors: list[OverlayError] = []
    for path in paths:
        try:
            loaded.append(load(path))
        except OverlayError as error:
            errors.append(error)
    return loaded, errors


def _jobs(loaded: Loaded, options: Options) -> list[Job]:
    if options.target:
        chosen = loaded.choose(options.config_name)
        configs = {name: one for name, one in loaded.configs.items() if one is chosen}
    else:
        configs = loaded.configs
    jobs = []
    for name, config in configs.items():
        module = find_module(config.source_module, config.place, options.source)
        made = build(config, module, options.mode or config.mode)
        jobs.append(Job(loaded.path, name, made, options.output or loaded.path.parent / "generated"))
    return jobs


def _diff_name(target: str) -> str:
    return f"{target.removesuffix('.py')}.diff"


def diff_of(made: Generated) -> bytes:
    """The unified diff from stock to output; its labels hold no path of this machine."""
    stock = made.module.name.replace(".", "/") + ".py"
    return patches.unified(made.module.data, made.output, f"a/{stock}", f"b/{made.config.target_file}")


def _write(jobs: Sequence[Job], options: Options) -> list[Path]:
    if options.dry_run:
        return []
    written: list[Path] = []
    for job in jobs:
        refuse_package(job.output)
        files = job.files(options.diff)
        write_files(job.output, files)
        written += [job.output / name for name in sorted(files)]
    return written


def _check(jobs: Sequence[Job], options: Options) -> list[Path]:
    """Compare with what is on disk; the diff too where one was asked for or lies there."""
    different: list[Path] = []
    written: list[Path] = []
    for job in jobs:
        has_diff = (job.output / _diff_name(job.made.config.target_file)).exists()
        files = job.files(options.diff or has_diff)
        wrong = {name: data for name, data in files.items() if not holds(job.output / name, data)}
        different += [job.output / name for name in sorted(wrong)]
        if wrong and options.fix:
            refuse_package(job.output)
            write_files(job.output, wrong)
            written += [job.output / name for name in sorted(wrong)]
    if different and not options.fix:
        raise DriftError(
            "generated files are not what their configs make now",
            found=f"{len(different)} differ or are missing: {', '.join(str(path) for path in different[:8])}",
            remedy="run again with --check --fix, and review the diff",
        )
    return written


def _list(loaded: Sequence[Loaded]) -> None:
    if wants_json():
        configs = [
            {
                "path": one.path.as_posix(),
                "name": name,
                **facts(config, "source_module target_file mode description"),
                "patches": [facts(patch, "kind target") for patch in config.patches],
            }
            for one in loaded
            for name, config in one.configs.items()
        ]
        print_json("gen", {"schema": SCHEMA, "configs": configs})
        return
    for one in loaded:
        for name, config in one.configs.items():
            count = len(config.patches)
            show(
                f"{one.path}: {name} -> {config.target_file} "
                f"({config.source_module}, {config.mode}, {count} patch{'es' if count != 1 else ''})"
            )


def _report(jobs: Sequence[Job], written: Sequence[Path], options: Options) -> None:
    if wants_json():
        print_json("gen", _as_json(jobs, written))
        return
    for job in jobs:
        if options.dry_run and options.diff:
            raw(diff_of(job.made))
        counts = {status: sum(one.status is status for one in job.made.outcomes) for status in Status}
        account = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
        say(f"{job.path}: {job.name} -> {job.made.config.target_file}: {account}")
        for one in job.made.outcomes:
            if options.verbose or one.status is not Status.APPLIED:
                say(f"  {_account(one)}")
    if written:
        say("\n".join(f"wrote {path}" for path in written))
    else:
        say("all as generated" if options.check else "nothing written")


def _account(one: PatchOutcome) -> str:
    where = f", lines {one.lines[0]}-{one.lines[1]}" if one.lines else ""
    reason = f" ({one.reason})" if one.reason else ""
    return f"{one.patch.place}: {one.patch.kind} {one.patch.target}: {one.status.value}{where}{reason}"


def _as_json(jobs: Sequence[Job], written: Sequence[Path]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "errors": [],
        "files": [
            {
                "config": job.path.as_posix(),
                "name": job.name,
                "mode": job.made.mode,
                "source_module": job.made.module.name,
                "release": job.made.module.release,
                "target_file": job.made.config.target_file,
                "patches": [
                    {
                        **facts(one.patch, "kind target"),
                        "line": one.patch.place.line,
                        "status": one.status.value,
                        "output_lines": one.lines,
                        "reason": one.reason,
                    }
                    for one in job.made.outcomes
                ],
            }
            for job in jobs
        ],
        "written": [path.as_posix() for path in written],
    }
