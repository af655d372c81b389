"""A session: one timeline of tokens that keeps its KV cache, so going on costs only the new tokens.

`tokens` is everything appended and generated. The last token of an answer is run lazily, when something
follows it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._checks import kv_format, whole
from gemmule._errors import ContextLengthError, Error
from gemmule._prompt import Prompt, prompt_ids
from gemmule._sampling import SamplingParams
from gemmule._stream import Request, Stream
from gemmule._types import Reply

if TYPE_CHECKING:
    from gemmule._model import Model

__all__ = [
    "GenerateOptions",
    "Progress",
    "Session",
    "check_callbacks",
    "make_request",
    "perplexity",
    "too_long",
]

Progress = Callable[[int, int], None]


class GenerateOptions(TypedDict, total=False):
    """The options of `generate`, for Model and Session."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Iterable[str] | None
    logprobs: int | None
    cancel: _core.StopToken | None
    progress: Progress | None


class Session:
    """Made by `Model.session()`. Thread-safe: calls take turns; a new call ends a stream that is still
    open.
    """

    def __init__(self, model: "Model", *, n_ctx: int, kv_type: str) -> None:
        self._model = model
        self._core: _core.Session | None = model._engine().session(n_ctx=n_ctx, kv_type=kv_format(kv_type))
        self._timeline: list[int] = []  # kept here because the engine cannot be asked while it runs
        self._n_pending = 0  # how many at the end of the timeline have not been run yet
        self._stream: Stream | None = None
        self._busy = False

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
            self._advance([], None, None)
            return self._engine().logits()

    def append(
        self, prompt: Prompt, *, cancel: _core.StopToken | None = None, progress: Progress | None = None
    ) -> None:
        """Runs a prompt after what is there. BOS is added only to the start of an empty session."""
        check_callbacks(cancel, progress)
        with self._model._lock:
            self._idle()
            ids = self._ids(prompt)
            self._check_room(ids)
            self._close_stream()
            self._advance(ids, cancel, progress)

    @overload
    def generate(
        self, prompt: Prompt | None = ..., *, stream: Literal[False] = ..., **options: Unpack[GenerateOptions]
    ) -> Reply: ...
    @overload
    def generate(
        self, prompt: Prompt | None = ..., *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompt | None = ..., *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream: ...
    def generate(
        self, prompt: Prompt | None = None, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream:
        """Continues the timeline, after appending `prompt` if given. Takes the options of
        `Model.generate`.
        """
        unknown = options.keys() - GenerateOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
        with self._model._lock:
            self._idle()
            ids = [] if prompt is None else self._ids(prompt)
            if not ids and not self.n_tokens:
                raise ValueError("the session is empty; give a prompt")
            request = make_request(self._model, ids, **options)
            self._check_room(ids)
            self._close_stream()
            running = self._start(request)
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
            self._n_pending = max(0, n - run)

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

    def _ids(self, prompt: Prompt) -> list[int]:
        return prompt_ids(self._model.tokenizer, prompt, add_bos=self.n_tokens == 0)

    def _idle(self) -> None:
        """Refuses a call made from inside a running one, such as by its progress callback."""
        self._engine()
        if self._busy:
            raise Error("the session is busy; a progress callback cannot run it")

    def _check_room(self, ids: list[int]) -> None:
        wanted = self.n_tokens + len(ids)
        if wanted > self.n_ctx:
            raise too_long(wanted, self.n_ctx)

    def _start(self, request: Request, *, owned: bool = False) -> Stream:
        self._check_room(request.ids)
        self._stream = Stream(self, request, owns_session=owned)
        return self._stream

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _stream_ended(self, stream: Stream, *, close: bool) -> None:
        if self._stream is stream:
            self._stream = None
        if close:
            self._core = None

    def _advance(self, ids: list[int], stop: _core.StopToken | None, progress: Progress | None) -> None:
        """Runs the pending tokens and `ids`. On any error the timeline stays as it was."""
        with self._model._lock:
            self._idle()
            self._check_room(ids)
            tokens = self._timeline[self.n_tokens - self._n_pending :] + ids
            if tokens:
                self._busy = True
                try:
                    self._engine().append(np.array(tokens, np.int32), stop=stop, progress=progress)
                finally:
                    self._busy = False
            self._timeline += ids
            self._n_pending = 0

    def _sample(self, sampler: _core.Sampler, n_prompt: int) -> tuple[int, float, list[tuple[int, float]]]:
        with self._model._lock:
            token, logprob, top = self._engine().sample(sampler, n_prompt)
            self._timeline.append(token)
            self._n_pending += 1
            return token, logprob, top


def make_request(
    model: "Model",
    ids: list[int],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Iterable[str] | None = None,
    logprobs: int | None = None,
    cancel: _core.StopToken | None = None,
    progress: Progress | None = None,
) -> Request:
    """Checks the options of `generate` and fills in the defaults."""
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens, 0, 2**63)
    if logprobs is not None:
        logprobs = whole("logprobs", logprobs, 0, 100)
    check_callbacks(cancel, progress)
    params = SamplingParams.resolve(
        model._sampling_defaults,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        seed=seed,
    )
    model.tokenizer.check_ids(params.logit_bias)
    return Request(ids, params, max_tokens, _stops(stop), logprobs, cancel, progress)


def _stops(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    if not isinstance(stop, Iterable):
        raise TypeError(f"stop must be a non-empty string or a list of such, not {stop!r}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(text, str) or not text for text in stops):
        raise ValueError(f"stop must be a non-empty string or a list of such, not {stop!r}")
    return stops


def check_callbacks(cancel: object, progress: object) -> None:
    """Refuses what cannot cancel or be called."""
    if cancel is not None and not isinstance(cancel, _core.StopToken):
        raise TypeError(f"cancel must be a gemmule.StopToken, not {type(cancel).__name__}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of (done, total), not {type(progress).__name__}")


def too_long(wanted: int, n_ctx: int) -> ContextLengthError:
    return ContextLengthError(
        f"{wanted} tokens do not fit into the context of {n_ctx}; "
        "shorten the prompt or open the model with a larger n_ctx",
        n_prompt=wanted,
        n_ctx=n_ctx,
    )


def perplexity(logprobs: NDArray[np.float32]) -> tuple[float, float]:
    """exp(mean nll) and its standard error, perplexity * sqrt(var(nll) / (n - 1))."""
    n = len(logprobs)
    if not n:
        return math.nan, math.nan
    nll = -logprobs.astype(np.float64)
    value = math.exp(nll.mean())
    return value, value * math.sqrt(nll.var() / (n - 1)) if n > 1 else math.nan
