"""Stock files, configs and output folders that are broken or hostile: one clear error, nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest
from rocm_overlay.errors import SourceError, TargetError, WriteError
from rocm_overlay.patchgen import ModelingCodeGenerator, PatchConfig
from rocm_overlay.patchgen.config.load import find_file, load
from rocm_overlay.patchgen.config.patches import ConfigError

from tests.patchgen.config_support import HEAD, STOCK, generate, package, write_config

TRIVIAL = """
@config.override_method("ToyBase.shared")
def shared(self):
    return "ä"
"""


@pytest.mark.parametrize(
    ("stock", "message"),
    [
        (STOCK.encode() + b"def (:\n", "the file is not valid Python"),
        (STOCK.encode() + b"# \xff\n", "the file is not UTF-8 text"),
        (STOCK.replace("utf-8", "latin-1").encode(), "the file declares another encoding"),
        (b"import amd_ops as _amd\n" + STOCK.encode(), "somebody edited it"),
    ],
)
def test_a_stock_file_that_cannot_be_read(tmp_path: Path, stock: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        generate(tmp_path, TRIVIAL, stock=stock)
    assert "modeling_toy.py:" in str(caught.value)


def test_a_stock_file_that_this_config_has_patched_is_left_alone(tmp_path: Path) -> None:
    first = generate(tmp_path, TRIVIAL, mode="overlay")
    again = generate(tmp_path, TRIVIAL, mode="overlay", stock=first.output)
    assert again.output == first.output
    assert [one.status.value for one in again.outcomes] == ["already there"]


def test_a_stock_file_that_another_config_has_patched_is_refused(tmp_path: Path) -> None:
    first = generate(tmp_path, TRIVIAL, mode="overlay")
    with pytest.raises(SourceError, match="the file is an overlay already, not stock"):
        generate(tmp_path, TRIVIAL.replace("ä", "b"), mode="overlay", stock=first.output)


@pytest.mark.parametrize("mode", ["overlay", "standalone"])
def test_line_ends_bom_and_a_missing_last_newline_are_kept(tmp_path: Path, mode: str) -> None:
    plain = generate(tmp_path, TRIVIAL, mode=mode).output
    crlf = generate(tmp_path, TRIVIAL, mode=mode, stock=b"\xef\xbb\xbf" + STOCK.replace("\n", "\r\n").encode()).output
    assert crlf.startswith(b"\xef\xbb\xbf#")
    assert crlf.count(b"\n") == crlf.count(b"\r\n")
    sums = [data.replace(b"\r\n", b"\n").removeprefix(b"\xef\xbb\xbf") for data in (plain, crlf)]
    assert _without_hash(sums[0]) == _without_hash(sums[1])
    cut = STOCK[: STOCK.index("\n\n\n__all__")]
    last = '@config.replace_function("build")\ndef build(config):\n    return 1\n'
    for stock in (cut, cut + "\n"):
        output = generate(tmp_path, last, mode=mode, stock=stock).output
        assert output.endswith(b"    return 1" + b"\n" * stock.endswith("\n"))


def _without_hash(data: bytes) -> bytes:
    return b"\n".join(line for line in data.split(b"\n") if b"sha256:" not in line)


def test_mixed_line_ends_stay_where_they_are(tmp_path: Path) -> None:
    stock = STOCK.replace("    # stock norm\n", "    # stock norm\r\n").encode()
    output = generate(tmp_path, TRIVIAL, mode="overlay", stock=stock).output
    assert output.count(b"\r\n") == 1
    assert b"    # stock norm\r\n" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "cannot read this config"),
        ("import missing_package_xyz\nmissing_package_xyz.run()\n", "ModuleNotFoundError"),
        ("from missing_package_xyz import *\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "this config does not load"),
        ("config.replace_clas('X')\n", "AttributeError"),
        ("config.replace_class('X', reason='y')\n", "unknown option 'reason'"),
        ("config.override_method('forward')\n", "'Class.method'"),
        ("config.replace_class('A.b')\n", "the name of a class or function"),
        ("config.add_import('a b')\n", "this is no module name"),
        ("config.add_import('a', names=['b c'])\n", "this is no name to import"),
        ("config.add_import('__future__', names=['annotations'])\n", "__future__"),
        ("config.add_post_import_block('if:')\n", "the block is not valid Python"),
        ("config.add_post_import_block('# only a comment')\n", "the block has no statement"),
        ("config.drop_import()\n", "no name given"),
        ("config.replace_class('X')(3)\n", "this patch was not given a class or function"),
        ("config.replace_function('x', replacement=lambda q: q)\n", "cannot be a patch"),
        ("PatchConfig('x', 'a/b.py')\n", "target_file is not a file name"),
        ("PatchConfig('x', 'b.py', mode='overly')\n", "nearest: overlay"),
        ("del config\n", "this file makes no PatchConfig"),
        ("create_patch_from_external('A.b', 'c', 'd')\n", "an external reference replaces a class or function"),
    ],
)
def test_a_config_that_does_not_load(tmp_path: Path, text: str, message: str) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = str(caught.value)
    assert message in found
    line = HEAD.count("\n") + 1
    assert found.startswith((f"{path}:{line}", f"{path}:{line + 1}", f"{path}: this file makes no PatchConfig")), found


def test_a_config_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x_patch_gen_config.py"
    path.write_bytes(b"x = '\xff'\n")
    with pytest.raises(ConfigError, match="cannot read this config"):
        load(path)
    with pytest.raises(TargetError, match="there is no file"):
        find_file(str(tmp_path / "y_patch_gen_config.py"))
    with pytest.raises(TargetError, match="there is no patch config"):
        find_file("nowhere.at_all.y_patch_gen_config")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("transformers.models.toy.modeling_toi", "nearest: transformers.models.toy.modeling_toy"),
        ("no_such_package_xyz.modeling", "cannot find the package no_such_package_xyz"),
    ],
)
def test_a_source_module_that_is_not_there(tmp_path: Path, module: str, message: str) -> None:
    generator = ModelingCodeGenerator(PatchConfig(module, "x.py"), source=package(tmp_path))
    with pytest.raises(ConfigError, match=message) as caught:
        generator.load_source()
    assert "test_config_bad_input.py:" in str(caught.value)


def test_outputs_that_cannot_be_written_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(write_config(tmp_path, TRIVIAL)).choose(None)
    generator = ModelingCodeGenerator(config, source=package(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/x.py").symlink_to(tmp_path / "elsewhere.py")
    (tmp_path / "file").write_text("mine")
    for target in ("link/y.py", "real/x.py", "file/y.py"):
        with pytest.raises(WriteError):
            generator.generate(tmp_path / target)

    def refuse(**arguments: object) -> str:
        raise PermissionError(13, "Permission denied", str(arguments["dir"]))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(WriteError, match="Permission denied"):
        generator.generate(tmp_path / "real/y.py")
    assert sorted(file.name for file in (tmp_path / "real").iterdir()) == ["x.py"]
    assert not (tmp_path / "elsewhere.py").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_written_when_one_patch_fails(tmp_path: Path) -> None:
    text = TRIVIAL + "\n@config.replace_class('Absent')\nclass A: ...\n\n@config.replace_class('Gone')\nclass B: ...\n"
    config = load(write_config(tmp_path, text)).choose(None)
    generator = ModelingCodeGenerator(config, source=package(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)no class Absent.*no class Gone"):
        generator.generate(tmp_path / "out/x.py")
    assert not (tmp_path / "out").exists()
