"""The media side of an open model: which kinds it takes, what a part becomes, and its embeddings.

The embedders live in the file's own mmproj section, in a file given as `mmproj`, or in one lying beside the
model. They are opened when the first picture or sound arrives.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._checks import path_text
from gemmule._errors import FormatError, UnsupportedError
from gemmule._inspect import info_of, section_file
from gemmule._media.cache import EmbeddingCache
from gemmule._media.parts import Audio, Image, Kept, KeptRows, MediaPart
from gemmule._media.settings import MediaSettings

if TYPE_CHECKING:
    from gemmule._tokenizer import Tokenizer

__all__ = ["MediaFrontEnd", "MediaPiece", "Prepared", "open_mmproj"]

_CACHE_BYTES = 256 << 20


class Prepared(Protocol):
    """Exact numbers for an embedder."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def key(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """One run of soft tokens: what it shows and the ids (begin, soft token, end) that stand for it."""

    kind: Literal["image", "audio", "video"]
    source: Prepared
    markers: tuple[int, int, int]


class MediaFrontEnd:
    """Made by Model. `mmproj` None: the model takes text only."""

    def __init__(self, where: str, mmproj: _core.GgufFile | None, tokenizer: "Tokenizer") -> None:
        self._where = where
        self.file = mmproj
        self._tokenizer = tokenizer
        self._embedder: _core.MediaEmbedder | None = None
        self.cache = EmbeddingCache(_CACHE_BYTES)

    @cached_property
    def settings(self) -> MediaSettings:
        """Budgets, frame lengths and marker ids."""
        if self.file is None:
            raise UnsupportedError(
                f"{self._where} takes text only: it holds no image or audio embedder; "
                "convert it with them, or name the media file with mmproj"
            )
        file, keys = self.file, set(self.file.keys())
        try:
            settings = MediaSettings.from_file(
                lambda key: file.get(key) if key in keys else None, self._tokenizer.id_of
            )
        except FormatError as error:
            raise FormatError(f"{file.path}: {error}") from None
        for name in ("image", "boi", "eoi", "audio", "boa", "eoa", "video"):
            token = getattr(settings, name)
            if token is not None and not 0 <= token < self._tokenizer.n_vocab:
                raise FormatError(
                    f"{file.path}: the marker {name} (gemmule.media.token.*) is the id {token}, outside the "
                    f"vocabulary of {self._tokenizer.n_vocab}; convert the model again"
                )
        return settings

    def prepare(
        self, part: MediaPart, image_tokens: int | None
    ) -> tuple[Sequence[str | MediaPiece], Sequence[str]]:
        """Decodes a part. Returns text and soft-token runs in order, and notes on what was done.

        Throws MediaError for what cannot be read, UnsupportedError for what the model does not take.
        """
        settings = self.settings
        if isinstance(part.src, Kept):
            kept = part.src
            return [p if isinstance(p, str) else self._piece(*p) for p in kept.pieces], kept.notes
        if isinstance(part, Image):
            from gemmule._media.image import prepare_image

            self._require("image", settings.has_image)
            tokens = part.tokens or image_tokens or settings.image_tokens
            return [self._piece("image", prepare_image(part, tokens, settings))], []
        if isinstance(part, Audio):
            from gemmule._media.audio import prepare_audio

            self._require("audio", settings.has_audio)
            clips, notes = prepare_audio(part, settings)
            return [self._piece("audio", clip) for clip in clips], notes
        from gemmule._media.video import prepare_video

        self._require("image", settings.has_image)
        video = prepare_video(part, settings, part.tokens)
        pieces: list[str | MediaPiece] = []
        for i, (stamp, frame) in enumerate(video.frames):
            pieces += [f"{' ' if i else ''}{stamp} ", self._piece("video", frame)]
        notes = list(video.notes)
        if part.sound and not settings.has_audio:
            notes.append(f"the sound of {part.name} was left out: the model takes none")
        return [*pieces, *(self._piece("audio", clip) for clip in video.sound)], notes

    def embed(
        self, model: _core.Model, source: Prepared, stop: _core.StopToken | None
    ) -> NDArray[np.float32]:
        """The rows that stand for a prepared picture or sound: float32 [n_tokens, d_model]."""
        if self._embedder is None:
            self._embedder = self._opened(model)
        embedder = self._embedder
        if isinstance(source, KeptRows):
            return source.rows
        return self.cache.get(source.key, lambda: _compute(embedder, source, stop))

    def _opened(self, model: _core.Model) -> _core.MediaEmbedder:
        """The embedder. Its tensors must have the shapes that the file's settings promise: a prompt is laid
        out before anything is embedded.
        """
        assert self.file is not None  # `settings` was asked first
        embedder, settings = _core.MediaEmbedder(model, self.file), self.settings
        promised = []
        if embedder.has_image:
            promised += [
                ("gemmule.media.image.patch_size * pool_size", settings.tile, embedder.patch_size),
                ("gemmule.media.image.n_positions", settings.n_positions, embedder.n_positions),
            ]
        if embedder.has_audio:
            samples = settings.samples_per_token
            promised += [("gemmule.media.audio.samples_per_token", samples, embedder.samples_per_token)]
        for key, said, found in promised:
            if said != found:
                raise FormatError(
                    f"{self.file.path}: {key} is {said} and the tensors are made for {found}; "
                    "convert the model again"
                )
        return embedder

    @property
    def has_blocks(self) -> bool:
        """Whether pictures see themselves in both directions."""
        return self._embedder is None or self._embedder.image_attention

    def _require(self, kind: str, there: bool) -> None:
        if not there:
            raise UnsupportedError(f"{self._where} has no {kind} embedder; convert the model with it")

    def _piece(self, kind: Literal["image", "audio", "video"], source: Prepared) -> MediaPiece:
        s = self.settings
        begin, soft, end = {
            "image": (s.boi, s.image, s.eoi),
            "video": (s.boi, s.video, s.eoi),
            "audio": (s.boa, s.audio, s.eoa),
        }[kind]
        if begin is None or soft is None or end is None:
            raise FormatError(f"{self._where}: the vocabulary has no tokens that stand for {kind}")
        return MediaPiece(kind, source, (begin, soft, end))


def _compute(
    embedder: _core.MediaEmbedder, source: Prepared, stop: _core.StopToken | None
) -> NDArray[np.float32]:
    from gemmule._media.audio import PreparedAudio
    from gemmule._media.image import PreparedImage

    if isinstance(source, PreparedImage):
        return embedder.embed_image(source.pixels, stop=stop)
    assert isinstance(source, PreparedAudio)
    return embedder.embed_audio(source.samples, stop=stop)


def open_mmproj(
    file: _core.GgufFile, mmproj: str | os.PathLike[str] | Literal[False] | None
) -> _core.GgufFile | None:
    """The embedders of a model: those named; None takes those inside its file, else beside it; False none."""
    if mmproj is False:
        return None
    if mmproj is not None:
        return _core.GgufFile(path_text(mmproj))
    inside = section_file(file, "mmproj")
    if inside is not None:
        return inside
    beside = _find_beside(Path(file.path), info_of(file).d_model)
    return None if beside is None else _core.GgufFile(str(beside))


def _find_beside(path: Path, d_model: int) -> Path | None:
    """The media file lying beside a model, when there is exactly one that fits its width."""
    fitting = []
    for candidate in sorted(path.parent.glob("*mmproj*.gguf")):
        try:
            header = _core.GgufFile(str(candidate))
            keys = set(header.keys())
            widths = {header.get(k) for k in keys if k.endswith(".projection_dim")}
        except (OSError, ValueError):
            continue
        if candidate != path and widths == {d_model}:
            fitting.append(candidate)
    named = [candidate for candidate in fitting if path.stem in candidate.stem]
    chosen = named or fitting
    return chosen[0] if len(chosen) == 1 else None
