"""Tensor parallelism under torchrun: two processes hold half of each matrix and print what one process would.

    overlay run -- python -m torch.distributed.run --standalone --nproc-per-node 2 \\
        examples/tensor_parallel.py --model ./model
    python examples/tensor_parallel.py --model ./model          # one process, to compare with

The plan is transformers' own (`tp_plan="auto"`). The ranks inherit the import hook of `overlay run`. Sharded layers
carry hooks of transformers, so packed projections decline and say so; norms and rope run through amd_ops on each rank.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder that save_pretrained wrote")
    options = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    plan = {"tp_plan": "auto"} if ranks > 1 else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, **plan).eval()
    prompt = torch.arange(3, 19).reshape(1, -1)
    with torch.inference_mode():
        logits = model(prompt).logits[0, -1].float()
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"ranks": ranks, "next": int(logits.argmax()), "logits": logits[:8].tolist()}))
        if "amd_ops" in sys.modules:
            print(sys.modules["amd_ops"].report())
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
