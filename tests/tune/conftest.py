"""Fixtures of the tune room: the command line in-process, aiter's real tables where they are, an installed aiter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .support import COLUMNS, ROOT, Cli

DATA_VARIABLE = "OVERLAY_SHARED_DATA"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes this user's cache, tables or variable."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "AITER_CONFIG_GEMM_BF16"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tune(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with aiter's published tables; skip where it is absent."""
    folder = Path(os.environ.get(DATA_VARIABLE) or ROOT.parent / "shared" / "data")
    if not (folder / "aiter_configs").is_dir():
        pytest.skip(
            f"aiter's published tables are not here: set {DATA_VARIABLE} to the folder that holds aiter_configs"
        )
    return folder


@pytest.fixture(scope="session")
def real_tables(shared_data: Path) -> list[Path]:
    folder = shared_data / "aiter_configs"
    return [folder / "bf16_tuned_gemm.csv", *sorted(folder.glob("model_configs/*bf16_tuned_gemm*.csv"))]


LOADER_SOURCE = """
solMap = {"torch": 0, "hipblaslt": 1, "skinny": 2, "asm": 3, "triton": 4, "flydsl": 5, "opus": 6}
def load(frame):
    return frame.set_index([%s]).to_dict("index")
"""
KEYS = {
    "0.1.20.post1": COLUMNS[:10],
    "0.1.9.post1": COLUMNS[1:10],
}


def make_aiter(root: Path, tables: list[Path], version: str = "0.1.20.post1") -> Path:
    """Lay out the files of an installed aiter that this room reads; importing it fails, as it does without ROCm."""
    package = root / "aiter"
    (package / "configs" / "model_configs").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('ROCm version file not found')\n")
    (package / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    keys = ", ".join(repr(name) for name in KEYS[version])
    (package / "tuned_gemm.py").write_text(LOADER_SOURCE % keys)
    for table in tables:
        inside = "configs" if table.name == "bf16_tuned_gemm.csv" else "configs/model_configs"
        shutil.copyfile(table, package / inside / table.name)
    return package
