"""Image, Audio and Video: what a prompt or message holds in place of text.

A part names its source and how to take it; nothing is opened before the model needs it. Sources are paths,
bytes of an encoded file, PIL pictures and arrays: image uint8 [h, w, 3], sound [n] or [n, channels].
"""

import math
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemmule._checks import real, whole

__all__ = ["Audio", "Image", "Kept", "KeptRows", "MediaPart", "Source", "Video"]

Source: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | Any"

_MAX_TOKENS = 1 << 16
_MAX_FRAMES = 1 << 20
_MAX_RATE = 10**6


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The vectors of a picture or sound whose numbers are no longer at hand: float32 [n_tokens, d_model].
    `key` is the hash of those numbers.
    """

    key: bytes
    rows: NDArray[np.float32] = field(repr=False)

    @property
    def n_tokens(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Kept:
    """The source of a part that came back with a saved session: what the model saw of it, in pieces of text
    and rows of a kind (image, audio or video), with the notes of its first decoding.
    """

    pieces: tuple[str | tuple[Literal["image", "audio", "video"], KeptRows], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A picture. `tokens`: its budget, 70, 140, 280, 560 or 1120; None: the request's, else the file's.

    `src` may be a path, the bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF file, a PIL picture, or an array:
    uint8 (0 to 255), uint16, bool or float (0 to 1) of shape [h, w] or [h, w, 1, 3 or 4].
    """

    src: Source
    tokens: int | None = None
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        src = _source(self.src, "Image", arrays=True, pictures=True)
        object.__setattr__(self, "src", src)
        object.__setattr__(self, "name", _name(self.name, src, "the image"))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", whole("tokens", self.tokens, 1, _MAX_TOKENS))

    def __repr__(self) -> str:
        return _repr(self, tokens=self.tokens)


@dataclass(frozen=True, eq=False, repr=False)
class Audio:
    """A sound, or `duration` seconds of it from `start` on.

    `src` may be a path, the bytes of a file, an array of samples, or a pair (array, rate). `rate` is the
    samples per second of an array; without it they are taken as 16000, as the model hears them.
    """

    src: Source
    rate: int | None = field(default=None, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    duration: float | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        src, rate = self.src, self.rate
        if isinstance(src, tuple | list) and len(src) == 2:
            src, own_rate = src
            if rate is not None and rate != own_rate:
                raise ValueError(f"Audio got the rate {rate} and samples with the rate {own_rate}; give one")
            rate = own_rate
        src = _source(src, "Audio", arrays=True, pictures=False)
        if rate is not None:
            if not isinstance(src, np.ndarray):
                raise ValueError("rate belongs to an array of samples; a sound file says its own")
            rate = whole("rate", rate, 1, _MAX_RATE)
        object.__setattr__(self, "src", src)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "name", _name(self.name, src, "the audio"))
        object.__setattr__(self, "start", _seconds("start", self.start, zero=True))
        if self.duration is not None:
            object.__setattr__(self, "duration", _seconds("duration", self.duration, zero=False))

    def __repr__(self) -> str:
        return _repr(self, rate=self.rate, start=self.start or None, duration=self.duration)


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video: `frames` pictures evenly spread over it (32), or `fps` pictures for each second, each of
    `tokens` soft tokens at most (70), and its sound unless `sound` is False. Needs the [video] extra.
    """

    src: Source
    frames: int | None = field(default=None, kw_only=True)
    fps: float | None = field(default=None, kw_only=True)
    tokens: int | None = field(default=None, kw_only=True)
    sound: bool = field(default=True, kw_only=True)
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        src = _source(self.src, "Video", arrays=False, pictures=False)
        object.__setattr__(self, "src", src)
        object.__setattr__(self, "name", _name(self.name, src, "the video"))
        if self.frames is not None and self.fps is not None:
            raise ValueError("give a video either frames or fps, not both")
        if self.frames is not None:
            object.__setattr__(self, "frames", whole("frames", self.frames, 1, _MAX_FRAMES))
        if self.fps is not None:
            object.__setattr__(self, "fps", _seconds("fps", self.fps, zero=False))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", whole("tokens", self.tokens, 1, _MAX_TOKENS))
        if not isinstance(self.sound, bool):
            raise TypeError(f"sound must be True or False, not {self.sound!r}")

    def __repr__(self) -> str:
        return _repr(self, frames=self.frames, fps=self.fps, tokens=self.tokens, sound=self.sound and None)


MediaPart = Image | Audio | Video


def _source(src: Any, kind: str, *, arrays: bool, pictures: bool) -> Any:
    """The source in one of its few forms: str, bytes, ndarray or PIL picture."""
    if isinstance(src, str):
        if not src:
            raise ValueError(f"{kind} got an empty path")
        return src
    if isinstance(src, bytes | bytearray | memoryview):
        return bytes(src)
    if isinstance(src, Kept):
        return src
    if isinstance(src, os.PathLike):
        path = os.fspath(src)
        return path if isinstance(path, str) else os.fsdecode(path)
    if arrays and isinstance(src, np.ndarray):
        return src
    pil = sys.modules.get("PIL.Image")  # nobody holds a picture of a package that was not imported
    if pictures and pil is not None and isinstance(src, pil.Image):
        return src
    takes = "a path or bytes" + (", an array" if arrays else "") + (" or a PIL picture" if pictures else "")
    raise TypeError(f"{kind} takes {takes}, not {type(src).__name__}")


def _name(name: str, src: Any, kind: str) -> str:
    """What messages call the part: as given, else its path, else its kind."""
    return name or (src if isinstance(src, str) else kind)


def _seconds(name: str, value: Any, *, zero: bool) -> float:
    number = float(real(name, value))
    if not (math.isfinite(number) and (number >= 0 if zero else number > 0)):
        raise ValueError(f"{name} must be a number {'from 0 on' if zero else 'above 0'}, not {value!r}")
    return number


def _repr(part: Any, **options: Any) -> str:
    src = part.src
    if isinstance(src, bytes):
        shown = f"<{len(src)} bytes>"
    elif isinstance(src, np.ndarray):
        shown = f"<{src.dtype} {list(src.shape)}>"
    elif isinstance(src, Kept):
        shown = "<from a saved session>"
    elif isinstance(src, str):
        shown = repr(src if len(src) <= 60 else f"...{src[-57:]}")
    else:
        shown = f"<{src.mode} {src.width}x{src.height}>"
    given = "".join(f", {key}={value!r}" for key, value in options.items() if value is not None)
    return f"{type(part).__name__}({shown}{given})"
