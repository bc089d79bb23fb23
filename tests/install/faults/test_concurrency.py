"""Many installers at once, and readers that import while files are replaced: no error, and never half a text."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import time
from pathlib import Path

import pytest
from rocm_overlay.install import inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.states import State

from tests.forking import ended, start
from tests.install.support import STOCK, make_bundle, make_site, modeling, overlay_text

GENERATORS = {"A": 1, "B": 1234}


def install_at_once(site: Path, bundles: dict[str, Path], processes: int) -> None:
    """Let that many processes install two different overlays; all must succeed, and one of them must have won whole."""
    names = sorted(bundles)
    children = [
        start(
            lambda name=names[number % 2]: operations.install(Options(site_packages=site, bundle=bundles[name]), "1.0")
        )  # type: ignore[misc]
        for number in range(processes)
    ]
    assert [ended(child) for child in children] == [0] * processes
    texts = {model: modeling(site, model).read_bytes() for model in STOCK}
    wholes = [{model: overlay_text(text, number) for model, text in STOCK.items()} for number in GENERATORS.values()]
    assert texts in wholes, "a mixed tree"
    winner = names[wholes.index(texts)]
    assert inspection.status(Options(site_packages=site, bundle=bundles[winner])).state is State.APPLIED
    assert list(site.rglob("*.ovtmp")) == []


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [
        pytest.param(8, 6, id="8x6"),
        pytest.param(8, 100, marks=pytest.mark.full, id="8x100"),
        pytest.param(64, 5, marks=pytest.mark.full, id="64x5"),
    ],
)
def test_installers_at_once(processes: int, rounds: int, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAY_LOCK_SECONDS", "300")
    site = make_site(disk / "site")
    bundles = {name: make_bundle(disk / name, generator=number) for name, number in GENERATORS.items()}
    for number in range(rounds):
        if number % 3 == 0:
            operations.revert(Options(site_packages=site, bundle=bundles["A"]))
        install_at_once(site, bundles, processes)
    operations.revert(Options(site_packages=site, bundle=bundles["A"]))
    assert {model: modeling(site, model).read_bytes() for model in STOCK} == STOCK


def module_text(model: str) -> bytes:
    """A module whose last line proves that all of it was read."""
    lines = [f"# part {number} of {model}" for number in range(400)]
    return "\n".join([f"NAME = {model!r}", *lines, "END = NAME", ""]).encode()


def read_again(site: Path, imports: int, written: set[bytes]) -> None:
    """Import the modules afresh, over and over, with bytecode being written as usual."""
    sys.path.insert(0, str(site))
    sys.dont_write_bytecode = False
    names = [f"transformers.models.{model}.modeling_{model}" for model in STOCK]
    for number in range(imports):
        name = names[number % len(names)]
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        assert module.END == module.NAME == name.rpartition("_")[2]
        if number % 10 == 0:
            text = Path(str(module.__file__)).read_bytes()
            assert text in written, "half a text"
            ast.parse(text)


@pytest.mark.parametrize(
    ("readers", "imports"),
    [pytest.param(3, 900, id="3x900"), pytest.param(8, 10_000, marks=pytest.mark.full, id="8x10000")],
)
def test_readers_against_an_install_and_revert_loop(
    readers: int, imports: int, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    texts = {model: module_text(model) for model in STOCK}
    site, bundle = make_site(disk / "site", texts), make_bundle(disk / "bundle", texts)
    written = {*texts.values(), *(overlay_text(text) for text in texts.values())}
    children = [start(lambda: read_again(site, imports, written)) for _ in range(readers)]
    options = Options(site_packages=site, bundle=bundle)
    ended: list[int] = []
    rounds = 0
    while len(ended) < readers:
        operations.install(options, "1.0")
        operations.revert(options)
        rounds += 1
        for child in [child for child in children if child not in ended]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                ended.append(child)
        time.sleep(0)
    assert rounds > 1, "nothing was replaced while the readers ran"
    assert {model: modeling(site, model).read_bytes() for model in STOCK} == texts
