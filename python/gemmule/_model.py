"""A model opened from one GGUF file: logits, scores, hidden states and text. See also _session.py and
_stream.py.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._checks import MAX_CONTEXT, MAX_THREADS, kv_format, path_text, whole
from gemmule._errors import DeviceError, Error
from gemmule._inspect import ContextSize, checked_context, choose_plan, info_of
from gemmule._prompt import Prompt, prompt_ids
from gemmule._sampling import SamplingParams
from gemmule._session import (
    GenerateOptions,
    Progress,
    Session,
    check_callbacks,
    make_request,
    perplexity,
    too_long,
)
from gemmule._stream import Stream
from gemmule._tokenizer import Tokenizer
from gemmule._types import MemoryPlan, ModelInfo, Reply, Score

__all__ = ["Model"]


class Model:
    """Weights, tokenizer and defaults of one file. A context manager; thread-safe.

    n_ctx: "auto" (the largest of 4k, 8k, 16k, 32k that fits), "max" (what the model was trained for) or a
    number. n_threads: None uses all physical cores. kv_type: "f16" or "f32". isa: None picks the best
    instruction set ($GEMMULE_CPU_ISA overrides). The results do not depend on n_threads or isa.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: ContextSize = "auto",
        n_threads: int | None = None,
        device: str = "auto",
        kv_type: str = "f16",
        isa: str | None = None,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise DeviceError(f"this build has no device {device!r}; choose 'auto' or 'cpu'")
        if isa is not None and not isinstance(isa, str):
            raise TypeError(f"isa must be None or the name of a level such as 'avx2', not {isa!r}")
        wanted = None if n_threads is None else whole("n_threads", n_threads, 1, MAX_THREADS)
        n_ctx, kv_type = checked_context(n_ctx), kv_format(kv_type)
        self._lock = threading.RLock()
        self._core: _core.Model | None = None
        chosen_isa = isa if isa is not None else os.environ.get("GEMMULE_CPU_ISA", "")
        core = _core.Model(path_text(path), n_threads=wanted or 0, isa=chosen_isa)
        self._plan = choose_plan(core.file, n_ctx, kv_type=kv_type)
        self._file = core.file
        self._tokenizer = Tokenizer(core.file)
        self._suppress = list(core.suppress_tokens)
        self._isa, self._n_threads = core.isa, core.n_threads
        self._core = core

    # -- facts ---------------------------------------------------------------------------------------------

    @cached_property
    def info(self) -> ModelInfo:
        """What the file says about itself."""
        return info_of(self._file)

    @property
    def plan(self) -> MemoryPlan:
        """Memory needed, the context chosen and why."""
        return self._plan

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; built at first use."""
        return self._tokenizer

    @property
    def n_ctx(self) -> int:
        """Context size of new sessions."""
        return self._plan.n_ctx

    @property
    def n_threads(self) -> int:
        """Number of compute threads."""
        return self._n_threads

    @property
    def isa(self) -> str:
        """The instruction-set level in use."""
        return self._isa

    @property
    def suppress_tokens(self) -> list[int]:
        """Ids that are never sampled."""
        return list(self._suppress)

    @cached_property
    def _sampling_defaults(self) -> dict[str, float]:
        keys = [key for key in self._file.keys() if key.startswith("general.sampling.")]  # noqa: SIM118
        return SamplingParams.file_defaults({key: self._file.get(key) for key in keys})

    # -- numbers -------------------------------------------------------------------------------------------

    def logits(self, prompt: Prompt, *, all: bool = False) -> NDArray[np.float32]:
        """The model's output after the last token, float32 [n_vocab]; with `all` after each, [n_tokens,
        n_vocab].
        """
        with self._lock:
            ids, session = self._fresh(prompt)
            if all:
                return session.append_logits(ids)
            session.append(ids)
            return session.logits()

    def hidden(self, prompt: Prompt) -> NDArray[np.float32]:
        """The hidden state of each token after the final norm: float32 [n_tokens, d_model]."""
        with self._lock:
            ids, session = self._fresh(prompt)
            return session.append_hidden(ids)

    def score(
        self,
        text_or_ids: Prompt,
        *,
        n_ctx: int = 512,
        top: int = 0,
        cancel: _core.StopToken | None = None,
        progress: Progress | None = None,
    ) -> Score:
        """Log-probabilities of a text, in the windows of llama.cpp's perplexity tool.

        The text is encoded with BOS and cut into whole windows of `n_ctx` tokens; a shorter rest is
        dropped. The first token of each window is replaced by BOS if the model uses one. Each window is run
        on its own and the tokens at n_ctx/2 + 1 .. n_ctx - 1 are scored, so each has at least half a window
        before it. A text shorter than one window is one window, of which every token but the first is
        scored. `top` adds the likeliest tokens at each place.
        """
        n_ctx = whole("n_ctx", n_ctx, 4, MAX_CONTEXT)
        top = whole("top", top, 0, 1000)
        check_callbacks(cancel, progress)
        ids = np.array(prompt_ids(self._tokenizer, text_or_ids), np.int32)
        if len(ids) < 2:
            raise ValueError("a text of one token has nothing to score")
        short = len(ids) < n_ctx
        size = len(ids) if short else n_ctx
        first = 0 if short else n_ctx // 2  # the first position whose next token is scored
        bos = self._tokenizer.bos_id if self._tokenizer.adds_bos and not short else None
        n_windows = len(ids) // size
        tokens: list[int] = []
        logprobs: list[NDArray[np.float32]] = []
        tops: list[tuple[tuple[int, float], ...]] = []
        with self._lock:
            session = self._engine().session(n_ctx=size, kv_type=self._plan.kv_type)
            for i in range(n_windows):
                window = ids[i * size : (i + 1) * size].copy()
                if bos is not None:
                    window[0] = bos
                session.rewind(0)
                if first:
                    session.append(window[:first], stop=cancel)
                values, top_ids, top_values = session.append_score(
                    window[first:-1], window[first + 1 :], top=top, stop=cancel
                )
                logprobs.append(values)
                tokens += window[first + 1 :].tolist()
                if top:
                    rows = zip(top_ids.tolist(), top_values.tolist(), strict=True)
                    tops += [tuple(zip(row, row_values, strict=True)) for row, row_values in rows]
                if progress is not None:
                    progress(i + 1, n_windows)
        flat = np.concatenate(logprobs)
        value, error = perplexity(flat)
        return Score(tuple(tokens), tuple(flat.tolist()), len(tokens), value, error, size, tuple(tops))

    # -- text ----------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = ..., **options: Unpack[GenerateOptions]
    ) -> Reply: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream: ...
    def generate(
        self,
        prompt: Prompt,
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
        stream: bool = False,
        cancel: _core.StopToken | None = None,
        progress: Progress | None = None,
    ) -> Reply | Stream:
        """Continues a prompt.

        Sampling values left at None come from the file; temperature 0 is greedy; without a seed one is
        drawn and reported in the reply. `max_tokens=None` goes on until the model ends or the context is
        full. `logprobs=n` adds each token's log-probability and the n likeliest alternatives.
        `progress(done, total)` is called during the prompt.
        """
        request = make_request(
            self,
            prompt_ids(self._tokenizer, prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            seed=seed,
            stop=stop,
            logprobs=logprobs,
            cancel=cancel,
            progress=progress,
        )
        # No more cache than this answer can use: short answers then start without touching much memory.
        n_ctx = self.n_ctx
        if request.max_tokens is not None and len(request.ids) <= n_ctx:
            n_ctx = min(n_ctx, len(request.ids) + request.max_tokens)
        session = Session(self, n_ctx=n_ctx, kv_type=self._plan.kv_type)
        running = session._start(request, owned=True)
        return running if stream else running.reply

    def session(self, *, n_ctx: int | None = None, kv_type: str | None = None) -> Session:
        """A new empty timeline; its context defaults to the model's."""
        size = self.n_ctx if n_ctx is None else whole("n_ctx", n_ctx, 1, MAX_CONTEXT)
        return Session(self, n_ctx=size, kv_type=self._plan.kv_type if kv_type is None else kv_type)

    # -- life ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the weights. Calling it again does nothing; later use of the model raises Error."""
        with self._lock:
            self._core = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = (
            "closed"
            if self._core is None
            else f"n_ctx={self.n_ctx}, n_threads={self.n_threads}, isa={self.isa!r}"
        )
        return f"Model({self._file.path!r}, {state})"

    def _engine(self) -> _core.Model:
        if self._core is None:
            raise Error("the model is closed")
        return self._core

    def _fresh(self, prompt: Prompt) -> tuple[NDArray[np.int32], _core.Session]:
        ids = np.array(prompt_ids(self._tokenizer, prompt), np.int32)
        if len(ids) > self.n_ctx:
            raise too_long(len(ids), self.n_ctx)
        return ids, self._engine().session(n_ctx=max(len(ids), 1), kv_type=self._plan.kv_type)
