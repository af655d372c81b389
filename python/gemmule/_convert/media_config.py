"""vision_config and audio_config of a Gemma 4 checkpoint as frozen, checked values.

The 12B has no encoders: one linear layer on pixel patches, one on raw frames of sound. E2B, E4B, 26B and 31B
have a vision transformer, the first two a conformer as well. Settings that readers of media files take for
granted are refused when they differ. Source: the configuration classes of transformers 5.
"""

import math
from dataclasses import dataclass

from gemmule._convert.config_section import ACTIVATION, Section, finish_rope

__all__ = [
    "AudioTower",
    "FrameEmbedder",
    "PatchEmbedder",
    "VisionTower",
    "audio_tower",
    "frame_embedder",
    "patch_embedder",
    "vision_tower",
]

_MAX_LAYERS = 1000


@dataclass(frozen=True)
class PatchEmbedder:
    """Vision without an encoder (12B): a linear layer on patches of patch * pool pixels."""

    width: int
    n_positions: int
    patch: int
    pool: int


@dataclass(frozen=True)
class FrameEmbedder:
    """Audio without an encoder (12B): a linear layer on raw frames of `width` samples."""

    width: int


@dataclass(frozen=True)
class VisionTower:
    """The vision transformer of E2B, E4B, 26B and 31B."""

    width: int
    d_ff: int
    n_layers: int
    n_heads: int
    patch: int
    pool: int
    n_positions: int
    clipped: bool
    standardized: bool
    rms_eps: float


@dataclass(frozen=True)
class AudioTower:
    """The audio conformer of E2B and E4B."""

    width: int
    n_layers: int
    n_heads: int
    channels: tuple[int, int]
    kernel: int
    clipped: bool
    d_out: int
    rms_eps: float


def patch_embedder(section: Section) -> PatchEmbedder:
    _media_eps(section)
    patch = section.count("patch_size", 16, high=4096)
    pool = section.count("pooling_kernel_size", 3, high=256)
    section.only(
        "model_patch_size", [patch * pool], f"it must be patch_size * pooling_kernel_size = {patch * pool}"
    )
    section.get("output_proj_dims")
    width = section.count("mm_embed_dim", 3840)
    return PatchEmbedder(width, section.count("mm_posemb_size", 1120), patch, pool)


def frame_embedder(section: Section) -> FrameEmbedder:
    _media_eps(section)
    width = section.count("audio_embed_dim", 640)
    for key in ("hidden_size", "output_proj_dims", "audio_samples_per_token"):
        section.only(key, [width], f"it must equal audio_embed_dim {width}")
    return FrameEmbedder(width)


def _media_eps(section: Section) -> float:
    value = section.number("rms_norm_eps", 1e-6, low=1e-12, high=0.1)
    if not math.isclose(value, 1e-6):
        raise section.refuse("rms_norm_eps", "the readers of media files assume 1e-6")
    return value


def vision_tower(section: Section) -> VisionTower:
    section.only("hidden_activation", [ACTIVATION], f"only {ACTIVATION} is supported")
    section.only("attention_bias", [False], "biases in the attention are not supported")
    section.get("max_position_embeddings")
    width = section.count("hidden_size", 768)
    n_heads = section.count("num_attention_heads", 12, high=4096)
    if section.count("num_key_value_heads", n_heads, high=4096) != n_heads:
        raise section.refuse("num_key_value_heads", f"it must equal num_attention_heads {n_heads}")
    if section.count("head_dim", width // n_heads, high=65536) * n_heads != width:
        raise section.refuse("head_dim", f"head_dim * {n_heads} heads must be the width {width}")
    rope = section.part("rope_parameters")
    if rope is not None:
        rope.only("rope_type", ["axial", "default"], "only the axial rotation is supported")
        rope.only("rope_theta", [100.0], "the readers of media files assume 100")
        finish_rope(rope)
    return VisionTower(
        width=width,
        d_ff=section.count("intermediate_size", 3072),
        n_layers=section.count("num_hidden_layers", 16, high=_MAX_LAYERS),
        n_heads=n_heads,
        patch=section.count("patch_size", 16, high=4096),
        pool=section.count("pooling_kernel_size", 3, high=256),
        n_positions=section.count("position_embedding_size", 10240),
        clipped=section.flag("use_clipped_linears", False),
        standardized=section.flag("standardize", False),
        rms_eps=_media_eps(section),
    )


def audio_tower(section: Section) -> AudioTower:
    section.only("hidden_act", ["silu"], "only silu is supported")
    for key, value in (
        ("residual_weight", 0.5),
        ("attention_chunk_size", 12),
        ("attention_context_left", 13),
        ("attention_context_right", 0),
        ("attention_logit_cap", 50.0),
    ):
        section.only(key, [value], f"the readers of media files assume {value}")
    channels = section.get("subsampling_conv_channels", [128, 32])
    if not (
        isinstance(channels, list) and len(channels) == 2 and all(type(c) is int and c > 0 for c in channels)
    ):
        raise section.bad("subsampling_conv_channels", "two counts")
    return AudioTower(
        width=section.count("hidden_size", 1024),
        n_layers=section.count("num_hidden_layers", 12, high=_MAX_LAYERS),
        n_heads=section.count("num_attention_heads", 8, high=4096),
        channels=(channels[0], channels[1]),
        kernel=section.count("conv_kernel_size", 5, high=1024),
        clipped=section.flag("use_clipped_linears", True),
        d_out=section.count("output_proj_dims", 1536),
        rms_eps=_media_eps(section),
    )
