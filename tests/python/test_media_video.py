"""Videos: which pictures are taken and when, equality with plain decoding, rotation, sound, refusals."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmule._errors import MediaError, MissingExtraError
from gemmule._media import limits
from gemmule._media import video as video_module
from gemmule._media.audio import prepare_audio
from gemmule._media.image import resize
from gemmule._media.parts import Audio, Video
from gemmule._media.settings import MediaSettings
from gemmule._media.video import frame_indices, prepare_video, stamp
from media_files import tone, video_bytes

av = pytest.importorskip("av")

SETTINGS = MediaSettings()
# (container, codec, sound, pictures a second)
KINDS = [
    ("mp4", "mpeg4", "aac", 10),
    ("mov", "mpeg4", "pcm_s16le", 10),
    ("webm", "libvpx", "libopus", 10),
    ("webm", "libvpx-vp9", None, 10),
    ("matroska", "mpeg4", "flac", 10),
    ("avi", "mpeg4", "aac", 10),
    ("mpegts", "mpeg2video", "mp2", 25),
    ("mpeg", "mpeg2video", "mp2", 25),
    ("flv", "flv", "aac", 10),
]


def decoded(data: bytes) -> list[Any]:
    """Every picture in order: uint8 [h, w, 3]."""
    with av.open(BytesIO(data)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.mark.parametrize(("container", "codec", "sound", "rate"), KINDS)
def test_pictures_stamps_and_sound(container: str, codec: str, sound: str | None, rate: int) -> None:
    data = video_bytes(container, codec, n=45, rate=rate, sound=sound)
    plain = decoded(data)
    assert len(plain) == 45
    for frames in (None, 7, 45, 99):
        video = prepare_video(Video(data, frames=frames), SETTINGS)
        numbers = frame_indices(45, min(frames or 32, 45))
        assert [found[0] for found in video.frames] == [stamp(i, rate) for i in numbers]
        for number, (_, picture) in zip(numbers, video.frames, strict=True):
            assert picture.pixels.shape == (288, 480, 3)
            assert picture.n_tokens == 60
            assert picture.source_size == (48, 80)
            assert np.array_equal(picture.pixels, resize(plain[number], 288, 480)), number
    assert video.notes == []
    seconds = 45 / rate
    assert len(video.sound) == (1 if sound else 0)
    if sound:
        assert abs(len(video.sound[0].samples) / 16_000 - seconds) < 0.1
        middle = video.sound[0].samples[8000:16_000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(8000)))
        assert int(spectrum.argmax()) == 220  # 440 Hz in bins of 2 Hz
        assert abs(np.sqrt(np.mean(middle**2)) - 0.5 / np.sqrt(2)) < 0.03
        assert prepare_video(Video(data, sound=False), SETTINGS).sound == []


def test_indices_and_stamps_of_the_specification() -> None:
    assert frame_indices(100, 32)[:4] == [0, 3, 6, 9]
    assert frame_indices(100, 32)[-1] == 96
    assert frame_indices(5, 5) == [0, 1, 2, 3, 4]
    assert frame_indices(1, 1) == [0]
    assert stamp(0, 25.0) == "00:00"
    assert stamp(1874, 25.0) == "01:14"
    assert stamp(1875, 25.0) == "01:15"
    assert stamp(25 * 6000, 25.0) == "100:00"


def test_pictures_per_second() -> None:
    data = video_bytes(n=45, rate=10, sound=None)
    assert len(prepare_video(Video(data, fps=2), SETTINGS).frames) == 9
    assert len(prepare_video(Video(data, fps=0.01), SETTINGS).frames) == 1
    assert len(prepare_video(Video(data, fps=1000), SETTINGS).frames) == 45


def test_budget_of_a_picture() -> None:
    data = video_bytes(n=3, sound=None)
    assert prepare_video(Video(data), SETTINGS, 140).frames[0][1].n_tokens == 135
    assert prepare_video(Video(data, tokens=280), SETTINGS, 140).frames[0][1].n_tokens > 240
    with pytest.raises(ValueError, match="the model knows"):
        prepare_video(Video(data, tokens=71), SETTINGS)


def test_jumping_and_plain_decoding_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_bytes("matroska", "mpeg4", n=60, gop=5, sound=None)
    jumped = prepare_video(Video(data, frames=4), SETTINGS)
    monkeypatch.setattr(video_module, "_decode_by_time", lambda *_: False)
    plain = prepare_video(Video(data, frames=4), SETTINGS)
    assert [(a, b.key) for a, b in jumped.frames] == [(a, b.key) for a, b in plain.frames]


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_bytes("mp4", "mpeg4", n=120, gop=6, sound=None)
    seen = []
    original = video_module._Pictures.saw
    monkeypatch.setattr(
        video_module._Pictures, "saw", lambda self, frame: (seen.append(frame.pts), original(self, frame))
    )
    prepare_video(Video(data, frames=3), SETTINGS)
    assert len(seen) < 3 * 12


def test_variable_rate_takes_the_stamps_of_the_average() -> None:
    out = BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pts in (0, 1, 2, 10, 30, 31):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), pts * 7, np.uint8), format="rgb24")
            frame.pts = pts
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    video = prepare_video(Video(out.getvalue()), SETTINGS)
    assert len(video.frames) == 6
    levels = [int(picture.pixels.mean()) for _, picture in video.frames]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [(0, (1, 0, 0, 1)), (90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))],
)
def test_rotation_of_the_container(degrees: int, matrix: tuple[int, int, int, int]) -> None:
    """The turn, clockwise, stands in the track header's matrix (16.16 fixed point, row by row)."""
    data = bytearray(video_bytes("mp4", "mpeg4", n=2, sound=None))
    plain = decoded(bytes(data))[0]
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of times and flags
    a, b, c, d = (value << 16 for value in matrix)
    fields = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in fields)
    picture = prepare_video(Video(bytes(data), frames=1), SETTINGS).frames[0][1]
    upright = np.rot90(plain, -degrees // 90)
    assert picture.source_size == upright.shape[:2]
    assert np.array_equal(picture.pixels, resize(np.ascontiguousarray(upright), *picture.pixels.shape[:2]))


def test_long_sound_of_a_video_is_split_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(video_bytes("matroska", "mpeg4", n=40, rate=1, sound="flac", sound_rate=8000))
    video = prepare_video(Video(path, frames=2), SETTINGS)
    assert len(video.sound) == 2
    assert sum(len(clip.samples) for clip in video.sound) == 40 * 16_000
    assert video.notes[0].startswith(f"the sound of {path} of 40.0 s was split")
    short = MediaSettings(audio_max_tokens=10)
    with pytest.raises(MediaError, match="pass sound=False"):
        prepare_video(Video(path), short)
    assert prepare_video(Video(path, sound=False), short).sound == []
    assert prepare_video(Video(path), MediaSettings(has_audio=False)).sound == []


def test_sound_of_a_video_file_as_audio() -> None:
    data = video_bytes("mp4", "mpeg4", n=30, rate=10, sound="aac", sound_rate=16_000)
    (clip,), _ = prepare_audio(Audio(data, start=1.0, duration=1.0), SETTINGS)
    assert len(clip.samples) == 16_000
    assert clip.start == 1.0
    expected = tone(3.0)[16_000:32_000]
    assert np.corrcoef(clip.samples, expected)[0, 1] > 0.999  # in place: the codec's delay is taken off
    with pytest.raises(MediaError, match="nothing starts at 9"):
        prepare_audio(Audio(data, start=9.0), SETTINGS)
    with pytest.raises(MediaError, match="holds no sound"):
        prepare_audio(Audio(video_bytes(n=2, sound=None)), SETTINGS)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_bytes(n=2, sound=None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingExtraError, match=r"^video needs one more package: pip install 'gemmule\[video\]'$"
    ):
        prepare_video(Video(data), SETTINGS)


# -- refused -------------------------------------------------------------------------------------------------


def test_addresses_and_playlists_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="fetches nothing"):
        prepare_video(Video("http://127.0.0.1:9/a.mp4"), SETTINGS)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video_bytes(n=2, sound=None))
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        with pytest.raises(MediaError, match="no video of a known format"):
            prepare_video(Video(text.encode()), SETTINGS)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_bytes(n=40, rate=10, sound=None)
    monkeypatch.setattr(limits, "MAX_DECODED_PIXELS", 20 * 48 * 80)
    with pytest.raises(MediaError, match="too long to decode"):
        prepare_video(Video(data), SETTINGS)
    monkeypatch.setattr(limits, "MAX_VIDEO_SECONDS", 3)
    with pytest.raises(MediaError, match="hours"):
        prepare_video(Video(data), SETTINGS)
    monkeypatch.setattr(limits, "MAX_PIXELS", 48 * 80 - 1)
    with pytest.raises(MediaError, match="48 x 80"):
        prepare_video(Video(data), SETTINGS)


def test_number_of_pictures_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_bytes(n=40, sound=None)
    monkeypatch.setattr(limits, "MAX_FRAMES", 30)
    with pytest.raises(MediaError, match="32 pictures of 70 tokens; take 30"):
        prepare_video(Video(data), SETTINGS)
    monkeypatch.setattr(limits, "MAX_FRAMES", 1000)
    monkeypatch.setattr(limits, "MAX_FRAME_TOKENS", 1120)
    with pytest.raises(MediaError, match="take 1 at most"):
        prepare_video(Video(data, tokens=1120), SETTINGS)


def test_a_video_that_ends_early_is_reported() -> None:
    data = bytearray(video_bytes("avi", "mpeg4", n=40, sound=None))
    cut = data[: data.rindex(b"idx1") * 2 // 3]
    video = prepare_video(Video(bytes(cut)), SETTINGS)
    assert any("although 40 were expected" in note for note in video.notes)
