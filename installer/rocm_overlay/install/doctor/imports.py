"""`--import`: what the target's interpreter really runs. In a child process, because importing runs foreign code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from ..transaction.decode import MalformedError, Reader, parse
from ..transaction.states import FileState
from .context import Context
from .registry import Finding, finding

TIMEOUT_SECONDS = 300

# Reads [[module, stock sha256 or null]], prints one JSON line at the end.
_SCRIPT = r"""
import importlib, json, sys, warnings
out = {"modules": [], "sdpa": [], "device": None}
for name in json.load(sys.stdin):
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
        out["modules"].append({"name": name, "error": said, "base": None, "file": None})
    else:
        base = getattr(module, "__amd_overlay__", None)
        out["modules"].append({"name": name, "error": None, "base": base, "file": getattr(module, "__file__", None)})
try:
    import torch
    if torch.version.hip and torch.cuda.is_available():
        out["device"] = torch.cuda.get_device_properties(0).gcnArchName
        for width in (64, 128):
            one = torch.zeros(1, 8, 128, width, dtype=torch.bfloat16, device="cuda")
            try:
                asked = torch.backends.cuda.SDPAParams(one, one, one, None, 0.0, True, False)
            except TypeError:
                asked = torch.backends.cuda.SDPAParams(one, one, one, None, 0.0, True)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                flash = torch.backends.cuda.can_use_flash_attention(asked, True)
                efficient = torch.backends.cuda.can_use_efficient_attention(asked, True)
            reasons = [str(one.message)[:200] for one in said]
            out["sdpa"].append({"width": width, "flash": bool(flash), "efficient": bool(efficient), "reasons": reasons})
except Exception as error:
    said = f"{type(error).__name__}: {error}"[:300]
    out["modules"].append({"name": "torch", "error": said, "base": None, "file": None})
print("\n" + json.dumps(out))
"""


def check(c: Context) -> Iterator[Finding]:
    """Import every managed module and compare what runs with what the files say; ask SDPA about its kernels."""
    if c.target is None or c.target.executable is None or c.status is None:
        yield finding("import-skipped", "no interpreter is known for this environment")
        return
    served = c.status.mode == "hook"
    overlaid = {file.path: file.state is FileState.OVERLAY or (served and file.state is FileState.STOCK)
                for file in c.status.files}  # fmt: skip
    names = {f"transformers.{path[: -len('.py')].replace('/', '.')}": path for path in overlaid}
    if not names:
        yield finding("import-skipped", "this release has no managed files")
        return
    try:
        answer = subprocess.run(
            [c.target.executable, "-c", _SCRIPT],
            input=json.dumps(list(names)).encode("ascii"),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
            cwd=c.target.site,
        ).stdout
        reader = parse(answer.splitlines()[-1] if answer else b"", "the interpreter's answer")
    except (OSError, subprocess.SubprocessError, MalformedError) as error:
        detail = getattr(error, "stderr", b"") or b""
        yield finding(
            "import-failed", f"{c.target.executable} did not answer: {error}", detail[-300:].decode("utf-8", "replace")
        )
        return
    for module in reader.objects("modules"):
        yield from _module(module, names, overlaid)
    for case in reader.objects("sdpa"):
        yield from _sdpa(case, str(reader.get("device")))


def _module(module: Reader, names: dict[str, str], overlaid: dict[str, bool]) -> Iterator[Finding]:
    name, error, base = module.text("name"), module.optional_text("error"), module.optional_text("base")
    if error is not None:
        yield finding("import-failed", f"{name}: {error}")
    elif (base is not None) != overlaid[names[name]]:
        found = "an overlay" if base else "no overlay"
        wanted = "an overlay" if overlaid[names[name]] else "stock"
        yield finding("import-mismatch", f"{name} runs {found}, expected {wanted} ({module.optional_text('file')})")


def _sdpa(case: Reader, device: str) -> Iterator[Finding]:
    if case.get("flash") is False and case.get("efficient") is False:
        width = case.integer("width")
        yield finding("sdpa-refused", f"bf16, head width {width}, causal, on {device}", *case.texts("reasons"))
