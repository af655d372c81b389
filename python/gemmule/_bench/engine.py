"""The engines a measurement can drive, with the few calls it needs: ours, and llama.cpp's library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemmule._bench.record import Row, build_id, file_digest, head

__all__ = ["Engine", "Ids", "Subject", "head_of", "open_engine"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a file in an engine, with its settings."""

    path: str
    engine: str = "gemmule"  # or "llama.cpp"
    n_threads: int = 0  # 0: all physical cores
    kv_type: str = "f16"
    packed: str = "auto"  # "auto", "yes", "no"
    isa: str = ""
    library: str = ""  # of llama.cpp; "": the one of the xllamacpp package


def head_of(subject: Subject, facts: Row) -> Row:
    """What all rows of a subject share. Reads the whole file for its digest."""
    digest = file_digest(subject.path)
    return head(subject.path, facts, n_threads=subject.n_threads, kv_type=subject.kv_type, digest=digest)


class Engine(Protocol):
    """A model with one timeline. `run` ends with a greedy choice, as a generation would."""

    n_vocab: int
    n_threads: int
    isa: str
    build: str  # of the library: the beginning of its digest

    def run(self, ids: Ids) -> int: ...
    def start(self, ids: Ids) -> None:
        """Make the timeline these ids; nothing is read again where that is possible."""

    def rows(self, ids: Ids, first: int) -> NDArray[np.float32]:
        """float32 [n - first, n_vocab] of the tokens from `first` on, of a fresh timeline."""


def open_engine(subject: Subject, n_ctx: int) -> Engine:
    """Loads the model in this process."""
    return (_Gemmule if subject.engine == "gemmule" else _LlamaCpp)(subject, n_ctx)


class _Gemmule:
    def __init__(self, subject: Subject, n_ctx: int) -> None:
        from gemmule import Model, _core

        packed: Any = {"auto": "auto", "yes": True, "no": False}[subject.packed]
        self.model = Model(
            subject.path,
            n_ctx=n_ctx,
            n_threads=subject.n_threads or None,
            kv_type=subject.kv_type,
            packed=packed,
            isa=subject.isa or None,
            snapshot_limit=0,
        )
        self._core = self.model._engine()
        self._greedy = _core.Sampler(temperature=0.0)
        self._session = self._new_session()
        self._prefix: _core.Session | None = None
        self.n_vocab = self._core.n_vocab
        self.n_threads = self._core.n_threads
        self.isa = self._core.isa
        self.build = build_id(str(_core.__file__))

    def _new_session(self) -> Any:
        return self._core.session(n_ctx=self.model.n_ctx, kv_type=self.model.plan.kv_type, snapshot_limit=0)

    def run(self, ids: Ids) -> int:
        self._session.append(ids)
        return int(self._session.sample(self._greedy)[0])

    def step_all(self, ids: Ids) -> None:
        """One step with the logits of every token, as a verification of drafts makes it."""
        self._session.append_logits(ids)

    def start(self, ids: Ids) -> None:
        if not len(ids):
            self._session.rewind(0)
            return
        known = self._prefix
        if (
            known is None
            or known.n_tokens > len(ids)
            or not np.array_equal(known.tokens, ids[: known.n_tokens])
        ):
            known = self._new_session()
        if known.n_tokens < len(ids):
            known.append(ids[known.n_tokens :])
        self._prefix, self._session = known, known.fork()

    def rows(self, ids: Ids, first: int) -> NDArray[np.float32]:
        self._session.rewind(0)
        if first:
            self._session.append(ids[:first])
        return np.asarray(self._session.append_logits(ids[first:]))

    def cache_bytes(self) -> int:
        """Of the keys and values now held, all of which one more token reads (a window at most)."""
        return int(self._session.kv_used_bytes)


class _LlamaCpp:
    def __init__(self, subject: Subject, n_ctx: int) -> None:
        from gemmule._bench.llamacpp import LlamaCpp

        n_threads = subject.n_threads or _physical_cores()
        self._engine = LlamaCpp(
            subject.path,
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_batch=min(n_ctx, 2048),
            kv_type=subject.kv_type,
            library=subject.library or None,
        )
        self.n_vocab, self.n_threads = self._engine.n_vocab, n_threads
        flags = (flag.split("=") for flag in self._engine.system_info.split("|") if "=" in flag)
        self.isa = " ".join(name.strip() for name, value in flags if value.strip() == "1")
        self.build = build_id(self._engine.library)

    def run(self, ids: Ids) -> int:
        for first in range(0, len(ids), 2048):
            self._engine.step(ids[first : first + 2048])
        return int(self._engine.last_logits().argmax())

    def start(self, ids: Ids) -> None:
        self._engine.clear()
        if len(ids):
            self.run(ids)

    def rows(self, ids: Ids, first: int) -> NDArray[np.float32]:
        self._engine.clear()
        return self._engine.append(ids, all_logits=True)[first:]


def _physical_cores() -> int:
    from gemmule import devices

    return devices()[0].n_physical
