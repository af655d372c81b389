"""A model opened from one GGUF file: logits, scores, hidden states, text and chat. See also _session.py,
_stream.py and _chat/plan.py.
"""

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._cancel import cancelled_by
from gemmule._checks import MAX_CONTEXT, MAX_THREADS, byte_size, kv_format, path_text, whole
from gemmule._drafter import DrafterChoice, drafter_of, load_drafter
from gemmule._drafting import Drafts
from gemmule._errors import Cancelled, DeviceError, Error
from gemmule._inspect import info_of
from gemmule._media.embedder import MediaFrontEnd, open_mmproj
from gemmule._plan import ContextSize, Room, SnapshotLimit, checked_context, choose_plan, snapshot_bytes
from gemmule._prompt import EMPTY, Prompt, PromptLike, Span, build_prompt
from gemmule._request import ChatOptions, GenerateOptions, Progress, Request, check_callbacks
from gemmule._roofline import Roofline, kept_roofline
from gemmule._sampling import SamplingParams
from gemmule._score import Windows, score_windows
from gemmule._session import Session, check_options
from gemmule._stream import Stream
from gemmule._tokenizer import Tokenizer
from gemmule._truncate import answer_room, cut_rows, policy_of, too_long
from gemmule._types import MemoryPlan, ModelInfo, Reply, Score, TokenCount

if TYPE_CHECKING:
    from gemmule._chat.async_stream import AsyncStream
    from gemmule._chat.messages import Message, ToolCall
    from gemmule._chat.template import ChatTemplate

__all__ = ["Model"]

_LEAST = 256  # tokens that an answer of unknown length must have room for


class Model:
    """Weights, tokenizer and defaults of one file. A context manager; thread-safe.

    n_ctx: "auto" (the largest context up to the trained one with which a tenth of the memory stays free; a
    new session takes less where less is free by then), "max" (what the model was trained for) or a number.
    What does not fit is refused with NotEnoughMemoryError before anything is allocated. n_threads: None uses
    all physical cores. kv_type: the number format of the cache, "f16", "q8_0" or "f32", or one for each kind
    of layer, "sliding=f16,global=q8_0". mmproj: the file with the image and audio embedders; None takes those
    inside the model file, else the one lying beside it; False takes none. drafter: the file with the
    small model that guesses tokens ahead; "auto" takes the one inside the model file, else the one that fits
    and lies beside it (mtp-*.gguf, *assistant*.gguf); False takes none. packed: whether weights are brought
    into the kernels' own order while the model runs, which takes no more memory but memory of its own instead
    of the file's pages; "auto" does so where it fits. memory_limit: what the model and its sessions may take,
    in bytes or such as "7.5GB". isa: None picks the best instruction set ($GEMMULE_CPU_ISA overrides). The
    results do not depend on n_threads, packed or isa.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: ContextSize = "auto",
        n_threads: int | None = None,
        device: str = "auto",
        kv_type: str = "f16",
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
        drafter: DrafterChoice = "auto",
        packed: bool | Literal["auto"] = "auto",
        memory_limit: int | str | None = None,
        snapshot_limit: SnapshotLimit = "auto",
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
        if not (packed == "auto" or isinstance(packed, bool)):
            raise TypeError(f"packed must be True, False or 'auto', not {packed!r}")
        limit = None if memory_limit is None else byte_size("memory_limit", memory_limit)
        self._snapshot_limit = snapshot_bytes(snapshot_limit)
        packing = {"auto": "auto", True: "always", False: "never"}[packed]
        self._file = file = _core.GgufFile(path_text(path))
        embedders, draft_file = open_mmproj(file, mmproj), drafter_of(file, drafter)
        self._plan = choose_plan(
            file,
            n_ctx,
            kv_type=kv_type,
            memory_limit=limit,
            mmproj=embedders,
            drafter=draft_file,
            snapshot_limit=self._snapshot_limit,
            packing=packing != "never",
        )
        self._room = Room(file, self._plan, limit)
        self._adapts = n_ctx == "auto"
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        roofline = kept_roofline() or Roofline(())
        core = _core.Model(
            file, n_threads=wanted or 0, isa=chosen_isa, packing=packing,
            decode_threads=roofline.decode_threads(),
        )  # fmt: skip
        self._tokenizer = Tokenizer(file)
        self._media = MediaFrontEnd(file.path, embedders, self._tokenizer)
        self._suppress = list(core.suppress_tokens)
        self._isa, self._n_threads = core.isa, core.n_threads
        loaded = load_drafter(core, draft_file, was_found=drafter == "auto")
        if loaded is None and draft_file is not None:
            total = self._plan.total - self._plan.drafter
            self._plan = dataclasses.replace(self._plan, drafter=0, total=total)
        self._drafts = Drafts(core, loaded, roofline)
        self._core = core

    # -- facts ---------------------------------------------------------------------------------------------

    @cached_property
    def info(self) -> ModelInfo:
        """What the file says about itself."""
        return info_of(self._file, self._media.file, has_drafter=self._plan.drafter > 0)

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

    def logits(self, prompt: PromptLike, *, all: bool = False) -> NDArray[np.float32]:
        """The model's output after the last token, float32 [n_vocab]; with `all` after each, [n_tokens,
        n_vocab].
        """
        with self._lock:
            rows, session = self._fresh(prompt)
            ids, media = np.array(rows.tokens, np.int32), self._embed(rows.spans, 0, None)
            if all:
                return session.append_logits(ids, media=media)
            session.append(ids, media=media)
            return session.logits()

    def hidden(self, prompt: PromptLike) -> NDArray[np.float32]:
        """The hidden state of each token after the final norm: float32 [n_tokens, d_model]."""
        with self._lock:
            rows, session = self._fresh(prompt)
            ids = np.array(rows.tokens, np.int32)
            return session.append_hidden(ids, media=self._embed(rows.spans, 0, None))

    def score(
        self,
        text_or_ids: "str | Sequence[int] | NDArray[np.integer[Any]]",
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
        rows = build_prompt(self._tokenizer, self._media, text_or_ids)
        if rows.spans:
            raise ValueError("only text can be scored; logits(prompt, all=True) takes media")
        bos = self._tokenizer.bos_id if self._tokenizer.adds_bos else None
        cut = Windows.of(np.array(rows.tokens, np.int32), n_ctx, bos)
        with self._lock:
            session = self._engine().session(n_ctx=cut.size, kv_type=self._plan.kv_type, snapshot_limit=0)
            return score_windows(session, cut, top, cancel, progress)

    # -- text ----------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: PromptLike, *, stream: Literal[False] = ..., **options: Unpack[GenerateOptions]
    ) -> Reply: ...
    @overload
    def generate(
        self, prompt: PromptLike, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: PromptLike, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream: ...
    def generate(
        self, prompt: PromptLike, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Reply | Stream:
        """Continues a prompt, as it is, without the chat template.

        max_tokens: None goes on until the model ends or the context is full.
        temperature, top_k, top_p, min_p: None means the file's own value; temperature 0 is greedy.
        repeat_penalty, presence_penalty, frequency_penalty, logit_bias (id -> number added).
        seed: None draws one, which the reply reports.
        stop: a string or several, at which the answer ends.
        logprobs: n adds each token's log-probability and the n likeliest alternatives.
        schema, regex, choices, grammar: at most one; what the answer must look like (see `chat`).
        draft: "auto" runs tokens ahead that are expected, where that is faster, which never changes the
        answer: those that the model's drafter expects, or that followed the same words before. "mtp" and
        "lookup" use one of the two, a number drafts so many each time, False none.
        image_tokens: 70, 140, 280, 560 or 1120, the detail at which images are seen.
        truncation: "error" refuses a prompt that does not fit; "oldest" leaves out its beginning, "middle"
        its middle, and says so in `reply.warnings` and `reply.usage.dropped_tokens`. In `chat` these leave
        out whole turns, the oldest ones or those after the first; system, tools and the last turn stay.
        cancel: a StopToken that ends the work from anywhere; progress(done, total): called during the prompt.
        """
        check_options("generate", options, GenerateOptions)
        policy_of(options)
        rows = self._rows(prompt, options)
        return self._answer(self._cut_request(rows, options, self.n_ctx), stream)

    @overload
    def chat(
        self, messages: Any, *, stream: Literal[False] = ..., **options: Unpack[ChatOptions]
    ) -> Reply: ...
    @overload
    def chat(self, messages: Any, *, stream: Literal[True], **options: Unpack[ChatOptions]) -> Stream: ...
    @overload
    def chat(self, messages: Any, *, stream: bool, **options: Unpack[ChatOptions]) -> Reply | Stream: ...
    def chat(self, messages: Any, *, stream: bool = False, **options: Unpack[ChatOptions]) -> Reply | Stream:
        """Answers a message or a conversation through the file's chat template.

        messages: a text, or messages in the dialect of OpenAI, transformers, llama.cpp or Ollama.
        system: a system message in front.
        images, audio, videos: one or several, put before the last user text.
        think: False, True, or the most tokens to think; the thoughts are in `reply.thinking`, and max_tokens
        counts the answer alone.
        tools: functions (signature and docstring become the schema) or OpenAI declarations; calls come back
        in `reply.tool_calls` with arguments that fit the schema.
        tool_choice: "auto", "none", "required" or a name. parallel_tool_calls: False ends after one call.
        schema: what the answer must be: a JSON schema, a pydantic model, msgspec Struct, dataclass, TypedDict
        or a type such as list[int]; `reply.parsed` is the value. regex, choices, grammar (Lark or GBNF): the
        same for text. They begin after the thinking.
        And everything `generate` takes.
        """
        check_options("chat", options, ChatOptions)
        history = self._conversation((), messages, options)
        return self._answer(self._chat_request(history, options, self.n_ctx), stream)

    def act(
        self,
        messages: Any,
        *,
        tools: Sequence[Any],
        max_rounds: int = 8,
        on_call: "Callable[[ToolCall], bool | None] | None" = None,
        **options: Any,
    ) -> Reply:
        """`chat`, running the functions it asks for and answering with their results, until it needs none.

        on_call(call) may return False to refuse a call; the model is told. A function that raises does not
        end the work: the model gets the error. `reply.usage` counts the last round, `reply.warnings` says
        when the rounds were used up. Takes the other options of `chat`.
        """
        from gemmule._chat.act import act

        check_options("act", options, ChatOptions)
        return act(
            self,
            messages,
            tools=tools,
            max_rounds=max_rounds,
            on_call=on_call,
            options=cast(ChatOptions, options),
        )

    def create_chat_completion(self, **request: Any) -> Any:
        """OpenAI's chat completion: its request as keywords, its response as a dict, or with stream=True an
        iterator of its chunks.
        """
        from gemmule._chat.openai import create_chat_completion

        return create_chat_completion(self, request)

    async def agenerate(
        self, prompt: PromptLike, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> "Reply | AsyncStream":
        """`generate` without blocking the event loop; cancelling the task stops the engine."""
        from gemmule._chat.async_stream import run

        return await run(self.generate, prompt, options, stream)

    async def achat(
        self, messages: Any, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> "Reply | AsyncStream":
        """`chat` without blocking the event loop; cancelling the task stops the engine."""
        from gemmule._chat.async_stream import run

        return await run(self.chat, messages, options, stream)

    def render(self, messages: Any, **options: Unpack[ChatOptions]) -> Prompt:
        """The exact prompt of a chat request: text, token ids, tokens of each modality. Takes the options of
        `chat`; `generate` and `logits` take the result.
        """
        check_options("render", options, ChatOptions)
        return self._chat_request(self._conversation((), messages, options), options, self.n_ctx).prompt

    def count_tokens(self, messages_or_text: Any, **options: Unpack[ChatOptions]) -> TokenCount:
        """How many tokens a prompt has, and how many of them are image, audio and video. Text and parts count
        as `generate` takes them (without BOS); messages as `chat` renders them. Nothing is run.
        """
        check_options("count_tokens", options, ChatOptions)
        from gemmule._chat.messages import is_conversation

        if options or is_conversation(messages_or_text):
            return self.render(messages_or_text, **options).count
        return build_prompt(self._tokenizer, self._media, messages_or_text, add_bos=False).count

    def session(
        self,
        *,
        system: str | None = None,
        n_ctx: int | None = None,
        kv_type: str | None = None,
        snapshot_limit: SnapshotLimit | None = None,
    ) -> Session:
        """A new empty timeline; its context and limits default to the model's. `system` begins its
        conversation.

        Throws NotEnoughMemoryError where its keys and values would not fit beside the weights and the other
        sessions.
        """
        kv_type = self._plan.kv_type if kv_type is None else kv_format(kv_type)
        size = self.n_ctx if n_ctx is None else whole("n_ctx", n_ctx, 1, MAX_CONTEXT)
        least = min(size, _LEAST) if self._adapts and n_ctx is None else size
        return self._new_session(size, least, kv_type, self._snapshots(snapshot_limit), system)

    def load_session(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        snapshot_limit: SnapshotLimit | None = None,
        cancel: _core.StopToken | None = None,
    ) -> Session:
        """A session that `Session.save` has written, with the context it had or another one. Refuses files of
        other models and damaged ones with FormatError.
        """
        check_callbacks(cancel, None)
        size = 0 if n_ctx is None else whole("n_ctx", n_ctx, 1, MAX_CONTEXT)
        name, limit = path_text(path), self._snapshots(snapshot_limit)
        with self._lock:
            core, front = self._engine().load_session(name, n_ctx=size, snapshot_limit=limit, stop=cancel)
            return Session._loaded(self, name, core, front)

    # -- life ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the weights. Calling it again does nothing; later use of the model raises Error."""
        with self._lock:
            self._core = None
            self._drafts.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"n_ctx={self.n_ctx}, n_threads={self.n_threads}, isa={self.isa!r}"
        return f"Model({self._file.path!r}, {'closed' if self._core is None else state})"

    def _engine(self) -> _core.Model:
        if self._core is None:
            raise Error("the model is closed")
        return self._core

    def _snapshots(self, limit: SnapshotLimit | None) -> int:
        return self._snapshot_limit if limit is None else snapshot_bytes(limit)

    def _fresh(self, prompt: PromptLike) -> tuple[Prompt, _core.Session]:
        rows = build_prompt(self._tokenizer, self._media, prompt)
        n = max(len(rows), 1)
        if n > self.n_ctx:
            raise too_long(n, self.n_ctx)
        self._context(n, n, self._plan.kv_type)
        return rows, self._engine().session(n_ctx=n, kv_type=self._plan.kv_type, snapshot_limit=0)

    def _context(self, wanted: int, least: int, kv_type: str, spare: int = 0) -> int:
        """The context of a new session: `wanted`, or as much as fits beside `spare` bytes, but `least`."""
        left = self._left()
        return self._room.context(wanted, least, kv_type, None if left is None else left - spare)

    def _left(self) -> int | None:
        others = [session._kv_bytes() for session in list(self._sessions)]
        return self._room.left(self._engine().packed_bytes, others)

    def _new_session(
        self,
        wanted: int,
        least: int,
        kv_type: str,
        snapshot_limit: int,
        system: str | None = None,
        spare: int = 0,
    ) -> Session:
        with self._lock:
            n_ctx = self._context(wanted, least, kv_type, spare)
            core = self._engine().session(n_ctx=n_ctx, kv_type=kv_type, snapshot_limit=snapshot_limit)
            return Session(self, core, kv_type=kv_type, system=system)

    def _rows(self, prompt: PromptLike, options: GenerateOptions, *, add_bos: bool = True) -> Prompt:
        """The rows of a prompt; none of one that was cancelled while its media were decoded."""
        try:
            with cancelled_by(options.get("cancel")):
                n = options.get("image_tokens")
                return build_prompt(self._tokenizer, self._media, prompt, add_bos=add_bos, image_tokens=n)
        except Cancelled:
            return EMPTY

    # -- used by Session and the chat modules --------------------------------------------------------------

    @cached_property
    def _template(self) -> "ChatTemplate | None":
        from gemmule._chat.plan import template_of

        return template_of(self._file)

    def _answer(self, request: Request, stream: bool) -> Reply | Stream:
        # No more cache than this answer can use: short answers then start without touching much memory.
        n_ctx, n_prompt = self.n_ctx, len(request.prompt)
        if n_prompt > n_ctx:
            raise too_long(n_prompt, n_ctx)
        thinks = request.dialogue is not None and request.dialogue.thinks
        if request.max_tokens is not None and not thinks:
            n_ctx = max(1, min(n_ctx, n_prompt + request.max_tokens))
        least = min(n_ctx, n_prompt + (_LEAST if request.max_tokens is None else request.max_tokens))
        kv_type = self._plan.kv_type
        spare = self._room.extra(request, self._tokenizer, n_ctx, kv_type)
        session = self._new_session(n_ctx, max(1, least), kv_type, 0, spare=spare)
        running = session._start(request, owned=True)
        return running if stream else running.reply

    def _raw_request(self, rows: Prompt, options: GenerateOptions, dropped_tokens: int = 0) -> Request:
        from gemmule._chat.plan import raw_request

        return raw_request(self, rows, options, dropped_tokens)

    def _cut_request(self, rows: Prompt, options: GenerateOptions, n_ctx: int) -> Request:
        """A continuation of rows, cut to fit into `n_ctx` where the options allow it."""
        n_kept = 1 if rows.tokens[:1] == (self._tokenizer.bos_id,) else 0
        request = self._raw_request(rows, options)
        room = n_ctx - answer_room(request.max_tokens, n_ctx)
        rows, dropped_tokens = cut_rows(rows, policy_of(options), room, n_kept)
        return self._raw_request(rows, options, dropped_tokens) if dropped_tokens else request

    def _conversation(
        self, before: "tuple[Message, ...]", messages: Any, options: ChatOptions
    ) -> "tuple[Message, ...]":
        from gemmule._chat.plan import conversation

        return conversation(before, messages, options)

    def _chat_request(self, history: "tuple[Message, ...]", options: ChatOptions, n_ctx: int) -> Request:
        from gemmule._chat.plan import chat_request

        return chat_request(self, history, options, n_ctx)

    def _embed(
        self, spans: Sequence[Span], offset: int, stop: _core.StopToken | None
    ) -> list[tuple[int, NDArray[np.float32], bool]]:
        """The embeddings of pictures and sounds, with their rows moved by `offset`."""
        engine, media = self._engine(), self._media
        return [
            (span.first + offset, media.embed(engine, span.source, stop), span.is_block and media.has_blocks)
            for span in spans
        ]
