"""Find out what is right and faster on this machine, then run with exactly that.

    python examples/qualify_and_run.py --model ./model --output profile.json

1. `overlay qualify` captures what the model computes, tries every tier against it, times what is right, and writes a
   profile.
2. The same script runs with `AMD_OPS=profile.json`: what was kept is on, and nothing else was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
prompt = torch.arange(3, 19).reshape(1, -1)
tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
import amd_ops
settings = amd_ops.settings()
print(json.dumps({"tokens": tokens[0, 16:].tolist(), "profile": settings.profile, "settings": settings.as_dict()}))
"""


def run(*command: str, **variables: str) -> str:
    """Run a command, with its messages shown, and return what it printed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    )
    return done.stdout


def generate(model: str, profile: str) -> dict[str, object]:
    """Generate with the overlays served by the hook, under a profile file or ``off``."""
    overlay = (sys.executable, "-m", "rocm_overlay", "run", "--python", sys.executable, "--")
    found: dict[str, object] = json.loads(
        run(*overlay, sys.executable, "-c", GENERATE, model, AMD_OPS=profile).splitlines()[-1]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder that save_pretrained wrote")
    parser.add_argument("--output", default="profile.json")
    options = parser.parse_args()
    qualify = (sys.executable, "-m", "rocm_overlay", "qualify", "--model", options.model, "-o", options.output)
    run(*qualify, "--python", sys.executable, "--no-register")
    profile = json.loads(Path(options.output).read_text())
    print("kept:", json.dumps(profile["toggles"]))
    stock, chosen = generate(options.model, "off"), generate(options.model, str(Path(options.output).resolve()))
    print(json.dumps({"same tokens": stock["tokens"] == chosen["tokens"], "profile": chosen["profile"]}))


if __name__ == "__main__":
    main()
