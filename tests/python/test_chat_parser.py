"""The reply parser inverts the renderer, in any split, and makes sense of mangled replies."""
# ruff: noqa: E501  (tables of cases, one a line)

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_cases import names, texts, unique_keys, values
from gemmule._chat.gemma4 import render_gemma4
from gemmule._chat.messages import Message, ToolCall
from gemmule._chat.parser import _NAMES, Event, Markers, ParsedReply, ReplyParser, parse_reply
from gemmule._chat.pieces import Piece
from gemmule._chat.syntax import QUOTE

IDS = {text: 1000 + i for i, text in enumerate(_NAMES.values())}
MARKERS = Markers.of(IDS.get)
Token = tuple[int, str]


def tokens_of(pieces: list[Any], cuts: list[int] = ()) -> list[Token]:  # type: ignore[assignment]
    """Pieces as the model would write them: markers of the template as tokens, all else cut anywhere."""
    from gemmule._chat.parser import _SPLIT

    out: list[Token] = []
    for piece in pieces:
        for chunk in _SPLIT.split(piece.text) if piece.special else [piece.text]:
            if piece.special and chunk in IDS:
                out.append((IDS[chunk], chunk))
            else:
                edges = sorted({0, len(chunk), *(cut % (len(chunk) + 1) for cut in cuts)})
                out += [(7, chunk[a:b]) for a, b in itertools.pairwise(edges)]
    return out


def feed(tokens: list[Token], **options: Any) -> tuple[list[Event], ReplyParser]:
    parser = ReplyParser(markers=MARKERS, make_id=lambda: "id", **options)
    events = [event for token, text in tokens for event in parser.feed(token, text)]
    return events + parser.finish(), parser


def reply(tokens: list[Token], **options: Any) -> ParsedReply:
    events, parser = feed(tokens, **options)
    return ParsedReply.of(events, parser.notes)


hard = st.sampled_from(["<turn|>", "<|tool_call>", QUOTE, "<|channel>thought\n", "<channel|>", "call:f{}"])
any_text = st.one_of(texts, hard)
calls = st.lists(st.tuples(names, unique_keys(st.one_of(values(), hard))), max_size=3)


@settings(max_examples=300, deadline=None)
@given(any_text, any_text, calls, st.lists(st.integers(0, 200), max_size=8))
def test_inverts_the_renderer(
    thinking: str, text: str, called: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    tool_calls = tuple(ToolCall(name, arguments, "id") for name, arguments in called)
    message = Message("assistant", (text,), thinking if tool_calls else "", tool_calls)
    pieces = render_gemma4([Message("user", ("Hi",)), message], bos="", add_generation_prompt=False)
    tokens = tokens_of(pieces, cuts)
    begin = max(i for i, token in enumerate(tokens) if token[0] == IDS["<|turn>"])
    whole = reply(tokens[begin:])
    assert whole.tool_calls == tool_calls
    assert whole.thinking == message.thinking
    from gemmule._chat.gemma4 import strip_thoughts

    assert whole.text.removesuffix("\n") == strip_thoughts(text).removesuffix("\n")
    assert whole.notes == ()
    single = [(token, c) for token, part in tokens[begin:] for c in ([part] if token >= 1000 else part)]
    assert reply(single) == whole


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([(i, text) for text, i in IDS.items()]),
            st.sampled_from(["thought\n", "thought", " ", "\n", "call:f{a:1}", "call:", "hi", "{", "}", "th", "model\n"]).map(
                lambda text: (7, text)
            ),
        ),
        max_size=14,
    ),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_any_reply_is_read_the_same_in_any_split(tokens: list[Token], is_open: bool, tools: bool) -> None:
    options = {"thinking_open": is_open, "parse_tools": tools, "tool_names": ["f"]}
    whole = reply(tokens, **options)
    single = [(token, c) for token, part in tokens for c in ([part] if token >= 1000 else part)]
    assert reply(single, **options) == whole
    # Nothing is lost: every "hi" comes out somewhere.
    given_text = sum(text.count("hi") for token, text in tokens if token == 7)
    found = (
        whole.text + whole.thinking + "".join(str(call.arguments) + call.name for call in whole.tool_calls)
    )
    assert found.count("hi") >= given_text


@pytest.mark.parametrize(
    ("text", "thinking", "content", "calls", "notes"),
    [
        ("Hello", "", "Hello", [], 0),
        ("", "", "", [], 0),
        ("<|channel>thought\nhm\n<channel|>Yes", "hm", "Yes", [], 0),
        ("<|channel>thought\n<channel|>Yes", "", "Yes", [], 0),
        ("<|channel>thought<channel|>Yes", "", "Yes", [], 0),
        ("<|channel><|channel>thought\nhm<channel|>Yes", "hm", "Yes", [], 0),
        ("<|channel>thought\na<|channel>thought\nb<channel|>Yes", "ab", "Yes", [], 0),
        ("<|channel>thought hm<channel|>Yes", "hm", "Yes", [], 0),
        ("<|channel>thoughtful<channel|>Yes", "thoughtful", "Yes", [], 0),
        ("<|channel>final\nhm<channel|>Yes", "final\nhm", "Yes", [], 0),
        ("Yes<channel|>", "", "Yes", [], 0),
        ("Yes<|channel>thought\n<channel|>", "", "Yes", [], 0),
        ("<|channel>thought\nnever ends", "never ends", "", [], 0),
        ("<|channel>thou", "thou", "", [], 0),
        ("<|turn>model\nYes<turn|>", "", "Yes", [], 0),
        ("<|tool_call>call:f{a:1}<tool_call|><|tool_response>", "", "", [("f", {"a": 1})], 0),
        ("<|tool_call>call:f{a:1}<|tool_response>", "", "", [("f", {"a": 1})], 0),
        ("<|tool_call>call:f{a:1}<|tool_call>call:f{a:2}<tool_call|>", "", "", [("f", {"a": 1}), ("f", {"a": 2})], 0),
        ("On it.<|tool_call>call:f{a:1}<tool_call|>Done.", "", "On it.Done.", [("f", {"a": 1})], 0),
        ("<|channel>thought\nhm<|tool_call>call:f{}<tool_call|>", "hm", "", [("f", {})], 0),
        ("<|tool_call>call:f{a:1}", "", "", [("f", {"a": 1})], 0),
        ("<|tool_call>call:f{a:<|\"|>x", "", 'call:f{a:<|"|>x', [], 1),
        ("<|tool_call>call:f{a:1", "", "call:f{a:1", [], 1),
        ("<|tool_call>sorry, I cannot<tool_call|>", "", "sorry, I cannot", [], 1),
        ("<tool_call|>Yes", "", "Yes", [], 0),
        ('say <|"|>x<|"|>', "", 'say <|"|>x<|"|>', [], 0),
    ],
)  # fmt: skip
def test_whole_replies(
    text: str, thinking: str, content: str, calls: list[tuple[str, dict[str, Any]]], notes: int
) -> None:
    found = parse_reply(text, tool_names=["f"])
    assert (found.thinking, found.text) == (thinking, content)
    assert [(call.name, call.arguments) for call in found.tool_calls] == calls
    assert len(found.notes) == notes


def test_calls_can_be_left_as_text() -> None:
    text = '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>'
    found = parse_reply(text, parse_tools=False)
    assert (found.text, found.tool_calls) == (text, ())


def test_a_prompt_that_ended_in_a_thought() -> None:
    found = parse_reply("hm\n<channel|>Yes", thinking_open=True)
    assert (found.thinking, found.text) == ("hm", "Yes")


def test_text_comes_at_once_and_thinking_is_known() -> None:
    parser = ReplyParser(markers=MARKERS)
    assert parser.feed(7, "He") == [Event("text", "He")]
    assert not parser.in_thinking
    assert parser.feed(IDS["<|channel>"], "") == []
    assert parser.in_thinking
    assert parser.feed(7, "thought\n") == []
    assert parser.feed(7, "hm") == [Event("thinking", "hm")]
    assert parser.feed(IDS["<channel|>"], "<channel|>") == []
    assert not parser.in_thinking
    assert parser.feed(7, "") == []
    assert parser.finish() == []


def test_markers_a_vocabulary_lacks_are_text() -> None:
    parser = ReplyParser(markers=Markers.of({}.get))
    assert parser.feed(100, "<|channel>") == [Event("text", "<|channel>")]


def test_ids_differ_and_the_message_goes_back() -> None:
    found = parse_reply("<|tool_call>call:f{}<tool_call|><|tool_call>call:f{}<tool_call|>")
    assert len({call.id for call in found.tool_calls}) == 2
    assert found.message == Message("assistant", (), "", found.tool_calls)


def test_pieces_are_what_the_parser_expects() -> None:
    assert tokens_of([Piece("a<turn|>"), Piece("<turn|>", special=False)]) == [(7, "a"), (IDS["<turn|>"], "<turn|>"), (7, "<turn|>")]  # fmt: skip
