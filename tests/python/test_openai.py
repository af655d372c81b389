"""create_chat_completion: which options a request becomes, and what a reply looks like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gemmule._chat.messages import ToolCall
from gemmule._chat.openai import chat_options, completion_of, create_chat_completion
from gemmule._types import Delta, Reply, Timings, TokenLogprob, Usage

MESSAGES = [{"role": "user", "content": "hi"}]
CALL = ToolCall("add", {"a": 1}, "call_1")
REPLY = Reply(
    text="four",
    tokens=(1, 2),
    finish_reason="stop",
    seed=7,
    usage=Usage(10, 4, 2, 12, image_tokens=3, reasoning_tokens=1),
    timings=Timings.of(6, 0.5, 2, 0.1, 1),
    thinking="2 + 2",
)


def test_options_that_are_taken_as_they_are() -> None:
    options = chat_options(
        {
            "model": "any",
            "messages": MESSAGES,
            "temperature": 0,
            "top_k": 3,
            "seed": 1,
            "stop": ["x"],
            "user": "u",
        }
    )
    assert options == {"temperature": 0, "top_k": 3, "seed": 1, "stop": ["x"]}


def test_null_means_not_given() -> None:
    assert chat_options({"messages": MESSAGES, "temperature": None, "tools": None, "audio": None}) == {}


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert chat_options({"messages": MESSAGES, "max_tokens": 5})["max_tokens"] == 5
    both = {"messages": MESSAGES, "max_tokens": 5, "max_completion_tokens": 0}
    assert chat_options(both)["max_tokens"] == 0


def test_logprobs_and_bias() -> None:
    request = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "logit_bias": {"7": -100}}
    assert chat_options(request) == {"logprobs": 2, "logit_bias": {7: -100}}
    with pytest.raises(ValueError, match="top_logprobs needs logprobs"):
        chat_options({"messages": MESSAGES, "top_logprobs": 2})
    with pytest.raises(ValueError, match="logit_bias has the key 'x'"):
        chat_options({"messages": MESSAGES, "logit_bias": {"x": 1}})


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"schema": {"type": "object"}}),
        ({"type": "json_object", "schema": {"type": "array"}}, {"schema": {"type": "array"}}),
        ({"type": "json_schema", "json_schema": {"schema": {"enum": [1]}}}, {"schema": {"enum": [1]}}),
        ({"type": "json_schema", "schema": {"type": "string"}}, {"schema": {"type": "string"}}),
    ],
)  # fmt: skip
def test_response_format(shape: dict[str, Any], options: dict[str, Any]) -> None:
    assert chat_options({"messages": MESSAGES, "response_format": shape}) == options


@pytest.mark.parametrize("shape", [{"type": "xml"}, {"type": "json_schema"}, "json", {}])
def test_a_response_format_that_is_none(shape: Any) -> None:
    with pytest.raises(ValueError, match="response_format"):
        chat_options({"messages": MESSAGES, "response_format": shape})


@pytest.mark.parametrize(
    ("field", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning_effort": "high"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"think": 9, "reasoning_effort": "high"}, 9),
    ],
)
def test_thinking(field: dict[str, Any], think: object) -> None:
    options = chat_options({"messages": MESSAGES, **field})
    assert options["think"] is think or options["think"] == think


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"modalities": ["audio"]},
        {"best_of": 3},
        {"reasoning_effort": "max"},
        {"chat_template_kwargs": 5},
        {"stream_options": 5},
    ],
)
def test_what_is_not_done_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        chat_options({"messages": MESSAGES, **field})


def test_messages_must_be_there() -> None:
    with pytest.raises(ValueError, match="messages is missing"):
        chat_options({"model": "m"})


def test_a_reply_as_a_response() -> None:
    response = completion_of(REPLY, "tiny")
    assert response["object"] == "chat.completion"
    assert response["model"] == "tiny"
    choice = response["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "four", "reasoning_content": "2 + 2"}
    assert choice["finish_reason"] == "stop"
    usage = response["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 4, "image_tokens": 3, "audio_tokens": 0, "video_tokens": 0,
    }  # fmt: skip
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert response["timings"]["prompt_n"] == 6


def test_calls_and_logprobs_in_a_response() -> None:
    reply = Reply(
        text="", tokens=(1,), finish_reason="tool_calls", seed=1, tool_calls=(CALL,),
        logprobs=(TokenLogprob(5, "é", -0.5, ((5, "é", -0.5), (6, "e", -1.0))),),
    )  # fmt: skip
    choice = completion_of(reply, "m")["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert choice["finish_reason"] == "tool_calls"
    entry = choice["logprobs"]["content"][0]
    assert entry["bytes"] == [195, 169]
    assert [top["token"] for top in entry["top_logprobs"]] == ["é", "e"]


class _Stream:
    reply = REPLY

    def __init__(self) -> None:
        self.closed = False

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Delta]:
        yield Delta(thinking="hm")
        yield Delta("fo")
        yield Delta("ur")
        yield Delta(call=CALL)


class _Model:
    class info:
        name = "tiny"
        architecture = "gemma4"

    def __init__(self) -> None:
        self.stream = _Stream()

    def chat(self, messages: Any, **options: Any) -> Any:
        return self.stream if options.pop("stream", False) else REPLY


def test_chunks() -> None:
    model: Any = _Model()
    request = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    chunks: Any = list(create_chat_completion(model, request))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "hm"}
    assert "".join(delta.get("content", "") for delta in deltas) == "four"
    assert deltas[4]["tool_calls"][0]["index"] == 0
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 12
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_leaving_the_chunks_closes_the_stream() -> None:
    model: Any = _Model()
    chunks: Any = create_chat_completion(model, {"messages": MESSAGES, "stream": True})
    next(chunks)
    chunks.close()
    assert model.stream.closed
