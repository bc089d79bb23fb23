"""Which transformers is meant, and which ones are refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import TargetError
from rocm_overlay.install import target
from rocm_overlay.install.probe import SHOWN_CHARACTERS
from rocm_overlay.install.target import resolve

from tests.install.support import STOCK, make_site


@dataclasses.dataclass(frozen=True)
class Environment:
    prefix: Path

    @property
    def python(self) -> str:
        return str(self.prefix / "bin" / "python")

    @property
    def packages(self) -> Path:
        return next((self.prefix / "lib").glob("python*")) / "site-packages"


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Environment]:
    """Return ``venv(name, version)``: a virtual environment with a small transformers, or none."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def make(name: str, version: str | None = "1.0.0") -> Environment:
        made = Environment(tmp_path / name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.prefix], check=True)
        if version is not None:
            make_site(tmp_path / f"{name}-files", version=version)
            for entry in (tmp_path / f"{name}-files").iterdir():
                entry.rename(made.packages / entry.name)
        return made

    return make


def refusal(**options: object) -> TargetError:
    with pytest.raises(TargetError) as caught:
        resolve(**options)  # type: ignore[arg-type]
    assert caught.value.code == 9
    assert caught.value.remedy
    return caught.value


def test_a_folder_needs_no_interpreter(small_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "views", None)
    found = resolve(site_packages=small_site)
    assert (found.site, found.version, found.kind, found.executable) == (small_site, "1.0.0", "target", None)


def test_an_interpreter(venv: Callable[..., Environment]) -> None:
    made = venv("a")
    found = resolve(python=made.python)
    assert (found.site, found.version, found.kind) == (made.packages.resolve(), "1.0.0", "venv")
    assert found.cache_tag == sys.implementation.cache_tag


def test_the_active_environment_counts(venv: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    made = venv("a")
    other = venv("b", None)
    monkeypatch.setattr(sys, "executable", other.python)
    monkeypatch.setattr(sys, "prefix", str(other.prefix))
    assert resolve(environ={"VIRTUAL_ENV": str(made.prefix)}).site == made.packages.resolve()
    assert resolve(environ={"CONDA_PREFIX": str(made.prefix)}).site == made.packages.resolve()


def test_the_running_interpreter_is_the_last_resort(
    venv: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = venv("a")
    monkeypatch.setattr(sys, "executable", made.python)
    monkeypatch.setattr(sys, "prefix", str(made.prefix))
    assert resolve(environ={}).site == made.packages.resolve()
    assert resolve(environ={"VIRTUAL_ENV": "/no/such/environment"}).site == made.packages.resolve()


def test_two_environments_that_disagree_are_both_shown(venv: Callable[..., Environment]) -> None:
    one, two = venv("one"), venv("two", "1.0.1")
    error = refusal(environ={"VIRTUAL_ENV": str(one.prefix), "CONDA_PREFIX": str(two.prefix)})
    assert error.id == "two-candidates"
    for made in (one, two):
        assert str(made.packages.resolve() / "transformers") in error.message


def test_an_environment_without_transformers_does_not_count(
    venv: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = venv("one"), venv("two", None)
    monkeypatch.setattr(sys, "executable", two.python)
    monkeypatch.setattr(sys, "prefix", str(two.prefix))
    environ = {"VIRTUAL_ENV": str(two.prefix), "CONDA_PREFIX": str(one.prefix)}
    assert resolve(environ=environ).site == one.packages.resolve()


def test_a_copy_on_pythonpath_that_shadows_is_refused(
    venv: Callable[..., Environment], small_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = venv("a")
    monkeypatch.setenv("PYTHONPATH", str(small_site))
    error = refusal(python=made.python)
    assert error.id == "shadowed"
    assert {str(small_site / "transformers"), str(made.packages.resolve() / "transformers")} == set(error.paths)


def test_a_copy_only_on_pythonpath_is_used_with_a_remark(
    venv: Callable[..., Environment], small_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = venv("a", None)
    monkeypatch.setenv("PYTHONPATH", str(small_site))
    found = resolve(python=made.python)
    assert found.site == small_site
    assert any("PYTHONPATH" in note for note in found.notes)


@pytest.mark.parametrize("name", ["no-such-python", "/no/such/python"])
def test_a_missing_interpreter(name: str) -> None:
    assert name in refusal(python=name).message


def test_something_that_is_no_python(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    assert refusal(python=str(script)).id == "interpreter-unusable"
    script.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    assert "broken" in refusal(python=str(script)).message


def test_a_program_that_repeats_the_script_is_quoted_in_one_short_line(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho first >&2\nprintf "cannot find %s" "$2" | tr "\\n" " " >&2\nexit 2\n')
    script.chmod(0o755)
    message = refusal(python=str(script)).message
    assert "it ended with 2: cannot find" in message
    assert "first" not in message
    assert "cache_tag" not in message
    assert len(message.partition("ended with 2: ")[2].removesuffix(".")) == SHOWN_CHARACTERS


@pytest.mark.parametrize("body", ["", "echo hello"])
def test_a_program_that_says_nothing_of_use(tmp_path: Path, body: str) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    assert "printed nothing that a Python would print" in refusal(python=str(script)).message


def test_no_transformers(venv: Callable[..., Environment], tmp_path: Path) -> None:
    made = venv("a", None)
    assert refusal(python=made.python).id == "no-transformers"
    error = refusal(site_packages=made.packages)
    assert error.id == "no-transformers"
    assert str(made.packages) in error.message
    assert refusal(site_packages=tmp_path / "nowhere").id == "no-folder"


def test_the_package_folder_itself(small_site: Path) -> None:
    error = refusal(site_packages=small_site / "transformers")
    assert str(small_site) in error.remedy


def test_both_options(small_site: Path) -> None:
    assert refusal(site_packages=small_site, python="python3").id == "two-targets"


def test_an_editable_install(small_site: Path, venv: Callable[..., Environment]) -> None:
    direct = small_site / "transformers-1.0.0.dist-info" / "direct_url.json"
    direct.write_text(json.dumps({"url": "file:///src", "dir_info": {"editable": True}}))
    assert refusal(site_packages=small_site).id == "editable"
    made = venv("a", None)
    info = made.packages / "transformers-1.0.0.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text(direct.read_text())
    assert refusal(python=made.python).id == "editable"


def test_an_install_from_a_repository_is_decided_by_hashes(small_site: Path) -> None:
    direct = small_site / "transformers-1.0.0.dist-info" / "direct_url.json"
    direct.write_text(json.dumps({"url": "https://example.org/t.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}))
    assert resolve(site_packages=small_site).version == "1.0.0"


@pytest.mark.parametrize("layout", ["flat", "src"])
def test_a_source_checkout(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "repository"
    site = make_site(root / "src" if layout == "src" else root)
    (root / ".git").mkdir()
    assert refusal(site_packages=site).id == "checkout"


def test_an_environment_inside_a_project_under_version_control(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    site = make_site(tmp_path / ".venv" / "lib" / "python3" / "site-packages")
    assert resolve(site_packages=site).site == site


def test_a_namespace_left_over(small_site: Path) -> None:
    (small_site / "transformers" / "__init__.py").unlink()
    assert refusal(site_packages=small_site).id == "namespace"


def test_a_zipped_package(venv: Callable[..., Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = venv("a", None)
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("transformers/__init__.py", "")
    monkeypatch.setenv("PYTHONPATH", str(archive))
    assert refusal(python=made.python).id == "zipped"


@pytest.mark.parametrize("folder", ["transformers", "transformers/models"])
def test_a_package_that_is_a_link(small_site: Path, tmp_path: Path, folder: str) -> None:
    (small_site / folder).rename(tmp_path / "elsewhere")
    (small_site / folder).symlink_to(tmp_path / "elsewhere")
    error = refusal(site_packages=small_site)
    assert error.id == "linked-folder"
    assert str(tmp_path / "elsewhere") in error.message


def test_two_dist_infos(small_site: Path) -> None:
    (small_site / "transformers-1.0.1.dist-info").mkdir()
    error = refusal(site_packages=small_site)
    assert "transformers-1.0.0.dist-info, transformers-1.0.1.dist-info" in error.message


def test_a_system_python(venv: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    made, ask = venv("a"), target.views

    def managed(executable: Path) -> tuple[object, object]:
        return tuple(  # type: ignore[return-value]
            dataclasses.replace(view, externally_managed=True, base_prefix=view.prefix) for view in ask(executable)
        )

    monkeypatch.setattr(target, "views", managed)
    error = refusal(python=made.python)
    assert error.id == "externally-managed"
    assert f"--site-packages {made.packages.resolve()}" in error.remedy


def test_a_version_that_differs_from_the_metadata_is_remarked(small_site: Path) -> None:
    (small_site / "transformers" / "__init__.py").write_text('__version__ = "1.1.0.dev0"\n')
    found = resolve(site_packages=small_site)
    assert found.version == "1.0.0"
    assert any("1.1.0.dev0" in note for note in found.notes)


def test_without_dist_info_the_source_tells_the_version(tmp_path: Path) -> None:
    import shutil

    site = make_site(tmp_path / "plain", STOCK)
    shutil.rmtree(site / "transformers-1.0.0.dist-info")
    found = resolve(site_packages=site)
    assert found.version == "1.0.0"
    assert any("dist-info" in note for note in found.notes)


def test_the_old_kind_of_editable_install(small_site: Path) -> None:
    (small_site / "transformers.egg-info").mkdir()
    assert refusal(site_packages=small_site).id == "editable"
    (small_site / "transformers.egg-info").rename(small_site / "transformers-1.0.0-py3.11.egg-info")
    (small_site / "transformers.egg-link").write_text("/src\n.")
    assert refusal(site_packages=small_site).id == "editable"


def test_a_user_site(venv: Callable[..., Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, ask = make_site(tmp_path / "home" / "site-packages"), target.views

    def with_user(executable: Path) -> tuple[object, object]:
        normal, isolated = ask(executable)
        return dataclasses.replace(normal, path=(*normal.path, str(site)), user_site=str(site)), isolated

    monkeypatch.setattr(target, "views", with_user)
    found = resolve(python=venv("a", None).python)
    assert (found.site, found.kind) == (site, "user")
    assert any("user site" in note for note in found.notes)


def test_a_conda_environment(venv: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    made, ask = venv("a"), target.views
    (made.prefix / "conda-meta").mkdir()

    def own(executable: Path) -> tuple[object, object]:
        # Not the system's: the interpreter that runs the tests may be, as Debian's is.
        change = functools.partial(dataclasses.replace, externally_managed=False)
        return tuple(change(view, base_prefix=view.prefix) for view in ask(executable))  # type: ignore[return-value]

    monkeypatch.setattr(target, "views", own)
    assert resolve(python=made.python).kind == "conda"


def test_further_copies_on_the_path_are_named(venv: Callable[..., Environment], small_site: Path) -> None:
    made = venv("a")
    (made.packages / "more.pth").write_text(f"{small_site}\n")
    found = resolve(python=made.python)
    assert found.others == (small_site,)
    assert any(str(small_site / "transformers") in note for note in found.notes)


def test_a_copy_of_another_environment_is_told(venv: Callable[..., Environment], small_site: Path) -> None:
    made = venv("a", None)
    (made.packages / "more.pth").write_text(f"{small_site}\n")
    (note,) = resolve(python=made.python).notes
    assert "outside this environment" in note
    assert str(small_site / "transformers") in note


@pytest.mark.parametrize("kind", ["checkout", "link", "editable"])
def test_what_is_not_written_may_still_be_looked_at(small_site: Path, tmp_path: Path, kind: str) -> None:
    if kind == "checkout":
        (small_site / ".git").mkdir()
    elif kind == "link":
        (small_site / "transformers").rename(tmp_path / "elsewhere")
        (small_site / "transformers").symlink_to(tmp_path / "elsewhere")
    else:
        direct = small_site / "transformers-1.0.0.dist-info" / "direct_url.json"
        direct.write_text(json.dumps({"url": "file:///src", "dir_info": {"editable": True}}))
    refusal(site_packages=small_site)
    assert resolve(site_packages=small_site, writes=False).version == "1.0.0"


def test_a_hook_that_outlived_transformers_can_be_found(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    refusal(site_packages=site, allow_missing=True)
    (site / target.HOOK).write_text("# amd-overlay {}\n")
    assert resolve(site_packages=site, allow_missing=True).version is None
