"""Found first through PYTHONPATH under `overlay run`: starts the import hook, then runs the sitecustomize it hides."""

import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_HERE = os.path.dirname(os.path.abspath(__file__))


def _start() -> None:
    settings = json.loads(os.environ["AMD_OVERLAY_HOOK"])
    hook = os.path.dirname(_HERE)
    path = os.path.join(hook, "start.py")
    with open(path, "rb") as file:
        scope = {"__name__": "_amd_overlay_start"}
        exec(compile(file.read(), path, "exec"), scope)
    scope["begin"](settings, os.path.join(hook, "served.py"))  # type: ignore[operator]


def _run_the_hidden_one() -> None:
    rest = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if "AMD_OVERLAY_HOOK" in os.environ:
    try:
        _start()
    except (OSError, ValueError, KeyError) as _error:
        print(f"amd-overlay: the import hook could not start, stock is imported: {_error!r}", file=sys.stderr)
_run_the_hidden_one()
