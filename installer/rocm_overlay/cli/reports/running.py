"""Reports of `run --dry-run` and `env`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from .. import output

if TYPE_CHECKING:
    from rocm_overlay.install.hook.running import Started
    from rocm_overlay.install.profiles import Profile


def planned(started: Started, *, as_json: bool) -> int:
    """Say what a command would import; it was not started."""
    assert started.target is not None
    if as_json:
        files = [
            {"path": file.path, "model": file.model, "served": file.served, "why": file.why} for file in started.files
        ]
        body = {
            "command": list(started.command),
            "variables": {name: started.environ[name] for name in started.set_variables},
            "target": started.target.to_json(),
            "files": files,
            "notes": list(started.notes),
        }
        output.print_json("run", body)
        return 0
    print(output.where(started.target))
    served = sum(file.served for file in started.files)
    print(f"would run with {served} of {len(started.files)} files served: {shlex.join(started.command)}")
    rows = [(file.model, file.path, "served" if file.served else file.why or "") for file in started.files]
    output.table(("model", "file", "at import"), rows)
    output.print_notes(started.notes)
    return 0


def environment(profile: Profile, *, as_json: bool) -> int:
    """Print shell lines that set a profile, each under the reason for it."""
    if as_json:
        variables = {one.name: one.value for one in profile.settings}
        reasons = {one.name: one.reason for one in profile.settings}
        output.print_json(
            "env", {"profile": profile.name, "gpu": profile.gpu, "variables": variables, "reasons": reasons}
        )
        return 0
    # Reasons are for eyes: a program that evaluates the lines may join them, and a comment would hide what follows.
    explained = sys.stdout.isatty()
    if explained:
        print(f"# profile {profile.name}, GPU: {profile.gpu or 'none found'}")
    for one in profile.settings:
        line = f"unset {one.name}" if one.value is None else f"export {one.name}={shlex.quote(one.value)}"
        print(f"{line}  # {one.reason}" if explained else line)
    return 0
