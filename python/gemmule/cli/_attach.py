"""Files that go along with a message: pictures, sounds, videos and texts, told apart by what is in them.

An attachment is opened when it is named, so a missing or unreadable file is found before a model is loaded;
pictures and sounds are decoded later, by the library.
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemmule._errors import MediaError

if TYPE_CHECKING:
    from gemmule import Audio, Image, Video

__all__ = [
    "Attachment",
    "MediaWishes",
    "attach",
    "attach_all",
    "attach_bytes",
    "content_of",
    "piped",
    "text_block",
]

MAX_TEXT = 16 << 20  # bytes of a text file; far above any context
KINDS = ("image", "audio", "video", "text")


@dataclasses.dataclass(frozen=True, slots=True)
class MediaWishes:
    """How pictures and videos are to be read; None leaves it to the model's file."""

    image_tokens: int | None = None
    video_frames: int | None = None
    video_tokens: int | None = None
    video_sound: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Attachment:
    """One file of a message. `path` is None for what was piped or pasted; then `data` holds its bytes."""

    kind: str  # one of KINDS
    name: str
    part: "Image | Audio | Video | str"
    path: Path | None = None
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def attach(source: str, kind: str | None = None, wishes: MediaWishes | None = None) -> Attachment:
    """The attachment a word of the command line stands for; "-" is standard input."""
    if source == "-":
        return attach_bytes(_read_stdin(), "standard input", kind, wishes)
    if source.startswith(("http://", "https://")):
        raise MediaError(f"gemmule fetches nothing from the network; save {source} as a file and name that")
    path = Path(source).expanduser()
    if path.is_dir():
        raise click.UsageError(f"{source} is a folder; name a file")
    if not path.exists():
        raise click.UsageError(f"there is no file {source}")
    found = kind or _kind_of(path)
    if found == "text":
        if path.stat().st_size > MAX_TEXT:
            raise MediaError(f"{source} is larger than {MAX_TEXT >> 20} MiB, too large for a text")
        return Attachment("text", source, _decoded(path.read_bytes(), source), path)
    with path.open("rb"):  # says now, and by name, that it may not be read
        return Attachment(found, source, _part(path, found, wishes), path)


def attach_bytes(
    data: bytes, name: str, kind: str | None = None, wishes: MediaWishes | None = None
) -> Attachment:
    """The attachment for bytes without a file."""
    found = kind or _kind_of(data)
    if found == "text":
        return Attachment("text", name, _decoded(data, name), None, data)
    return Attachment(found, name, _part(data, found, wishes), None, data)


def attach_all(
    files: Sequence[str], forced: Mapping[str, Sequence[str]], typed: Sequence[str], wishes: MediaWishes
) -> list[Attachment]:
    """The positional `files` and those of the options (by kind; "" finds the kind), in the order typed."""
    wanted = [(source, "") for source in files]
    wanted += [(source, kind) for kind, sources in forced.items() for source in sources]
    free = list(enumerate(typed))

    def place(source: str) -> int:
        for i, (position, word) in enumerate(free):
            if word == source or (word.startswith("-") and word.endswith(source)):
                del free[i]
                return position
        return len(typed)  # from an environment variable

    order = sorted((place(source), source, kind) for source, kind in wanted)
    if sum(source == "-" for _, source, _ in order) > 1:
        raise click.UsageError("standard input can be attached once only")
    return [attach(source, kind or None, wishes) for _, source, kind in order]


def content_of(attachments: Iterable[Attachment], *texts: str) -> tuple[Any, ...]:
    """A message: the media in their order, then one text of `texts` and of the text files."""
    media = [attachment.part for attachment in attachments if attachment.kind != "text"]
    files = [text_block(attachment) for attachment in attachments if attachment.kind == "text"]
    prompt, *rest = texts or ("",)
    text = "\n\n".join(text for text in (prompt, *files, *rest) if text)
    return (*media, text) if text else tuple(media)


def text_block(attachment: Attachment) -> str:
    """A text file as it goes into the prompt: its name, then its text in a fence that it does not hold."""
    text = str(attachment.part)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{attachment.name}:\n{fence}\n{text.rstrip()}\n{fence}"


def piped(wishes: MediaWishes, *, wait: bool = False) -> tuple[str, list[Attachment]]:
    """What was piped in: a text, or a media file. `wait` waits for a terminal too."""
    from gemmule.cli._common import piped_text

    if sys.stdin is None or sys.stdin.closed or not hasattr(sys.stdin, "buffer"):
        return "", []
    if sys.stdin.isatty():
        return piped_text(wait=wait), []
    data = sys.stdin.buffer.read()
    if b"\0" in data[:65536]:
        return "", [attach_bytes(data, "standard input", None, wishes)]
    text = data.decode("utf-8-sig", "replace")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text, []


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        return b""
    return sys.stdin.buffer.read()


def _kind_of(source: Path | bytes) -> str:
    from gemmule._media.sniff import media_kind

    return media_kind(source) or "text"


def _part(source: Path | bytes, kind: str, wishes: MediaWishes | None) -> "Image | Audio | Video":
    from gemmule import Audio, Image, Video

    wishes = wishes or MediaWishes()
    if kind == "image":
        return Image(source, tokens=wishes.image_tokens)
    if kind == "audio":
        return Audio(source)
    return Video(source, frames=wishes.video_frames, tokens=wishes.video_tokens, sound=wishes.video_sound)


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise MediaError(f"{name} is neither an image, a sound, a video nor UTF-8 text")
    return text
