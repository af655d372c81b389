"""One running generation: prefill, then sample, show, append, until an end token, a stop string, a limit or
a cancel.

The tokens of the answer belong to the session's timeline at once, but the last one is run only when
something follows it.
"""

import inspect
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemmule import _core
from gemmule._errors import Cancelled, Error
from gemmule._sampling import SamplingParams
from gemmule._stop import StopMatcher
from gemmule._types import Delta, Reply, Timings, TokenLogprob, Usage, context_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemmule._session import Session

__all__ = ["Request", "Stream"]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything one generation was asked to do."""

    ids: list[int]
    params: SamplingParams
    max_tokens: int | None
    stops: tuple[str, ...]
    n_logprobs: int | None
    cancel: _core.StopToken | None
    progress: "Callable[[int, int], None] | None"


class Stream:
    """Iterates over the pieces of an answer (`Delta`, a str). A context manager; leaving it or `cancel()`
    stops the engine.

    `reply` is the finished result; reading it earlier runs the generation to its end.
    """

    def __init__(self, session: "Session", request: Request, *, owns_session: bool) -> None:
        self._session = session
        self._request = request
        self._owns_session = owns_session
        self._n_ctx = session.n_ctx
        self._stop = request.cancel if request.cancel is not None else _core.StopToken()
        self._cancelled = False
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._cached = session.n_tokens
        self._n_prompt = 0  # prompt tokens really run
        self._error: Exception | None = None
        self._prompt_seconds = 0.0
        self._seconds = 0.0
        self._n_steps = 0
        self._finish = ""
        self._detokenizer = session.model.tokenizer.detokenizer(skip_special=True)
        self._matcher = StopMatcher(request.stops)
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        # The model's own lock, held for one step: a second lock could be taken in the other order and hang.
        with self._session.model._lock:
            if self._error is not None:  # a failure must not look like an end to whoever asks again
                raise self._error
            if self._running():
                raise Error("the session is busy; a progress callback cannot read its own stream")
            return Delta(next(self._pieces))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _running(self) -> bool:
        """Under the lock this can only be the caller's own run, further down its stack."""
        return inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING

    def cancel(self) -> None:
        """Stops at the next token, or at once during the prompt. Safe from any thread."""
        self._cancelled = True
        if self._request.cancel is None:  # a token handed in may serve other requests too
            self._stop.cancel()

    def close(self) -> None:
        """Ends the generation if it still runs; what exists so far is in `reply`."""
        self.cancel()
        with self._session.model._lock:
            if not self._running():  # else a callback of this very run: cancelled is enough
                self._pieces.close()
                self._end("cancelled")

    @property
    def reply(self) -> Reply:
        """The result; runs what is left of the generation."""
        for _ in self:
            pass
        return self._reply()

    def _reply(self) -> Reply:
        n_prompt, n_answer = self._n_prompt, len(self._tokens)
        model = self._session.model
        n_ctx = model.n_ctx if self._owns_session else self._n_ctx
        return Reply(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            finish_reason=self._finish,
            seed=self._request.params.seed,
            usage=Usage(
                prompt_tokens=self._cached + n_prompt,
                cached_tokens=self._cached,
                completion_tokens=n_answer,
                total_tokens=self._cached + n_prompt + n_answer,
            ),
            timings=Timings.of(n_prompt, self._prompt_seconds, n_answer, self._seconds, self._n_steps),
            logprobs=None if self._request.n_logprobs is None else tuple(self._logprobs),
            warnings=context_warnings(n_ctx, model.plan.n_ctx_train),
        )

    def _end(self, reason: str) -> None:
        if not self._finish:
            self._finish = reason
            self._session._stream_ended(self, close=self._owns_session)

    def _run(self) -> Generator[str, None, None]:
        """The generator behind the iteration. Every exit goes through `_end`."""
        reason = "cancelled"
        try:
            reason = yield from self._answer()
            rest = self._matcher.feed(self._detokenizer.flush()) + self._matcher.flush()
            if rest:
                self._texts.append(rest)
                yield rest
        except Exception as error:
            self._error = error
            raise
        finally:  # also Ctrl-C, close() and errors
            self._end(reason)

    def _answer(self) -> Generator[str, None, str]:
        """Yields text, returns the finish reason."""
        request, session = self._request, self._session
        sampler = _core.Sampler(
            **request.params.engine_options(),
            suppress=session.model.suppress_tokens,
            n_logprobs=0 if request.n_logprobs is None else max(1, request.n_logprobs),
        )
        began = time.perf_counter()
        try:
            session._advance(request.ids, self._stop, request.progress)
            self._n_prompt = len(request.ids)
        except Cancelled:
            return "cancelled"
        finally:
            self._prompt_seconds = time.perf_counter() - began
        ends = session.model.tokenizer.eos_ids
        # The last token is never run. One more than fits may be sampled where nobody can go on from it.
        limit = session.n_ctx - session.n_tokens + self._owns_session
        if request.max_tokens is not None:
            limit = min(limit, request.max_tokens)
        while len(self._tokens) < limit:
            try:
                token = self._next_token(sampler)
            except Cancelled:
                return "cancelled"
            if token in ends:
                return "stop"
            text = self._matcher.feed(self._detokenizer.feed(token))
            if text:
                self._texts.append(text)
                yield text
            if self._matcher.stopped is not None:
                return "stop"
        return "length"

    def _next_token(self, sampler: _core.Sampler) -> int:
        """Runs the token before (if any), samples, and puts the new token on the session's timeline."""
        if self._cancelled or self._stop.cancelled:
            raise Cancelled("the generation was cancelled")
        began = time.perf_counter()
        session = self._session
        if session._n_pending:
            session._advance([], self._stop, None)
            self._n_steps += 1
        token, logprob, top = session._sample(sampler, self._cached + len(self._request.ids))
        self._seconds += time.perf_counter() - began
        self._tokens.append(token)
        if self._request.n_logprobs is not None:
            self._logprobs.append(self._logprob(token, logprob, top[: self._request.n_logprobs]))
        return token

    def _logprob(self, token: int, logprob: float, top: list[tuple[int, float]]) -> TokenLogprob:
        decode = self._session.model.tokenizer.decode
        return TokenLogprob(
            token=token,
            text=decode([token]),
            logprob=logprob,
            top=tuple((other, decode([other]), value) for other, value in top),
        )
