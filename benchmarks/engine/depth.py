"""Speed with a long context: prompts and single tokens behind 0, 4096, 16384 tokens, beside the peers.

Every way is a process of its own that reads random tokens in steps of 512 up to each depth, times one more
step of 512 there and then single tokens. Ways, libraries and the yardstick of the host are those of
compare.py.

Usage: python benchmarks/engine/depth.py MODEL.gguf --llama-cpp LIB --ik LIB --depths 0 4096 16384
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from compare import OURS, Gemmule, Job, Peer, yardstick

__all__ = ["main", "measure"]

_STEP = 512
_WAYS = ("gemmule-auto", "gemmule-rows", "llama.cpp", "llama.cpp-rows", "ik", "ik-rtr")


def measure(job: Job, depths: list[int]) -> list[dict[str, float]]:
    """Tokens a second at every depth, ascending, in this process: "pp" of 512 tokens, "tg" of single ones."""
    n_ctx = depths[-1] + 2 * _STEP + job.n_generated
    engine = (Gemmule if job.way in OURS else Peer)(job, n_ctx)
    ids = np.random.default_rng(11).integers(8, engine.n_vocab, n_ctx).astype(np.int32)
    engine.step(ids[:_STEP])  # pages the weights in and packs them
    engine.choose()
    engine.clear()
    at, rows = 0, []
    for depth in depths:
        while at < depth:
            n = min(_STEP, depth - at)
            engine.step(ids[at : at + n])
            at += n
        seconds = []
        for n in (_STEP, *[1] * job.n_generated):
            start = time.perf_counter()
            engine.step(ids[at : at + n])
            engine.choose()
            seconds.append(time.perf_counter() - start)
            at += n
        rows.append({"depth": depth, "pp": _STEP / seconds[0], "tg": 1 / float(np.median(seconds[1:]))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--llama-cpp", default="", help="libllama.so of llama.cpp")
    parser.add_argument("--ik", default="", help="libllama.so of ik_llama.cpp")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 4096, 16384])
    parser.add_argument("--tg", type=int, default=16, help="single tokens at each depth; the median counts")
    parser.add_argument("--kv-type", default="f16", help="peers know f16 and q8_0")
    parser.add_argument("--json", type=Path, help="file of all measurements, a line each; grows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        request = json.loads(args.child)
        print(json.dumps(measure(Job(**request["job"]), request["depths"])))
        return
    if not args.model:
        parser.error("give a model file")
    print(f"{args.model}, {args.threads} threads, cache {args.kv_type}")
    print("| way | " + " | ".join(f"pp, tg at {d}" for d in args.depths) + " | host GB/s, hash |")
    print("|---" * (len(args.depths) + 2) + "|")
    for way in args.ways:
        library = "" if way in OURS else args.ik if way.startswith("ik") else args.llama_cpp
        if way not in OURS and not library:
            continue
        job = Job(way, args.model, args.threads, _STEP, args.tg, 1, library, kv_type=args.kv_type)
        request = {"job": asdict(job), "depths": sorted(args.depths)}
        rates = yardstick()
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(request)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{way} failed: {result.stderr[-1500:]}")
        rows = json.loads(result.stdout.splitlines()[-1])
        cells = [f"{r['pp']:.1f}, {r['tg']:.2f}" for r in rows]
        print(f"| {way} | {' | '.join(cells)} | {rates[0]:.1f}, {rates[1]:.2f} |", flush=True)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(job) | {"rates": rates, "depths": rows}) + "\n")


if __name__ == "__main__":
    main()
