"""Yield and speed of `overlay synth parallel` with the offline provider: programs per second, duplicates, operators.

python benchmarks/bench_synth.py [SAMPLES] [BACKEND] [FOLDER]     default: 100 aot_eager, in a folder that is removed
"""

from __future__ import annotations

import collections
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(samples: int, backend: str, folder: Path) -> int:
    """Run the command and check what it wrote; 1 when a promise is not held."""
    command = [sys.executable, "-m", "rocm_overlay.synth", "parallel", "--json", f"num_total_samples={samples}"]
    command += ["num_worker=2", f"compile_backend={backend}", f"output_dir={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    stats = json.loads(done.stdout)["stats"]
    files = sorted(folder.glob("*.py"))
    texts = collections.Counter(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    lines = [json.loads(line) for line in (folder / ".synth-journal.jsonl").read_text().splitlines()[1:]]
    valid = [line for line in lines if line["status"] == "valid"]
    signatures = {line["signature"] for line in valid}
    duplicates = 2 * len(valid) - len(signatures) - len({line["shape"] for line in valid}) + len(files) - len(texts)
    print(f"programs       {stats['valid']} valid of {samples} ({stats['yield_per_slot']:.1%}), {len(files)} files")
    print(f"attempts       {stats['attempts']}, {stats['yield_per_attempt']:.1%} valid; {stats['categories']}")
    print(f"duplicates     {duplicates}")
    print(f"operators      {stats['distinct_operators']} of the lists, {stats['distinct_torch_calls']} torch calls")
    print(f"rate           {stats['per_second']} per second with 2 workers, validated eager and with {backend}")
    held = stats["valid"] >= 0.95 * samples and not duplicates and len(files) == stats["valid"]
    return 0 if held and (samples < 2000 or stats["distinct_operators"] >= 150) else 1


if __name__ == "__main__":
    given = sys.argv[1:]
    number, name = int(given[0]) if given else 100, given[1] if len(given) > 1 else "aot_eager"
    if len(given) > 2:
        sys.exit(main(number, name, Path(given[2])))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(number, name, Path(made)))
