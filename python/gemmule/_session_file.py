"""What Python adds to a session file: tokens not run yet, what the pictures and sounds of the timeline are,
and the conversation. Media are kept as the vectors that the model read; their files need not exist any more.

The text is 8 bytes with the length of a JSON object, the object, then float32 rows of media that are not on
the timeline.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._errors import FormatError
from gemmule._media.parts import Audio, Image, Kept, KeptRows, Video
from gemmule._prompt import Span

if TYPE_CHECKING:
    from gemmule._chat.messages import Message
    from gemmule._media.parts import MediaPart
    from gemmule._model import Model

__all__ = ["pack", "unpack"]

_LENGTH = struct.Struct("<Q")
_KINDS = {"image": Image, "audio": Audio, "video": Video}


def pack(
    model: "Model",
    pending: Sequence[int],
    spans: Sequence[Span],
    messages: "Sequence[Message]",
    stop: _core.StopToken | None,
) -> bytes:
    """The text for these; computes the vectors of media that the messages hold and the timeline does not."""
    writer = _Writer(model, spans, stop)
    head = {
        "pending": list(pending),
        "spans": [{"first": s.first, "n": s.n, "kind": s.kind, "key": s.source.key.hex()} for s in spans],
        "messages": [writer.message(message) for message in messages],
    }
    text = json.dumps(head, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
    return b"".join([_LENGTH.pack(len(text)), text, *writer.blobs])


def unpack(
    path: str, core: _core.Session, front: bytes
) -> "tuple[list[int], list[Span], tuple[Message, ...]]":
    """The pending tokens, the spans and the messages of what `pack` wrote."""
    try:
        (length,) = _LENGTH.unpack_from(front)
        head = json.loads(front[_LENGTH.size : _LENGTH.size + length].decode("utf-8", "surrogatepass"))
        reader = _Reader(core, head, memoryview(front)[_LENGTH.size + length :])
        pending = [int(token) for token in head["pending"]]
        return pending, reader.spans, tuple(reader.message(message) for message in head["messages"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise FormatError(
            f"{path} holds a conversation that cannot be read ({type(error).__name__}: {error}); "
            "save the session again"
        ) from None


class _Writer:
    def __init__(self, model: "Model", spans: Sequence[Span], stop: _core.StopToken | None) -> None:
        self._model, self._stop = model, stop
        self._places: dict[bytes, list[Any]] = {}
        for i, span in enumerate(spans):
            if span.n == span.source.n_tokens:  # sound that a rewind has cut is stored again, whole
                self._places[span.source.key] = ["span", i]
        self.blobs: list[bytes] = []

    def message(self, message: "Message") -> dict[str, Any]:
        return {
            "role": message.role,
            "content": [p if isinstance(p, str) else self._part(p) for p in message.content],
            "thinking": message.thinking,
            "tool_calls": [
                {"name": call.name, "arguments": call.arguments, "id": call.id} for call in message.tool_calls
            ],
            "tool_call_id": message.tool_call_id,
            "name": message.name,
            "response": message.response,
        }

    def _part(self, part: "MediaPart") -> dict[str, Any]:
        pieces, notes = self._model._media.prepare(part, None)
        return {
            "kind": type(part).__name__.lower(),
            "name": part.name,
            "tokens": None if isinstance(part, Audio) else part.tokens,
            "notes": list(notes),
            "pieces": [
                p
                if isinstance(p, str)
                else {"kind": p.kind, "key": p.source.key.hex(), "rows": self._rows(p.source)}
                for p in pieces
            ],
        }

    def _rows(self, source: Any) -> list[Any]:
        """Where the vectors are: in the timeline, or how many follow in the text."""
        known = self._places.get(source.key)
        if known is None:
            rows = self._model._media.embed(self._model._engine(), source, self._stop)
            known = ["blob", sum(map(len, self.blobs)), *rows.shape]
            self._places[source.key] = known
            self.blobs.append(rows.tobytes())
        return known


class _Reader:
    def __init__(self, core: _core.Session, head: Any, blobs: memoryview) -> None:
        self._blobs = blobs
        self._kept: dict[bytes, KeptRows] = {}
        self._rows: list[NDArray[np.float32]] = []
        self.spans: list[Span] = []
        media = core.media()
        for entry, (first, rows, is_block) in zip(head["spans"], media, strict=True):
            kind = entry["kind"]
            if (entry["first"], entry["n"]) != (first, len(rows)) or kind not in _KINDS:
                raise ValueError("a picture or sound lies elsewhere than its vectors")
            if is_block and kind == "audio":
                raise ValueError("a sound is stored as a picture")
            self._rows.append(rows)
            self.spans.append(Span(first, len(rows), kind, self._source(entry["key"], rows)))

    def _source(self, key: str, rows: NDArray[np.float32]) -> KeptRows:
        """One object for what is the same, so that its vectors exist once."""
        rows.flags.writeable = False
        name = bytes.fromhex(key)
        known = self._kept.get(name)
        if known is None or len(known.rows) < len(rows):
            known = self._kept[name] = KeptRows(name, rows)
        return known

    def message(self, entry: Any) -> "Message":
        from gemmule._chat.messages import Message, ToolCall

        response = entry["response"]
        if not (response is None or isinstance(response, Mapping)):
            raise ValueError("what a tool returned is no object")
        return Message(
            entry["role"],
            tuple(p if isinstance(p, str) else self._part(p) for p in entry["content"]),
            str(entry["thinking"]),
            tuple(
                ToolCall(str(call["name"]), dict(call["arguments"]), str(call["id"]))
                for call in entry["tool_calls"]
            ),
            entry["tool_call_id"],
            entry["name"],
            response,
        )

    def _part(self, entry: Any) -> "MediaPart":
        pieces: list[Any] = []
        for piece in entry["pieces"]:
            if isinstance(piece, str):
                pieces.append(piece)
            elif piece["kind"] in _KINDS:
                pieces.append((piece["kind"], self._source(piece["key"], self._rows_at(piece["rows"]))))
            else:
                raise ValueError(f"{piece['kind']!r} is no kind of media")
        kept = Kept(tuple(pieces), tuple(map(str, entry["notes"])))
        tokens, name = entry["tokens"], str(entry["name"])
        if entry["kind"] == "image":
            return Image(kept, tokens, name=name)
        return Audio(kept, name=name) if entry["kind"] == "audio" else Video(kept, tokens=tokens, name=name)

    def _rows_at(self, place: Any) -> NDArray[np.float32]:
        if place[0] == "span":
            return self._rows[int(place[1])]
        _, start, n, width = (place[0], *map(int, place[1:]))
        data = self._blobs[start : start + n * width * 4]
        if min(start, n, width) < 0 or len(data) != n * width * 4:
            raise ValueError("vectors are missing")
        return np.frombuffer(data, np.float32).reshape(n, width)


def _plain(value: Any) -> Any:
    """What a tool may have returned beside JSON's own values."""
    return value.item() if hasattr(value, "item") else str(value)
