"""Sounds as the embedder takes them: mono float32 at the model's rate, in clips of at most its clip length.

Decoding: libsndfile (WAV, FLAC, Ogg, Opus, MP3, AIFF, AU, CAF), read block by block so that nothing expands
beyond what is kept; other containers (M4A, AAC, WebM, MP4) through PyAV. Channels are averaged, then soxr's
high quality resampler, then ceil(n * rate / source rate) samples: what librosa, and so transformers, does.

Splitting: a sound longer than a clip (30 s) is cut at the quietest place, the 240 ms with the least energy,
within the last third before the clip would be full; the last clip keeps a sixth of the length or more. Cuts
lie between frames of a token (640 samples), so no frame changes and the clips together are the whole sound.
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmule._cancel import check_cancelled
from gemmule._errors import MediaError
from gemmule._media import limits
from gemmule._media.parts import Audio
from gemmule._media.settings import MediaSettings
from gemmule._media.sniff import container_of, read_head, sound_format

if TYPE_CHECKING:
    import soundfile

__all__ = ["Clip", "PreparedAudio", "SampleStream", "collect", "prepare_audio", "split"]

Samples = NDArray[np.float32]

_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF"}
_FIX = "save it again as WAV, FLAC or MP3"
_OGG_OTHERS = (b"\x80theora", b"Speex   ")  # Ogg streams that libsndfile does not read, FFmpeg does
_BLOCK_VALUES = 1 << 18  # samples over all channels that are decoded at once
_MAX_PEAK = 32.0  # full scale is 1; what is far above are integers that nobody scaled
_CUT_CHUNK = re.compile(r"(?m)^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")  # libsndfile's log
_UNKNOWN_SIZE = 0x7FF00000
_EDGE_FRAMES = 3  # frames on each side of a cut whose energy counts


@dataclass(frozen=True, eq=False)
class PreparedAudio:
    """One clip: float32 [n] mono samples at the model's rate. `start` is its second in the source."""

    samples: Samples
    n_tokens: int
    start: float

    @cached_property
    def key(self) -> bytes:
        """sha256 of the exact samples."""
        digest = hashlib.sha256(b"audio" + struct.pack("<Q", len(self.samples)))
        digest.update(np.ascontiguousarray(self.samples).data)
        return digest.digest()


@dataclass(frozen=True)
class Clip:
    """The part of a source that is wanted, in seconds."""

    start: float = 0.0
    duration: float | None = None


@dataclass
class SampleStream:
    """Decoded sound: its rate, the frames announced (None: unknown) and blocks float32 [n, channels].
    `lost`: frames that the header speaks of beyond the end of the file.
    """

    rate: int
    channels: int
    announced: int | None
    blocks: Iterator[Samples]
    lost: int = 0


def prepare_audio(part: Audio, settings: MediaSettings) -> tuple[list[PreparedAudio], list[str]]:
    """The clips of a sound in order, and what the user should know about how they were made."""
    notes: list[str] = []
    clip = Clip(part.start, part.duration)
    with _opened(part, clip) as stream:
        samples = collect(stream, clip, settings, part.name, notes)
    return split(samples, settings, part.name, part.start, notes), notes


# -- decoding ------------------------------------------------------------------------------------------------


@contextmanager
def _opened(part: Audio, clip: Clip) -> Iterator[SampleStream]:
    """The blocks from the clip's start on."""
    if isinstance(part.src, np.ndarray):
        yield _of_array(part.src, part.rate, clip, part.name)
        return
    head = read_head(part)
    by_libsndfile = sound_format(head) is not None and not any(mark in head for mark in _OGG_OTHERS)
    if by_libsndfile:
        with (
            limits.open_source(part, limits.MAX_FILE_BYTES) as (file, size),
            limits.decoding(part.name, "audio", _FIX),
            _sound_file(part, file, size) as sound,
        ):
            yield _of_sound_file(sound, clip, part.name)
        return
    container = container_of(head)
    if container is None:
        raise MediaError(f"{part.name} is no sound of a known format; {_FIX}")
    from gemmule._media.video import open_sound

    with open_sound(part, container, clip) as stream:
        yield stream


@contextmanager
def _sound_file(part: Audio, file: Any, size: int) -> "Iterator[soundfile.SoundFile]":
    import soundfile

    if isinstance(part.src, str):
        # A descriptor of its own: libsndfile closes it, also where opening fails.
        source: Any = os.dup(file.fileno())
        os.lseek(source, 0, os.SEEK_SET)
    else:
        source = limits.BoundedReader(file, size)
    with soundfile.SoundFile(source, closefd=True) as sound:
        yield sound


def _of_sound_file(sound: "soundfile.SoundFile", clip: Clip, name: str) -> SampleStream:
    if sound.format not in _FORMATS:
        raise MediaError(f"{name} is a {sound.format} file; {_FIX}")
    rate, channels = check_format(sound.samplerate, sound.channels, name)
    first = round(clip.start * rate)
    frames = int(sound.frames)
    announced = frames if 0 <= frames < 1 << 62 else None
    if first:
        if announced is not None and first >= announced:
            raise MediaError(_starts_late(name, clip, announced / rate))
        sound.seek(first)

    def blocks() -> Iterator[Samples]:
        size = max(1, _BLOCK_VALUES // channels)
        while len(block := sound.read(size, dtype="float32", always_2d=True)):
            yield block

    left = None if announced is None else announced - first
    return SampleStream(rate, channels, left, blocks(), _lost_frames(sound))


def _lost_frames(sound: "soundfile.SoundFile") -> int:
    """How many frames of a WAV or AIFF file are missing; libsndfile itself only reads what is there."""
    found = _CUT_CHUNK.search(sound.extra_info)
    if found is None:
        return 0
    said, there, frames = int(found[1]), int(found[2]), int(sound.frames)
    # A program that wrote into a pipe did not know the size and left the largest.
    return 0 if said >= _UNKNOWN_SIZE or there <= 0 else max(0, frames * said // there - frames)


def _of_array(array: NDArray[Any], rate: int | None, clip: Clip, name: str) -> SampleStream:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] < 1:
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; give [samples] or [samples, channels]"
        )
    if array.shape[1] > limits.MAX_AUDIO_CHANNELS and array.shape[0] <= limits.MAX_AUDIO_CHANNELS:
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; transpose it to [samples, channels]"
        )
    kind = array.dtype
    # bytes are unsigned in every sound format; other integers use their whole range
    scale = {"int16": 1 / (1 << 15), "int32": 1 / (1 << 31), "uint8": 1 / (1 << 7)}.get(kind.name)
    if scale is None and kind.kind != "f":
        raise MediaError(f"{name} is an array of {kind}; give int16, int32, or floats from -1 to 1")
    rate, channels = check_format(16_000 if rate is None else rate, array.shape[1], name)
    first = round(clip.start * rate)
    if first and first >= len(array):
        raise MediaError(_starts_late(name, clip, len(array) / rate))

    def blocks() -> Iterator[Samples]:
        size = max(1, _BLOCK_VALUES // channels)
        for at in range(first, len(array), size):
            block = array[at : at + size]
            if kind == np.uint8:
                block = block.astype(np.int16) - 128
            if scale is not None:
                block = (block * scale).astype(np.float32)
            with np.errstate(over="ignore"):  # a float64 beyond float32 is refused as infinite
                yield np.asarray(block, np.float32)

    return SampleStream(rate, channels, len(array) - first, blocks())


def check_format(rate: int, channels: int, name: str) -> tuple[int, int]:
    """The rate and number of channels, where they are within the limits."""
    if not limits.MIN_AUDIO_RATE <= rate <= limits.MAX_AUDIO_RATE:
        raise MediaError(
            f"{name} has {rate} samples a second; convert it to a rate from {limits.MIN_AUDIO_RATE} to "
            f"{limits.MAX_AUDIO_RATE}"
        )
    if not 1 <= channels <= limits.MAX_AUDIO_CHANNELS:
        raise MediaError(f"{name} has {channels} channels; convert it to 1 to {limits.MAX_AUDIO_CHANNELS}")
    return rate, channels


def _starts_late(name: str, clip: Clip, seconds: float) -> str:
    return f"{name} lasts {seconds:.1f} s, so nothing starts at {clip.start:.1f} s; give an earlier start"


# -- one mono stream -----------------------------------------------------------------------------------------


def collect(
    stream: SampleStream,
    clip: Clip,
    settings: MediaSettings,
    name: str,
    notes: list[str],
    fix: str = "give start and duration",
) -> Samples:
    """Averages the channels and resamples, block by block: float32 [n] at the model's rate."""
    rate, out_rate = stream.rate, settings.sampling_rate
    most = limits.MAX_AUDIO_CLIPS * settings.audio_max_tokens * settings.samples_per_token / out_rate
    wanted = None if clip.duration is None else max(1, round(clip.duration * rate))
    longest = min(int(most * rate), limits.MAX_AUDIO_VALUES // stream.channels)
    promised = min((n for n in (stream.announced, wanted) if n is not None), default=0)
    if promised > longest:
        raise MediaError(_too_long(name, promised / rate, longest / rate, fix))
    resampler = _Resampler(rate, out_rate)
    n = 0
    for block in stream.blocks:
        check_cancelled()
        if wanted is not None:
            block = block[: wanted - n]
        n += len(block)
        if n > longest:
            raise MediaError(_too_long(name, n / rate, longest / rate, fix))
        resampler.add(_mono(block, name))
        if n == wanted:
            break
    if n == 0:
        raise MediaError(f"{name} holds no sound (0 samples); record or export it again")
    if stream.lost and (wanted is None or n < wanted):
        promised = min(n + stream.lost, wanted or n + stream.lost)
    if promised > n:
        notes.append(f"{name} ends after {n / rate:.1f} s, although {promised / rate:.1f} s were expected")
    return resampler.finish(-(-n * out_rate // rate))


def _too_long(name: str, seconds: float, most: float, fix: str) -> str:
    return f"{name} has {seconds:.0f} s of sound or more; at most {most:.0f} s are taken, so {fix}"


def _mono(block: Samples, name: str) -> Samples:
    peak = float(np.max(np.abs(block), initial=0.0))
    if not peak <= _MAX_PEAK:
        if np.isfinite(block).all():
            raise MediaError(f"{name} has samples up to {peak:.6g}; divide them so that they lie in -1 to 1")
        raise MediaError(f"{name} has samples that are not finite numbers; record or export it again")
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


class _Resampler:
    """soxr, or nothing where the rates agree."""

    def __init__(self, rate: int, out_rate: int) -> None:
        self._out: list[Samples] = []
        self._stream: Any = None
        if rate != out_rate:
            import soxr

            self._stream = soxr.ResampleStream(rate, out_rate, 1, dtype="float32", quality="HQ")

    def add(self, mono: Samples, *, last: bool = False) -> None:
        if self._stream is not None:
            mono = self._stream.resample_chunk(np.ascontiguousarray(mono), last=last)
        self._out.append(mono)

    def finish(self, n: int) -> Samples:
        """All samples, cut or filled with zeros to n: the filter's last sample may be missing."""
        if self._stream is not None:
            self.add(np.empty(0, np.float32), last=True)
        out = np.zeros(n, np.float32)
        at = 0
        for piece in self._out:
            piece = piece[: n - at]
            out[at : at + len(piece)] = piece
            at += len(piece)
        self._out.clear()
        return out


# -- clips ---------------------------------------------------------------------------------------------------


def split(
    samples: Samples, settings: MediaSettings, name: str, start: float, notes: list[str]
) -> list[PreparedAudio]:
    """Cuts at quiet places. `start`: the second of the source at which the samples begin."""
    step, rate = settings.samples_per_token, settings.sampling_rate
    cuts = [0, *(step * frame for frame in _cuts(samples, settings)), len(samples)]
    clips = [PreparedAudio(samples[a:b], -(-(b - a) // step), start + a / rate) for a, b in pairwise(cuts)]
    if len(clips) > 1:
        at = ", ".join(f"{clip.start:.1f} s" for clip in clips[1:])
        notes.append(
            f"{name} of {len(samples) / rate:.1f} s was split at quiet places into {len(clips)} clips "
            f"(at {at}), because the model hears {settings.audio_max_tokens * step / rate:g} s at once"
        )
    return clips


def _cuts(samples: Samples, settings: MediaSettings) -> list[int]:
    """The frames at which the second and later clips begin."""
    step, most = settings.samples_per_token, settings.audio_max_tokens
    n = -(-len(samples) // step)
    if n <= most:
        return []
    whole = len(samples) // step
    energy = np.zeros(n)
    frames = samples[: whole * step].reshape(whole, step)
    np.einsum("fs,fs->f", frames, frames, out=energy[:whole], dtype=np.float64)
    energy[whole:] = float(np.dot(samples[whole * step :], samples[whole * step :]))
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    cuts = []
    first = 0
    while n - first > most:
        low = first + max(1, -(-2 * most // 3))
        high = min(first + most, n - max(1, most // 6))
        places = np.arange(min(low, high), high + 1)
        after, before = np.minimum(places + _EDGE_FRAMES, n), np.maximum(places - _EDGE_FRAMES, 0)
        loudness = sums[after] - sums[before]
        quietest = np.flatnonzero(loudness <= loudness.min() + 1e-9 * sums[-1])
        first = int(places[quietest[-1]])
        cuts.append(first)
    return cuts
