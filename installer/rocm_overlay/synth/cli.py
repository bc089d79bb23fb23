"""`overlay synth`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..commandline import App, Group
from ..errors import UsageError
from .options import Compiled, Confined, Many, Operators, Sampled, Total, Workers, Written


class _Group(Group):
    """The commands, in either form: ``.parallel num_worker=4`` means ``parallel --num-worker 4``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = normalised(args)
        if words:
            _check_command(words[0])
        return super().parse_args(ctx, words)


app = App()
synth = App(
    "overlay synth single_debug",
    "overlay synth parallel num_total_samples=1000 num_worker=8",
    cls=_Group,
    help="Generate and validate synthetic modules, and fuzz with them.\n\nEach program is validated in isolation.",
    no_args_is_help=True,
)
app.add_typer(synth, name="synth")
_MEANT = {"generate": "parallel", "run": "parallel", "debug": "single_debug", "single": "single_debug"}
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@synth.command("overlay synth single_debug seed=3 compile_backend=eager", name="single_debug")
def single_debug(sampled: Sampled, written: Written, compiled: Compiled) -> int:
    """Make one program and show everything.

    The plan, the answer, each check. Exit 1 when it is not valid.
    """
    from . import commands, settings

    return commands.single_debug(settings.make(sampled, written, compiled))


@synth.command("overlay synth parallel num_total_samples=1000 num_worker=8 output_dir=programs")
def parallel(
    many: Many,
    sampled: Sampled,
    written: Written,
    compiled: Compiled,
    fresh: Annotated[bool, Option(help="Remove what this run made before, and make it anew.")] = False,
) -> int:
    """Make many programs, each of them validated.

    Run again with the same settings to go on where a run ended. Exit 1 when none is valid.
    """
    from . import commands, settings

    made = settings.make(many, sampled, written, compiled)
    return commands.parallel(made, fresh=fresh)


@synth.command("overlay synth validate generated_programs/ --num-worker 4")
def validate(
    path: Annotated[Path, Argument(metavar="PATH", help="A program, or a folder of programs.")],
    compiled: Compiled,
    num_worker: Workers = None,
) -> int:
    """Validate programs that are there already.

    Each in a confined process. Exit 1 when one is not valid.
    """
    from . import commands, settings

    return commands.validate(path, settings.make(compiled, num_worker=num_worker))


@synth.command("overlay synth merge runs/a runs/b --output-dir programs")
def merge(
    folders: Annotated[list[Path], Argument(metavar="DIR...", help="Folders of programs; they stay as they are.")],
    confined: Confined,
    output_dir: Annotated[Path, Option(help="Where the programs go.")] = Path("merged_programs"),
    num_worker: Workers = None,
    operators_file: Operators = None,
) -> int:
    """Put the programs of some folders into one.

    Each computation once, whatever it is called. Exit 1 when a program could not be judged and was left out.
    """
    from . import commands, settings

    made = settings.make(
        confined, output_dir=output_dir, num_worker=num_worker, operators_file=operators_file, compile_backend="none"
    )
    return commands.merge(folders, made)


@synth.command("overlay synth fuzz --target ops --num-total-samples 200")
def fuzz(
    *,
    target: Annotated[str, Option(help="ops, kernelize, recipes or compile.")],
    corpus: Annotated[Path | None, Option(help="A folder of programs; default: freshly sampled ones.")] = None,
    num_total_samples: Total = None,
    num_worker: Workers = None,
    sampled: Sampled,
    confined: Confined,
    output_dir: Annotated[Path, Option(help="Where findings go.")] = Path("fuzz_findings"),
    compile_backend: Annotated[str, Option(help="inductor, aot_eager, eager or none.")] = "aot_eager",
) -> int:
    """Run programs stock against replaced.

    What differs is shrunk and saved as a regression test. Exit 1 on a find.
    """
    from . import commands, settings

    made = settings.make(
        sampled,
        confined,
        num_total_samples=num_total_samples,
        num_worker=num_worker,
        output_dir=output_dir,
        compile_backend=compile_backend,
    )
    return commands.fuzz(target, corpus, made)


def _check_command(word: str) -> None:
    """Name the nearest command of this group; the whole program would think of its own."""

    known = sorted(typer.main.get_command(synth).commands)  # type: ignore[attr-defined]
    if word.startswith("-") or word in known:
        return
    close = [_MEANT[word]] if word in _MEANT else difflib.get_close_matches(word, known, 1)
    remedy = f"did you mean `overlay synth {close[0]}`?" if close else f"use one of {', '.join(known)}"
    raise UsageError("no-command", f"`overlay synth` has no command {word!r}.", remedy=remedy)


def normalised(arguments: list[str]) -> list[str]:
    """Turn the seed's form into options: ``.parallel num_worker=4`` means ``parallel --num-worker 4``.

    Raises:
        UsageError: ``name=value`` with a name that no command has.
    """
    from .settings import Settings

    known = {item.name for item in fields(Settings)} | {"target", "corpus"}
    words: list[str] = []
    for index, word in enumerate(arguments):
        found = _ASSIGNMENT.fullmatch(word)
        if index == 0 and word.startswith("."):
            words.append(word[1:])
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-") + equals + value)
        elif found and index and (found[1] in known or not Path(word).exists()):
            if found[1] not in known:
                close = difflib.get_close_matches(found[1], known, 1)
                remedy = f"did you mean {close[0]}?" if close else "run `overlay synth parallel --help`"
                raise UsageError("bad-parameter", f"There is no parameter {found[1]}.", remedy=remedy)
            words += [f"--{found[1].replace('_', '-')}", found[2]]
        else:
            words.append(word)
    return words
