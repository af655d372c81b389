"""One checked request: the prompt, how to sample, when to stop, and what the answer must look like."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from gemmule import _core
from gemmule._checks import whole
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
    image_tokens: int | None
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


def make_request(
    model: "Model",
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
    cancel: _core.StopToken | None = None,
    progress: Progress | None = None,
    schema: "SchemaSpec | None" = None,
    make_constraint: "Callable[[], Constraint] | None" = None,
    dialogue: Dialogue | None = None,
    warnings: tuple[str, ...] = (),
) -> Request:
    """Checks the options and fills in the defaults."""
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
    return Request(
        prompt,
        params,
        max_tokens,
        _stops(stop),
        logprobs,
        cancel,
        progress,
        schema,
        make_constraint,
        dialogue,
        (*prompt.warnings, *warnings),
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
