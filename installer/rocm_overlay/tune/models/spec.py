"""The values every architecture is described with: one Linear per role, and what fusion and sharding do to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ...errors import OverlayError, UsageError

# token: M is the number of tokens. head: tokens whose logits are wanted. expert: tokens routed to one expert.
# image: M is a multiple of the patches of one picture.
Kind = Literal["token", "head", "expert", "image"]
Fusion = frozenset[str]
FUSIONS = ("qkv", "gate_up")


@dataclass(frozen=True)
class Linear:
    """A weight ``[n, k]``, used ``count`` times in the model, computed as x[M, k] @ weight.T.

    ``role`` names it in reports; ``kind`` says what M counts; ``rows`` is the unit of M for images (patches of one).
    ``active`` is how many of the ``count`` weights one token reads (fewer than ``count`` for routed experts).
    """

    role: str
    n: int
    k: int
    bias: bool
    count: int
    kind: Kind = "token"
    active: int = 0
    rows: int = 1

    def __post_init__(self) -> None:
        if not self.active:
            object.__setattr__(self, "active", self.count)

    @property
    def weights(self) -> int:
        """Elements of all ``count`` weights together."""
        return self.n * self.k * self.count


@dataclass(frozen=True)
class Model:
    """What estimates and reports need to know of a model."""

    name: str
    model_type: str
    layers: int
    linears: tuple[Linear, ...]
    kv_bytes_per_layer: int
    """Bytes of K and V of one token in one layer, in a 16-bit cache, on one rank."""
    windows: tuple[int, ...]
    """Per layer: the sliding window in tokens, 0 for full attention."""
    norm_params: int
    launches: tuple[int, int] | None
    """GPU launches of one decoder layer at decode, stock and overlaid (`make bench-launches`), None if not counted."""
    experts: tuple[int, int] = (0, 0)
    """(experts per layer, experts one token is routed to)."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """A config section with checked access; errors name the file, the key and what to do."""

    values: Mapping[str, object]
    path: str
    section: str = ""
    defaults: Mapping[str, int] = field(default_factory=dict)
    used_defaults: list[str] = field(default_factory=list)

    def _name(self, key: str) -> str:
        return f"{self.section}.{key}" if self.section else key

    def fail(self, key: str, message: str, remedy: str) -> OverlayError:
        return UsageError("bad-config", f"{self.path}: {self._name(key)} {message}", remedy=remedy, paths=(self.path,))

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """Return a whole number >= ``minimum``; ``default`` stands for an absent or null key."""
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key)
            if value is not None:
                self.used_defaults.append(f"{self._name(key)}={value}")
        if value is None:
            value = default
        if value is None:
            raise self.fail(key, "is missing", "add it, or use the config.json of the model's repository")
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 1 << 31:
            raise self.fail(key, f"is {value!r}, not a whole number from {minimum}", "correct the config")
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, f"is {value!r}, not true or false", "correct the config")
        return value

    def nested(self, key: str) -> Mapping[str, object] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, "is not an object", "correct the config")
        return value


@dataclass(frozen=True)
class Shard:
    """Tensor parallelism of degree ``tp``: what is left of a dimension on one rank."""

    tp: int
    config: Config

    def cut(self, size: int, what: str) -> int:
        if size % self.tp:
            raise UsageError(
                "bad-tp",
                f"{self.config.path}: {what} = {size} cannot be split over {self.tp} ranks",
                remedy="choose a degree that divides it",
                paths=(self.config.path,),
            )
        return size // self.tp

    def kv_heads(self, heads: int) -> int:
        """Key/value heads of one rank; fewer heads than ranks are replicated, as serving engines do."""
        return self.cut(heads, "num_key_value_heads") if heads >= self.tp else 1

    def rows_up(self, size: int) -> int:
        """Rows of an embedding or head on the first rank, which gets the larger part of an uneven split."""
        return -(-size // self.tp)


def fused(parts: list[Linear], role: str, into: Fusion, group: str) -> list[Linear]:
    """Return ``parts`` as one weight when ``group`` is to be fused and they agree on k, bias and count."""
    first = parts[0]
    same = all((p.k, p.bias) == (first.k, first.bias) for p in parts)
    if group not in into or not same:
        return parts
    layers = min(p.count for p in parts)
    n = sum(p.n * (p.count // layers) for p in parts)
    return [replace(first, role=role, n=n, count=layers, active=min(p.active for p in parts))]
