"""The result types: frozen dataclasses with `to_dict()` and a readable `str()`.

Field names follow the OpenAI reply (usage) and llama.cpp's server (timings) where those have a name.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gemmule._chat.messages import Message, ToolCall
    from gemmule._drafting import DraftCounts

__all__ = [
    "ConvertReport",
    "Delta",
    "Device",
    "MemoryPlan",
    "ModelInfo",
    "Reply",
    "Score",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "Usage",
    "VerifyReport",
]


class Delta(str):
    """A piece of a streamed answer: a string, so it can be printed and joined; `text` is the same string.

    `kind` is "text", "thinking" or "tool_call". Of the other two kinds the string is empty: what the model
    thinks is in `thinking`, a finished call in `call`, so printing every delta prints the answer alone.
    """

    kind: Literal["text", "thinking", "tool_call"]
    thinking: str
    call: "ToolCall | None"

    def __new__(cls, text: str = "", *, thinking: str = "", call: "ToolCall | None" = None) -> "Delta":
        delta = super().__new__(cls, text)
        delta.kind = "tool_call" if call is not None else "thinking" if thinking else "text"
        delta.thinking = thinking
        delta.call = call
        return delta

    @property
    def text(self) -> str:
        """The new text of the answer."""
        return str(self)


class TokenCount(int):
    """The tokens of a prompt: a number, with the share of each modality. Markers and time stamps are text."""

    image: int
    audio: int
    video: int

    def __new__(cls, total: int, *, image: int = 0, audio: int = 0, video: int = 0) -> "TokenCount":
        count = super().__new__(cls, total)
        count.image, count.audio, count.video = image, audio, video
        return count

    @property
    def text(self) -> int:
        """Tokens that are no picture and no sound."""
        return int(self) - self.image - self.audio - self.video

    def to_dict(self) -> dict[str, int]:
        """All five numbers."""
        return {
            "total": int(self),
            "text": self.text,
            "image": self.image,
            "audio": self.audio,
            "video": self.video,
        }


class _Record:
    """Adds `to_dict()` to the dataclasses below."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for json.dumps."""
        out = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in out.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Usage(_Record):
    """Token counts of one request. `cached_tokens` of the prompt were not run, because the session holds
    them; image, audio and video tokens are those of the prompt, `reasoning_tokens` those of the completion
    that were thinking. `dropped_tokens` were left out of the prompt, as `truncation` allowed.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    video_tokens: int = 0
    reasoning_tokens: int = 0
    dropped_tokens: int = 0

    def __str__(self) -> str:
        parts = [
            f"{n} {what}"
            for n, what in (
                (self.cached_tokens, "cached"),
                (self.image_tokens, "image"),
                (self.audio_tokens, "audio"),
                (self.video_tokens, "video"),
                (self.dropped_tokens, "more left out"),
            )
            if n
        ]
        inside = f" ({', '.join(parts)})" if parts else ""
        thought = f" ({self.reasoning_tokens} thinking)" if self.reasoning_tokens else ""
        return (
            f"{self.prompt_tokens} prompt tokens{inside}, {self.completion_tokens} completion tokens{thought}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Timings(_Record):
    """Wall-clock times. `prompt_*` is the prefill of the new tokens, `predicted_*` the generated ones.

    The first answer token comes out of the prefill, so `predicted_per_second` counts the others. `draft_n`
    tokens were drafted and run ahead, `draft_n_accepted` of them became part of the answer;
    `draft_acceptance` is the share of right drafts at the first place of a round, at the second where the
    first was right, and so on.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    draft_acceptance: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        prompt_n: int,
        prompt_seconds: float,
        predicted_n: int,
        seconds: float,
        n_steps: int,
        drafts: "DraftCounts | None" = None,
    ) -> "Timings":
        return cls(
            prompt_n=prompt_n,
            prompt_ms=prompt_seconds * 1e3,
            prompt_per_second=prompt_n / prompt_seconds if prompt_seconds > 0 else 0.0,
            predicted_n=predicted_n,
            predicted_ms=seconds * 1e3,
            predicted_per_second=n_steps / seconds if seconds > 0 else 0.0,
            draft_n=0 if drafts is None else drafts.drafted,
            draft_n_accepted=0 if drafts is None else drafts.accepted,
            draft_acceptance=() if drafts is None else drafts.acceptance,
        )

    def __str__(self) -> str:
        drafts = f", {self.draft_n_accepted} of {self.draft_n} drafts right" if self.draft_n else ""
        return (
            f"prompt {self.prompt_n} tokens in {self.prompt_ms:.0f} ms "
            f"({self.prompt_per_second:.1f} tokens/s), "
            f"answer {self.predicted_n} tokens in {self.predicted_ms:.0f} ms "
            f"({self.predicted_per_second:.1f} tokens/s){drafts}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob(_Record):
    """Log-probability of one generated token under the model's own softmax, with the most likely
    alternatives.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.text!r} {self.logprob:.4f}"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply(_Record):
    """What one request produced. `str(reply)` is the text.

    `thinking` and `tool_calls` come from `chat`; `parsed` is the answer as the type asked for with `schema`.
    `tokens` are all generated ids, the ending token included when the model chose to stop; `finish_reason`
    is "stop" (end token, stop string, or the grammar is complete), "length" (max_tokens or context full),
    "tool_calls" or "cancelled". `message` is the answer as the next turn of a conversation wants it.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    seed: int
    usage: Usage = Usage()
    timings: Timings = Timings()
    logprobs: tuple[TokenLogprob, ...] | None = None
    warnings: tuple[str, ...] = ()
    thinking: str = ""
    tool_calls: "tuple[ToolCall, ...]" = ()
    parsed: Any = None

    @property
    def message(self) -> "Message":
        """The answer as a message of the conversation."""
        from gemmule._chat.messages import Message

        content = (self.text,) if self.text else ()
        return Message("assistant", content, thinking=self.thinking, tool_calls=self.tool_calls)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for json.dumps."""
        # super() needs the class cell, which a dataclass with slots replaces.
        out = _Record.to_dict(dataclasses.replace(self, tool_calls=(), parsed=None))
        out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        out["parsed"] = _plain(self.parsed)
        return out

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True, slots=True)
class Score(_Record):
    """Log-probabilities of a text. `perplexity` = exp(mean of -logprob); `perplexity_error` its standard
    error.

    `tokens[i]` was predicted with `logprobs[i]`; `top[i]` lists the most likely ids with their
    log-probabilities.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    n_tokens: int
    perplexity: float
    perplexity_error: float
    n_ctx: int
    top: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f} +/- {self.perplexity_error:.4f} "
            f"({self.n_tokens} tokens, context {self.n_ctx})"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo(_Record):
    """What a file says about itself, read from its header."""

    path: str
    architecture: str
    name: str
    n_params: int
    quantization: str
    file_size: int
    n_ctx_train: int
    n_layers: int
    d_model: int
    n_vocab: int
    modalities: tuple[str, ...] = ("text",)
    has_drafter: bool = False
    sections: tuple[str, ...] = ()
    layout: str = "gguf"

    def __str__(self) -> str:
        return (
            f"{self.name or self.architecture}: {format_count(self.n_params)} parameters, "
            f"{self.quantization}{', packed' if self.layout != 'gguf' else ''}, "
            f"{format_bytes(self.file_size)}, context up to {self.n_ctx_train}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryPlan(_Record):
    """Bytes needed to run a file with a context of `n_ctx`.

    `weights` are mapped from the file, or packed in memory in place of the mapped ones; `kv` are the keys and
    values of one session with a full context; `scratch` is what a step works in; `runtime` the package, its
    libraries and the vocabulary; `media` the embedders of
    images and sound with an image of the usual detail; `snapshots` the budget for turns that can be gone back
    to; `drafter` the draft model. `total` comes on top of what the process holds already. `available` is what
    it may still take, 0 when unknown. `reason`: why this context.
    """

    weights: int
    kv: int
    scratch: int
    total: int
    available: int
    n_ctx: int
    n_ctx_train: int
    kv_type: str
    reason: str = ""
    media: int = 0
    drafter: int = 0
    snapshots: int = 0
    runtime: int = 0

    @property
    def fits(self) -> bool:
        """Whether `total` fits into `available`, with a tenth kept free."""
        return not self.available or self.total <= self.available * 0.9

    def __str__(self) -> str:
        lines = [
            f"weights    {format_bytes(self.weights):>10}",
            f"KV cache   {format_bytes(self.kv):>10}   {self.kv_type}, context {self.n_ctx} of "
            f"{self.n_ctx_train}",
            f"scratch    {format_bytes(self.scratch):>10}",
            *(
                f"{name:<10} {format_bytes(n):>10}"
                for name, n in (
                    ("runtime", self.runtime),
                    ("media", self.media),
                    ("drafter", self.drafter),
                    ("snapshots", self.snapshots),
                )
                if n
            ),
            f"total      {format_bytes(self.total):>10}   {format_bytes(self.available)} available",
        ]
        if self.reason:
            lines.append(f"context    {self.reason}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Device(_Record):
    """Something that can run a model. `isa` is the instruction-set level chosen, `isas` all the machine can
    run.
    """

    name: str
    kind: str
    isa: str
    isas: tuple[str, ...]
    n_physical: int
    n_logical: int
    memory: int

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}, {self.isa}, {self.n_physical} cores, {format_bytes(self.memory)}"


@dataclasses.dataclass(frozen=True, slots=True)
class ConvertReport(_Record):
    """What a conversion wrote, or with `dry_run` would write.

    `tensor_types` counts the tensors of the text model by type, `sections` has the bytes of each part behind
    it. `rms_error` is the relative error of the quantized weights, `weighted_rms_error` the same weighted by
    the importance matrix; both are 0 where nothing was quantized. `seconds` of a dry run is an estimate.
    `layout` is "gguf", or "r8p64" for a packed file.
    """

    path: str
    type: str
    size: int
    tensor_types: dict[str, int]
    bits_per_weight: float
    sections: dict[str, int] = dataclasses.field(default_factory=dict)
    rms_error: float = 0.0
    weighted_rms_error: float = 0.0
    imatrix: str = ""
    seconds: float = 0.0
    bytes_read: int = 0
    peak_memory: int = 0
    layout: str = "gguf"
    dry_run: bool = False
    warnings: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()

    @property
    def n_tensors(self) -> int:
        """Tensors of the text model."""
        return sum(self.tensor_types.values())

    def __str__(self) -> str:
        census = " + ".join(f"{count} {kind}" for kind, count in self.tensor_types.items())
        kind = self.type if self.layout == "gguf" else f"{self.type} packed"
        lines = [
            f"{self.path}: {kind}, {format_bytes(self.size)}, {self.bits_per_weight:.2f} bits a weight",
            f"tensors    {census}",
        ]
        if self.sections:
            parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.sections.items())
            lines.append(f"sections   {parts}")
        if self.rms_error:
            weighted = f", {self.weighted_rms_error:.4%} weighted by importance" if self.imatrix else ""
            lines.append(f"error      {self.rms_error:.4%} of the weights{weighted}")
        if self.dry_run:
            lines.append(f"time       about {self.seconds:.0f} s of computing; nothing was written")
        else:
            lines.append(f"time       {self.seconds:.1f} s, peak memory {format_bytes(self.peak_memory)}")
        return "\n".join([*lines, *self.plan])


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyReport(_Record):
    """What `verify` found. `damaged` names the tensors and sections that are not what was written; `problems`
    is one sentence for each defect. Without checksums in the file only the numbers could be checked.
    """

    path: str
    ok: bool
    has_checksums: bool
    n_tensors: int
    n_bytes: int
    seconds: float
    damaged: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        speed = self.n_bytes / self.seconds if self.seconds > 0 else 0.0
        how = "checksums" if self.has_checksums else "no checksums, so only looked for NaN and infinity"
        found = "all good" if self.ok else f"{len(self.problems)} problems"
        head = (
            f"{self.path}: {found} ({self.n_tensors} tensors, {format_bytes(self.n_bytes)}, {how}, "
            f"{format_bytes(int(speed))}/s)"
        )
        return "\n".join([head, *self.problems])


def _plain(value: Any) -> Any:
    """What json.dumps takes: typed answers become dicts and lists."""
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "model_dump"):  # pydantic, without importing it
        return value.model_dump(mode="json")
    import msgspec

    return msgspec.to_builtins(value)


def context_warnings(n_ctx: int, n_ctx_train: int) -> tuple[str, ...]:
    """What a reader should know about a context of that size."""
    if n_ctx <= n_ctx_train:
        return ()
    return (f"the context of {n_ctx} tokens is above the trained {n_ctx_train}; answers may lose quality",)


def format_bytes(n: int) -> str:
    """1234567 -> '1.2 MB' (decimal units, as file managers and memory vendors count)."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def format_count(n: int) -> str:
    """268098176 -> '268M'."""
    if n < 10**6:
        return str(n)
    return f"{n / 1e9:.2f}B" if n >= 10**9 else f"{n / 1e6:.0f}M"
