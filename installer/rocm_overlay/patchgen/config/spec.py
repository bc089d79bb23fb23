"""``PatchConfig``: what a user writes. Every method appends to ``patches``; nothing is read from stock here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar, get_args

from ...errors import Place, nearest
from .definition import of_object, place_of
from .patches import (
    AddHelper,
    AddImport,
    CodePatch,
    ConfigError,
    DropImport,
    Exclude,
    External,
    ModifyInit,
    OverrideMethod,
    Patch,
    PostImportBlock,
    ReplaceClass,
    ReplaceFunction,
)

Mode = Literal["standalone", "overlay"]
MODES: tuple[str, ...] = get_args(Mode)
T = TypeVar("T")


class PatchConfig:
    """Patches of one stock module.

    Args:
        source_module: dotted name of the stock module, such as ``transformers.models.qwen3.modeling_qwen3``.
        target_file: name of the generated file, without folders.
        description: one line for the header.
        mode: ``standalone`` writes a self-contained file with absolute imports, header and markers; ``overlay`` changes
            nothing but the patched places and keeps every name of the stock module.
        name_map: pieces of identifiers to exchange in all code of this config, such as ``{"Qwen3": "Qwen2"}``.

    Raises:
        ConfigError: an argument cannot be used.
    """

    def __init__(
        self,
        source_module: str,
        target_file: str,
        description: str = "",
        mode: Mode = "standalone",
        name_map: Mapping[str, str] | None = None,
    ) -> None:
        self.place = place_of(sys._getframe(1))
        self.source_module = source_module
        self.target_file = target_file
        self.description = description
        self.mode: Mode = mode
        self.name_map = dict(name_map or {})
        self.patches: list[Patch] = []
        _check_module(source_module, self.place)
        _check_names(self.name_map, self.place)
        if PurePosixPath(target_file).name != target_file or "\\" in target_file or not target_file.endswith(".py"):
            raise ConfigError(
                "target_file is not a file name",
                place=self.place,
                expected="a name such as patched_modeling_qwen3.py; the folder is chosen with -o",
                found=repr(target_file),
            )
        if mode not in MODES:
            raise ConfigError(
                "unknown mode",
                place=self.place,
                expected=" or ".join(MODES),
                found=repr(mode),
                nearest=nearest(str(mode), MODES),
            )

    def replace_class(self, target: str, **options: Any) -> Callable[[T], T]:
        """Replace a whole class, its decorators included.

        Options, here and in the other methods: ``description`` (the reason shown in the output), ``replacement`` (a
        definition, where the method is called instead of used as a decorator), ``name_map``, ``optional`` (an absent
        target is no error), ``signature_change`` (calls that fit stock need not fit the replacement).
        """
        return self._code(ReplaceClass, target, options)

    def replace_function(self, target: str, **options: Any) -> Callable[[T], T]:
        """Replace a module-level function, its decorators included."""
        return self._code(ReplaceFunction, target, options)

    def override_method(self, target: str, **options: Any) -> Callable[[T], T]:
        """Replace ``Class.method``; the stock decorators stay unless the replacement has some.

        With ``add=True`` the class must not define the method yet, and gets it.
        """
        return self._code(OverrideMethod, target, options)

    def modify_init(self, target: str, **options: Any) -> Callable[[T], T]:
        """Wrap ``__init__`` of a class: the first parameter is the stock ``__init__``, the second is ``self``."""
        return self._code(ModifyInit, target, options)

    def add_helper(self, definition: T | None = None, **options: Any) -> Any:
        """Add a class or function after the imports, or with ``after="name"`` after that definition."""
        register = self._code(AddHelper, "", options)
        return register if definition is None else register(definition)

    def add_import(
        self,
        module: str,
        names: Sequence[str] | None = None,
        alias: str | None = None,
        *,
        description: str = "",
    ) -> None:
        """Add ``import module [as alias]`` or ``from module import names``; a name may read ``a as b``."""
        place = place_of(sys._getframe(1))
        given = (names,) if isinstance(names, str) else tuple(names or ())
        _check_import(module, given, alias, place)
        self.patches.append(AddImport(module, given, alias, description=description, place=place))

    def drop_import(self, *names: str, description: str = "", optional: bool = False) -> None:
        """Remove names from the stock module's own top-level imports."""
        place = place_of(sys._getframe(1))
        self.patches += [
            DropImport(name, description=description, place=place, optional=optional) for name in _some(names, place)
        ]

    def exclude_from_output(self, *names: str, description: str = "", optional: bool = False) -> None:
        """Leave classes, functions or constants out, and take them out of ``__all__``."""
        place = place_of(sys._getframe(1))
        self.patches += [
            Exclude(name, description=description, place=place, optional=optional) for name in _some(names, place)
        ]

    def add_post_import_block(self, code: str, *, description: str = "") -> None:
        """Add statements after the imports, exactly as written."""
        place = place_of(sys._getframe(1))
        text = code.replace("\r\n", "\n").strip("\n") + "\n"
        try:
            empty = not ast.parse(text).body
        except SyntaxError as error:
            raise ConfigError(
                "the block is not valid Python", place=place, found=f"line {error.lineno}: {error.msg}"
            ) from error
        if empty:
            raise ConfigError("the block has no statement", place=place)
        number = 1 + sum(isinstance(patch, PostImportBlock) for patch in self.patches)
        self.patches.append(PostImportBlock(f"block {number}", text, description=description, place=place))

    def _code(self, kind: type[CodePatch], target: str, options: dict[str, Any]) -> Callable[[T], T]:
        place = place_of(sys._getframe(2))
        fields = dict(options)
        replacement = fields.pop("replacement", None)
        _check_options(kind, fields, place)
        _check_target(kind, target, place)
        _check_names(fields.get("name_map") or {}, place)
        fields["name_map"] = {**self.name_map, **(fields.get("name_map") or {})}

        def register(thing: T) -> T:
            definition = of_object(thing, place)
            self.patches.append(kind(target or definition.name, definition, place=place, **fields))
            return thing

        if replacement is not None:
            register(replacement)
        return register


def create_patch_from_external(
    target: str,
    replacement_module: str,
    replacement_name: str,
    description: str = "",
    *,
    optional: bool = False,
) -> External:
    """Return a patch that makes the class or function ``target`` an import; append it to ``config.patches``.

    Nothing is imported here: the generated file imports ``replacement_name`` from ``replacement_module``.
    """
    place = place_of(sys._getframe(1))
    _check_module(replacement_module, place)
    for name in (target, replacement_name):
        if not name.isidentifier():
            raise ConfigError(
                "an external reference replaces a class or function by one", place=place, expected="a name", found=name
            )
    return External(
        target, replacement_module, replacement_name, description=description, place=place, optional=optional
    )


_OPTIONS = ("description", "name_map", "optional", "replacement", "signature_change")


def _check_options(kind: type[CodePatch], options: Mapping[str, Any], place: Place) -> None:
    extra = {OverrideMethod: ("add",), AddHelper: ("after",)}.get(kind, ())
    known = (*_OPTIONS, *extra)
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown option {name!r}", place=place, expected=", ".join(known), nearest=nearest(name, known)
            )


def _check_target(kind: type[CodePatch], target: str, place: Place) -> None:
    if kind is AddHelper:
        return
    parts = target.split(".") if isinstance(target, str) else []
    wanted = 2 if kind is OverrideMethod else 1
    if len(parts) != wanted or not all(part.isidentifier() for part in parts):
        expected = "'Class.method'" if wanted == 2 else "the name of a class or function"
        raise ConfigError("this is no target", place=place, expected=expected, found=repr(target))


def _check_module(name: str, place: Place) -> None:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError("this is no module name", place=place, expected="package.module", found=repr(name))


def _check_import(module: str, names: Sequence[str], alias: str | None, place: Place) -> None:
    _check_module(module, place)
    if module == "__future__":
        raise ConfigError("a __future__ import would change the meaning of stock code", place=place)
    if names and alias:
        raise ConfigError("an alias goes with a plain import", place=place, remedy='write names=["a as b"]')
    for name in (*names, *([alias] if alias else [])):
        parts = name.split(" as ")
        if len(parts) > 2 or not all(part.strip().isidentifier() for part in parts):
            raise ConfigError("this is no name to import", place=place, expected="'a' or 'a as b'", found=repr(name))


def _check_names(names: Mapping[str, str], place: Place) -> None:
    for key, value in names.items():
        if not key or not f"_{key}{value}".isidentifier():
            raise ConfigError("name_map exchanges pieces of identifiers", place=place, found=f"{key!r}: {value!r}")


def _some(names: Sequence[str], place: Place) -> Sequence[str]:
    if not names:
        raise ConfigError("no name given", place=place)
    return names
