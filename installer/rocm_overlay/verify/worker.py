"""One process of the interpreter under test: loads the model with one build of its code and runs the cases.

Started by `rocm_overlay.verify.workers` as ``python -m rocm_overlay.verify.worker JOB FD``.
With ``"record"`` in the job the outputs are saved there (stock); otherwise every run is compared with what was saved.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rocm_overlay.worker import Emit, end, serving


def main(arguments: list[str]) -> None:
    """Run the job; every event is written, whatever the comparisons say."""
    with serving(arguments) as (job, emit):
        _Session(job, emit).run()


class _Session:
    """The loaded model and what has been asked of it."""

    def __init__(self, job: dict[str, Any], emit: Emit) -> None:
        self.job = job
        self.emit = emit
        self.folder = Path(job["references"])

    def run(self) -> None:
        """Load the model, then record or compare."""
        import torch

        from rocm_overlay.verify.inputs import Inputs, kind_of
        from rocm_overlay.verify.models import fingerprint, load, nan_weights

        try:
            self.model = load(self.job["model"], self.job["dtype"], seeded=self.job["seeded"], seed=self.job["seed"])
            self.inputs = Inputs.for_model(self.model, seed=self.job["seed"], new_tokens=self.job["max_new_tokens"])
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
            self.emit("load-failed", message=_first_line(error))
            return
        self.kind = kind_of(self.model)
        module = sys.modules[type(self.model).__module__]
        text_config = self.model.config.get_text_config()
        self.facts = {"kind": self.kind, "weights": fingerprint(self.model)}
        self.emit(
            "loaded",
            device=_device_name(torch, self.model.device),
            file=module.__file__,
            overlay=getattr(module, "__amd_overlay__", None),
            window=getattr(text_config, "sliding_window", None),
            softcap=getattr(text_config, "attn_logit_softcapping", None),
            nan_weights=nan_weights(self.model),
            cases=sum(1 for _ in self._cases()),
            **self.facts,
        )
        if not self.job["record"]:
            self._compare_runs()
        elif self.job["compare"]:
            self._unpack()
        else:
            self._record()

    def _cases(self) -> Iterator[tuple[str, Any]]:
        """Yield (implementation, case) in a fixed order, with the model switched to the implementation."""
        from rocm_overlay.verify.cases import CASES
        from rocm_overlay.verify.models import use_attention

        for implementation in self.job["implementations"]:
            try:
                use_attention(self.model, implementation)
            except (ValueError, ImportError):
                continue  # a model without it: stock has no answer to compare with
            for name in self.job["cases"]:
                case = CASES[name]
                if self.kind in case.kinds and (implementation == "eager" or not case.eager_only):
                    yield implementation, case

    def _outputs(self, case: Any) -> dict[str, Any]:
        return {name: value.cpu().contiguous().clone() for name, value in case.run(self.model, self.inputs).items()}

    def _record(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        kept = {}
        for implementation, case in self._cases():
            try:
                outputs = self._outputs(case)
            except Exception as error:  # noqa: BLE001 - a case that stock cannot run is told and left out
                self.emit("recorded", implementation=implementation, case=case.name, error=_first_line(error))
                continue
            path = self.folder / implementation / f"{case.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(outputs, path)
            if self.job["save"]:
                kept.update({f"{implementation}|{case.name}|{name}": value for name, value in outputs.items()})
            self.emit("recorded", implementation=implementation, case=case.name, error=None)
        if self.job["save"]:
            path = Path(self.job["save"])
            partial = path.with_name(path.name + ".partial")
            try:
                save_file(kept, partial, metadata={"verify": json.dumps(self._identity())})
                os.replace(partial, path)
            except (OSError, SafetensorError) as error:
                partial.unlink(missing_ok=True)
                self.emit("save-failed", message=f"{path} cannot be written: {_first_line(error)}")

    def _identity(self) -> dict[str, Any]:
        names = ("dtype", "seed", "max_new_tokens")
        return {**{name: self.job[name] for name in names}, **self.facts}

    def _unpack(self) -> None:
        """Take the outputs that another machine saved for references; they must be of the same weights and inputs."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        try:
            opened = safe_open(self.job["compare"], "pt")
        except (OSError, SafetensorError) as error:
            self.emit("reference-refused", message=f"{self.job['compare']} cannot be read: {_first_line(error)}")
            return
        with opened as saved:
            if "verify" not in (saved.metadata() or {}):
                self.emit("reference-refused", message=f"{self.job['compare']} is not what `verify --save` writes")
                return
            theirs = json.loads(saved.metadata()["verify"])
            ours = self._identity()
            differing = [name for name in ours if ours[name] != theirs.get(name)]
            if differing:
                name = differing[0]
                message = f"{self.job['compare']} was saved with {name} {theirs.get(name)!r}, here it is {ours[name]!r}"
                self.emit("reference-refused", message=message)
                return
            found: dict[tuple[str, str], dict[str, Any]] = {}
            for key in saved.keys():  # noqa: SIM118 - not a mapping
                implementation, case, name = key.split("|", 2)
                found.setdefault((implementation, case), {})[name] = saved.get_tensor(key)
        for (implementation, case), outputs in found.items():
            path = self.folder / implementation / f"{case}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(outputs, path)
            self.emit("recorded", implementation=implementation, case=case, error=None)

    def _compare_runs(self) -> None:
        import amd_ops

        for run in self.job["runs"]:
            try:
                with amd_ops.override(**run["settings"]):
                    amd_ops.reset_counters()
                    failed = self._compare(run, lambda: amd_ops.report().as_dict()["ops"])
                if failed is not None and self.job["bisect"]:
                    self._bisect(run, *failed)
            except amd_ops.ToggleError as error:
                self.emit("toggle-refused", run=run["id"], message=str(error))
            finally:
                amd_ops.restore(self.model)

    def _compare(self, run: dict[str, Any], ops: Callable[[], list[Any]]) -> tuple[str, Any] | None:
        """Compare every recorded case and return the first that deviates; where a tier ran no op in an
        implementation's first case, leave out the rest.
        """
        self.emit("run-started", run=run["id"])
        start = time.perf_counter()
        idle: set[str] = set()
        failed = None
        for implementation, case in self._cases():
            if implementation in idle:
                continue
            reference = self.folder / implementation / f"{case.name}.safetensors"
            if not reference.is_file():
                continue
            outcome = self._judge(run, case, reference)
            self.emit("case", run=run["id"], implementation=implementation, case=case.name, **outcome)
            if failed is None and not outcome["ok"] and outcome["error"] is None:
                failed = implementation, case
            if run["tier"] in self.job["optional_tiers"] and not _ran(ops(), run["tier"]):
                idle.add(implementation)
        self.emit("run-done", run=run["id"], seconds=time.perf_counter() - start, ops=ops())
        return failed

    def _bisect(self, run: dict[str, Any], implementation: str, case: Any) -> None:
        from rocm_overlay.verify import bisect
        from rocm_overlay.verify.models import use_attention

        use_attention(self.model, implementation)
        reference = self.folder / implementation / f"{case.name}.safetensors"

        def within() -> bool:
            return bool(self._judge(run, case, reference)["ok"])

        try:
            found = bisect.find(self.model, run, within, self.job["functions"], self.job["dtype"])
        except Exception as error:  # noqa: BLE001 - the deviation stands; only its place stays unknown
            found = {"switches": [], "layer": None, "note": f"the bisect failed: {_first_line(error)}"}
        self.emit("culprit", run=run["id"], implementation=implementation, case=case.name, **found)

    def _judge(self, run: dict[str, Any], case: Any, reference: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        from rocm_overlay.verify.compare import judge

        try:
            found = self._outputs(case)
        except Exception as error:  # noqa: BLE001 - stock ran this case, so a failure is a deviation with a reason
            return {"ok": False, "error": _first_line(error), "traceback": traceback.format_exc(limit=-6)}
        off = run["tier"] == "off" and not self.job["compare"]  # another machine has bits of its own
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
    end(main)
