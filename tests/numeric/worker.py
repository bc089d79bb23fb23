"""Runs small models of one transformers tree, a process per architecture, and stores what they give.

    python -m tests.numeric.worker stock   --files FILE --out DIR        (transformers: the stock tree, on PYTHONPATH)
    python -m tests.numeric.worker overlay --files FILE --out DIR        (the overlaid tree; compares with stock's DIR)

FILE lists modeling files, one package path per line. One JSON file per architecture says what was compared.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.numeric import inputs as make
from tests.numeric.shrink import shrink

TOGGLES = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
SECONDS = 600
CLASSES = 3
IN_BFLOAT16 = 1
_ORDER = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "Model")


def classes(module: Any) -> list[type]:
    """The models that a file defines, the most complete first."""
    from transformers import PreTrainedModel

    found = [
        one
        for name, one in vars(module).items()
        if isinstance(one, type)
        and issubclass(one, PreTrainedModel)
        and one.__module__ == module.__name__
        and not name.endswith("PreTrainedModel")
        and getattr(one, "config_class", None) is not None
    ]

    def rank(one: type) -> int:
        return next((place for place, end in enumerate(_ORDER) if one.__name__.endswith(end)), len(_ORDER))

    return sorted(found, key=rank)[:CLASSES]


def new_model(kind: type) -> torch.nn.Module:
    """A small model in evaluation mode, its weights a function of their names."""
    torch.manual_seed(3)
    model = kind(shrink(kind.config_class()))
    make.fill(model)
    return model.eval()


def outputs(model: torch.nn.Module, *, tokens: bool) -> dict[str, torch.Tensor]:
    """One forward, and 8 greedy tokens where the model generates."""
    given = make.build(model)
    if not given:
        raise ValueError(f"no input is known for main_input_name {model.main_input_name!r}")
    dtype = next(model.parameters()).dtype
    given = {name: one.to(dtype) if one.is_floating_point() else one for name, one in given.items()}
    torch.manual_seed(5)
    with torch.no_grad():
        found = make.tensors(model(**given))
        if tokens and getattr(model, "can_generate", lambda: False)():
            prompt = {name: one for name, one in given.items() if name != "decoder_input_ids"}
            found["greedy tokens"] = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    if not any(one.is_floating_point() and one.isfinite().any() for one in found.values()):
        raise ValueError("no finite output")
    return found


class Hits:
    """Which functions of one file ran."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.names: set[str] = set()

    def __call__(self, frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == self.file:
            self.names.add(frame.f_code.co_qualname)

    def __enter__(self) -> Hits:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def run_stock(path: str, folder: Path) -> dict[str, Any]:
    """Run every class of a file and keep the outputs."""
    module = importlib.import_module("transformers." + path.removesuffix(".py").replace("/", "."))
    report: dict[str, Any] = {"path": path, "classes": {}, "failed": {}}
    kept: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for kind in classes(module):
        try:
            model = new_model(kind).to(torch.float32)  # as in the other process: some parameters begin in bf16
            with Hits(module.__file__) as hits:
                kept[kind.__name__] = {"float32": outputs(model, tokens=True)}
        except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
            report["failed"][kind.__name__] = f"{type(error).__name__}: {error}"[:200]
            kept.pop(kind.__name__, None)
            continue
        report["classes"][kind.__name__] = sorted(hits.names)
        if len(kept) > IN_BFLOAT16:
            continue
        try:
            kept[kind.__name__]["bfloat16"] = outputs(model.to(torch.bfloat16), tokens=False)
        except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
            report.setdefault("no_bfloat16", {})[kind.__name__] = f"{type(error).__name__}: {error}"[:200]
    torch.save(kept, folder / f"{module.__name__}.pt")
    return report


def run_overlay(path: str, folder: Path) -> dict[str, Any]:
    """Run the classes that stock could run, off and on, and compare."""
    from rocm_overlay.verify.compare import judge

    import amd_ops

    module = importlib.import_module("transformers." + path.removesuffix(".py").replace("/", "."))
    assert module.__amd_overlay__
    assert module._amd is amd_ops
    report: dict[str, Any] = {"path": path, "off": {}, "on": {}}
    for name, references in torch.load(folder / f"{module.__name__}.pt").items():
        kind = getattr(module, name)
        for dtype, reference in references.items():
            tokens = dtype == "float32"
            for mode in ("off", "on"):
                model = new_model(kind).to(getattr(torch, dtype))
                amd_ops.reset_counters()
                try:
                    with amd_ops.override(tiers="torch,eager", **(TOGGLES if mode == "on" else {})):
                        found = outputs(model, tokens=tokens)
                    verdict = judge(reference, found, tier="torch", dtype=dtype, bitwise=mode == "off")
                    report[mode][f"{name} {dtype}"] = [str(one)[:200] for one in verdict.deviating]
                except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
                    trace = traceback.format_exc().strip().splitlines()[-3:]
                    report[mode][f"{name} {dtype}"] = [f"{type(error).__name__}: {error}"[:300], *trace]
    return report


def _signature(function: Any) -> str:
    """A signature as text; a default without a text of its own shows its address, which differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(function)))


def describe(path: str) -> dict[str, Any]:
    """Import a file, and list its names, its public signatures and its documentation."""
    name = "transformers." + path.removesuffix(".py").replace("/", ".")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
        return {"path": path, "error": f"{type(error).__name__}: {error}"[:300]}
    signatures: dict[str, str] = {}
    for label, value in vars(module).items():
        if getattr(value, "__module__", None) != name:
            continue
        members = vars(value).items() if inspect.isclass(value) else ()
        signatures |= {f"{label}.{key}": _signature(one) for key, one in members if inspect.isfunction(one)}
        if inspect.isclass(value):
            signatures[label] = " ".join(base.__name__ for base in value.__mro__)
        elif inspect.isfunction(value):
            signatures[label] = _signature(value)
    about = {"path": path, "names": sorted(vars(module)), "signatures": signatures, "doc": module.__doc__}
    return {**about, "all": list(getattr(module, "__all__", ())), "overlay": getattr(module, "__amd_overlay__", None)}


def child(function: Any, path: str, folder: Path, result: Path) -> None:
    """One architecture in a forked process, so that none can harm the next."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        try:
            report = function(path, folder)
        except BaseException as error:  # noqa: BLE001 - as above
            report = {"path": path, "error": f"{type(error).__name__}: {error}"[:300]}
        result.write_text(json.dumps(report, indent=1))
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        result.write_text(json.dumps({"path": path, "error": f"ended with status {status}"}, indent=1))


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("stock", "overlay", "describe"))
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", default="0/1", help="k/n: only every n-th file, from the k-th")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import transformers.generation
    import transformers.modeling_utils
    from transformers.utils import logging

    logging.set_verbosity_error()
    first, parts = (int(one) for one in arguments.part.split("/"))
    if arguments.mode == "describe":
        print(json.dumps([describe(path) for path in arguments.files.read_text().split()[first::parts]]))
        return
    function = run_stock if arguments.mode == "stock" else run_overlay
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.files.read_text().split()[first::parts]:
        name = path.rpartition("/")[2].removesuffix(".py")
        child(function, path, arguments.out, arguments.out / f"{name}.{arguments.mode}.json")
    print(transformers.__version__)


if __name__ == "__main__":
    main()
