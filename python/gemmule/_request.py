"""One checked request: the prompt, how to sample, when to stop, and what the answer must look like."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from gemmule import _core
from gemmule._checks import whole
from gemmule._drafting import DraftOption
from gemmule._prompt import Prompt
from gemmule._sampling import SamplingParams

if TYPE_CHECKING:
    from gemmule._chat.constraint import Constraint
    from gemmule._chat.parser import Markers
    from gemmule._chat.schema import SchemaSpec
    from gemmule._model import Model

__all__ = [
    "ChatOptions",
    "Dialogue",
    "GenerateOptions",
    "Progress",
    "Request",
    "check_callbacks",
    "make_request",
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
    schema: Any
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    draft: DraftOption
    image_tokens: int | None
    truncation: Literal["error", "oldest", "middle"] | None
    cancel: _core.StopToken | None
    progress: Progress | None


class ChatOptions(GenerateOptions, total=False):
    """The options of `chat`: those of `generate`, and what a conversation adds."""

    system: str | None
    images: Any
    audio: Any
    videos: Any
    think: bool | int
    tools: Sequence[Any] | None
    tool_choice: Any
    parallel_tool_calls: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How the tokens of a chat answer are read. `budget` limits the thinking; None: the context does.
    `thinking_open`: the prompt ends inside a thought.
    """

    markers: "Markers"
    tool_names: tuple[str, ...] = ()
    thinks: bool = False
    budget: int | None = None
    thinking_open: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """Everything one generation was asked to do."""

    prompt: Prompt
    params: SamplingParams
    max_tokens: int | None
    stops: tuple[str, ...]
    n_logprobs: int | None
    cancel: _core.StopToken | None
    progress: Progress | None
    schema: "SchemaSpec | None" = None
    make_constraint: "Callable[[], Constraint] | None" = None
    dialogue: Dialogue | None = None
    warnings: tuple[str, ...] = ()
    dropped_tokens: int = 0  # left out of the prompt by `truncation`
    draft: DraftOption = "auto"

    @property
    def image_rows(self) -> int:
        """Tokens of the largest image."""
        return max((span.n for span in self.prompt.spans if span.is_block), default=0)


def make_request(
    model: "Model",
    prompt: Prompt,
    options: GenerateOptions,
    *,
    schema: "SchemaSpec | None" = None,
    make_constraint: "Callable[[], Constraint] | None" = None,
    dialogue: Dialogue | None = None,
    warnings: tuple[str, ...] = (),
    dropped_tokens: int = 0,
) -> Request:
    """Checks the options that concern sampling and ending, and fills in the defaults. Others are not read."""
    max_tokens, logprobs = options.get("max_tokens"), options.get("logprobs")
    cancel, progress = options.get("cancel"), options.get("progress")
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens, 0, 2**63)
    if logprobs is not None:
        logprobs = whole("logprobs", logprobs, 0, 100)
    check_callbacks(cancel, progress)
    sampling: dict[str, Any] = {name: options.get(name) for name in SamplingParams.names()}
    params = SamplingParams.resolve(model._sampling_defaults, **sampling)
    model.tokenizer.check_ids(params.logit_bias)
    return Request(
        prompt,
        params,
        max_tokens,
        _stops(options.get("stop")),
        logprobs,
        cancel,
        progress,
        schema,
        make_constraint,
        dialogue,
        (*prompt.warnings, *warnings),
        dropped_tokens,
        model._drafts.check(options.get("draft", "auto")),
    )


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
