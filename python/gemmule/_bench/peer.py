"""llama.cpp beside us on the same file: through the library of the xllamacpp package (see engine.py), or with
a llama-bench program, whose own rows join ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gemmule._bench.child import lines_of
from gemmule._bench.record import KIND, Row
from gemmule._bench.speed import SpeedPlan

__all__ = ["run_llama_bench"]


def run_llama_bench(program: str, path: str, plan: SpeedPlan, n_threads: int) -> Iterator[Row]:
    """The rows of llama-bench for the plain tests of a plan, as it prints them."""
    from gemmule import inspect

    options = {
        "-m": path, "-p": _list(plan.n_prompt), "-n": _list(plan.n_gen), "-d": _list(plan.n_depth),
        "-t": str(n_threads), "-r": str(plan.rounds), "-o": "jsonl",
    }  # fmt: skip
    command = [program, *(word for pair in options.items() for word in pair)]
    more = {KIND: "speed", "gm_engine": "llama.cpp", "gm_quantization": inspect(path).quantization}
    for line in lines_of(command, program):
        if line.startswith("{"):
            yield {**json.loads(line), **more, "model_filename": Path(path).name}


def _list(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers or (0,)))
