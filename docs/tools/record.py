"""Records docs/pictures/terminal.svg from a real run: install, generate with toggles, verify, revert.

    OVERLAY_TEST_WHEELS=.cache/wheels python docs/tools/record.py

The commands run in a fresh environment with transformers 4.57.6. Only the name of the temporary folder is shortened;
what is shown is what they printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.docs.test_pages import add_command  # noqa: E402 - the folder of the repository has to be on the path first
from tests.docs.worked import environ  # noqa: E402
from tests.e2e import environments  # noqa: E402

COLUMNS = 160
COMMANDS = (
    "overlay install --transformers 4.57 --models llama,qwen3",
    "USE_OPTIMIZED_OPS=1 USE_FUSED_PROJECTIONS=1 python generate.py | head -n 16",
    "overlay verify --model model --tiers torch --cases prefill,greedy",
    "overlay revert",
)
HIDDEN = ("note: other copies on the path",)  # the environment of this script, which an ordinary one has not


def page_file(title: str) -> str:
    """Return the program of that name from the quick start."""
    found = re.search(
        rf'```python title="{re.escape(title)}"\n(.*?)```', (ROOT / "docs/index.md").read_text(), re.DOTALL
    )
    assert found is not None
    return found[1]


def prepare(folder: Path) -> dict[str, str]:
    """Make the environment and the model; return the reader's variables."""
    (wheel,) = Path(os.environ["OVERLAY_TEST_WHEELS"]).glob("transformers-4.57.6-*.whl")
    made = environments.make(folder / ".venv")
    made.share(amd_ops=True)
    environments.uv_install(made, wheel, folder / "cache", "copy")
    add_command(made.python)
    for title in ("make_model.py", "generate.py"):
        (folder / title).write_text(page_file(title))
    variables = environ(made.python, COLUMNS=str(COLUMNS), PYTHONWARNINGS="ignore")
    subprocess.run(["python", "make_model.py"], cwd=folder, env=variables, check=True, capture_output=True)
    return variables


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        variables = prepare(folder)
        for command in COMMANDS:
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=variables, text=True, check=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            console.print(Text(f"$ {command}", style="bold green"))
            lines = done.stdout.replace(str(folder), "~").splitlines()
            shown = [line for line in lines if line.strip() and not line.startswith(HIDDEN)]
            console.print(Text("\n".join([*shown, ""])))
    svg = console.export_svg(title="overlay")
    # rich names fonts on another host; the page loads nothing from anywhere.
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    (ROOT / "docs/pictures/terminal.svg").write_text(svg)


if __name__ == "__main__":
    main()
