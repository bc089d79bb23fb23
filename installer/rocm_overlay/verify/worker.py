"""One process of the interpreter under test: loads the model with one build of its code and runs the cases.

Started by `rocm_overlay.verify.workers` as ``python -m rocm_overlay.verify.worker JOB FD``. The job is a JSON file;
events go to the file descriptor, one JSON object per line. Standard output and error belong to the libraries.

With ``"record"`` in the job the outputs are saved there (stock); otherwise every run is compared with what was saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Emit = Callable[..., None]


def main(arguments: list[str]) -> int:
    """Run the job; 0 when every event was written, whatever the comparisons say."""
    job = json.loads(Path(arguments[0]).read_bytes())
    with os.fdopen(int(arguments[1]), "w", encoding="utf-8") as events:

        def emit(event: str, **values: Any) -> None:
            print(json.dumps({"event": event, **values}, allow_nan=False), file=events, flush=True)

        if job["amd_ops_path"]:
            sys.path.append(job["amd_ops_path"])
        from rocm_overlay.install.hook import SourceFinder

        with SourceFinder(job["sources"]):
            _Session(job, emit).run()
    return 0


class _Session:
    """The loaded model and what has been asked of it."""

    def __init__(self, job: dict[str, Any], emit: Emit) -> None:
        self.job = job
        self.emit = emit
        self.folder = Path(job["references"])

    def run(self) -> None:
        """Load the model, then record or compare."""
        import torch

        from rocm_overlay.verify.cases import Inputs

        try:
            self.model = self._load(torch)
        except (OSError, ValueError, RuntimeError) as error:
            self.emit("load-failed", message=_first_line(error))
            return
        text_config = self.model.config.get_text_config()
        self.inputs = Inputs.seeded(
            text_config.vocab_size, seed=self.job["seed"], new_tokens=self.job["max_new_tokens"]
        ).to(self.model.device)
        module = sys.modules[type(self.model).__module__]
        self.emit(
            "loaded",
            device=_device_name(torch, self.model.device),
            file=module.__file__,
            overlay=getattr(module, "__amd_overlay__", None),
            window=getattr(text_config, "sliding_window", None),
            softcap=getattr(text_config, "attn_logit_softcapping", None),
        )
        if self.job["record"]:
            self._record()
        else:
            self._compare_runs()

    def _load(self, torch: Any) -> Any:
        import transformers

        # `dtype` took the place of `torch_dtype` in 4.56.
        release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        keyword = "dtype" if release >= (4, 56) else "torch_dtype"
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.job["model"], local_files_only=True, **{keyword: getattr(torch, self.job["dtype"])}
        )
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _cases(self) -> Iterator[tuple[str, Any]]:
        """Yield (implementation, case) in a fixed order, with the model switched to the implementation."""
        from rocm_overlay.verify.cases import CASES

        for implementation in self.job["implementations"]:
            self.model.set_attn_implementation(implementation)
            for name in self.job["cases"]:
                yield implementation, CASES[name]

    def _record(self) -> None:
        from safetensors.torch import save_file

        for implementation, case in self._cases():
            try:
                outputs = case.run(self.model, self.inputs)
            except Exception as error:  # noqa: BLE001 - a case that stock cannot run is told and left out
                self.emit("recorded", implementation=implementation, case=case.name, error=_first_line(error))
                continue
            path = self.folder / implementation / f"{case.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.cpu().contiguous().clone() for name, value in outputs.items()}, path)
            self.emit("recorded", implementation=implementation, case=case.name, error=None)

    def _compare_runs(self) -> None:
        import amd_ops

        for run in self.job["runs"]:
            try:
                with amd_ops.override(**run["settings"]):
                    amd_ops.reset_counters()
                    self._compare(run, lambda: amd_ops.report().as_dict()["ops"])
            except amd_ops.ToggleError as error:
                self.emit("toggle-refused", run=run["id"], message=str(error))
            finally:
                amd_ops.restore(self.model)

    def _compare(self, run: dict[str, Any], ops: Callable[[], list[Any]]) -> None:
        """Compare every recorded case; where a tier ran no op in an implementation's first case, leave out the rest."""
        self.emit("run-started", run=run["id"])
        start = time.perf_counter()
        idle: set[str] = set()
        for implementation, case in self._cases():
            if implementation in idle:
                continue
            reference = self.folder / implementation / f"{case.name}.safetensors"
            if not reference.is_file():
                continue
            self.emit(
                "case",
                run=run["id"],
                implementation=implementation,
                case=case.name,
                **self._judge(run, case, reference),
            )
            if run["tier"] in self.job["optional_tiers"] and not _ran(ops(), run["tier"]):
                idle.add(implementation)
        self.emit("run-done", run=run["id"], seconds=time.perf_counter() - start, ops=ops())

    def _judge(self, run: dict[str, Any], case: Any, reference: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        from rocm_overlay.verify.compare import judge

        try:
            found = {name: value.cpu() for name, value in case.run(self.model, self.inputs).items()}
        except Exception as error:  # noqa: BLE001 - stock ran this case, so a failure is a deviation with a reason
            return {"ok": False, "error": _first_line(error), "traceback": traceback.format_exc(limit=-6)}
        off = run["tier"] == "off"
        verdict = judge(load_file(reference), found, tier=run["tier"], dtype=self.job["dtype"], bitwise=off)
        return {"error": None, **verdict.as_json()}


def _ran(ops: list[dict[str, Any]], tier: str) -> bool:
    return any(row["tier"] == tier and row["calls"] for op in ops for row in op["tiers"])


def _device_name(torch: Any, device: Any) -> str:
    if device.type != "cuda":
        return str(device.type)
    return str(torch.cuda.get_device_name(device))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has gone: there is no one to tell
        sys.exit(main(sys.argv[1:]))
