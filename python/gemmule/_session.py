"""A session: one timeline of tokens that keeps its KV cache, so going on costs only the new tokens.

`tokens` is everything appended and generated. The last token of an answer is run lazily, when something
follows it. `chat` keeps the messages too: each turn is rendered whole, and what the timeline already holds of
it is not run again.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._cache import atomic_write
from gemmule._checks import whole
from gemmule._errors import Cancelled, Error
from gemmule._prompt import EMPTY, Prompt, PromptLike, Span, count_of, identity
from gemmule._request import ChatOptions, GenerateOptions, Progress, Request, check_callbacks
from gemmule._stream import Stream
from gemmule._truncate import policy_of, too_long
from gemmule._types import Reply

if TYPE_CHECKING:
    from gemmule._chat.messages import Message
    from gemmule._model import Model

__all__ = ["Session", "check_options"]


class Session:
    """Made by `Model.session()`. Thread-safe: calls take turns; a new call ends a stream that is still
    open.
    """

    def __init__(
        self,
        model: "Model",
        core: _core.Session,
        *,
        kv_type: str | None = None,
        system: str | None = None,
    ) -> None:
        self._model = model
        self._core: _core.Session | None = core
        self._kv_type = model.plan.kv_type if kv_type is None else kv_type
        model._sessions.add(self)
        self._timeline: list[int] = []  # kept here because the engine cannot be asked while it runs
        self._spans: list[Span] = []  # the pictures and sounds on the timeline
        self._n_pending = 0  # how many at the end of the timeline have not been run yet
        self._stream: Stream | None = None
        self._busy = False
        self._messages: tuple[Message, ...] = ()
        if system is not None:
            self.messages = [{"role": "system", "content": system}]

    @property
    def model(self) -> "Model":
        """The model this session runs on."""
        return self._model

    def _engine(self) -> _core.Session:
        if self._core is None:
            raise Error("the session is closed")
        self._model._engine()  # raises when the model is closed
        return self._core

    @property
    def n_ctx(self) -> int:
        """How many tokens fit."""
        return self._engine().n_ctx

    @property
    def n_tokens(self) -> int:
        """How many tokens are on the timeline."""
        self._engine()
        return len(self._timeline)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The timeline: int32 [n_tokens], a copy."""
        self._engine()
        return np.array(self._timeline, np.int32)

    @property
    def logits(self) -> NDArray[np.float32]:
        """The model's output after the last token: float32 [n_vocab]."""
        with self._model._lock:
            self._idle()
            if not self.n_tokens:
                raise ValueError("the session is empty; append a prompt first")
            self._close_stream()
            self._advance(None, None, None)
            return self._engine().logits()

    def append(
        self, prompt: PromptLike, *, cancel: _core.StopToken | None = None, progress: Progress | None = None
    ) -> None:
        """Runs a prompt after what is there. BOS is added only to the start of an empty session."""
        check_callbacks(cancel, progress)
        with self._model._lock:
            self._idle()
            rows = self._rows(prompt, {"cancel": cancel})
            self._check_room(len(rows))
            self._close_stream()
            self._advance(rows, cancel, progress)

    @overload
    def generate(
        self,
        prompt: PromptLike | None = ...,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[GenerateOptions],
    ) -> Reply: ...
    @overload
    def generate(
        self, prompt: PromptLike | None = ..., *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: PromptLike | None = ..., *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream: ...
    def generate(
        self, prompt: PromptLike | None = None, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream:
        """Continues the timeline, after appending `prompt` if given. Takes the options of
        `Model.generate`.
        """
        check_options("generate", options, GenerateOptions)
        policy = policy_of(options)
        with self._model._lock:
            self._idle()
            rows = EMPTY if prompt is None else self._rows(prompt, options)
            if prompt is None and not self.n_tokens:
                raise ValueError("the session is empty; give a prompt")
            request = self._model._raw_request(rows, options)
            if policy != "error":
                self._close_stream()
                whole = self._model._cut_request(self._followed_by(rows), options, self.n_ctx)
                if whole.dropped_tokens:
                    request = self._continued(whole)
            self._check_room(len(request.prompt))
            self._close_stream()
            running = self._start(request)
        return running if stream else running.reply

    @property
    def messages(self) -> "tuple[Message, ...]":
        """The conversation held with `chat`, answers included."""
        return self._messages

    @messages.setter
    def messages(self, value: Any) -> None:
        """Edits the conversation; the next turn keeps what is still the same at its beginning."""
        from gemmule._chat.messages import normalize

        wanted = normalize(value) if value else ()
        with self._model._lock:
            self._idle()
            self._close_stream()  # now, or its end would undo the edit
            self._messages = wanted

    @overload
    def chat(
        self, messages: Any = ..., *, stream: Literal[False] = ..., **options: Unpack[ChatOptions]
    ) -> Reply: ...
    @overload
    def chat(
        self, messages: Any = ..., *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Stream: ...
    @overload
    def chat(
        self, messages: Any = ..., *, stream: bool, **options: Unpack[ChatOptions]
    ) -> Reply | Stream: ...
    def chat(
        self, messages: Any = (), *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> Reply | Stream:
        """Answers the next turn: a text, a message or several, added to `messages` with the answer.

        Takes the options of `Model.chat`. Only what is new since the last turn is run; without new messages
        the conversation is answered as it stands, which is how an answer is made again. A cancelled answer
        is kept as far as it came.
        """
        check_options("chat", options, ChatOptions)
        with self._model._lock:
            self._idle()
            self._close_stream()  # what came of its answer belongs to the conversation
            history = self._model._conversation(self._messages, messages, options)
            request = self._model._chat_request(history, options, self.n_ctx)
            self._check_room(len(request.prompt), 0)
            request = self._continued(request)

            def keep(reply: Reply) -> None:
                said = reply.text or reply.thinking or reply.tool_calls
                nothing_yet = reply.finish_reason == "cancelled" and not said
                self._messages = history if nothing_yet else (*history, reply.message)

            running = self._start(request, on_end=keep)
        return running if stream else running.reply

    def rewind(self, n: int) -> None:
        """Forgets everything after the first `n` tokens."""
        with self._model._lock:
            self._idle()
            n = whole("n", n, 0, 2**63)
            if n > self.n_tokens:
                raise ValueError(f"cannot keep {n} tokens of a session that has {self.n_tokens}")
            self._close_stream()
            run = self.n_tokens - self._n_pending
            if n < run:
                self._engine().rewind(n)
            del self._timeline[n:]
            self._spans = [
                s if s.first + s.n <= n else s.cut(n - s.first) for s in self._spans if s.first < n
            ]
            self._n_pending = max(0, n - run)

    def fork(self) -> "Session":
        """A second session with the same timeline and conversation; from here on each goes its own way.

        Copies the part of the KV cache that is in use.
        """
        with self._model._lock:
            self._idle()
            self._close_stream()
            self._model._context(self.n_ctx, min(self.n_ctx, self.n_tokens + 1), self._kv_type)
            other = Session(self._model, self._engine().fork(), kv_type=self._kv_type)
            other._timeline = list(self._timeline)
            other._spans = list(self._spans)
            other._n_pending = self._n_pending
            other._messages = self._messages
            return other

    def save(self, path: "str | os.PathLike[str]", *, cancel: _core.StopToken | None = None) -> None:
        """Writes the session to a file: tokens, KV cache, media and conversation. `Model.load_session` goes
        on with it as if it had never stopped. The file appears only when it is complete.
        """
        check_callbacks(cancel, None)
        from gemmule._session_file import pack

        with self._model._lock:
            self._idle()
            self._close_stream()
            core = self._engine()
            pending = self._timeline[self.n_tokens - self._n_pending :]
            self._busy = True
            try:
                front = pack(self._model, pending, self._spans, self._messages, cancel)
                with atomic_write(Path(path)) as file:
                    core.save(file.fileno(), front, stop=cancel)
            finally:
                self._busy = False

    def close(self) -> None:
        """Frees the KV cache. Calling it again does nothing."""
        with self._model._lock:
            if self._core is not None:
                self._idle()
            self._close_stream()
            self._core = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Session(closed)" if self._core is None else f"Session({self.n_tokens} of {self.n_ctx} tokens)"

    # -- used by Model and Stream --------------------------------------------------------------------------

    @classmethod
    def _loaded(cls, model: "Model", path: str, core: _core.Session, front: bytes) -> "Session":
        from gemmule._session_file import unpack

        session = cls(model, core)
        pending, session._spans, session._messages = unpack(path, core, front)
        session._timeline = [*core.tokens.tolist(), *model.tokenizer.check_ids(pending)]
        session._n_pending = len(pending)
        session._check_room(0)
        return session

    @property
    def _n_ready(self) -> int:
        """How many tokens of the timeline the next call need not run."""
        return self._engine().n_ready

    def _rows(self, prompt: PromptLike, options: GenerateOptions) -> Prompt:
        return self._model._rows(prompt, options, add_bos=self.n_tokens == 0)

    def _followed_by(self, rows: Prompt) -> Prompt:
        """The timeline and new rows as one prompt."""
        spans = (*self._spans, *(span.moved(self.n_tokens) for span in rows.spans))
        tokens = (*self._timeline, *rows.tokens)
        return Prompt(tokens, rows.text, count_of(len(tokens), spans), rows.warnings, spans)

    def _kv_bytes(self) -> tuple[int, int]:
        """What the keys and values may take, and what they have taken."""
        return (0, 0) if self._core is None else (self._core.kv_bytes, self._core.kv_used_bytes)

    def _continued(self, request: Request) -> Request:
        """Rewinds to where the timeline and the request's prompt part; the request then holds the rest."""
        prompt = request.prompt
        if not prompt:  # it was cancelled before it was read
            return request
        same = 0
        for mine, wanted in zip(identity(self._timeline, self._spans), prompt.identity(), strict=False):
            if mine != wanted:
                break
            same += 1
        same = min(same, len(prompt) - 1)  # at least one row gives the logits
        for span in (*prompt.spans, *self._spans):
            if span.first < same < span.first + span.n:
                same = span.first
        self.rewind(same)
        return dataclasses.replace(request, prompt=prompt.after(same))

    def _idle(self) -> None:
        """Refuses a call made from inside a running one, such as by its progress callback."""
        self._engine()
        if self._busy:
            raise Error("the session is busy; a progress callback cannot run it")

    def _check_room(self, n_new: int, n_kept: int | None = None) -> None:
        wanted = n_new + (self.n_tokens if n_kept is None else n_kept)
        if wanted > self.n_ctx:
            raise too_long(wanted, self.n_ctx)

    def _start(
        self, request: Request, *, owned: bool = False, on_end: Callable[[Reply], None] | None = None
    ) -> Stream:
        self._check_room(len(request.prompt))
        model, room = self._model, self._model._room
        extra = room.extra(request, model.tokenizer, self.n_ctx, self._kv_type)
        if extra:
            room.allow(request, extra, model._left())
        self._stream = Stream(self, request, owns_session=owned, on_end=on_end)
        return self._stream

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _stream_ended(self, stream: Stream, *, close: bool) -> None:
        if self._stream is stream:
            self._stream = None
        if close:
            self._core = None

    def _advance(
        self, prompt: Prompt | None, stop: _core.StopToken | None, progress: Progress | None
    ) -> None:
        """Runs the pending tokens and the prompt. On any error the timeline stays as it was."""
        with self._model._lock:
            self._idle()
            if stop is not None and stop.cancelled:
                raise Cancelled("the request was cancelled before the model read it")
            new = prompt or EMPTY
            self._check_room(len(new))
            pending = self._timeline[self.n_tokens - self._n_pending :]
            if pending or new:
                self._busy = True
                try:
                    tokens = np.array([*pending, *new.tokens], np.int32)
                    media = self._model._embed(new.spans, len(pending), stop)
                    self._engine().append(tokens, media=media, stop=stop, progress=progress)
                finally:
                    self._busy = False
            self._spans += [span.moved(self.n_tokens) for span in new.spans]
            self._timeline += new.tokens
            self._n_pending = 0

    def _follow(
        self,
        drafting: _core.Drafting | None,
        most: int,
        stop: _core.StopToken,
        *,
        expected: Sequence[int] = (),
        mask: NDArray[np.uint32] | None = None,
    ) -> None:
        """Runs the token that was sampled last, and with it up to `most` drafts: `expected`, or by a drafter
        that knows the `mask` of the first.
        """
        with self._model._lock:
            if drafting is None or self._n_pending != 1:
                self._advance(None, stop, None)
                return
            self._idle()
            self._busy = True
            try:
                drafting.append(
                    self._engine(), self._timeline[-1], most=most, expected=expected, mask=mask, stop=stop
                )
            finally:
                self._busy = False
            self._n_pending = 0

    def _sample(
        self, sampler: _core.Sampler, n_prompt: int, mask: NDArray[np.uint32] | None, stop: _core.StopToken
    ) -> tuple[int, float, list[tuple[int, float]]]:
        with self._model._lock:
            token, logprob, top = self._engine().sample(sampler, n_prompt, mask=mask, stop=stop)
            self._put(token)
            return token, logprob, top

    def _put(self, token: int) -> None:
        """A new token at the end of the timeline, to be run when something follows."""
        self._timeline.append(token)
        self._n_pending += 1


def check_options(what: str, options: Any, known: type) -> None:
    """Refuses an option that nobody reads."""
    unknown = options.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{what}() got an unexpected keyword argument {min(unknown)!r}")
