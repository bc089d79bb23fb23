"""Every command tells the same story about a file, whatever is known about it.

One model, and every combination of what its file holds, what RECORD says and what a receipt says. The state that
`overlay status` shows decides what doctor, install, revert and verify must say; the table below is that promise.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from rocm_overlay.errors import OverlayError
from rocm_overlay.install import catalog, inspection, lookup, operations
from rocm_overlay.install.doctor import Machine, examine
from rocm_overlay.install.session import Options, open_place, read_environment
from rocm_overlay.install.target import resolve
from rocm_overlay.install.transaction import blobs
from rocm_overlay.install.transaction.decode import dump
from rocm_overlay.install.transaction.place import RECEIPT
from rocm_overlay.install.transaction.receipt import Receipt, ReceiptFile, ReceiptTarget

from tests.install.support import FITTING, STOCK, digest, make_bundle, make_site, modeling, overlay_text

pytest.importorskip("libcst")

PATH = "models/one/modeling_one.py"
OURS = STOCK["one"]
OTHER = b'"""Model one of release 1.0.1."""\n\nimport os\n'
UNKNOWN = b'"""Model one of a release that nobody knows."""\n'
OWN = b'"""Model one, written anew by a user."""\n'
TEXTS = {
    "stock": OURS,
    "other": OTHER,
    "unknown": UNKNOWN,
    "overlay": overlay_text(OURS),
    "generated": overlay_text(OURS, 7),
    "adopted": overlay_text(FITTING),
    "edited overlay": overlay_text(OURS) + b"# mine\n",
    "edit": FITTING,
    "misfit": b"mine = True\n",
    "own": OWN,
    "nothing": None,
}
RECORDS = {"stock": OURS, "unknown": UNKNOWN, "without hash": b"", "without line": None, "none": None}
RECEIPTS = {
    "none": None,
    "bundle": (OURS, TEXTS["overlay"]),
    "generated": (OURS, TEXTS["generated"]),
    "adopted": (FITTING, TEXTS["adopted"]),
    "own": (OURS, OWN),
}


@dataclass(frozen=True)
class Row:
    """What must be said: the environment's state, and exit codes (None: either of 0 and 4, by the text itself)."""

    state: str
    install: int
    adopt: int | None
    revert: int | None
    verify: int
    findings: frozenset[str] = frozenset()


def row(state: str, codes: tuple[int, int | None, int | None, int], *findings: str) -> Row:
    return Row(state, *codes, frozenset(findings))


# (is there a receipt of this release, state of the file) -> what every command says.
STORY = {
    (False, "stock"): row("STOCK", (0, 0, 0, 0)),
    (False, "absent"): row("STOCK", (0, 0, 0, 3)),
    (False, "unseen"): row("UNSUPPORTED", (3, 3, 0, 3), "unsupported-text"),
    (False, "overlay"): row("FOREIGN", (0, 0, 0, 0), "receipt-lost"),
    (False, "overlay-other"): row("FOREIGN", (4, 4, 4, 4), "foreign-files"),
    (False, "other-stock"): row("FOREIGN", (4, 0, 4, 4), "foreign-files"),
    (False, "foreign"): row("FOREIGN", (4, None, 4, 4), "foreign-files"),
    (False, "unlisted"): row("FOREIGN", (4, None, None, 4), "unlisted-files"),
    (False, "missing"): row("FOREIGN", (4, 4, 0, 4), "damaged-install"),
    (True, "overlay"): row("APPLIED", (0, 0, 0, 0)),
    (True, "stock"): row("WIPED", (0, 0, 0, 0), "wiped"),
    (True, "unseen"): row("WIPED", (3, 3, 0, 3), "wiped"),
    (True, "base"): row("WIPED", (0, 0, 0, 4), "wiped"),
    (True, "overlay-other"): row("DRIFTED", (4, 4, 4, 4), "drifted"),
    (True, "other-stock"): row("DRIFTED", (4, 0, 4, 4), "drifted"),
    (True, "foreign"): row("DRIFTED", (4, None, 4, 4), "drifted"),
    (True, "missing"): row("DRIFTED", (4, 4, 0, 4), "drifted"),
}
ABOUT_FILES = {
    "foreign-files", "unlisted-files", "damaged-install", "unsupported-text", "unsupported", "receipt-lost", "drifted",
    "partial", "wiped", "orphaned", "stale-overlay", "adopted-by-older-version",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Overlays for the text of 1.0.0, and for that of 1.0.1."""
    catalog.load.cache_clear()
    folder = make_bundle(tmp_path_factory.mktemp("bundle"), {"one": OURS})
    manifest = json.loads((folder / "1.0" / "manifest.json").read_text())
    more = make_bundle(tmp_path_factory.mktemp("more"), {"one": OTHER}, releases=("1.0.1",))
    entry = json.loads((more / "1.0" / "manifest.json").read_text())["files"][0]
    (folder / "1.0" / entry["payload"]).write_bytes((more / "1.0" / entry["payload"]).read_bytes())
    manifest["files"].append(entry)
    manifest["releases"].append("1.0.1")
    (folder / "1.0" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def site_of(folder: Path, text: str, record: str, receipt: str) -> Path:
    site = make_site(folder / "site", {"one": OURS}, record=record != "none")
    file = modeling(site, "one")
    data = TEXTS[text]
    file.unlink() if data is None else file.write_bytes(data)
    recorded = RECORDS[record]
    if record != "none":
        lines = site / "transformers-1.0.0.dist-info" / "RECORD"
        encoded = base64.urlsafe_b64encode(hashlib.sha256(recorded or b"").digest()).decode().rstrip("=")
        name = f"transformers/{PATH}"
        written = {"without line": "", "without hash": f"{name},,\n"}.get(record, f"{name},sha256={encoded},9\n")
        lines.write_text(f"transformers/__init__.py,,\n{written}")
    given = RECEIPTS[receipt]
    if given is not None:
        _write_receipt(site, receipt, *given, recorded)  # type: ignore[misc]
    return site


def _write_receipt(site: Path, origin: str, base: bytes, overlay: bytes, recorded: bytes | None) -> None:
    """Write what an install would have left: the base is in the blobs, and RECORD is as it was then."""
    target = resolve(site_packages=site, writes=False)
    place = open_place(target)
    place.prepare()
    blobs.put(place, base)
    seen = place.tree.observe("transformers/__init__.py")
    assert seen is not None
    stock = type(seen.entry)(**{**vars(seen.entry), "sha256": digest(base), "size": len(base)})
    known = digest(recorded) if recorded else None
    file = ReceiptFile(PATH, "one", stock, digest(overlay), (), origin=origin, recorded=known)
    about = ReceiptTarget(
        None, None, str(site), target.dist_info and target.dist_info.name, "1.0.0", None, None, "target"
    )
    made = Receipt("1.0", "1.0-g1-0123456789ab", "0" * 64, "1", "now", about, (file,))
    place.put_state(RECEIPT, dump(made.to_json()), "0" * 12)


def code_of(run: object, *arguments: object, **more: object) -> int:
    try:
        run(*arguments, **more)  # type: ignore[operator]
    except OverlayError as error:
        return error.code if error.remedy else -1
    return 0


def look(options: Options) -> None:
    """What verify, qualify, bench, profile and export see."""
    target = resolve(site_packages=options.site_packages, writes=False)
    environment = read_environment(open_place(target), target, options.bundle)
    (found,) = lookup.pairs(environment, ["one"])
    facts = environment.facts(PATH)
    assert digest(found.base) == found.base_sha256
    assert digest(found.overlay) == found.overlay_sha256
    assert facts.digest == (found.overlay_sha256 if found.installed == "overlay" else found.base_sha256)


COMBINATIONS = [(text, record, receipt) for receipt in RECEIPTS for record in RECORDS for text in TEXTS]
_seen: Counter[tuple[bool, str]] = Counter()


@pytest.mark.parametrize("receipt", RECEIPTS)
def test_no_two_commands_contradict_each_other(receipt: str, bundle: Path, tmp_path: Path) -> None:
    orphaned = 0
    for number, (text, record, which) in enumerate(COMBINATIONS):
        if which == receipt:
            orphaned += _check(tmp_path / str(number), bundle, text, record, which)
    assert orphaned == {"bundle": 11, "generated": 0, "adopted": 0, "own": 0}.get(receipt, 0)


def _check(folder: Path, bundle: Path, text: str, record: str, receipt: str) -> bool:
    site = site_of(folder, text, record, receipt)
    options = Options(site_packages=site, bundle=bundle, dry_run=True)
    status = inspection.status(options)
    if status.state is inspection.State.ORPHANED:
        return True
    listed = {file.path: file for file in status.files}
    state = listed[PATH].state.value if PATH in listed else "absent"
    mine = receipt != "none"
    story, what = STORY[mine, state], (text, record, receipt, state)
    _seen[mine, state] += 1
    machine = Machine(environ={}, proc=site, nodes=site, kfd=site, temporary=site, uv_cache=site)
    found = {one.id for one in examine(options, machine=machine).findings} & ABOUT_FILES
    got = (
        status.state.value,
        code_of(operations.install, options, "1.0"),
        code_of(operations.install, options, "1.0", adopt=True),
        code_of(operations.revert, options),
        code_of(look, options),
        found,
    )
    install = 4 if (state, receipt) == ("base", "own") else story.install  # their folder is not named again
    wanted = (story.state, install, story.adopt, story.revert, story.verify, set(story.findings))
    for one, expected in zip(got, wanted, strict=True):
        assert one == expected or (expected is None and one in (0, 4)), (what, got, wanted)
    if state == "overlay" and mine:
        assert (listed[PATH].origin, listed[PATH].base) == (receipt, digest(RECEIPTS[receipt][0]))  # type: ignore[index]
    if state == "foreign":
        assert code_of(operations.install, options, "1.0", adopt=True) == (0 if text == "edit" else 4), what
    return False


def test_the_table_is_used_and_the_combinations_are_many(bundle: Path, tmp_path: Path) -> None:
    assert len(COMBINATIONS) >= 200
    for number, (text, record, receipt) in enumerate(COMBINATIONS):
        if sum(_seen.values()) < 100:
            _check(tmp_path / str(number), bundle, text, record, receipt)
    assert set(STORY) == set(_seen)
