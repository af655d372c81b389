"""Pictures as the embedder takes them: decoded, turned upright, RGB, stretched to whole tiles in a budget.

Size: with m = patch * pool = 48 and budget T, f = sqrt(T m^2 / (h w)), H = floor(f h / m) m, W alike; a side
that rounds to 0 becomes m and the other min(floor(long / short) m, T m). Tokens = (H/m) (W/m) <= T.

Resize: bicubic (a = -0.5) widened by the down-scale factor, columns first, then rows, each pass rounded to
uint8, with the weights of a pass as integers of one scale below 2^15. That is what torch does with uint8, so
the pixels equal transformers' bit for bit; Pillow's own resize is up to 25 steps off. Bands of rows keep the
memory at the decoded picture plus a few tens of MB.

Source of the rule: transformers' Gemma4UnifiedImageProcessor; filter: torch's interpolate(antialias=True).
"""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmule._cancel import check_cancelled
from gemmule._errors import MediaError
from gemmule._media import limits
from gemmule._media.parts import Image
from gemmule._media.settings import MediaSettings
from gemmule._media.sniff import image_format

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["PreparedImage", "image_size", "load_image", "prepare_image", "resize", "target_size"]

Pixels = NDArray[np.uint8]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_FIX = "save it again as PNG or JPEG"
_ORIENTATION = 0x0112
_BAND_VALUES = 1 << 20  # float64 values a band of the resize holds at most, about
_SMALL_PRODUCT = 1 << 18  # multiplications up to which OpenBLAS works in the calling thread
_RUN = 16  # outputs that share a block of the filter


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """Whole tiles of RGB pixels: uint8 [H, W, 3]. `source_size` is (height, width) before the resize."""

    pixels: Pixels
    n_tokens: int
    source_size: tuple[int, int]

    @cached_property
    def key(self) -> bytes:
        """sha256 of the exact pixels."""
        digest = hashlib.sha256(b"image" + struct.pack("<2Q", *self.pixels.shape[:2]))
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.digest()


def target_size(
    height: int, width: int, max_tokens: int, *, patch: int = 16, pool: int = 3
) -> tuple[int, int]:
    """(H, W) after the resize, in the very floating-point steps of transformers."""
    tile = patch * pool
    target_px = max_tokens * pool**2 * patch**2
    factor = math.sqrt(target_px / (height * width))
    new_height = math.floor(factor * height / tile) * tile
    new_width = math.floor(factor * width / tile) * tile
    if new_height == 0 and new_width == 0:
        raise MediaError(f"a picture of {height} x {width} does not fill one tile of {tile}; use more tokens")
    if new_height == 0:
        new_height, new_width = tile, min(width // height, max_tokens) * tile
    elif new_width == 0:
        new_height, new_width = min(height // width, max_tokens) * tile, tile
    if new_height * new_width > target_px:
        raise MediaError(f"a picture of {height} x {width} does not fit into {max_tokens} tokens; use more")
    return new_height, new_width


def image_size(part: Image) -> tuple[int, int]:
    """(height, width) of the upright picture, from the file's header where that is enough."""
    with _opened(part, pixels=False) as canvas:
        return canvas.height, canvas.width


def load_image(part: Image) -> Pixels:
    """The upright picture at its own size: uint8 [h, w, 3]."""
    with _opened(part) as canvas:
        return np.ascontiguousarray(canvas.rows(0, canvas.height))


def prepare_image(part: Image, tokens: int | None, settings: MediaSettings) -> PreparedImage:
    """Decodes and resizes. The budget is the part's own, else `tokens`, else the file's default."""
    budget = check_budget(part.tokens or tokens or settings.image_tokens, settings, part.name)
    with _opened(part) as canvas:
        size = canvas.height, canvas.width
        target = target_size(*size, budget, patch=settings.patch, pool=settings.pool)
        pixels = _resized(canvas.rows, size, target)
    return tiled(pixels, size, settings, part.name)


def check_budget(tokens: int, settings: MediaSettings, name: str) -> int:
    if tokens not in settings.image_budgets:
        allowed = ", ".join(map(str, settings.image_budgets))
        raise ValueError(f"{name} was given {tokens} tokens; the model knows {allowed}")
    return tokens


def tiled(pixels: Pixels, source_size: tuple[int, int], settings: MediaSettings, name: str) -> PreparedImage:
    """Counts the tiles and checks that every one has a position."""
    rows, columns = pixels.shape[0] // settings.tile, pixels.shape[1] // settings.tile
    if max(rows, columns) > settings.n_positions:
        raise MediaError(
            f"{name} becomes {rows} x {columns} tiles, but the model has {settings.n_positions} positions "
            "on a side; crop it or use fewer tokens"
        )
    return PreparedImage(pixels, rows * columns, source_size)


# -- decoding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Canvas:
    """An upright picture that gives bands of rows: rows(first, last) -> uint8 [last - first, width, 3]."""

    height: int
    width: int
    rows: Callable[[int, int], Pixels]


@contextmanager
def _opened(part: Image, *, pixels: bool = True) -> Iterator[_Canvas]:
    if isinstance(part.src, np.ndarray):
        yield _array_canvas(part.src, part.name)
        return
    if not isinstance(part.src, str | bytes | os.PathLike):
        with limits.decoding(part.name, "image", _FIX):
            yield _picture_canvas(part.src, part.name, pixels=pixels)
        return

    data = limits.read_source(part)
    _check_header(data, part.name)
    with limits.decoding(part.name, "image", _FIX), _picture(data, part.name) as picture:
        # Pillow decodes a PNG to find an orientation; most have none anywhere.
        plain = picture.format == "PNG" and not any(
            mark in data for mark in (b"eXIf", b"com.adobe.xmp", b"Raw profile type exif")
        )
        yield _picture_canvas(picture, part.name, pixels=pixels, plain=plain)


class _Source(BytesIO):
    """The bytes of a picture. Pillow asks for them in small pieces, which lets decoding end between two."""

    def read(self, size: int | None = -1, /) -> bytes:
        check_cancelled()
        return super().read(size)


def _picture(data: bytes, name: str) -> "PIL.Image.Image":
    import PIL.Image

    try:
        return PIL.Image.open(_Source(data), formats=_FORMATS)
    except PIL.Image.DecompressionBombError:  # Pillow's limit is higher than ours
        raise MediaError(
            f"{name} has more than the {limits.MAX_PIXELS / 1e6:.0f} million pixels that are read; "
            "make it smaller"
        ) from None


def _check_header(data: bytes, name: str) -> None:
    """Refuses what is no picture of a known format, and a WebP canvas that opening alone would allocate."""
    found = image_format(data[:4096])
    if found not in _FORMATS:
        what = f"is a {found} picture" if found else "is no picture of a known format"
        raise MediaError(f"{name} {what}; convert it to PNG, JPEG, WebP, GIF, BMP or TIFF")
    if found == "WEBP" and len(data) >= 30:
        _check_pixels(*_webp_size(data), name, limits.MAX_WEBP_PIXELS)


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) by the header of a WebP file's first chunk: extended, lossless or lossy."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF


def _check_pixels(height: int, width: int, name: str, most: int | None = None) -> None:
    most = limits.MAX_PIXELS if most is None else most
    if height < 1 or width < 1:
        raise MediaError(f"{name} is {height} x {width} pixels; give a picture with at least one")
    if max(height, width) > limits.MAX_SIDE:
        raise MediaError(
            f"{name} is {height} x {width} pixels; a side has at most {limits.MAX_SIDE}, so crop it"
        )
    if height * width > most:
        raise MediaError(
            f"{name} is {height} x {width} pixels; at most {most / 1e6:.0f} million are read, "
            "so make it smaller"
        )


def _picture_canvas(picture: "PIL.Image.Image", name: str, *, pixels: bool, plain: bool = False) -> _Canvas:
    _check_pixels(picture.height, picture.width, name)
    if picture.format == "TIFF":
        _check_tiles(picture, name)
    turn = 1 if plain else _orientation(picture)
    if pixels:
        picture.load()
        _check_pixels(picture.height, picture.width, name)
    if picture.format == "TIFF" and (pixels or picture.size != _tiff_size(picture)):
        turn = 1  # Pillow turns a TIFF while loading, and gives its turned size before
    width, height = picture.size
    if turn >= 5:
        width, height = height, width
    if not pixels:
        return _Canvas(height, width, lambda _first, _last: np.empty((0, width, 3), np.uint8))
    to_rgb = _converter(picture, name)

    mirrored_rows, mirrored_columns = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)

    def rows(first: int, last: int) -> Pixels:
        """The band, cut from the picture as it is stored, then turned."""
        low, high = (height - last, height - first) if mirrored_rows else (first, last)
        if turn >= 5:
            band = to_rgb(picture.crop((low, 0, high, picture.height))).transpose(1, 0, 2)
        else:
            band = to_rgb(picture.crop((0, low, picture.width, high)))
        return band[:: -1 if mirrored_rows else 1, :: -1 if mirrored_columns else 1]

    return _Canvas(height, width, rows)


def _check_tiles(picture: "PIL.Image.Image", name: str) -> None:
    """A TIFF may be small and still ask for a giant buffer through the size of its tiles."""
    tags = getattr(picture, "tag_v2", {})
    sides = [tags.get(tag, 1) for tag in (322, 323)]
    if not all(isinstance(side, int) for side in sides) or sides[0] * sides[1] > limits.MAX_PIXELS:
        raise MediaError(f"{name} has tiles of {sides[1]} x {sides[0]} pixels; {_FIX}")


def _tiff_size(picture: "PIL.Image.Image") -> tuple[Any, Any]:
    """(width, height) as stored."""
    tags = getattr(picture, "tag_v2", {})
    return tags.get(256, picture.width), tags.get(257, picture.height)


def _orientation(picture: "PIL.Image.Image") -> int:
    """1 to 8 as in EXIF; a picture whose EXIF block is damaged counts as upright."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # the block is hostile bytes too
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _converter(picture: "PIL.Image.Image", name: str) -> "Callable[[PIL.Image.Image], Pixels]":
    """How a piece of the picture becomes uint8 [h, w, 3]. As transformers: convert("RGB"), which drops alpha;
    but 16 bits are scaled, where Pillow would clip.
    """
    mode = picture.mode
    if mode.startswith("I;16"):
        return lambda piece: _grey((np.asarray(piece) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        low, high = picture.getextrema()
        scale = _scale(float(low), float(high), whole=mode == "I")  # type: ignore[arg-type]
        if scale is None:
            raise MediaError(f"{name} has values from {low} to {high}; save it with 8 or 16 bits a sample")
        return lambda piece: _grey(np.rint(np.asarray(piece, np.float32) * scale).astype(np.uint8))
    return lambda piece: np.asarray(piece if piece.mode == "RGB" else piece.convert("RGB"))


def _scale(low: float, high: float, *, whole: bool) -> float | None:
    """What turns samples without a known range into 0 .. 255: floats up to 1 and integers beyond 255 are
    scaled, everything else that fits is taken as it is; None where nothing fits (or for NaN).
    """
    if not (low >= 0 and high <= (65535 if whole else 255)):
        return None
    if whole:
        return 1.0 if high <= 255 else 1 / 257
    return 255.0 if high <= 1 else 1.0


def _grey(values: Pixels) -> Pixels:
    return np.repeat(values[:, :, None], 3, axis=2)


def _array_canvas(array: NDArray[Any], name: str) -> _Canvas:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; move the channels to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; give [height, width] or "
            f"[height, width, 1, 3 or 4]{hint}"
        )
    height, width, channels = array.shape
    _check_pixels(height, width, name)
    kind = array.dtype
    if not (kind in (np.uint8, np.uint16, np.bool_) or kind.kind == "f"):
        raise MediaError(f"{name} is an array of {kind}; give uint8 from 0 to 255 or floats from 0 to 1")
    if kind.kind == "f" and not (float(array.min()) >= 0 and float(array.max()) <= 1):
        raise MediaError(f"{name} has floats outside 0 to 1; divide by 255, or give uint8")

    def rows(first: int, last: int) -> Pixels:
        band = array[first:last, :, :3]
        if kind == np.uint16:
            band = (band >> 8).astype(np.uint8)
        elif kind != np.uint8:
            band = np.rint(band * np.float32(255)).astype(np.uint8)
        return band if channels >= 3 else np.repeat(band, 3, axis=2)

    return _Canvas(height, width, rows)


# -- resize --------------------------------------------------------------------------------------------------


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bicubic with antialias, as torch does for uint8: [h, w, 3] -> [height, width, 3]."""
    return _resized(lambda first, last: pixels[first:last], pixels.shape[:2], (height, width))


def _resized(rows: Callable[[int, int], Pixels], size: tuple[int, int], target: tuple[int, int]) -> Pixels:
    """Columns band by band of rows, so that only the narrow result of the first pass is held whole."""
    (height, width), (new_height, new_width) = size, target
    columns = _Filter.of(width, new_width)
    narrow = np.empty((height, new_width, 3), np.uint8)
    step = max(1, _BAND_VALUES // (3 * max(width, new_width)))
    for first in range(0, height, step):
        check_cancelled()
        last = min(first + step, height)
        band = rows(first, last)  # [n, width, 3]
        if columns is None:
            narrow[first:last] = band
        else:
            # [3 n, width]: one row for each channel, so that the filter runs along the last axis
            planar = band.transpose(0, 2, 1).reshape(-1, width)
            wide = columns.apply(planar)
            narrow[first:last] = wide.reshape(last - first, 3, new_width).transpose(0, 2, 1)
    down = _Filter.of(height, new_height)
    if down is None:
        return narrow
    out = np.empty((new_height, new_width, 3), np.uint8)
    step = max(1, _BAND_VALUES // (3 * max(height, new_height)))
    for first in range(0, new_width, step):
        check_cancelled()
        band = narrow[:, first : first + step]
        lines = down.apply(band.reshape(height, -1).T)  # [n 3, new_height]
        out[:, first : first + step] = lines.T.reshape(new_height, -1, 3)
    return out


@dataclass(frozen=True)
class _Filter:
    """One pass, n samples to n_out: out[i] = (sum_j weight[i, j] x[first[i] + j] + half) >> shift, clamped.

    `blocks` hold, for runs of outputs, the inputs they read and the weights as a dense matrix
    [inputs, outputs] of float64: products and sums stay below 2^53, so they are exact integers.
    """

    n_out: int
    shift: int
    blocks: tuple[tuple[slice, slice, NDArray[np.float64]], ...]

    @classmethod
    @lru_cache(maxsize=2)  # both directions of a video's pictures
    def of(cls, n: int, n_out: int) -> "_Filter | None":
        """None: nothing to do."""
        if n == n_out:
            return None
        scale = n / n_out
        support = 2 * scale if scale >= 1 else 2.0
        inverse = 1 / scale if scale >= 1 else 1.0
        center = scale * (np.arange(n_out) + 0.5)
        first = np.maximum((center - support + 0.5).astype(np.int64), 0)  # truncation, as in C
        count = np.minimum((center + support + 0.5).astype(np.int64), n) - first
        taps = np.arange(int(count.max()))
        weights = _cubic((taps + first[:, None] - center[:, None] + 0.5) * inverse)
        weights[taps >= count[:, None]] = 0
        # Left to right, not pairwise as numpy's sum: the same last bit as a loop.
        weights /= np.cumsum(weights, axis=1)[:, -1:]
        largest = float(weights.max())
        shift = 0
        while shift < 22 and int(0.5 + largest * (1 << (shift + 1))) < 1 << 15:
            shift += 1
        scaled = weights * (1 << shift)
        integers = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))  # [n_out, taps]
        return cls(n_out, shift, tuple(_blocks(first, count, integers)))

    def apply(self, lines: Pixels) -> Pixels:
        """uint8 [m, n] -> uint8 [m, n_out]."""
        out = np.empty((len(lines), self.n_out), np.uint8)
        values = lines.astype(np.float64)
        half, unit = float(1 << self.shift) / 2, float(1 << self.shift)
        for inputs, outputs, matrix in self.blocks:
            sums = _product(values[:, inputs], matrix)
            sums += half
            sums /= unit  # a power of two: exact
            np.floor(sums, out=sums)
            out[:, outputs] = np.clip(sums, 0, 255, out=sums)
        return out


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right in pieces so small that OpenBLAS starts no threads: on a busy machine these made it ten
    times slower.
    """
    n, inner = left.shape
    step = max(2, _SMALL_PRODUCT // (inner * right.shape[1]))
    whole = n // step * step
    out = np.empty((n, right.shape[1]))
    np.matmul(left[:whole].reshape(-1, step, inner), right, out=out[:whole].reshape(-1, step, right.shape[1]))
    if whole < n:
        np.matmul(left[whole:], right, out=out[whole:])
    return out


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _blocks(
    first: NDArray[np.int64], count: NDArray[np.int64], weights: NDArray[np.float64]
) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Runs of outputs that share most of their inputs."""
    n_out = len(first)
    for begin in range(0, n_out, _RUN):
        end = min(begin + _RUN, n_out)
        low = int(first[begin])
        high = int((first[begin:end] + count[begin:end]).max())
        matrix = np.zeros((high - low, end - begin))
        for i in range(begin, end):
            at = int(first[i]) - low
            matrix[at : at + int(count[i]), i - begin] = weights[i, : count[i]]
        yield slice(low, high), slice(begin, end), matrix
