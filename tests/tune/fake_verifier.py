"""A numeric check without a GPU: the plan says which shapes a kernel computes wrongly."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

with Path(sys.argv[1]).open(newline="") as stream:
    row = next(csv.DictReader(stream))
plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text())
todo = plan.get(f"{row['M']}x{row['N']}x{row['K']}", {})
if todo.get("verify") == "crash":
    sys.exit(7)
if todo.get("verify") != "silent":
    wrong = todo.get("verify") == "wrong"
    Path(sys.argv[2]).write_text(json.dumps({"ok": not wrong, "error": 0.5 if wrong else 0.001, "allowed": 0.01}))
