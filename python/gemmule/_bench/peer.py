"""llama.cpp beside us on the same file: through the library of the xllamacpp package (see engine.py), or with
a llama-bench program, whose own rows join ours.
"""

from __future__ import annotations

import json
import subprocess

from gemmule._bench.record import KIND, Row
from gemmule._bench.speed import SpeedPlan
from gemmule._errors import Error

__all__ = ["run_llama_bench"]


def run_llama_bench(program: str, path: str, plan: SpeedPlan, n_threads: int) -> list[Row]:
    """The rows of llama-bench for the plain tests of a plan."""
    options = {
        "-m": path, "-p": _list(plan.n_prompt), "-n": _list(plan.n_gen), "-d": _list(plan.n_depth),
        "-t": str(n_threads), "-r": str(plan.rounds), "-o": "jsonl",
    }  # fmt: skip
    command = [program, *(word for pair in options.items() for word in pair)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Error(f"{program} failed: {last}")
    rows: list[Row] = [json.loads(line) for line in lines]
    return [{**row, KIND: "speed", "gm_engine": "llama.cpp"} for row in rows]


def _list(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
