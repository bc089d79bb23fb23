"""The coverage page: its data hold all that is committed, its viewer shows all of it from the file system."""

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


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize(("release", "find"), [("4.57.6", ""), ("5.23.0", "qwen3"), ("5.24.0", "no such model")])
def test_the_viewer_shows_every_row_from_the_file_system(release: str, find: str, tmp_path: Path) -> None:
    (tmp_path / "coverage").mkdir()
    reach.build(tmp_path)
    shutil.copyfile(reach.FOLDER / "viewer.js", tmp_path / "coverage/viewer.js")
    table = "".join(f"<tr><td>{one}</td></tr>" for one in reach.releases())
    page = tmp_path / "coverage.html"
    page.write_text(f'<table>{table}</table><div id="reach"></div><script src="coverage/viewer.js"></script>')
    address = f"{page.as_uri()}?release={release}&find={find.replace(' ', '+')}"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", profile, "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
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
