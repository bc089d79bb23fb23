"""The user's installed aiter, read as files and never imported: tables, table rules, kernels, version."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import TargetError
from .schema import LATEST, Rules, rules_for
from .table import Row

Resolution = Literal["found", "missing", "unknown"]
TABLE = "bf16_tuned_gemm"
_FLYDSL = re.compile(r"flydsl_gemm\d+_a\w+_w\w+_\w+_t\d+x\d+x\d+_split_k\d+_block_m_warp\d+_block_n_warp\d+\w*")


@dataclass(frozen=True)
class Aiter:
    """An aiter package folder. ``commit`` is the git hash its version names, empty when it names none."""

    package: Path
    version: str
    commit: str

    @property
    def default_table(self) -> Path:
        return self.package / "configs" / f"{TABLE}.csv"

    def tables(self) -> tuple[Path, ...]:
        """Return the tables aiter would merge with its variable unset: the default first, then the per-model ones."""
        models = self.package / "configs" / "model_configs"
        found = [path for path in models.glob(f"*{TABLE}*.csv") if path.is_file() and "untuned" not in path.name]
        first = [self.default_table] if self.default_table.is_file() else []
        return (*first, *sorted(found))


def find_aiter(folder: Path | None = None) -> Aiter | None:
    """Return the aiter at ``folder`` (its package folder or a checkout), or the one this interpreter would import."""
    if folder is not None:
        for package in (folder, folder / "aiter"):
            if (package / "configs").is_dir():
                return _aiter(package)
        message = f"{folder} holds no aiter: neither configs/ nor aiter/configs/"
        raise TargetError("no-aiter", message, remedy="name the folder of the aiter package", paths=(str(folder),))
    try:
        spec = importlib.util.find_spec("aiter")
    except ValueError:  # somebody put a module there that has no spec
        return None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "configs").is_dir():
            return _aiter(Path(place))
    return None


def need_aiter(folder: Path | None = None) -> Aiter:
    aiter = find_aiter(folder)
    if aiter is None:
        remedy = "install aiter, name its folder with --aiter, or name tables with --table"
        raise TargetError("no-aiter", "no aiter is installed for this interpreter", remedy=remedy)
    return aiter


def _aiter(package: Path) -> Aiter:
    version = _version(package)
    match = re.search(r"\+g?([0-9a-f]{7,40})", version)
    return Aiter(package, version, match[1] if match else "")


def _version(package: Path) -> str:
    """Return the version its own file states, else the distribution's, else an empty text."""
    stated = package / "_version.py"
    if stated.is_file():
        match = re.search(
            r"__version__\s*=\s*(?:version\s*=\s*)?['\"]([^'\"]+)['\"]", stated.read_text("utf-8", "replace")
        )
        if match:
            return match[1]
    for name in ("amd-aiter", "aiter"):
        for distribution in importlib.metadata.distributions(name=name, path=[str(package.parent)]):
            return str(distribution.version)
    return ""


def rules_of(aiter: Aiter) -> Rules:
    """Return the table rules that this aiter's own source states; its version fills what the source does not say."""
    base = rules_for(aiter.version) if aiter.version else rules_for(LATEST)
    source = aiter.package / "tuned_gemm.py"
    if not source.is_file():
        return base
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):  # ValueError: what Python 3.10 says of a null byte
        return base
    key, libtypes = _index_key(tree), _solution_map(tree)
    rules = base
    if key and set(key) <= set(rules_for(LATEST).key):
        # Columns follow the key: the oldest key without bpreshuffle comes with the older column order.
        example = next(
            rules_for(v)
            for v in (LATEST, "0.1.9.post1", "0.1.6.post2")
            if set(rules_for(v).key) == set(key) or v == "0.1.6.post2"
        )
        rules = replace(base, key=tuple(key), columns=base.columns if set(base.key) == set(key) else example.columns)
    return replace(rules, version=aiter.version or "unknown", libtypes=frozenset(libtypes)) if libtypes else rules


def _index_key(tree: ast.Module) -> list[str]:
    """Return the column list of ``.set_index([...])`` in the loader."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "set_index"
            and node.args
        ):
            return _texts(node.args[0])
    return []


def _solution_map(tree: ast.Module) -> list[str]:
    """Return the keys of the module-level ``solMap = {...}``: the libtypes that do not end in KeyError."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if any(isinstance(target, ast.Name) and target.id == "solMap" for target in node.targets):
            return _texts(ast.List([key for key in node.value.keys if key is not None], ast.Load()))
    return []


def _texts(node: ast.expr) -> list[str]:
    items = node.elts if isinstance(node, (ast.List, ast.Tuple)) else []
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


class Kernels:
    """Which kernel names the installed aiter can launch, as far as its files say.

    Assembly kernels are listed in its hsa folder. FlyDSL names are parsed by aiter, so the grammar decides, and the
    package must be there. Other names come out of compiled or generated code: unknown, never claimed found.
    """

    def __init__(self, aiter: Aiter) -> None:
        self.aiter = aiter
        self._asm: dict[str, frozenset[str] | None] = {}
        self._flydsl = (aiter.package / "ops" / "flydsl").is_dir()

    def _assembly(self, gfx: str) -> frozenset[str] | None:
        if gfx not in self._asm:
            roots = (self.aiter.package.parent / "aiter_meta", self.aiter.package.parent)
            files = [file for root in roots for file in sorted((root / "hsa" / gfx / "bf16gemm").glob("*.csv"))]
            names = {line.split(",", 1)[0].strip() for file in files for line in _lines(file)[1:]}
            self._asm[gfx] = frozenset(names) if files else None
        return self._asm[gfx]

    def resolve(self, row: Row) -> Resolution:
        if row.libtype in ("torch", "triton", "skinny"):
            return "found"
        if row.libtype == "asm":
            names = self._assembly(row.key.gfx)
            if names is None:
                return "unknown"
            return "found" if row.kernel in names else "missing"
        if row.libtype == "flydsl":
            return "found" if self._flydsl and _FLYDSL.fullmatch(row.kernel) else "missing"
        return "unknown"


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").splitlines()
