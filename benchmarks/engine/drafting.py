"""What drafting gains: at given shares of right drafts on a model with its drafter, by lookup on real text.

The answer is given, token by token, so weights may be random and every way runs the same tokens. "steps":
drafts are scripted, each right with chance a; the drafter, by default the file's own, runs for what it costs.
First V(T), the time of a pass of T rows, and c, a step of the drafter, in passes of one row; then tokens a
second with k drafts and with as many as pay, beside what V and c predict. "lookup": the answer is a text with
some of its words replaced behind a prompt that holds the text (editing), sentences of the prompt between new
ones (quoting), or new text alone. Each way is measured in turns with the plain one; speeds are those of whole
answers. "chat": a model that has a drafter of its own answers questions of several kinds, greedily, without
drafts, with those that need no drafter (what a schema leaves no choice about, and lookup), with those of the
drafter alone, and with those that pay.

Usage: python benchmarks/engine/drafting.py steps MODEL.gguf [--drafter FILE] [--accept 0 0.7] [--json OUT]
       python benchmarks/engine/drafting.py lookup MODEL.gguf TEXT [--json OUT]
       python benchmarks/engine/drafting.py chat MODEL.gguf [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import _core
from gemmule._inspect import section_file

N_DRAFTS = 12


class Runs:
    """A model and answers that are given."""

    def __init__(self, args: argparse.Namespace) -> None:
        file = _core.GgufFile(str(args.model))
        self.model = _core.Model(file, n_threads=args.threads)
        self.drafter = None
        if args.command == "steps":
            drafter = _core.GgufFile(str(args.drafter)) if args.drafter else section_file(file, "drafter")
            self.drafter = _core.Drafter(self.model, drafter) if drafter else None
        self.sampler = _core.Sampler(temperature=0)
        self.table = _core.DraftTable()

    def session(self, prompt: list[int], n_answer: int) -> _core.Session:
        session = self.model.session(n_ctx=len(prompt) + n_answer + 1, snapshot_limit=0)
        session.append(np.array(prompt, np.int32))
        return session

    def drafting(self, **options: Any) -> _core.Drafting:
        return _core.Drafting(self.table, self.sampler, **options)

    def answer(self, session: _core.Session, tokens: list[int], drafting: _core.Drafting | None) -> float:
        """Seconds of one answer, sampling included; the session is as before afterwards."""
        n_before = session.n_tokens
        session.logits()
        start = time.perf_counter()
        for i, token in enumerate(tokens):
            if drafting is None:
                session.append(np.array([token], np.int32))
            else:
                drafting.append(session, token, most=len(tokens) - 1 - i)
            session.sample(self.sampler)
        seconds = time.perf_counter() - start
        session.rewind(n_before)
        return seconds


def pass_times(
    runs: Runs, session: _core.Session, script: list[int], rounds: int
) -> tuple[list[float], float]:
    """V(1), ... V(N_DRAFTS + 1) in seconds, and the seconds of a step of the drafter; all in turns."""
    n = session.n_tokens
    passes: list[list[float]] = [[] for _ in range(N_DRAFTS + 1)]
    steps: list[float] = []

    def one(length: int, drafter: _core.Drafter | None) -> float:
        drafting = runs.drafting(script=script, length=length, drafter=drafter, lookup=False)
        session.logits()  # and with them the hidden state that the drafter begins with
        start = time.perf_counter()
        drafting.append(session, script[n], most=length)
        seconds = time.perf_counter() - start
        session.rewind(n)
        return seconds

    for _ in range(rounds):
        for length in range(N_DRAFTS + 1):
            passes[length].append(one(max(length, 1), None) if length else plain_pass(session, script[n]))
        if runs.drafter is not None:
            steps.append((one(8, runs.drafter) - passes[8][-1]) / 8)
    return [statistics.median(times) for times in passes], statistics.median(steps) if steps else 0.0


def plain_pass(session: _core.Session, token: int) -> float:
    n = session.n_tokens
    start = time.perf_counter()
    session.append(np.array([token], np.int32))
    seconds = time.perf_counter() - start
    session.rewind(n)
    return seconds


def expected(a: float, k: int, v: list[float], c: float) -> float:
    """Tokens in the time of a pass of one row."""
    return sum(a**i for i in range(k + 1)) / ((v[k] + k * c) / v[0])


def steps(args: argparse.Namespace) -> dict[str, Any]:
    runs = Runs(args)
    rng = np.random.default_rng(1)
    prompt = rng.integers(8, runs.model.n_vocab, args.depth).tolist()
    answer = rng.integers(8, runs.model.n_vocab, args.tokens).tolist()
    script = prompt + answer + rng.integers(8, runs.model.n_vocab, 32).tolist()
    session = runs.session(prompt, args.tokens + 32)
    runs.answer(session, answer[:8], None)  # pages the weights in and packs them
    v, c = pass_times(runs, session, script, args.rounds)
    print(f"V(1) {v[0] * 1e3:.1f} ms, c {c / v[0]:.3f}")
    print("| T |" + "|".join(f" {n + 1} " for n in range(N_DRAFTS + 1)) + "|")
    print("|---" * (N_DRAFTS + 2) + "|")
    print("| V |" + "|".join(f" {seconds / v[0]:.2f} " for seconds in v) + "|\n")
    lengths = [*args.lengths, 0]
    names = [f"k={k}" for k in args.lengths] + ["auto"]
    print("| a | off, tok/s |" + "|".join(f" {name} (model) " for name in names) + "|")
    print("|---" * (len(names) + 2) + "|")
    rows = []
    for a in args.accept:
        seconds: dict[int, list[float]] = {k: [] for k in (-1, *lengths)}
        for number in range(args.repeat):
            for k in (-1, *lengths):
                drafting = None
                if k >= 0:
                    drafting = runs.drafting(
                        script=script, accept=a, seed=number, length=k, drafter=runs.drafter, lookup=False
                    )
                seconds[k].append(runs.answer(session, answer, drafting))
        plain = sum(seconds[-1])
        gains = {k: plain / sum(seconds[k]) for k in lengths}
        model = {k: expected(a, k, v, c) for k in args.lengths}
        model[0] = max(1.0, *(expected(a, k, v, c) for k in range(1, 9)))
        rows.append({"a": a, "off": args.repeat * len(answer) / plain, "gain": gains, "model": model})
        cells = "|".join(f" {gains[k]:.2f} ({model[k]:.2f}) " for k in lengths)
        print(f"| {a} | {rows[-1]['off']:.2f} |{cells}|", flush=True)
    return {"v": v, "c": c, "rows": rows}


def replaced(ids: list[int], share: float, n_vocab: int, seed: int) -> list[int]:
    """The tokens with some of them replaced by one or two others."""
    rng = random.Random(seed)
    out: list[int] = []
    for token in ids:
        change = rng.random() < share
        out += [rng.randrange(8, n_vocab) for _ in range(rng.choice((1, 2)))] if change else [token]
    return out


def quoting(ids: list[int], fresh: list[int]) -> list[int]:
    """Pieces of the prompt of 15 to 40 tokens between new ones of 10."""
    rng, out = random.Random(4), list[int]()
    for at in range(0, len(fresh) - 10, 10):
        first = rng.randrange(len(ids) - 40)
        out += fresh[at : at + 10] + ids[first : first + rng.randrange(15, 40)]
    return out


def lookup(args: argparse.Namespace) -> dict[str, Any]:
    import gemmule

    runs = Runs(args)
    ids = gemmule.Model(args.model, n_ctx=256).tokenizer.encode(args.text.read_text("utf-8"), add_bos=False)
    n = args.tokens
    text, fresh = ids[:n], ids[n : 2 * n]
    if len(fresh) < n:
        raise SystemExit(f"the text has {len(ids)} tokens; {2 * n} are needed")
    answers = {
        f"edit, {share:.0%} replaced": replaced(text, share, 200000, 3) for share in (0.0, 0.02, 0.05, 0.1)
    }
    answers["quotes between new text"] = quoting(text, fresh)[:n]
    answers["new text"] = fresh
    rows = []
    print("| answer | plain, tok/s | lookup, tok/s | gain | drafts | right |\n|---|---|---|---|---|---|")
    for name, answer in answers.items():
        session = runs.session([2, *text], len(answer))
        runs.answer(session, answer[:8], None)
        plain = with_drafts = 0.0
        for _ in range(args.repeat):
            plain += runs.answer(session, answer, None)
            drafting = runs.drafting()
            with_drafts += runs.answer(session, answer, drafting)
        count = args.repeat * len(answer)
        row = {
            "answer": name, "plain": count / plain, "lookup": count / with_drafts,
            "gain": plain / with_drafts, "drafted": drafting.n_drafted, "accepted": drafting.n_accepted,
        }  # fmt: skip
        rows.append(row)
        print(
            f"| {name} | {row['plain']:.1f} | {row['lookup']:.1f} | {row['gain']:.2f} | "
            f"{row['drafted']} | {row['accepted']} |", flush=True,
        )  # fmt: skip
    return {"rows": rows, "pass_times": runs.table.pass_times()}


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return city


def form() -> dict[str, Any]:
    """A schema whose names say more than its values."""
    from gemmule._demo import world

    fields = {
        "colour_of_the_figure": {"enum": list(world.COLOURS)},
        "shape_of_the_figure": {"enum": list(world.SHAPES)},
        "number_of_figures": {"type": "integer", "minimum": 1, "maximum": 9},
        "is_there_any_text": {"type": "boolean"},
        "certain": {"type": "boolean"},
    }
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def chat(args: argparse.Namespace) -> dict[str, Any]:
    """The package's trained model knows these questions (python/gemmule/_demo)."""
    import gemmule
    from gemmule._demo import world

    rng = np.random.default_rng(5)
    pictures = [world.draw_scene(rng)[0] for _ in range(args.repeat)]
    forms = [world.describe_figure(c, s).capitalize() for c in world.COLOURS for s in world.SHAPES]
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "text": [(q, {}) for q in ("Hello, who are you?", "What can you do?", "Tell me a joke.")],
        "thinking": [("What is in the picture?", {"images": p, "think": True}) for p in pictures],
        "image": [("What is in the picture?", {"images": p}) for p in pictures],
        "tool call": [(f"What is the weather in {c}?", {"tools": [get_weather]}) for c in ("Oslo", "Lima")],
        "JSON": [
            ("Name the colour and the shape.", {"images": p, "schema": {"enum": forms}}) for p in pictures
        ],
    }
    kinds["form"] = [("Name the colour and the shape.", {"images": p, "schema": form()}) for p in pictures]
    rows = []
    print("| question | tokens | off, tok/s | lookup | drafter | auto | right drafts by place |")
    print("|---" * 7 + "|")
    with gemmule.Model(args.model, n_ctx=1024, n_threads=args.threads) as model:
        for kind, questions in kinds.items():
            if args.kinds and kind not in args.kinds:
                continue
            seconds = {False: 0.0, "lookup": 0.0, "mtp": 0.0, "auto": 0.0}
            n_tokens, places = 0, []
            for question, options in questions * 2:
                texts = set()
                for draft in seconds:
                    reply = model.chat(
                        question, temperature=0, max_tokens=args.tokens, draft=draft, **options
                    )
                    texts.add(reply.tokens)
                    seconds[draft] += reply.timings.predicted_ms / 1e3
                    if draft == "mtp":
                        places.append(reply.timings.draft_acceptance)
                if len(texts) != 1:
                    raise RuntimeError(f"{question!r} has another answer with drafts")
                n_tokens += len(reply.tokens)
            by_place = [
                statistics.mean(p[i] for p in places if len(p) > i) for i in range(max(map(len, places)))
            ]
            row = {
                "kind": kind,
                "n_tokens": n_tokens,
                "seconds": list(seconds.values()),
                "by_place": by_place,
            }
            rows.append(row)
            rates = " | ".join(f"{n_tokens / each:.0f}" for each in seconds.values())
            shares = " ".join(f"{share:.2f}" for share in by_place)
            print(f"| {kind} | {n_tokens} | {rates} | {shares} |", flush=True)
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, n_tokens in (("steps", 32), ("lookup", 512), ("chat", 96)):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--tokens", type=int, default=n_tokens, help="of an answer")
        command.add_argument("--repeat", type=int, default=3)
        command.add_argument("--json", type=Path)
        if name == "lookup":
            command.add_argument("text", type=Path)
            continue
        if name == "chat":
            command.add_argument("--kinds", nargs="+", help="of the questions: text, form, ...")
            continue
        command.add_argument("--drafter", type=Path)
        command.add_argument("--depth", type=int, default=128, help="tokens before the answer")
        command.add_argument("--rounds", type=int, default=7, help="of the measurement of V and c")
        command.add_argument("--accept", type=float, nargs="+", default=[0, 0.5, 0.6, 0.7, 0.8, 0.9])
        command.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7])
    args = parser.parse_args()
    found = {"steps": steps, "lookup": lookup, "chat": chat}[args.command](args)
    if args.json:
        args.json.write_text(
            json.dumps({"model": args.model.name, "threads": args.threads, **found}, indent=1)
        )


if __name__ == "__main__":
    main()
