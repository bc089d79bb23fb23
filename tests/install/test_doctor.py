"""Each finding of the doctor: seen where it is, unseen where it is not; and what --fix does."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
from rocm_overlay.install import catalog
from rocm_overlay.install.doctor import Examination, Machine, examine
from rocm_overlay.install.doctor.fixes import _MENDERS
from rocm_overlay.install.doctor.registry import KINDS, NOTE, PROBLEM, WARNING, finding, table
from rocm_overlay.install.gpu import arch_name, gpus
from rocm_overlay.install.operations import install
from rocm_overlay.install.session import Options

from tests.install.support import ROOT, STOCK, make_bundle, make_site, modeling, overlay_text

MI300X = (90402, 1216, 4)
NAVI48 = (120001, 128, 2)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    catalog.load.cache_clear()


class Place:
    """A small installed package, a bundle that fits, and a machine of folders."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.site = make_site(folder / "site")
        self.bundle = make_bundle(folder / "bundle")
        record = self.site / "transformers-1.0.0.dist-info" / "RECORD"
        record.write_text(record.read_text() + "transformers/__init__.py,sha256=x,1\n")
        self.environ: dict[str, str] = {"PATH": str(folder / "bin")}
        for name in ("proc", "nodes", "tmp", "bin"):
            (folder / name).mkdir()
        (folder / "kfd").write_text("")

    def gpu(self, *gpus: tuple[int, int, int]) -> None:
        for number, (version, simds, per_cu) in enumerate([(0, 0, 0), *gpus]):
            node = self.folder / "nodes" / str(number)
            node.mkdir()
            text = f"cpu_cores_count 0\nsimd_count {simds}\nsimd_per_cu {per_cu}\ngfx_target_version {version}\n"
            (node / "properties").write_text(text)

    def options(self, *, dry_run: bool = False) -> Options:
        return Options(site_packages=self.site, bundle=self.bundle, dry_run=dry_run)

    def examine(self, **more: object) -> Examination:
        machine = Machine(
            environ=self.environ,
            proc=self.folder / "proc",
            nodes=self.folder / "nodes",
            kfd=self.folder / "kfd",
            temporary=self.folder / "tmp",
            uv_cache=self.folder / "uv",
        )
        dry_run = bool(more.pop("dry_run", False))
        return examine(self.options(dry_run=dry_run), machine=machine, **more)  # type: ignore[arg-type]

    def ids(self, **more: object) -> list[str]:
        return [one.id for one in self.examine(**more).findings]

    def evidence(self, id: str, **more: object) -> str:
        found = [one for one in self.examine(**more).findings if one.id == id]
        assert len(found) == 1, self.ids(**more)
        assert found[0].remedy
        return "\n".join(found[0].evidence)

    def install(self) -> None:
        install(self.options(), "1.0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_a_healthy_environment_has_notes_only(here: Place) -> None:
    assert here.ids() == ["no-gpu"]
    here.install()
    result = here.examine()
    assert [one.id for one in result.findings] == ["no-gpu"]
    assert (result.code, result.state) == (0, "APPLIED")


def test_no_target(tmp_path: Path, here: Place) -> None:
    shutil.rmtree(here.site / "transformers")
    result = here.examine()
    assert "no-target" in [one.id for one in result.findings]
    assert result.code == 1


def test_states_that_ask_for_something(here: Place) -> None:
    here.install()
    modeling(here.site, "one").write_bytes(STOCK["one"])
    assert "partial" in here.ids()
    modeling(here.site, "one").write_bytes(b"mine\n")
    assert "models/one/modeling_one.py is neither the stock text nor ours" in here.evidence("drifted")
    for name, text in STOCK.items():
        modeling(here.site, name).write_bytes(text)
    assert "wiped" in here.ids()
    info = here.site / "transformers-1.0.0.dist-info"
    (info / "METADATA").write_text("Name: transformers\nVersion: 1.0.1\n")
    assert "orphaned" in here.ids()


def test_foreign_files(here: Place) -> None:
    modeling(here.site, "two").write_bytes(b"mine\n")
    assert "models/two" in here.evidence("foreign-files")
    assert here.examine().code == 1


def test_a_stale_overlay(here: Place) -> None:
    here.install()
    shutil.rmtree(here.bundle)
    make_bundle(here.bundle, generator=22)
    catalog.load.cache_clear()
    assert "stale-overlay" in here.ids()


def test_an_interrupted_transaction_is_seen_and_finished(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from rocm_overlay.install.transaction import journal

    monkeypatch.setattr(journal, "clear", lambda place: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        here.install()
    monkeypatch.undo()
    assert "txn.json" in here.evidence("interrupted")
    planned = here.examine(fix=True, dry_run=True)
    assert planned.fixed[0][0] == "interrupted"
    assert planned.code == 1
    assert "interrupted" in here.ids()
    done = here.examine(fix=True)
    assert (done.code, done.fixed) == (0, (("interrupted", "install was completed"),))
    assert here.ids() == ["no-gpu"]


@pytest.mark.parametrize("folder", ["transformers/models/one", ".amd-overlay", ".amd-overlay/rescued/ab"])
def test_stray_temporaries(folder: str, here: Place) -> None:
    stray = here.site / folder / ".modeling_one.0123456789ab.ovtmp"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"half")
    assert "stray-temporaries" in here.ids()
    here.examine(fix=True, dry_run=True)
    assert stray.exists()
    here.examine(fix=True)
    assert not stray.exists()


def test_a_poisoned_cache_names_the_twin(here: Place) -> None:
    twin = here.folder / "uv" / "archive-v0" / "abc" / "transformers" / "models" / "one" / "modeling_one.py"
    twin.parent.mkdir(parents=True)
    os.link(modeling(here.site, "one"), twin)
    assert "1 of the managed files" in here.evidence("shared-inodes")
    modeling(here.site, "one").write_bytes(b"edited in place\n")
    assert str(twin) in here.evidence("poisoned-cache")
    assert here.examine().code == 1


def compiled(path: Path, text: bytes, flags: int, *, mtime: float | None = None) -> Path:
    """Write bytecode of ``text`` for ``path``, with the header that Python would look at."""
    import marshal

    code = marshal.dumps(compile(text, str(path), "exec"))
    status = path.stat()
    stamp = struct.pack("<II", int(status.st_mtime if mtime is None else mtime), status.st_size)
    if flags:
        stamp = importlib.util.source_hash(text)
    folder = path.parent / "__pycache__"
    folder.mkdir(exist_ok=True)
    cached = folder / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    cached.write_bytes(importlib.util.MAGIC_NUMBER + struct.pack("<I", flags) + stamp + code)
    return cached


def test_bytecode_of_another_text_is_removed(here: Place) -> None:
    path = modeling(here.site, "one")
    constant = STOCK["one"] + b'__amd_overlay__ = "x"\n'
    fine = compiled(path, STOCK["one"], 0)
    assert "stale-bytecode" not in here.ids()
    cached = compiled(path, constant, 0)
    assert "no overlay" not in here.evidence("stale-bytecode")
    assert fine == cached
    assert here.examine(fix=True, dry_run=True).code == 1
    assert cached.exists()
    assert here.examine(fix=True).code == 0
    assert not cached.exists()
    assert "stale-bytecode" not in here.ids()


@pytest.mark.parametrize(("flags", "stale"), [(1, True), (3, False)])
def test_bytecode_that_is_never_checked(here: Place, flags: int, stale: bool) -> None:
    compiled(modeling(here.site, "one"), b"pass\n", flags)
    assert ("stale-bytecode" in here.ids()) == stale


def test_bytecode_that_python_would_not_take(here: Place) -> None:
    compiled(modeling(here.site, "one"), b'__amd_overlay__ = "x"\n', 0, mtime=1)
    assert "stale-bytecode" not in here.ids()


def test_other_overlays(here: Place) -> None:
    (here.site / "transformers" / "models" / "siglip").mkdir()
    (here.site / "transformers" / "models" / "siglip" / "check.py").write_text("")
    assert "openpi" in here.evidence("other-overlay")
    assert "models/siglip/check.py" in here.evidence("added-files")
    shutil.rmtree(here.site / "transformers" / "models" / "siglip")
    (here.site / "unsloth_zoo").mkdir()
    assert "unsloth" in here.evidence("other-overlay")
    shutil.rmtree(here.site / "unsloth_zoo")
    (here.site / "transformers-1.0.0.dist-info" / "direct_url.json").write_text('{"vcs_info": {"vcs": "git"}}')
    assert "fork" in here.evidence("other-overlay")


def test_the_culprit_is_named_when_an_install_is_refused(here: Place) -> None:
    from rocm_overlay.errors import ForeignError

    (here.site / "transformers" / "models" / "siglip").mkdir()
    (here.site / "transformers" / "models" / "siglip" / "check.py").write_text("")
    modeling(here.site, "one").write_bytes(b"mine\n")
    with pytest.raises(ForeignError, match="openpi"):
        here.install()


def test_running_processes(here: Place) -> None:
    for number, path in ((1234567, here.site / "tokenizers" / "tokenizers.abi3.so"), (1234568, Path("/lib/libc.so"))):
        folder = here.folder / "proc" / str(number)
        folder.mkdir()
        (folder / "maps").write_text(f"7f00-7f01 r-xp 0000 00:00 1  {path}\n")
        (folder / "cmdline").write_bytes(b"python\0serve.py\0")
    assert here.evidence("running-processes") == "pid 1234567: python serve.py"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_this_user_cannot_write(here: Place) -> None:
    modeling(here.site, "one").parent.chmod(0o555)
    assert "1 of" in here.evidence("not-writable")


def test_a_folder_that_may_not_be_written_as_root_sees_it(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    locked, ask = modeling(here.site, "one").parent, os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: Path(path) != locked and ask(path, mode, **more))
    assert str(locked) in here.evidence("not-writable")


def test_files_that_others_cannot_read(here: Place) -> None:
    here.install()
    modeling(here.site, "one").chmod(0o600)
    assert "0o600" in here.evidence("permissions")


def test_gpus_are_read_from_the_driver(here: Place) -> None:
    here.gpu(MI300X, MI300X)
    assert [str(one.arch) for one in gpus(here.folder / "nodes")] == ["gfx942", "gfx942"]
    assert here.evidence("gpu").splitlines() == ["gfx942 with 304 compute units"] * 2
    assert "no-gpu" not in here.ids()
    assert "mixed-gpus" not in here.ids()


@pytest.mark.parametrize(
    ("version", "name"),
    [(90402, "gfx942"), (90500, "gfx950"), (90010, "gfx90a"), (110501, "gfx1151"), (120001, "gfx1201")],
)
def test_arch_names(version: int, name: str) -> None:
    assert arch_name(version) == name


def test_mixed_gpus_and_a_device_that_cannot_be_opened(here: Place) -> None:
    here.gpu(MI300X, NAVI48)
    (here.folder / "kfd").unlink()
    assert here.evidence("mixed-gpus") == "gfx1201, gfx942"
    assert "is not here" in here.evidence("kfd-access")


def test_radeon_wants_the_experimental_flag(here: Place) -> None:
    here.gpu(NAVI48)
    assert "gfx1201" in here.evidence("aotriton-experimental")
    here.environ["TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"] = "1"
    assert "aotriton-experimental" not in here.ids()


def test_torch_and_aiter(here: Place) -> None:
    here.gpu(MI300X)
    (here.site / "torch").mkdir()
    (here.site / "torch" / "version.py").write_text("cuda = '12.4'\nhip: Optional[str] = None\n")
    assert "hip = None" in here.evidence("torch-not-rocm")
    (here.site / "torch" / "version.py").write_text("hip: Optional[str] = '6.4.1'\n")
    assert {"torch-not-rocm"} & set(here.ids()) == set()
    assert "aiter-missing" in here.ids()
    (here.site / "aiter" / "jit").mkdir(parents=True)
    if not Path("/opt/rocm/bin/hipcc").exists():
        assert "hipcc" in here.evidence("aiter-unbuildable")
    hipcc = here.folder / "bin" / "hipcc"
    hipcc.write_text("#!/bin/sh\n")
    hipcc.chmod(0o755)
    assert not {"aiter-missing", "aiter-unbuildable"} & set(here.ids())


def test_variables_of_aiter(here: Place) -> None:
    here.environ["GPU_ARCHS"] = "gfx942;gfx950"
    (here.folder / "tmp" / "aiter_configs").mkdir()
    assert "gfx950" in here.evidence("gpu-archs")
    assert "aiter_configs" in here.evidence("aiter-configs-shared")
    here.environ.update(GPU_ARCHS="gfx942", AITER_CONFIG_GEMM_BF16="/one.csv")
    assert not {"gpu-archs", "aiter-configs-shared"} & set(here.ids())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USE_AITER_GEMM", "yes"),
        ("USE_PRESHUFFLE", "2"),
        ("FORCE_EAGER_ATTENTION", "auto"),
        ("AMD_OPS_STRICT", "on"),
        ("PRESHUFFLE_M_THRESH", "many"),
        ("AMD_OPS_TIERS", "torch,egaer"),
        ("AMD_OPS_TRITON_PROVIDERS", "lieger,ours"),
        ("AMD_OPS", "/no/such/profile.json"),
    ],
)
def test_values_that_amd_ops_refuses(here: Place, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here.environ[name] = value
    assert name in here.evidence("toggle-value")
    toggles = pytest.importorskip("amd_ops.toggles")
    with pytest.raises(toggles.ToggleError):
        toggles._resolve({name: (value, "environment")})


def test_values_that_amd_ops_accepts(here: Place) -> None:
    here.environ.update(USE_AITER_GEMM="auto", AMD_OPS_TIERS="torch, eager", PRESHUFFLE_M_THRESH="-1", AMD_OPS="auto")
    assert "toggle-value" not in here.ids()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"AMD_OPS": "auto", "USE_AITER_GEMM": "1"}, "USE_AITER_GEMM=1 is set, AMD_OPS=auto would decide"),
        # auto of a toggle is the GPU's policy, which goes before what was qualified there
        ({"AMD_OPS": "auto", "USE_AITER_GEMM": "auto"}, "USE_AITER_GEMM=auto is set, AMD_OPS=auto would decide"),
        ({"AMD_OPS": "auto"}, ""),
        ({"USE_AITER_GEMM": "1"}, ""),
        ({"AMD_OPS": "{profile}", "USE_AITER_GEMM": "0"}, "USE_AITER_GEMM=0 is set, the profile has 1"),
        ({"AMD_OPS": "{profile}", "USE_AITER_GEMM": "1"}, ""),
        ({"AMD_OPS": "{profile}", "AMD_OPS_STOCK": "rope"}, "AMD_OPS_STOCK=rope is set, AMD_OPS="),
    ],
)
def test_a_toggle_beside_a_profile_is_told(here: Place, environ: dict[str, str], told: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"schema": "amd-ops.profile/1", "toggles": {"USE_AITER_GEMM": 1}}')
    here.environ.update({name: value.format(profile=profile) for name, value in environ.items()})
    if told:
        assert told in here.evidence("toggle-overrides")
    else:
        assert "toggle-overrides" not in here.ids()


def test_toggles_that_nothing_honours(here: Place) -> None:
    here.environ["USE_AITER_ATTENTION"] = "1"
    assert "state STOCK" in here.evidence("toggle-without-overlay")
    assert "toggle-without-gpu" in here.ids()
    here.install()
    assert "toggle-without-overlay" not in here.ids()
    here.gpu(MI300X)
    assert "toggle-without-gpu" not in here.ids()
    here.environ["USE_AITER_GEMM"] = "1"
    assert "gfx942" in here.evidence("toggle-ineffective")


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def environment_python(here: Place) -> Path:
    """A real virtual environment whose packages folder holds the small package."""
    import subprocess

    prefix = here.folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    packages = next((prefix / "lib").glob("python*")) / "site-packages"
    for entry in here.site.iterdir():
        entry.rename(packages / entry.name)
    here.site = packages
    python = prefix / "bin" / "python"
    options = Options(python=str(python), bundle=here.bundle)
    here.options = lambda *, dry_run=False: options  # type: ignore[method-assign]
    return python


def test_the_launcher_of_another_environment(
    here: Place, environment_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "launcher-missing" in here.ids(launcher="torchrun")
    launcher = here.folder / "bin" / "torchrun"
    script(launcher, f"#!{environment_python}\n")
    assert "launcher" not in here.ids(launcher="torchrun")
    script(launcher, f"#!/bin/sh\n'''exec' \"{environment_python}\" \"$0\" \"$@\"\n' '''\n")
    assert "launcher" not in here.ids(launcher="torchrun")
    script(launcher, f"#!{sys.executable}\n")
    assert sys.executable in here.evidence("launcher", launcher="torchrun")
    script(launcher, "#!/no/such/python3\n")
    assert "/no/such/python3" in here.evidence("launcher", launcher="torchrun")


def test_several_copies_and_conda(here: Place, environment_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    second = make_site(here.folder / "second")
    (here.site / "second.pth").write_text(f"{second}\n")
    (environment_python.parent.parent / "conda-meta").mkdir()
    assert str(second / "transformers") in here.evidence("several-transformers")
    assert "conda-altered" in here.ids()


def test_amd_ops_missing_in_the_target(here: Place, environment_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "amd-ops-missing" not in here.ids()
    here.install()
    assert "amd-ops-missing" in here.ids()
    (here.site / "amd_ops.py").write_text("")
    assert "amd-ops-missing" not in here.ids()


def test_imports_are_compared_with_the_files(
    here: Place, environment_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in STOCK:
        (modeling(here.site, name).parent / "__init__.py").write_bytes(b"")
    (here.site / "transformers" / "models" / "__init__.py").write_bytes(b"")
    found = [one for one in here.examine(imports=True).findings if one.id.startswith("import")]
    assert [one.evidence[0].partition(":")[0] for one in found] == ["torch"]  # not installed there
    path = modeling(here.site, "one")
    path.write_bytes(STOCK["one"] + b'__amd_overlay__ = "sha256:0"\n')
    assert "modeling_one runs an overlay, expected stock" in here.evidence("import-mismatch", imports=True)
    path.write_bytes(b"import no_such_module_at_all\n")
    failed = [one.evidence[0] for one in here.examine(imports=True).findings if one.id == "import-failed"]
    assert any("no_such_module_at_all" in text for text in failed)


def test_imports_need_an_interpreter(here: Place) -> None:
    assert "import-skipped" in here.ids(imports=True)


@pytest.mark.parametrize("both", [True, False])
def test_sdpa_refusals_come_with_torchs_reasons(both: bool) -> None:
    from rocm_overlay.install.doctor.imports import _sdpa
    from rocm_overlay.install.transaction.decode import Reader

    case = {"width": 64, "flash": False, "efficient": not both, "reasons": ["Flash attention was not compiled"]}
    found = list(_sdpa(Reader(case, "x"), "gfx1201"))
    assert [one.id for one in found] == (["sdpa-refused"] if both else [])
    if both:
        assert found[0].evidence == ("bf16, head width 64, causal, on gfx1201", "Flash attention was not compiled")


def test_a_checkout_can_be_looked_at(here: Place) -> None:
    (here.site / ".git").mkdir()
    assert "source checkout" in here.evidence("development-install")


def test_a_target_of_the_next_major_release(tmp_path: Path, here: Place) -> None:
    shutil.rmtree(here.site)
    make_site(here.site, version="5.23.0")
    assert "registry-route" in here.ids()


def test_the_registry_is_complete() -> None:
    assert len({kind.id for kind in KINDS}) == len(KINDS)
    assert {kind.severity for kind in KINDS} == {PROBLEM, WARNING, NOTE}
    assert {kind.id for kind in KINDS if kind.fixable} == set(_MENDERS)
    with pytest.raises(KeyError):
        finding("nobody-registered-this")


def test_every_kind_is_reported_somewhere() -> None:
    """No entry of the table is a promise that no check keeps."""
    room = ROOT / "installer" / "rocm_overlay" / "install" / "doctor"
    places = [*(path for path in room.glob("*.py") if path.name != "registry.py"), room.parent / "state.py"]
    text = "".join(path.read_text() for path in places)
    assert [kind.id for kind in KINDS if f'"{kind.id}"' not in text] == []


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    start = page.index("doctor/registry.py -->\n") + len("doctor/registry.py -->\n")
    assert page[start : page.index("<!-- end of findings -->")] == table()


def test_the_overlay_text_of_the_helpers_is_ours() -> None:
    assert overlay_text(STOCK["one"]).startswith(b"# amd-overlay/")


def test_doctor_changes_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    modeling(here.site, "one").write_bytes(b"mine\n")
    before = {path: path.lstat().st_mtime_ns for path in here.site.rglob("*")}
    here.examine(imports=True, launcher="torchrun")
    assert {path: path.lstat().st_mtime_ns for path in here.site.rglob("*")} == before
