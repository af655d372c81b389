"""How much of a picture, sound or video is taken, and how untrusted bytes are opened and decoded.

Limits bound time and memory whatever a file claims. Every failure of a decoder becomes a MediaError; warnings
of the decoding packages stay inside. Only regular files are read: nothing is fetched, nothing can block.
"""

import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR, SEEK_END, SEEK_SET
from typing import TYPE_CHECKING, BinaryIO

from gemmule._errors import Error, MediaError

if TYPE_CHECKING:
    from gemmule._media.parts import MediaPart

__all__ = [
    "MAX_AUDIO_CHANNELS",
    "MAX_AUDIO_CLIPS",
    "MAX_AUDIO_RATE",
    "MAX_AUDIO_VALUES",
    "MAX_BYTES",
    "MAX_DECODED_PIXELS",
    "MAX_FILE_BYTES",
    "MAX_FRAMES",
    "MAX_FRAME_TOKENS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MAX_VIDEO_SECONDS",
    "MAX_WEBP_PIXELS",
    "MIN_AUDIO_RATE",
    "BoundedReader",
    "decoding",
    "open_source",
    "read_source",
]

MAX_BYTES = 32 << 20  # an encoded image, and sound or video handed over as bytes
MAX_FILE_BYTES = 512 << 20  # a sound or video file, which is read piece by piece

MAX_PIXELS = 50 << 20
MAX_WEBP_PIXELS = 12 << 20  # its decoder takes 16 bytes for each pixel
# The longest side a JPEG can have. It bounds the filter tables of the resize, and lets pass every ratio that
# the resize rule itself handles (1 x 10000): the result never exceeds the token budget, whatever the ratio.
MAX_SIDE = 65_535

MIN_AUDIO_RATE = 1_000
MAX_AUDIO_RATE = 384_000
MAX_AUDIO_CHANNELS = 32
MAX_AUDIO_CLIPS = 20  # of the model's clip length each: 600 s for Gemma 4
MAX_AUDIO_VALUES = 600 * MAX_AUDIO_RATE  # samples over all channels that are decoded at most

MAX_VIDEO_SECONDS = 4 * 3600
MAX_FRAMES = 1024
MAX_FRAME_TOKENS = MAX_FRAMES * 70
MAX_DECODED_PIXELS = 200_000_000_000  # 1.6 million frames of 352 x 352, 96 thousand of 1920 x 1080

_MB = 1 << 20


class BoundedReader:
    """A file object for decoders written in C: reads, seeks and tells, never raises, never reads for ever.

    Damaged files make decoders seek before the start, and a callback that raises would print; such calls end
    at the nearest valid place. `name` is left out so that no decoder looks at it.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._left = 32 * size + 64 * _MB  # bytes that may still be read, repeated ones included
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        size = self._size if size is None or size < 0 else size
        size = max(0, min(size, self._size - self._at, self._left))
        try:
            self._file.seek(self._at)
            data = self._file.read(size)
        except (OSError, ValueError):
            return b""
        self._at += len(data)
        self._left -= len(data) + 1
        return data

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._size}.get(whence, 0)
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def open_source(part: "MediaPart", limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """The part's bytes as an open file, and their number. `limit` applies to files; bytes have their own."""
    from io import BytesIO

    if isinstance(part.src, bytes):
        limit = min(limit, MAX_BYTES)
        _check_size(part.name, len(part.src), limit)
        yield BytesIO(part.src), len(part.src)
        return
    path = str(part.src)
    with _open_regular(path, part.name) as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(part.name, size, limit)
        yield file, size


def read_source(part: "MediaPart", limit: int = MAX_BYTES) -> bytes:
    """All bytes of the part."""
    if isinstance(part.src, bytes):
        _check_size(part.name, len(part.src), limit)
        return part.src
    with open_source(part, limit) as (file, _):
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise MediaError(f"{part.name} cannot be read: {error.strerror}") from None
    _check_size(part.name, len(data), limit)
    return data


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise MediaError(
            f"{name} has {size / _MB:.1f} MiB; at most {limit // _MB} MiB are read, so make it smaller"
        )
    if size == 0:
        raise MediaError(f"{name} is empty; give a file with content")


def _open_regular(path: str, name: str) -> BinaryIO:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path):
        raise MediaError(f"{name}: gemmule fetches nothing from the network; download it and give the path")

    def opener(path: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except FileNotFoundError:
        raise MediaError(f"there is no file {path}; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MediaError(f"{name} cannot be opened ({reason}); give the path of a file") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise MediaError(f"{name} is no regular file; read it yourself and give its bytes")
    return file


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_saved: "warnings.catch_warnings[None] | None" = None
_NOISY = r"(PIL|gemmule\._media|av|soundfile)(\.|$)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what decoding packages warn about. The filters are global, so threads share one change."""
    global _quiet_users, _quiet_saved
    if getattr(sys.flags, "context_aware_warnings", False):  # Python 3.14 and newer: each thread has its own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_NOISY)
            yield
        return
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=_NOISY)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0 and _quiet_saved is not None:
                _quiet_saved.__exit__(None, None, None)
                _quiet_saved = None


@contextmanager
def decoding(name: str, kind: str, fix: str) -> Iterator[None]:
    """Around calls of a decoder: whatever it raises becomes a MediaError of one sentence."""
    try:
        with _quiet():
            yield
    except Error:
        raise
    except MemoryError:
        raise MediaError(f"{name} needs more memory than there is; make the {kind} smaller") from None
    except Exception as error:  # decoders of hostile bytes raise anything: struct.error, SyntaxError, ...
        reason = re.sub(r"<[^>]*>", "it", re.sub(r"^\[Errno \d+\] |: '<[^>]*>'$", "", str(error)))
        reason = re.sub(r"\s+", " ", reason).strip(" .")
        raise MediaError(f"{name} cannot be read ({reason[:120] or type(error).__name__}); {fix}") from None
