"""One fresh process of the demo: load the saved models, generate, and write what came out.

Toggles come from the environment, exactly as in a user's script. With ``stock`` in the job, the stock texts that were
copied before the installation are served under the stock module names; otherwise whatever is installed runs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 48
TIMED_RUNS = 5


def main(job: dict[str, Any]) -> None:
    with contextlib.ExitStack() as stack:
        if job["stock"]:
            from rocm_overlay.install.hook import SourceFinder

            stack.enter_context(SourceFinder(job["stock"]))
        found = _run(job)
    Path(job["result"]).write_text(json.dumps(found))


def _run(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: _run_model(job, name, device) for name in job["models"]}
    # Only what an overlaid file has imported itself: a stock run must not load amd_ops.
    amd_ops = sys.modules.get("amd_ops")
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "models": models,
        "report": str(amd_ops.report()) if amd_ops else None,
        "calls": amd_ops.report().as_dict()["ops"] if amd_ops else [],
    }


def _run_model(job: dict[str, Any], name: str, device: str) -> dict[str, Any]:
    """Run one model in every dtype of the job, the timed one (bf16) first."""
    import torch
    import transformers
    from safetensors.torch import save_file

    found: dict[str, Any] = {}
    tensors = {}
    for dtype in job["dtypes"]:
        folder = job["models"][name]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model = model.to(device).eval()
        model.generation_config.eos_token_id = None  # every run generates the same number of tokens
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, model.config.vocab_size, (1, PROMPT_TOKENS), generator=generator).to(device)
        with torch.inference_mode():
            tensors[f"{dtype}.prefill"] = model(ids).logits.cpu()
            tokens, logits = _generate(model, ids, job["parity_tokens"])
        tensors[f"{dtype}.tokens"], tensors[f"{dtype}.logits"] = tokens.cpu(), logits.cpu()
        if dtype == "bfloat16" and job["timed_tokens"]:
            found["tokens_per_s"] = _tokens_per_second(torch, model, ids, job["timed_tokens"])
        module = sys.modules[type(model).__module__]
        found["file"], found["overlay"] = module.__file__, getattr(module, "__amd_overlay__", None)
    save_file({key: value.contiguous() for key, value in tensors.items()}, Path(job["outputs"]) / f"{name}.safetensors")
    return found


def _generate(model: Any, ids: Any, count: int) -> tuple[Any, Any]:
    import torch

    out = model.generate(
        ids, max_new_tokens=count, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
    )
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)


def _tokens_per_second(torch: Any, model: Any, ids: Any, count: int) -> float:
    """Return the best of several greedy generates, prompt included; first calls have happened before.

    The best, because whatever else runs on the machine can only make a run slower. On a CPU the clock is the
    process's own CPU time, for the same reason; on a GPU it is the wall clock.
    """
    clock = time.perf_counter if ids.device.type == "cuda" else time.process_time
    seconds = []
    with torch.inference_mode():
        for _ in range(TIMED_RUNS):
            start = clock()
            _generate(model, ids, count)
            if ids.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - start)
    return count / min(seconds)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_bytes()))
