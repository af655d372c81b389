"""How many prompt tokens each turn of a chat with thinking runs, in gemmule and in llama.cpp's server.

The conversation is made of the token ids of a text file: a turn is --ask new tokens, an answer --thought
tokens of thinking (--long in every third turn) and --answer tokens that stay. The next prompt leaves out the
thinking, as chat templates do, so it parts from what was generated right where the last prompt ended. Both
programs generate freely; of what they said only the number of tokens counts, so both see the same prompts.
"fair" is the least possible: the answer given back and the new turn.

Usage: python benchmarks/engine/turns.py MODEL.gguf TEXT [--turns 20] [--way both|gemmule|llama.cpp]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemmule

Turn = Callable[[list[int], int], tuple[int, float]]  # (prompt, tokens to generate) -> tokens run, seconds


def gemmule_way(path: Path, n_ctx: int, n_threads: int) -> Turn:
    model = gemmule.Model(path, n_ctx=n_ctx, n_threads=n_threads)
    session = model.session()
    never = dict.fromkeys(model.tokenizer.eos_ids, -math.inf)

    def turn(prompt: list[int], n_generate: int) -> tuple[int, float]:
        held = session.tokens.tolist()
        pairs = zip(held, prompt, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(prompt)))
        session.rewind(min(same, len(prompt) - 1))
        reply = session.generate(
            prompt[session.n_tokens :], max_tokens=n_generate, temperature=0, logit_bias=never
        )
        return reply.usage.prompt_tokens - reply.usage.cached_tokens, reply.timings.prompt_ms / 1e3

    return turn


def llamacpp_way(path: Path, n_ctx: int, n_threads: int) -> Turn:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = n_ctx, 1, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    server = xllamacpp.Server(params)

    def turn(prompt: list[int], n_generate: int) -> tuple[int, float]:
        answers: list[Any] = []
        request = {
            "prompt": prompt, "n_predict": n_generate, "temperature": 0, "ignore_eos": True,
            "cache_prompt": True,
        }  # fmt: skip
        server.handle_completions(json.dumps(request), answers.append)
        timings = json.loads(answers[-1])["timings"]
        return timings["prompt_n"], timings["prompt_ms"] / 1e3

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--way", choices=("both", "gemmule", "llama.cpp"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    for name, value in (("turns", 20), ("ask", 40), ("thought", 150), ("long", 700), ("answer", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    ids = gemmule.Model(args.model, n_ctx=256).tokenizer.encode(args.text.read_text("utf-8"), add_bos=False)
    ways = {"gemmule": gemmule_way, "llama.cpp": llamacpp_way}
    chosen = {name: way for name, way in ways.items() if args.way in ("both", name)}
    n_ctx = args.turns * (args.ask + args.answer) + args.long + args.answer + 256
    turns = {name: way(args.model, n_ctx, args.threads) for name, way in chosen.items()}
    print("| turn | prompt | thought | fair |", " | ".join(f"{name} runs" for name in turns), "|")
    print("|" + "---:|" * (4 + len(turns)))
    prompt, fair, at = [2], 1, 0
    totals = dict.fromkeys(turns, 0)
    seconds = dict.fromkeys(turns, 0.0)
    began = time.perf_counter()
    for number in range(1, args.turns + 1):
        prompt += ids[at : at + args.ask]
        n_thought = args.long if number % 3 == 2 else args.thought
        fair += args.ask
        cells = []
        for name, turn in turns.items():
            n_run, n_seconds = turn(list(prompt), n_thought + args.answer)
            totals[name] += n_run
            seconds[name] += n_seconds
            cells.append(str(n_run))
        print(f"| {number} | {len(prompt)} | {n_thought} | {fair} |", " | ".join(cells), "|", flush=True)
        prompt += ids[at + args.ask : at + args.ask + args.answer]
        fair, at = args.answer, at + args.ask + args.answer
    for name in turns:
        print(f"{name}: {totals[name]} prompt tokens run, {seconds[name]:.1f} s for them")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
