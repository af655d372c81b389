"""Metadata keys of the three images (text, media "clip", drafter), named and typed as llama.cpp does.

general.* from the model card and the folder name, <arch>.* from the config, clip.* for media, and
gemmule.media.*: what a processor needs beyond clip.* (token budgets, marker ids, frame lengths).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmule._convert.hf_config import Drafter, ModelConfig, TextConfig
from gemmule._convert.image import Kv
from gemmule._convert.jsonfile import read_object
from gemmule._convert.media_config import AudioTower, FrameEmbedder, PatchEmbedder, VisionTower
from gemmule._errors import FormatError

__all__ = ["Card", "drafter_kvs", "media_kvs", "read_card", "text_kvs"]

_CARD_LIMIT = 1 << 20
_SHA = re.compile(r"[0-9a-f]{40}")
_DUMMY_IMAGE_SIZE = 224  # readers want the key, the family has no fixed size


@dataclass(frozen=True)
class Card:
    """Who made the model: README front matter, generation defaults, and names taken from the folder."""

    name: str
    organization: str
    fields: dict[str, list[str]]  # front matter: every value as a list
    generation: dict[str, Any]

    def first(self, key: str) -> str:
        return next(iter(self.fields.get(key, [])), "")


def read_card(folder: Path) -> Card:
    """The card of a folder; none of its parts has to exist."""
    name, organization = folder.resolve().name, ""
    if _SHA.fullmatch(name) and folder.resolve().parent.name == "snapshots":
        # Hub cache: models--<organization>--<name>/snapshots/<commit>
        parts = folder.resolve().parent.parent.name.split("--")
        if len(parts) == 3 and parts[0] == "models":
            _, organization, name = parts
    name, organization = (text.encode("utf-8", "replace").decode() for text in (name, organization))
    generation_path = folder / "generation_config.json"
    generation = read_object(generation_path, limit_mb=16) if generation_path.exists() else {}
    readme = folder / "README.md"
    fields: dict[str, list[str]] = {}
    if readme.is_file():
        with readme.open("rb") as file:
            fields = dict(_front_matter(file.read(_CARD_LIMIT).decode("utf-8", "replace")))
    return Card(name, organization, fields, generation)


def _front_matter(text: str) -> Iterator[tuple[str, list[str]]]:
    """Top-level scalars and lists of the block between two "---" lines; nested parts are passed over."""
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return
    key, values = "", list[str]()
    for line in lines[1:]:
        if line.rstrip() == "---":
            break
        found = re.fullmatch(r"([A-Za-z_][\w-]*):\s*(.*?)\s*", line)
        if found:
            if key and values:
                yield key, values
            key, value = found[1], found[2]
            if value.startswith("[") and value.endswith("]"):
                values = [_scalar(item) for item in value[1:-1].split(",") if item.strip()]
            else:
                values = [_scalar(value)] if value and value not in ("|", ">", "|-", ">-") else []
        elif item := re.fullmatch(r"\s*-\s+([^:]*|https?://.*)", line):
            values.append(_scalar(item[1]))
    if key and values:
        yield key, values


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return re.sub(r"\s+#.*", "", text)


def _general(architecture: str, kind: str, card: Card, size_label: str) -> Iterator[Kv]:
    yield Kv("general.architecture", "string", architecture)
    yield Kv("general.type", "string", kind)
    yield from _sampling(card)
    yield Kv("general.name", "string", card.first("model_name") or card.name)
    if card.organization:
        yield Kv("general.organization", "string", card.organization)
    if size_label:
        yield Kv("general.size_label", "string", size_label)
    for key, label in (
        ("license", "license"),
        ("license_name", "license.name"),
        ("license_link", "license.link"),
    ):
        if card.fields.get(key):
            yield Kv(f"general.{label}", "string", ",".join(card.fields[key]))
    bases = [base for key in ("base_model", "base_models") for base in card.fields.get(key, [])]
    if bases:
        yield Kv("general.base_model.count", "u32", len(bases))
        for i, base in enumerate(bases):
            yield from _base_model(f"general.base_model.{i}", base)
    tags = [tag for key in ("tags", "pipeline_tag") for tag in card.fields.get(key, [])]
    if tags:
        yield Kv("general.tags", "array[string]", tags)
    languages = [one for key in ("languages", "language") for one in card.fields.get(key, [])]
    if languages:
        yield Kv("general.languages", "array[string]", languages)


def _base_model(key: str, base: str) -> Iterator[Kv]:
    organization, _, name = base.removeprefix("https://huggingface.co/").rpartition("/")
    yield Kv(f"{key}.name", "string", name)
    if organization and "://" not in organization:
        yield Kv(f"{key}.organization", "string", organization)
        yield Kv(f"{key}.repo_url", "string", f"https://huggingface.co/{organization}/{name}")


# (key of generation_config.json, key of the file, type)
_SAMPLING = (
    ("top_k", "top_k", "i32"),
    ("top_p", "top_p", "f32"),
    ("min_p", "min_p", "f32"),
    ("temperature", "temp", "f32"),
    ("repetition_penalty", "penalty_repeat", "f32"),
)


def _sampling(card: Card) -> Iterator[Kv]:
    for source, key, kind in _SAMPLING:
        value = card.generation.get(source)
        if value is None:
            continue
        if type(value) not in (int, float) or not 0 <= value < 1e9 or (kind == "i32" and value != int(value)):
            raise FormatError(
                f"generation_config.json of {card.name}: {source} is {str(value)[:60]}, not a number."
            )
        yield Kv(f"general.sampling.{key}", kind, int(value) if kind == "i32" else float(value))


def size_label(n_weights: int, n_experts: int = 0, n_expert_weights: int = 0) -> str:
    """A name for the size as llama.cpp writes it: "12B", or "128x2.6B" for a mixture of experts."""
    if n_experts:
        each = n_weights - n_expert_weights + n_expert_weights // n_experts
        return f"{n_experts}x{_rounded(each, 2)}"
    return _rounded(n_weights, 2)


def _rounded(n: float, min_digits: int) -> str:
    scale = next((s for s in (1e12, 1e9, 1e6, 1e3) if n >= s), 1e3)
    value = n / scale
    text = f"{round(value, max(0, min_digits - len(str(round(value)).lstrip('0'))))}"
    return text.removesuffix(".0") + {1e12: "T", 1e9: "B", 1e6: "M", 1e3: "K"}[scale]


# -- text and drafter ---


def text_kvs(config: ModelConfig, card: Card, label: str) -> list[Kv]:
    """The keys of the text image, without the vocabulary."""
    arch = config.text.family
    return [*_general(arch, "model", card, label), *_stack(arch, config.text)]


def drafter_kvs(config: ModelConfig, card: Card, label: str) -> list[Kv]:
    """The keys of the drafter image, without the vocabulary."""
    arch, drafter = "gemma4-assistant", config.drafter or Drafter(0)
    return [
        *_general(arch, "model", card, label),
        *_stack(arch, config.text),
        Kv(f"{arch}.embedding_length_out", "u32", drafter.d_backbone),
        Kv(f"{arch}.nextn_predict_layers", "u32", config.text.n_layers),
    ]


def _one_or_all(values: Sequence[int]) -> tuple[str, Any]:
    """(type, value): one number where all layers agree."""
    if len(set(values)) == 1:
        return "u32", values[0]
    return "array[i32]", np.array(values, np.int32)


def _stack(arch: str, text: TextConfig) -> Iterator[Kv]:
    def key(name: str, kind: str, value: Any) -> Kv:
        return Kv(f"{arch}.{name}", kind, value)

    yield key("block_count", "u32", text.n_layers)
    yield key("context_length", "u32", text.n_ctx)
    yield key("embedding_length", "u32", text.d_model)
    yield key("feed_forward_length", *_one_or_all([layer.d_ff for layer in text.layers]))
    yield key("attention.head_count", "u32", text.n_heads)
    yield key("attention.head_count_kv", *_one_or_all([layer.n_kv_heads for layer in text.layers]))
    if text.rope_divisor != 1.0:
        yield key("rope.scaling.type", "string", "linear")
        yield key("rope.scaling.factor", "f32", text.rope_divisor)
    yield key("rope.freq_base", "f32", text.theta_global)
    yield key("rope.freq_base_swa", "f32", text.theta_sliding)
    yield key("attention.layer_norm_rms_epsilon", "f32", text.rms_eps)
    if text.softcap is not None:
        yield key("final_logit_softcapping", "f32", text.softcap)
    yield key("attention.sliding_window", "u32", text.window)
    if text.family == "gemma3":
        yield key("attention.key_length", "u32", text.layers[0].head_dim)
        yield key("attention.value_length", "u32", text.layers[0].head_dim)
        return
    yield key("attention.sliding_window_pattern", "array[bool]", [layer.sliding for layer in text.layers])
    yield key("attention.shared_kv_layers", "u32", text.n_shared)
    last, sliding = text.layers[-1], text.of_kind(sliding=True) or text.layers[-1]
    for name, size in (("", last.head_dim), ("_swa", sliding.head_dim)):
        yield key(f"attention.key_length{name}", "u32", size)
        yield key(f"attention.value_length{name}", "u32", size)
        yield key(f"rope.dimension_count{name}", "u32", size)
    yield key("embedding_length_per_layer_input", "u32", text.d_ple)
    if text.n_experts:
        yield key("expert_count", "u32", text.n_experts)
        yield key("expert_used_count", "u32", text.n_experts_used)
        yield key("expert_feed_forward_length", "u32", text.d_expert)


# -- media ---


@dataclass(frozen=True)
class _Processor:
    """processor_config.json over preprocessor_config.json, and its sub-processors."""

    folder: Path
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        return value if isinstance(value, dict) else {}

    def number(self, key: str, default: int, *parts: str) -> int:
        """A count by its key, from the sub-processors named first, then from the top level."""
        for table in (*(self.part(name) for name in parts), self.values):
            value = table.get(key)
            if value is None:
                continue
            if type(value) not in (int, float) or value != int(value) or not 0 < value < 1 << 31:
                raise FormatError(f"{self.folder}: {key} of the processor is {str(value)[:60]}, not a count.")
            return int(value)
        return default

    def triple(self, key: str, default: float) -> list[float]:
        for table in (self.part("image_processor"), self.values):
            value = table.get(key)
            if value is None:
                continue
            numbers = value if isinstance(value, list) else []
            if len(numbers) != 3 or not all(type(v) in (int, float) and abs(v) < 1e6 for v in numbers):
                raise FormatError(
                    f"{self.folder}: {key} of the processor is {str(value)[:60]}, not three numbers."
                )
            return [float(v) for v in numbers]
        return [default] * 3


def _read_processor(folder: Path) -> _Processor:
    values: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            values |= read_object(folder / name, limit_mb=16)
    return _Processor(folder, values)


def media_kvs(
    config: ModelConfig, folder: Path, card: Card, label: str, *, vision: bool, audio: bool
) -> list[Kv]:
    """The keys of the mmproj image for the parts that it holds."""
    processor = _read_processor(folder)
    kvs = [kv for kv in _general("clip", "mmproj", card, label) if not kv.key.startswith("general.sampling.")]
    d_model = config.text.d_model
    if vision and config.vision is not None:
        kvs += _vision(config.vision, processor, d_model)
    if audio and config.audio is not None:
        kvs += _audio(config.audio, d_model)
    kvs += _media(config, processor, vision=vision, audio=audio)
    return kvs


def _vision(vision: PatchEmbedder | VisionTower, processor: _Processor, d_model: int) -> Iterator[Kv]:
    def key(name: str, kind: str, value: Any) -> Kv:
        return Kv(f"clip.vision.{name}", kind, value)

    is_tower = isinstance(vision, VisionTower)
    yield Kv("clip.has_vision_encoder", "bool", True)
    yield key("projector_type", "string", "gemma4v" if is_tower else "gemma4uv")
    yield key("projection_dim", "u32", d_model)
    yield key("image_size", "u32", _DUMMY_IMAGE_SIZE)
    yield key("patch_size", "u32", vision.patch)
    yield key("embedding_length", "u32", vision.width)
    yield key("feed_forward_length", "u32", vision.d_ff if isinstance(vision, VisionTower) else 0)
    yield key("block_count", "u32", vision.n_layers if isinstance(vision, VisionTower) else 0)
    yield key("attention.head_count", "u32", vision.n_heads if isinstance(vision, VisionTower) else 0)
    yield key("image_mean", "array[f32]", np.array(processor.triple("image_mean", 0.0), np.float32))
    yield key("image_std", "array[f32]", np.array(processor.triple("image_std", 1.0), np.float32))
    yield key("attention.layer_norm_epsilon", "f32", 1e-6)
    if vision.pool != 3:
        yield key("projector.scale_factor", "u32", vision.pool)


def _audio(audio: FrameEmbedder | AudioTower, d_model: int) -> Iterator[Kv]:
    def key(name: str, kind: str, value: Any) -> Kv:
        return Kv(f"clip.audio.{name}", kind, value)

    is_tower = isinstance(audio, AudioTower)
    yield Kv("clip.has_audio_encoder", "bool", True)
    yield key("projector_type", "string", "gemma4a" if is_tower else "gemma4ua")
    yield key("projection_dim", "u32", d_model)
    yield key("embedding_length", "u32", audio.width)
    yield key("feed_forward_length", "u32", 4 * audio.width if isinstance(audio, AudioTower) else 0)
    yield key("block_count", "u32", audio.n_layers if isinstance(audio, AudioTower) else 0)
    yield key("attention.head_count", "u32", audio.n_heads if isinstance(audio, AudioTower) else 0)
    yield key("num_mel_bins", "u32", 128)
    yield key("attention.layer_norm_epsilon", "f32", 1e-6)


def _media(config: ModelConfig, processor: _Processor, *, vision: bool, audio: bool) -> Iterator[Kv]:
    """What a processor needs beyond clip.*: budgets in tokens, times, marker ids."""

    def key(name: str, kind: str, value: Any) -> Kv:
        return Kv(f"gemmule.media.{name}", kind, value)

    if vision and config.vision is not None:
        tokens = processor.number("max_soft_tokens", 280, "image_processor")
        yield key("image.max_tokens", "u32", tokens)
        yield key("image.default_tokens", "u32", processor.number("image_seq_length", tokens))
        yield key("image.patch_size", "u32", config.vision.patch)
        yield key("image.pool_size", "u32", config.vision.pool)
        yield key("image.n_positions", "u32", config.vision.n_positions)
        yield key("image.attention", "string", config.text.image_attention)
        yield key("video.n_frames", "u32", processor.number("num_frames", 32, "video_processor"))
        video = processor.part("video_processor").get("max_soft_tokens")
        yield key("video.max_tokens", "u32", video if type(video) is int and video > 0 else 70)
    if audio and config.audio is not None:
        yield key("audio.sampling_rate", "u32", processor.number("sampling_rate", 16000, "feature_extractor"))
        yield key("audio.ms_per_token", "u32", processor.number("audio_ms_per_token", 40))
        yield key("audio.max_tokens", "u32", processor.number("audio_seq_length", 750))
        if isinstance(config.audio, FrameEmbedder):
            yield key("audio.samples_per_token", "u32", config.audio.width)
    for name, number in config.token_ids.items():
        if vision or not name.startswith(("image", "video")):
            yield key(f"token.{name}", "u32", number)
