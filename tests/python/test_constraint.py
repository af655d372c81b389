"""The states of a constraint: thought, text, answer, calls, end; masks, errors and closing."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

from constraint_helpers import IDS, TOKENIZER, allowed, read_calls, spelled, walk
from gemmule import GrammarError
from gemmule._chat import constraint as module
from gemmule._chat.constraint import Constraint, answer_constraint, tool_constraint
from gemmule._chat.grammar import Grammar, grammar_of
from gemmule._chat.parser import Markers
from gemmule._chat.tools import Tool

EOS, END, RESPONSE = 1, IDS.turn_close, IDS.response_open
OPEN, CLOSE = IDS.channel_open, IDS.channel_close
CALL = IDS.call_open
TOOLS = [
    Tool("f", "", {"type": "object", "properties": {}}),
    Tool("g", "", {"type": "object", "properties": {}}),
]


def made(**kind: Any) -> Grammar:
    grammar = grammar_of(**kind)
    assert grammar is not None
    return grammar


def feed(constraint: Constraint, text: str) -> None:
    for token in spelled(text):
        constraint.accept(token)


def options(constraint: Constraint) -> set[int]:
    mask = constraint.mask()
    assert mask is not None
    assert mask.dtype == np.uint32
    assert mask.shape == ((TOKENIZER.n_vocab + 31) // 32,)
    return set(allowed(mask))


def texts(constraint: Constraint) -> set[str]:
    return {TOKENIZER.decode([token]) for token in options(constraint)}


def test_only_ends_where_the_answer_is_complete() -> None:
    constraint = answer_constraint(made(choices=["a", "ab"]), TOKENIZER, eos_ids=[EOS, END])
    assert texts(constraint) == {"a", "ab"}
    feed(constraint, "a")
    assert options(constraint) - set(spelled("b")) - {TOKENIZER.id_of("<0x62>")} == {EOS, END}
    assert not constraint.finished
    constraint.accept(END)
    assert constraint.finished
    assert options(constraint) == {EOS, END}


def test_finished_by_itself_when_nothing_can_follow() -> None:
    constraint = answer_constraint(made(schema={"enum": [{"a": 1}]}), TOKENIZER, eos_ids=[EOS])
    feed(constraint, '{"a":1}')
    assert constraint.finished
    with pytest.raises(ValueError, match="not allowed"):
        constraint.accept(spelled("x")[0])


def test_a_token_outside_the_mask_is_refused() -> None:
    constraint = answer_constraint(made(regex="ab|ac"), TOKENIZER, eos_ids=[EOS])
    with pytest.raises(ValueError, match="token 5 is not allowed"):
        constraint.accept(5)
    with pytest.raises(ValueError, match="not allowed"):
        constraint.accept(10**9)
    feed(constraint, "ab")
    assert constraint.finished


def test_after_a_thought_that_the_prompt_has_opened() -> None:
    constraint = answer_constraint(made(regex="ab|ac"), TOKENIZER, starts_after=CLOSE, eos_ids=[EOS])
    assert set(range(TOKENIZER.n_vocab)) - options(constraint) == {EOS}
    feed(constraint, 'anything "at" all')
    assert not constraint.finished
    constraint.accept(CLOSE)  # type: ignore[arg-type]
    assert texts(constraint) == {"a", "ab"}
    feed(constraint, "ab")
    assert constraint.finished


@pytest.mark.parametrize("thinks", [True, False])
def test_a_thought_that_the_model_may_open(thinks: bool) -> None:
    constraint = answer_constraint(
        made(regex="ab|ac"), TOKENIZER, starts_after=CLOSE, starts_with=OPEN, eos_ids=[EOS]
    )
    assert texts(constraint) == {"a", "ab", "<|channel>"}
    feed(constraint, ("<|channel>thought\nhm<channel|>" if thinks else "") + "ab")
    assert constraint.finished


def test_masks_beyond_the_vocabulary_are_zero() -> None:
    constraint = answer_constraint(made(regex="a"), TOKENIZER, starts_after=CLOSE, eos_ids=[EOS])
    assert TOKENIZER.n_vocab % 32
    assert max(options(constraint)) == TOKENIZER.n_vocab - 1


def test_auto_is_free_until_a_call() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS)
    assert constraint.mask() is None
    feed(constraint, "some text {")
    assert constraint.mask() is None
    constraint.accept(CALL)  # type: ignore[arg-type]
    assert texts(constraint) == {"c"}
    feed(constraint, "call:f{}<tool_call|>")
    assert not constraint.finished
    assert options(constraint) == {CALL, EOS, END, RESPONSE}
    feed(constraint, "<|tool_call>call:g{}<tool_call|>")
    constraint.accept(RESPONSE)  # type: ignore[arg-type]
    assert constraint.finished


def test_auto_may_end_without_a_call() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS)
    feed(constraint, "text")
    constraint.accept(EOS)
    assert constraint.finished


def test_auto_with_a_thought() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, thinking=True)
    feed(constraint, "<|channel>thought\nhm")
    assert constraint.mask() is None
    feed(constraint, "<channel|>")
    assert constraint.mask() is None
    feed(constraint, "<|tool_call>call:f{}<tool_call|><turn|>")
    assert constraint.finished


def test_a_call_in_the_middle_of_a_thought_is_a_call() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, thinking=True)
    feed(constraint, "<|channel>thought\nhm<|tool_call>call:f{}<tool_call|>")
    assert options(constraint) == {CALL, EOS, END, RESPONSE}


def test_auto_with_an_answer_in_a_shape() -> None:
    for text in ("12", "<|tool_call>call:f{}<tool_call|>"):
        constraint = tool_constraint(TOOLS, TOKENIZER, IDS, parallel=False, answer=made(regex="12|13"))
        assert texts(constraint) == {"1", "12", "<|tool_call>"}
        feed(constraint, text)
        assert constraint.finished
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, answer=made(regex="12|13"))
    feed(constraint, "1")
    assert texts(constraint) == {"2", "3"}


def test_none_forbids_calls_and_nothing_else() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, choice="none")
    everything = set(range(TOKENIZER.n_vocab))
    assert everything - options(constraint) == {CALL}
    feed(constraint, "text")
    assert everything - options(constraint) == {CALL}
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, choice="none", answer=made(regex="ab|ac"))
    assert texts(constraint) == {"a", "ab"}


def test_required_calls_at_once_or_after_the_thought() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, choice="required")
    assert options(constraint) == {CALL}
    constraint = tool_constraint(TOOLS, TOKENIZER, IDS, choice="required", thinking=True)
    assert options(constraint) == {CALL, OPEN}
    feed(constraint, "<|channel>thought\nhm")
    assert set(range(TOKENIZER.n_vocab)) - options(constraint) == {CALL, EOS, END, RESPONSE}
    feed(constraint, "<channel|>")
    assert options(constraint) == {CALL}


def test_one_named_tool_and_one_call() -> None:
    rng = random.Random(0)
    for _ in range(5):
        constraint = tool_constraint(TOOLS, TOKENIZER, IDS, choice="g", parallel=False)
        (call,) = read_calls(walk(constraint, rng), ["f", "g"])
        assert constraint.finished
        assert call.name == "g"


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="tool_choice is 'h'; use auto, none, required or one of f, g"):
        tool_constraint(TOOLS, TOKENIZER, IDS, choice="h")
    with pytest.raises(GrammarError, match="no tokens for tool calls"):
        tool_constraint(TOOLS, TOKENIZER, Markers())


def test_close_waits_and_can_be_repeated() -> None:
    constraint = answer_constraint(made(regex="[a-z]+"), TOKENIZER, eos_ids=[EOS])
    feed(constraint, "a")
    constraint.close()
    constraint.close()
    with pytest.raises(ValueError, match="closed"):
        constraint.mask()
    with pytest.raises(ValueError, match="closed"):
        constraint.accept(5)


def test_an_error_of_the_worker_reaches_the_caller_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise GrammarError("the answer cannot go on: broken")

    constraint = answer_constraint(made(regex="[a-z]+"), TOKENIZER, eos_ids=[EOS])
    constraint.mask()
    monkeypatch.setattr(module, "_next_mask", broken)
    feed(constraint, "a")
    for _ in range(2):
        with pytest.raises(GrammarError, match="broken"):
            constraint.mask()
    constraint.close()


def test_a_grammar_that_leads_nowhere_is_an_error() -> None:
    for lark in ('start: start "a"', "start: start"):
        constraint = answer_constraint(made(grammar=lark), TOKENIZER, eos_ids=[EOS])
        with pytest.raises(GrammarError, match="cannot go on"):
            constraint.mask()
        constraint.close()


def test_two_constraints_of_one_grammar_do_not_mix() -> None:
    grammar = made(regex="ab|ac")
    one, two = (answer_constraint(grammar, TOKENIZER, eos_ids=[EOS]) for _ in range(2))
    feed(one, "a")
    assert "a" in texts(two)
    assert texts(one) == {"b", "c"}
    feed(two, "ac")
    assert two.finished
    assert not one.finished


def test_markers_without_a_wait_for_answers() -> None:
    constraint = tool_constraint(TOOLS, TOKENIZER, dataclasses.replace(IDS, response_open=None), choice="f")
    feed(constraint, "<|tool_call>call:f{}<tool_call|>")
    assert CALL in options(constraint)


def test_what_leaves_no_choice_is_expected() -> None:
    """Only where an answer has begun, may not end and somebody asks."""
    constraint = answer_constraint(made(choices=["ab12x", "ab12xthe"]), TOKENIZER, eos_ids=[EOS])
    constraint.looks_ahead = True
    assert constraint.expected == ()
    feed(constraint, "a")
    assert TOKENIZER.decode(list(constraint.expected)) == "b12x"
    feed(constraint, "b12x")
    assert constraint.expected == ()
    feed(constraint, "the")
    assert constraint.expected == ()

    deaf = answer_constraint(made(choices=["ab12"]), TOKENIZER, eos_ids=[EOS])
    feed(deaf, "ab")
    assert deaf.expected == ()
