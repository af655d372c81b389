"""How long a call goes on after it was cancelled: worst, median and mean over random moments.

    packing     the first prompt of a model, whose weights are brought into the kernels' order meanwhile
    prompt      a later prompt
    decode      an answer, cancelled by a token from another thread
    ctrl-c      the same as prompt, by SIGINT: until KeyboardInterrupt is caught
    asyncio     the same as prompt, by cancelling the task: until the task is done

After the moments of a kind the prompt is run whole and its logits are compared with those of a session that
was never cancelled, by bits.

Usage: python benchmarks/engine/cancel.py MODEL.gguf [--kinds packing prompt] [--n 30] [--tokens 512]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

import gemmule

__all__ = ["main"]

KINDS = ("packing", "prompt", "decode", "ctrl-c", "asyncio")


class Alarm:
    """Calls `action` after some time, and remembers when."""

    def __init__(self, action: Callable[[], None], seconds: float) -> None:
        self.fired = 0.0
        self._action = action
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.start()

    def _fire(self) -> None:
        self.fired = time.perf_counter()
        self._action()

    def late(self) -> float:
        """Seconds since the call; the alarm is off from now on."""
        now = time.perf_counter()
        self._timer.cancel()
        self._timer.join()
        return now - self.fired if 0 < self.fired <= now else -1.0


def _by_token(session: gemmule.Session, ids: list[int], after: float) -> float:
    stop = gemmule.StopToken()
    alarm = Alarm(stop.cancel, after)
    try:
        session.append(ids, cancel=stop)
    except gemmule.Cancelled:
        return alarm.late()
    session.rewind(session.n_tokens - len(ids))
    alarm.late()
    return -1.0


def _while_decoding(session: gemmule.Session, ids: list[int], after: float) -> float:
    stop = gemmule.StopToken()
    alarm = Alarm(stop.cancel, after)
    n = session.n_tokens
    endless = {i: -1e9 for i in session.model.tokenizer.eos_ids}
    reply = session.generate(max_tokens=400, temperature=0, logit_bias=endless, cancel=stop)
    late = alarm.late()
    session.rewind(n)
    return late if reply.finish_reason == "cancelled" else -1.0


def _by_signal(session: gemmule.Session, ids: list[int], after: float) -> float:
    alarm = Alarm(lambda: os.kill(os.getpid(), signal.SIGINT), after)
    try:
        session.append(ids)
    except KeyboardInterrupt:
        return alarm.late()
    session.rewind(session.n_tokens - len(ids))
    with contextlib.suppress(KeyboardInterrupt):
        alarm.late()
    return -1.0


def _by_task(session: gemmule.Session, ids: list[int], after: float) -> float:
    async def main() -> float:
        task = asyncio.create_task(session.model.agenerate(ids, max_tokens=1))
        await asyncio.sleep(after)
        began = time.perf_counter()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return began
        return -1.0

    began = asyncio.run(main())  # also waits for the thread that worked for the task
    return time.perf_counter() - began if began > 0 else -1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--n", type=int, default=30, help="moments of each kind")
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt")
    parser.add_argument("--window", type=float, default=1.5, help="seconds within which the moments lie")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare the bits afterwards")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    ids = [2, *(rng.randrange(1000, 60000) for _ in range(args.tokens - 1))]
    with gemmule.Model(args.model, n_ctx=args.tokens + 512, n_threads=args.threads) as model:
        n_vocab = model.tokenizer.n_vocab
        ids = [min(i, n_vocab - 1 - i % 7) for i in ids]
        session = model.session()
        print(f"{args.model}: {model.isa}, {model.n_threads} threads, prompt of {args.tokens} tokens")
        print(f"{'kind':<8} {'moments':>7} {'worst':>9} {'median':>9} {'mean':>9}   ms")
        for kind in args.kinds:
            run = {"decode": _while_decoding, "ctrl-c": _by_signal, "asyncio": _by_task}.get(kind, _by_token)
            if kind == "decode":
                session.append(ids[:16])
            elif kind != "packing":
                session.append(ids[:1])
            late = [run(session, ids, rng.uniform(0.01, args.window)) for _ in range(args.n)]
            session.rewind(0)
            took = sorted(1e3 * seconds for seconds in late if seconds >= 0)
            if not took:
                print(f"{kind:<8} {0:>7}   nothing was running at those moments; use a smaller --window")
                continue
            mean, median = statistics.fmean(took), statistics.median(took)
            print(f"{kind:<8} {len(took):>7} {took[-1]:>9.1f} {median:>9.1f} {mean:>9.1f}", flush=True)
        if args.check:
            session.append(ids)
            same = np.array_equal(session.logits, model.logits(ids))
            print(f"afterwards: {'the same bits' if same else 'OTHER BITS'} as a session never cancelled")


if __name__ == "__main__":
    main()
