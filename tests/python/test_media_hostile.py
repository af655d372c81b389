"""Bytes made to hurt: bombs, lies, truncations, flipped bits. Each is read, or refused with a MediaError of
one sentence; in little time and memory, without a warning.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from gemmule._errors import MediaError
from gemmule._media import limits
from gemmule._media.audio import prepare_audio
from gemmule._media.image import image_size, prepare_image
from gemmule._media.parts import Audio, Image, Video
from gemmule._media.settings import MediaSettings
from gemmule._media.sniff import media_kind
from media_files import encoded, noise, pattern, sound_bytes, video_bytes

SETTINGS = MediaSettings()


def take(part: Image | Audio | Video) -> None:
    if isinstance(part, Image):
        prepare_image(part, 70, SETTINGS)
    elif isinstance(part, Audio):
        prepare_audio(part, SETTINGS)
    else:
        from gemmule._media.video import prepare_video

        prepare_video(part, SETTINGS)


def refusal(part: Image | Audio | Video) -> str:
    """Why the part is refused; empty where it is read."""
    try:
        media_kind(part.src)
        take(part)
    except MediaError as error:
        return str(error)
    return ""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with one kind of damage, half of the time near its begin, where the headers are."""
    out = bytearray(data)
    end = len(out) if rng.random() < 0.5 else min(len(out), 300)
    at = rng.randrange(end)
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            for _ in range(rng.choice((1, 4, 40))):
                out[rng.randrange(end)] ^= 1 << rng.randrange(8)
        case 2:
            out[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        case 3:
            out[at : at + rng.randrange(1, 100)] = rng.randbytes(rng.randrange(1, 100))
        case 4:
            del out[at : at + rng.randrange(1, 100)]
        case _:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(out)


def hurt(data: bytes, kind: type[Image] | type[Audio] | type[Video], n: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(n):
        damaged = mutated(data, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = refusal(kind(damaged))
        assert "\n" not in message
        assert len(message) < 400


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("WEBP", "RGBA", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "F", {}),
    ],
)
def test_damaged_pictures(kind: str, mode: str, options: dict[str, Any]) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    if kind in ("PNG", "JPEG", "WEBP"):
        options = options | {"exif": exif}
    hurt(encoded(pattern(24, 40), kind, mode, **options), Image, 60, 1)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("CAF", "ALAC_16"),
    ],
)
def test_damaged_sounds(kind: str, subtype: str) -> None:
    hurt(sound_bytes(noise(6000, 2), 48_000, kind, subtype), Audio, 40, 2)


@pytest.mark.parametrize(
    ("container", "codec", "sound"),
    [
        ("mp4", "mpeg4", "aac"),
        ("webm", "libvpx", "libopus"),
        ("avi", "mpeg4", None),
        ("mpegts", "mpeg2video", "mp2"),
    ],
)
def test_damaged_videos(container: str, codec: str, sound: str | None) -> None:
    pytest.importorskip("av")
    data = video_bytes(container, codec, n=5, rate=25, sound=sound)
    hurt(data, Video, 12, 3)
    if sound:
        hurt(data, Audio, 12, 4)


# -- pictures ------------------------------------------------------------------------------------------------


def png(width: int, height: int, body: bytes, *, bits: int = 1, color: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(50_000, 50_000), (8192, 6401), (65_536, 1), (1, 70_000), (2**31 - 1, 1)]
)
def test_picture_bombs(width: int, height: int) -> None:
    data = png(width, height, zlib.compress(b"\0" * 1000))
    for act in (prepare_bomb, image_size):
        with pytest.raises(MediaError, match=rf"{height} x {width} pixels|million pixels that are read"):
            act(Image(data))


def prepare_bomb(part: Image) -> None:
    prepare_image(part, None, SETTINGS)


def test_other_picture_bombs() -> None:
    gif = bytearray(encoded(pattern(4, 4), "GIF", "P"))
    gif[6:10] = struct.pack("<2H", 65_535, 65_535)
    webp = bytearray(encoded(pattern(4, 4), "WEBP", "RGBA", lossless=True, exif=PillowImage.Exif()))
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xff\x3f\0" * 2
    webp = bytearray(b"RIFF" + struct.pack("<I", len(webp) + 10) + b"WEBP") + chunk + webp[12:]
    tiff = bytearray(encoded(pattern(4, 4), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 3 if struct.pack("<HHI", tag, 3, 1) in tiff else 4, 1))
        tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 60_000)
    bmp = bytearray(encoded(pattern(4, 4), "BMP"))
    bmp[18:26] = struct.pack("<2i", 60_000, 60_000)
    for data in (gif, webp, tiff, bmp):
        with pytest.raises(MediaError, match=r"million|cannot be read"):
            prepare_image(Image(bytes(data)), None, SETTINGS)


def test_tiff_with_giant_tiles() -> None:
    body = b"\0" * 64
    tags = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 1 << 20),
        (323, 1 << 20),
        (324, 8),
        (325, 64),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + 64) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    with pytest.raises(MediaError, match=r"tiles of 1048576 x 1048576|cannot be read"):
        prepare_image(Image(data), None, SETTINGS)


def test_a_known_format_that_is_not_read_is_named() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert media_kind(heic) == "image"
    with pytest.raises(MediaError, match="is a HEIC picture; convert it to PNG"):
        prepare_image(Image(heic), None, SETTINGS)
    with pytest.raises(MediaError, match="no picture of a known format"):
        prepare_image(Image(b"%!PS-Adobe-3.0 EPSF-3.0\n"), None, SETTINGS)


# -- sounds --------------------------------------------------------------------------------------------------


def wav_header(n_bytes: int, rate: int = 8000, channels: int = 1) -> bytes:
    return (
        b"RIFF"
        + struct.pack("<I", min(n_bytes + 36, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels, channels, 8)
        + b"data"
        + struct.pack("<I", n_bytes)
    )


def test_eight_hours(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    n = 8 * 3600 * 8000
    with path.open("wb") as file:
        file.write(wav_header(n))
        file.truncate(44 + n)  # sparse: takes no room
    with pytest.raises(MediaError, match=r"28800 s of sound or more; at most 600 s are taken, so give start"):
        prepare_audio(Audio(path), SETTINGS)
    (clip,), _ = prepare_audio(Audio(path, start=28_000, duration=2), SETTINGS)
    assert len(clip.samples) == 32_000
    with path.open("r+b") as file:
        file.truncate(limits.MAX_FILE_BYTES + 1)
    with pytest.raises(MediaError, match="at most 512 MiB"):
        prepare_audio(Audio(path), SETTINGS)


def test_headers_that_lie_about_the_length() -> None:
    # eight hours announced, nothing there
    take_or_refuse(Audio(wav_header(8 * 3600 * 8000)), "0 samples|28800 s|cannot be read")
    flac = bytearray(sound_bytes(np.zeros(8000 * 660, np.float32), 8000, "FLAC"))
    assert len(flac) < 200_000
    with pytest.raises(MediaError, match="660 s of sound or more"):
        prepare_audio(Audio(bytes(flac)), SETTINGS)
    flac[21] &= 0xF0  # number of samples: the low 4 bits of byte 21 and the 4 bytes after it
    flac[22:26] = b"\0\0\0\0"  # unknown
    with pytest.raises(MediaError, match=r"s of sound or more|cannot be read"):
        prepare_audio(Audio(bytes(flac)), SETTINGS)
    flac[21] |= 0x0F
    flac[22:26] = b"\xff\xff\xff\xff"
    with pytest.raises(MediaError, match=r"s of sound or more"):
        prepare_audio(Audio(bytes(flac)), SETTINGS)


def take_or_refuse(part: Audio, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        take(part)


def test_rates_and_channels_beyond_the_limits() -> None:
    for header, words in (
        (wav_header(100, rate=500), "500 samples a second"),
        (wav_header(100, rate=2**31 - 1), "samples a second|cannot be read"),
        (wav_header(1000, channels=100), "100 channels"),
        (wav_header(100, channels=0), "channels|cannot be read"),
    ):
        take_or_refuse(Audio(header + b"\x80" * 1000), words)


# -- places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Image, Audio, Video])
def test_places_that_are_no_file(kind: Callable[..., Any], tmp_path: Path) -> None:
    if kind is Video:
        pytest.importorskip("av")
    with pytest.raises(MediaError, match=r"there is no file .*gone\.bin; check the path"):
        take(kind(tmp_path / "gone.bin"))
    with pytest.raises(MediaError, match=r"no regular file|cannot be opened"):
        take(kind(tmp_path))
    with pytest.raises(MediaError, match="fetches nothing"):
        take(kind("https://example.org/a.png"))
    with pytest.raises(MediaError, match="cannot be opened"):
        take(kind("a\0b.png"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="no regular file"):
        take(kind(tmp_path / "pipe"))  # nobody writes to it, and nothing waits
    with pytest.raises(MediaError, match="no regular file"):
        take(kind("/dev/zero"))
    (tmp_path / "empty").touch()
    with pytest.raises(MediaError, match="is empty"):
        take(kind(tmp_path / "empty"))
    with pytest.raises(MediaError, match="empty"):
        take(kind(b""))


def test_encoded_bytes_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.write(encoded(pattern(4, 4), "PNG"))
        file.truncate(limits.MAX_BYTES + 1)
    for part in (Image(path), Audio(bytes(limits.MAX_BYTES + 1)), Video(bytes(limits.MAX_BYTES + 1))):
        with pytest.raises(MediaError, match="at most 32 MiB"):
            take(part)


def test_a_name_from_the_request_stands_in_the_message() -> None:
    with pytest.raises(MediaError, match=r"^image 2 of the request is no picture"):
        take(Image(b"text", name="image 2 of the request"))


@pytest.mark.slow
def test_memory_of_the_largest_picture() -> None:
    """50 million pixels: Pillow's own 4 bytes a pixel, and little more."""
    code = """
import resource, zlib, sys
sys.path.insert(0, sys.argv[1])
from test_media_hostile import png
from gemmule._media.image import prepare_image
from gemmule._media.parts import Image
from gemmule._media.settings import MediaSettings
pixels = zlib.compress(b"\\0" * (8192 * 3 + 1) * 6400)
small = png(8, 8, zlib.compress(b"\\0" * 25 * 8), bits=8, color=2)
prepare_image(Image(small), None, MediaSettings())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_image(Image(png(8192, 6400, pixels, bits=8, color=2)), None, MediaSettings())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, here], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 300
