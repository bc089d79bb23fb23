"""What `overlay synth parallel` gives with the offline provider: yield, labels, ranges, duplicates, form, speed.

python benchmarks/bench_synth.py [SAMPLES] [BACKEND] [FOLDER]     default: 100 aot_eager, in a folder that is removed

FOLDER may hold an unfinished run of the same numbers: it is gone on with. Exit 1 when a promise is not held.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

RANGES = {"core": (1, 5), "compound": (0, 4), "supporting": (2, 10)}
_BLOCK = re.compile(r"class \w+Block\d*\(|for block in self\.|for _ in range\(")


def main(samples: int, backend: str, folder: Path) -> int:
    """Run the command and look at everything that it wrote."""
    command = [sys.executable, "-m", "rocm_overlay.synth", "parallel", "--json", f"num_total_samples={samples}"]
    command += ["num_worker=2", f"compile_backend={backend}", f"output_dir={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    stats = json.loads(done.stdout)["stats"]
    records = [json.loads(line) for path in (folder / ".synth").glob("*.jsonl") for line in _lines(path)]
    valid = [record for record in records if record["status"] == "valid"]
    held = _report(samples, backend, stats, valid, len(list(folder.glob("*.py"))))
    return 0 if held else 1


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[1:]


def _report(samples: int, backend: str, stats: dict[str, Any], valid: list[dict[str, Any]], files: int) -> bool:
    requested = [Counter(record["attempts"][-1]["requested"]) for record in valid]
    lacking = sum(bool(asked - Counter(record["operators"])) for asked, record in zip(requested, valid, strict=True))
    outside = sum(
        not low <= record["planned"][kind] <= high for record in valid for kind, (low, high) in RANGES.items()
    )
    duplicates = sum(len(valid) - len({record[key] for record in valid}) for key in ("graph", "name", "shape"))
    own = sum(bool(_BLOCK.search(record["source"])) for record in valid) / len(valid)
    given = sum("return [], {}" not in record["source"] for record in valid) / len(valid)
    bridges = stats["bridges"] / (stats["bridges"] + sum(sum(asked.values()) for asked in requested))
    near = stats["categories"].get("quality", 0) / stats["attempts"]
    print(f"programs       {stats['valid']} valid of {samples} ({stats['yield_per_slot']:.1%}), {files} files")
    print(f"attempts       {stats['attempts']}, {stats['yield_per_attempt']:.1%} valid; {stats['categories']}")
    print(f"labels         {lacking} programs lack a planned operator, {outside} counts outside their range")
    print(f"duplicates     {duplicates} (graph, name, syntax tree)")
    print(f"form           {own:.1%} with classes of their own or loops, {given:.1%} with constructor arguments")
    print(f"bridges        {bridges:.1%} of the operators")
    print(f"near level 2   {near:.2%} of the attempts")
    print(f"operators      {stats['distinct_operators']} of the lists, {stats['distinct_torch_calls']} torch calls")
    print(f"rate           {stats['per_second']} per second with 2 workers, validated eager and with {backend}")
    exact = not lacking and not outside and not duplicates and files == stats["valid"] and near <= 0.02
    return exact and own >= 0.4 and given >= 0.4 and bridges <= 0.08 and stats["valid"] >= 0.95 * samples


if __name__ == "__main__":
    given = sys.argv[1:]
    number, name = int(given[0]) if given else 100, given[1] if len(given) > 1 else "aot_eager"
    if len(given) > 2:
        sys.exit(main(number, name, Path(given[2])))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(number, name, Path(made)))
