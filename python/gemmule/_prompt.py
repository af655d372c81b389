"""What a prompt may be, and how it becomes rows of the model.

str: encoded, with BOS in front of a new text; list of ids: taken as they are; Image, Audio, Video: their soft
tokens between begin and end markers; list of parts: joined in the order given; a rendered Prompt: as it is.
Text next to the time stamps of a video is encoded in one piece with them, as the model was trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemmule._cancel import check_cancelled
from gemmule._checks import is_whole, whole
from gemmule._errors import MediaError, UnsupportedError
from gemmule._media.parts import Audio, Image, MediaPart, Video
from gemmule._tokenizer import Tokenizer
from gemmule._types import TokenCount

if TYPE_CHECKING:
    from gemmule._media.embedder import MediaFrontEnd, MediaPiece, Prepared

__all__ = [
    "EMPTY",
    "MAX_MEDIA",
    "PreparedMedia",
    "Prompt",
    "PromptBuilder",
    "PromptLike",
    "Span",
    "build_prompt",
    "count_of",
    "identity",
]

Ids = NDArray[np.integer[Any]]

MAX_MEDIA = 32  # images, sounds and videos of one request

_BYTES = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows [first, first + n) of a prompt whose embeddings come from a picture or a sound."""

    first: int
    n: int
    kind: Literal["image", "audio", "video"]
    source: "Prepared"

    @property
    def is_block(self) -> bool:
        """Whether its rows see each other both ways in sliding layers: pictures do, sound does not."""
        return self.kind != "audio"

    def moved(self, offset: int) -> "Span":
        return Span(self.first + offset, self.n, self.kind, self.source)

    def cut(self, n: int) -> "Span":
        """Its first n rows; only sound can be cut."""
        return Span(self.first, n, self.kind, self.source)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to run: its token ids with the placeholders of media, and what it is made of.

    `text` shows media as the template's placeholders; `count` has the tokens of each modality; `warnings` say
    what was done to media, such as the places where a long sound was split.
    """

    tokens: tuple[int, ...]
    text: str = ""
    count: TokenCount = field(default_factory=lambda: TokenCount(0))
    warnings: tuple[str, ...] = ()
    spans: tuple[Span, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return self.text

    def identity(self) -> list[object]:
        """One value for each row, equal where two prompts give the model the same input."""
        return identity(self.tokens, self.spans)

    def after(self, n: int) -> "Prompt":
        """What follows the first n rows, which must not end inside a picture or sound."""
        spans = tuple(span.moved(-n) for span in self.spans if span.first >= n)
        return Prompt(self.tokens[n:], self.text, count_of(len(self.tokens) - n, spans), self.warnings, spans)


EMPTY = Prompt(())

# One Sequence, not a union of two: a type checker can then read a mixed list such as ["a", [1, 2]].
PromptLike: TypeAlias = str | Prompt | MediaPart | Sequence[int | str | MediaPart | Sequence[int] | Ids] | Ids


def count_of(n_tokens: int, spans: Sequence[Span]) -> TokenCount:
    n = {kind: sum(s.n for s in spans if s.kind == kind) for kind in ("image", "audio", "video")}
    return TokenCount(n_tokens, **n)


def identity(tokens: Sequence[int], spans: Sequence[Span]) -> list[object]:
    out: list[object] = list(tokens)
    for span in spans:
        out[span.first : span.first + span.n] = [(span.source.key, i) for i in range(span.n)]
    return out


class PreparedMedia:
    """The media of a conversation, decoded once however often its prompt is built."""

    def __init__(self, front_end: "MediaFrontEnd", image_tokens: int | None = None) -> None:
        self._front_end = front_end
        self._image_tokens = image_tokens
        self._done: dict[
            int, tuple[MediaPart, Sequence[str | MediaPiece], Sequence[str]]
        ] = {}  # by identity; the part itself keeps it from being used again

    def of(self, part: MediaPart) -> "tuple[Sequence[str | MediaPiece], Sequence[str]]":
        """Text and soft-token runs of a part, and notes on what was done."""
        check_cancelled()
        if id(part) not in self._done:
            self._done[id(part)] = (part, *self._front_end.prepare(part, self._image_tokens))
        _, pieces, notes = self._done[id(part)]
        return pieces, notes


class PromptBuilder:
    """Collects parts; `build()` gives the prompt."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        media: PreparedMedia,
        *,
        add_bos: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._media = media
        self._add_bos = add_bos
        self._ids: list[int] = []
        self._shown: list[str] = []
        self._held = ""  # text that may still grow before it is encoded
        self._spans: list[Span] = []
        self._warnings: list[str] = []
        self._n_parts = 0
        self._n_media = 0

    def text(self, text: str, *, special: bool = True) -> None:
        """Adds text; with special=False the names of special tokens in it are only characters."""
        self._n_parts += 1
        self._shown.append(text)
        if special:
            self._held += text
        else:
            self._encode()
            self._held = text
            self._encode(special=False)

    def ids(self, ids: Sequence[int] | Ids) -> None:
        self._encode()
        self._n_parts += 1
        self._ids += self._tokenizer.check_ids(ids)
        self._shown.append(self._tokenizer.decode(ids))

    def part(self, part: MediaPart) -> None:
        self._n_media += 1
        if self._n_media > MAX_MEDIA:
            raise MediaError(f"a request may hold {MAX_MEDIA} images, sounds and videos; split it")
        if not self._n_parts and not self._held:
            self._encode(force=True)  # BOS comes before the first picture
        self._n_parts += 1
        self._shown.append({Image: "<|image|>", Audio: "<|audio|>", Video: "<|video|>"}[type(part)])
        pieces, notes = self._media.of(part)
        self._warnings += notes
        for piece in pieces:
            if isinstance(piece, str):
                self._held += piece
                continue
            self._encode()
            begin, soft, end = piece.markers
            self._ids.append(begin)
            self._spans.append(Span(len(self._ids), piece.source.n_tokens, piece.kind, piece.source))
            self._ids += [soft] * piece.source.n_tokens
            self._ids.append(end)

    def build(self) -> Prompt:
        self._encode()
        if not self._ids:
            raise ValueError("the prompt holds no token")
        return Prompt(
            tokens=tuple(self._ids),
            text="".join(self._shown),
            count=count_of(len(self._ids), self._spans),
            warnings=tuple(self._warnings),
            spans=tuple(self._spans),
        )

    def _encode(self, *, special: bool = True, force: bool = False) -> None:
        if not self._held and not force:
            return
        first = not self._ids
        self._ids += self._tokenizer.encode(self._held, add_bos=self._add_bos and first, special=special)
        self._held = ""


def build_prompt(
    tokenizer: Tokenizer,
    media: "MediaFrontEnd",
    prompt: PromptLike,
    *,
    add_bos: bool = True,
    image_tokens: int | None = None,
) -> Prompt:
    """The rows of a prompt, its ids checked against the vocabulary."""
    if isinstance(prompt, Prompt):
        tokenizer.check_ids(prompt.tokens)
        return prompt
    detail = None if image_tokens is None else whole("image_tokens", image_tokens, 1, 1 << 14)
    builder = PromptBuilder(tokenizer, PreparedMedia(media, detail), add_bos=add_bos)
    for part in _parts(prompt):
        if isinstance(part, str):
            builder.text(part)
        elif isinstance(part, MediaPart):
            builder.part(part)
        elif _is_ids(part):
            builder.ids(part)
        else:
            raise UnsupportedError(
                "a prompt part must be text, a list of token ids, or a gemmule.Image, Audio or Video; "
                f"{type(part).__name__} parts are not supported"
            )
    return builder.build()


def _parts(prompt: object) -> Iterator[Any]:
    if isinstance(prompt, str | MediaPart) or _is_ids(prompt):
        yield prompt
    elif isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, _BYTES):
        yield from prompt
    else:
        raise UnsupportedError(
            "a prompt must be text, token ids, media or a list of these; "
            f"{type(prompt).__name__} is not supported, give a list of ids"
        )


def _is_ids(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | _BYTES)
        and all(is_whole(item) for item in value)
    )
