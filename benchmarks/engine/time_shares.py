"""Where the time of decoding or of a prompt goes: shares of the samples of `perf record`, by kind of work.

Needs `perf` (package linux-perf); its software clock also works in virtual machines without hardware
counters. The workload runs in a child process, long enough that loading hardly counts; its share is printed
as "python". A waiting thread shows as "thread pool" while it spins, and not at all while it sleeps.

Usage: python benchmarks/engine/time_shares.py MODEL.gguf decode --threads 1 [--seconds 10] [--isa avx2]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

__all__ = ["main", "shares", "work"]

# The first pattern that occurs in "library symbol" names the kind.
_KINDS = (
    (r"ThreadPool::(?!run<)", "thread pool"),
    (r"pack_\w+::pack", "packing"),
    (r"(packed|quant|tile|float)\w*::|matmul", "matmul"),
    (r"score_|value_|attend|softmax|combine", "attention"),
    (r"gelu|norm|rope|add_scaled|softcap|f32_to_f16", "small kernels"),
    (r"quantize_q8", "quantize activations"),
    (r"Sampler|logprob", "sampling"),
    (r"_core\S* ", "rest of the engine"),
    (r"^\[kernel", "kernel"),
    (r"", "python and libraries"),
)
_FORMAT = re.compile(r"::(\w+(?:<\d+>)?)(?:, \d+)?>")


def work(path: str, phase: str, threads: int, seconds: float, isa: str) -> None:
    """Decode, or run a prompt of 512 tokens again and again."""
    from gemmule import _core

    model = _core.Model(path, n_threads=threads, isa=isa)
    session = model.session(n_ctx=1024)
    greedy = _core.Sampler(temperature=0.0)
    ids = np.random.default_rng(7).integers(8, model.n_vocab, 1000).astype(np.int32)
    n_prompt = 16 if phase == "decode" else 512
    end = time.perf_counter() + seconds
    at = len(ids)
    while time.perf_counter() < end:
        if at == len(ids) or phase == "prefill":
            session.rewind(0)
            session.append(ids[:n_prompt])
            at = n_prompt
        else:
            session.append(ids[at : at + 1])
            at += 1
        session.sample(greedy)


def kind_of(library: str, symbol: str) -> str:
    """The kind of work of a function; matmuls with the format in their template arguments."""
    text = f"{library} {symbol}"
    kind = next(name for pattern, name in _KINDS if re.search(pattern, text))
    formats = _FORMAT.findall(symbol) if kind == "matmul" else []
    return f"matmul {formats[-1]}" if formats else kind


def shares(data: str) -> dict[str, float]:
    """Percent by kind, largest first."""
    command = [
        "perf",
        "report",
        "-i",
        data,
        "--stdio",
        "--no-children",
        "-F",
        "overhead,dso,symbol",
        "-t",
        "|",
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = defaultdict(float)
    for line in report.splitlines():
        if line.startswith("#") or line.count("|") < 2:
            continue
        percent, library, symbol = line.split("|", 2)
        found[kind_of(library.strip(), symbol.strip())] += float(percent.strip().rstrip("%"))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("phase", choices=["decode", "prefill"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--isa", default="")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.model, args.phase, args.threads, args.seconds, args.isa)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        child = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--work"]
        subprocess.run(
            ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-o", data, *child], check=True
        )
        for kind, percent in shares(data).items():
            if percent >= 0.05:
                print(f"{percent:6.2f} %  {kind}")


if __name__ == "__main__":
    main()
