"""Patches that git applies, attestations that do not change with the clock, and profiles of toggles."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocm_overlay.install import catalog, profiles
from rocm_overlay.install.gpu import Gpu
from rocm_overlay.install.patches import blob_id, git, unified

from tests.install.support import MODELS, Done, digest, modeling

Overlay = Callable[..., Done]


def repository(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


def apply(folder: Path, patch: bytes, *more: str) -> None:
    done = subprocess.run(["git", "-C", folder, "apply", *more], input=patch, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_git_applies_the_patch_of_a_release_byte_for_byte(
    stock_tree: Callable[[str], Path], tmp_path: Path, overlay: Overlay
) -> None:
    tree = stock_tree("4.57.3") / "transformers"
    names = [file.path for file in catalog.load("4.57").files if "4.57.3" in file.releases]
    assert len(names) >= 8
    checkout = repository(tmp_path / "r", {f"src/transformers/{name}": (tree / name).read_bytes() for name in names})
    patch = overlay("export", "--transformers", "4.57.3").out.encode()
    apply(checkout, patch, "--check")
    apply(checkout, patch)
    wanted = {file.path: file.overlay_sha256 for file in catalog.load("4.57").files if "4.57.3" in file.releases}
    assert {name: digest((checkout / "src/transformers" / name).read_bytes()) for name in names} == {
        name: wanted[name] for name in names
    }
    apply(checkout, patch, "--reverse")
    assert (checkout / "src/transformers" / names[0]).read_bytes() == (tree / names[0]).read_bytes()


TEXTS = st.lists(
    st.sampled_from([b"a\n", b"b\n", b"\n", b"x\x0cy\n", b"\xe2\x80\xa8\n", b"c\r\n", b"\xff\n"]), max_size=12
)


@pytest.mark.skipif(find_spec("hypothesis") is None, reason="needs hypothesis")
@given(old=TEXTS, new=TEXTS, ends=st.tuples(st.booleans(), st.booleans()))
def test_any_two_texts(
    tmp_path_factory: pytest.TempPathFactory, old: list[bytes], new: list[bytes], ends: tuple[bool, bool]
) -> None:
    first, second = b"".join(old) + b"end" * ends[0] or b"-\n", b"".join(new) + b"end" * ends[1] or b"+\n"
    if first == second:
        assert unified(first, second, "a", "b") == b""
        return
    folder = tmp_path_factory.mktemp("any")
    (folder / "f").write_bytes(first)
    command = ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, input=git(first, second, "f"), cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "f").read_bytes() == second


def test_blob_ids_are_gits(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"text\n")
    done = subprocess.run(["git", "hash-object", tmp_path / "f"], capture_output=True, text=True, check=True)
    assert blob_id(b"text\n") == done.stdout.strip()


def test_another_root_and_fewer_models(overlay: Overlay) -> None:
    out = overlay("export", "--transformers", "4.57.6", "--models", "llama,phi3", "--root", "lib/transformers").out
    heads = [line for line in out.splitlines() if line.startswith("diff --git")]
    assert [line.split()[2] for line in heads] == [
        f"a/lib/transformers/models/{model}/modeling_{model}.py" for model in ("llama", "phi3")
    ]


def test_the_installed_release_is_the_default(site: Path, overlay: Overlay) -> None:
    assert overlay("export", "--site-packages", site).out == overlay("export", "--transformers", "4.57.6").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--transformers", "4.57"], 3, "did you mean"),
        (["--transformers", "4.57.66"], 3, "did you mean 4.57.6?"),
        (["--transformers", "4.57.6", "--models", "lama"], 2, "did you mean llama?"),
        (["--transformers", "4.57.6", "--root", "../x"], 2, "--root"),
        (["--transformers", "4.57.6", "--root", "/x"], 2, "--root"),
    ],
)
def test_wrong_arguments(overlay: Overlay, arguments: list[str], code: int, words: str) -> None:
    done = overlay("export", *arguments, "--json")
    assert done.code == done.error["code"] == code
    assert words in str(done.error["message"])


def test_a_patch_is_utf_8_in_every_locale(site: Path) -> None:
    from tests.install.test_output import PROGRAM, shell

    assert PROGRAM
    done = shell(
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $OVERLAY export --transformers 4.57.6 | tail -c 1 | wc -c", site
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1", "")


# -- attest --------------------------------------------------------------------------------------------------------


def test_attest_states_before_and_after(site: Path, overlay: Overlay) -> None:
    stock = digest(modeling(site, "llama").read_bytes())
    overlay("install", "--transformers", "4.57", "--site-packages", site)
    body = overlay("attest", "--site-packages", site).json
    (llama,) = [file for file in body["files"] if file["model"] == "llama"]  # type: ignore[attr-defined]
    now = digest(modeling(site, "llama").read_bytes())
    assert (llama["before_sha256"], llama["after_sha256"], llama["found_sha256"]) == (stock, now, now)
    assert (body["state"], body["mode"]) == ("APPLIED", "files")
    assert overlay("attest", "--site-packages", site, "--json").json == body
    assert overlay("attest", "--site-packages", site, "--json", "--format", "cyclonedx").code == 2


def test_cyclonedx_names_the_files_and_the_patches(site: Path, overlay: Overlay) -> None:
    overlay("install", "--transformers", "4.57", "--site-packages", site)
    text = overlay("attest", "--format", "cyclonedx", "--site-packages", site).out
    assert overlay("attest", "--format", "cyclonedx", "--site-packages", site).out == text
    body = json.loads(text)
    assert (body["bomFormat"], body["specVersion"]) == ("CycloneDX", "1.6")
    (library,) = body["components"]
    assert library["purl"] == "pkg:pypi/transformers@4.57.6"
    hashes = {one["name"]: one["hashes"][0]["content"] for one in library["components"]}
    name = modeling(site, "llama").relative_to(site).as_posix()
    assert hashes[name] == digest(modeling(site, "llama").read_bytes())
    assert len(library["pedigree"]["patches"]) == len(MODELS)
    overlay("revert", "--site-packages", site)
    stock = json.loads(overlay("attest", "--format", "cyclonedx", "--site-packages", site).out)
    assert "pedigree" not in stock["components"][0]
    assert stock["serialNumber"] != body["serialNumber"]


def test_cyclonedx_is_valid_for_its_own_schema(site: Path, overlay: Overlay) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    overlay("install", "--transformers", "4.57", "--site-packages", site)
    text = overlay("attest", "--format", "cyclonedx", "--site-packages", site).out
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None


# -- env -----------------------------------------------------------------------------------------------------------


def values(name: str, gpu: str | None) -> dict[str, str | None]:
    return {one.name: one.value for one in profiles.make(name, gpu, ()).settings}


def test_profiles_know_the_gpu() -> None:
    radeon, instinct = values("auto", "gfx1201"), values("auto", "gfx942")
    flag = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
    assert radeon[flag] == "1"
    assert flag not in instinct
    assert instinct["TORCH_BLAS_PREFER_HIPBLASLT"] == "1"
    assert radeon["HIP_FORCE_DEV_KERNARG"] == instinct["HIP_FORCE_DEV_KERNARG"] == "1"
    assert radeon["GPU_ARCHS"] is None
    assert values("max", "gfx942")["PYTORCH_TUNABLEOP_ENABLED"] == "1"
    assert "PYTORCH_TUNABLEOP_ENABLED" not in instinct
    assert values("auto", None).keys() == {"AMD_OPS", *profiles.FAMILIES}
    assert set(values("off", "gfx942").values()) == {"off", "0"}


def test_every_variable_has_a_reason_and_every_toggle_is_one_of_amd_ops() -> None:
    toggles = pytest.importorskip("amd_ops.toggles")
    assert set(profiles.FAMILIES) == set(toggles.FAMILIES)
    for name in profiles.PROFILES:
        for one in profiles.make(name, "gfx1100", ()).settings:
            assert one.reason


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_amd_ops_accepts_every_profile(name: str) -> None:
    toggles = pytest.importorskip("amd_ops.toggles")
    ours = {key: value for key, value in values(name, "gfx942").items() if key in ("AMD_OPS", *profiles.FAMILIES)}
    settings = toggles._resolve({key: (value, "environment") for key, value in ours.items() if value is not None})
    if name == "off":
        assert not settings.use_aiter_attention
    if name == "max":
        assert settings.use_aiter_attention


def test_the_gpu_of_this_machine_decides(overlay: Overlay) -> None:
    assert profiles.make("auto", None, (Gpu("gfx1100", 96),)).gpu == "gfx1100"
    assert profiles.make("auto", None, ()).gpu is None
    assert overlay("env", "--gpu", "MI300X").out == overlay("env", "--gpu", "gfx942").out != ""
    assert overlay("env", "--gpu", "MI999X").code == 2


@pytest.mark.parametrize(
    ("arch", "rdna"), [("gfx1201", True), ("gfx1100", True), ("gfx1030", True), ("gfx942", False), ("gfx1250", False)]
)
def test_radeons(arch: str, rdna: bool) -> None:
    assert Gpu(arch, 1).is_rdna == rdna
