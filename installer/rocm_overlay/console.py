"""What is printed: answers, JSON, errors, notes, tables and progress. The only file that does.

People get lines that fit their terminal, programs one JSON object. What is piped is laid out like what is shown.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from .errors import CANNOT_WRITE, Finding, OverlayError, SeveralErrors

Step = Callable[[str], None]
EVERY_SECONDS = 10.0
SILENT_SECONDS = 2.0  # what takes less needs no progress
PIPED_COLUMNS = 120
NARROWEST = 12  # columns of a table's cell: below, the rows are written as blocks
_COLOURS = {
    **dict.fromkeys(("ok", "APPLIED", "kept", "faster"), 32),
    **dict.fromkeys(("deviates", "crashed", "problem", "error", "slower", "edited", "missing", "FAIL"), 31),
    **dict.fromkeys(("declined", "no-effect", "warning", "STOCK", "skipped"), 33),
}
QUIET, NORMAL, VERBOSE = -1, 0, 1
# Commands whose work is what they change, or an exit code: losing what they print is no failure of theirs.
_NOT_THEIR_OUTPUT = ("install", "revert", "recover", "status", "doctor")
_level = NORMAL
_as_json = False
_kept_back = ""  # the first line of an answer that was not shown, because it was to be quiet
_began = time.monotonic()


def start() -> None:
    """Begin an answer: neither quiet nor verbose, for people, and the clock runs from here."""
    global _began, _kept_back
    _began, _kept_back = time.monotonic(), ""
    set_level(NORMAL)
    set_json(False)


def set_level(level: int) -> None:
    """Choose how much is said. QUIET leaves the exit code, errors and what was asked for as data."""
    global _level
    _level = level


def set_json(wanted: bool) -> None:
    """Choose whether the answer is one JSON object."""
    global _as_json
    _as_json = wanted


def wants_json() -> bool:
    """True where the answer is to be one JSON object."""
    return _as_json


def elapsed() -> float:
    """Seconds since the answer began."""
    return time.monotonic() - _began


def verbose() -> bool:
    """True where details were asked for."""
    return _level > 0


def columns(stream: TextIO) -> int | None:
    """Return how wide a line of a stream may be: as COLUMNS or its terminal says; None where neither does."""
    if os.environ.get("COLUMNS", "").isdigit() or stream.isatty():
        return max(20, shutil.get_terminal_size((80, 24)).columns)
    return None


def show(*lines: str, indent: str = "") -> None:
    """Print lines of an answer, folded where they are wider than the terminal."""
    global _kept_back
    for line in lines:
        if _level >= 0:
            print(_shown(line, sys.stdout, indent))
        _kept_back = _kept_back or line.strip()


def detail(*lines: str, indent: str = "") -> None:
    """Print lines that are for those who asked for details."""
    if _level > 0:
        show(*lines, indent=indent)


def say(*lines: str) -> None:
    """Print lines beside the answer, on stderr."""
    if _level >= 0:
        for line in lines:
            print(_shown(line, sys.stderr, ""), file=sys.stderr)


def complain(*lines: str) -> None:
    """Print on stderr why the exit code is not 0, also where the answer was to be quiet."""
    set_level(max(_level, NORMAL))
    say(*lines)


def explain(command: str) -> None:
    """Say why the exit code of a quiet command is not 0, where it has not: in the first line of its answer."""
    if _level < 0 and _kept_back:
        first = _kept_back.splitlines()[0]
        complain(f"overlay {command.replace('.', ' ')}: {first}", "  next: run it without -q for the rest")


def notes(texts: Iterable[str]) -> None:
    """Print what the reader should know besides, on stderr."""
    say(*(f"note: {text}" for text in texts))


def _shown(text: str, stream: TextIO, indent: str) -> str:
    """Fold a text to the width of its stream, below its own indentation; colour its first word."""
    width = columns(stream)
    lines = []
    for line in text.splitlines() or [""]:
        begin = indent + line[: len(line) - len(line.lstrip())]
        if width is None or len(indent + line) <= width:
            lines.append(indent + line)
        else:
            lines += fold(line.strip(), width, begin, begin + ("    " if len(begin) < width // 2 else ""))
    word, colon, rest = lines[0].partition(":")
    lines[0] = (_paint(word, word, stream) if colon else word) + colon + rest
    return "\n".join(_encodable(line, stream) for line in lines)


def fold(text: str, width: int, first: str = "", others: str = "") -> list[str]:
    """Break a text into lines of at most ``width`` columns, inside a word only where it is wider than a line."""
    if not text.strip():
        return [first]  # a column without a word is 0 wide
    return textwrap.wrap(text, width, break_on_hyphens=False, initial_indent=first, subsequent_indent=others)


def _encodable(text: str, stream: TextIO) -> str:
    """Use plain signs where the stream cannot show ours; what is the user's is escaped by the stream."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return text.replace("\u00b7", "-")
    return text


def _paint(word: str, text: str, stream: TextIO) -> str:
    """Colour a text by a word of known meaning, on a terminal whose user did not ask for none."""
    colour = _COLOURS.get(word)
    if colour is None or not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a header, within the width of the terminal; nothing where there is no row."""
    if rows and _level >= 0:
        for line in layout(header, rows, columns(sys.stdout) or PIPED_COLUMNS):
            words = _encodable(line, sys.stdout).split(" ")
            print(" ".join(_paint(word, word, sys.stdout) for word in words))


def layout(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return a table as lines of at most ``width`` columns.

    Cells of the widest columns are folded; where a column would be narrower than a word needs, each row is a block of
    its own: the first cell, then a line per other cell.
    """
    wide = [max(len(row[number]) for row in (header, *rows)) for number in range(len(header))]
    while sum(wide) + 2 * (len(wide) - 1) > width:
        widest = max(range(len(wide)), key=wide.__getitem__)
        longest_word = max(len(word) for row in (header, *rows) for word in row[widest].split() or [""])
        if wide[widest] <= max(NARROWEST, min(longest_word, 24)):
            return _blocks(header, rows, width)
        wide[widest] -= 1
    lines = []
    for row in (header, *rows):
        cells = [fold(cell, size) for cell, size in zip(row, wide, strict=True)]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, wide, strict=True)).rstrip())
    return lines


def _blocks(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Write each row as its first cell and one line per other cell that says something."""
    label = max((len(name) for name in header[1:]), default=0) + 2
    lines = []
    for row in rows:
        lines += fold(row[0], width)
        for name, cell in zip(header[1:], row[1:], strict=True):
            if cell:
                lines += fold(cell, width, f"  {name.ljust(label)}", " " * min(label + 2, width // 2))
    return lines


def print_json(command: str, body: Mapping[str, object], *, code: int = 0) -> int:
    """Print the one object of a command that ran, as ``overlay COMMAND --json`` promises; return the exit code."""
    print_document({"schema": f"amd-overlay.{command}/1", **body, "ok": code == 0, "exit_code": code})
    return code


def print_document(value: Mapping[str, object]) -> None:
    """Print JSON whose form is another's (SARIF, CycloneDX), or ours with its envelope."""
    print(json.dumps(finite(value), ensure_ascii=True, sort_keys=True, indent=1, allow_nan=False))


def finite(value: object) -> object:
    """Put null for what JSON has no word for: a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def facts(one: object, names: str) -> dict[str, object]:
    """Return what an object knows, by name, for the body of an answer."""
    return {name: getattr(one, name) for name in names.split()}


def raw(data: bytes) -> None:
    """Write bytes: in the encoding of a terminal a patch could not be applied, and some cannot show it at all."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # somebody put a stream of text there
        sys.stdout.write(data.decode("utf-8", "replace"))
    else:
        buffer.write(data)
        buffer.flush()


def failure(command: str, problem: BaseException, *, as_json: bool) -> int:
    """Report what kept a command from its work, in the one shape of all commands; return its exit code."""
    error = problem if isinstance(problem, OverlayError) else _bug(problem)
    each = error.errors if isinstance(error, SeveralErrors) else (error,)
    name = "overlay" if command == "overlay" else f"overlay {command.replace('.', ' ')}"
    error.remedy = error.remedy or f"run `{name} --help`"
    if as_json:
        # The list repeats what `error` and its findings say: programs of older releases read it.
        listed = [{"id": e.id, "message": e.message, "place": str(e.place or ""), "text": str(e)} for e in each]
        print_json(command, {"error": error.to_json(), "errors": listed}, code=error.code)
    several = len(each) > 1
    complain(*(map(str, each) if several else ()), f"{name}: {error.message if several else error}")
    say_findings(() if several else error.findings)
    say(f"  next: {error.remedy}")
    return error.code


def _bug(problem: BaseException) -> OverlayError:
    """Print the traceback of a bug of ours and return it as an error."""
    import traceback

    traceback.print_exception(type(problem), problem, problem.__traceback__)
    remedy = "this is a bug in overlay: please report it with the lines above and with `overlay info`"
    return OverlayError("bug", f"{type(problem).__name__}: {problem}", remedy=remedy)


def say_findings(findings: Iterable[Finding], limit: int = 40) -> None:
    """Print what was found in an input, beside the result."""
    listed = list(findings)
    say(*(finding.text() for finding in listed[:limit]))
    if len(listed) > limit:
        say(f"... and {len(listed) - limit} more (--json lists all)")


def emit(command: str, body: Mapping[str, object], text: str | Callable[[], str | None], code: int = 0) -> int:
    """Print a result as one JSON object or as text, made or printed only when it is wanted; return the exit code."""
    if _as_json:
        return print_json(command, body, code=code)
    if shown := text if isinstance(text, str) else text():
        show(shown.removesuffix("\n"))
    return code


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Yield what is called with the number of things done so far, where nobody knows how many: shown on a terminal."""
    last = time.monotonic()

    def step(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.2:
            last = time.monotonic()
            _over(f"{count} {what}")

    try:
        yield step
    finally:
        _over("")


def _over(text: str) -> None:
    """Write a line in the place of the one before, where a terminal shows it."""
    if sys.stderr.isatty() and _level >= NORMAL:
        width = columns(sys.stderr) or PIPED_COLUMNS
        print(f"\r{_encodable(text, sys.stderr)[: width - 1]}\x1b[K", end="", file=sys.stderr, flush=True)


class Steps:
    """How far a command is: to be called after each step with what was done."""

    def __init__(self, total: int = 0, done: int = 0, tell: Callable[[str, int, int], None] | None = None) -> None:
        self.total = total
        self.done = done
        self.tell = tell

    def __call__(self, text: str) -> None:
        """Count a step, and show it."""
        self.done += 1
        if self.tell is not None:
            self.tell(text, self.done, self.total)

    def left(self, count: int) -> None:
        """Correct how many steps are still to come."""
        self.total = self.done + count


@contextmanager
def short_steps(total: int) -> Iterator[Steps]:
    """Yield what is called after each of ``total`` steps, of which something is shown once they take two seconds.

    No library is imported for it: a transaction waits for these steps, and must not fail of what it shows.
    """
    try:
        yield _lines(total, 0, live=sys.stderr.isatty())
    finally:
        _over("")


@contextmanager
def progress(total: int, first: str, *, done: int = 0, keep: bool = False) -> Iterator[Steps]:
    """Yield what is called after each of ``total`` steps with what was done, and say on stderr how far it is.

    ``first`` is shown until the first step, ``done`` steps were made before, with ``keep`` each step leaves its
    line. On a terminal there is a bar with an estimate; elsewhere a line with one, ten seconds after the last.
    """
    if _level < 0 or not sys.stderr.isatty():
        yield Steps(total, done, lambda text, *_: say(text)) if keep else _lines(total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True), texts)
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(first, total=total, completed=done)

        def show_step(text: str, count: int, total: int) -> None:
            if keep:
                bar.console.print(text, markup=False, highlight=False)
            bar.update(task, completed=count, total=total, description=first if keep else text)

        yield Steps(total, done, show_step)


def _lines(total: int, done: int, live: bool = False) -> Steps:
    """Return steps that say from time to time how many were made and how long the rest will take.

    At most every ten seconds; with ``live`` from the second second on, in one line.
    """
    last = time.monotonic()
    first: tuple[int, float] | None = None  # what comes before the first step is no measure of the others
    wait = SILENT_SECONDS if live else EVERY_SECONDS

    def tell(text: str, count: int, total: int) -> None:
        nonlocal last, wait, first
        now = time.monotonic()
        made, since = first = first or (count, now)
        if now - last >= wait and count < total:
            last, wait = now, 0.2 if live else EVERY_SECONDS
            left = f", about {duration((now - since) / (count - made) * (total - count))} left" if count > made else ""
            (_over if live else say)(f"{count} of {total}{left}: {text}")

    return Steps(total, done, tell)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``2.5 h``: a time in the unit that people would use."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


def unwritten(command: str, code: int, problem: OSError) -> int:
    """Say that the answer is cut off, unless its reader left, as `head` does; return the exit code."""
    if isinstance(problem, BrokenPipeError):
        return code
    reason = problem.strerror or str(problem)
    name = f"overlay {command.replace('.', ' ')}"
    if command in _NOT_THEIR_OUTPUT:
        complain(f"{name}: the report could not be written ({reason}); the work itself ended with exit code {code}")
        say("  next: run `overlay status` to see what is applied")
        return code
    complain(f"{name}: output truncated: {reason}", "  next: free space or name another file, then run it again")
    return code or CANNOT_WRITE
