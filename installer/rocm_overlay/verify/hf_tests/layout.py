"""Lays the test tree of an sdist out in a scratch folder; the parts that an sdist lacks are empty stand-ins."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from ...errors import UsageError

# What the mixin imports and no sdist carries: mixins without tests, and a table.
_STAND_INS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
_TEST = """from ...test_modeling_common import ModelTesterMixin
from .tester import make

{name} = make("{model}", ModelTesterMixin)
"""
_TEST_WITH_TRAINING = """from ...test_modeling_common import ModelTesterMixin
from ...test_training_mixin import TrainingTesterMixin
from .tester import make

{name} = make("{model}", ModelTesterMixin, TrainingTesterMixin)
"""


def version_of(sdist: Path) -> str:
    """Return the release that an sdist's name gives. Raises UsageError."""
    match = re.fullmatch(r"transformers-(\d+\.\d+\.\d+)\.tar\.gz", sdist.name)
    if not sdist.is_file() or match is None:
        remedy = "pip download --no-binary :all: --no-deps transformers==RELEASE fetches one"
        raise UsageError("no-sdist", f"{sdist} is no sdist of transformers", remedy=remedy, paths=[sdist])
    return match[1]


def lay_out(sdist: Path, models: list[str], folder: Path) -> Path:
    """Write ``folder``/tests with one test file per model; return ``folder``. Raises UsageError for a damaged sdist."""
    tests = folder / "tests"
    try:
        with tarfile.open(sdist) as archive:
            for member in archive:
                parts = member.name.split("/")
                if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                    content = archive.extractfile(member)
                    assert content is not None
                    tests.mkdir(parents=True, exist_ok=True)
                    (tests / parts[2]).write_bytes(content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        message = f"{sdist} cannot be read: {error}"
        raise UsageError("sdist-damaged", message, remedy="download it again", paths=[sdist]) from None
    if not (tests / "test_modeling_common.py").is_file():
        raise UsageError("sdist-without-tests", f"{sdist} has no tests/test_modeling_common.py", remedy="use another")
    for name, text in _STAND_INS.items():
        path = tests / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    place = tests / "models" / "overlay"
    place.mkdir(parents=True)
    for package in (tests, tests / "models", place):
        (package / "__init__.py").touch()
    (place / "tester.py").write_bytes(Path(__file__).with_name("tester.py").read_bytes())
    test = _TEST_WITH_TRAINING if (tests / "test_training_mixin.py").is_file() else _TEST
    for model in models:
        name = "".join(part.capitalize() for part in model.split("_")) + "Test"
        (place / f"test_modeling_{model}.py").write_text(test.format(name=name, model=model))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    generate\n    flaky\n    is_training_test\n")
    return folder
