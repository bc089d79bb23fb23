"""Finds the transformers to change, without importing it, and refuses those that must not be changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import TargetError
from .probe import View, views
from .transaction.place import STATE

PACKAGE = "transformers"
HOOK = "amd-overlay-hook.pth"
_VERSION_LITERAL = re.compile(rb"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_METADATA_VERSION = re.compile(rb"^Version:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """One installed transformers. ``version`` is None where it is gone and only our state folder is left."""

    site: Path
    version: str | None
    dist_info: Path | None
    executable: str | None
    prefix: str | None
    kind: str
    installer: str | None
    pycache_prefix: Path | None
    cache_tag: str | None
    notes: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()
    """Further copies of the package on the interpreter's path, which are not used."""

    @property
    def package(self) -> Path:
        """The folder of the package."""
        return self.site / PACKAGE

    def to_json(self) -> dict[str, object]:
        """Return what every report says about the target."""
        return {
            "executable": self.executable,
            "prefix": self.prefix,
            "site_packages": str(self.site),
            "package": str(self.package),
            "version": self.version,
            "dist_info": self.dist_info.name if self.dist_info else None,
            "installer": self.installer,
            "kind": self.kind,
        }


@dataclass(frozen=True)
class _Candidate:
    """A place where an interpreter, or the user, says that packages are."""

    origin: str
    site: Path | None
    view: View | None
    notes: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()

    def describe(self) -> str:
        where = "no transformers" if self.site is None else str(self.site / PACKAGE)
        return f"{self.origin}: {where}"


def resolve(
    *,
    site_packages: Path | None = None,
    python: str | None = None,
    environ: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    writes: bool = True,
) -> Target:
    """Return the transformers to work on.

    Order: ``site_packages``, ``python``, $VIRTUAL_ENV, $CONDA_PREFIX, the running interpreter. Raises TargetError
    where there is none, where two of the implicit ones disagree, or where the one found must not be changed. With
    ``allow_missing`` an environment that only has our state folder or hook left is returned too. Without ``writes``
    nothing below the package will be changed, so that links, checkouts and system Pythons are fine.
    """
    if site_packages is not None and python is not None:
        raise TargetError(
            "two-targets",
            f"--site-packages {site_packages} and --python {python} were both given, expected one of them.",
            remedy="leave one of the two options out",
        )
    if site_packages is not None:
        candidate = _given_folder(site_packages, allow_missing)
    elif python is not None:
        candidate = _from_python("--python", _interpreter(python), allow_missing)
    else:
        candidate = _implicit(os.environ if environ is None else environ, allow_missing)
    return _examine(candidate, allow_missing, writes)


def _given_folder(folder: Path, allow_missing: bool) -> _Candidate:
    site = Path(os.path.realpath(folder))
    if not site.is_dir():
        raise TargetError(
            "no-folder",
            f"--site-packages {folder} is not a folder.",
            remedy="pass the folder that contains transformers/, for example .venv/lib/python3.11/site-packages",
            paths=[folder],
        )
    if not _holds(site, allow_missing) and site.name == PACKAGE and (site / "__init__.py").exists():
        raise TargetError(
            "package-folder",
            f"--site-packages {folder} is the package itself, expected the folder around it.",
            remedy=f"pass --site-packages {site.parent}",
            paths=[folder],
        )
    return _Candidate(f"--site-packages {folder}", site if _holds(site, allow_missing) else None, None)


def _interpreter(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise TargetError(
            "no-interpreter",
            f"--python {name}: there is no such executable.",
            remedy="pass the path of the interpreter of your environment, for example .venv/bin/python",
            paths=[name],
        )
    return Path(found)


def _implicit(environ: Mapping[str, str], allow_missing: bool) -> _Candidate:
    """Choose among the environments that the shell and this process are in; they must agree."""
    interpreters: dict[Path, str] = {}
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(variable)
        if prefix and os.access(Path(prefix) / "bin" / "python", os.X_OK):
            # Not resolved: the interpreter of a virtual environment is a link to its base.
            interpreters.setdefault(Path(os.path.realpath(prefix)) / "bin" / "python", f"${variable}")
    if Path(os.path.realpath(sys.prefix)) / "bin" / "python" not in interpreters:
        interpreters[Path(sys.executable)] = "the interpreter that runs overlay"
    candidates = [_from_python(origin, path, allow_missing) for path, origin in interpreters.items()]
    found = [candidate for candidate in candidates if candidate.site is not None]
    if len({candidate.site for candidate in found}) > 1:
        shown = "; ".join(f"{candidate.describe()} ({_executable(candidate)})" for candidate in found)
        raise TargetError(
            "two-candidates",
            f"Several environments have a transformers, and it is not clear which one you mean: {shown}.",
            remedy="name one: --python <interpreter> or --site-packages <folder>",
            paths=[candidate.site / PACKAGE for candidate in found if candidate.site],
        )
    return found[0] if found else candidates[0]


def _executable(candidate: _Candidate) -> str:
    return candidate.view.executable if candidate.view else "no interpreter"


def _from_python(origin: str, executable: Path, allow_missing: bool) -> _Candidate:
    """Ask an interpreter twice; the user's environment decides, and must not lead elsewhere than isolation."""
    normal, isolated = views(executable)
    first, alone = _winner(normal), _winner(isolated)
    notes = []
    if first is not None and alone is not None and first != alone:
        raise TargetError(
            "shadowed",
            f"{executable} finds two different transformers: {first / PACKAGE} with your environment variables and "
            f"user site, {alone / PACKAGE} without them (-I).",
            remedy="unset PYTHONPATH or remove the copy that you do not use, or name one with --site-packages",
            paths=[first / PACKAGE, alone / PACKAGE],
        )
    if first is not None and alone is None:
        notes.append(f"{first / PACKAGE} is seen only through PYTHONPATH or the user site, not with python -I")
    site = first or alone
    others = [entry for entry in _holders(normal) if entry != site]
    if others:
        notes.append("other copies on the path, not used: " + ", ".join(str(other / PACKAGE) for other in others))
    own = Path(os.path.realpath(normal.prefix))
    if site is not None and normal.prefix != normal.base_prefix and not site.is_relative_to(own):
        notes.append(f"{site / PACKAGE} lies outside this environment: whoever else uses it meets the change, too")
    if site is None and allow_missing:
        site = next((Path(os.path.realpath(entry)) for entry in normal.path if _has_state(Path(entry))), None)
    if site is None:
        _refuse_unusual(normal)
    return _Candidate(f"{origin} {executable}", site, normal, tuple(notes), tuple(others))


def _winner(view: View) -> Path | None:
    return next(iter(_holders(view)), None)


def _holders(view: View) -> list[Path]:
    """Return the folders of the path that hold a regular transformers package, in order, each once."""
    holders: dict[Path, None] = {}
    for entry in view.path:
        if (Path(entry) / PACKAGE / "__init__.py").is_file():
            holders[Path(os.path.realpath(entry))] = None
    return list(holders)


def _refuse_unusual(view: View) -> None:
    """Say so where transformers is there, but not as a regular package in a folder."""
    for entry in map(Path, view.path):
        for direct in entry.glob(f"{PACKAGE}-*.dist-info/direct_url.json"):
            if _is_editable(direct):
                raise _editable(entry / PACKAGE, direct)
        if (entry / PACKAGE).is_dir():
            raise _namespace(entry / PACKAGE)
        if entry.is_file() and zipfile.is_zipfile(entry):
            with zipfile.ZipFile(entry) as archive:
                if f"{PACKAGE}/__init__.py" in archive.namelist():
                    raise TargetError(
                        "zipped",
                        f"transformers is inside the archive {entry}, expected files in a folder.",
                        remedy="install transformers as ordinary files, for example with pip",
                        paths=[entry],
                    )


def _namespace(folder: Path) -> TargetError:
    return TargetError(
        "namespace",
        f"{folder} has no __init__.py: it is what is left of an uninstalled transformers, not a package.",
        remedy=f"remove {folder} and install transformers again",
        paths=[folder],
    )


def _has_state(site: Path) -> bool:
    return (site / STATE).is_dir() or (site / HOOK).is_file()


def _holds(site: Path, allow_missing: bool) -> bool:
    return (site / PACKAGE).is_dir() or (allow_missing and _has_state(site))


def _examine(candidate: _Candidate, allow_missing: bool, writes: bool) -> Target:
    """Read version and origin of the package found, and refuse what must not be changed."""
    site, view = candidate.site, candidate.view
    if site is None:
        raise TargetError(
            "no-transformers",
            f"{candidate.origin} has no transformers"
            + (f" (looked in {', '.join(view.path)})." if view is not None else "."),
            remedy="install transformers there first, or name another environment with --python or --site-packages",
        )
    package = site / PACKAGE
    gone = not (package / "__init__.py").is_file()
    if gone and not (allow_missing and _has_state(site)):
        raise _namespace(package)
    dist_info = None if gone else _dist_info(site)
    if not gone and writes:
        _refuse_links(site, package)
        _refuse_development(site, dist_info, view)
        _refuse_managed(site, view)
    literal = None if gone else _search(_VERSION_LITERAL, package / "__init__.py")
    metadata = _search(_METADATA_VERSION, dist_info / "METADATA") if dist_info else None
    notes = list(candidate.notes)
    if metadata and literal and metadata != literal:
        notes.append(f"the metadata says {metadata}, __init__.py says {literal}: a development or foreign build")
    if not gone and dist_info is None:
        notes.append(f"{site} has no transformers-*.dist-info: only the hashes of the files tell what is installed")
    return Target(
        site=site,
        version=metadata or literal,
        dist_info=dist_info,
        executable=view.executable if view else None,
        prefix=view.prefix if view else None,
        kind=_kind(site, view),
        installer=_installer(dist_info),
        pycache_prefix=_pycache_prefix(view),
        cache_tag=view.cache_tag if view else None,
        notes=tuple(notes),
        others=candidate.others,
    )


def _dist_info(site: Path) -> Path | None:
    found = sorted(
        entry for entry in site.iterdir() if entry.name.startswith(f"{PACKAGE}-") and entry.name.endswith(".dist-info")
    )
    if len(found) > 1:
        raise TargetError(
            "two-dist-infos",
            f"{site} says that several releases are installed: {', '.join(entry.name for entry in found)}.",
            remedy="uninstall transformers until none is left, then install the release that you want",
            paths=found,
        )
    return found[0] if found else None


def _refuse_links(site: Path, package: Path) -> None:
    for folder in (package, package / "models"):
        if folder.is_symlink():
            raise TargetError(
                "linked-folder",
                f"{folder} is a link to {os.path.realpath(folder)}: its files belong to another place.",
                remedy="install transformers as ordinary files in an environment of its own",
                paths=[folder],
            )
    if not stat.S_ISDIR(package.lstat().st_mode):
        raise _namespace(package)


def _refuse_development(site: Path, dist_info: Path | None, view: View | None) -> None:
    """Refuse a developer's own files: an editable install, or a package inside a source checkout."""
    folders = [site] if dist_info is not None or view is None else [site, *map(Path, view.path)]
    for folder in folders:
        for direct in folder.glob(f"{PACKAGE}-*.dist-info/direct_url.json"):
            if _is_editable(direct):
                raise _editable(site / PACKAGE, direct)
    for folder in [site, *(map(Path, view.path) if view is not None else ())]:
        for link in (folder / f"{PACKAGE}.egg-link", site / f"{PACKAGE}.egg-info"):
            if link.exists():
                raise _editable(site / PACKAGE, link)
    for root in (site / PACKAGE, site, *((site.parent,) if site.name == "src" else ())):
        if any((root / name).exists() for name in (".git", ".hg", ".jj")):
            raise TargetError(
                "checkout",
                f"{site / PACKAGE} belongs to the source checkout {root}.",
                remedy="install transformers as a wheel in a virtual environment and overlay that one",
                paths=[site / PACKAGE],
            )


def _editable(package: Path, direct_url: Path) -> TargetError:
    return TargetError(
        "editable",
        f"{package} is an editable install ({direct_url}): its files are a source checkout.",
        remedy="install transformers as a wheel in a virtual environment and overlay that one",
        paths=[package],
    )


def _is_editable(direct_url: Path) -> bool:
    try:
        value = json.loads(direct_url.read_bytes())
    except ValueError as error:
        raise TargetError(
            "bad-direct-url",
            f"{direct_url} is not valid JSON ({error}).",
            remedy="install transformers again",
            paths=[direct_url],
        ) from error
    info = value.get("dir_info") if isinstance(value, dict) else None
    return isinstance(info, dict) and info.get("editable") is True


def _refuse_managed(site: Path, view: View | None) -> None:
    """Refuse a system Python (PEP 668). Naming the folder with --site-packages is the way to insist."""
    if view is not None and view.externally_managed and view.prefix == view.base_prefix:
        raise TargetError(
            "externally-managed",
            f"{view.executable} is managed by the operating system (EXTERNALLY-MANAGED), so {site / PACKAGE} is not "
            "changed.",
            remedy="use a virtual environment; in a container of your own, insist with "
            f"`overlay install --site-packages {site}`",
            paths=[site / PACKAGE],
        )


def _pycache_prefix(view: View | None) -> Path | None:
    """Return where bytecode of the target lies: as its interpreter says, else as this process was told."""
    prefix = view.pycache_prefix if view is not None else os.environ.get("PYTHONPYCACHEPREFIX")
    return Path(os.path.abspath(prefix)) if prefix else None


def _kind(site: Path, view: View | None) -> str:
    if view is None:
        return "target"
    if view.user_site and os.path.realpath(view.user_site) == str(site):
        return "user"
    if view.prefix != view.base_prefix:
        return "venv"
    return "conda" if (Path(view.prefix) / "conda-meta").is_dir() else "system"


def _installer(dist_info: Path | None) -> str | None:
    path = dist_info / "INSTALLER" if dist_info else None
    if path is None or not path.is_file():
        return None
    return path.read_bytes().decode("ascii", "replace").strip() or None


def _search(pattern: re.Pattern[bytes], path: Path) -> str | None:
    if not path.is_file():
        return None
    match = pattern.search(path.read_bytes())
    return match[1].decode("ascii", "replace") if match else None
