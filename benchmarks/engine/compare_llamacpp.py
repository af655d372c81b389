"""Speed of gemmule and llama.cpp on one model: pp512 and tg128 tokens/s, load time, peak memory.

Every measurement runs in a fresh process, and the engines alternate (A B A B ...), so a machine that
slows down does so for both. pp512: 512 random ids in one call, logits of the last only, after one
discarded warm-up; tg128: 128 calls of one token each, after the 512. Load: open to first usable session.
KV cache f16 in both. Peak memory: ru_maxrss of the process minus its value before the load (memory-mapped
weights count).

Usage: python benchmarks/engine/compare_llamacpp.py MODEL.gguf --threads 1 2 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

N_PROMPT, N_GENERATED = 512, 128
ENGINES = ("gemmule", "llama.cpp")


def measure(engine: str, path: str, n_threads: int, isa: str) -> dict[str, Any]:
    """Measure one engine in this process."""
    n_ctx = N_PROMPT + N_GENERATED
    append: Any
    if engine == "gemmule":
        from gemmule import _core

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        model = _core.Model(path, n_threads=n_threads, isa=isa)
        session = model.session(n_ctx=n_ctx, kv_type="f16")
        load_s = time.perf_counter() - start
        n_vocab = model.n_vocab

        def append(ids: np.ndarray) -> np.ndarray:
            session.append(ids)
            return np.asarray(session.logits())

        def clear() -> None:
            session.rewind(0)
    else:
        from llamacpp import LlamaCpp

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        other = LlamaCpp(path, n_ctx=n_ctx, n_threads=n_threads, n_batch=N_PROMPT)
        load_s = time.perf_counter() - start
        n_vocab = other.n_vocab
        append, clear = other.append, other.clear
    rng = np.random.default_rng(7)
    ids = rng.integers(8, n_vocab, N_PROMPT + N_GENERATED).astype(np.int32)
    ids[0] = 2
    append(ids[:N_PROMPT])  # warm-up: page in the weights, start the threads
    append(ids[N_PROMPT : N_PROMPT + 1])
    clear()
    start = time.perf_counter()
    append(ids[:N_PROMPT])
    pp_s = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(N_PROMPT, N_PROMPT + N_GENERATED):
        logits = append(ids[i : i + 1])
    tg_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not np.isfinite(logits).all():
        raise RuntimeError(f"{engine} returned logits that are not finite")
    return {
        "engine": engine,
        "threads": n_threads,
        "pp512": N_PROMPT / pp_s,
        "tg128": N_GENERATED / tg_s,
        "load_s": load_s,
        "peak_mib": (peak - before) / 1024,
        "load_average": os.getloadavg()[0],
    }


def table(rows: list[dict[str, Any]], engines: list[str]) -> str:
    """A Markdown table of medians; ratio = gemmule / llama.cpp."""
    lines = [
        "| threads | measure | " + " | ".join(engines) + " | ratio |",
        "|---|---|" + "---|" * (len(engines) + 1),
    ]
    for threads in sorted({row["threads"] for row in rows}):
        for key in ("pp512", "tg128", "load_s", "peak_mib"):
            medians = [
                statistics.median(r[key] for r in rows if r["engine"] == e and r["threads"] == threads)
                for e in engines
            ]
            ratio = f"{medians[0] / medians[1]:.3f}" if len(medians) == 2 and medians[1] else "-"
            lines.append(
                f"| {threads} | {key} | " + " | ".join(f"{m:.3f}" for m in medians) + f" | {ratio} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--isa", default="", help="instruction set of gemmule, empty = best")
    parser.add_argument(
        "--one", choices=ENGINES, help="measure one engine in this process and print one JSON line"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.model, args.threads[0], args.isa)))
        return
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        for _ in range(args.repeats):
            for engine in args.engines:
                command = [sys.executable, str(Path(__file__).resolve()), args.model, "--one", engine]
                command += ["--threads", str(threads), "--isa", args.isa]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise RuntimeError(f"{engine} failed: {done.stderr[-2000:]}")
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows, args.engines))


if __name__ == "__main__":
    main()
