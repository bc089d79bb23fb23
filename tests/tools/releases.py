"""Releases without committed overlays, played through as a user would: `make releases`.

    python -m tests.tools.releases                    # every release; writes docs/releases.*
    python -m tests.tools.releases 5.10.4 4.51.3      # these
    python -m tests.tools.releases --models llama,qwen2

Of each release: a fresh environment (below .cache/releases, torch shared with .venv), one command that overlays it, one
per model that compares it with stock, one that takes everything out; the tree is hashed before and after. What was not
run this time stays on the page with its day.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import importlib.util
import json
import marshal
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "releases.json", ROOT / "docs" / "releases.md"
# Bytecode belongs to the tree that is hashed: only the installer may change it here.
ENVIRON = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENTS = ROOT / ".cache" / "releases"
MODELS = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral", "olmo2", "bert")
NEW_MODEL = """
import sys
from tests.verify.matrix_builds import small_config
small_config(sys.argv[1], every_expert=False).save_pretrained(sys.argv[2])
"""


@dataclass(frozen=True)
class Release:
    """A release on the index; ``posing_as`` is a version that its tree is given, as a development checkout has one."""

    number: str
    posing_as: str = ""

    @property
    def name(self) -> str:
        return self.posing_as or self.number

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    @property
    def site(self) -> Path:
        return next((ENVIRONMENTS / self.name / "lib").glob("python*")) / "site-packages"


RELEASES = (
    Release("5.24.0"),
    Release("5.24.0", "5.25.0.dev0"),
    Release("5.22.2"),
    Release("5.10.4"),
    Release("5.0.0"),
    Release("4.56.2"),
    Release("4.52.4"),
    Release("4.51.3"),
)


def prepare(release: Release) -> None:
    """Make the environment once. Raises CalledProcessError where the release cannot be had."""
    stamp = ENVIRONMENTS / release.name / ".installed"
    if stamp.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENTS / release.name)], check=True)
    subprocess.run([release.python, "-m", "pip", "install", "-q", f"transformers=={release.number}"], check=True)
    shared = subprocess.check_output(
        [ROOT / ".venv" / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (release.site / "shared.pth").write_text("\n".join([shared.strip(), str(ROOT), str(ROOT / "installer"), ""]))
    if release.posing_as:
        _pose(release)
    stamp.touch()


def _pose(release: Release) -> None:
    """Give the tree another version, in its metadata, its code and its RECORD."""
    old = release.site / f"transformers-{release.number}.dist-info"
    new = old.rename(release.site / f"transformers-{release.posing_as}.dist-info")
    changed = {}
    for path, text in (
        (new / "METADATA", "\nVersion: {}\n"),
        (release.site / "transformers" / "__init__.py", '__version__ = "{}"'),
    ):
        content = path.read_text(encoding="utf-8")
        wanted = text.format(release.number)
        if wanted not in content:
            raise LookupError(f"{path} does not say {wanted!r}")
        path.write_text(content.replace(wanted, text.format(release.posing_as), 1), encoding="utf-8")
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        name = path.relative_to(release.site).as_posix()
        changed[name] = f"{name},sha256={digest},{path.stat().st_size}"
    rows = (new / "RECORD").read_text(encoding="utf-8").replace(old.name, new.name).splitlines()
    rows = [changed.get(row.partition(",")[0], row) for row in rows]
    (new / "RECORD").write_text("\n".join(rows) + "\n", encoding="utf-8")


def tree(release: Release) -> str:
    """Hash every file, name and mode of transformers and its metadata; of bytecode, whether it is its source's."""
    found = hashlib.sha256()
    folders = [release.site / "transformers", *release.site.glob("transformers-*.dist-info")]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(release.site)}\0{path.stat().st_mode:o}\0".encode())
        found.update(hashlib.sha256(_current(path) if path.suffix == ".pyc" else path.read_bytes()).digest())
    return found.hexdigest()


def _current(path: Path) -> bytes:
    """Return the head of a .pyc file (time and size of its source) and whether its code is the source's.

    Python writes the same code in other bytes when other strings happen to be in use.
    """
    source, content = Path(importlib.util.source_from_cache(str(path))), path.read_bytes()
    code = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
    return content[:16] + str(marshal.loads(content[16:]) == code).encode()


def overlay(release: Release, *arguments: str) -> dict[str, Any]:
    """Run the program in the release's environment; return its JSON, with the seconds and the exit code."""
    start = time.perf_counter()
    command = [str(release.python), "-W", "ignore", "-m", "rocm_overlay", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRON, cwd=ENVIRONMENTS, check=False)
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = {"error": {"message": (done.stderr.strip().splitlines() or ["no output"])[-1]}}
    return {**said, "exit_code": done.returncode, "seconds": time.perf_counter() - start}


def play(release: Release, models: tuple[str, ...]) -> dict[str, Any]:
    """Overlay, compare, revert; return what happened."""
    prepare(release)
    before = tree(release)
    installed = overlay(release, "install", *(() if _committed(release) else ("--generate",)))
    result: dict[str, Any] = {
        "day": datetime.date.today().isoformat(),
        "how": "committed" if _committed(release) else "generated",
        "install": _said(installed),
        "install_s": round(installed["seconds"], 1),
        "files": sum(one["origin"] is not None for one in overlay(release, "status").get("files", ())),
        "models": {model: _verify(release, model) for model in models} if not installed["exit_code"] else {},
    }
    result["revert"] = _said(overlay(release, "revert"))
    result["tree"] = "as before" if tree(release) == before else "CHANGED"
    return result


def _committed(release: Release) -> bool:
    return release == Release("5.24.0")


def _said(outcome: dict[str, Any]) -> str:
    return "ok" if not outcome["exit_code"] else f"exit {outcome['exit_code']}: {outcome['error']['message'][:200]}"


def _verify(release: Release, model: str) -> str:
    folder = ENVIRONMENTS / release.name / "models" / model
    made = subprocess.run(
        [release.python, "-W", "ignore", "-c", NEW_MODEL, model, folder],
        capture_output=True, text=True, env=ENVIRON, cwd=ROOT, check=False,
    )  # fmt: skip
    if made.returncode:
        return f"not built: {made.stderr.strip().splitlines()[-1][:120]}"
    found = overlay(release, "verify", "--model", str(folder / "config.json"), "--cases", "quick", "--tiers", "torch")
    if "runs" not in found:
        return _said(found)
    bad = [f"{run['id']}: {run['status']}" for run in found["runs"] if run["status"] in ("deviates", "crashed")]
    return "; ".join(bad) if bad else "equal"


def page(results: dict[str, Any]) -> str:
    """Return docs/releases.md."""
    lines = [
        "# Releases played through",
        "",
        "Generated by `make releases`. For each release: a fresh environment, `overlay install` (`--generate` where",
        "no overlays are committed), `overlay verify` on ten small models (toggles off bit for bit, torch tier within",
        "tolerance), `overlay revert`; the whole tree is hashed before and after.",
        "",
        "| release | day | overlays | install | models equal | revert | tree |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        equal = sum(said == "equal" for said in one["models"].values())
        lines.append(
            f"| {name} | {one['day']} | {one['files']} {one['how']} | {one['install']}, {one['install_s']} s "
            f"| {equal} of {len(one['models'])} | {one['revert']} | {one['tree']} |"
        )
    others = [(n, m, s) for n, one in results.items() for m, s in one["models"].items() if s != "equal"]
    lines += ["", *(f"- {name}, {model}: {said}" for name, model, said in others)] if others else []
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", choices=[*(one.name for one in RELEASES), []])
    parser.add_argument("--models", default=",".join(MODELS))
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for release in RELEASES:
        if release.name in (chosen.releases or [release.name]):
            results[release.name] = play(release, tuple(chosen.models.split(",")))
            print(release.name, json.dumps(results[release.name]), flush=True)
            order = {one.name: number for number, one in enumerate(RELEASES)}
            results = dict(sorted(results.items(), key=lambda item: order[item[0]]))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            PAGE.write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
