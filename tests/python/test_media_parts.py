"""Image, Audio and Video as values, what a file is told to be by its content, and the settings of a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from gemmule._errors import FormatError, MediaError
from gemmule._media.parts import Audio, Image, MediaPart, Video
from gemmule._media.settings import MediaSettings
from gemmule._media.sniff import media_kind, part_of
from media_files import encoded, pattern, sound_bytes, tone, video_bytes


def test_parts_are_values_that_stay_as_they_are() -> None:
    image = Image("cat.jpg", tokens=140)
    assert image.name == "cat.jpg"
    assert isinstance(image, MediaPart)
    assert repr(image) == "Image('cat.jpg', tokens=140)"
    assert image != Image("cat.jpg", tokens=140)
    assert len({image, image}) == 1
    with pytest.raises(AttributeError):
        image.tokens = 70  # type: ignore[misc]
    assert repr(Audio((np.zeros(5, np.float32), 8000))) == "Audio(<float32 [5]>, rate=8000)"
    assert repr(Video(b"12345", frames=3, sound=False)) == "Video(<5 bytes>, frames=3, sound=False)"
    assert Image(Path("a") / "b.png").src == "a/b.png"
    assert Image(bytearray(b"xy")).src == b"xy"
    assert Audio(b"xy", name="sound 2 of the request").name == "sound 2 of the request"


def test_nothing_is_opened_when_a_part_is_made() -> None:
    Image("/no/such/file.png")
    Audio("/no/such/file.wav", start=3, duration=0.5)
    Video(b"")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Image(""), ValueError, "empty path"),
        (lambda: Image(3), TypeError, "not int"),
        (lambda: Image("a", tokens=0), ValueError, "tokens"),
        (lambda: Audio("a", rate=8000), ValueError, "rate"),
        (lambda: Audio((np.zeros(3), 8000), rate=16000), ValueError, "give one"),
        (lambda: Audio("a", start=-1), ValueError, "start"),
        (lambda: Audio("a", duration=0), ValueError, "duration"),
        (lambda: Audio("a", start=float("nan")), ValueError, "start"),
        (lambda: Audio(PillowImage.new("L", (1, 1))), TypeError, "not Image"),
        (lambda: Video(np.zeros((2, 2, 2, 3))), TypeError, "not ndarray"),
        (lambda: Video("a", frames=3, fps=1), ValueError, "not both"),
        (lambda: Video("a", fps=0), ValueError, "fps"),
        (lambda: Video("a", sound=1), TypeError, "sound"),
    ],
)
def test_wrong_arguments_are_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_parts_import_no_decoder() -> None:
    code = (
        "import sys, gemmule._media.parts, gemmule._media.settings, gemmule._media.sniff;"
        "print({'PIL', 'soundfile', 'soxr', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_are_told_by_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "misleading.wav"
    path.write_bytes(encoded(pattern(5, 7), kind))
    assert media_kind(path) == "image"
    assert isinstance(part_of(str(path)), Image)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", None),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("AIFF", None),
        ("CAF", None),
        ("AU", None),
        ("W64", None),
        ("RF64", None),
    ],
)
def test_sounds_are_told_by_content(kind: str, subtype: str | None) -> None:
    data = sound_bytes(tone(0.5, 48000), 48000, kind, subtype)
    assert media_kind(data) == "audio"
    assert isinstance(part_of(data), Audio)


@pytest.mark.parametrize(
    ("container", "codec", "sound"),
    [
        ("mp4", "mpeg4", "aac"),
        ("mov", "mpeg4", None),
        ("webm", "libvpx", "libopus"),
        ("matroska", "mpeg4", None),
        ("avi", "mpeg4", "aac"),
        ("mpegts", "mpeg2video", "mp2"),
        ("mpeg", "mpeg2video", "mp2"),
        ("flv", "flv", None),
    ],
)
def test_videos_are_told_by_content(container: str, codec: str, sound: str | None) -> None:
    pytest.importorskip("av")
    rate = 25 if container.startswith("mpeg") else 10
    data = video_bytes(container, codec, n=6, rate=rate, sound=sound)
    assert media_kind(data) == "video"
    assert isinstance(part_of(data), Video)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("adts", "aac"), ("matroska", "aac")]
)
def test_sound_in_a_container_of_videos_is_sound(container: str, codec: str) -> None:
    data = av_sound(container, codec)
    assert media_kind(data) == "audio"


def av_sound(container: str, codec: str) -> bytes:
    """A second of a tone without pictures."""
    av = pytest.importorskip("av")
    from io import BytesIO

    out = BytesIO()
    with av.open(out, "w", format=container) as file:
        voice = file.add_stream(codec, rate=48000)
        voice.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(1, 48000)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        context = voice.codec_context
        resampler = av.AudioResampler(
            format=context.format, layout="mono", rate=48000, frame_size=context.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(voice.encode(piece))
        file.mux(voice.encode())
    return out.getvalue()


def test_text_is_no_medium(tmp_path: Path) -> None:
    for data in (
        b"Hello there, this is text.",
        b"#EXTM3U\nhttp://example.org/a.ts\n",
        b"BM is text",
        b"%PDF-1.7",
    ):
        assert media_kind(data) is None
    path = tmp_path / "notes.txt"
    path.write_text("BMW and MP3")
    with pytest.raises(MediaError, match=r"notes\.txt is no known picture"):
        part_of(path)


def test_objects_are_told_by_type() -> None:
    assert media_kind(PillowImage.new("L", (1, 1))) == "image"
    assert media_kind(np.zeros((4, 4, 3), np.uint8)) == "image"
    assert media_kind(np.zeros(4, np.float32)) == "audio"
    assert media_kind((np.zeros((4, 2), np.float32), 8000)) == "audio"
    part = Image("x")
    assert part_of(part) is part
    assert isinstance(part_of("whatever.bin", "video"), Video)


def test_settings_read_the_keys_and_fall_back_to_the_vocabulary() -> None:
    keys = {
        "clip.has_vision_encoder": True,
        "gemmule.media.image.max_tokens": 560,
        "gemmule.media.image.n_positions": 64,
        "gemmule.media.audio.max_tokens": 50,
        "gemmule.media.token.image": 7,
    }
    settings = MediaSettings.from_file(keys.get, {"<|image>": 5, "<|video|>": 9}.get)
    assert settings.image_tokens == 560
    assert settings.n_positions == 64
    assert settings.audio_max_tokens == 50
    assert (settings.image, settings.boi, settings.eoi, settings.video) == (7, 5, None, 9)
    assert settings.has_image
    assert not settings.has_audio
    assert settings.samples_per_token == 640
    assert settings.tile == 48


@pytest.mark.parametrize("value", [0, -1, "280", 1.5, True, 1 << 40])
def test_a_damaged_setting_names_its_key(value: object) -> None:
    keys = {"gemmule.media.video.n_frames": value}
    with pytest.raises(FormatError, match=r"gemmule\.media\.video\.n_frames"):
        MediaSettings.from_file(keys.get, lambda _: None)
