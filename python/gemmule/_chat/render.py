"""A conversation as the prompt the model reads: through the file's template or the built-in renderer.

Through a template, what people wrote is first protected: a special token spelled in it becomes a sentinel
that no one can guess, and so does every medium; afterwards the sentinels are cut out again. Known faults
of the published templates are put right here (see `_fixed_tools`, `_as_dicts` and `_prompted`).
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from gemmule._chat.gemma4 import EMPTY_THOUGHT, THOUGHT, render_gemma4, strip_thoughts
from gemmule._chat.messages import Message
from gemmule._chat.pieces import SPECIALS, Piece, special_pattern
from gemmule._chat.syntax import declared

if TYPE_CHECKING:
    from gemmule._chat.template import ChatTemplate
    from gemmule._media.parts import MediaPart

__all__ = ["Piece", "Rendered", "render"]


@dataclass(frozen=True)
class Rendered:
    """A prompt in pieces of text and media, in order."""

    pieces: "tuple[Piece | MediaPart, ...]"

    @cached_property
    def text(self) -> str:
        """The prompt as one string; media stand as <|image|>, <|audio|> and <|video|>."""
        return "".join(
            piece.text if isinstance(piece, Piece) else f"<|{type(piece).__name__.lower()}|>"
            for piece in self.pieces
        )

    @property
    def media(self) -> "tuple[MediaPart, ...]":
        """The media alone."""
        return tuple(piece for piece in self.pieces if not isinstance(piece, Piece))

    @property
    def thinking_open(self) -> bool:
        """Whether the prompt ends inside a thought, so that the reply begins with its rest."""
        last = self.pieces[-1] if self.pieces else None
        return isinstance(last, Piece) and last.special and last.text.endswith(THOUGHT)


def render(
    messages: Sequence[Message],
    *,
    template: "ChatTemplate | None" = None,
    tools: Sequence[Mapping[str, Any]] = (),
    think: bool = False,
    add_generation_prompt: bool = True,
    bos: str = "<bos>",
    specials: tuple[str, ...] = SPECIALS,
) -> Rendered:
    """The prompt of a conversation. Without a template the built-in format of Gemma 4 is used.

    Throws ValueError for tool results that answer no call, FormatError for a template that fails or goes
    beyond its limits.
    """
    _check_results(messages)
    if template is None:
        pieces = render_gemma4(
            messages,
            tools=tools,
            think=think,
            add_generation_prompt=add_generation_prompt,
            bos=bos,
            specials=specials,
        )
        return Rendered(tuple(pieces))
    shield = _Shield(specials)
    version = template.known_version
    text = template.render(
        {
            "messages": _as_dicts(messages, version, shield),
            "tools": _fixed_tools(tools, template, shield) or None,
            "bos_token": bos,
            "eos_token": "<eos>",
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": think,
        }
    )
    if add_generation_prompt and version is not None:
        text = _prompted(text, template.source, think)
    return Rendered(tuple(shield.pieces(text)))


def _check_results(messages: Sequence[Message]) -> None:
    """A tool result must answer one of the calls right before it; templates drop any other without a word."""
    calls: set[str] = set()
    for i, message in enumerate(messages):
        if message.role != "tool":
            calls = {call.id for call in message.tool_calls}
        elif not calls:
            raise ValueError(
                f"messages[{i}] is a tool result, but no assistant message with tool_calls precedes it"
            )
        elif message.tool_call_id is not None and message.tool_call_id not in calls:
            raise ValueError(
                f"messages[{i}] answers the call {message.tool_call_id!r}, which the assistant message "
                f"before it did not make; its calls are {', '.join(map(repr, sorted(calls)))}"
            )


def _as_dicts(messages: Sequence[Message], version: str | None, shield: "_Shield") -> list[dict[str, Any]]:
    """The messages as templates take them. Arguments are mappings (text would be pasted raw); the launch
    version reads tool results from the message that called, as `tool_responses`.
    """
    out: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": _content(message, version, shield)}
        if message.thinking:
            entry["reasoning_content"] = shield.text(message.thinking)
        if message.role != "tool":
            names = {call.id: call.name for call in message.tool_calls}
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": shield.text(call.name), "arguments": shield.value(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            name = names.get(message.tool_call_id or "") or message.name or "unknown"
            entry["name"] = shield.text(name)
            entry["tool_call_id"] = message.tool_call_id
            if version == "launch":
                response = {"name": entry["name"], "response": entry["content"]}
                caller = next(e for e in reversed(out) if e["role"] != "tool")
                caller.setdefault("tool_responses", []).append(response)
                continue
        out.append(entry)
    return out


def _content(message: Message, version: str | None, shield: "_Shield") -> Any:
    if message.role == "tool":
        media = "".join(shield.media(part) for part in message.media)
        if message.response is None:
            return shield.text(message.text) + media
        response = shield.value(message.response)
        if media and response:  # travels inside the last value and is moved behind the block afterwards
            key = next(reversed(response))
            value = response[key]
            response[key] = value + media if isinstance(value, str) else f"{value}{media}"
        return response
    if message.role == "assistant":
        parts: list[Any] = [strip_thoughts(p) if isinstance(p, str) else p for p in message.content]
    else:
        parts = list(message.content)
    if all(isinstance(part, str) for part in parts) and (len(parts) < 2 or version in ("launch", "mid")):
        if message.role == "system":
            return shield.text(" ".join(part.strip() for part in parts))
        if len(parts) < 2:
            return shield.text("".join(parts))
    return [
        {"type": "text", "text": shield.text(part) if isinstance(part, str) else shield.media(part)}
        for part in parts
    ]


def _fixed_tools(
    tools: Sequence[Mapping[str, Any]], template: "ChatTemplate", shield: "_Shield"
) -> list[dict[str, Any]]:
    """The declarations with a type in every schema: without one, templates leave a brace open. Templates of
    other models get them as they are.
    """
    if template.known_version is None:
        return [shield.value(tool) for tool in tools]
    fixed, type_lists = [], template.type_lists
    for tool in tools:
        out = declared(tool, type_lists=type_lists)
        response = out["function"].get("response")
        if not type_lists and response and str(response["type"]).upper() != "OBJECT":
            del out["function"]["response"]  # older templates do not close it
        fixed.append(shield.value(out))
    return fixed


def _prompted(text: str, source: str, think: bool) -> str:
    """Adds the generation prompt that the template forgets after an answer beside tool calls, and drops the
    empty thought that the launch version puts into an open turn.
    """
    if text.endswith("<tool_response|>" + EMPTY_THOUGHT):
        return text.removesuffix(EMPTY_THOUGHT)
    if text.endswith("<turn|>\n"):
        text += "<|turn>model\n"
        if not think and r"<|channel>thought\n<channel|>" in source:
            text += EMPTY_THOUGHT
    return text


class _Shield:
    """Replaces what a template must not see or touch by sentinels, and finds these again in its output."""

    def __init__(self, specials: tuple[str, ...]) -> None:
        self._pattern = special_pattern(specials)
        self._prefix = _prefix_pattern(specials)
        self._nonce = f"\ue000{secrets.randbelow(10**18):018d}"
        self._kept: list[Piece | MediaPart] = []

    def text(self, text: str) -> str:
        """The text with every special token in it replaced. Half a token at its end is fenced off as well:
        the next part could bring the other half.
        """
        if "<" not in text and "[" not in text and "\ue000" not in text:
            return text
        text = self._pattern.sub(lambda match: self._keep(Piece(match[0], special=False)), text)
        return self._prefix.sub(lambda match: match[0] + self._keep(Piece("", special=False)), text)

    def value(self, value: Any) -> Any:
        """Every text within a value, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.value(value.item()) if hasattr(value, "item") else self.text(str(value))

    def media(self, part: "MediaPart") -> str:
        return self._keep(part)

    def _keep(self, piece: "Piece | MediaPart") -> str:
        self._kept.append(piece)
        return f"{self._nonce}{len(self._kept) - 1}\ue001"

    def pieces(self, text: str) -> "list[Piece | MediaPart]":
        """The output in pieces. Media inside a tool result are moved behind it."""
        out: list[Piece | MediaPart] = []
        run: list[str] = []
        waiting: list[MediaPart] = []
        inside = False

        def flush() -> None:
            if joined := "".join(run):
                out.append(Piece(joined))
            run.clear()

        for i, chunk in enumerate(re.split(f"{self._nonce}(\\d+)\ue001", text)):
            if i % 2 == 0:
                inside = self._text(chunk, inside, run, waiting, flush, out)
                continue
            kept = self._kept[int(chunk)]
            if isinstance(kept, Piece):
                if kept.text:
                    flush()
                    out.append(kept)
                elif run:
                    flush()
            elif inside:
                waiting.append(kept)
            else:
                flush()
                out.append(kept)
        flush()
        out += waiting
        return out

    @staticmethod
    def _text(chunk: str, inside: bool, run: list[str], waiting: Any, flush: Any, out: Any) -> bool:
        """Takes template text; whether a tool result is open at its end."""
        end = "<tool_response|>"
        while waiting and end in chunk:
            head, _, chunk = chunk.partition(end)
            run.append(head + end)
            flush()
            out += waiting
            waiting.clear()
            inside = False
        run.append(chunk)
        begin, close = chunk.rfind("<|tool_response>response:"), chunk.rfind(end)
        return begin > close if begin >= 0 or close >= 0 else inside


@lru_cache(maxsize=8)
def _prefix_pattern(specials: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the beginning of a special token at the end of a text, white space aside."""
    heads = sorted({s[:n] for s in specials for n in range(1, len(s))}, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, heads))})(?=\\s*\\Z)")
