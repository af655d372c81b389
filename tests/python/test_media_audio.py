"""Sounds: formats, rates and channels, parts of a file, clips cut at quiet places, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from gemmule._errors import MediaError
from gemmule._media.audio import prepare_audio
from gemmule._media.parts import Audio
from gemmule._media.settings import MediaSettings
from media_files import noise, sound_bytes, tone

SETTINGS = MediaSettings()


def joined(part: Audio, settings: MediaSettings = SETTINGS) -> Any:
    """The samples of all clips: float32 [n]."""
    clips, _ = prepare_audio(part, settings)
    return np.concatenate([clip.samples for clip in clips])


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 16000, 22050, 44100, 48000, 96000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels(rate: int, channels: int) -> None:
    """The mean of the channels, then soxr over the whole at once, filled up to ceil(n 16000 / rate)."""
    samples = noise(rate + rate // 3 + 1, channels)
    found = joined(Audio(sound_bytes(samples, rate, "WAV", "FLOAT")))
    expected = samples.mean(axis=1)
    if rate != 16_000:
        expected = soxr.resample(expected, rate, 16_000, quality="HQ")
    assert len(found) == -(-len(samples) * 16_000 // rate)
    assert found.dtype == np.float32
    assert len(expected) <= len(found) <= len(expected) + 1
    assert np.array_equal(found[: len(expected)], expected)
    assert not found[len(expected) :].any()


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 4e-5),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 8e-3),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
        ("AIFF", "PCM_16", 4e-5),
        ("CAF", "ALAC_16", 4e-5),
        ("AU", "PCM_16", 4e-5),
        ("W64", "PCM_16", 4e-5),
        ("RF64", "PCM_16", 4e-5),
    ],
)
def test_formats(kind: str, subtype: str, error: float, tmp_path: Path) -> None:
    samples = tone(1.0)
    data = sound_bytes(np.stack([samples, samples], axis=1), 16_000, kind, subtype)
    path = tmp_path / "named.txt"
    path.write_bytes(data)
    for src in (data, path):
        found = joined(Audio(src))
        assert len(found) == 16_000
        inner = slice(800, -800)  # lossy formats ring at the edges
        assert np.abs(found[inner] - samples[inner]).max() <= error


def test_arrays_of_every_kind_mean_the_same() -> None:
    samples = tone(0.1)
    exact = joined(Audio(samples))
    assert np.array_equal(exact, samples)
    assert np.array_equal(joined(Audio((samples.astype(np.float64), 16_000))), samples)
    assert np.array_equal(joined(Audio(np.stack([samples, -samples], axis=1))), np.zeros(1600, np.float32))
    assert np.allclose(joined(Audio((samples * 32767).astype(np.int16))), samples, atol=1e-4)
    assert np.allclose(joined(Audio((samples * (2**31 - 1)).astype(np.int32))), samples, atol=1e-6)
    assert np.allclose(joined(Audio((samples * 127 + 128).astype(np.uint8))), samples, atol=2e-2)
    assert len(joined(Audio((samples, 8000)))) == 3200
    assert len(joined(Audio(samples, rate=8000))) == 3200


def test_part_of_a_sound() -> None:
    samples = noise(48_000)[:, 0]
    data = sound_bytes(samples, 16_000, "FLAC", "PCM_24")
    for src in (data, samples):
        part = Audio(src, start=0.5, duration=1.25)
        (clip,), notes = prepare_audio(part, SETTINGS)
        assert np.allclose(clip.samples, samples[8000:28000], atol=1e-6)
        assert clip.start == 0.5
        assert notes == []
        assert len(joined(Audio(src, start=2.0))) == 16_000
        with pytest.raises(MediaError, match=r"lasts 3\.0 s, so nothing starts at 3\.0 s"):
            prepare_audio(Audio(src, start=3.0), SETTINGS)
        clips, notes = prepare_audio(Audio(src, start=2.5, duration=9), SETTINGS)
        assert len(clips[0].samples) == 8000


def test_tokens_and_keys() -> None:
    for n, tokens in ((1, 1), (640, 1), (641, 2), (16_000, 25)):
        (clip,), _ = prepare_audio(Audio(noise(n)[:, 0]), SETTINGS)
        assert clip.n_tokens == tokens
    first, second = (prepare_audio(Audio(noise(n)[:, 0]), SETTINGS)[0][0] for n in (900, 901))
    assert first.key != second.key
    assert first.key == prepare_audio(Audio(noise(900)), SETTINGS)[0][0].key


def test_one_sample_is_a_sound_at_every_rate() -> None:
    for rate in (1000, 16_000, 44_100, 384_000):
        (clip,), _ = prepare_audio(Audio(sound_bytes(np.full(1, 0.5, np.float32), rate)), SETTINGS)
        assert clip.n_tokens == 1


# -- clips ---------------------------------------------------------------------------------------------------


def test_a_sound_of_one_clip_is_not_cut() -> None:
    clips, notes = prepare_audio(Audio(noise(750 * 640)[:, 0]), SETTINGS)
    assert [clip.n_tokens for clip in clips] == [750]
    assert notes == []


def test_long_sound_is_cut_where_it_is_quiet() -> None:
    samples = noise(100 * 16_000)[:, 0]
    samples[25 * 16_000 : 26 * 16_000] = 0
    samples[50 * 16_000 : 50 * 16_000 + 5000] = 0
    clips, notes = prepare_audio(Audio(samples, name="talk.wav"), SETTINGS)
    assert np.array_equal(np.concatenate([clip.samples for clip in clips]), samples)
    assert 25.1 < clips[1].start < 25.95
    assert 50.05 < clips[2].start < 50.3
    assert len(notes) == 1
    assert "talk.wav of 100.0 s was split at quiet places into 4 clips (at 25.9 s, 50.2 s" in notes[0]
    assert "30 s at once" in notes[0]


@pytest.mark.parametrize("extra", [1, 639, 640, 641, 5 * 16_000, 29 * 16_000, 31 * 16_000, 95 * 16_000 + 7])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_clips_are_the_whole_on_the_grid_of_frames(extra: int, level: float) -> None:
    samples = noise(750 * 640 + extra, level=level)[:, 0]
    clips, _ = prepare_audio(Audio(samples, start=0), SETTINGS)
    assert np.array_equal(np.concatenate([clip.samples for clip in clips]), samples)
    at = 0
    for clip in clips:
        assert clip.start == at / 16_000
        assert at % 640 == 0
        assert clip.n_tokens <= 750
        at += len(clip.samples)
    assert all(clip.n_tokens >= 125 for clip in clips)
    assert sum(clip.n_tokens for clip in clips) == -(-len(samples) // 640)


def test_tiny_clip_lengths_end_too() -> None:
    for most in (1, 2, 3, 7):
        settings = MediaSettings(audio_max_tokens=most)
        samples = noise(11 * 640 + 5)[:, 0][: most * 640 * 20]
        clips, _ = prepare_audio(Audio(samples), settings)
        assert np.array_equal(np.concatenate([clip.samples for clip in clips]), samples)
        assert max(clip.n_tokens for clip in clips) <= most


# -- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("src", "words"),
    [
        (np.zeros(0, np.float32), "0 samples"),
        ((np.zeros((5, 0), np.float32), 8000), "shape"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.zeros((2, 48_000), np.float32), "transpose"),
        (np.zeros((48, 40), np.float32), "40 channels"),
        ((np.zeros(9, np.float32), 999), "999 samples a second"),
        ((np.zeros(9, np.float32), 400_000), "400000 samples a second"),
        (np.zeros(9, np.int64), "int64"),
        (np.zeros(9, bool), "bool"),
        (np.array([0, np.nan], np.float32), "not finite"),
        (np.array([0, -np.inf]), "not finite"),
        (np.array([0, 1e300]), "not finite"),
        (np.full(9, 20_000.0), "divide them"),
        (np.zeros(601 * 16_000, np.float32), "at most 600 s"),
    ],
)
def test_arrays_that_are_no_sound(src: Any, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        prepare_audio(Audio(src), SETTINGS)


def test_ten_minutes_of_a_longer_sound_are_taken() -> None:
    samples = np.zeros(700 * 1000, np.float32)
    assert len(joined(Audio((samples, 1000), start=60, duration=600))) == 600 * 16_000


def test_files_that_are_no_sound() -> None:
    with pytest.raises(MediaError, match="0 samples"):
        prepare_audio(Audio(sound_bytes(np.zeros(0, np.float32), 16_000)), SETTINGS)
    bad = noise(9)[:, 0]
    bad[3] = np.nan
    with pytest.raises(MediaError, match="not finite"):
        prepare_audio(Audio(sound_bytes(bad, 16_000, "WAV", "FLOAT")), SETTINGS)
    with pytest.raises(MediaError, match="no sound of a known format"):
        prepare_audio(Audio(b"Hello, this is text."), SETTINGS)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
def test_a_file_that_was_cut_off_is_reported(kind: str, tmp_path: Path) -> None:
    data = sound_bytes(tone(2.0, 16000), 16000, kind, "PCM_16")
    for cut, start, duration, words in [
        (data[: len(data) // 2], 0, None, ["although 2.0 s"]),
        (data[: len(data) // 2], 0.25, 0.5, []),
        (data[: len(data) // 2], 0.5, 1.0, ["although 1.0 s"]),
        (data, 0, None, []),
    ]:
        (tmp_path / "a").write_bytes(cut)
        clips, notes = prepare_audio(Audio(tmp_path / "a", start=start, duration=duration), MediaSettings())
        assert len(clips) == 1
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes, strict=True))


def test_a_file_written_into_a_pipe_has_no_length() -> None:
    data = bytearray(sound_bytes(tone(0.5, 16000), 16000, "WAV", "PCM_16"))
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF - 36):
        data[40:44] = unknown.to_bytes(4, "little")
        assert prepare_audio(Audio(bytes(data)), MediaSettings())[1] == []


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from gemmule import MissingExtraError

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"one more package: pip install 'gemmule\[video\]'"):
        prepare_audio(Audio(b"\0\0\0\x18ftypM4A \0\0\0\0", name="note.m4a"), SETTINGS)
