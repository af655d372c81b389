"""Reads a reply of Gemma 4 as it comes: thinking, text and tool calls.

reply := (thought | text | call)*, thought := <|channel> "thought" newline TEXT <channel|>, call :=
<|tool_call> "call:" NAME {...} <tool_call|>. The markers are single tokens, so everything is decided by
token id and text that only looks like a marker stays text. Nothing is lost: a call that cannot be read is
text.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gemmule._chat.messages import Message, ToolCall
from gemmule._chat.syntax import QUOTE, parse_call

__all__ = ["Event", "Markers", "ParsedReply", "ReplyParser", "parse_reply"]

_NAMES = {
    "channel_open": "<|channel>",
    "channel_close": "<channel|>",
    "call_open": "<|tool_call>",
    "call_close": "<tool_call|>",
    "quote": QUOTE,
    "response_open": "<|tool_response>",
    "turn_open": "<|turn>",
    "turn_close": "<turn|>",
}
_LABEL = "thought"
# Stands for the quote token while a call is collected, so that the same characters as text stay text.
_QUOTE_TOKEN = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that came out of a reply: a stretch of text or thinking, or a whole call."""

    kind: Literal["text", "thinking", "tool_call"]
    text: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Markers:
    """The token ids of the markers; None for those a vocabulary lacks."""

    channel_open: int | None = None
    channel_close: int | None = None
    call_open: int | None = None
    call_close: int | None = None
    quote: int | None = None
    response_open: int | None = None
    turn_open: int | None = None
    turn_close: int | None = None

    @classmethod
    def of(cls, id_of: Callable[[str], int | None]) -> "Markers":
        """Looks the markers up in a vocabulary."""
        return cls(**{name: id_of(text) for name, text in _NAMES.items()})


class ReplyParser:
    """Feed it token by token, then `finish`.

    `tool_names`: the declared tools, which help to read a mangled call. `thinking_open`: the prompt ended
    inside a thought. `parse_tools=False` leaves calls in the text as they are.
    """

    def __init__(
        self,
        *,
        tool_names: Sequence[str] = (),
        markers: Markers,
        thinking_open: bool = False,
        parse_tools: bool = True,
        make_id: Callable[[], str] | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._names = tuple(tool_names)
        self._marks = {mark: name for name in _NAMES if (mark := getattr(markers, name)) is not None}
        self._parse_tools = parse_tools
        self._make_id = make_id or (lambda: f"call_{secrets.token_hex(8)}")
        self._read: Callable[[str], Iterable[Event]] = self._thought if thinking_open else self._text
        self._held = ""  # what may belong to a label, or a thought's last newline
        self._call: list[str] = []

    @property
    def in_thinking(self) -> bool:
        """Whether the next token belongs to a thought."""
        return self._read in (self._thought, self._label)

    def feed(self, token: int, text: str) -> list[Event]:
        """What one more token brings. `text` is what the detokenizer gave for it, possibly nothing."""
        mark = self._marks.get(token)
        return self._marker(mark) if mark is not None else self._plain(text)

    def finish(self) -> list[Event]:
        """What was still held back. A thought that never ended stays a thought."""
        events = self._end_call("") if self._read == self._in_call else self._release()
        self._read = self._text
        return events

    # -- text by state -------------------------------------------------------------------------------------

    def _plain(self, text: str) -> list[Event]:
        return list(self._read(text)) if text else []

    def _text(self, text: str) -> Iterable[Event]:
        yield Event("text", text)

    def _in_call(self, text: str) -> Iterable[Event]:
        self._call.append(text)
        return ()

    def _thought(self, text: str) -> Iterable[Event]:
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""  # the one before the closing marker is no content
        text = text.removesuffix("\n") if self._held else text
        if text:
            yield Event("thinking", text)

    def _label(self, text: str) -> Iterable[Event]:
        """After <|channel>: swallows the channel's name and its newline."""
        self._held += text
        body = self._held.lstrip()
        if len(self._held) < 64 and (_LABEL.startswith(body) or _is_label(body)):
            return
        held, self._held = self._held, ""
        self._read = self._thought
        rest = body.removeprefix(_LABEL)
        if rest != body and rest[:1].isspace():
            rest = rest.lstrip(" \t\r")
            held = rest.removeprefix("\n")
        if held:
            yield from self._thought(held)

    def _turn(self, text: str) -> Iterable[Event]:
        """After <|turn>: swallows the role's name and its newline."""
        self._held += text
        if "\n" not in self._held and len(self._held) < 16:
            return
        held, self._held = self._held, ""
        self._read = self._text
        rest = re.sub(r"\A\s*(?:model|assistant)[ \t]*\n", "", held)
        if rest:
            yield Event("text", rest)

    # -- markers -------------------------------------------------------------------------------------------

    def _marker(self, mark: str) -> list[Event]:
        if mark == "call_close" and self._read == self._in_call:
            return self._end_call("close")
        if mark in ("quote", "call_open", "call_close") and not self._parse_tools:
            return self._plain(_NAMES[mark])
        if mark == "quote":
            return self._plain(_QUOTE_TOKEN if self._read == self._in_call else QUOTE)
        if mark == "call_close":
            return []
        if mark == "channel_close" and self._read == self._in_call:
            return []
        closing = mark == "channel_close"
        events = self._end_call(mark) if self._read == self._in_call else self._release(closing)
        if mark == "channel_open":
            self._read = self._label
        elif mark == "call_open":
            self._read = self._in_call
        elif mark == "turn_open":
            self._read = self._turn
        else:
            self._read = self._text
        return events

    def _release(self, closing: bool = False) -> list[Event]:
        """Ends a label, thought or role name: what was held back comes out unless it is markup."""
        held, self._held = self._held, ""
        if self._read == self._label:
            return [] if held.strip() in ("", _LABEL) else [Event("thinking", held)]
        if self._read == self._turn:
            return [] if held.strip() in ("", "model", "assistant") else [Event("text", held)]
        if self._read == self._thought and held and not closing:
            return [Event("thinking", held)]
        return []

    def _end_call(self, how: str) -> list[Event]:
        """A call from what was collected: `how` is the marker that ended it, empty at the reply's end."""
        body, self._call = "".join(self._call), []
        self._read = self._text
        if not body.strip() and not how:
            return []
        try:
            name, arguments = parse_call(
                body, names=self._names, closed=bool(how), quotes=(_QUOTE_TOKEN, QUOTE)
            )
        except ValueError as error:
            reason = "it is cut off" if not how else str(error)
            self.notes.append(f"a tool call could not be read ({reason}); it stands in the text")
            return [Event("text", body.replace(_QUOTE_TOKEN, QUOTE))] if body else []
        arguments = _restored(arguments)
        return [Event("tool_call", call=ToolCall(name, arguments, self._make_id()))]


def _is_label(body: str) -> bool:
    """Whether more must come to tell where a label ends."""
    rest = body.removeprefix(_LABEL)
    return rest != body and not rest.strip(" \t\r")


def _restored(value: object) -> "dict[str, object]":
    """The value with stray quote tokens back in its words."""

    def one(item: object) -> object:
        if isinstance(item, str):
            return item.replace(_QUOTE_TOKEN, QUOTE)
        if isinstance(item, dict):
            return {one(key): one(inner) for key, inner in item.items()}
        return [one(inner) for inner in item] if isinstance(item, list) else item

    return one(value)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A whole reply, taken apart."""

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    notes: tuple[str, ...]

    @property
    def message(self) -> Message:
        """As the next prompt takes it."""
        return Message("assistant", (self.text,), self.thinking, self.tool_calls)

    @classmethod
    def of(cls, events: Iterable[Event], notes: Sequence[str] = ()) -> "ParsedReply":
        """Joins the events of a parser."""
        events = list(events)
        return cls(
            "".join(event.text for event in events if event.kind == "text"),
            "".join(event.text for event in events if event.kind == "thinking"),
            tuple(event.call for event in events if event.call is not None),
            tuple(notes),
        )


_MARKER_IDS = {text: i for i, text in enumerate(_NAMES.values())}
_SPLIT = re.compile("(" + "|".join(map(re.escape, _MARKER_IDS)) + ")")


def parse_reply(
    text: str, *, tool_names: Sequence[str] = (), thinking_open: bool = False, parse_tools: bool = True
) -> ParsedReply:
    """Takes apart a complete reply given as text, in which every spelled marker counts as one."""
    parser = ReplyParser(
        tool_names=tool_names,
        markers=Markers.of(_MARKER_IDS.get),
        thinking_open=thinking_open,
        parse_tools=parse_tools,
    )
    events = [
        event for chunk in _SPLIT.split(text) for event in parser.feed(_MARKER_IDS.get(chunk, -1), chunk)
    ]
    events += parser.finish()
    return ParsedReply.of(events, parser.notes)
