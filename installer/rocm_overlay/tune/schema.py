"""What each aiter release expects of a bf16 table: columns, lookup key, libraries; read from its release tags."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from ..errors import UsageError

SHAPE = ("M", "N", "K", "bias", "dtype", "outdtype", "scaleAB")
KEY = ("gfx", "cu_num", *SHAPE, "bpreshuffle")
RESULT = ("libtype", "solidx", "splitK", "us", "kernelName", "err_ratio", "tflops", "bw")
COLUMNS = (*KEY, *RESULT)
UNTUNED = (*SHAPE, "bpreshuffle")
REQUIRED = ("M", "N", "K", "bias", "dtype", "outdtype", "scaleAB", "libtype", "solidx", "kernelName")

OLDEST = "0.1.6.post1"
LATEST = "0.1.20.post1"


@dataclass(frozen=True)
class Rules:
    """The rules of one aiter: ``key`` is what its loader indexes by, ``columns`` what we write for it (gfx first)."""

    version: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    libtypes: frozenset[str]

    @property
    def has_preshuffle(self) -> bool:
        return "bpreshuffle" in self.key


_OLD_KEY = ("cu_num", *SHAPE)
_OLD_TAIL = ("splitK", "us", "kernelName", "err_ratio", "tflops", "bw")
_OLDEST_COLUMNS = ("gfx", *SHAPE, "cu_num", "libtype", "solidx", *(c.replace("us", "soltimes") for c in _OLD_TAIL))

# (first release, value), newest first.
_KEYS = (("0.1.16", KEY), ("0.1.7.post3", KEY[1:]), (OLDEST, _OLD_KEY))
_COLUMN_SETS = (
    ("0.1.7.post3", COLUMNS),
    ("0.1.6.post2", ("gfx", *SHAPE, "cu_num", "libtype", "solidx", *_OLD_TAIL)),
    (OLDEST, _OLDEST_COLUMNS),
)
_LIBTYPES = (
    ("0.1.15", ("torch", "hipblaslt", "skinny", "asm", "triton", "flydsl", "opus")),
    ("0.1.12", ("torch", "hipblaslt", "skinny", "asm", "triton", "flydsl")),
    ("0.1.7.post3", ("torch", "hipblaslt", "skinny", "asm", "triton")),
    ("0.1.6.post2", ("torch", "hipblaslt", "skinny", "asm")),
    (OLDEST, ("torch", "hipblaslt", "rocblas", "skinny", "asm")),
)
ALL_LIBTYPES = frozenset(name for _, names in _LIBTYPES for name in names)


def _since(table: tuple[tuple[str, tuple[str, ...]], ...], version: Version) -> tuple[str, ...]:
    for first, value in table:
        if version >= Version(first):
            return value
    raise UsageError(
        "aiter-too-old",
        f"aiter {version} has no AITER_CONFIG_GEMM_BF16 variable",
        remedy=f"update aiter to {OLDEST} or later",
    )


def rules_for(version: str) -> Rules:
    """Return the rules of an aiter release (``0.1.16``, ``v0.1.20.post1``, ``0.1.17.dev3+g1234``)."""
    try:
        # A development build of 0.1.17 follows what was merged for 0.1.17, not the release before it.
        parsed = Version(Version(version.removeprefix("v")).public.split(".dev")[0])
    except InvalidVersion as error:
        raise UsageError(
            "bad-version", f"{version!r} is not an aiter version", remedy="write for example 0.1.20.post1"
        ) from error
    return Rules(str(parsed), _since(_KEYS, parsed), _since(_COLUMN_SETS, parsed), frozenset(_since(_LIBTYPES, parsed)))
