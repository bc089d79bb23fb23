"""Every `overlay gen` and `overlay drift` line of docs/patchgen.md, run as a user runs it on the Qwen3 example."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.app import run

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs/patchgen.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples/patchgen_qwen3"
CONFIG = "qwen3_gpu_patch_gen_config.py"
_OPTIONAL = re.compile(r"\[([^\]]+)\]")


def documented() -> list[str]:
    """The commands in the code blocks and after the drift heading, an optional part once with and once without."""
    blocks = re.split(r"^```.*\n", DOCS, flags=re.MULTILINE)[1::2]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(overlay drift [^`]+)`", DOCS)
    found = [line for line in lines if line.startswith("overlay ")]
    return [form for line in found for form in dict.fromkeys((_OPTIONAL.sub("", line), _OPTIONAL.sub(r"\1", line)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a user has it, here and in a package; an installed transformers is not needed."""
    here = tmp_path_factory.mktemp("user")
    for name in (CONFIG, "qwen3_layers.py"):
        shutil.copy(EXAMPLE / name, here / name)
    package = here / "my/package"
    package.mkdir(parents=True)
    for name in ("my/__init__.py", "my/package/__init__.py"):
        (here / name).write_text("raise SystemExit('no package is imported to find a config')\n")
    for name in (CONFIG, "qwen3_layers.py"):
        shutil.copy(EXAMPLE / name, package / name)
    return here


def filled(line: str, wheel: Callable[[str], Path], number: int) -> list[str]:
    """The arguments of a documented line with real values for its capitals."""
    values = {
        "CONFIG": CONFIG,
        "NAME": "config",
        "DIR_OR_WHEEL": str(wheel("4.57.6")),
        "DIR": f"out-{number}",
        "FILE": f"out-{number}.html",
        "A": str(wheel("4.57.1")),
        "B": str(wheel("4.57.6")),
        "a,b": "qwen3,llama",
        "N": "1",
    }
    words = line.removeprefix("overlay ").replace("--source DIR ", "--source DIR_OR_WHEEL ").split()
    arguments = [values.get(word, word) for word in words]
    if {"--all", "drift"} & set(arguments) and "--models" not in arguments:
        arguments += ["--models", "qwen3"]
    if arguments[0] == "gen" and not {"--source", "--from-installed"} & set(arguments):
        arguments += ["--source", str(wheel("4.57.6"))]
    return arguments


def test_the_documented_commands_run(
    folder: Path, wheel: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")  # for --from-installed
    commands = documented()
    assert len(commands) >= 14
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AMD_OVERLAY_CACHE", "off")
    for number, line in enumerate(commands):
        assert run(filled(line, wheel, number)) == 0, (line, capsys.readouterr().err[-1500:])
    assert (folder / "generated/patched_modeling_qwen3_gpu.diff").is_file()
    assert (folder / "generated/patched_modeling_qwen3_gpu.py").is_file()
