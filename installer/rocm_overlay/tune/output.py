"""How every command answers: text or one JSON object on stdout, everything else on stderr, one exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable

from .errors import EXIT_INTERRUPTED, Finding, TuneError

ERROR_SCHEMA = "amd-overlay.tune.error/1"


def emit(value: object, text: str | Callable[[], str], as_json: bool) -> None:
    """Print the result; the text is only made when it is wanted."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
    else:
        shown = text if isinstance(text, str) else text()
        sys.stdout.write(shown if shown.endswith("\n") or not shown else shown + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    print(text, file=sys.stderr)


def say_findings(findings: Iterable[Finding], limit: int = 40) -> None:
    listed = list(findings)
    for finding in listed[:limit]:
        say(finding.text())
    if len(listed) > limit:
        say(f"... and {len(listed) - limit} more (--json lists all)")


def fail(error: TuneError, as_json: bool) -> int:
    """Report a refusal and return its exit status."""
    if as_json:
        value = {
            "code": error.code,
            "id": error.id,
            "message": error.message,
            "paths": list(error.paths),
            "remedy": error.remedy,
            "findings": [finding.as_json() for finding in error.findings],
        }
        emit({"schema": ERROR_SCHEMA, "error": value}, "", True)
    say(f"error: {error.message}" + (f" ({error.remedy})" if error.remedy else ""))
    say_findings(error.findings)
    return error.code


def guarded(work: Callable[[], int], as_json: bool) -> int:
    """Run a command's body; turn refusals and Ctrl-C into exit statuses. Anything else is a bug: a traceback."""
    try:
        return work()
    except TuneError as error:
        return fail(error, as_json)
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away: nobody is left to tell.
        sys.stderr.close()
        return 0
