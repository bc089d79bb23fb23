"""Runs small models of one transformers tree, a process per architecture, and stores what they give.

    python -m tests.numeric.worker stock   --files FILE --out DIR        (transformers: the stock tree, on PYTHONPATH)
    python -m tests.numeric.worker overlay --files FILE --out DIR        (the overlaid tree; compares with stock's DIR)

FILE lists modeling files, one package path per line. One JSON file per architecture says what was compared.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import json
import os
import re
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.numeric import inputs as make
from tests.numeric.shrink import SCALES, shrink

TOGGLES = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
SECONDS = 600
BYTES = 8 << 30  # of private memory: a model that needs more is not small
PARAMETERS = 100_000_000
TRIES = 6
IN_BFLOAT16 = 1
_ORDER = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "Model")


def module_name(path: str) -> str:
    """The name under which a file of the package is imported."""
    return "transformers." + path.removesuffix(".py").replace("/", ".")


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

    return sorted(found, key=rank)[:TRIES]


def new_model(kind: type, scale: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A small model in evaluation mode, its weights a function of their names.

    In half precision a token goes to every expert: where two experts score alike, one rounding chooses the other.
    """
    torch.manual_seed(3)
    model = kind(shrink(kind.config_class(), scale, every_expert=dtype is not torch.float32))
    make.fill(model)
    return model.to(dtype).eval()  # some parameters begin in bf16


def refuse_large(kind: type, scale: str) -> None:
    """Raise ValueError for a model with too many parameters, before they take memory."""
    try:
        with torch.device("meta"):
            count = sum(one.numel() for one in kind(shrink(kind.config_class(), scale)).parameters())
    except (RuntimeError, NotImplementedError):  # its __init__ reads values: what it needs is seen when it is built
        return
    if count > PARAMETERS:
        raise ValueError(f"{count:,} parameters at the scale {scale!r}")


def outputs(model: torch.nn.Module, style: str) -> dict[str, torch.Tensor]:
    """What one forward gives."""
    given = _inputs(model, style)
    torch.manual_seed(5)
    with torch.no_grad():
        found = make.tensors(model(**given))
    if not any(one.is_floating_point() and one.isfinite().any() for one in found.values()):
        raise ValueError("no finite output")
    return found


def generated(model: torch.nn.Module, style: str) -> dict[str, torch.Tensor]:
    """8 greedy tokens ("tokens", judged by equality), or the sound that a model makes of its own tokens."""
    given = _inputs(model, style)
    given.pop("decoder_input_ids", None)
    torch.manual_seed(5)
    with torch.no_grad():
        found = make.tensors(model.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=False), "made")
    return {name if one.is_floating_point() else name.replace("made", "tokens", 1): one for name, one in found.items()}


def _inputs(model: torch.nn.Module, style: str) -> dict[str, torch.Tensor]:
    given = make.build(model, style)
    if not given:
        raise ValueError(f"no input is known for main_input_name {model.main_input_name!r}")
    dtype = next(model.parameters()).dtype
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in given.items()}


class Hits:
    """Which functions of one file ran."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.by_line = _by_line(file)
        self.names: set[str] = set()

    def __call__(self, frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == self.file:
            name = self.by_line.get(frame.f_code.co_firstlineno)
            if name is not None:  # not a comprehension or a lambda
                self.names.add(name)

    def __enter__(self) -> Hits:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@functools.cache
def _by_line(file: str) -> dict[int, str]:
    return _qualnames(ast.parse(Path(file).read_text(encoding="utf-8")))


def _qualnames(node: ast.AST, prefix: str = "") -> dict[int, str]:
    """Qualified names by the line on which a code object begins, which is that of the first decorator."""
    found: dict[int, str] = {}
    for one in ast.iter_child_nodes(node):
        if isinstance(one, (ast.ClassDef, ast.FunctionDef)):
            name = f"{prefix}{one.name}"
            if isinstance(one, ast.FunctionDef):
                found[min([one.lineno, *(decorator.lineno for decorator in one.decorator_list)])] = name
            found |= _qualnames(one, f"{name}." if isinstance(one, ast.ClassDef) else f"{name}.<locals>.")
        else:
            found |= _qualnames(one, prefix)
    return found


class Trial(NamedTuple):
    """A class at the scale and with the style of inputs with which it runs on stock."""

    scale: str
    style: str
    model: torch.nn.Module
    found: dict[str, torch.Tensor]
    ran: set[str]


def trial(kind: type, file: str) -> Trial:
    """Find the first scale and style with which a class runs; raises what stopped the first try when none does."""
    first: Exception | None = None
    for scale in SCALES:
        try:
            refuse_large(kind, scale)
            model = new_model(kind, scale)
        except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
            first = first or error
            continue
        for style in make.STYLES:
            try:
                with Hits(file) as hits:
                    found = outputs(model, style)
            except Exception as error:  # noqa: BLE001 - as above
                first = first or error
            else:
                return Trial(scale, style, model, found, hits.names)
    assert first is not None
    raise first


def one_model(kind: type, what: str, scale: str) -> torch.nn.Module:
    """The model of one case: the forward in ``float32`` or ``bfloat16``, or the ``generation``."""
    return new_model(kind, scale, torch.bfloat16 if what == "bfloat16" else torch.float32)


def one_run(model: torch.nn.Module, what: str, style: str) -> dict[str, torch.Tensor]:
    return generated(model, style) if what == "generation" else outputs(model, style)


def run_stock(path: str, folder: Path, most: int = 3) -> dict[str, Any]:
    """Run the first classes of a file that run, ``most`` of them, and keep the outputs."""
    module = importlib.import_module(module_name(path))
    report: dict[str, Any] = {"path": path, "classes": {}, "failed": {}, "without": {}, "how": {}}
    kept: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for kind in classes(module):
        name = kind.__name__
        if len(kept) == most:
            break
        try:
            scale, style, model, found, ran = trial(kind, module.__file__)
        except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
            report["failed"][name] = _short(error)
            continue
        kept[name] = {"float32": found}
        report["how"][name] = [scale, style]
        wanted = ["generation"] if getattr(model, "can_generate", lambda: False)() else []
        wanted += ["bfloat16"] if len(kept) <= IN_BFLOAT16 else []
        for what in wanted:
            try:
                model = one_model(kind, what, scale)
                with Hits(module.__file__) as hits:
                    kept[name][what] = one_run(model, what, style)
                ran |= hits.names
            except Exception as error:  # noqa: BLE001 - as above
                report["without"][f"{name} {what}"] = _short(error)
        report["classes"][name] = sorted(ran)
    torch.save((report["how"], kept), folder / f"{module.__name__}.pt")
    return report


def run_overlay(path: str, folder: Path) -> dict[str, Any]:
    """Run the classes that stock could run, off and on, and compare."""
    import amd_ops

    module = importlib.import_module(module_name(path))
    assert module.__amd_overlay__
    assert module._amd is amd_ops
    report: dict[str, Any] = {"path": path, "off": {}, "on": {}}
    amd_ops.reset_counters()
    how, kept = torch.load(folder / f"{module.__name__}.pt")
    for name, references in kept.items():
        for what, reference in references.items():
            scale, style = how[name]
            model = one_model(getattr(module, name), what, scale)
            for mode in ("off", "on"):  # in this order: off leaves the model as it was
                report[mode][f"{name} {what}"] = _compared(model, what, style, mode, reference)
    rows = amd_ops.report().as_dict()["ops"]
    report["ops"] = sorted(row["op"] for row in rows if any(tier["calls"] for tier in row["tiers"]))
    return report


def _compared(
    model: torch.nn.Module, what: str, style: str, mode: str, reference: dict[str, torch.Tensor]
) -> list[str]:
    """What differs from stock in one run of the overlaid class."""
    from rocm_overlay.verify.compare import judge

    import amd_ops

    try:
        with amd_ops.override(tiers="torch,eager", **(TOGGLES if mode == "on" else {})):
            found = one_run(model, what, style)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the row of the report
        return [_short(error), *traceback.format_exc().strip().splitlines()[-3:]]
    dtype = "bfloat16" if what == "bfloat16" else "float32"
    verdict = judge(reference, found, tier="torch", dtype=dtype, bitwise=mode == "off")
    return [str(one)[:200] for one in verdict.deviating]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _signature(function: Any) -> str:
    """A signature as text; a default without a text of its own shows its address, which differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(function)))


def describe(path: str) -> dict[str, Any]:
    """Import a file, and list its names, its public signatures and its documentation."""
    name = module_name(path)
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
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
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
    parser.add_argument("--classes", type=int, default=3, help="how many classes of each file stock runs")
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
    stock = functools.partial(run_stock, most=arguments.classes)
    function = stock if arguments.mode == "stock" else run_overlay
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.files.read_text().split()[first::parts]:
        name = path.rpartition("/")[2].removesuffix(".py")
        child(function, path, arguments.out, arguments.out / f"{name}.{arguments.mode}.json")
    print(transformers.__version__)


if __name__ == "__main__":
    main()
