"""From nothing to a first token: how long starting, opening and a first step take, cold and warm.

Every figure is a process of its own. `cold`: the file's pages are given back to the system before, so they
come from the disk (on a machine that lets go of them); `warm`: they are in memory. In seconds: start (the
interpreter and `import gemmule`), open (the modules and the model, mapped and checked), first (a prompt of 16
tokens and its token); share: the time in which the machine can read the weights once (as `gemmule bench
roofline` found) of `first`, 0 where it was not measured.

Usage: python benchmarks/engine/load.py MODEL.gguf ... [--repeat 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gemmule._bench.work import Work
from gemmule._roofline import kept_roofline

_CHILD = """
import sys, time
import gemmule
imported = time.time()
model = gemmule.Model(sys.argv[1], n_ctx=512)
opened = time.time()
model.generate([2] + [500] * 15, max_tokens=1, temperature=0)
print(imported, opened, time.time(), model.n_threads)
"""


def forget(path: Path) -> None:
    """Asks the system to drop the file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_start(path: Path) -> dict[str, float]:
    """The seconds of one process, and its threads."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], check=True, capture_output=True, text=True
    )
    imported, opened, answered, n_threads = map(float, done.stdout.split())
    return {
        "start": imported - start,
        "open": opened - imported,
        "first": answered - opened,
        "threads": n_threads,
    }


def measure(path: Path, repeat: int) -> list[dict[str, object]]:
    """A row for cold and one for warm starts: medians."""
    roofline, rows = kept_roofline(), []
    for state in ("cold", "warm"):
        runs = []
        for _ in range(repeat):
            if state == "cold":
                forget(path)
            runs.append(one_start(path))
        median = {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}
        threads = int(median.pop("threads"))
        bandwidth = roofline.bandwidth(threads) if roofline else 0.0
        share = Work.of(str(path)).weight_bytes / (1e9 * bandwidth) / median["first"] if bandwidth else 0.0
        row = {"name": path.name, "state": state, "threads": threads}
        rows.append({**row, **median, "share": round(share, 4)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for path in args.models:
        for row in measure(path, args.repeat):
            shown = " ".join(f"{row[key]:8.3f} s {key}" for key in ("start", "open", "first"))
            print(
                json.dumps(row)
                if args.json
                else f"{path.name:30} {row['state']:5}{shown}  {row['share']:.2f}"
            )


if __name__ == "__main__":
    main()
