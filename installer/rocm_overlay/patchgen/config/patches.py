"""What a patch is: plain values. How each kind changes a file is in ``.apply``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import GeneratorError, Place, SeveralErrors


class ConfigError(GeneratorError):
    """A patch config cannot be loaded, or one of its patches cannot do what it says."""

    kind = "config"


class MissingTargetError(ConfigError):
    """The stock file has no such definition; a patch with ``optional=True`` ends as not applicable."""

    kind = "config-target"


class PatchConflictError(ConfigError):
    """Two patches claim the same definition."""

    kind = "config-conflict"


class ConfigErrors(SeveralErrors, ConfigError):
    """Everything that is wrong with one config, one error per patch; ``str()`` has all of them, a line each."""


@dataclass(frozen=True)
class Definition:
    """A class or function written in a config file: its text, never the object.

    ``text`` begins in column 0, has ``\\n`` line ends, keeps comments and the decorators that are not patches.
    """

    name: str
    text: str
    place: Place


@dataclass(frozen=True)
class Patch:
    """One entry of ``PatchConfig.patches``. ``place`` is where the user wrote it."""

    kind: ClassVar[str] = "patch"
    target: str
    description: str = field(default="", kw_only=True)
    place: Place = field(default=Place("<config>"), kw_only=True)
    optional: bool = field(default=False, kw_only=True)

    @property
    def claims(self) -> tuple[str, ...]:
        """The names of the module that no other patch may touch."""
        return (self.target,)


@dataclass(frozen=True)
class CodePatch(Patch):
    """A patch that brings code. ``name_map`` renames pieces of identifiers in it."""

    definition: Definition
    name_map: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    signature_change: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class ReplaceClass(CodePatch):
    """The class ``target`` becomes another class."""

    kind: ClassVar[str] = "class_replacement"


@dataclass(frozen=True)
class ReplaceFunction(CodePatch):
    """The module-level function ``target`` becomes another function."""

    kind: ClassVar[str] = "function_replacement"


@dataclass(frozen=True)
class OverrideMethod(CodePatch):
    """The method ``Class.method`` becomes another one; with ``add`` it must be absent and is added."""

    kind: ClassVar[str] = "method_override"
    add: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class ModifyInit(CodePatch):
    """``Class.__init__`` is wrapped; the first parameter of the definition is the stock ``__init__``."""

    kind: ClassVar[str] = "init_modification"

    @property
    def claims(self) -> tuple[str, ...]:
        """The class's own ``__init__``."""
        return (f"{self.target}.__init__",)


@dataclass(frozen=True)
class External(Patch):
    """The class or function ``target`` becomes an import of ``module.name`` under the old name."""

    kind: ClassVar[str] = "external_replacement"
    module: str
    name: str


@dataclass(frozen=True)
class AddHelper(CodePatch):
    """A new class or function, after the imports or after the definition ``after``."""

    kind: ClassVar[str] = "helper"
    after: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class AddImport(Patch):
    """``import target [as alias]`` or ``from target import names``; a name may read ``a as b``."""

    kind: ClassVar[str] = "import_added"
    names: tuple[str, ...] = ()
    alias: str | None = None

    @property
    def bindings(self) -> dict[str, str]:
        """Bound name to the text that imports it."""
        if not self.names:
            text = f"import {self.target}" + (f" as {self.alias}" if self.alias else "")
            return {self.alias or self.target.split(".")[0]: text}
        return {name.split(" as ")[-1].strip(): name for name in self.names}

    @property
    def claims(self) -> tuple[str, ...]:
        """None: two patches may import the same thing."""
        return ()


@dataclass(frozen=True)
class DropImport(Patch):
    """The module-level import of the name ``target`` goes."""

    kind: ClassVar[str] = "import_dropped"


@dataclass(frozen=True)
class Exclude(Patch):
    """The definition ``target`` goes, from ``__all__`` too."""

    kind: ClassVar[str] = "excluded"


@dataclass(frozen=True)
class PostImportBlock(Patch):
    """Statements put after the imports, as written; ``target`` is a label for reports."""

    kind: ClassVar[str] = "post_import_block"
    text: str

    @property
    def claims(self) -> tuple[str, ...]:
        """None: what it binds is checked on the result."""
        return ()
