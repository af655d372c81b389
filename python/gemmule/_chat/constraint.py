"""Which tokens may come next: a small state machine around llguidance's matchers.

    thought -> answer -> end          schema=, regex=, choices=, grammar=
    thought -> text ... call -> call -> end          tools=

A matcher takes the token at once, its next mask is computed on a worker thread while the model's forward pass
runs. A mask is uint32 [ceil(n_vocab / 32)], bit t of word t // 32 for token t; None allows everything.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmule._chat.grammar import Grammar, Vocabulary, background, bits, guidance_tokenizer, lark_source
from gemmule._chat.tool_grammar import lark_of_tools
from gemmule._errors import GrammarError

if TYPE_CHECKING:
    import llguidance

    from gemmule._chat.parser import Markers
    from gemmule._chat.tools import Tool
    from gemmule._tokenizer import Tokenizer

__all__ = ["Constraint", "answer_constraint", "tool_constraint"]

Mask = NDArray[np.uint32]

_THOUGHT, _TEXT, _START, _ANSWER, _CALL, _AFTER, _DONE = (
    "thought",
    "text",
    "start",
    "answer",
    "call",
    "after",
    "done",
)


@dataclass(frozen=True)
class _Plan:
    """What a constraint is made of. Token ids are None where they do not apply."""

    ends: frozenset[int]  # tokens that end an answer
    answer: str | None = None  # source of the answer's grammar
    call: str | None = None  # source of one call's grammar, from behind the opening token
    thought_open: int | None = None
    thought_close: int | None = None
    call_open: int | None = None
    after_calls: frozenset[int] = frozenset()  # tokens that end a turn of calls
    text: bool = False  # free text is allowed
    calls: bool = False  # calls are allowed
    parallel: bool = True


class Constraint:
    """The state of one answer. For one thread; `mask` and `accept` take turns."""

    def __init__(self, vocabulary: Vocabulary, plan: _Plan, tokenizer: "Tokenizer") -> None:
        self._vocabulary = vocabulary
        self._plan = plan
        self._tokenizer = tokenizer  # the vocabulary itself holds it weakly only
        self._ends = self._bits(plan.ends)
        self._matcher: llguidance.LLMatcher | None = None
        self._pending: Future[Mask] | None = None
        self._ready: Mask | None = None
        self.looks_ahead = False  # whether somebody wants `expected`
        self._ahead: Future[tuple[int, ...]] | None = None
        self._closed = False
        self._state = _THOUGHT if plan.thought_close is not None else _START
        self._in_thought = plan.thought_close is not None and plan.thought_open is None
        if self._in_thought:
            self._ready = self._free_mask()
        else:
            self._begin_start()

    # -- what the stream asks ------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._state == _DONE

    @property
    def expected(self) -> tuple[int, ...]:
        """Tokens about which the grammar leaves hardly a choice, if `looks_ahead`; waits for the worker."""
        return () if self._ahead is None else self._ahead.result()

    def mask(self) -> Mask | None:
        """The tokens allowed next; waits for the worker. None when all are."""
        if self._closed:
            raise ValueError("the constraint is closed")
        if self._state == _DONE:
            return self._ends
        if self._pending is not None:  # kept when it failed, so that the error is raised again
            self._ready = self._finish(self._pending.result())
            self._pending = None
        return self._ready

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        mask = self.mask()
        if mask is not None and not _has(mask, token):
            raise ValueError(f"token {token} is not allowed at this place of the answer")
        self._ready = self._ahead = None
        plan = self._plan
        if self._state in (_ANSWER, _CALL):
            self._advance(token)
        elif self._state == _DONE:
            return
        elif plan.calls and token == plan.call_open:
            self._in_thought = False
            self._enter(_CALL, plan.call)
        elif token in (plan.after_calls if self._state == _AFTER else plan.ends):
            self._drop()
            self._state = _DONE
        elif self._in_thought:
            self._think(token)
        elif token == plan.thought_open and self._state == _THOUGHT:
            self._in_thought = True
            self._drop()
            self._ready = self._free_mask()
        elif self._matcher is not None:  # the first token of the answer
            self._state = _ANSWER
            self._advance(token)
        else:
            self._state = _TEXT
            self._ready = self._free_mask()

    def close(self) -> None:
        """Waits for the worker and lets the matchers go. May be called again."""
        self._closed = True
        self._drop()
        self._ready = None

    # -- states --------------------------------------------------------------------------------------------

    def _begin_start(self) -> None:
        """The first token of what follows the thought: a call, the answer, or text."""
        if self._state != _THOUGHT:
            self._state = _START
        if self._plan.answer is not None:
            self._matcher = self._vocabulary.matcher(self._plan.answer)
            self._compute()
        elif self._plan.text:
            self._ready = self._free_mask()
        else:
            self._ready = self._finish(self._bits(()))

    def _think(self, token: int) -> None:
        if token == self._plan.thought_close:
            self._in_thought = False
            self._state = _START
            self._begin_start()
        else:
            self._ready = self._free_mask()

    def _enter(self, state: str, source: str | None) -> None:
        self._drop()
        assert source is not None
        self._state = state
        self._matcher = self._vocabulary.matcher(source)
        self._compute()

    def _advance(self, token: int) -> None:
        """One token of the grammar; then the next mask is asked for, or the grammar is left."""
        matcher = self._matcher
        assert matcher is not None
        if token in self._plan.ends and self._state == _ANSWER and matcher.is_accepting():
            self._state = _DONE
            self._drop()
            return
        if not matcher.consume_token(token):
            raise GrammarError(f"the answer cannot go on: {_first_line(matcher.get_error())}")
        if not matcher.is_stopped():
            self._compute()
            return
        if not matcher.is_accepting():
            raise GrammarError(f"the answer cannot go on: {_first_line(matcher.get_error())}")
        self._drop()
        if self._state == _CALL and self._plan.parallel:
            self._state = _AFTER
            self._ready = self._bits(self._plan.after_calls | {self._plan.call_open or 0})
        else:
            self._state = _DONE

    # -- masks ---------------------------------------------------------------------------------------------

    def _bits(self, ids: Iterable[int]) -> Mask:
        return bits(frozenset(ids), self._vocabulary.n_words)

    def _free_mask(self) -> Mask | None:
        """All, but no end within a thought that an answer must follow, and no call where none may be."""
        plan = self._plan
        forbidden: set[int] = set()
        if self._in_thought and (plan.answer is not None or not plan.text):
            forbidden |= plan.ends | plan.after_calls
            if plan.call_open is not None:
                forbidden.add(plan.call_open)
        if plan.call_open is not None and not plan.calls:
            forbidden.add(plan.call_open)
        if not forbidden:
            return None
        everything = np.full(self._vocabulary.n_words, 0xFFFFFFFF, np.uint32)
        spare = self._vocabulary.n_vocab % 32
        if spare:
            everything[-1] = (1 << spare) - 1
        return everything & ~self._bits(forbidden)

    def _finish(self, mask: Mask) -> Mask:
        """At the start of an answer, a thought or a call may come instead."""
        plan = self._plan
        if self._state in (_START, _THOUGHT):
            openings = {plan.call_open if plan.calls else None}
            if self._state == _THOUGHT:
                openings.add(plan.thought_open)
            mask = mask | self._bits(token for token in openings if token is not None)
        return mask

    def _compute(self) -> None:
        matcher = self._matcher
        assert matcher is not None
        ahead: Future[tuple[int, ...]] | None = None
        if self.looks_ahead and self._state in (_ANSWER, _CALL) and not matcher.is_accepting():
            ahead = Future()
        self._pending = background(_next_mask, matcher, self._vocabulary, self._ends, ahead)
        self._ahead = ahead

    def _drop(self) -> None:
        """Lets the matcher go, after its worker is done with it."""
        pending, self._pending, self._ahead = self._pending, None, None
        if pending is not None and not pending.cancel():
            pending.exception()
        self._matcher = None


def _next_mask(
    matcher: "llguidance.LLMatcher",
    vocabulary: Vocabulary,
    ends: Mask,
    ahead: "Future[tuple[int, ...]] | None",
) -> Mask:
    """On the worker: what the grammar allows next, with the model's ends where it may end; before that, which
    tokens must come, for `ahead`.
    """
    if ahead is not None:
        ahead.set_result(_forced(matcher))
    mask = np.zeros(vocabulary.n_words, np.uint32)
    try:
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    except BaseException as error:  # a Rust panic is not an Exception
        raise GrammarError(f"the answer cannot go on: {_first_line(str(error))}") from None
    if matcher.is_error():
        raise GrammarError(f"the answer cannot go on: {_first_line(matcher.get_error())}")
    mask &= ~vocabulary.ends
    if matcher.is_accepting():
        mask |= ends
    elif not mask.any():
        raise GrammarError("the answer cannot go on: no token of the vocabulary fits the grammar here")
    return mask


def _forced(matcher: "llguidance.LLMatcher") -> tuple[int, ...]:
    try:
        return tuple(matcher.compute_ff_tokens())
    except BaseException:  # a Rust panic; the mask, which is computed next, tells what is wrong
        return ()


def _has(mask: Mask, token: int) -> bool:
    return 0 <= token < 32 * len(mask) and bool(int(mask[token // 32]) >> (token % 32) & 1)


def _first_line(error: str) -> str:
    text = error.split("<non-verbose/>")[0].strip() or "the grammar leads nowhere"
    return text.splitlines()[0][:300]


def answer_constraint(
    grammar: Grammar,
    tokenizer: "Tokenizer",
    *,
    starts_after: int | None = None,
    starts_with: int | None = None,
    eos_ids: Iterable[int],
) -> Constraint:
    """The answer follows `grammar` and ends.

    starts_after: the token that closes a thought; before it everything but an end is allowed.
    starts_with: the token that opens the thought, for a prompt that has not opened it; the model may also
    answer at once.
    """
    plan = _Plan(
        ends=frozenset(eos_ids),
        answer=grammar.source,
        thought_open=starts_with if starts_after is not None else None,
        thought_close=starts_after,
    )
    return Constraint(guidance_tokenizer(tokenizer), plan, tokenizer)


def tool_constraint(
    tools: "Sequence[Tool]",
    tokenizer: "Tokenizer",
    markers: "Markers",
    *,
    choice: str = "auto",
    parallel: bool = True,
    thinking: bool = False,
    answer: Grammar | None = None,
) -> Constraint:
    """Calls of declared tools only, with arguments by their schemas.

    choice: auto (text, or calls, or text and then calls; with `answer`: that or calls), none, required (calls
    at once, after the thought), or the name of the one tool to call. parallel=False ends after one call.
    """
    names = [tool.name for tool in tools]
    if choice not in ("auto", "none", "required", *names):
        raise ValueError(f"tool_choice is {choice!r}; use auto, none, required or one of {', '.join(names)}")
    if markers.call_open is None or markers.call_close is None or markers.quote is None:
        raise GrammarError("this vocabulary has no tokens for tool calls; use a Gemma 4 model or no tools")
    wanted = [tool for tool in tools if choice in ("auto", "required", tool.name)]
    call = None
    if wanted:
        call = lark_source(lark_of_tools(wanted, quote=markers.quote, close=markers.call_close))
    ends = tokenizer.eos_ids
    plan = _Plan(
        ends=ends,
        answer=answer.source if answer is not None and choice in ("auto", "none") else None,
        call=call,
        thought_open=markers.channel_open if thinking else None,
        thought_close=markers.channel_close if thinking else None,
        call_open=markers.call_open,
        after_calls=ends | {token for token in (markers.response_open,) if token is not None},
        text=answer is None and choice in ("auto", "none"),
        calls=bool(wanted),
        parallel=parallel,
    )
    vocabulary = guidance_tokenizer(tokenizer)
    if call is not None:
        vocabulary.matcher(call, "tools")  # compiled now: a mistake shows before the prompt is computed
    return Constraint(vocabulary, plan, tokenizer)
