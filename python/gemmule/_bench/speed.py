"""Speed: prompts and single tokens at several depths, the time to a first token, and steps of T tokens.

Every round is a fresh process for each subject, and the subjects take turns (A B C A B C ...), so a machine
that slows down does so for all. A round loads the file, warms up, and does each test once; the spread is that
of the rounds. Tokenizing is not timed (except in the first-token tests); a greedy choice is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gemmule._bench import machine
from gemmule._bench.child import call
from gemmule._bench.engine import Engine, Ids, Subject, open_engine
from gemmule._bench.record import Keep, Row, file_digest, head, timed
from gemmule._bench.work import Work
from gemmule._roofline import Roofline

__all__ = ["SpeedPlan", "child", "measure_speed"]

_MAX_OTHERS = 0.05  # of the machine during a round, else it is made again
_TRIES = 3
_MEDIA = 1280  # tokens of half a minute of sound with its question
_FIRST = 16  # tokens of the prompt with which loading is timed


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """Which tests, and how often."""

    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    n_depth: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = ()  # T of V(T)
    first: bool = True  # time to a first token: text, and what else the model takes
    drafting: bool = True  # on against off; without a drafter the text is looked up in
    rounds: int = 5

    @property
    def n_ctx(self) -> int:
        """The context that all tests fit in."""
        longest = max((*self.n_prompt, *self.n_gen, *self.steps, _FIRST))
        return max((*self.n_depth, 0)) + max(longest, _MEDIA if self.first else 0, 512) + 8


def measure_speed(
    subjects: Sequence[Subject],
    plan: SpeedPlan,
    *,
    roofline: Roofline | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Row]:
    """Speed rows of every subject. Throws BusyMachineError."""
    if not force:
        machine.refuse_if_busy()
    session, facts = f"{time.time_ns():x}", machine.describe()
    digests = {path: file_digest(path) for path in dict.fromkeys(subject.path for subject in subjects)}
    measured = []
    for subject in subjects:
        base = head(
            subject.path, facts, n_threads=subject.n_threads, kv_type=subject.kv_type,
            digest=digests[subject.path],
        )  # fmt: skip
        base |= {"gm_engine": subject.engine, "gm_packed": subject.packed, "gm_session": session}
        measured.append(_Measured(subject, base, Work.of(subject.path)))
    rows: list[Row] = []
    for number in range(plan.rounds):
        for one in measured:
            progress(f"round {number + 1} of {plan.rounds}: {one.subject.path} ({one.subject.engine})")
            try:
                one.measure(plan)
            finally:
                rows = [row for other in measured for row in other.rows(roofline)]
                keep(rows)
    return rows


@dataclass(slots=True)
class _Series:
    """The repetitions of one test."""

    fields: dict[str, Any]
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Measured:
    """The rounds of one subject so far."""

    subject: Subject
    base: Row
    work: Work
    tests: dict[tuple[Any, ...], _Series] = field(default_factory=dict)
    yardstick: list[tuple[float, float]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def measure(self, plan: SpeedPlan) -> None:
        """One process; made again, at most twice, while others use the machine. What a process found before
        it failed counts.
        """
        for attempt in range(1, _TRIES + 1):
            found, rates = [], machine.yardstick()
            try:
                with machine.watch() as seen:
                    for test in call("speed", {"subject": asdict(self.subject), "plan": asdict(plan)}):
                        found.append(test)
            except BaseException:
                self._add(found, rates, seen.others)
                raise
            if seen.others <= _MAX_OTHERS or attempt == _TRIES:
                self._add(found, rates, seen.others)
                return

    def _add(self, found: list[dict[str, Any]], rates: tuple[float, float], others: float) -> None:
        """The first thing a process finds is what it runs in."""
        if len(found) < 2:
            return
        self.base |= found[0]
        self.yardstick.append(rates)
        self.others.append(round(others, 4))
        for test in found[1:]:
            seconds = test.pop("seconds")
            what = tuple(test.get(name) for name in ("n_prompt", "n_gen", "n_depth", "test"))
            self.tests.setdefault(what, _Series(test)).seconds.append(seconds)

    def rows(self, roofline: Roofline | None) -> list[Row]:
        base = self.base | {
            "gm_yardstick": self.yardstick,
            "gm_others": self.others,
            "gm_clean": max(self.others, default=0.0) <= _MAX_OTHERS,
        }
        return _finished(base, list(self.tests.values()), self.work, roofline)


def _finished(base: Row, tests: list[_Series], work: Work, roofline: Roofline | None) -> list[Row]:
    """Rows with the efficiencies of the plain tests, and V(T) of the steps."""
    rows = []
    one = next((float(np.mean(t.seconds)) for t in tests if t.fields.get("step") == 1), 0.0)
    for test in tests:
        fields = dict(test.fields)
        step, cache = fields.pop("step", 0), fields.pop("cache_bytes", 0)
        row = timed(base, test.seconds, **fields)
        mean = float(np.mean(test.seconds))
        if step and one:
            row["gm_verify_factor"] = mean / one
        plain = not step and not row.get("gm_test")
        if roofline is not None and plain and base["gm_engine"] == "gemmule":
            threads = base["n_threads"]
            bandwidth, peak = (
                roofline.bandwidth(threads),
                roofline.arithmetic(threads, base["gm_quantization"]),
            )
            if row["n_gen"] and not row["n_prompt"] and bandwidth:
                row["gm_limit_ts"] = bandwidth * 1e9 / (work.weight_bytes + cache)
                row["gm_decode_efficiency"] = row["avg_ts"] / row["gm_limit_ts"]
            elif row["n_prompt"] and not row["n_gen"] and peak:
                row["gm_prefill_efficiency"] = work.prefill_share(row["avg_ts"], peak)
        if plain:
            row |= {"gm_weight_bytes": work.weight_bytes, "gm_cache_bytes": cache}
            row |= {"gm_macs": work.macs, "gm_head_macs": work.head_macs}
        rows.append(row)
    return rows


def child(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One round of one subject, in this process: what it runs in, then every test."""
    subject = Subject(**request["subject"])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["plan"].items()}
    plan = SpeedPlan(**fields)
    start = time.perf_counter()
    engine = open_engine(subject, plan.n_ctx)
    rng = np.random.default_rng(11)
    ids = rng.integers(8, engine.n_vocab, plan.n_ctx).astype(np.int32)
    engine.run(ids[:_FIRST])
    loaded = _test(time.perf_counter() - start, n_prompt=_FIRST, n_gen=1, test="load and first token")
    yield {"gm_isa": engine.isa, "n_threads": engine.n_threads, "build_commit": engine.build}
    yield loaded
    engine.start(ids[:0])
    engine.run(ids[: max((*plan.n_prompt, 256))])  # pages the weights in, packs them, starts the threads
    ours: Any = engine if subject.engine == "gemmule" else None
    for depth in sorted(plan.n_depth):
        for n in plan.n_prompt:
            engine.start(ids[:depth])
            yield _timed(engine.run, ids[depth : depth + n], n_prompt=n, n_depth=depth)
        for n in plan.n_gen:
            engine.start(ids[:depth])
            test = _timed(partial(_single_tokens, engine), ids[depth : depth + n], n_gen=n, n_depth=depth)
            yield test | ({"cache_bytes": ours.cache_bytes()} if ours else {})
    if ours is not None:
        for n in plan.steps:
            engine.start(ids[:0])
            ours.step_all(ids[:n])
            yield _timed(ours.step_all, ids[n : 2 * n], n_prompt=n, step=n, test=f"step of {n}")
        if plan.first:
            from gemmule._bench.first_token import first_token_tests

            yield from first_token_tests(ours.model)
        if plan.drafting:
            from gemmule._bench.drafting import drafting_tests

            yield from drafting_tests(ours.model, max((*plan.n_gen, 32)))


def _single_tokens(engine: Engine, ids: Ids) -> None:
    for i in range(len(ids)):
        engine.run(ids[i : i + 1])


def _timed(work: Callable[[Ids], Any], ids: Ids, **fields: Any) -> dict[str, Any]:
    start = time.perf_counter()
    work(ids)
    return _test(time.perf_counter() - start, **fields)


def _test(seconds: float, **fields: Any) -> dict[str, Any]:
    return {"seconds": seconds, **fields}
