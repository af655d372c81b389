"""One running generation: prefill, then sample, read, show, append, until an end token, a complete grammar, a
stop string, a limit or a cancel.

The tokens of the answer belong to the session's timeline at once, but the last one is run only when something
follows it. In a chat a parser sorts them into thinking, text and tool calls.
"""

import inspect
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gemmule import _core
from gemmule._cancel import turn
from gemmule._drafting import DraftCounts
from gemmule._errors import Cancelled, Error, GrammarError
from gemmule._prompt import count_of
from gemmule._request import Request
from gemmule._stop import StopMatcher
from gemmule._types import Delta, Reply, Timings, TokenLogprob, Usage, context_warnings

if TYPE_CHECKING:
    from gemmule._chat.constraint import Constraint, Mask
    from gemmule._chat.messages import ToolCall
    from gemmule._chat.parser import Event
    from gemmule._session import Session

__all__ = ["Stream"]

_ANSWER_RESERVE = 256  # tokens of the context that thinking without a budget leaves for the answer


class Stream:
    """Iterates over the pieces of an answer (`Delta`, a str). A context manager; leaving it or `cancel()`
    stops the engine.

    `reply` is the finished result; reading it earlier runs the generation to its end.
    """

    def __init__(
        self,
        session: "Session",
        request: Request,
        *,
        owns_session: bool,
        on_end: Callable[[Reply], None] | None = None,
    ) -> None:
        self._session = session
        self._request = request
        self._owns_session = owns_session
        self._on_end = on_end
        self._n_ctx = session.n_ctx
        self._stop = _core.StopToken(request.cancel)  # a token handed in may serve other requests too
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._warnings = list(request.warnings)
        self._n_before = session.n_tokens  # on the timeline
        self._n_again = 0  # of them had to be run now: the last one sampled, and what a deep rewind lost
        self._count = count_of(0, (*session._spans, *request.prompt.spans))  # media of the whole prompt
        self._n_prompt = 0  # new prompt tokens that were run
        self._n_thinking = 0  # answer tokens that were thinking
        self._error: Exception | None = None
        self._parsed: Any = None
        self._prompt_seconds = 0.0
        self._seconds = 0.0
        self._n_steps = 0
        self._finish = ""
        self._detokenizer = session.model.tokenizer.detokenizer(skip_special=True)
        self._matcher = StopMatcher(request.stops)
        self._parser = None
        if request.dialogue is not None:
            from gemmule._chat.parser import ReplyParser

            self._parser = ReplyParser(
                tool_names=request.dialogue.tool_names,
                markers=request.dialogue.markers,
                thinking_open=request.dialogue.thinking_open,
            )
        self._constraint: Constraint | None = None
        self._drafting: _core.Drafting | None = None
        self._draft_counts = DraftCounts()
        self._forced: list[int] = []  # tokens that come next whatever the model would say
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        # The model's own lock, held for one step: a second lock could be taken in the other order and hang.
        # Who waits for it can be cancelled, where nobody else can be using the session.
        try:
            with turn(self._session.model._lock, self._stop if self._owns_session else None):
                if self._error is not None:  # a failure must not look like an end to whoever asks again
                    raise self._error
                if self._running():
                    raise Error("the session is busy; a progress callback cannot read its own stream")
                return next(self._pieces)
        except Cancelled:
            self._pieces.close()
            self._end("cancelled")
            raise StopIteration from None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _running(self) -> bool:
        """Under the lock this can only be the caller's own run, further down its stack."""
        return inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING

    def cancel(self) -> None:
        """Stops the engine within milliseconds, wherever it is. Safe from any thread."""
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
        count = self._count
        return Reply(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            finish_reason=self._finish,
            seed=self._request.params.seed,
            usage=Usage(
                prompt_tokens=self._n_before + n_prompt,
                cached_tokens=self._n_before - self._n_again,
                completion_tokens=n_answer,
                total_tokens=self._n_before + n_prompt + n_answer,
                image_tokens=count.image,
                audio_tokens=count.audio,
                video_tokens=count.video,
                reasoning_tokens=self._n_thinking,
                dropped_tokens=self._request.dropped_tokens,
            ),
            timings=Timings.of(
                n_prompt + self._n_again,
                self._prompt_seconds,
                n_answer,
                self._seconds,
                self._n_steps,
                self._draft_counts,
            ),
            logprobs=None if self._request.n_logprobs is None else tuple(self._logprobs),
            warnings=(*context_warnings(n_ctx, model.plan.n_ctx_train), *self._warnings),
            thinking="".join(self._thoughts),
            tool_calls=tuple(self._calls),
            parsed=self._parsed,
        )

    def _end(self, reason: str) -> None:
        if self._finish:
            return
        self._finish = "tool_calls" if self._calls and reason == "stop" else reason
        if self._constraint is not None:
            self._constraint.close()
        self._parse_answer()
        if self._drafting is not None:  # which would keep the weights in memory
            self._draft_counts, self._drafting = DraftCounts.of(self._drafting), None
        self._session._stream_ended(self, close=self._owns_session)
        self._session.model._drafts.keep()
        if self._on_end is not None and self._error is None:
            self._on_end(self._reply())

    def _parse_answer(self) -> None:
        """The typed answer of `schema`, when there is a whole one."""
        schema = self._request.schema
        if schema is None or self._finish != "stop" or self._error is not None:
            return
        try:
            self._parsed = schema.parse("".join(self._texts))
        except Exception as error:
            self._warnings.append(f"the answer does not fit the schema: {error}")

    def _run(self) -> Generator[Delta, None, None]:
        """The generator behind the iteration. Every exit goes through `_end`."""
        reason = "cancelled"
        try:
            reason = yield from self._answer()
            yield from self._last_words()
        except Exception as error:
            self._error = error
            raise
        finally:  # also Ctrl-C, close() and errors
            self._end(reason)

    def _answer(self) -> Generator[Delta, None, str]:
        """Yields pieces, returns the finish reason."""
        request, session = self._request, self._session
        sampler = _core.Sampler(
            **request.params.engine_options(),
            suppress=session.model.suppress_tokens,
            n_logprobs=0 if request.n_logprobs is None else max(1, request.n_logprobs),
        )
        began = time.perf_counter()
        try:
            if request.make_constraint is not None:
                self._constraint = request.make_constraint()
            n_again = self._n_before - session._n_ready
            session._advance(request.prompt, self._stop, request.progress)
            self._n_prompt, self._n_again = len(request.prompt), n_again
        except Cancelled:
            return "cancelled"
        finally:
            self._prompt_seconds = time.perf_counter() - began
        ends = session.model.tokenizer.eos_ids
        n_prompt = self._n_before + len(request.prompt)
        self._drafting = session.model._drafts.start(request.draft, sampler, n_prompt, ends)
        if self._constraint is not None:
            self._constraint.looks_ahead = self._drafting is not None
        # The last token is never run. One more than fits may be sampled where nobody can go on from it.
        room = session.n_ctx - session.n_tokens + self._owns_session
        while len(self._tokens) < room and not self._is_full():
            self._limit_thinking(room - len(self._tokens))
            try:
                token = self._next_token(sampler, room)
            except Cancelled:
                return "cancelled"
            if token in ends:
                return "stop"
            yield from self._show(token)
            if self._matcher.stopped is not None or (self._constraint and self._constraint.finished):
                return "stop"
        return "length"

    def _is_full(self) -> bool:
        """Whether the answer has all its tokens; thinking has a limit of its own."""
        return self._left() <= 0

    def _left(self) -> float:
        """How many tokens the answer may still have, if no more of them are thinking."""
        limit = self._request.max_tokens
        return math.inf if limit is None else limit - (len(self._tokens) - self._n_thinking)

    def _limit_thinking(self, room: int) -> None:
        """Closes a thought whose budget is used up, so that an answer follows."""
        dialogue, parser = self._request.dialogue, self._parser
        if dialogue is None or parser is None or self._forced or not parser.in_thinking:
            return
        spent = dialogue.budget is not None and self._n_thinking >= dialogue.budget
        wanted = _ANSWER_RESERVE if self._request.max_tokens is None else self._request.max_tokens
        if not spent and room > min(wanted, _ANSWER_RESERVE, self._n_ctx // 4):
            return
        tokenizer, close = self._session.model.tokenizer, dialogue.markers.channel_close
        if close is None:
            return
        self._forced = [*tokenizer.encode("\n", add_bos=False), close]
        limit = dialogue.budget if spent else "all the context"
        self._warnings.append(f"thinking was ended after {self._n_thinking} tokens; its limit was {limit}")

    def _next_token(self, sampler: _core.Sampler, room: int) -> int:
        """Runs the token before (if any), samples, and puts the new token on the session's timeline. `room`:
        tokens that the answer may have at most.
        """
        if self._stop.cancelled:
            raise Cancelled("the generation was cancelled")
        began = time.perf_counter()
        session = self._session
        if session._n_pending:
            # The last token of an answer is not run, so a draft that would be it need not be either.
            most = int(min(room - len(self._tokens), self._left()) - 1)
            expected, mask = self._foresight()
            session._follow(self._drafting, most, self._stop, expected=expected, mask=mask)
            self._n_steps += 1
        logprob, top = 0.0, list[tuple[int, float]]()
        if self._forced:
            token = self._forced.pop(0)
            session._put(token)
        else:
            mask = None if self._constraint is None else self._constraint.mask()
            try:
                token, logprob, top = session._sample(
                    sampler, self._n_before + len(self._request.prompt), mask, self._stop
                )
            except ValueError as error:
                if mask is None:
                    raise
                raise GrammarError(
                    f"the answer cannot go on: {error}; change the grammar or schema"
                ) from None
        if self._constraint is not None:
            self._constraint.accept(token)
        self._seconds += time.perf_counter() - began
        self._tokens.append(token)
        if self._request.n_logprobs is not None:
            self._logprobs.append(self._logprob(token, logprob, top[: self._request.n_logprobs]))
        return token

    def _foresight(self) -> "tuple[Sequence[int], Mask | None]":
        """What is known of the tokens behind the one that runs next: those that are as good as certain, and
        for a drafter what may be the first of them.
        """
        constraint = self._constraint
        if self._forced or constraint is None or self._drafting is None:
            return self._forced, None
        return constraint.expected, constraint.mask() if self._drafting.has_drafter else None

    # -- from tokens to pieces -----------------------------------------------------------------------------

    def _show(self, token: int) -> Iterator[Delta]:
        text = self._detokenizer.feed(token)
        if self._parser is None:
            yield from self._show_text(text)
            return
        was_thinking = self._parser.in_thinking
        events = self._parser.feed(token, text)
        self._n_thinking += was_thinking or self._parser.in_thinking
        yield from self._show_events(events)

    def _show_events(self, events: "Iterable[Event]") -> Iterator[Delta]:
        for event in events:
            if event.kind == "thinking":
                self._thoughts.append(event.text)
                yield Delta(thinking=event.text)
            elif event.kind == "tool_call":
                assert event.call is not None
                self._calls.append(event.call)
                yield Delta(call=event.call)
            else:
                yield from self._show_text(event.text)

    def _show_text(self, text: str) -> Iterator[Delta]:
        shown = self._matcher.feed(text)
        if shown:
            self._texts.append(shown)
            yield Delta(shown)

    def _last_words(self) -> Iterator[Delta]:
        """What was held back: half a character, a possible stop string, an open call."""
        rest = self._detokenizer.flush()
        if self._parser is None:
            yield from self._show_text(rest)
        else:
            yield from self._show_events(self._parser.finish())
            yield from self._show_text(rest)
            self._warnings += self._parser.notes
        held = self._matcher.flush()
        if held:
            self._texts.append(held)
            yield Delta(held)

    def _logprob(self, token: int, logprob: float, top: list[tuple[int, float]]) -> TokenLogprob:
        decode = self._session.model.tokenizer.decode
        return TokenLogprob(
            token=token,
            text=decode([token]),
            logprob=logprob,
            top=tuple((other, decode([other]), value) for other, value in top),
        )
