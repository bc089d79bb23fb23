"""Write ``schemas/<tag>.json``: the part of aiter's contract that the double needs, one file per modelled tag.

Usage: ``python tests/doubles/aiter/make_schemas.py <facts>/aiter_schemas.json``

The source holds python signatures for every tag and the dispatcher schemas that torch printed for some tags. Where a
schema was printed it is copied; elsewhere it is derived from the signature by aiter's own registration rule (every
tensor argument counts as mutated unless ``mutates_args`` names them). ``test_schemas.py`` proves that the rule gives
the printed text for the tags where both exist.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

VERSIONS = ("v0.1.5.post4", "v0.1.7.post3", "v0.1.9.post1", "v0.1.16", "v0.1.20.post1", "v0.1.22")
READ_AT = {"v0.1.22": "HEAD"}
"""Tags that the source has no signatures of are read at a commit beside them: v0.1.22 (2026-09-14) at e4048607
(2026-08-22), whose public functions are the same in what of the later sources could be read (attention of
``aiter.ops.triton``, ``aiter.tuned_gemm``, ``aiter.ops.topk``).
"""

OPS = {
    "mha_fwd": "aiter.ops.mha",
    "mha_varlen_fwd": "aiter.ops.mha",
    "fmha_v3_fwd": "aiter.ops.mha",
    "fmha_v3_varlen_fwd": "aiter.ops.mha",
    "gemm_a16w16": "aiter.tuned_gemm",
    "silu_and_mul": "aiter.ops.activation",
    "gelu_and_mul": "aiter.ops.activation",
    "gelu_tanh_and_mul": "aiter.ops.activation",
    "rms_norm": "aiter.ops.rmsnorm",
    "rmsnorm2d_fwd": "aiter.ops.rmsnorm",
    "rmsnorm2d_fwd_with_add": "aiter.ops.rmsnorm",
    "rms_norm_cu": "aiter.ops.rmsnorm",
    "fused_add_rms_norm_cu": "aiter.ops.rmsnorm",
    "rmsnorm": "aiter.ops.rmsnorm",
    "add_rmsnorm": "aiter.ops.rmsnorm",
    "rope_cached_fwd_impl": "aiter.ops.rope",
    "rope_cached_2c_fwd_impl": "aiter.ops.rope",
    "rope_cached_positions_2c_fwd_impl": "aiter.ops.rope",
}

FUNCTIONS = (
    "aiter.ops.mha.flash_attn_func",
    "aiter.ops.mha.flash_attn_varlen_func",
    "aiter.tuned_gemm.mm",
    "aiter.tuned_gemm.get_GEMM_A16W16_config",
    "aiter.fused_moe.fused_moe",
    "aiter.ops.shuffle.shuffle_weight",
    "aiter.ops.rope.rope_cached_fwd",
    "aiter.ops.rope.rope_cached_2c_fwd",
    "aiter.ops.rope.rope_cached_2c_fwd_inplace",
    "aiter.ops.rope.rope_cached_positions_2c_fwd",
    "aiter.ops.rope.rope_cached_positions_2c_fwd_inplace",
)

PRINTED_FALLBACK = "v0.1.9.post1"  # rope signatures never changed, so one printed schema serves every tag

_TYPES = {"int": "SymInt", "float": "float", "bool": "bool", "str": "str", "dtype": "ScalarType"}
_PARAM = re.compile(r"^(?P<name>\w+)(?:: (?P<type>[^=]+?))?(?: = (?P<default>.+))?$")


def split_param(text: str) -> tuple[str, str | None, str | None]:
    """``"x: int = 3"`` -> ``("x", "int", "3")``."""
    found = _PARAM.match(text)
    if found is None:
        raise ValueError(f"unreadable parameter {text!r}")
    return found["name"], found["type"], found["default"]


def signature_at(source: dict[str, Any], function: str, version: str) -> dict[str, Any] | None:
    """The signature entry in force at ``version``, None where the function is absent."""
    order = list(source["tags"])
    limit = order.index(version)
    current = None
    for entry in source["python_signatures"].get(function, []):
        if order.index(entry["from"]) <= limit:
            current = entry
    return None if current is None or current.get("absent") else current


def is_torch_op(entry: dict[str, Any]) -> bool:
    return any(text.startswith(("compile_ops", "torch_compile_guard")) for text in entry["decorators"])


def derive_schema(name: str, entry: dict[str, Any]) -> str:
    """The dispatcher schema that aiter's registration gives this signature."""
    mutated = re.search(r"mutates_args=(\[[^\]]*\])", " ".join(entry["decorators"]))
    arguments = []
    for index, text in enumerate(entry["params"]):
        parameter, kind, default = split_param(text)
        if kind is None:
            raise ValueError(f"{name}: parameter {parameter} has no type")
        optional = kind.endswith(" | None")
        base = kind.removesuffix(" | None")
        if base == "Tensor":
            alias = mutated is None or f"'{parameter}'" in mutated[1]
            base = f"Tensor(a{index}!)" if alias else "Tensor"
        else:
            base = _TYPES.get(base, base)
        suffix = "" if default is None else f"={'0.' if default == '0.0' else default}"
        arguments.append(f"{base}{'?' if optional else ''} {parameter}{suffix}")
    returns = {None: "()", "None": "()", "Tensor": "Tensor"}.get(entry["returns"], "(Tensor, Tensor, Tensor, Tensor)")
    return f"aiter::{name}({', '.join(arguments)}) -> {returns}"


def _op(source: dict[str, Any], name: str, module: str, version: str) -> dict[str, Any] | None:
    printed = source["dispatcher_schemas_observed"]
    if version in printed and printed[version].get(name):
        return {"module": module, "schema": printed[version][name], "printed": True}
    if name.endswith("_impl"):
        return {"module": module, "schema": printed[PRINTED_FALLBACK][name], "printed": False}
    entry = signature_at(source, f"{module}.{name}", version)
    if entry is None or not is_torch_op(entry):
        return None
    return {"module": module, "schema": derive_schema(name, entry), "printed": False}


def build(source: dict[str, Any], name: str) -> dict[str, Any]:
    """Everything the double knows about one tag."""
    version = READ_AT.get(name, name)
    order = list(source["tags"])

    def since(tag: str) -> bool:
        return order.index(version) >= order.index(tag)

    functions = {}
    for path in [*FUNCTIONS, *(f"{module}.{name}" for name, module in OPS.items() if not name.endswith("_impl"))]:
        entry = signature_at(source, path, version)
        if entry is not None:
            functions[path] = entry["params"]
    ops = {name: _op(source, name, module, version) for name, module in OPS.items()}
    return {
        "version": name,
        "commit": source["tags"][version]["commit"],
        "ops": {name: op for name, op in ops.items() if op is not None},
        "functions": dict(sorted(functions.items())),
        "behaviour": {
            "gemm_honours_is_shuffled": since(source["first_version"]["gemm_a16w16 honours is_shuffled"]),
            "rmsnorm_takes_float32": since("v0.1.17-longctx"),
        },
    }


def main() -> None:
    source = json.loads(Path(sys.argv[1]).read_text())
    for version in VERSIONS:
        target = Path(__file__).parent / "schemas" / f"{version}.json"
        target.write_text(json.dumps(build(source, version), indent=1) + "\n")
        print(target.name, len(json.loads(target.read_text())["ops"]), "ops")


if __name__ == "__main__":
    main()
