"""The whole story on this machine: install, run with toggles off and on, compare with stock, revert, prove it.

``make demo`` runs it in a virtual environment of its own. Every model run is a fresh process. Stock is measured twice:
once before the installation, on the untouched tree, and then between the overlaid runs, where the stock texts copied
before the installation are served by the import hook; both must give the same bits. Exits 1 when anything is not as it
must be, and always reverts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "demo-out"
ARCHITECTURES = ("llama", "qwen3")
ON = {"USE_FUSED_PROJECTIONS": "1", "USE_OPTIMIZED_OPS": "1", "USE_AITER_ATTENTION": "1"}
VARIANTS: dict[str, dict[str, str]] = {"stock": {}, "off": {}, "on": ON}
REPEATS = 4
PARITY_TOKENS = 24
WARM_TOKENS = 4
TIMED_TOKENS = 16


@dataclass
class Demo:
    """What has been found so far; ``failures`` decide the exit status."""

    failures: list[str] = field(default_factory=list)
    tokens_per_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def check(self, ok: bool, text: str) -> bool:
        """Print a statement with its outcome and remember a failure."""
        print(f"  {'ok    ' if ok else 'FAILED'}  {text}", flush=True)
        if not ok:
            self.failures.append(text)
        return ok


def main() -> int:
    start = time.perf_counter()
    demo = Demo()
    package = Path(find_spec("transformers").origin).parent  # type: ignore[union-attr, arg-type]
    _clean_output()
    title("1. Two seeded models, built from their configuration (bf16, grouped-query attention, head size 128)")
    build()
    before = digest(package)
    print(f"  transformers tree: {package}\n  {len(before)} files and folders, digest {summary(before)}")
    copy_stock(package)

    title("2. Stock, before anything is installed")
    found = run("before", {}, dtypes=("bfloat16", "float32"), timed=0)
    for architecture, one in found["models"].items():
        demo.check(one["overlay"] is None, f"{architecture}: ran {relative(one['file'], package)}, no overlay")
    versions = f"torch {found['torch']}, transformers {found['transformers']}"
    print(f"  {versions}, device {found['device']}, {found['threads']} thread(s)")
    try:
        install(demo)
        compare(demo)
        speed(demo)
    finally:
        revert(demo, package, before)
    if not demo.failures:
        shutil.rmtree(OUT)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    for failure in demo.failures:
        print(f"FAILED: {failure}")
    return 1 if demo.failures else 0


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def relative(path: str, package: Path) -> str:
    return os.path.relpath(path, package) if Path(path).is_relative_to(package) else Path(path).name


def _clean_output() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()


def build() -> None:
    """Build and save the models in a process of its own, so that this one never imports transformers."""
    folder = OUT / "models"
    code = (
        f"import pathlib, tiny_models as t; [t.save_demo(a, pathlib.Path({str(folder)!r}, a)) for a in {ARCHITECTURES}]"
    )
    child([sys.executable, "-c", code], {"PYTHONPATH": str(HERE)})
    for architecture in ARCHITECTURES:
        size = sum(path.stat().st_size for path in (folder / architecture).glob("*.safetensors"))
        config = json.loads((folder / architecture / "config.json").read_text())
        layers = f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}"
        heads = f"{config['num_attention_heads']} heads, {config['num_key_value_heads']} key/value heads"
        print(f"  {architecture}: {layers}, {heads}, {size / 1e6:.0f} MB")


def digest(package: Path) -> dict[str, tuple[Any, ...]]:
    """Return for every path of the tree: content hash, mode, owner, group, and a file's time; without bytecode."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(package):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in [Path(folder), *(Path(folder, name) for name in files if not name.endswith(".pyc"))]:
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            moment = status.st_mtime_ns if path.is_file() else 0  # a folder's time moves with every temporary file
            found[str(path.relative_to(package))] = (content, status.st_mode, status.st_uid, status.st_gid, moment)
    return found


def summary(found: dict[str, tuple[Any, ...]]) -> str:
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def copy_stock(package: Path) -> None:
    """Keep the stock texts for the runs that are interleaved with the overlaid ones."""
    for architecture in ARCHITECTURES:
        name = f"models/{architecture}/modeling_{architecture}.py"
        (OUT / "stock" / name).parent.mkdir(parents=True)
        shutil.copyfile(package / name, OUT / "stock" / name)


def child(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command without any toggle of the caller's environment, as in the activated virtual environment."""
    dropped = (
        "USE_AITER",
        "USE_OPTIMIZED",
        "USE_FUSED",
        "USE_PRESHUFFLE",
        "PRESHUFFLE",
        "FORCE_EAGER",
        "AMD_OPS",
        "CONDA_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    # One thread: on shared cores, threads that wait for each other make every time a matter of chance.
    kept.setdefault("OMP_NUM_THREADS", "1")
    kept.update({"VIRTUAL_ENV": sys.prefix, "PATH": path, "HF_HUB_OFFLINE": "1", **environment})
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"{' '.join(command[:4])} ended with status {done.returncode}")
    return done


def overlay(*arguments: str) -> str:
    """Run the ``overlay`` program and return what it printed, indented."""
    print(f"  $ overlay {' '.join(arguments)}", flush=True)
    script = shutil.which("overlay", path=str(Path(sys.executable).parent))
    command = [script] if script else [sys.executable, "-m", "rocm_overlay"]
    done = child([*command, *arguments], {})
    text = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines())
    print(text, flush=True)
    return text


def run(label: str, toggles: dict[str, str], *, dtypes: tuple[str, ...], timed: int) -> dict[str, Any]:
    """Run both models in one fresh process and return what it found; its tensors lie in ``OUT/<label>``."""
    texts = {
        f"transformers.models.{name}.modeling_{name}": str(OUT / "stock" / f"models/{name}/modeling_{name}.py")
        for name in ARCHITECTURES
    }
    (OUT / label).mkdir(exist_ok=True)
    job = {
        "models": {name: str(OUT / "models" / name) for name in ARCHITECTURES},
        "stock": texts if label == "stock" else {},
        "dtypes": dtypes,
        "parity_tokens": PARITY_TOKENS if "float32" in dtypes else WARM_TOKENS,
        "timed_tokens": timed,
        "outputs": str(OUT / label),
        "result": str(OUT / "result.json"),
    }
    (OUT / "job.json").write_text(json.dumps(job))
    child([sys.executable, str(HERE / "demo_run.py"), str(OUT / "job.json")], toggles)
    return dict(json.loads((OUT / "result.json").read_text()))


def install(demo: Demo) -> None:
    title("3. Install")
    overlay("install", "--transformers", "4.57")
    demo.check("APPLIED" in overlay("status"), "status says APPLIED")


def compare(demo: Demo) -> None:
    """Run every variant once in both dtypes and compare with stock as it was before the installation."""
    toggles = " ".join(f"{name}={value}" for name, value in ON.items())
    title(f"4. The same model? (against stock before the installation; 'on' is {toggles})")
    report = ""
    rows = []
    for variant in VARIANTS:
        found = run(variant, VARIANTS[variant], dtypes=("bfloat16", "float32"), timed=TIMED_TOKENS)
        for architecture, one in found["models"].items():
            demo.tokens_per_s[architecture, variant] = [one["tokens_per_s"]]
            which = "the stock text" if one["overlay"] is None else f"the overlay of {one['overlay'][:19]}"
            demo.check((one["overlay"] is None) == (variant == "stock"), f"{architecture} {variant}: ran {which}")
            for dtype in ("bfloat16", "float32"):
                rows.append((architecture, variant, dtype, *judged(demo, architecture, variant, dtype)))
        calls = sum(op["calls"] for op in found["calls"])
        demo.check((calls > 0) == (variant == "on"), f"{variant}: {calls} calls of amd_ops")
        report = found["report"]
    print(f"\n  {'model':<7} {'run':<6} {'dtype':<9} {'same bits':<10} {'max rel':>9} {'allowed':>8}  greedy tokens")
    for row in sorted(rows, key=lambda row: (row[0], list(VARIANTS).index(row[1]))):
        print(f"  {row[0]:<7} {row[1]:<6} {row[2]:<9} {row[3]:<10} {row[4]:>9} {row[5]:>8}  {row[6]}")
    title("5. Which tier ran each op with toggles on (both models), and why a higher one did not")
    print("\n".join(f"  {line}" for line in report.splitlines()))


def judged(demo: Demo, architecture: str, variant: str, dtype: str) -> tuple[str, str, str, str]:
    """Return the cells of a row: same bits, max rel, allowed, tokens."""
    from rocm_overlay.verify.compare import judge
    from safetensors.torch import load_file

    both = [load_file(OUT / label / f"{architecture}.safetensors") for label in ("before", variant)]
    cut = [{name.partition(".")[2]: value for name, value in side.items() if name.startswith(dtype)} for side in both]
    verdict = judge(*cut, tier="torch", dtype=dtype, bitwise=variant != "on")
    if not verdict.ok:
        demo.check(False, f"{architecture} {variant} {dtype}: {verdict.deviating[0]}")
    tokens = verdict.tokens
    assert tokens is not None
    agreed = f"{PARITY_TOKENS} of {PARITY_TOKENS} equal"
    if tokens.first_token is not None:
        agreed = f"differ from position {tokens.first_token[1]}"
    if tokens.near_tie:
        agreed += " (a near tie of stock's own scores)"
    return ("yes" if verdict.bitwise else "no", f"{verdict.worst.max_rel:.1e}", f"{verdict.allowed:.0e}", agreed)


def speed(demo: Demo) -> None:
    """Time all variants in turn, each in fresh processes, and print ratios against stock.

    'off' executes the same operations as stock, so it is the control: what differs between these two is noise, and
    only what lies outside both of them is called a difference.
    """
    title(f"6. Tokens per second: bf16, batch 1, {TIMED_TOKENS} new tokens, {REPEATS} interleaved fresh processes each")
    order = list(VARIANTS)
    for repeat in range(1, REPEATS):
        for variant in order[repeat % len(order) :] + order[: repeat % len(order)]:
            found = run(variant, VARIANTS[variant], dtypes=("bfloat16",), timed=TIMED_TOKENS)
            for architecture, one in found["models"].items():
                demo.tokens_per_s[architecture, variant].append(one["tokens_per_s"])
    print(f"  {'model':<7} {'run':<6} {'median':>8} {'min':>8} {'max':>8} {'of stock':>9}")
    for architecture in ARCHITECTURES:
        values = {variant: demo.tokens_per_s[architecture, variant] for variant in VARIANTS}
        for variant, own in values.items():
            numbers = " ".join(f"{value:>8.1f}" for value in (statistics.median(own), min(own), max(own)))
            ratio = statistics.median(own) / statistics.median(values["stock"])
            print(f"  {architecture:<7} {variant:<6} {numbers} {ratio:>9.2f}  {remark(variant, values)}".rstrip())
    if found["device"] == "cpu":
        print("  Seconds are CPU time of one thread. No AMD kernel ran: these numbers say nothing about a GPU.")


def remark(variant: str, values: dict[str, list[float]]) -> str:
    """Say what a row means: the control, a difference, or none that can be told from noise."""
    if variant == "stock":
        return ""
    if variant == "off":
        return "(control: the same operations as stock, so this is the noise)"
    both = values["stock"] + values["off"]
    if min(values[variant]) > max(both):
        return "(faster: its range lies above those of stock and control)"
    if max(values[variant]) < min(both):
        return "(slower: its range lies below those of stock and control)"
    return "(ranges overlap: no speed-up is claimed)"


def revert(demo: Demo, package: Path, before: dict[str, tuple[Any, ...]]) -> None:
    title("7. Revert")
    overlay("revert")
    demo.check("STOCK" in overlay("status"), "status says STOCK")
    after = digest(package)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    demo.check(after == before, f"tree digest {summary(after)} equals the one at the start {summary(before)}")
    for name in changed[:10]:
        print(f"    differs: {name}: {before.get(name)} -> {after.get(name)}")


if __name__ == "__main__":
    sys.exit(main())
