"""The message dialects become one form."""
# ruff: noqa: E501  (tables of cases, one a line)

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import gemmule
from chat_cases import conversations
from gemmule._chat.messages import Message, ToolCall, normalize
from gemmule._media.parts import Audio, Image, MediaPart, Video

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
PNG64 = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{PNG64}"


def part_of(content: Any, **options: Any) -> MediaPart:
    (message,) = normalize([{"role": "user", "content": [content]}], **options)
    (part,) = message.content
    assert not isinstance(part, str)
    return part


@pytest.mark.parametrize(
    ("part", "kind", "src"),
    [
        ({"type": "image_url", "image_url": {"url": URI, "detail": "high"}}, Image, PNG),
        ({"type": "image_url", "image_url": URI}, Image, PNG),
        ({"type": "image_url", "image_url": {"url": "file:///a%20b.png"}}, Image, "/a b.png"),
        ({"type": "input_image", "image_url": URI}, Image, PNG),
        ({"type": "image", "image": "a.png"}, Image, "a.png"),
        ({"type": "image", "url": "a.png"}, Image, "a.png"),
        ({"type": "image", "path": Path("a.png")}, Image, "a.png"),
        ({"type": "image", "data": PNG64}, Image, PNG),
        ({"type": "image", "base64": PNG64}, Image, PNG),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG64}},
            Image,
            PNG,
        ),
        ({"image": PNG}, Image, PNG),
        ({"type": "input_audio", "input_audio": {"data": PNG64, "format": "wav"}}, Audio, PNG),
        ({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{PNG64}"}}, Audio, PNG),
        ({"type": "audio", "audio": "a.wav"}, Audio, "a.wav"),
        ({"type": "input_video", "input_video": {"data": PNG64}}, Video, PNG),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, Video, "a.mp4"),
        ({"type": "video", "path": "a.mp4"}, Video, "a.mp4"),
        ({"type": "image_url", "image_url": "data:image/png,%89PNG"}, Image, b"\x89PNG"),
    ],
)
def test_media_in_all_dialects(part: dict[str, Any], kind: type, src: Any) -> None:
    found = part_of(part)
    assert type(found) is kind
    assert found.src == src


def test_options_of_media() -> None:
    assert part_of({"type": "image", "path": "a", "tokens": 560}).tokens == 560  # type: ignore[union-attr]
    video = part_of({"type": "video", "path": "a", "num_frames": 4, "sound": False})
    assert isinstance(video, Video)
    assert (video.frames, video.sound) == (4, False)
    audio = part_of({"type": "audio", "audio": np.zeros(4, np.float32), "sampling_rate": 8000})
    assert isinstance(audio, Audio)
    assert audio.rate == 8000
    assert part_of({"type": "image_url", "image_url": URI}).name == "messages[0].content[0]"


def test_ollama() -> None:
    (message,) = normalize([{"role": "user", "content": "Look", "images": [PNG64, URI]}])
    assert [part if isinstance(part, str) else part.src for part in message.content] == [PNG, PNG, "Look"]
    call = {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}  # fmt: skip
    out = normalize(["Hi", call, {"role": "tool", "content": "1", "tool_name": "f"}])
    assert out[1].thinking == "hm"
    assert out[1].tool_calls == (ToolCall("f", {"a": 1}, "call_1_0"),)
    assert out[2].tool_call_id == "call_1_0"


def test_openai_tool_calls_and_roles() -> None:
    out = normalize(
        [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"text": "b"}, "c"]},
            {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}},
                {"id": "y", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "y", "content": [{"type": "text", "text": "2"}]},
            {"role": "function", "name": "f", "content": "1"},
            {"role": "model", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "done"}]},
        ]
    )  # fmt: skip
    assert [m.role for m in out] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert out[1].content == ("a", "b", "c")
    assert out[2].tool_calls == (ToolCall("f", {"a": [1]}, "x"), ToolCall("g", {}, "y"))
    assert (out[2].thinking, out[2].content) == ("r", ())
    assert [m.tool_call_id for m in out[3:5]] == ["y", "x"]
    assert (out[5].thinking, out[5].text) == ("t", "done")


def test_results_as_values() -> None:
    out = normalize(["Hi", {"role": "assistant", "tool_calls": [{"name": "f"}], "tool_responses": [{"name": "f", "response": {"t": 1}}]}])  # fmt: skip
    assert out[2] == Message("tool", ('{"t": 1}',), tool_call_id="call_1_0", name="f", response={"t": 1})
    assert normalize([{"role": "tool", "content": {"t": 1}}])[0].response == {"t": 1}


def test_shortcuts() -> None:
    sound = np.zeros(8, np.float32)
    out = normalize(
        ["a", "b"], system="S", images=["1.png", Image("2.png")], videos="v.mp4", audio=(sound, 8000)
    )
    assert [m.role for m in out] == ["system", "user", "user"]
    kinds = [type(part).__name__ for part in out[2].content]
    assert kinds == ["Image", "Image", "Video", "Audio", "str"]
    assert out[1].content == ("a",)
    assert len(normalize("x", audio=[sound, sound])[0].media) == 2
    with pytest.raises(ValueError, match="need a user message"):
        normalize([], images="a.png")
    with pytest.raises(ValueError, match="system= was given"):
        normalize([{"role": "system", "content": "a"}], system="b")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "bot", "content": "x"}, r"messages\[0\]\.role is 'bot'"),
        ({"content": "x"}, r"messages\[0\]\.role is None"),
        ({"role": "user", "content": 5}, r"messages\[0\]\.content must be text or a list"),
        ({"role": "user", "content": ["a", 5]}, r"messages\[0\]\.content\[1\] must be a dict"),
        ({"role": "user", "content": [{"type": "file"}]}, r"messages\[0\]\.content\[0\]\.type is 'file'"),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[0\]\.content\[0\] is of type 'text' but has no text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"messages\[0\]\.content\[0\] has no image"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "https://a/b.png"}]}, "fetches nothing"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,@@"}]}, "damaged"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png"}]}, "without a comma"),
        ({"role": "user", "content": [{"type": "image", "data": "@@"}]}, "neither base64"),
        ({"role": "user", "content": [{"type": "image", "image": 5}]}, r"messages\[0\]\.content\[0\]: "),
        ({"role": "system", "content": [{"type": "image", "path": "a"}]}, "holds text only"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, "only assistant messages"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, r"messages\[0\]\.tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{}]}, r"messages\[0\]\.tool_calls\[0\] has no function name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "must be an object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a":' + "[" * 90 + "]" * 90 + "}"}]}, "nested deeper"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 99999}]}, "not valid JSON"),
        ({"role": "assistant", "reasoning": 5}, r"messages\[0\]\.reasoning must be text"),
        ({"role": "tool", "tool_call_id": 5, "content": "x"}, r"messages\[0\]\.tool_call_id must be text"),
    ],
)  # fmt: skip
def test_errors_name_the_place(message: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        normalize([message])


def test_paths_are_refused_where_files_are_not_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for part in (
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": path.as_uri()},
        {"type": "image", "path": path},
        {"type": "image", "image": str(path)},
        {"type": "input_audio", "input_audio": {"data": str(path)}},
    ):
        with pytest.raises(gemmule.MediaError):
            part_of(part, allow_files=False)
    with pytest.raises(gemmule.MediaError):
        normalize([{"role": "user", "images": [str(path)]}], allow_files=False)
    assert part_of({"type": "image_url", "image_url": URI}, allow_files=False).src == PNG


def test_wrong_types() -> None:
    for wrong in (5, b"x", [5]):
        with pytest.raises(TypeError):
            normalize(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="messages is empty"):
        normalize([])
    with pytest.raises(ValueError, match="role is 'bot'"):
        Message("bot")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="content holds"):
        Message("user", (5,))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_dicts_go_back_and_forth(messages: list[Message]) -> None:
    dicts = [message.to_dict() for message in messages]
    json.dumps(dicts)
    again = normalize(dicts)
    for old, new in zip(messages, again, strict=True):
        assert (old.role, old.thinking, old.tool_calls) == (new.role, new.thinking, new.tool_calls)
        assert [p if isinstance(p, str) else p.src for p in old.content] == [
            p if isinstance(p, str) else p.src for p in new.content
        ]
