"""Encoded pictures, sounds and videos for the media tests, made on the spot and the same on every run."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["encoded", "noise", "pattern", "sound_bytes", "tone", "video_bytes"]


def pattern(height: int, width: int) -> NDArray[np.uint8]:
    """Colours without a period: uint8 [height, width, 3]."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((y * 37 + x * 101 + c * 53 + (x * y) % 251 + (x // 7) * (y // 5)) % 256).astype(np.uint8)


def encoded(pixels: Any, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture file with Pillow's options for its format."""
    from PIL import Image

    out = BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (picture if picture.mode == mode else picture.convert(mode)).save(out, kind, **options)
    return out.getvalue()


def noise(n: int, channels: int = 1, level: float = 0.3) -> NDArray[np.float32]:
    """float32 [n, channels], the same on every run."""
    values = np.random.default_rng(n).uniform(-level, level, (n, channels))
    return values.astype(np.float32)


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.float32]:
    """A sine: float32 [n]."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_bytes(samples: Any, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    import soundfile

    out = BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def video_bytes(
    container: str = "mp4",
    codec: str = "mpeg4",
    *,
    n: int = 40,
    rate: int = 10,
    size: tuple[int, int] = (48, 80),
    sound: str | None = "aac",
    sound_rate: int = 48_000,
    gop: int = 12,
) -> bytes:
    """A video whose pictures all differ; its sound is a tone as long as the pictures."""
    import av

    out = BytesIO()
    height, width = size
    with av.open(out, "w", format=container) as file:
        pictures = file.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        pictures.codec_context.gop_size = gop
        voice = file.add_stream(sound, rate=sound_rate) if sound else None
        if voice is not None:
            voice.layout = "mono"
        for i in range(n):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:, :, 0] = i * 5 % 256
            pixels[: height // 2, : width // 2, 1] = 255
            pixels[:, (i * width // n) :, 2] = 200
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            file.mux(pictures.encode(frame))
        file.mux(pictures.encode())
        if voice is not None:
            samples = tone(n / rate, sound_rate)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = sound_rate, 0
            context = voice.codec_context
            resampler = av.AudioResampler(
                format=context.format, layout="mono", rate=sound_rate, frame_size=context.frame_size or 1024
            )
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(voice.encode(piece))
            file.mux(voice.encode())
    return out.getvalue()
