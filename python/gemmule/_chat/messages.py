"""What a conversation is made of, and how the dialects in use become it.

OpenAI (image_url, input_audio, tool_calls with JSON text), transformers ({"type": "image", "path": ...}),
llama.cpp (input_video, reasoning_content) and Ollama (`images` beside the text, `thinking`, arguments as an
object) all mean the same things; `normalize` turns each into a tuple of Message.
"""

import base64
import binascii
import json
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from gemmule._errors import MediaError

if TYPE_CHECKING:
    from gemmule._media.parts import MediaPart

__all__ = ["Message", "MessageLike", "Role", "ToolCall", "is_conversation", "normalize"]

Role = Literal["system", "user", "assistant", "tool"]
MessageLike: TypeAlias = "str | Message | Mapping[str, Any]"

_ROLES = {role: role for role in get_args(Role)} | {
    "developer": "system",
    "model": "assistant",
    "function": "tool",
}
_KINDS = {
    "image_url": "image",
    "input_image": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "video",
    "input_video": "video",
}
# What a part may say beside its source: the option of Image, Audio or Video, by the names in use.
_OPTIONS: dict[str, dict[str, str]] = {
    "image": {"tokens": "tokens", "max_soft_tokens": "tokens"},
    "audio": {"rate": "rate", "sampling_rate": "rate", "start": "start", "duration": "duration"},
    "video": {
        "frames": "frames",
        "num_frames": "frames",
        "fps": "fps",
        "tokens": "tokens",
        "max_soft_tokens": "tokens",
        "sound": "sound",
    },
}
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants to be called. `id` ties the answer to the call."""

    name: str
    arguments: dict[str, Any]
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it: the arguments are JSON text."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)},
        }


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `content` holds text and media in order; a plain str is taken too.

    `response`: what a tool returned, as named values; the text of it stands in `content`.
    """

    role: Role
    content: "tuple[str | MediaPart, ...]" = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    response: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role is {self.role!r}; use system, user, assistant or tool")
        content: Any = self.content
        if isinstance(content, str) or _is_media(content):
            content = (content,)
        content = tuple(part for part in content if part != "") if content else ()
        for part in content:
            if not isinstance(part, str) and not _is_media(part):
                raise TypeError(f"content holds text, Image, Audio and Video, not {type(part).__name__}")
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def media(self) -> "tuple[MediaPart, ...]":
        """The images, sounds and videos."""
        return tuple(part for part in self.content if not isinstance(part, str))

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it. Media that are not encoded files stay objects, as transformers takes them."""
        content: Any = self.text
        if any(not isinstance(part, str) for part in self.content) or len(self.content) > 1:
            content = [_part_dict(part) for part in self.content]
        out: dict[str, Any] = {"role": self.role, "content": content}
        if self.thinking:
            out["reasoning_content"] = self.thinking
        if self.tool_calls:
            out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
            if not self.content:
                out["content"] = None
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out


def is_conversation(value: Any) -> bool:
    """Whether these are messages, not text or its parts."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else value
    return isinstance(first, Message | dict)


def normalize(
    messages: "MessageLike | Sequence[MessageLike]",
    *,
    system: str | None = None,
    images: Any = None,
    audio: Any = None,
    videos: Any = None,
    allow_files: bool = True,
) -> tuple[Message, ...]:
    """The messages in one form. A str is one user message, and so is a list of text and media.

    `images`, `videos`, `audio` (one or several each) go, in this order, before the content of the last user
    message. With `allow_files=False` only data: URIs and base64 text name media, never a path.

    Throws ValueError (MediaError for media) naming messages[i] and content[j].
    """
    if isinstance(messages, str | Message | Mapping):
        messages = [messages]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray):
        raise TypeError(f"messages must be text or a list of messages, not {type(messages).__name__}")
    if any(_is_media(part) for part in messages) and all(
        isinstance(p, str) or _is_media(p) for p in messages
    ):
        messages = [Message("user", cast("tuple[str | MediaPart, ...]", tuple(messages)))]
    out: list[Message] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if isinstance(message, Message):
            out.append(message)
        elif isinstance(message, str):
            out.append(Message("user", (message,)))
        elif isinstance(message, Mapping):
            _Reader(where, allow_files).read(message, out)
        else:
            raise TypeError(f"{where} must be a dict, a Message or text, not {type(message).__name__}")
    if system is not None:
        if not isinstance(system, str):
            raise TypeError(f"system must be text, not {type(system).__name__}")
        if out and out[0].role == "system":
            raise ValueError("system= was given and messages[0] is a system message too; give one of them")
        out.insert(0, Message("system", (system,)))
    _attach(out, images, videos, audio)
    if not out:
        raise ValueError("messages is empty")
    return tuple(_paired(out))


class _Reader:
    """Reads one message dict; `where` names it in errors."""

    def __init__(self, where: str, allow_files: bool) -> None:
        self.where = where
        self.allow_files = allow_files

    def read(self, message: Mapping[str, Any], out: list[Message]) -> None:
        where, given = self.where, message.get("role")
        role: Any = _ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            raise ValueError(f"{where}.role is {given!r}; use system, user, assistant or tool")
        thinking: list[str] = []
        response = None
        content = message.get("content")
        if role == "tool" and isinstance(content, Mapping) and "type" not in content:
            response, content = content, json.dumps(content, ensure_ascii=False, default=str)
        parts = self._content(content, f"{where}.content", thinking)
        for kind, key in (("image", "images"), ("audio", "audios"), ("video", "videos")):
            beside = [
                self._source(kind, item, {}, f"{where}.{key}[{k}]")
                for k, item in enumerate(_several(message.get(key)))
            ]
            parts = [*beside, *parts]
        if role == "system" and any(not isinstance(part, str) for part in parts):
            raise ValueError(f"{where} is a system message, which holds text only")
        for key in ("reasoning_content", "reasoning", "thinking"):
            text = message.get(key)
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{where}.{key} must be text, not {type(text).__name__}")
            if text:
                thinking.append(text)
                break
        if role != "assistant" and (thinking or message.get("tool_calls") or message.get("function_call")):
            raise ValueError(f"{where} has role {given!r}; only assistant messages think and call tools")
        name = message.get("name") or message.get("tool_name")
        out.append(
            Message(
                role,
                tuple(parts),
                "\n".join(thinking),
                tuple(self._calls(message)),
                _optional(message.get("tool_call_id"), f"{where}.tool_call_id"),
                _optional(name, f"{where}.name"),
                response,
            )
        )
        for k, answer in enumerate(message.get("tool_responses") or ()):  # transformers' examples for Gemma
            if not isinstance(answer, Mapping) or "response" not in answer:
                raise ValueError(f"{where}.tool_responses[{k}] must hold name and response")
            value = answer["response"]
            if not isinstance(value, Mapping):
                value = {"value": value}
            text = json.dumps(value, ensure_ascii=False, default=str)
            out.append(Message("tool", (text,), name=answer.get("name"), response=value))

    # -- content -------------------------------------------------------------------------------------------

    def _content(self, content: Any, where: str, thinking: list[str]) -> "list[str | MediaPart]":
        if content is None:
            return []
        if isinstance(content, str):
            return [content]
        if isinstance(content, Mapping) or _is_media(content):
            content = [content]
        if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
            raise ValueError(f"{where} must be text or a list of parts, not {type(content).__name__}")
        out: list[str | MediaPart] = []
        for j, part in enumerate(content):
            out += self._part(part, f"{where}[{j}]", thinking)
        return out

    def _part(self, part: Any, where: str, thinking: list[str]) -> "list[str | MediaPart]":
        if isinstance(part, str) or _is_media(part):
            return [part]
        if not isinstance(part, Mapping):
            raise ValueError(
                f"{where} must be a dict, text, Image, Audio or Video, not {type(part).__name__}"
            )
        kind = part.get("type")
        if kind is None:
            kind = next((key for key in ("text", "image", "audio", "video", *_KINDS) if key in part), None)
        if kind in ("text", "input_text", "output_text", "refusal", "thinking", "reasoning"):
            text = part.get(kind, part.get("text"))
            if not isinstance(text, str):
                raise ValueError(f"{where} is of type {kind!r} but has no text")
            if kind in ("thinking", "reasoning"):
                thinking.append(text)
                return []
            return [text]
        media = _KINDS.get(kind, kind) if isinstance(kind, str) else None
        if media not in _OPTIONS:
            raise ValueError(f"{where}.type is {kind!r}; use text, image_url, input_audio or input_video")
        return [self._media(media, str(kind), part, where)]

    def _media(self, kind: str, key: str, part: Mapping[str, Any], where: str) -> "MediaPart":
        holder: Mapping[str, Any] = part
        value = part.get(key)
        if value is None and isinstance(part.get("source"), Mapping):
            value = part["source"]
        if isinstance(value, Mapping):  # {"url": ...}, {"data": ..., "format": ...}
            holder, value = value, None
        encoded = False
        if value is None:
            for name in ("url", "path", "file", "data", "base64", "array", kind, f"{kind}_url"):
                if (value := holder.get(name)) is not None:
                    encoded = name in ("data", "base64")
                    break
        if value is None:
            raise MediaError(f"{where} has no {kind}; give it a url, path or data")
        options = {
            option: holder.get(name, part.get(name))
            for name, option in _OPTIONS[kind].items()
            if holder.get(name, part.get(name)) is not None
        }
        if kind == "audio" and not _is_array(value):
            options.pop("rate", None)  # OpenAI's clients name the rate of an encoded file
        return self._source(kind, value, options, where, encoded=encoded)

    def _source(
        self, kind: str, value: Any, options: dict[str, Any], where: str, *, encoded: bool | None = None
    ) -> "MediaPart":
        """One medium of a known kind. A bare str is base64 if `encoded`, tried as a path first if None."""
        from gemmule._media.parts import Audio, Image, Video

        if _is_media(value):
            return value  # type: ignore[no-any-return]
        if isinstance(value, str):
            value, name = self._named(value, where, encoded)
            options = {**options, "name": name} if name else options
        elif isinstance(value, os.PathLike) and not self.allow_files:
            raise MediaError(f"{where} is a path; only data: URIs are taken here")
        try:
            part: MediaPart = {"image": Image, "audio": Audio, "video": Video}[kind](value, **options)
        except (TypeError, ValueError) as error:
            raise MediaError(f"{where}: {error}") from None
        return part

    def _named(self, text: str, where: str, encoded: bool | None) -> tuple[str | bytes, str]:
        """The bytes of a data: URI or base64 text, else the path."""
        head = text[:16].lower()
        if head.startswith("data:"):
            return _data_uri(text, where), where
        if head.startswith(("http:", "https:", "ftp:", "s3:", "gs:")):
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise MediaError(
                f"{where} is the remote address {shown}; gemmule fetches nothing, "
                "download it and give the file"
            )
        if encoded is None:
            encoded = not self.allow_files or not _exists(text)
        if encoded:
            try:
                return base64.b64decode("".join(text.split()), validate=True), where
            except (ValueError, binascii.Error):
                raise MediaError(f"{where} is neither base64 data nor an existing file") from None
        if not self.allow_files:
            raise MediaError(f"{where} is a path; only data: URIs are taken here")
        if head.startswith("file:"):
            text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
        return text, ""

    # -- tool calls ----------------------------------------------------------------------------------------

    def _calls(self, message: Mapping[str, Any]) -> Iterator[ToolCall]:
        calls = message.get("tool_calls")
        key = f"{self.where}.tool_calls"
        if not calls and message.get("function_call"):
            calls, key = [message["function_call"]], f"{self.where}.function_call"
        if calls is None:
            return
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise ValueError(f"{key} must be a list, not {type(calls).__name__}")
        for k, call in enumerate(calls):
            where = f"{key}[{k}]"
            if isinstance(call, ToolCall):
                yield call
                continue
            function = call.get("function", call) if isinstance(call, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(name, str) or not name:
                raise ValueError(f"{where} has no function name")
            arguments = function.get("arguments", function.get("args"))  # type: ignore[union-attr]
            given = _optional(call.get("id"), f"{where}.id")
            yield ToolCall(name, _arguments(arguments, where), given or "")


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """Arguments as a dict: a template that gets JSON text would paste it in raw."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: the arguments are not valid JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: the arguments must be an object, not {type(value).__name__}")
    _check_depth(value, where)
    return {str(key): item for key, item in value.items()}


def _check_depth(value: Any, where: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"{where}: the arguments are nested deeper than {_MAX_DEPTH} levels")
        level = [
            item
            for box in level
            for item in (box.values() if isinstance(box, Mapping) else box)
            if isinstance(item, Mapping | list | tuple)
        ]


def _optional(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where} must be text, not {type(value).__name__}")
    return value


def _paired(messages: list[Message]) -> Iterator[Message]:
    """Every call gets an id, every tool result the id of its call: by name, else by position."""
    open_calls: list[ToolCall] = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            calls = tuple(
                call if call.id else ToolCall(call.name, call.arguments, f"call_{i}_{k}")
                for k, call in enumerate(message.tool_calls)
            )
            open_calls = list(calls)
            yield message if calls == message.tool_calls else _replace(message, tool_calls=calls)
        elif message.role == "tool":
            match = message.tool_call_id
            if match is None and open_calls:
                call = next((call for call in open_calls if call.name == message.name), None)
                if call is None and message.name is None:
                    call = open_calls[0]
                match = None if call is None else call.id
            open_calls = [call for call in open_calls if call.id != match]
            yield message if match == message.tool_call_id else _replace(message, tool_call_id=match)
        else:
            open_calls = []
            yield message


def _replace(message: Message, **changes: Any) -> Message:
    fields = {name: getattr(message, name) for name in Message.__dataclass_fields__}
    return Message(**{**fields, **changes})


# -- media -------------------------------------------------------------------------------------------------


def _attach(messages: list[Message], images: Any, videos: Any, audio: Any) -> None:
    """Puts the shortcut media before the content of the last user message."""
    found: list[MediaPart] = []
    reader = _Reader("", allow_files=True)
    for kind, key, given in (
        ("image", "images", images),
        ("video", "videos", videos),
        ("audio", "audio", audio),
    ):
        found += [
            reader._source(kind, item, {}, f"{key}[{k}]", encoded=False)
            for k, item in enumerate(_several(given))
        ]
    if not found:
        return
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), None)
    if last is None:
        raise ValueError("images, audio and videos need a user message to belong to")
    messages[last] = _replace(messages[last], content=(*found, *messages[last].content))


def _several(given: Any) -> Iterable[Any]:
    """One source or several as an iterable; (samples, rate) is one."""
    if given is None:
        return ()
    if isinstance(given, list) or (isinstance(given, tuple) and not _is_rated(given)):
        return given
    return (given,)


def _is_rated(pair: "tuple[Any, ...]") -> bool:
    return len(pair) == 2 and _is_array(pair[0]) and not _is_array(pair[1]) and not _is_media(pair[1])


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and getattr(value, "ndim", 0) > 0


def _is_media(value: Any) -> bool:
    if value is None or isinstance(value, str | Mapping | list | tuple):
        return False
    from gemmule._media.parts import Audio, Image, Video

    return isinstance(value, Image | Audio | Video)


def _exists(path: str) -> bool:
    try:
        return len(path) < 4096 and Path(path).exists()
    except (OSError, ValueError):
        return False


def _data_uri(uri: str, where: str) -> bytes:
    """The bytes of data:[type][;base64],data (RFC 2397)."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise MediaError(f"{where} is a data: URI without a comma, so without data")
    if not head.lower().rstrip().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(data)
    if "%" in data:
        data = urllib.parse.unquote(data)
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (ValueError, binascii.Error):
        raise MediaError(f"{where} is a data: URI whose base64 data is damaged") from None


def _part_dict(part: "str | MediaPart") -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = type(part).__name__.lower()
    options = {
        name: value
        for name in dict.fromkeys(_OPTIONS[kind].values())
        if (value := getattr(part, name)) not in (None, 0.0, True)
    }
    source = part.src
    if isinstance(source, str):
        return {"type": kind, "path": source, **options}
    if isinstance(source, bytes):
        data = base64.b64encode(source).decode()
        if kind == "image":
            return {
                "type": "image_url",
                "image_url": {"url": f"data:{_mime(source)};base64,{data}"},
                **options,
            }
        return {"type": f"input_{kind}", f"input_{kind}": {"data": data}, **options}
    return {"type": kind, kind: source, **options}


def _mime(data: bytes) -> str:
    for magic, mime in ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif")):
        if data.startswith(magic):
            return mime
    return "image/webp" if data[8:12] == b"WEBP" else "application/octet-stream"
