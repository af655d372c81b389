"""What a file holds, told by its first bytes and never by its name; 64 KiB are read at most.

Containers (MP4, WebM, Ogg, AVI, ASF) count as video when they hold a video track. Magic numbers: the format
specifications; ISO/IEC 14496-12 for boxes, Matroska's element ids.
"""

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from gemmule._errors import MediaError
from gemmule._media.limits import open_source
from gemmule._media.parts import Audio, Image, MediaPart, Source, Video

__all__ = ["container_of", "image_format", "media_kind", "part_of", "read_head", "sound_format"]

Kind = Literal["image", "audio", "video"]

_HEAD = 64 << 10
_BOXES = 64  # top-level boxes that are looked through for the track list of an MP4
# Magic bytes at the start and the name of what they begin.
_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\x01\0", "icon"),
)
_SOUNDS = (
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b".snd", "AU"),
    (b"caff", "CAF"),
    (b"riff\x2e\x91\xcf\x11", "W64"),
)
_CONTAINERS = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"OggS", "ogg"),
    (b"FLV\x01", "flv"),
    (b"\0\0\x01\xba", "mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis")
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ")


def image_format(head: bytes) -> str | None:
    """Pillow's name of the picture format, or the name of one that is known but not read."""
    if (name := _by_magic(head, _IMAGES)) is not None:
        return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return "AVIF" if head[8:11] == b"avi" else "HEIC"
    return None


def _by_magic(head: bytes, formats: Iterable[tuple[bytes, str]]) -> str | None:
    """The name of the first format whose magic bytes the head begins with."""
    return next((name for magic, name in formats if head.startswith(magic)), None)


def sound_format(head: bytes) -> str | None:
    """libsndfile's name of the sound format, among those read without PyAV."""
    if (name := _by_magic(head, _SOUNDS)) is not None:
        return name
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:3] == b"ID3" or _is_mpeg_audio(head):
        return "MP3"
    return None


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container or raw stream, among those read with PyAV; no playlist is among them."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and image_format(head) is None:
        return "mov"
    if (name := _by_magic(head, _CONTAINERS)) is not None:
        return name
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if any(len(head) > at + 376 and {head[at + i * step] for i in range(2)} == {0x47} for at, step in _TS):
        return "mpegts"
    if len(head) > 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    return None


_TS = ((0, 188), (4, 192))  # MPEG transport streams, plain and of cameras


def _is_mpeg_audio(head: bytes) -> bool:
    """Layer I to III: a frame header, and another one where the first says that it ends (if so far read)."""
    at = len(head) - len(head.lstrip(b"\0"))  # some encoders put zeros in front
    length = _mpeg_frame_bytes(head[at : at + 4])
    if length == 0:
        return False
    after = head[at + length : at + length + 4]
    return len(after) < 4 or _mpeg_frame_bytes(after) > 0


def _mpeg_frame_bytes(header: bytes) -> int:
    """Bytes of an MPEG layer III frame (II and I: a guess above 0), 0 for what is no header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return 0
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kilobits = (_MPEG1_KILOBITS if version == 3 else _MPEG2_KILOBITS)[layer][bitrate - 1]
    padding = header[2] >> 1 & 1
    if layer == 3:
        return (12 * kilobits * 1000 // hertz + padding) * 4
    return (144 if version == 3 or layer == 2 else 72) * kilobits * 1000 // hertz + padding


# by the layer bits: 3 is layer I, 2 is II, 1 is III
_MPEG1_KILOBITS = {
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG2_KILOBITS = {
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    1: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def read_head(part: MediaPart) -> bytes:
    """The first bytes, and for an MP4 whose track list lies at the end, the begin of that list."""
    with open_source(part, sys.maxsize) as (file, size):
        try:
            head = file.read(_HEAD // 2)
            if container_of(head) != "mov" or b"moov" in head:
                return head + file.read(_HEAD // 2)
            at = 0
            for _ in range(_BOXES):
                file.seek(at)
                box = file.read(16)
                length = int.from_bytes(box[:4], "big")
                if length == 1:
                    length = int.from_bytes(box[8:16], "big")
                if box[4:8] == b"moov":
                    file.seek(at)
                    return head + file.read(_HEAD // 2 - 16 * _BOXES)
                at += length
                if length < 8 or at >= size:
                    break
            return head
        except OSError as error:
            raise MediaError(f"{part.name} cannot be read: {error.strerror}") from None


def media_kind(src: Source) -> Kind | None:
    """image, audio or video by content; None for anything else, text for instance."""
    if not isinstance(src, str | os.PathLike | bytes | bytearray | memoryview):
        return _kind_of_object(src)
    head = read_head(Video(src, name="" if isinstance(src, str | os.PathLike) else "the attachment"))
    if image_format(head) is not None:
        return "image"
    container = container_of(head)
    if container == "mov":
        if head[8:12] in _SOUND_BRANDS or (b"soun" in head and b"vide" not in head):
            return "audio"
        return "video"
    if container == "matroska":
        # CodecID elements: id 0x86, a length of one byte, and a name such as V_VP9 or A_OPUS
        video, sound = (re.search(rb"\x86[\x82-\xbf]" + kind, head) for kind in (rb"V_[A-Z]", rb"A_[A-Z]"))
        return "audio" if sound and not video else "video"
    if container == "ogg":
        return "video" if b"\x80theora" in head[:_HEAD] else "audio"
    if container == "avi":
        return "audio" if b"auds" in head and b"vids" not in head else "video"
    if container == "asf":
        # the GUID of a video stream in its properties
        return "video" if b"\xc0\xef\x19\xbc\x4d\x5b\xcf\x11" in head else "audio"
    if container == "aac":
        return "audio"
    if container is not None:
        return "video"
    return "audio" if sound_format(head) is not None else None


def _kind_of_object(src: Any) -> Kind | None:
    if isinstance(src, tuple | list):
        return "audio" if len(src) == 2 and isinstance(src[0], np.ndarray) else None
    if isinstance(src, np.ndarray):
        return "audio" if src.ndim == 1 else "image" if src.ndim in (2, 3) else None
    pil = sys.modules.get("PIL.Image")
    return "image" if pil is not None and isinstance(src, pil.Image) else None


def part_of(src: Source, kind: Kind | None = None) -> MediaPart:
    """The part for a source whose kind is given or told by its content."""
    if isinstance(src, Image | Audio | Video):
        return src
    kind = kind or media_kind(src)
    if kind == "image":
        return Image(src)
    if kind == "audio":
        return Audio(src)
    if kind == "video":
        return Video(src)
    shown = os.fsdecode(src) if isinstance(src, str | os.PathLike) else "the attachment"
    raise MediaError(f"{shown} is no known picture, sound or video; convert it to PNG, WAV or MP4")
