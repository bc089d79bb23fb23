"""A parity run in a process of its own: another transformers on the path, or no amd_ops at all.

Prints one JSON object: what was found in place, and the deviations of every case.
"""

from __future__ import annotations

import argparse
import json
import sys


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", nargs="+")
    parser.add_argument("--without-amd-ops", action="store_true")
    parser.add_argument("--toggles", action="store_true", help="also run with every toggle on, torch tier")
    arguments = parser.parse_args()
    if arguments.without_amd_ops:
        # As where nothing of that name is installed: find_spec finds None, and an import raises ModuleNotFoundError.
        sys.modules["amd_ops"] = None  # type: ignore[assignment]

    import transformers

    from tests.parity import twins

    found = {"transformers": transformers.__version__, "amd_ops": [], "overlay": [], "deviating": [], "cases": 0}
    for architecture in arguments.architectures:
        module = twins.overlay_module(architecture)
        found["amd_ops"].append(module._amd is not None)
        found["overlay"].append(module.__amd_overlay__)
        _compare(found, architecture, bitwise=True)
        if arguments.toggles:
            import amd_ops

            on = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
            with amd_ops.override(tiers="torch,eager", **on):
                _compare(found, architecture, bitwise=False)
    print(json.dumps(found))


def _compare(found: dict, architecture: str, *, bitwise: bool) -> None:
    from rocm_overlay.verify.compare import judge

    from tests.parity import twins

    pair = twins.pair(architecture, "float32")
    for how, case in twins.RUNS:
        verdict = judge(
            pair.reference(case, how), pair.found(case, how), tier="torch", dtype="float32", bitwise=bitwise
        )
        found["cases"] += 1
        found["deviating"] += [f"{architecture} {how} {case} bitwise={bitwise}: {item}" for item in verdict.deviating]


if __name__ == "__main__":
    main()
