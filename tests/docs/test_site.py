"""Pages say what the code and the results say, load nothing from elsewhere, and README's links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from amd_ops import toggles
from docs.tools import hooks, pictures, tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_of_a_page_are_current(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") > 0
    assert tables.current(text) == text, "run `make tables`"


def test_every_table_is_used() -> None:
    used = {
        name for page in tables.PAGES for name in re.findall(r"<!-- table: ([a-z-]+) -->", (ROOT / page).read_text())
    }
    assert used == set(tables.TABLES)


def test_a_toggle_without_a_meaning_stops_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toggles.KEYWORDS, "new", "AMD_OPS_NEW")
    with pytest.raises(KeyError, match="AMD_OPS_NEW"):
        tables.toggles_table()


def test_a_changed_default_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = toggles.RULES["PRESHUFFLE_M_THRESH"]
    monkeypatch.setitem(toggles.RULES, rule.name, replace(rule, default="64"))
    text = (ROOT / "docs/toggles.md").read_text()
    assert tables.current(text) != text


def test_the_evidence_of_the_support_matrix_exists() -> None:
    for *_, evidence in tables.SUPPORT:
        for name in re.findall(r"`([^`]+)`", evidence):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_pictures_are_what_the_script_draws(name: str) -> None:
    assert (ROOT / "docs/pictures" / name).read_text() == pictures.draw(*pictures.PICTURES[name])


def test_the_recorded_terminal_is_there_and_loads_nothing() -> None:
    text = (ROOT / "docs/pictures/terminal.svg").read_text()
    assert "url(http" not in text
    assert "@font-face" not in text
    for word in ("install", "verify", "revert"):
        assert f"overlay&#160;{word}" in text


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[the demo](../examples/demo.py)", "the demo (`examples/demo.py`)"),
        ("[examples/demo.py](../examples/demo.py)", "`examples/demo.py`"),
        ("[gone](../examples/gone.py)", "[gone](../examples/gone.py)"),
        ("[a page](../docs/index.md)", "[a page](../docs/index.md)"),
    ],
)
def test_a_link_out_of_the_pages_becomes_a_name(link: str, shown: str) -> None:
    found = hooks.LINK.search(link)
    assert found is not None
    assert hooks.named(found, ROOT / "docs") == shown


def test_relative_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    local = [link.split("#")[0] for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_a_page_names_no_path_of_a_machine_and_loads_no_picture_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(?<![\w.])/(?:root|work)/", text)
    assert not re.search(r"!\[[^\]]*\]\(https?:", text)
