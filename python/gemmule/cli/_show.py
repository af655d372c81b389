"""How an answer is shown while it comes: the text on stdout, its thinking on stderr, or one JSON event a
line.
"""

import json
import sys
from typing import TYPE_CHECKING, Any

from gemmule.cli._common import settings
from gemmule.cli._terminal import dimmed, printable

if TYPE_CHECKING:
    from gemmule import Reply, Stream, ToolCall

__all__ = ["Printer", "answer", "json_line"]


class Printer:
    """Follows streams. `form` is "text", "jsonl", or "silent" when only the result counts."""

    def __init__(self, form: str = "text", *, thinking: bool = True) -> None:
        self.form = form
        self._shows_thinking = thinking and form == "text" and not settings.quiet
        self._thought = False  # the header of a thought was written and its end not yet
        self._ended_line = True

    def follow(self, stream: "Stream") -> "tuple[Reply, bool]":
        """Shows the pieces as they come; the reply, and whether Ctrl-C cut it short."""
        interrupted = False
        self._ended_line = True
        try:
            for piece in stream:
                self._piece(piece)
        except KeyboardInterrupt:
            interrupted = True
            stream.close()  # it may have come between two steps, with the generation still open
        finally:
            self._end_thought()
        reply = stream.reply
        if self.form == "text" and (reply.text or not (interrupted or _calls(reply))):
            self._write("" if reply.text.endswith("\n") else "\n")
        return reply, interrupted

    def tool_result(self, call: "ToolCall", result: str) -> None:
        """Tells about a call that was made; on stderr the toolbox has done so."""
        if self.form == "jsonl":
            self._event("tool_result", id=call.id, name=call.name, result=result)

    def end(self, document: dict[str, Any]) -> None:
        """The last event: the whole result."""
        if self.form == "jsonl":
            self._event("reply", **document)

    def _piece(self, piece: Any) -> None:
        kind = getattr(piece, "kind", "text")
        if self.form == "jsonl":
            if kind == "tool_call":
                self._event(kind, id=piece.call.id, name=piece.call.name, arguments=piece.call.arguments)
            else:
                self._event(kind, text=piece.thinking if kind == "thinking" else str(piece))
        elif kind == "thinking":
            self._think(piece.thinking)
        elif kind == "text" and self.form == "text":
            self._end_thought()
            self._write(str(piece))

    def _think(self, text: str) -> None:
        if not self._shows_thinking or not text:
            return
        if not self._thought:
            self._thought = True
            on, _ = dimmed(sys.stderr)
            sys.stderr.write(on or "thinking:\n")
        sys.stderr.write(printable(text, sys.stderr))
        sys.stderr.flush()
        self._ended_line = text.endswith("\n")

    def _end_thought(self) -> None:
        if self._thought:
            self._thought = False
            _, off = dimmed(sys.stderr)
            sys.stderr.write(f"{off}{'' if self._ended_line else chr(10)}\n")
            sys.stderr.flush()

    def _write(self, text: str) -> None:
        sys.stdout.write(printable(text, sys.stdout))
        sys.stdout.flush()

    def _event(self, kind: str, **fields: Any) -> None:
        self._write(f"{json_line({'type': kind, **fields})}\n")


def answer(stream: "Stream", *, show: bool) -> "tuple[Reply, bool]":
    """One stream shown as text, or not at all; the reply, and whether Ctrl-C cut it short."""
    return Printer("text" if show else "silent").follow(stream)


def json_line(document: Any) -> str:
    """JSON on one line; objects of the user's own classes as their fields."""
    return json.dumps(document, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    for method in ("to_dict", "model_dump", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    try:
        import msgspec

        return msgspec.to_builtins(value)
    except (ImportError, TypeError):
        return str(value)


def _calls(reply: "Reply") -> Any:
    return getattr(reply, "tool_calls", ())
