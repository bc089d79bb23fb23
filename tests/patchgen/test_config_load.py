"""Loading configs: what runs, what does not, and that both ways of loading give the same patches."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rocm_overlay.errors import Place
from rocm_overlay.patchgen import ModelingCodeGenerator
from rocm_overlay.patchgen.config.load import discover, find_file, load
from rocm_overlay.patchgen.config.patches import CodePatch

from tests.patchgen.config_support import package, write_config

STYLE = '''
import collections


# above
@config.replace_class(
    "ToyHead",
    description="x",
)
@collections.abc.Sized.register
# between
class Fused(collections.UserDict):
    """Doc."""

    def __len__(self): return 1


@config.add_helper
def helper(x: collections.OrderedDict = collections): ...


@config.override_method("ToyBase.shared")
@config.override_method("ToyNorm.forward", signature_change=True)
def both(self,
         *more):
    pass  # last


if True:

    @config.replace_function("rotate", signature_change=True)
    def nested(*args):
        """Doc.

        more
        """
        return """
column 0
"""


config.add_import("collections")
'''


def test_importing_a_config_and_loading_its_text_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from my_patch_gen_config import config` runs the decorated code; the command line does not."""
    path = write_config(tmp_path, STYLE, "agree_patch_gen_config.py")
    path.write_text(path.read_text().replace("import torch\nfrom torch import nn\n", "import collections.abc\n"))
    loaded = load(path).choose(None)
    monkeypatch.syspath_prepend(str(tmp_path))
    imported = importlib.import_module("agree_patch_gen_config").config
    # Python 3.10 names another line for a decorator without parentheses; only messages show it.
    somewhere = Place("x")
    assert [replace(one, place=somewhere) for one in loaded.patches] == [
        replace(one, place=somewhere) for one in imported.patches
    ]
    assert [one.target for one in loaded.patches] == [
        "ToyHead",
        "helper",
        "ToyNorm.forward",
        "ToyBase.shared",
        "rotate",
        "collections",
    ]
    made = [ModelingCodeGenerator(one, source=package(tmp_path)).generate() for one in (loaded, imported)]
    assert made[0] == made[1]
    sys.modules.pop("agree_patch_gen_config")


def test_text_is_cut_with_comments_and_without_our_decorators(tmp_path: Path) -> None:
    patches = load(write_config(tmp_path, STYLE)).choose(None).patches
    texts = [patch.definition.text for patch in patches if isinstance(patch, CodePatch)]
    assert texts[0].startswith(
        "# above\n@collections.abc.Sized.register\n# between\nclass Fused(collections.UserDict):\n"
    )
    assert texts[2] == texts[3] == "def both(self,\n         *more):\n    pass  # last\n"
    assert texts[4] == 'def nested(*args):\n    """Doc.\n\n    more\n    """\n    return """\ncolumn 0\n"""\n'


def test_decorated_code_and_the_imports_that_only_it_uses_do_not_run(tmp_path: Path) -> None:
    text = """
    import absent_package_xyz
    from absent_package_xyz import kernels as k, Base

    @config.replace_class("ToyHead")
    @k.register("x")
    class Fused(Base):
        raise SystemExit

    PREFIX = "Toy"

    def undecorated(x: absent_package_xyz.Tensor):
        return absent_package_xyz.go(x)

    for name in ("Norm", "Base"):
        @config.override_method(f"{PREFIX}{name}.forward")
        def forward(self, x):
            return k.run(x)
    """
    config = load(write_config(tmp_path, text)).choose(None)
    assert [one.target for one in config.patches] == ["ToyHead", "ToyNorm.forward", "ToyBase.forward"]


def test_an_import_that_running_code_uses_happens_then(tmp_path: Path) -> None:
    (tmp_path / "shared_names.py").write_text("TARGET = 'ToyHead'\nHITS = []\n")
    text = """
    import os.path as p, shared_names
    from shared_names import TARGET as target

    config.exclude_from_output(target)
    shared_names.HITS.append(p.sep)
    """
    config = load(write_config(tmp_path, text)).choose(None)
    assert config.patches[0].target == "ToyHead"
    assert "shared_names" not in sys.modules


def test_configs_in_two_folders_import_their_own_neighbours(tmp_path: Path) -> None:
    found = []
    for name in ("ToyHead", "ToyNorm"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"TARGET = '{name}'\n")
        path = write_config(folder, "import neighbour\nconfig.exclude_from_output(neighbour.TARGET)\n")
        found.append(load(path).choose(None).patches[0].target)
    assert found == ["ToyHead", "ToyNorm"]


def test_a_dotted_config_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "product" / "toy"
    folder.mkdir(parents=True)
    for package_folder in (folder, folder.parent):
        (package_folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    path = write_config(folder, "config.exclude_from_output('ToyHead')\n")
    monkeypatch.chdir(tmp_path)
    found = find_file("product.toy.toy_patch_gen_config")
    assert found == path
    assert load(found).choose(None).patches[0].target == "ToyHead"
    monkeypatch.chdir("/")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_file("product.toy.toy_patch_gen_config") == path


def test_discovery_skips_environments_and_outputs(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env/pyvenv.cfg").write_text("")
    for folder in ("b", "a/deep", ".hidden", "env/lib", "site-packages", "generated"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write_config(tmp_path / folder, "")
    assert [path.relative_to(tmp_path).as_posix() for path in discover(tmp_path)] == [
        "a/deep/toy_patch_gen_config.py",
        "b/toy_patch_gen_config.py",
    ]


def test_generating_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    root = package(tmp_path)
    (root / "__init__.py").write_text("__version__ = '4.57.6'\nraise RuntimeError('imported')\n")
    write_config(tmp_path, "config.exclude_from_output('ToyHead')\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom rocm_overlay.patchgen.command import run\n"
        "from rocm_overlay.patchgen.options import Options\n"
        "code = run(Options(target='toy_patch_gen_config.py', output=Path('out')))\n"
        "print(code, sorted({'torch', 'transformers', 'amd_ops'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout == "0 []\n", done.stderr
    assert "class ToyHead" not in (tmp_path / "out/patched_toy.py").read_text()
