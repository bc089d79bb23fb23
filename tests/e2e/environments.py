"""Real virtual environments with a real transformers wheel, made offline in seconds.

torch and the other libraries are shared from the interpreter that runs the tests through a path file; transformers is
the environment's own, so that an overlay in one environment cannot reach another.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its interpreter and its site-packages."""

    python: Path
    purelib: Path

    @property
    def transformers(self) -> Path:
        return self.purelib / "transformers"

    def share(self, *, amd_ops: bool, line: str = "") -> None:
        """Let the environment see torch and, if wanted, this project; its own packages come first.

        ``line`` ("5.24") adds what the checkout's environment of that line has: releases differ in what they need.
        """
        shared = [sysconfig.get_path("purelib")]
        if line:
            found = sorted((REPOSITORY / f".venv-{line}" / "lib").glob("python*/site-packages"))
            if not found:
                pytest.skip(f"no .venv-{line}: `make .venv-{line}/.installed` makes it")
            shared = [str(found[0]), *shared]
        if amd_ops:
            shared += [str(REPOSITORY), str(REPOSITORY / "installer")]
        (self.purelib / "shared_with_tests.pth").write_text("\n".join(shared) + "\n")

    def run(self, code: str, **toggles: str) -> dict[str, object]:
        """Run code in a fresh process of this environment; its last line of output is a JSON object."""
        done = subprocess.run(
            [str(self.python), "-c", code],
            env=clean_environ(**toggles),
            cwd=self.purelib.parent,  # not the checkout, whose amd_ops would be found
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        result = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result


def clean_environ(**extra: str) -> dict[str, str]:
    """The process environment without any toggle of ours and without another environment's hints."""
    prefixes = ("USE_", "AMD_OPS", "FORCE_EAGER", "PRESHUFFLE", "VIRTUAL_ENV", "CONDA_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **extra}


def make(folder: Path) -> Environment:
    """Make an empty virtual environment without pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    (purelib,) = folder.glob("lib/python*/site-packages")
    return Environment(folder / "bin" / "python", purelib)


def uv_install(environment: Environment, wheel: Path, cache: Path, link_mode: str) -> None:
    """Install a wheel, without its dependencies, the way uv users have it: linked to uv's cache."""
    subprocess.run(
        [
            *("uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-index", "--link-mode", link_mode),
            *("--cache-dir", str(cache), "--python", str(environment.python), str(wheel)),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**clean_environ(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )


def line_4_53(folder: Path, wheel: Callable[[str], Path]) -> Environment:
    """Make an environment with transformers 4.53.2 and the tokenizers it insists on, hard-linked to a cache."""
    release = wheel("4.53.2")
    tokenizers = sorted(release.parent.glob("tokenizers-0.21*.whl"))
    if not tokenizers:
        pytest.skip("no tokenizers 0.21 wheel, which transformers 4.53 needs: `make wheels` downloads it")
    made = make(folder / ".venv")
    made.share(amd_ops=True)
    for one in (release, tokenizers[0]):
        uv_install(made, one, folder / "cache", "hardlink")
    return made


def overlay(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real command as a user does, in a fresh process of the interpreter that runs the tests."""
    return subprocess.run(
        [sys.executable, "-m", "rocm_overlay", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd or REPOSITORY.parent,
        env=clean_environ(PYTHONPATH=f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'installer'}"),
    )


def digest(tree: Path) -> dict[str, tuple[object, ...]]:
    """Path -> everything a revert promises: content, mode, owner, modification time, link target. Bytecode excluded."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(tree.rglob("*")):
        if "__pycache__" in path.parts or not (path.is_file() or path.is_symlink()):
            continue
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(tree))] = (content, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns)
    return found
