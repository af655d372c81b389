"""Gemma 4's prompt format, written without a template engine; also the yardstick for templates in files.

<bos> <|turn>system\\n[<|think|>\\n] text, tool declarations <turn|>\\n, then the turns. A model turn
holds its calls, their results and its text; a call without a result leaves it open with <|tool_response>.
Rules: the official template, and where that one loses a turn's end, a prompt or a brace, what it
evidently means.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemmule._chat.messages import Message
from gemmule._chat.pieces import SPECIALS, Piece, PieceWriter
from gemmule._chat.syntax import declared, emit_declaration, emit_value

if TYPE_CHECKING:
    from gemmule._media.parts import MediaPart

__all__ = ["EMPTY_THOUGHT", "THOUGHT", "render_gemma4", "strip_thoughts"]

THOUGHT = "<|channel>thought\n"
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


def strip_thoughts(text: str) -> str:
    """A model's text without the thoughts that stand in it, trimmed."""
    if "<channel|>" in text or "<|channel>" in text:
        text = "".join(part.partition("<|channel>")[0] for part in text.split("<channel|>"))
    return text.strip()


def render_gemma4(
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    think: bool = False,
    add_generation_prompt: bool = True,
    bos: str = "<bos>",
    specials: tuple[str, ...] = SPECIALS,
) -> "list[Piece | MediaPart]":
    """The prompt of a conversation, in pieces. Time is linear in its size."""
    out = PieceWriter(specials)
    out.text(bos)
    has_system = bool(messages) and messages[0].role == "system"
    if think or tools or has_system:
        _system(messages[0] if has_system else None, tools, think, out)
    turns = messages[1:] if has_system else messages
    last_user = max((i for i, message in enumerate(turns) if message.role == "user"), default=-1)
    before, is_open = "", False
    for i, message in enumerate(turns):
        if message.role == "tool":
            continue  # written in the turn that called it
        role = "model" if message.role == "assistant" else message.role
        if not (role == "model" and before == "assistant"):
            out.text(f"<|turn>{role}\n")
        if message.thinking and message.tool_calls and i > last_user:
            # Only a turn that is still under way keeps its thought.
            out.text(THOUGHT)
            out.foreign(message.thinking)
            out.text("\n<channel|>")
        following = i + 1
        while following < len(turns) and turns[following].role == "tool":
            following += 1
        results = turns[i + 1 : following] if message.tool_calls else ()
        _calls(message, results, out)
        has_content = _content(message, out)
        comes = turns[following].role if following < len(turns) else ""
        is_open = True
        if message.tool_calls and not results:
            out.text("<|tool_response>")
        elif role == "model" and comes == "assistant":
            pass  # the turn goes on with the next message
        elif not results or has_content or comes:
            out.text("<turn|>\n")
            is_open = False
        before = message.role
    if add_generation_prompt and not is_open:
        out.text("<|turn>model\n")
        if not think:
            out.text(EMPTY_THOUGHT)
    return out.pieces()


def _system(
    message: Message | None, tools: Sequence[Mapping[str, Any]], think: bool, out: PieceWriter
) -> None:
    out.text("<|turn>system\n")
    if think:
        out.text("<|think|>\n")
    parts = () if message is None else message.content
    for part in parts:
        out.foreign(str(part).strip())
        if len(parts) > 1:
            out.text(" ")
    for tool in tools:
        out.text("<|tool>")
        emit_declaration(declared(tool), lambda text, foreign: (out.foreign if foreign else out.text)(text))
        out.text("<tool|>")
    out.text("<turn|>\n")


def _calls(message: Message, results: Sequence[Message], out: PieceWriter) -> None:
    def emit(text: str, foreign: bool) -> None:
        (out.foreign if foreign else out.text)(text)

    names = {call.id: call.name for call in message.tool_calls}
    for call in message.tool_calls:
        out.text("<|tool_call>call:")
        out.foreign(call.name)
        emit_value(call.arguments, emit)
        out.text("<tool_call|>")
    for result in results:
        out.text("<|tool_response>response:")
        out.foreign(names.get(result.tool_call_id or "") or result.name or "unknown")
        emit_value({"value": result.text} if result.response is None else result.response, emit)
        out.text("<tool_response|>")
        for part in result.media:
            out.media(part)


def _content(message: Message, out: PieceWriter) -> bool:
    """Writes text and media; whether there was any."""
    written = False
    for part in message.content:
        if isinstance(part, str):
            text = strip_thoughts(part) if message.role == "assistant" else part.strip()
            out.foreign(text)
            written = written or bool(text)
        else:
            out.media(part)
            written = True
    return written
