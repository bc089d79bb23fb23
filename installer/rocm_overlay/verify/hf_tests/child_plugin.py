"""A pytest plugin for the child process: serves one build of the modeling files and writes down each test's outcome."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rocm_overlay.install.hook import SourceFinder

JOB = "OVERLAY_HF_JOB"

_job: dict[str, Any] = json.loads(Path(os.environ[JOB]).read_text())
SourceFinder(_job["sources"]).install()
_outcomes: dict[str, str] = {}
_messages: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the worst phase of each test; a subtest is one (pytest 9 reports the test itself as passed after it)."""
    if _outcomes.get(report.nodeid) != "failed" and (report.when == "call" or report.outcome != "passed"):
        _outcomes[report.nodeid] = report.outcome
        if report.outcome == "failed":
            _messages[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]


def pytest_sessionfinish(session: Any) -> None:
    """Write outcomes, and how often ops of ours ran: a run that used none has shown nothing."""
    import sys

    ops = sys.modules.get("amd_ops")
    rows = ops.report().as_dict()["ops"] if ops is not None else []
    ran = {row["op"]: sum(tier["calls"] for tier in row["tiers"] if tier["tier"] != "stock") for row in rows}
    Path(_job["outcomes"]).write_text(json.dumps({"outcomes": _outcomes, "messages": _messages, "ran": ran}))
