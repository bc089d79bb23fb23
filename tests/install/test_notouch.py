"""No-touch mode: overlays served by an import hook, with the same checks, and no file of transformers changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import UsageError
from rocm_overlay.install import catalog
from rocm_overlay.install.hook import running
from rocm_overlay.install.target import HOOK

from tests.install.support import (
    ROOT,
    STOCK,
    Done,
    environment,
    make_bundle,
    make_site,
    modeling,
    run_process,
    snapshot,
)

Overlay = Callable[..., Done]
SHOW = (
    "import sys, importlib, transformers\n"
    "for name in ('one', 'two'):\n"
    "    m = importlib.import_module(f'transformers.models.{name}.modeling_{name}')\n"
    "    print(name, hasattr(m, 'SERVED'), m.__name__, m.__file__)\n"
)
TEXTS = {name: b'"""Model."""\n\nNAME = "%s"\n' % name.encode() for name in ("one", "two")}


def served_bundle(folder: Path, stocks: dict[str, bytes] = TEXTS) -> Path:
    """A bundle whose overlays are told apart from stock by a name that they define."""
    import hashlib

    bundle = make_bundle(folder, stocks)
    path = bundle / "1.0" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for entry in manifest["files"]:
        file = bundle / "1.0" / entry["payload"]
        data = file.read_bytes() + b"SERVED = True\n"
        file.write_bytes(data)
        entry["overlay_sha256"], entry["overlay_size"] = hashlib.sha256(data).hexdigest(), len(data)
        size = entry["stock_size"]
        end = len(data) - len(b"SERVED = True\n")
        entry["edits"].append(
            {"recipe": "x", "qualname": "", "stock": [size, size], "overlay": [end, len(data)], "stock_text": ""}
        )
    path.write_text(json.dumps(manifest))
    catalog.load.cache_clear()
    return bundle


@pytest.fixture
def small(tmp_path: Path) -> Path:
    site = make_site(tmp_path / "lib" / "site-packages", TEXTS)
    for folder in (site / "transformers" / "models", *(site / "transformers" / "models").iterdir()):
        (folder / "__init__.py").write_bytes(b"")
    return site


def started(bundle: Path, command: list[str], site: Path, models: list[str] | None = None) -> Done:
    """Start a command as `overlay run` would, with a small package in front of the path."""
    environ = {**environment(), "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    made = running.prepare(command, models, bundle=bundle, environ=environ)
    done = subprocess.run(command, env=made.environ, capture_output=True, text=True, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_run_serves_what_fits_and_writes_nothing(small: Path, tmp_path: Path) -> None:
    before = snapshot(small)
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", SHOW], small)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[:3] for line in lines] == [
        [name, "True", f"transformers.models.{name}.modeling_{name}"] for name in TEXTS
    ]
    assert all(line[3].endswith(f"models/{line[0]}/modeling_{line[0]}.py") for line in lines)
    assert snapshot(small) == before


def test_a_changed_stock_file_is_imported_as_it_is_and_that_is_said_once(small: Path, tmp_path: Path) -> None:
    modeling(small, "one").write_bytes(TEXTS["one"] + b"EDITED = True\n")
    again = SHOW + "del sys.modules['transformers.models.one.modeling_one']\n" + SHOW
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", again], small)
    assert [line.split()[1] for line in done.out.splitlines()] == ["False", "True"] * 2
    assert done.err.count(str(modeling(small, "one"))) == 1
    assert "no stock text" in done.err


@pytest.mark.parametrize("damage", ["payload", "manifest", "link", "name"])
def test_a_damaged_bundle_is_never_served(small: Path, tmp_path: Path, damage: str) -> None:
    bundle = served_bundle(tmp_path / "bundle")
    manifest = bundle / "1.0" / "manifest.json"
    payload = next((bundle / "1.0" / "models" / "one").glob("*.py"))
    if damage == "payload":
        payload.write_bytes(payload.read_bytes() + b"EVIL = True\n")
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "link":
        payload.rename(tmp_path / "elsewhere.py")
        payload.symlink_to(tmp_path / "elsewhere.py")
    else:
        text = manifest.read_text().replace(f"models/one/{payload.name}", "models/one/../../../../evil.py")
        manifest.write_text(text)
    environ = {**environment(), "PYTHONPATH": f"{small}{os.pathsep}{ROOT}"}
    settings = json.dumps({"bundle": str(bundle), "models": None})
    environ |= {running.VARIABLE: settings, "PYTHONPATH": f"{running.HOOK_PATH}{os.pathsep}{environ['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split()[1] == "False"
    assert "amd-overlay: " in done.stderr
    assert "Traceback" not in done.stderr


def test_models_limit_what_is_served(small: Path, tmp_path: Path) -> None:
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", SHOW], small, ["two"])
    assert [line.split()[1] for line in done.out.splitlines()] == ["False", "True"]


def test_the_source_that_is_shown_is_the_one_that_runs(small: Path, tmp_path: Path) -> None:
    code = (
        "import inspect, transformers.models.one.modeling_one as m\n"
        "assert 'SERVED = True' in inspect.getsource(m), inspect.getsource(m)\n"
    )
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", code], small)
    assert (done.code, done.err) == (0, "")


def test_a_hidden_sitecustomize_still_runs(small: Path, tmp_path: Path) -> None:
    (small / "sitecustomize.py").write_text("import sys; sys.customised = True\n")
    code = "import sys; print(sys.customised, sys.modules['sitecustomize'].__file__)"
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", code], small)
    assert done.out.split() == ["True", str(small / "sitecustomize.py")]


def test_a_process_without_transformers_loads_nothing(small: Path, tmp_path: Path) -> None:
    code = "import sys, json; print([n for n in sys.modules if 'amd_overlay' in n or n.startswith('rocm_overlay')])"
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", code], small)
    assert done.out.strip() == "[]"


def test_a_missing_amd_ops_is_said_once(small: Path, tmp_path: Path) -> None:
    bundle = served_bundle(tmp_path / "bundle")
    kept = "[p for p in sys.path if p and not p.startswith(HIDDEN)]"
    hidden = (str(ROOT), str(Path(sys.prefix)))
    code = f"import sys\nHIDDEN = {hidden!r}\nsys.path[:] = {kept}\nsys.path.append({str(small)!r})\n{SHOW}"
    done = started(bundle, [sys.executable, "-c", code], small)
    assert [line.split()[1] for line in done.out.splitlines()] == ["True", "True"], done
    assert done.err.count("amd_ops is not installed") == 1, done


def test_subprocesses_inherit(small: Path, tmp_path: Path) -> None:
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {SHOW!r}]))"
    done = started(served_bundle(tmp_path / "bundle"), [sys.executable, "-c", code], small)
    assert [line.split()[1] for line in done.out.splitlines()] == ["True", "True"]


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("unshare") is None, reason="needs unshare to mount read-only")
def test_run_works_on_a_read_only_tree(small: Path, tmp_path: Path) -> None:
    bundle = served_bundle(tmp_path / "bundle")
    environ = {**environment(), "PYTHONPATH": f"{small}{os.pathsep}{ROOT}"}
    made = running.prepare([sys.executable], bundle=bundle, environ=environ)
    mount = f'mount --bind "{small}" "{small}" && mount -o remount,ro,bind "{small}"'
    script = f'{mount} && ! touch "{small}/x" 2>/dev/null && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=made.environ, capture_output=True, text=True, timeout=120, check=False)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine does not let a test mount: {done.stderr.strip()}")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True", "True"], done.stderr


@pytest.mark.parametrize("flag", ["-I", "-E", "-S", "-sE"])
def test_switches_of_python_that_keep_the_hook_out_are_warned_about(flag: str) -> None:
    made = running.prepare([sys.executable, flag, "serve.py"], environ={})
    assert "nothing will be served" in made.notes[1]
    assert len(running.prepare([sys.executable, "serve.py", flag], environ={}).notes) == 1


def test_run_passes_the_exit_code_on(overlay: Overlay) -> None:
    command = [sys.executable, "-m", "rocm_overlay", "run", "--", sys.executable, "-c", "raise SystemExit(7)"]
    assert subprocess.run(command, env=environment(), check=False).returncode == 7
    done = overlay("run", "--", "no-such-command")
    assert (done.code, "no-such-command" in done.err) == (2, True)
    assert overlay("run", "--json", "--", "true").code == 2
    assert overlay("run").code == 2


def test_options_of_the_command_are_its_own() -> None:
    code = "import sys; print(sys.argv[1:])"
    command = [
        sys.executable,
        "-m",
        "rocm_overlay",
        "run",
        "--profile",
        "max",
        "--",
        sys.executable,
        "-c",
        code,
        "--json",
        "--dry-run",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['--json', '--dry-run']"


RANK = """
import json, os, sys
import torch.distributed as dist
import transformers.models.llama.modeling_llama as llama
import amd_ops
dist.init_process_group("gloo")
found = [None] * dist.get_world_size()
dist.all_gather_object(found, [llama.__amd_overlay__, sorted(amd_ops.overlay_info()), llama.LlamaModel.__module__])
if dist.get_rank() == 0:
    print("RANKS " + json.dumps(found))
dist.destroy_process_group()
"""


def test_torchrun_ranks_inherit_the_hook_and_import_the_real_overlay(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    transformers = pytest.importorskip("importlib.metadata").version("transformers")
    entry = [file for file in catalog.load("4.57").files if file.model == "llama" and transformers in file.releases]
    if not entry:
        pytest.skip(f"no overlay for the installed transformers {transformers}")
    (tmp_path / "rank.py").write_text(RANK)
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nnodes", "1"]
    script = str(tmp_path / "rank.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous, script]
    command = [sys.executable, "-m", "rocm_overlay", "run", "--", *launch]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RANKS "))
    name = "transformers.models.llama.modeling_llama"
    assert json.loads(line[len("RANKS ") :]) == [[f"sha256:{entry[0].stock_sha256}", [name], name]] * 2
    assert "amd-overlay:" not in done.stderr


# -- --mode hook ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hooked(tmp_path: Path, real_site: Callable[[str], Path]) -> Path:
    site = tmp_path / "site-packages"
    real_site("4.57.6").rename(site)
    return site


def install(overlay: Overlay, site: Path, *more: str) -> Done:
    return overlay("install", "--transformers", "4.57", "--mode", "hook", "--site-packages", site, "--json", *more)


def test_the_hook_is_one_file_and_revert_removes_it(hooked: Path, overlay: Overlay) -> None:
    before = snapshot(hooked)
    assert install(overlay, hooked, "--dry-run").json["action"] == "planned"
    assert snapshot(hooked) == before
    done = install(overlay, hooked)
    assert (done.code, done.json["action"], done.json["mode"]) == (0, "installed", "hook")
    assert set(snapshot(hooked)) - set(before) == {HOOK}
    assert not (hooked / ".amd-overlay").exists()
    assert install(overlay, hooked).json["action"] == "nothing"
    status = overlay("status", "--check", "--site-packages", hooked, "--json")
    assert (status.code, status.json["state"], status.json["mode"]) == (0, "APPLIED", "hook")
    assert overlay("revert", "--dry-run", "--site-packages", hooked).code == 0
    assert (hooked / HOOK).exists()
    done = overlay("revert", "--site-packages", hooked, "--json")
    assert (done.code, done.json["hook"]) == (0, str(hooked / HOOK))
    assert snapshot(hooked) == before
    assert not (hooked / ".amd-overlay").exists()


def python_with(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Start Python with ``site`` as one of its site folders, .pth files included."""
    environ = {**environment(), "PYTHONPATH": str(ROOT)}
    program = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.insert(0, {str(site)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)


def test_the_hook_file_serves(hooked: Path, overlay: Overlay) -> None:
    install(overlay, hooked, "--models", "llama")
    code = (
        "import importlib.util, types\n"
        "sys.modules['transformers'] = t = types.ModuleType('transformers'); t.__version__ = '4.57.6'\n"
        f"t.__path__ = [{str(hooked / 'transformers')!r}]\n"
        "for name in ('llama', 'qwen3'):\n"
        "    finder = sys.meta_path[0]\n"
        f"    folder = {str(hooked / 'transformers' / 'models')!r} + '/' + name\n"
        "    spec = finder.find_spec(f'transformers.models.{name}.modeling_{name}', [folder])\n"
        "    print(name, spec is not None and '__amd_overlay__' in spec.loader.get_source(name))\n"
    )
    done = python_with(hooked, code)
    assert (done.stdout, done.stderr) == ("llama True\nqwen3 False\n", "")


def test_a_hook_whose_tool_is_gone_says_so(hooked: Path, overlay: Overlay) -> None:
    install(overlay, hooked)
    path = hooked / HOOK
    path.write_bytes(path.read_bytes().replace(b"start.py", b"stray.py"))
    done = python_with(hooked, "print('runs')")
    assert done.stdout == "runs\n"
    assert "stock models run" in done.stderr
    assert overlay("status", "--site-packages", hooked, "--json").json["state"] == "DRIFTED"
    assert "hook-broken" in overlay("doctor", "--site-packages", hooked).out
    assert overlay("doctor", "--fix", "--site-packages", hooked).code == 0
    assert not path.exists()


def test_a_hook_file_that_was_edited_is_not_trusted(hooked: Path, overlay: Overlay) -> None:
    install(overlay, hooked)
    with (hooked / HOOK).open("ab") as file:
        file.write(b"import os\n")
    assert overlay("status", "--site-packages", hooked, "--json").code == 4
    assert overlay("revert", "--site-packages", hooked).code == 4
    assert overlay("revert", "--force", "--site-packages", hooked).code == 0
    assert not (hooked / HOOK).exists()


def test_files_and_hook_exclude_each_other(hooked: Path, overlay: Overlay) -> None:
    install(overlay, hooked)
    done = overlay("install", "--transformers", "4.57", "--site-packages", hooked)
    assert (done.code, "overlay revert" in done.err) == (2, True)
    overlay("revert", "--site-packages", hooked)
    overlay("install", "--transformers", "4.57", "--site-packages", hooked)
    done = install(overlay, hooked)
    assert (done.code, done.error["id"]) == (2, "files-installed")


def test_a_folder_without_pth_files_is_refused(site: Path, overlay: Overlay) -> None:
    done = install(overlay, site)
    assert (done.code, done.error["id"]) == (9, "no-site-folder")
    assert "overlay run" in str(done.error["remedy"])


@pytest.mark.parametrize("option", [["--adopt"], ["--generated", "x"]])
def test_options_of_the_other_mode(hooked: Path, overlay: Overlay, option: list[str]) -> None:
    assert install(overlay, hooked, *option).code == 2


def test_nothing_fits(hooked: Path, overlay: Overlay) -> None:
    modeling(hooked, "llama").write_bytes(b"mine\n")
    done = install(overlay, hooked, "--models", "llama")
    assert (done.code, done.error["id"]) == (3, "nothing-to-serve")
    assert not (hooked / HOOK).exists()


def test_the_small_texts_are_what_the_test_thinks(tmp_path: Path) -> None:
    assert STOCK.keys() >= TEXTS.keys()
    assert {one.model for one in catalog.load("1.0", served_bundle(tmp_path / "bundle")).files} == set(TEXTS)


def test_run_says_which_toggles_are_in_force(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "pass"]
    (said,) = running.prepare(command, environ={}).notes
    assert "no toggle is set, so models compute stock" in said
    (said,) = running.prepare(command, environ={"USE_AITER_GEMM": "1", "AMD_OPS_TIERS": "torch"}).notes
    assert said == "toggles in force: USE_AITER_GEMM=1, AMD_OPS_TIERS=torch"
    made = running.prepare(command, profile="auto", environ={})
    assert (made.environ["AMD_OPS"], made.notes) == ("auto", ("toggles in force: AMD_OPS=auto",))
    file = tmp_path / "profile.json"
    file.write_text('{"schema": "amd-ops.profile/1", "toggles": {"USE_OPTIMIZED_OPS": 1}}')
    made = running.prepare(command, profile=str(file), environ={})
    assert made.environ["AMD_OPS"] == str(file)
    file.write_text('{"schema": "amd-ops.profile/1", "toggles": {"USE_MAGIC": 1}}')
    for bad in (file, tmp_path / "none.json"):
        with pytest.raises(UsageError) as caught:
            running.prepare(command, profile=str(bad), environ={})
        assert (caught.value.id, str(bad) in caught.value.message) == ("bad-profile", True)
    done = run_process("run", "--", sys.executable, "-c", "pass")
    assert (done.code, done.err.count("no toggle is set")) == (0, 1)
