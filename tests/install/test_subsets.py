"""Files are independent: any subset of overlay files imports beside stock siblings and computes the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.install import catalog

from tests.install.support import ROOT, VERSION, environment

LINE = "4.57"

# One process loads torch and the stock core once; each subset is a fork of it that has not imported any model yet.
WORKER = """
import hashlib, json, os, sys, traceback
import torch, transformers
import transformers.generation, transformers.modeling_utils, transformers.masking_utils
from rocm_overlay.install.hook import SourceFinder
from examples.tiny_models import ARCHITECTURES, build, tiny_config
subsets, staged = json.load(sys.stdin)
for subset in subsets:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            names = {f"transformers.models.{m}.modeling_{m}": f"{staged}/models/{m}/modeling_{m}.py" for m in subset}
            SourceFinder(names).install()
            found = {}
            for name in ARCHITECTURES:
                model = build(tiny_config(name))
                module = sys.modules[type(model).__module__]
                overlaid = hasattr(module, "__amd_overlay__")
                assert overlaid == (name in subset), (name, overlaid)
                with torch.no_grad():
                    logits = model(torch.arange(12).reshape(1, 12) % 100).logits
                found[name] = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
            os.write(write, json.dumps(found).encode())
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    data = b"".join(iter(lambda: os.read(read, 65536), b""))
    os.close(read)
    _, status = os.waitpid(child, 0)
    print(json.dumps([subset, os.waitstatus_to_exitcode(status), json.loads(data or b"null")]), flush=True)
"""


def stage(package: Path, folder: Path) -> list[str]:
    """Write the overlay of every model for this release; return the models."""
    models = []
    for file in catalog.load(LINE).files:
        if VERSION in file.releases:
            assert file.stock_bytes() == (package / file.path).read_bytes()
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.overlay_bytes())
            models.append(file.model)
    return sorted(set(models))


def outputs(subsets: list[list[str]], staged: Path, tree: Path) -> list[tuple[list[str], int, dict[str, str]]]:
    path = os.pathsep.join([str(tree), str(ROOT), str(ROOT / "installer")])
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=json.dumps([subsets, str(staged)]),
        env={**environment(), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    failed = [(subset, done.stderr) for subset, code, _ in answers if code]
    assert failed == []
    return answers


def few(models: list[str]) -> list[list[str]]:
    return [models[:1], models[1:], models[::2]]


def many(models: list[str]) -> list[list[str]]:
    """Return each alone, all but one, and 50 random subsets."""
    source = random.Random(5)
    alone = [[model] for model in models]
    but_one = [[other for other in models if other != model] for model in models]
    return [*alone, *but_one, *(sorted(source.sample(models, source.randint(1, len(models)))) for _ in range(50))]


@pytest.mark.parametrize(
    "choose", [few, pytest.param(many, marks=[pytest.mark.full, pytest.mark.timeout(3600)])], ids=["few", "many"]
)
def test_any_subset_imports_and_computes_what_stock_computes(
    choose: Callable[[list[str]], list[list[str]]], stock_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    tree = stock_tree(VERSION)
    package = tree / "transformers"
    models = [model for model in stage(package, tmp_path / "staged") if model in _tiny()]
    assert len(models) >= 8
    answers = outputs([[], *choose(models)], tmp_path / "staged", tree)
    (nothing, _, stock), *others = answers
    assert nothing == []
    assert set(models) <= stock.keys()
    assert len(set(stock.values())) == len(stock), "the models are told apart"
    assert [(subset, found) for subset, _, found in others if found != stock] == []


def _tiny() -> set[str]:
    from examples.tiny_models import ARCHITECTURES

    return set(ARCHITECTURES)
