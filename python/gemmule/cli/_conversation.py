"""The conversation of a chat: what was asked, with which files, and what came back. It can be saved, loaded
and written as Markdown.

The saved form is JSON: text files with their text, other files by path and SHA-256, so that a conversation
never goes on with another picture than the one it began with.
"""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule._errors import FormatError, MediaError
from gemmule.cli._attach import Attachment, MediaWishes, attach, attach_bytes, content_of

if TYPE_CHECKING:
    from gemmule import Message

__all__ = ["Conversation", "Exchange"]

FORMAT = "gemmule-chat"
VERSION = 1
_MAX_FILE = 256 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """A message of the user and what followed it: answers, tool calls and their results."""

    text: str
    attachments: tuple[Attachment, ...] = ()
    replies: "tuple[Message, ...]" = ()

    def messages(self) -> "list[Message]":
        from gemmule import Message

        return [Message("user", content_of(self.attachments, self.text)), *self.replies]


@dataclasses.dataclass(slots=True)
class Conversation:
    """System message and exchanges, oldest first."""

    system: str | None = None
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)

    def messages(self, *more: Exchange) -> "list[Message]":
        """Everything, as the model is to read it."""
        from gemmule import Message

        first = [Message("system", (self.system,))] if self.system else []
        return first + [message for each in (*self.exchanges, *more) for message in each.messages()]

    def save(self, path: Path, model: str) -> None:
        """Writes the conversation; the whole file or none."""
        from gemmule._cache import atomic_write

        document = {
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "system": self.system,
            "exchanges": [
                {
                    "text": each.text,
                    "attachments": [_attachment_to_dict(attachment) for attachment in each.attachments],
                    "replies": [message.to_dict() for message in each.replies],
                }
                for each in self.exchanges
            ],
        }
        text = json.dumps(document, ensure_ascii=False, indent=1)
        with atomic_write(path.resolve()) as out:
            out.write(text.encode("utf-8", "replace"))

    @classmethod
    def load(cls, path: Path, wishes: MediaWishes) -> "Conversation":
        """Reads what `save` wrote."""
        if path.stat().st_size > _MAX_FILE:
            raise FormatError(f"{path} is too large for a conversation")
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise FormatError(f"{path} is not a conversation: it is not JSON") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FormatError(f"{path} is not a conversation that gemmule saved")
        if document.get("version") != VERSION:
            raise FormatError(f"{path} was saved by another version of gemmule")
        try:
            exchanges = [_exchange_from_dict(entry, wishes) for entry in document["exchanges"]]
            system = document["system"]
            if not (system is None or isinstance(system, str)):
                raise TypeError("system")
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is damaged: {error!r}") from None
        return cls(system, exchanges)

    def markdown(self, model: str) -> str:
        """The conversation for readers."""
        parts = [f"# Conversation with {model}"]
        if self.system:
            parts += ["## System", self.system]
        for each in self.exchanges:
            parts += ["## You", *(f"*{attachment}*" for attachment in each.attachments), each.text]
            for message in each.replies:
                parts += [_reply_markdown(message)]
        return "\n\n".join(part for part in parts if part) + "\n"


def _reply_markdown(message: "Message") -> str:
    text = "".join(part for part in message.content if isinstance(part, str))
    if message.role == "tool":
        return f"## Result of {message.name}\n\n{_fenced(text)}"
    calls = [
        f"Calls `{call.name}`:\n\n{_fenced(json.dumps(call.arguments, ensure_ascii=False, default=str))}"
        for call in message.tool_calls
    ]
    return "\n\n".join(["## Model", *([text] if text else []), *calls])


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _attachment_to_dict(attachment: Attachment) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": attachment.kind, "name": attachment.name}
    if attachment.kind == "text":
        return out | {"text": attachment.part}
    if attachment.path is None:
        return out | {"data": base64.b64encode(attachment.data).decode()}
    path = attachment.path.resolve()
    return out | {"path": str(path), "sha256": _digest(path)}


def _exchange_from_dict(entry: dict[str, Any], wishes: MediaWishes) -> Exchange:
    from gemmule._chat.messages import normalize

    if not isinstance(entry["text"], str):
        raise TypeError("text")
    attachments = tuple(_attachment_from_dict(each, wishes) for each in entry["attachments"])
    replies = normalize(entry["replies"], allow_files=False) if entry["replies"] else ()
    return Exchange(entry["text"], attachments, replies)


def _attachment_from_dict(entry: dict[str, Any], wishes: MediaWishes) -> Attachment:
    kind, name = entry["kind"], entry["name"]
    if kind not in ("image", "audio", "video", "text") or not isinstance(name, str):
        raise TypeError("attachments")
    if kind == "text":
        return attach_bytes(entry["text"].encode("utf-8", "replace"), name, "text")
    if "data" in entry:
        return attach_bytes(base64.b64decode(entry["data"], validate=False), name, kind, wishes)
    path = Path(entry["path"])
    if not path.is_file():
        raise MediaError(f"the conversation needs {path}, which is not there any more")
    if _digest(path) != entry["sha256"]:
        raise MediaError(f"the conversation needs {path} as it was; the file has changed since")
    return dataclasses.replace(attach(str(path), kind, wishes), name=name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
