"""What the commands do, as functions that return the exit status: read, call, print, write."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..console import emit, facts, notes, raw, say, say_findings
from ..errors import DIFFERENT, UsageError
from . import coverage as coverage_
from . import estimate as estimate_
from . import report as report_
from . import tunableop
from .cache import cached_merge, sources_for
from .check import check_table
from .compare import diff_json, diff_rows, diff_text, prune_rows
from .device import GPUS, Gpu, parse_device, parse_gpu
from .files import guard_output, json_bytes, write_atomic
from .heatmap import page, picture
from .inputs import index_for, model_config, shipped_sources, target_aiter, target_device
from .logs import Seen, read_log
from .logs import record as record_command
from .merge import Source, merge_files, meta_path, write_merged
from .models import Model as Layers
from .models import read_model
from .options import Drop, Model, Shapes, Speed
from .places import VARIABLE
from .schema import COLUMNS
from .shapes import Shape, parse_dtype, parse_fused, parse_ladder, read_untuned, render_untuned, unique, uses
from .table import read_usable, render

IMPORT_SCHEMA = "amd-overlay.tune.import/1"


@dataclass(frozen=True)
class Found:
    """Shapes with where they came from, ready to be printed."""

    shapes: tuple[Shape, ...]
    described: tuple[dict[str, object], ...]
    origin: dict[str, object]
    notes: tuple[str, ...]
    code: int = 0


def find_shapes(options: Shapes, log: Path | None, command: list[str] | None, hits: bool) -> Found:
    """Return the shapes of exactly one origin: a config, a log, or a recorded command."""
    if sum(given is not None for given in (options.config, log, command)) != 1:
        raise UsageError(
            "usage", "name one origin of shapes", remedy="--config F, --from-log F, or --record -- COMMAND"
        )
    if options.config is not None:
        return model_shapes(options)
    if log is not None:
        return _seen(read_log(log), {"log": str(log)}, hits, 0)
    if not command:
        raise UsageError(
            "usage", "--record needs a command", remedy="write it after --, for example --record -- python serve.py"
        )
    seen, status = record_command(command, os.environ)
    return _seen(seen, {"command": command, "status": status}, hits, status)


def model_shapes(options: Shapes) -> Found:
    config, dtype, ladder = (
        model_config(options.config or ""),
        parse_dtype(options.dtype),
        parse_ladder(options.m_ladder),
    )
    model = read_model(config, fused=parse_fused(options.fused), tp=options.tp, assume=options.assume)
    listed = list(uses(model, ladder, dtype))
    described = tuple({**facts(use.linear, "role count kind"), **use.shape._asdict()} for use in listed)
    origin = {
        "config": str(model_config(options.config or "")),
        "model_type": model.model_type,
        "tp": options.tp,
        "fused": sorted(parse_fused(options.fused)),
        "m_ladder": list(ladder),
    }
    return Found(unique(use.shape for use in listed), described, origin, model.notes)


def _model(asked: Model) -> Layers:
    config = model_config(asked.config or "")
    return read_model(config, fused=parse_fused(asked.fused), tp=asked.tp, assume=asked.assume)


def _seen(seen: Seen, origin: dict[str, object], hits: bool, code: int) -> Found:
    counts = {**seen.misses, **(seen.hits if hits else {})}
    notes = [f"{len(seen.misses)} shapes missed and {len(seen.hits)} were found in {seen.lines} lines"]
    if seen.unreadable:
        notes.append(f"{seen.unreadable} table lines could not be read: other output was written into them")
    if not seen.misses and not seen.hits:
        notes.append("no table line was seen: aiter writes them at level INFO (AITER_LOG_LEVEL=INFO), once per shape")
    shapes = unique(counts)
    described = tuple({"times": counts[shape], "missed": shape in seen.misses, **shape._asdict()} for shape in shapes)
    return Found(shapes, described, origin, tuple(notes), code)


def show_shapes(found: Found, output: Path | None) -> int:
    data = render_untuned(found.shapes)
    if output is not None:
        guard_output(output, [Path(str(found.origin[key])) for key in ("config", "log") if key in found.origin])
        write_atomic(output, data, 0o644)
    notes(found.notes)
    say(f"{len(found.shapes)} shapes" + (f" written to {output}" if output else ""))
    value = {
        "origin": found.origin,
        "unique": len(found.shapes),
        "shapes": list(found.described),
        "output": str(output) if output else None,
        "notes": list(found.notes),
    }
    return emit("tune.shapes", value, lambda: raw(b"" if output else data), found.code)


def merge(
    files: Sequence[Path],
    user: Sequence[Path],
    output: Path | None,
    gpu: str | None,
    aiter: Path | None,
    version: str | None,
    strict: bool,
) -> int:
    if output is None:
        raise UsageError("usage", "merge needs -o OUT", remedy="name the file to write; inputs are never written")
    device = target_device(gpu)
    target = target_aiter(aiter, version)
    # With user tables alone and no aiter installed there is still something to merge.
    shipped = [] if user and not files and target.aiter is None else shipped_sources(files, aiter)
    sources = [*shipped, *(Source(path, "user") for path in user)]
    guard_output(output, [source.path for source in sources])
    merged = merge_files(sources, device, target.rules)
    if strict and merged.refused:
        message = f"{len(merged.refused)} rows are refused; nothing was written (--strict)"
        raise UsageError("refused-rows", message, remedy="correct or delete them", findings=merged.refused)
    write_merged(merged, output, sources)
    say_findings((*merged.refused, *merged.notes))
    own = sum(used.kept for used in merged.sources if used.role == "user")
    lines = [
        f"{output}: {len(merged.rows)} rows for {device}, aiter {merged.rules.version}: {own} of yours "
        f"({merged.replaced} instead of shipped ones), {merged.unmeasured} not measured, {len(merged.refused)} refused",
        f"export {VARIABLE}={shlex.quote(str(output.absolute()))}",
    ]
    return emit("tune.merge", {**merged.as_json(), "output": str(output)}, "\n".join(lines))


def check(files: Sequence[Path], aiter: Path | None, version: str | None, err_ratio: float, strict: bool) -> int:
    target = target_aiter(aiter, version)
    checked = [check_table(path, target.rules, target.aiter, err_ratio) for path in files]
    failed = any(table.failed or (strict and table.doubtful) for table in checked)
    lines = []
    for table in checked:
        lines += [finding.text() for finding in table.findings]
        counts = ", ".join(f"{number} {name}" for name, number in sorted(table.counts.items()))
        lines.append(f"{table.path}: {table.rows} rows, {counts or 'nothing found'}")
    value = {
        "aiter": target.rules.version,
        "kernels_checked": target.aiter is not None,
        "failed": failed,
        "tables": [
            {"path": t.path, "rows": t.rows, "counts": t.counts, "findings": [f.as_json() for f in t.findings]}
            for t in checked
        ],
    }
    return emit("tune.check", value, "\n".join(lines), DIFFERENT if failed else 0)


def report(
    options: Shapes,
    gpu: str | None,
    m_mix: str | None,
    tables: Sequence[Path],
    aiter: Path | None,
    html: Path | None,
    png: Path | None,
) -> int:
    config = model_config(options.config or "")
    device = target_device(gpu)
    index, merged = index_for(device, tables, aiter, target_aiter(aiter, None).rules)
    say_findings(merged.refused)
    made = report_.make_report(
        config,
        index,
        ladder=parse_ladder(options.m_ladder),
        dtype=parse_dtype(options.dtype),
        fused=parse_fused(options.fused),
        tp=options.tp,
        mix=coverage_.parse_mix(m_mix) if m_mix else None,
        assume=options.assume,
    )
    if html is not None:
        _write_picture(html, page(made).encode(), [config, *tables])
    if png is not None:
        _write_picture(png, picture(made), [config, *tables])
    body = {**made.as_json(), "sources": [used.path for used in merged.sources]}
    return emit("tune.report", body, lambda: report_.tell(made))


def _write_picture(target: Path, data: bytes, sources: Sequence[Path]) -> None:
    guard_output(target, sources)
    write_atomic(target, data, 0o644)
    say(f"{target} written")


def _peaks(speed: Speed) -> tuple[Gpu, list[str]]:
    """Return the GPU's peaks and what had to be assumed about it."""
    if speed.hbm_tbs is not None:
        if not 0 < speed.hbm_tbs < 1000:
            raise UsageError(
                "usage", f"--hbm-tbs {speed.hbm_tbs} is not a bandwidth", remedy="terabytes per second, for example 5.3"
            )
        device = parse_device(speed.gpu)
        same = next((gpu for gpu in GPUS if gpu.device == device), None)
        return Gpu(str(device), device, speed.hbm_tbs * 1e12, same.bf16 if same else 1e15), []
    gpu = parse_gpu(speed.gpu)
    twins = [other.name for other in GPUS if other.device is not None and other.device == gpu.device and other != gpu]
    if twins and speed.gpu.lower() != gpu.name.lower():
        return gpu, [f"{gpu.device} is also {', '.join(twins)}; {gpu.name} assumed (name it with --gpu)"]
    return gpu, []


def estimate(options: Model, speed: Speed, tables: Sequence[Path], aiter: Path | None) -> int:
    if not 0 < speed.efficiency <= 1 or speed.batch < 1 or not 0 <= speed.launch_us < 1e9:
        raise UsageError(
            "usage", "efficiency is above 0 up to 1, batch from 1, launch time from 0", remedy="see --help"
        )
    model = _model(options)
    if not model.kv_bytes_per_layer:
        raise UsageError(
            "not-a-decoder", f"{model.name} has no decoder: nothing to estimate", remedy="use a language model's config"
        )
    gpu, notes = _peaks(speed)
    try:
        contexts = [int(part) for part in speed.context.split(",")]
    except ValueError:
        contexts = [-1]
    if min(contexts) < 0:
        raise UsageError("usage", f"--context {speed.context!r} is not a list of lengths", remedy="for example 0,2048")
    index = None
    target = target_aiter(aiter, None)
    if gpu.device is not None and (tables or target.aiter is not None):
        index, _ = index_for(gpu.device, tables, aiter, target.rules)
    else:
        notes.append("no table: every product is estimated from the roofline (name tables with --table)")
    if options.tp > 1:
        notes.append("per rank, without the time of the all-reduces")
    if not model.launches:
        assumed = "launches per layer were not counted for {}: {} stock and {} overlaid assumed"
        notes.append(assumed.format(model.model_type, *estimate_.UNCOUNTED))
    lines = estimate_.roofline(model, gpu, contexts, speed.batch, speed.efficiency)
    one = estimate_.step(
        model,
        gpu,
        index,
        batch=speed.batch,
        context=contexts[0],
        dtype=parse_dtype(options.dtype),
        efficiency=speed.efficiency,
        launch_us=speed.launch_us,
    )
    value = estimate_.as_json(model, gpu, lines, [one], notes)
    return emit("tune.estimate", value, lambda: estimate_.text(model, gpu, lines, [one], notes))


def diff(old: Path, new: Path, gpu: str | None, exit_code: bool) -> int:
    device = parse_device(gpu) if gpu else None
    before, after = (
        [row for row in read_usable(path).rows if device is None or row.key.device == device] for path in (old, new)
    )
    found = diff_rows(before, after)
    code = DIFFERENT if exit_code and not found.empty else 0
    return emit("tune.diff", diff_json(found), lambda: diff_text(found), code)


def prune(file: Path, output: Path, shapes: Shapes | None, gpu: str | None, drop: Drop) -> int:
    guard_output(output, [file])
    table = read_usable(file)
    wanted = model_shapes(shapes).shapes if shapes is not None else None
    target = target_aiter(drop.aiter, drop.aiter_version)
    pruned = prune_rows(
        table.rows,
        device=None if drop.all_devices else target_device(gpu),
        rules=target.rules,
        shapes=wanted,
        unmeasured=drop.unmeasured,
        torch_winners=drop.torch_winners,
    )
    say_findings(table.refused)
    write_atomic(output, render(pruned.rows, COLUMNS), 0o644)
    dropped = {**pruned.dropped, **({"ambiguous device": len(table.refused)} if table.refused else {})}
    text = f"{output}: {len(pruned.rows)} of {len(table.rows) + len(table.refused)} rows kept"
    text += "".join(f", {number} dropped: {why}" for why, number in sorted(dropped.items()))
    value = {"output": str(output), "kept": len(pruned.rows), "dropped": dropped}
    return emit("tune.prune", value, text)


def env(gpu: str | None, user: Sequence[Path], aiter: Path | None, version: str | None) -> int:
    device = target_device(gpu)
    target = target_aiter(aiter, version)
    sources = sources_for(target.aiter, device, os.environ, user)
    if not sources:
        raise UsageError(
            "no-tables", "there is no table: no aiter, no bundled one, none of yours", remedy="name one with --user"
        )
    cached = cached_merge(sources, device, target.rules, target.aiter, os.environ)
    own = os.environ.get(VARIABLE)
    if own:
        say(f"note: {VARIABLE} is set already to {own}; amd_ops respects that until you export the line below")
    if target.aiter is None:
        say("note: no aiter is installed here; only bundled and user tables were merged")
    if cached.merged is not None:
        say_findings(cached.merged.refused)
    rows = read_usable(cached.path).rows
    say(f"{len(rows)} rows for {device}, {'built now' if cached.merged is not None else 'reused'}")
    value = {
        "variable": VARIABLE,
        "value": str(cached.path),
        "gpu": str(device),
        "rows": len(rows),
        "reused": cached.merged is None,
        "already_set": own,
        "sources": [{"path": str(source.path), "role": source.role} for source in sources],
    }
    return emit("tune.env", value, lambda: raw(f"export {VARIABLE}={shlex.quote(str(cached.path))}\n".encode()))


def import_tunableop(file: Path, output: Path, gpu: str | None) -> int:
    for written in (output, meta_path(output)):
        guard_output(written, [file])
    device = target_device(gpu)
    results = tunableop.read_results(file, device)
    note = "hipBLASLt indices are valid for the hipBLASLt build that the validators name, and for no other"
    meta = {
        "schema": IMPORT_SCHEMA,
        "gpu": str(device),
        "source": str(file),
        "measured_with": dict(results.validators),
        "rows": len(results.rows),
        "skipped": [finding.as_json() for finding in results.skipped],
        "note": note,
    }
    write_atomic(meta_path(output), json_bytes(meta), 0o644)
    write_atomic(output, render(results.rows, COLUMNS), 0o644)
    say_findings((*results.findings, *results.skipped))
    say(f"note: {note}")
    text = f"{output}: {len(results.rows)} rows, {len(results.skipped)} lines skipped"
    return emit("tune.import", {**meta, "output": str(output)}, text)


def export_tunableop(file: Path, output: Path, validators: Path | None) -> int:
    guard_output(output, [file, *([validators] if validators else [])])
    if validators is None:
        shapes, findings = read_untuned(file)
        data, unnamed = tunableop.render_untuned(shapes)
        written, left = len(shapes) - len(unnamed), len(unnamed)
    else:
        table = read_usable(file)
        findings = (*table.findings, *table.refused)
        data, left = tunableop.render_results(table.rows, tunableop.read_validators(validators))
        written = len(table.rows) - left
    write_atomic(output, data, 0o644)
    say_findings(findings)
    text = f"{output}: {written} lines, {left} shapes have no counterpart in TunableOp"
    value = {"output": str(output), "written": written, "left": left}
    return emit("tune.export", value, text)
