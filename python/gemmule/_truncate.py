"""What is left out of a prompt that does not fit, where the caller allowed it: whole turns of a conversation,
or tokens of a plain prompt. Never a part of a turn, of a picture or sound, or half of a tool call and result.

    oldest    conversation: the oldest turns go;                 text: the beginning goes, BOS stays
    middle    conversation: the first turn stays, the next go;   text: the middle goes, head and tail stay

System messages, tools and the last turn always stay. A conversation is cut as if it had been cut while it
grew, each time to three quarters of the room: so the cut stays where it is for many turns, and the session
need not read everything again in each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from gemmule._errors import ContextLengthError
from gemmule._prompt import Prompt, count_of

if TYPE_CHECKING:
    from gemmule._chat.messages import Message
    from gemmule._request import GenerateOptions

__all__ = ["Policy", "answer_room", "cut_rows", "fit_turns", "policy_of", "too_long"]

Policy = Literal["error", "oldest", "middle"]

_ANSWER = 1024  # tokens kept free for an answer of unknown length, a quarter of the context at most


def policy_of(options: "GenerateOptions") -> Policy:
    """The policy that was asked for; "error" by default."""
    policy = options.get("truncation")
    if policy is None:
        return "error"
    if policy not in ("error", "oldest", "middle"):
        raise ValueError(f'truncation is {policy!r}; use "error", "oldest" or "middle"')
    return policy


def answer_room(max_tokens: int | None, n_ctx: int) -> int:
    """How many tokens of the context a cut prompt leaves to the answer."""
    return min(_ANSWER, n_ctx // 4) if max_tokens is None else min(max_tokens, n_ctx // 2)


def too_long(wanted: int, n_ctx: int) -> ContextLengthError:
    return ContextLengthError(
        f"{wanted} tokens do not fit into the context of {n_ctx}; "
        "shorten the prompt or open the model with a larger n_ctx",
        n_prompt=wanted,
        n_ctx=n_ctx,
    )


# -- plain prompts -------------------------------------------------------------------------------------------


def cut_rows(prompt: Prompt, policy: Policy, room: int, n_kept: int) -> tuple[Prompt, int]:
    """The prompt within `room` rows, and how many were left out. The first `n_kept` rows (BOS) stay."""
    n = len(prompt)
    if policy == "error" or n <= room:
        return prompt, 0
    head = room // 2 if policy == "middle" else 0
    begin = max(n_kept, head)
    end = n - max(0, room - begin)
    for span in prompt.spans:  # with the markers around it
        first, last = max(n_kept, span.first - 1), min(n, span.first + span.n + 1)
        if first < begin < last:
            begin = first
        if first < end < last:
            end = last
    if begin >= n or end >= n:  # nothing of the end would be left
        raise too_long(n, room)
    gone = end - begin
    spans = tuple(
        span if span.first < begin else span.moved(-gone)
        for span in prompt.spans
        if not begin <= span.first < end
    )
    tokens = prompt.tokens[:begin] + prompt.tokens[end:]
    note = (
        f"{gone} of {n} tokens of the prompt were left out ({policy}), because {room} fit beside the answer"
    )
    count = count_of(len(tokens), spans)
    return Prompt(tokens, prompt.text, count, (*prompt.warnings, note), spans), gone


# -- conversations -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message of the user and all that answers it, up to the next one."""

    messages: "tuple[Message, ...]"
    question: int  # tokens of the user's message
    size: int  # tokens of all


def fit_turns(
    history: "Sequence[Message]",
    policy: Policy,
    *,
    n_ctx: int,
    n_answer: int,
    build: "Callable[[Sequence[Message]], Prompt]",
    size_of: "Callable[[Message], int]",
) -> tuple[Prompt, int]:
    """The prompt of the conversation without the turns that do not fit, and how many tokens were left out.

    `build` renders messages, `size_of` estimates the tokens of one. Throws ContextLengthError where not even
    the system message and the last turn fit.
    """
    whole = build(history)
    room = n_ctx - n_answer
    if policy == "error" or len(whole) <= room:
        return whole, 0
    head, turns = _turns(history, size_of)
    prompt, kept, n_gone = whole, list(history), 0
    for n_first, gone in _choices(turns, policy, room - sum(map(size_of, head)), room):
        n_gone = gone
        kept = [*head, *(message for turn in turns[:n_first] for message in turn.messages)]
        for turn in turns[n_first : n_first + gone]:
            kept += [message for message in turn.messages if message.role == "system"]
        kept += [message for turn in turns[n_first + gone :] for message in turn.messages]
        prompt = build(kept)
        if len(prompt) <= room:
            break
    if len(prompt) > n_ctx:
        raise too_long(len(prompt), n_ctx)
    n_tokens, n_messages = len(whole) - len(prompt), len(history) - len(kept)
    if not n_messages:
        return prompt, 0
    note = (
        f"{n_gone} of {len(turns)} turns ({n_messages} messages, {n_tokens} tokens) were left out ({policy}) "
        f"to fit into the context of {n_ctx}"
    )
    return replace(prompt, warnings=(*prompt.warnings, note)), n_tokens


def _choices(turns: Sequence[_Turn], policy: Policy, room: int, whole_room: int) -> Iterator[tuple[int, int]]:
    """(turns kept in front, turns left out behind them), each pair smaller than the one before."""
    last = len(turns) - 1
    n_first = 1 if policy == "middle" else 0
    begin = _dropped(turns, n_first, room, whole_room)
    for gone in range(min(begin, last - n_first), last - n_first + 1):
        yield n_first, gone
    if n_first and last >= 0:  # the first turn does not fit beside the last one
        yield 0, last


def _turns(
    history: "Sequence[Message]", size_of: "Callable[[Message], int]"
) -> "tuple[list[Message], list[_Turn]]":
    """The system messages in front, and the turns."""
    n_head = next((i for i, message in enumerate(history) if message.role != "system"), len(history))
    groups: list[list[Message]] = []
    for message in history[n_head:]:
        if message.role == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    turns = [_Turn(tuple(group), size_of(group[0]), sum(map(size_of, group))) for group in groups]
    return list(history[:n_head]), turns


def _dropped(turns: Sequence[_Turn], n_first: int, room: int, whole_room: int) -> int:
    """How many turns after the first `n_first` are gone by the last one, if each request so far was cut when
    it had to be. `room` is what the system message leaves of `whole_room`.
    """
    target = room - whole_room // 4
    gone, total = 0, 0
    for i, turn in enumerate(turns):
        asked = total + (turn.size if i == len(turns) - 1 else turn.question)
        if asked > room:
            while asked > target and n_first + gone < i:
                size = turns[n_first + gone].size
                asked, total, gone = asked - size, total - size, gone + 1
        total += turn.size
    return gone
