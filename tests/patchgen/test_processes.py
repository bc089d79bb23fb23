"""What only a fresh process shows: imports with and without amd_ops, determinism, and what generating imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.install import catalog

from tests.patchgen.support import MODELS
from tests.patchgen.test_release import FILES, LINE

ROOT = Path(__file__).resolve().parents[2]

# Loads an overlay under its stock module's own name, from a file with the stock file's own name in folders with the
# stock file's own names, and compares it with stock. Prints one JSON object.
COMPARE = """
import contextlib, importlib.util, inspect, io, json, sys, warnings

if sys.argv[1] == "absent":
    sys.modules["amd_ops"] = None  # neither found nor imported

def load(name, location):
    said = io.StringIO()
    spec = importlib.util.spec_from_file_location(name, location)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec.loader.exec_module(module)
    return module, said.getvalue(), [str(one.message) for one in caught]

def signatures(module):
    found = {}
    for label, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if inspect.isfunction(member):
                    found[f"{label}.{key}"] = str(inspect.signature(member))
            found[label] = [base.__name__ for base in value.__mro__], value.__doc__
        elif inspect.isfunction(value):
            found[label] = str(inspect.signature(value)), value.__doc__
    return found

def compare(model, file):
    name = f"transformers.models.{model}.modeling_{model}"
    stock, stock_said, stock_warned = load(name, importlib.util.find_spec(name).origin)
    ours, said, warned = load(name, file)
    classes = [value for value in vars(ours).values() if inspect.isclass(value) and value.__module__ == name]
    return {
        "amd": ours._amd is not None,
        "lost": sorted(set(vars(stock)) - set(vars(ours))),
        "gained": sorted(set(vars(ours)) - set(vars(stock))),
        "signatures": len(signatures(stock)),
        "differ": [key for key, value in signatures(stock).items() if signatures(ours).get(key) != value],
        "all": stock.__all__ == ours.__all__,
        "doc": stock.__doc__ == ours.__doc__,
        "said": [stock_said, said],
        "warned": [stock_warned, warned],
        "settable": [
            value._can_set_attn_implementation()
            for value in classes
            if hasattr(value, "_can_set_attn_implementation")
        ],
        "overlay": ours.__amd_overlay__,
    }

files = dict(argument.split("=", 1) for argument in sys.argv[2:])
print(json.dumps({model: compare(model, file) for model, file in files.items()}))
"""

# What the import block of an overlay binds, with and without amd_ops: all of it is ours by name.
BOUND = {
    True: ["__amd_overlay__", "_amd", "_amd_spec"],
    False: ["__amd_overlay__", "_amd", "_amd_asks", "_amd_os", "_amd_re", "_amd_set", "_amd_spec", "_amd_warnings"],
}
ENTRIES = {entry["model"]: entry for entry in FILES if "4.57.6" in entry["releases"]}


def python(
    code: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run code in a fresh interpreter with this repository on its path."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "installer")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=env, cwd=cwd, check=False)


@pytest.fixture(scope="module", params=["absent", "present"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, dict[str, Any]]:
    """Whether amd_ops was there, and the comparison of every model, made in one process."""
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != "4.57.6":
        pytest.skip(f"needs transformers 4.57.6 to compare with, found {transformers.__version__}")
    folder = tmp_path_factory.mktemp("overlays")
    files = []
    for model, entry in ENTRIES.items():
        file = folder / "models" / model / f"modeling_{model}.py"
        file.parent.mkdir(parents=True)
        file.write_bytes((LINE / entry["payload"]).read_bytes())
        files.append(f"{model}={file}")
    done = python(COMPARE, request.param, *files)
    assert done.returncode == 0, done.stderr.decode()
    return request.param == "present", json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", MODELS)
def test_an_overlay_imports_and_looks_like_stock(model: str, compared: tuple[bool, dict[str, Any]]) -> None:
    present, found = compared[0], compared[1][model]
    assert found["amd"] is present
    assert (found["lost"], found["gained"]) == ([], BOUND[present])
    assert found["differ"] == []
    assert found["signatures"] > 20
    assert found["all"]
    assert found["doc"]
    assert found["said"][0] == found["said"][1]
    assert found["warned"][0] == found["warned"][1]
    assert len(found["settable"]) >= 3
    # qwen2_moe chooses a class per implementation, and stock says no for it, too.
    assert not any(found["settable"]) if model == "qwen2_moe" else all(found["settable"])
    assert found["overlay"] == f"sha256:{ENTRIES[model]['stock_sha256']}"


GENERATE = """
import sys
from pathlib import Path
from rocm_overlay.console import set_json
from rocm_overlay.patchgen.command import run
from rocm_overlay.patchgen.options import Options
source, output = Path(sys.argv[1]), Path(sys.argv[2])
set_json(True)
code = run(Options(all_files=True, source=source, output=output, models="qwen3,phi3,mixtral"))
heavy = sorted({"torch", "transformers", "black", "ruff"} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""


def test_the_same_bytes_in_any_process(stock_tree: Callable[[str], Path], tmp_path: Path) -> None:
    """Another hash seed, working directory, locale or time zone: nothing shows. And no torch."""
    source = str(stock_tree("4.57.6") / "transformers")
    made = []
    for number, environment in enumerate(
        (
            {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "UTC"},
            {"PYTHONHASHSEED": "31337", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"},
        )
    ):
        output = tmp_path / f"made-{number}"
        folder = tmp_path / f"cwd-{number}"
        folder.mkdir()
        done = python(GENERATE, source, str(output), cwd=folder, **environment)
        assert done.returncode == 0, done.stderr.decode()
        files = {file.relative_to(output).as_posix(): file.read_bytes() for file in output.rglob("*.py")}
        made.append((done.stdout, files))
    assert made[0] == made[1]
    assert len(made[0][1]) == 3
    for model in ("qwen3", "phi3", "mixtral"):
        committed = (LINE / ENTRIES[model]["payload"]).read_bytes()
        assert made[0][1][f"models/{model}/modeling_{model}.py"] == committed


def test_stdout_is_source_text_in_any_locale(stock_tree: Callable[[str], Path]) -> None:
    """qwen3 begins with emoji; a C locale must not stop or change them."""
    code = (
        "import sys; from pathlib import Path; from rocm_overlay.patchgen.command import run; "
        "from rocm_overlay.patchgen.options import Options; "
        "sys.exit(run(Options(target='qwen3', source=Path(sys.argv[1]))))"
    )
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python(code, str(stock_tree("4.57.6")), **c_locale)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == (LINE / ENTRIES["qwen3"]["payload"]).read_bytes()


def test_without_libcst_the_message_says_what_to_install() -> None:
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'libcst' else real(name, *a); import rocm_overlay.patchgen"
    )
    done = python(code)
    assert done.returncode == 1
    assert b"pip install libcst" in done.stderr


def test_an_interrupt_ends_every_process_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Ctrl-C of a terminal reaches the whole group; nobody waits for the files that are not made yet."""
    root = tmp_path / "transformers"
    text = catalog.load("4.57").by_path()["models/qwen2_moe/modeling_qwen2_moe.py"][0].stock_bytes()
    for number in range(60):
        file = root / f"models/m{number}/modeling_m{number}.py"
        file.parent.mkdir(parents=True)
        file.write_bytes(text)
    (root / "__init__.py").write_text('__version__ = "9.9.9"\n')
    command = [sys.executable, "-m", "rocm_overlay", "gen", "--all", "--source", str(root), "-o", str(tmp_path / "out")]
    cache = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'installer'}", "AMD_OVERLAY_CACHE": str(cache)}
    # Where these tests themselves run in the background of a shell, SIGINT is ignored, and a child inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = subprocess.Popen(
            [*command, "--jobs", "2"], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while run.poll() is None and not list(cache.rglob("*.json")):
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert 0 < len(list(cache.rglob("*.json"))) < 60
    # The last to go is multiprocessing's own tracker, which sees that the others are gone.
    while _there(run.pid):
        time.sleep(0.05)


def _there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
