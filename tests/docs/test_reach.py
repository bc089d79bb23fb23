"""The coverage page: its data hold all that is committed, its viewer and the search run from the file system."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from docs.tools import reach

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH: a system package")
ROOT = Path(__file__).resolve().parents[2]
RUN = {"compared": 3, "ran": 1, "deviating": {"off": [], "on": []}}


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (RUN, "equal"),
        ({**RUN, "ran": 0}, "no edited function ran"),
        ({**RUN, "deviating": {"off": [], "on": ["X forward"]}}, "deviates"),
        ({"compared": 0, "reason": "no config"}, "not compared"),
        ({"compared": 0, "reason": reach.NOT_RUN}, "not run"),
    ],
)
def test_a_row_has_one_state(row: dict[str, Any], state: str) -> None:
    assert reach.state(row) == state


@pytest.mark.parametrize("release", reach.releases())
def test_the_script_holds_everything_that_is_committed(release: str, tmp_path: Path) -> None:
    (tmp_path / "coverage").mkdir()
    reach.build(tmp_path)
    text = (tmp_path / f"coverage/{release}.js").read_text(encoding="utf-8")
    found = json.loads(text.removeprefix("showReach(").removesuffix(");\n"))
    assert found["reach"] == json.loads((reach.FOLDER / f"{release}.json").read_text(encoding="utf-8"))
    numeric = reach.FOLDER / f"numeric-{release}.json"
    assert (found["numbers"] is not None) == numeric.is_file()
    if found["numbers"]:
        states = [row.pop("state") for row in found["numbers"]["rows"]]
        assert set(states) <= set(reach.STATES)
        assert found["numbers"] == json.loads(numeric.read_text(encoding="utf-8"))


def shown_by_chromium(address: str, folder: Path) -> str:
    """Return the page as it stands after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@needs_chromium
def test_a_worker_runs_from_the_file_system_so_that_the_search_does(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "docs/assets/iframe-worker.js", tmp_path / "shim.js")
    (tmp_path / "worker.js").write_text('addEventListener("message", (event) => postMessage(event.data + 1));')
    script = """const worker = new Worker("worker.js");
    worker.addEventListener("message", (event) => { document.title = `got ${event.data}`; });
    worker.postMessage(41);"""
    page = tmp_path / "page.html"
    page.write_text(f'<title></title><script src="shim.js"></script><body><script>{script}</script></body>')
    assert "<title>got 42</title>" in shown_by_chromium(page.as_uri(), tmp_path)


@needs_chromium
@pytest.mark.parametrize(("release", "find"), [("4.57.6", ""), ("5.23.0", "qwen3"), ("5.24.0", "no such model")])
def test_the_viewer_shows_every_row_from_the_file_system(release: str, find: str, tmp_path: Path) -> None:
    (tmp_path / "coverage").mkdir()
    reach.build(tmp_path)
    shutil.copyfile(reach.FOLDER / "viewer.js", tmp_path / "coverage/viewer.js")
    table = "".join(f"<tr><td>{one}</td></tr>" for one in reach.releases())
    page = tmp_path / "coverage.html"
    page.write_text(f'<table>{table}</table><div id="reach"></div><script src="coverage/viewer.js"></script>')
    address = f"{page.as_uri()}?release={release}&find={find.replace(' ', '+')}"
    shown = shown_by_chromium(address, tmp_path)
    about = reach.data(release)["reach"]
    (files,), (lost,) = (
        re.findall(rf"<summary>{title}: <span>([^<]*)</span>", shown)
        for title in ("Files", "Lost since the release before")
    )
    if find == "qwen3":
        count, total = map(int, files.split(" of "))
        assert sum(find in path for path in about["sites"]) <= count < total == len(about["sites"])
    else:
        before = "0 of " if find else ""
        assert (files, lost) == (f"{before}{len(about['sites'])}", f"{before}{len(about['lost'])}")
    for path in about["sites"]:
        assert path.removeprefix("models/").removesuffix(".py") in shown
