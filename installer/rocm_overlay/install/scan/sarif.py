"""SARIF 2.1.0: the form that code-scanning services read."""

from __future__ import annotations

import urllib.parse

import rocm_overlay

from .engine import Finding, Scan
from .table import Entry

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"manual": "error", "none": "error", "partial": "warning", "automatic": "note"}


def document(scan: Scan) -> dict[str, object]:
    """Return the whole log: one run, one rule per library that was found, one result per place."""
    rules = sorted({one.entry.id: one.entry for one in scan.findings}.values(), key=lambda entry: entry.id)
    index = {entry.id: number for number, entry in enumerate(rules)}
    driver = {
        "name": "overlay scan",
        "version": rocm_overlay.__version__,
        "informationUri": "https://rocm.docs.amd.com/projects/HIPIFY/en/latest/",
        "rules": [_rule(entry) for entry in rules],
    }
    results = [_result(one, index[one.entry.id]) for one in scan.findings]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "name": "".join(part.capitalize() for part in entry.id.split("-")),
        "shortDescription": {"text": f"{entry.nvidia}: use {entry.amd}"},
        "fullDescription": {"text": entry.differs},
        "helpUri": next((one for one in entry.sources if one.startswith("https://")), SCHEMA),
        "defaultConfiguration": {"level": _LEVELS[entry.hipify]},
        "properties": {"hipify": entry.hipify, "tags": [entry.category]},
    }


def _result(one: Finding, rule: int) -> dict[str, object]:
    return {
        "ruleId": one.entry.id,
        "ruleIndex": rule,
        "level": _LEVELS[one.entry.hipify],
        "message": {"text": f"{one.text} ({one.entry.nvidia}): use {one.entry.amd}. {one.entry.differs}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {
                        "uri": urllib.parse.quote(one.path, errors="surrogateescape"),
                        "uriBaseId": "%SRCROOT%",
                    },
                    "region": {"startLine": one.line, "startColumn": one.column},
                }
            }
        ],
    }
