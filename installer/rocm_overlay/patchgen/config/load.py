"""Load a config file without running the code that it carries.

Patches are text. So a definition that a patch decorates is never executed, and an import at the top of the file runs
when something that *is* executed first uses its name: a config in the usual style loads without torch and transformers.
Everything else in the file is ordinary Python and needs what it imports.
"""

from __future__ import annotations
import __future__ as future

import ast
import builtins
import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OverlayError, Place, TargetError, nearest
from .definition import at_line, is_patch_decorator
from .patches import ConfigError
from .spec import PatchConfig

SUFFIX = "_patch_gen_config"
_DECLARES = re.compile(rb"^\s*(?:\w+\s*(?::[^=\n]+)?=\s*)?(?:\w+\.)?PatchConfig\(", re.M)
_DEFINITION = "__patch_definition__"
_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages", "generated"))


@dataclass(frozen=True)
class Loaded:
    """A config file and every PatchConfig that it makes, by variable name."""

    path: Path
    configs: dict[str, PatchConfig]

    def choose(self, name: str | None) -> PatchConfig:
        """The config of a name; without one, ``config`` or the only one there is.

        Raises:
            ConfigError: there is none of that name, or several to choose from.
        """
        if name is None and len(self.configs) == 1:
            return next(iter(self.configs.values()))
        wanted = name or "config"
        if wanted in self.configs:
            return self.configs[wanted]
        raise ConfigError(
            f"no PatchConfig is called {wanted}",
            place=Place(str(self.path)),
            found=", ".join(self.configs),
            nearest=nearest(wanted, self.configs),
            remedy="choose one with -c NAME",
        )


def is_config(target: str) -> bool:
    """Say whether a command-line argument names a config file or module, by name or by content."""
    if target.removesuffix(".py").endswith(SUFFIX):
        return True
    if not (target.endswith(".py") or os.sep in target or "." in target or Path(f"{target}.py").is_file()):
        return False
    try:
        return _DECLARES.search(find_file(target).read_bytes()) is not None
    except (OverlayError, OSError):
        return False


def find_file(target: str) -> Path:
    """The file of a config given by path or by dotted module; no package is imported to find it.

    Raises:
        TargetError: there is no such file.
    """
    path = Path(target)
    if target.endswith(".py") or os.sep in target:
        if path.is_file():
            return path
        raise TargetError("target", f"there is no file {target}", expected="a patch config")
    top, *rest = target.split(".")
    roots = [Path.cwd()]
    spec = _top_level(top)
    roots += [Path(folder).parent for folder in (spec.submodule_search_locations or ())] if spec else []
    for root in roots:
        path = root.joinpath(top, *rest).with_suffix(".py")
        if path.is_file():
            return path
    raise TargetError(
        "target",
        f"there is no patch config {target}",
        expected="a dotted module below the current folder or in an installed package, or a file",
        remedy="run `overlay gen --list`",
    )


def _top_level(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ValueError:
        return None


def discover(root: Path) -> list[Path]:
    """Every config file below a folder, sorted; hidden folders, environments and outputs are not entered."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED and not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        )
        found += [here / name for name in files if name.endswith(f"{SUFFIX}.py")]
    return sorted(found)


def load(path: Path) -> Loaded:
    """Run a config file, as the module's text says.

    Raises:
        ConfigError: it cannot be read, it fails, or it makes no PatchConfig.
    """
    try:
        data = path.read_bytes()
        tree = ast.parse(data, str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(
            "cannot read this config",
            place=Place(str(path), getattr(error, "lineno", None)),
            expected="a Python file",
            found=str(getattr(error, "msg", None) or getattr(error, "strerror", None) or error),
        ) from error
    namespace = _Namespace(path)
    code = compile(namespace.take(tree), str(path), "exec", flags=future.annotations.compiler_flag, dont_inherit=True)
    with _importing_beside(path):
        try:
            exec(code, namespace)
        except OverlayError:
            raise
        except (Exception, SystemExit) as error:
            raise _failed(path, error) from error
    configs = {name: value for name, value in namespace.items() if isinstance(value, PatchConfig)}
    if not configs:
        raise ConfigError(
            "this file makes no PatchConfig", place=Place(str(path)), expected="config = PatchConfig(...)"
        )
    return Loaded(path, configs)


class _Namespace(dict[str, Any]):
    """Globals of a config; a name of a deferred import is imported when it is first read."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            __name__=path.stem,
            __file__=str(path),
            __package__=_package_of(path),
            __builtins__=builtins,
        )
        self[_DEFINITION] = lambda line: at_line(str(path), line)
        self._path = path
        self._deferred: dict[str, ast.Import | ast.ImportFrom] = {}

    def take(self, tree: ast.Module) -> ast.Module:
        """Return the module without its deferred imports, and with text in the place of patch definitions."""
        kept: list[ast.stmt] = []
        for node in tree.body:
            names = _deferrable(node)
            if names and isinstance(node, (ast.Import, ast.ImportFrom)):
                self._deferred.update(dict.fromkeys(names, node))
            else:
                kept.append(_Definitions().visit(node))
        return ast.fix_missing_locations(ast.Module(kept, []))

    def __missing__(self, name: str) -> Any:
        if name not in self._deferred:
            raise KeyError(name)
        code = compile(ast.Module([self._deferred[name]], []), str(self._path), "exec", dont_inherit=True)
        exec(code, self)
        return self[name]


def _deferrable(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*"):
        return []
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    return []


class _Definitions(ast.NodeTransformer):
    """``@config.replace_class("X") class Y: ...`` becomes ``Y = config.replace_class("X")(<text of Y>)``."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return _registration(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return _registration(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return _registration(node)


def _registration(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.stmt:
    decorators = [one for one in node.decorator_list if is_patch_decorator(one)]
    if not decorators:
        return node
    value: ast.expr = ast.Call(ast.Name(_DEFINITION, ast.Load()), [ast.Constant(node.lineno)], [])
    for decorator in reversed(decorators):
        value = ast.copy_location(ast.Call(decorator, [value], []), decorator)
    return ast.copy_location(ast.Assign([ast.Name(node.name, ast.Store())], value), decorators[0])


def _package_of(path: Path) -> str:
    parts: list[str] = []
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


@contextlib.contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let a config import its neighbours; afterwards forget them, so that the next config imports its own."""
    folder = path.resolve().parent
    root = folder
    while (root / "__init__.py").is_file():
        root = root.parent
    before, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = list(dict.fromkeys([str(folder), str(root), str(Path.cwd())]))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents:
                del sys.modules[name]


def _failed(path: Path, error: BaseException) -> ConfigError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    missing = isinstance(error, ModuleNotFoundError) and error.name
    return ConfigError(
        "this config does not load",
        place=Place(str(path), lines[-1] if lines else None),
        expected="a file that Python can run; the bodies of patches are not executed",
        found=f"{type(error).__name__}: {error}",
        remedy=f"install {error.name}, or do not use it outside patches" if missing else None,  # type: ignore[attr-defined]
    )
