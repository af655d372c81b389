"""Videos as the embedder takes them: pictures with mm:ss stamps, and the sound; through PyAV ([video] extra).

Pictures: n = min(frames, N) of N source frames, number floor(i N / n), stamp = number / average rate (24 if
unknown), each stretched to whole tiles like an image: as transformers. A first pass over the packets counts N
and finds the key frames without decoding; the second decodes only from the last key frame before each chosen
picture, and only chosen ones are kept, already small. The sound goes the way of audio files.

Only bytes or an opened file reach FFmpeg, with the demuxer named by the content: no URL, playlist or second
file can be opened.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmule._cancel import check_cancelled
from gemmule._errors import MediaError, MissingExtraError
from gemmule._media import limits
from gemmule._media.audio import Clip, PreparedAudio, SampleStream, check_format, collect, split
from gemmule._media.image import PreparedImage, check_budget, resize, target_size, tiled
from gemmule._media.parts import Audio, Video
from gemmule._media.settings import MediaSettings
from gemmule._media.sniff import container_of, read_head

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["PreparedVideo", "frame_indices", "open_sound", "prepare_video", "stamp"]

_FIX = "save it again as MP4 or WebM"
_SOUND_FIX = "save it again as WAV, FLAC or MP3"
_UNKNOWN_RATE = 24.0
_MAX_PACKETS = 4_000_000
_MAX_THREADS = 4  # each decoder thread holds frames


@dataclass(frozen=True, eq=False)
class PreparedVideo:
    """Pictures with their time stamps, the clips of the sound, and notes on what was done."""

    frames: list[tuple[str, PreparedImage]]
    sound: list[PreparedAudio]
    notes: list[str]


def prepare_video(part: Video, settings: MediaSettings, tokens: int | None = None) -> PreparedVideo:
    """Decodes pictures and sound. A picture's budget is the part's own, else `tokens`, else the file's."""
    budget = check_budget(part.tokens or tokens or settings.video_tokens, settings, part.name)
    head = read_head(part)
    container = container_of(head)
    if container is None or container == "aac":
        raise MediaError(f"{part.name} is no video of a known format; {_FIX}")
    notes: list[str] = []
    with _container(part, container, "video", _FIX) as source:
        index = _indexed(source, part.name)
        has_sound = bool(source.streams.audio)
    frames = _frames(part, container, index, settings, budget, notes)
    sound: list[PreparedAudio] = []
    if part.sound and has_sound and settings.has_audio:
        with open_sound(part, container, Clip()) as stream:
            samples = collect(stream, Clip(), settings, f"the sound of {part.name}", notes, fix=_NO_SOUND)
        sound = split(samples, settings, f"the sound of {part.name}", 0.0, notes)
    return PreparedVideo(frames, sound, notes)


_NO_SOUND = "cut the video, or pass sound=False"


def frame_indices(n_source: int, n: int) -> list[int]:
    """Numbers of the n frames taken from n_source >= n."""
    return [i * n_source // n for i in range(n)]


def stamp(index: int, rate: float) -> str:
    """Minutes and seconds at which a frame is shown: 75 s is "01:15"."""
    seconds = index / rate
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


# -- container -----------------------------------------------------------------------------------------------


def _import_av(what: str) -> Any:
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"{what} needs one more package: pip install 'gemmule[video]'") from None
    return av


@contextmanager
def _container(part: Video | Audio, container: str, kind: str, fix: str) -> "Iterator[InputContainer]":
    av = _import_av("video" if isinstance(part, Video) else f"{part.name}")
    with (
        limits.open_source(part, limits.MAX_FILE_BYTES) as (file, size),
        limits.decoding(part.name, kind, fix),
        av.open(
            limits.BoundedReader(file, size),
            format=container,
            metadata_errors="ignore",
            buffer_size=1 << 16,
        ) as source,
    ):
        yield source


@contextmanager
def open_sound(part: Video | Audio, container: str, clip: Clip) -> Iterator[SampleStream]:
    """The first sound stream, from the clip's start on."""
    with _container(part, container, "audio", _SOUND_FIX) as source:
        if not source.streams.audio:
            raise MediaError(f"{part.name} holds no sound; give a file with a sound track")
        yield _sound(source, clip, part.name)


def _sound(source: "InputContainer", clip: Clip, name: str) -> SampleStream:
    frames = _sound_frames(source)
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{name} holds no sound (0 samples); record or export it again")
    rate, channels = check_format(first.sample_rate, first.layout.nb_channels, name)
    skip = round(clip.start * rate)
    if skip > limits.MAX_VIDEO_SECONDS * rate:
        raise MediaError(
            f"{name} is read for {limits.MAX_VIDEO_SECONDS / 3600:g} hours at most; give an earlier start"
        )

    def blocks() -> Iterator[NDArray[np.float32]]:
        left, frame = skip, first
        while frame is not None:
            check_cancelled()
            if frame.sample_rate != rate or frame.layout.nb_channels != channels:
                raise MediaError(f"{name} changes its rate or channels midway; {_SOUND_FIX}")
            block = _floats(frame, channels)
            if len(block) > left:
                yield block[left:]
            left = max(0, left - len(block))
            frame = next(frames, None)
        if left:
            raise MediaError(
                f"{name} lasts {(skip - left) / rate:.1f} s, so nothing starts at {clip.start:.1f} s; give "
                "an earlier start"
            )

    return SampleStream(rate, channels, None, blocks())


def _sound_frames(source: "InputContainer") -> Iterator[Any]:
    """Decoded frames; packets that cannot be decoded are passed over, as players do."""
    import av

    for packet in source.demux(source.streams.audio[0]):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _floats(frame: Any, channels: int) -> NDArray[np.float32]:
    """float32 [n, channels], full scale 1."""
    values = frame.to_ndarray()  # planar [channels, n], packed [1, n channels]
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind != "f":
        values = values / float(1 << (8 * values.dtype.itemsize - 1))
    return np.asarray(values, np.float32)


# -- pictures ------------------------------------------------------------------------------------------------


@dataclass
class _Index:
    """What header and packets say: times in display order (empty: unknown), those of key frames."""

    n: int
    rate: float
    announced: int
    times: list[int]
    keys: list[int]


def _indexed(source: "InputContainer", name: str) -> _Index:
    """Counts the frames by their packets; nothing is decoded."""
    stream = _stream(source, name)
    times: list[int | None] = []
    keys: list[int] = []
    is_vp8 = stream.codec_context.name == "vp8"
    for packet in source.demux(stream):
        check_cancelled()
        if packet.size == 0 or (is_vp8 and not bytes(packet)[0] & 0x10):  # the end; a frame never shown
            continue
        times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
        if len(times) > _MAX_PACKETS:
            raise MediaError(f"{name} has more than {_MAX_PACKETS} pictures; cut it")
    if not times:
        raise MediaError(f"{name} holds no pictures; {_FIX}")
    rate = float(stream.average_rate or stream.guessed_rate or _UNKNOWN_RATE)
    if len(times) / rate > limits.MAX_VIDEO_SECONDS:
        raise MediaError(
            f"{name} lasts {len(times) / rate / 3600:.1f} hours; at most "
            f"{limits.MAX_VIDEO_SECONDS / 3600:g} are read, so cut it"
        )
    known = [time for time in times if time is not None]
    is_clear = len(set(known)) == len(times)
    return _Index(len(times), rate, stream.frames, sorted(known) if is_clear else [], sorted(keys))


def _stream(source: "InputContainer", name: str) -> "VideoStream":
    if not source.streams.video:
        raise MediaError(f"{name} holds no pictures; pass it as audio")
    stream = source.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{name} has pictures of an unknown codec; {_FIX}")
    _check_frame(context.height, context.width, name)
    stream.thread_type = "AUTO"
    context.thread_count = min(_MAX_THREADS, os.cpu_count() or 1)
    return stream


def _frames(
    part: Video, container: str, index: _Index, settings: MediaSettings, budget: int, notes: list[str]
) -> list[tuple[str, PreparedImage]]:
    chosen = _Pictures(part.name, settings, budget)
    n = index.n
    numbers = frame_indices(n, _count(part, settings, n, index.rate, budget))
    if not (index.times and _decode_by_time(part, container, index, numbers, chosen)):
        found = _decode_in_order(part, container, numbers, chosen)
        if found < n and chosen.n_kept < len(numbers):
            # Fewer pictures come out than packets went in: choose among those that there are.
            if found == 0:
                raise MediaError(f"{part.name} holds no picture that can be decoded; {_FIX}")
            n = found
            numbers = frame_indices(n, _count(part, settings, n, index.rate, budget))
            _decode_in_order(part, container, numbers, chosen)
    if n < 0.95 * index.announced:
        notes.append(f"{part.name} ends after {n} pictures, although {index.announced} were expected")
    return [(stamp(number, index.rate), chosen.prepared(number)) for number in numbers]


def _count(part: Video, settings: MediaSettings, n_source: int, rate: float, budget: int) -> int:
    if part.fps is not None:
        n = max(1, int(n_source / rate * part.fps))
    else:
        n = part.frames or settings.video_frames
    n = min(n, n_source)
    if n > limits.MAX_FRAMES or n * budget > limits.MAX_FRAME_TOKENS:
        most = min(limits.MAX_FRAMES, limits.MAX_FRAME_TOKENS // budget)
        raise MediaError(f"{part.name} would give {n} pictures of {budget} tokens; take {most} at most")
    return n


def _check_frame(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1 or height * width > limits.MAX_PIXELS or max(height, width) > limits.MAX_SIDE:
        raise MediaError(
            f"{name} has pictures of {height} x {width} pixels; at most {limits.MAX_PIXELS / 1e6:.0f} "
            "million are read, so make them smaller"
        )


class _Pictures:
    """Keeps the chosen frames, each resized at once to the size that the first one got."""

    def __init__(self, name: str, settings: MediaSettings, budget: int) -> None:
        self._name = name
        self._settings = settings
        self._budget = budget
        self._kept: dict[int, PreparedImage] = {}
        self._target: tuple[int, int] | None = None
        self._work = 0

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()

    def has(self, number: int) -> bool:
        return number in self._kept

    def saw(self, frame: "VideoFrame") -> None:
        """Counts the work: a small file may hold hours of giant empty frames."""
        _check_frame(frame.height, frame.width, self._name)
        self._work += frame.height * frame.width
        if self._work > limits.MAX_DECODED_PIXELS:
            raise MediaError(f"{self._name} takes too long to decode; cut it or make its pictures smaller")

    def keep(self, number: int, frame: "VideoFrame") -> None:
        upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        pixels: NDArray[np.uint8] = np.ascontiguousarray(upright, np.uint8)
        height, width = pixels.shape[:2]
        settings = self._settings
        if self._target is None:
            self._target = target_size(height, width, self._budget, patch=settings.patch, pool=settings.pool)
        self._kept[number] = tiled(resize(pixels, *self._target), (height, width), settings, self._name)

    def prepared(self, number: int) -> PreparedImage:
        return self._kept[number]


def _decode_in_order(part: Video, container: str, numbers: list[int], out: _Pictures) -> int:
    """Decodes from the first frame to the last wanted one. Returns how many there are, as far as was seen."""
    out.clear()
    wanted, seen = set(numbers), 0
    with _container(part, container, "video", _FIX) as source:
        for frame in _decoded(source, _stream(source, part.name)):
            out.saw(frame)
            if seen in wanted:
                out.keep(seen, frame)
            seen += 1
            if seen > numbers[-1]:
                break
    return seen


def _decode_by_time(part: Video, container: str, index: _Index, numbers: list[int], out: _Pictures) -> bool:
    """Jumps to the last key frame before each wanted frame. False: a frame did not come where it should."""
    import av

    keys = np.array(index.keys, np.int64)
    with _container(part, container, "video", _FIX) as source:
        stream = _stream(source, part.name)
        frames = _decoded(source, stream)
        at = index.times[0] - 1  # time of the last decoded frame
        for number in numbers:
            time = index.times[number]
            before = int(np.searchsorted(keys, time, side="right")) - 1
            if before > 0 and keys[before] > at + 1:
                try:
                    source.seek(int(keys[before]), stream=stream, backward=True)
                except av.error.FFmpegError:
                    return False
                frames = _decoded(source, stream)
            for frame in frames:
                out.saw(frame)
                if frame.pts is None or frame.pts > time:
                    return False
                at = frame.pts
                if at == time:
                    out.keep(number, frame)
                    break
            else:
                return False
    return True


def _decoded(source: "InputContainer", stream: "VideoStream") -> "Iterator[VideoFrame]":
    """Frames in display order; packets that cannot be decoded are passed over, as players do."""
    import av

    for packet in source.demux(stream):
        check_cancelled()
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue
