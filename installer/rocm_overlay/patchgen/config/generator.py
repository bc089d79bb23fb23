"""``ModelingCodeGenerator``: a config and a stock module in, one file and a complete account out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ...errors import EditConflict, InternalError, OverlayError, Place, SourceError
from ..edits import AppliedEdit, Edit, splice, unsplice
from ..header import GENERATOR, read_marker
from ..recipe import Status
from ..source import Source
from ..writing import write_files
from . import standalone
from .annotations import unreadable
from .apply import Change, Context, Made, apply, drop_imports
from .checks import check_python, lost_names, unbound
from .conflicts import find_conflicts
from .patches import (
    AddHelper,
    CodePatch,
    ConfigError,
    ConfigErrors,
    DropImport,
    Exclude,
    MissingTargetError,
    Patch,
)
from .spec import Mode, PatchConfig
from .stock import Stock, StockModule, find_module

_MARKER = re.compile(rb"# amd-patchgen/1 base=sha256:[0-9a-f]{64} generator=\d+ patches=([0-9a-f]{12}) ")


@dataclass(frozen=True)
class PatchOutcome:
    """The account of one patch. ``lines`` are the first and last line that it wrote in the output, if any."""

    patch: Patch
    status: Status
    lines: tuple[int, int] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Generated:
    """One generated file and the account of every patch of its config."""

    config: PatchConfig
    mode: Mode
    module: StockModule
    output: bytes
    outcomes: tuple[PatchOutcome, ...]
    edits: tuple[AppliedEdit, ...] = field(repr=False)

    @property
    def text(self) -> str:
        """The file as text."""
        return self.output.decode("utf-8")


class ModelingCodeGenerator:
    """Programmatic use of a config.

    ``load_source()`` reads the stock module (without importing it), ``generate(path)`` writes the file and returns its
    text. ``result`` is the whole account.

    Args:
        config: the patches.
        source: a transformers package folder or wheel to read from; default: what this interpreter would import.
        mode: overrides the config's own.
    """

    def __init__(self, config: PatchConfig, *, source: Path | None = None, mode: Mode | None = None) -> None:
        self.config = config
        self.mode: Mode = mode or config.mode
        self._tree = source
        self._module: StockModule | None = None
        self.result: Generated | None = None

    def load_source(self) -> StockModule:
        """Read the stock module's text.

        Raises:
            ConfigError: there is no such module.
        """
        self._module = find_module(self.config.source_module, self.config.place, self._tree)
        return self._module

    def generate(self, path: Path | str | None = None) -> str:
        """Make the file; write it where a path is given.

        Raises:
            ConfigErrors: patches that cannot be applied, all of them; nothing was written.
            SourceError: the stock file cannot be read, or somebody else has edited it.
            WriteError: the folder cannot be written.
        """
        module = self._module or self.load_source()
        self.result = build(self.config, module, self.mode)
        if path is not None:
            target = Path(path)
            write_files(target.parent, {target.name: self.result.output})
        return self.result.text


def build(config: PatchConfig, module: StockModule, mode: Mode) -> Generated:
    """Apply every patch of a config to a stock module; see ``ModelingCodeGenerator.generate``."""
    if not config.patches:
        raise ConfigError(f"the config for {config.target_file} has no patches", place=config.place)
    source = Source(module.data, module.path)
    digest = patches_digest(config)
    already = _already_patched(source, digest)
    if already:
        outcomes = tuple(PatchOutcome(patch, Status.ALREADY, reason=already) for patch in config.patches)
        return Generated(config, mode, module, module.data, outcomes, ())
    stock = Stock(source)
    made, errors = _make_all(config, stock, mode)
    if errors:
        raise ConfigErrors(errors)
    applied = [(patch, one) for patch, one in made if isinstance(one, Made) and one.changes]
    changes = _changes(config, module, stock, applied, mode, digest)
    output, edits, spans = _splice(stock, changes)
    _check(config, module, stock, output, edits, mode)
    return Generated(config, mode, module, output, _outcomes(made, spans, output), edits)


def _already_patched(source: Source, digest: str) -> str | None:
    """Why every patch is there already: the file is this config's own overlay. Other overlays are no stock source."""
    found = _MARKER.match(source.data)
    if found and found[1].decode() == digest:
        return f"{source.path} is the output of this config"
    if found or read_marker(source):
        raise SourceError(
            "the file is an overlay already, not stock",
            place=Place(source.path, 1),
            expected="stock source",
            remedy="`overlay revert` in that environment, or --source with a package folder or wheel",
        )
    return None


def patches_digest(config: PatchConfig) -> str:
    """First 12 hex digits over everything that a config says; paths are no part of it."""
    total = sha256()
    for patch in config.patches:
        fields = {name: value for name, value in vars(patch).items() if name not in ("place", "definition")}
        text = patch.definition.text if isinstance(patch, CodePatch) else ""
        name = patch.definition.name if isinstance(patch, CodePatch) else ""
        total.update(repr((patch.kind, sorted(fields.items()), name, text)).encode("utf-8"))
    return total.hexdigest()[:12]


MadeBy = tuple[Patch, "Made | ConfigError"]


def _make_all(config: PatchConfig, stock: Stock, mode: Mode) -> tuple[list[MadeBy], list[OverlayError]]:
    errors: list[OverlayError] = list(find_conflicts(config.patches))
    if mode == "overlay":
        errors += [
            ConfigError(
                f"an in-place overlay keeps every name of the stock module, {patch.target} too",
                place=patch.place,
                remedy='use mode="standalone" to leave definitions out',
            )
            for patch in config.patches
            if isinstance(patch, Exclude)
        ]
    gone = frozenset(patch.target for patch in config.patches if isinstance(patch, (DropImport, Exclude)))
    context = Context(stock, _renamed(config), gone)
    dropped = {id(patch): made for patch, made in drop_imports(_of_kind(config, DropImport), context)}
    made: list[MadeBy] = []
    for patch in config.patches:
        try:
            one = dropped[id(patch)] if isinstance(patch, DropImport) else apply(patch, context)
        except ConfigError as error:
            one = error
        made.append((patch, one))
        if isinstance(one, ConfigError) and not (patch.optional and isinstance(one, MissingTargetError)):
            errors.append(one)
    return made, errors


def _of_kind(config: PatchConfig, kind: type[DropImport]) -> list[DropImport]:
    return [patch for patch in config.patches if isinstance(patch, kind)]


def _renamed(config: PatchConfig) -> dict[str, str]:
    """Replacements are called like their target; code of the config that uses their own name must follow."""
    return {
        patch.definition.name: patch.target
        for patch in config.patches
        if isinstance(patch, CodePatch) and not isinstance(patch, AddHelper) and "." not in patch.claims[0]
    }


def _changes(
    config: PatchConfig, module: StockModule, stock: Stock, applied: standalone.Applied, mode: Mode, digest: str
) -> list[tuple[Change, int | None]]:
    """Every change with the number of its patch, in the order in which insertions at one point stand in the output."""
    changes: list[tuple[Change, int | None]] = []
    top = stock.offset(1)
    sha = stock.source.sha256
    marked: dict[int, tuple[Change, ...]] = {}
    if mode == "standalone":
        changes.append((Change(top, top, standalone.header(module, sha, config.description, applied)), None))
        marked = standalone.marked(applied, stock)
        changes += [(change, None) for change in standalone.class_markers(applied, stock)]
    elif applied:
        what = " ".join(config.description.split()) or config.target_file
        marker = (
            f"# amd-patchgen/1 base=sha256:{sha} generator={GENERATOR} patches={digest} (source modified: {what})\n"
        )
        changes.append((Change(top, top, marker), None))
    for number, (_, made) in enumerate(applied):
        changes += [(change, number) for change in marked.get(number, made.changes)]
    if mode == "standalone":
        converted = standalone.absolute_imports(stock, module.package, config.place)
        gone = [change for change, _ in changes if change.end > change.start]
        changes += [(one, None) for one in converted if not any(two.start <= one.start < two.end for two in gone)]
    return _with_imports_first(changes, applied)


def _with_imports_first(
    changes: list[tuple[Change, int | None]], applied: standalone.Applied
) -> list[tuple[Change, int | None]]:
    """After the imports: added imports, then blocks, then helpers; the rest in the order of the config."""
    order = {"import_added": 1, "post_import_block": 2, "helper": 3}
    return sorted(changes, key=lambda one: 0 if one[1] is None else order.get(applied[one[1]][0].kind, 0))


def _splice(
    stock: Stock, changes: Sequence[tuple[Change, int | None]]
) -> tuple[bytes, tuple[AppliedEdit, ...], dict[int, list[tuple[int, int]]]]:
    """Splice changes; insertions at one point become one edit. Spans in the output, by patch number."""
    points: dict[tuple[int, int], list[tuple[bytes, int | None]]] = {}
    for change, number in changes:
        key = (change.start, change.end)
        if change.end > change.start and key in points:
            raise EditConflict("two patches claim the same text", place=Place(stock.source.path))
        points.setdefault(key, []).append((_native(stock, change), number))
    edits = [
        Edit(start, end, b"".join(text for text, _ in parts), "patch", "<module>")
        for (start, end), parts in points.items()
    ]
    output, applied = splice(stock.source.data, edits)
    spans: dict[int, list[tuple[int, int]]] = {}
    for edit in applied:
        at = edit.overlay[0]
        for text, number in points[edit.stock]:
            if number is not None:
                spans.setdefault(number, []).append((at, at + len(text)))
            at += len(text)
    return output, applied, spans


def _native(stock: Stock, change: Change) -> bytes:
    """The text with the line ends in use around it, and without a last one where stock has none."""
    text = change.text
    if change.start < change.end == len(stock.source.data) and not stock.source.data.endswith((b"\n", b"\r")):
        text = text.removesuffix("\n")
    elif change.start == change.end == len(stock.source.data) and not stock.source.data.endswith((b"\n", b"\r")):
        text = "\n" + text
    return text.replace("\n", stock.source.newline_after(max(0, change.start - 2))).encode("utf-8")


def _check(
    config: PatchConfig, module: StockModule, stock: Stock, output: bytes, edits: tuple[AppliedEdit, ...], mode: Mode
) -> None:
    if unsplice(output, edits) != stock.source.data:
        raise InternalError("bytes outside the recorded edits changed", place=Place(module.path))
    text = output.decode("utf-8-sig")
    check_python(text, config.target_file)
    errors: list[OverlayError] = list(unbound(stock.source.text, text, config.patches))
    if not module.reads_unions:
        errors += unreadable(text, config.patches, config.target_file)
    if mode == "overlay":
        lost = sorted(lost_names(stock.source.text, text))
        if lost:
            culprit = next((patch for patch in config.patches if patch.target in lost), config.patches[0])
            errors.append(
                ConfigError(
                    "an in-place overlay keeps every name of the stock module",
                    place=culprit.place,
                    found=f"lost: {', '.join(lost)}",
                )
            )
    if errors:
        raise ConfigErrors(errors)


def _outcomes(
    made: Sequence[MadeBy], spans: dict[int, list[tuple[int, int]]], output: bytes
) -> tuple[PatchOutcome, ...]:
    outcomes = []
    number = 0
    for patch, one in made:
        if isinstance(one, ConfigError):
            outcomes.append(PatchOutcome(patch, Status.NOT_APPLICABLE, reason=one.message))
        elif not one.changes:
            reason = one.already or "another patch of this config does it"
            outcomes.append(PatchOutcome(patch, Status.ALREADY, reason=reason))
        else:
            begin, end = spans[number][0][0], spans[number][-1][1]
            lines = (output.count(b"\n", 0, begin) + 1, max(output.count(b"\n", 0, end), 1)) if end > begin else None
            outcomes.append(PatchOutcome(patch, Status.APPLIED, lines))
            number += 1
    return tuple(outcomes)
