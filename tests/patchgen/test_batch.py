"""Many files at once: the same results in one process, in several and from the cache; a bad cache is no cache."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path

import pytest
from rocm_overlay import console
from rocm_overlay.errors import Place, SourceError
from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen import batch as batches
from rocm_overlay.patchgen import cache as caches
from rocm_overlay.patchgen.batch import Input, run_batch
from rocm_overlay.patchgen.cache import Cache, cache_folder

from tests.patchgen.support import one, source
from tests.patchgen.test_recipe_rms_norm import LLAMA, RECIPE


def inputs(count: int, bad: tuple[int, ...] = ()) -> list[Input]:
    """Files that differ in a comment; the bad ones are no Python."""

    def text(number: int) -> bytes:
        return b"def f(:\n" if number in bad else source(f"# {number}\n{LLAMA}")

    return [
        Input(f"models/m{number}/modeling_m{number}.py", f"m{number}", lambda number=number: text(number))
        for number in range(count)
    ]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were really generated in this process."""
    paths: list[str] = []
    real = batches.generate

    def spy(data: bytes, path: str, *rest: object, **more: object) -> object:
        paths.append(path)
        return real(data, path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "generate", spy)
    return paths


def test_several_processes_give_what_one_gives_in_the_order_of_the_inputs() -> None:
    recipes = recipe_set()
    off = Cache(None, recipes)
    serial = run_batch(inputs(7, bad=(3,)), recipes, jobs=1, cache=off)
    parallel = run_batch(inputs(7, bad=(3,)), recipes, jobs=2, cache=off)
    assert parallel.results == serial.results
    assert [result.path for result in serial.results] == [
        one.path for number, one in enumerate(inputs(7)) if number != 3
    ]
    assert [str(error) for error in parallel.errors] == [str(error) for error in serial.errors]
    assert str(serial.errors[0]).startswith("m3:1: the file is not valid Python")
    assert isinstance(parallel.errors[0], SourceError)


def test_what_is_known_is_not_generated_again_and_is_the_same(tmp_path: Path, generated: list[str]) -> None:
    recipes = recipe_set()
    first = run_batch(inputs(3), recipes, cache=Cache(tmp_path, recipes))
    assert (first.cached, len(generated)) == (0, 3)
    again = run_batch(inputs(4), recipes, cache=Cache(tmp_path, recipes))
    assert (again.cached, generated[3:]) == (3, ["models/m3/modeling_m3.py"])
    assert again.results[:3] == first.results


def test_an_error_is_never_kept(tmp_path: Path, generated: list[str]) -> None:
    recipes = recipe_set()
    for _ in range(2):
        assert len(run_batch(inputs(1, bad=(0,)), recipes, cache=Cache(tmp_path, recipes)).errors) == 1
    assert len(generated) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "edit", "span", "status", "unreadable"])
def test_a_damaged_entry_is_generated_anew(damage: str, tmp_path: Path, generated: list[str]) -> None:
    recipes = recipe_set()
    wanted = run_batch(inputs(1), recipes, cache=Cache(tmp_path, recipes)).results
    (file,) = tmp_path.rglob("*.json")
    document = json.loads(file.read_bytes())
    if damage == "edit":
        document["edits"][-1][2] = "pass\n"
    elif damage == "span":
        document["edits"][-1][1] = 10**6
    elif damage == "status":
        document["outcomes"][0][1] = "perhaps"
    text = {"empty": b"", "cut": file.read_bytes()[:-40]}.get(damage, json.dumps(document).encode())
    if damage == "unreadable":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(text)
    found = run_batch(inputs(1), recipes, cache=Cache(tmp_path, recipes)).results
    assert found == wanted
    assert len(generated) == 2


@pytest.mark.parametrize("what", ["recipes", "tool", "path", "text"])
def test_every_input_of_a_result_is_in_its_key(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source(LLAMA)
    recipes = one(RECIPE)
    cache = Cache(tmp_path, recipes)
    assert cache.put(batches.generate(data, "x.py", recipes))
    assert cache.get("x.py", data) is not None
    path = "x.py"
    if what == "recipes":
        cache = Cache(tmp_path, type(recipes)(recipes.recipes, "f" * 12))
    elif what == "tool":
        monkeypatch.setattr(caches, "tool_digest", lambda: "another")
        cache = Cache(tmp_path, recipes)
    elif what == "path":
        path = "y.py"
    else:
        data += b"\n"
    assert cache.get(path, data) is None


def test_every_file_that_makes_an_overlay_is_in_the_key() -> None:
    room = Path(caches.__file__).parent
    found, pending = {"cache"}, ["engine"]
    recipes = room.parent / "overlays/recipes"
    texts = "".join(file.read_text() for file in recipes.glob("*.py"))
    pending += re.findall(r"from rocm_overlay\.patchgen\.(\w+) import", texts)
    while pending:
        name = pending.pop()
        if name not in found and (room / f"{name}.py").is_file():
            found.add(name)
            pending += re.findall(r"^from \.(\w+) import", (room / f"{name}.py").read_text(), re.MULTILINE)
    assert set(caches.MAKERS) == found


def test_a_folder_that_cannot_be_written_is_a_note_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    recipes = recipe_set()
    made = run_batch(inputs(2), recipes, cache=Cache(blocked / "gen", recipes), shown=True)
    assert len(made.results) == 2
    assert f"results are not kept, {blocked / 'gen'} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"AMD_OVERLAY_CACHE": "/a", "HOME": "/h"}, Path("/a/gen")),
        ({"AMD_OVERLAY_CACHE": "off", "HOME": "/h"}, None),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/x/amd-overlay/gen")),
        ({"HOME": "/h"}, Path("/h/.cache/amd-overlay/gen")),
        ({}, None),
    ],
)
def test_where_results_are_kept(environment: dict[str, str], folder: Path | None) -> None:
    assert cache_folder(environment) == folder


def test_an_error_travels_between_processes_with_every_fact() -> None:
    error = SourceError("m", place=Place("p", 3), expected="e", found="f", nearest="n", remedy="r")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SourceError
    assert str(again) == str(error)
    assert (again.place, again.expected, again.found, again.nearest, again.remedy) == (
        Place("p", 3),
        "e",
        "f",
        "n",
        "r",
    )


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_another_stream_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = recipe_set()
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    run_batch(inputs(2), recipes, cache=Cache(None, recipes), shown=True)
    assert "generating" in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(console, "EVERY_SECONDS", 0.0)
    run_batch(inputs(3), recipes, jobs=1, cache=Cache(None, recipes), shown=True)
    first, second = file.getvalue().splitlines()
    assert first.startswith("1 of 3: "), "what comes before the first step is no measure of the others"
    assert second.startswith("2 of 3, about ")
