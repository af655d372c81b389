"""What the media processor of a model file needs: token budgets, frame lengths, marker ids.

gemmule's own files carry gemmule.media.* keys; a plain mmproj file has only clip.*, and the values of Gemma 4
(transformers' processor classes) stand in. Marker ids fall back to the names in the text vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmule._errors import FormatError

__all__ = ["MediaSettings"]

_BUDGETS = (70, 140, 280, 560, 1120)
# attribute -> (name of the gemmule.media.token.* key, string in the vocabulary)
_MARKERS = {
    "image": ("image", "<|image|>"),
    "boi": ("image_begin", "<|image>"),
    "eoi": ("image_end", "<image|>"),
    "audio": ("audio", "<|audio|>"),
    "boa": ("audio_begin", "<|audio>"),
    "eoa": ("audio_end", "<audio|>"),
    "video": ("video", "<|video|>"),
}


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """The numbers of Gemma 4 12B unless a file says otherwise."""

    image_tokens: int = 280
    image_budgets: tuple[int, ...] = _BUDGETS
    patch: int = 16
    pool: int = 3
    n_positions: int = 1120
    video_frames: int = 32
    video_tokens: int = 70
    sampling_rate: int = 16_000
    samples_per_token: int = 640
    audio_max_tokens: int = 750
    has_image: bool = True
    has_audio: bool = True
    image: int | None = None
    boi: int | None = None
    eoi: int | None = None
    audio: int | None = None
    boa: int | None = None
    eoa: int | None = None
    video: int | None = None

    @property
    def tile(self) -> int:
        """Pixels on the side of the square that becomes one soft token."""
        return self.patch * self.pool

    @classmethod
    def from_file(cls, get: Callable[[str], Any], token_id: Callable[[str], int | None]) -> "MediaSettings":
        """Reads the keys of an mmproj image. `get` gives None for a missing key."""

        def number(key: str, default: int, high: int) -> int:
            value = get(f"gemmule.media.{key}")
            if value is None:
                return default
            if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value <= high:
                raise FormatError(
                    f"gemmule.media.{key} is {str(value)[:40]}, not a number from 1 to {high}; convert the "
                    "model again"
                )
            return int(value)

        def marker(key: str, text: str) -> int | None:
            value = get(f"gemmule.media.token.{key}")
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                return token_id(text)
            return int(value)

        image_tokens = number("image.max_tokens", 280, 1 << 14)
        video_tokens = number("video.max_tokens", 70, 1 << 14)
        rate = number("audio.sampling_rate", 16_000, 384_000)
        # A conformer's files name no samples for each token, only its time.
        per_token = rate * number("audio.ms_per_token", 40, 10_000) // 1000
        return cls(
            image_tokens=image_tokens,
            image_budgets=tuple(sorted({*_BUDGETS, image_tokens, video_tokens})),
            patch=number("image.patch_size", 16, 256),
            pool=number("image.pool_size", 3, 16),
            n_positions=number("image.n_positions", 1120, 1 << 20),
            video_frames=number("video.n_frames", 32, 1024),
            video_tokens=video_tokens,
            sampling_rate=rate,
            samples_per_token=number("audio.samples_per_token", max(1, per_token), 1 << 20),
            audio_max_tokens=number("audio.max_tokens", 750, 1 << 16),
            has_image=bool(get("clip.has_vision_encoder")),
            has_audio=bool(get("clip.has_audio_encoder")),
            **{name: marker(key, text) for name, (key, text) in _MARKERS.items()},
        )
