"""config.json of the Gemma 3 and Gemma 4 families as frozen, checked values.

Both dialects of the per-layer sizes are read: `global_head_dim` / `num_global_key_value_heads`, and the newer
`per_layer_config` ({layer: {head_dim, num_key_value_heads}}). Whatever a GGUF file or the engines behind it
cannot express is refused by key; keys known to have no effect on the numbers are in one list; a key nobody
knows is refused inside the text config (when it is set) and reported elsewhere.
Source of names and defaults: the configuration classes of transformers 5.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemmule._convert.config_section import ACTIVATION, Section, finish_rope, short
from gemmule._convert.jsonfile import read_object
from gemmule._convert.media_config import (
    AudioTower,
    FrameEmbedder,
    PatchEmbedder,
    VisionTower,
    audio_tower,
    frame_embedder,
    patch_embedder,
    vision_tower,
)
from gemmule._errors import FormatError, UnsupportedError

__all__ = [
    "Drafter",
    "Layer",
    "ModelConfig",
    "TextConfig",
    "parse_config",
    "read_config",
]

# Token budgets that multimodal configs repeat; the processor's own config is the one that counts.
_BUDGETS = (
    "audio_ms_per_token",
    "audio_soft_tokens_per_image",
    "mm_tokens_per_image",
    "vision_soft_tokens_per_image",
    "vision_soft_tokens_per_video_frame",
)
_QUANTIZED = ("quantization_config", "compression_config", "hf_quant_config")
_MAX_LAYERS = 1000
_MAX_VOCAB = 1 << 22


@dataclass(frozen=True)
class Layer:
    """One decoder layer: what differs between layers."""

    sliding: bool
    head_dim: int
    n_kv_heads: int
    d_ff: int
    owns_kv: bool  # False: reads the keys and values of an earlier layer
    has_v: bool  # False: values are the keys


@dataclass(frozen=True)
class TextConfig:
    """The text stack. `family` is "gemma3" or "gemma4", also the architecture of the GGUF."""

    family: str
    n_vocab: int
    d_model: int
    d_ff: int
    n_heads: int
    window: int
    n_ctx: int
    rms_eps: float
    theta_sliding: float
    theta_global: float
    rotary_fraction: float  # of the global layers' head dim; 1 in Gemma 3
    rope_divisor: float  # positions of global layers are divided by it (Gemma 3 from 4B up)
    softcap: float | None
    tied: bool
    n_shared: int  # layers at the end that own no keys and values
    double_wide: bool
    d_ple: int  # per-layer embedding, 0: none
    n_vocab_ple: int
    n_experts: int  # 0: dense
    n_experts_used: int
    d_expert: int
    image_attention: str  # "bidirectional" or "causal" inside an image
    layers: tuple[Layer, ...]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def of_kind(self, *, sliding: bool) -> Layer | None:
        """The last layer of one kind, or None."""
        return next((layer for layer in reversed(self.layers) if layer.sliding == sliding), None)


@dataclass(frozen=True)
class Drafter:
    """What an assistant has beside its text stack."""

    d_backbone: int
    n_centroids: int = 0  # of the head's clusters; 0: plain head
    n_centroids_used: int = 0  # at a step


@dataclass(frozen=True)
class ModelConfig:
    """A whole config.json."""

    path: Path
    model_type: str
    text: TextConfig
    vision: PatchEmbedder | VisionTower | None
    audio: FrameEmbedder | AudioTower | None
    drafter: Drafter | None
    token_ids: dict[str, int]  # "image", "boi", ... as in the config
    raw: dict[str, Any] = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()

    @property
    def unified(self) -> bool:
        return self.model_type.startswith("gemma4_unified")


def read_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json."""
    path = folder / "config.json"
    return parse_config(read_object(path, limit_mb=16), path)


_TEXT_TYPES = {
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4",
}
_MODEL_TYPES = (
    *_TEXT_TYPES,
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "gemma4_assistant",
    "gemma4_unified_assistant",
)


def parse_config(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Check a config that is already parsed; `path` is for messages."""
    top = Section(path, "", raw)
    model_type = top.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise UnsupportedError(
            f"{path}: model_type is {short(model_type)}; Gemma 3 and Gemma 4 checkpoints are supported."
        )
    for key in _QUANTIZED:
        if top.get(key) is not None:
            raise top.refuse(key, "its weights are already quantized; convert the original checkpoint")
    _check_architecture(top)
    warnings: list[str] = []
    drafter = None
    vision: PatchEmbedder | VisionTower | None = None
    audio: FrameEmbedder | AudioTower | None = None
    if model_type in _TEXT_TYPES:
        text_section, family = top, _TEXT_TYPES[model_type]
    else:
        part = top.part("text_config")
        if part is None:
            raise FormatError(f"{path}: text_config is missing.")
        text_section = part
        inner = part.get("model_type", model_type + "_text")
        family = _TEXT_TYPES.get(inner, "") if isinstance(inner, str) else ""
        if not model_type.startswith(family or "-"):
            raise part.refuse("model_type", f"it does not belong into a {model_type} checkpoint")
        for key in _QUANTIZED:
            if part.get(key) is not None:
                raise part.refuse(key, "its weights are already quantized; convert the original checkpoint")
    is_drafter = model_type.endswith("assistant")
    unified = model_type.startswith("gemma4_unified")
    tied = _tied(top, text_section)
    read_text = _read_gemma3 if family == "gemma3" else _read_gemma4
    text = read_text(text_section, tied=tied, is_drafter=is_drafter, unified=unified)
    if is_drafter:
        drafter = _read_drafter(top, text.n_vocab)
        if not text.tied:
            raise top.refuse("tie_word_embeddings", "a drafter with a head of its own is not supported")
    elif model_type not in _TEXT_TYPES:
        vision, audio = _read_media(top, model_type, warnings)
    token_ids = _token_ids(top)
    top.used.update(_BUDGETS)
    if text_section is not top:
        warnings += text_section.unknown(strict=True)
    warnings += top.unknown(strict=text_section is top)
    return ModelConfig(path, model_type, text, vision, audio, drafter, token_ids, raw, tuple(warnings))


def _check_architecture(top: Section) -> None:
    names = top.get("architectures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise top.bad("architectures", "a list of names")
    if names and not names[0].endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise top.refuse(
            "architectures", "only generating models are supported, not classifiers or embedders"
        )


def _tied(top: Section, text: Section) -> bool:
    said = {
        section.flag("tie_word_embeddings", True)
        for section in (top, text)
        if section.get("tie_word_embeddings") is not None
    }
    if len(said) == 2:
        raise FormatError(f"{top.path}: tie_word_embeddings differs between the top level and text_config.")
    return said.pop() if said else True


# -- text ---


def _common(section: Section) -> dict[str, Any]:
    """The values both families have under the same key."""
    section.only("hidden_activation", [ACTIVATION], f"only {ACTIVATION} is supported")
    section.only("hidden_act", [ACTIVATION], f"only {ACTIVATION} is supported")
    section.only("attention_bias", [False], "biases in the attention are not supported")
    if section.get("attn_logit_softcapping") is not None:
        raise section.refuse("attn_logit_softcapping", "a cap on attention scores is not supported")
    softcap = section.get("final_logit_softcapping")
    return {
        "n_vocab": section.count("vocab_size", high=_MAX_VOCAB),
        "d_model": section.count("hidden_size"),
        "d_ff": section.count("intermediate_size"),
        "n_heads": section.count("num_attention_heads", high=4096),
        "window": section.count("sliding_window", high=1 << 24),
        "n_ctx": section.count("max_position_embeddings", 131072, high=1 << 30),
        "rms_eps": section.number("rms_norm_eps", 1e-6, low=1e-12, high=0.1),
        "softcap": None
        if softcap is None
        else section.number("final_logit_softcapping", 0.0, low=1e-3, high=1e6),
    }


def _layer_types(section: Section, n_layers: int, period: int) -> list[bool]:
    """True where a layer is sliding."""
    kinds = section.get("layer_types")
    if kinds is None:
        return [(i + 1) % period != 0 for i in range(n_layers)]
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise section.bad("layer_types", f"a list of {n_layers} names, one per layer")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise UnsupportedError(
                f"{section.label('layer_types')} holds {short(kind)}; "
                "only sliding_attention and full_attention are supported."
            )
    return [kind == "sliding_attention" for kind in kinds]


def _rope(section: Section, name: str) -> Section | None:
    """One entry of rope_parameters."""
    rope = section.part("rope_parameters")
    if rope is None:
        return None
    for key in rope.values:
        if key not in ("sliding_attention", "full_attention"):
            raise rope.refuse(key, "only sliding_attention and full_attention are known here")
    return rope.part(name)


def _theta(rope: Section | None, default: float) -> float:
    return default if rope is None else rope.number("rope_theta", default, low=1.0, high=1e12)


def _read_gemma4(section: Section, *, tied: bool, is_drafter: bool, unified: bool) -> TextConfig:
    common = _common(section)
    n_layers = section.count("num_hidden_layers", high=_MAX_LAYERS)
    sliding = _layer_types(section, n_layers, 6)
    sliding[-1] = False  # transformers forces it
    n_shared = _shared_layers(section, sliding, is_drafter=is_drafter)
    k_eq_v = section.flag("attention_k_eq_v", False)
    head_dims, kv_heads = _per_layer_sizes(section, sliding, k_eq_v)
    d_ff = common["d_ff"]
    double_wide = section.flag("use_double_wide_mlp", False)
    first_shared = n_layers - n_shared
    # Unified models have no such embeddings, whatever their config says.
    d_ple = section.count("hidden_size_per_layer_input", 0 if is_drafter or unified else 256, low=0)
    d_ple = 0 if unified else d_ple
    n_vocab_ple = section.count("vocab_size_per_layer_input", common["n_vocab"], low=0, high=_MAX_VOCAB)
    experts = _experts(section)
    if is_drafter and (d_ple or double_wide or experts[0]):
        raise FormatError(
            f"{section.path}: a drafter cannot have per-layer embeddings, wide layers or experts."
        )
    if d_ple and n_vocab_ple != common["n_vocab"]:
        raise section.refuse("vocab_size_per_layer_input", f"it must equal vocab_size {common['n_vocab']}")
    both = section.get("use_bidirectional_attention", "vision" if unified else None)
    if both not in (None, "vision"):
        raise section.refuse("use_bidirectional_attention", 'only null and "vision" are supported')
    theta_sliding, theta_global, fraction = _gemma4_rope(section)
    return TextConfig(
        family="gemma4",
        **common,
        theta_sliding=theta_sliding,
        theta_global=theta_global,
        rotary_fraction=fraction,
        rope_divisor=1.0,
        tied=tied,
        n_shared=n_shared,
        double_wide=double_wide,
        d_ple=d_ple,
        n_vocab_ple=n_vocab_ple if d_ple else 0,
        n_experts=experts[0],
        n_experts_used=experts[1],
        d_expert=experts[2],
        image_attention="bidirectional" if both == "vision" else "causal",
        layers=tuple(
            Layer(
                sliding=sliding[i],
                head_dim=head_dims[i],
                n_kv_heads=kv_heads[i],
                d_ff=d_ff * 2 if double_wide and i >= first_shared else d_ff,
                owns_kv=i < first_shared,
                has_v=sliding[i] or not k_eq_v,
            )
            for i in range(n_layers)
        ),
    )


def _shared_layers(section: Section, sliding: list[bool], *, is_drafter: bool) -> int:
    """How many layers at the end own no keys and values."""
    n = len(sliding)
    n_shared = section.count("num_kv_shared_layers", 0, low=0, high=n)
    if is_drafter:
        if n_shared not in (0, n):
            raise section.refuse("num_kv_shared_layers", "every layer of a drafter reads its target's keys")
        return n
    if set(sliding[n - n_shared :]) - set(sliding[: n - n_shared]):
        raise section.refuse("num_kv_shared_layers", "a shared layer has no earlier layer of its kind")
    return n_shared


def _gemma4_rope(section: Section) -> tuple[float, float, float]:
    """(theta sliding, theta global, rotating part of a global head)."""
    if section.get("rope_parameters") is None:
        return 1e4, 1e6, 0.25
    sliding, full = _rope(section, "sliding_attention"), _rope(section, "full_attention")
    if sliding is not None:
        sliding.only("rope_type", ["default"], "sliding layers need the rope type default")
        sliding.only("partial_rotary_factor", [1.0], "sliding layers rotate all dimensions")
    fraction = 1.0
    if full is not None:
        full.only("rope_type", ["proportional"], "full layers need the rope type proportional")
        fraction = full.number("partial_rotary_factor", 1.0, low=0.0, high=1.0)
        full.only("factor", [1.0], "a factor on the frequencies is not supported")
    thetas = _theta(sliding, 1e4), _theta(full, 1e6)
    for name, part in (("sliding_attention", sliding), ("full_attention", full)):
        if part is None:
            raise FormatError(f"{section.label('rope_parameters')}.{name} is missing.")
        finish_rope(part)
    return *thetas, fraction


def _per_layer_sizes(section: Section, sliding: list[bool], k_eq_v: bool) -> tuple[list[int], list[int]]:
    """(head dim, key/value heads) of every layer, from either dialect."""
    n = len(sliding)
    head_dim = section.count("head_dim", 256, high=65536)
    n_kv = section.count("num_key_value_heads", high=4096)
    global_dim = section.count("global_head_dim", 512, high=65536)
    global_kv = section.count("num_global_key_value_heads", n_kv, high=4096)
    layers = section.part("per_layer_config")
    dims, heads = [head_dim] * n, [n_kv] * n
    if layers is None:
        dims = [head_dim if s else global_dim for s in sliding]
        heads = [n_kv if s or not k_eq_v else global_kv for s in sliding]
    else:
        for key in layers.values:
            if not key.isdecimal() or int(key) >= n:
                raise FormatError(f"{layers.label(key[:40])}: there is no such layer, the model has {n}.")
            one = layers.part(key)
            if one is None:
                continue
            dims[int(key)] = one.count("head_dim", head_dim, high=65536)
            heads[int(key)] = one.count("num_key_value_heads", n_kv, high=4096)
            for other in one.values:
                if other not in one.used:
                    raise one.refuse(other, "only head_dim and num_key_value_heads may differ between layers")
    n_heads = section.count("num_attention_heads", high=4096)
    for kind, label in ((True, "sliding"), (False, "full")):
        for what, values in (("head_dim", dims), ("num_key_value_heads", heads)):
            if len({values[i] for i in range(n) if sliding[i] is kind}) > 1:
                raise FormatError(
                    f"{section.path}: {what} differs between {label} layers, which no GGUF can say."
                )
    for i in range(n):
        if n_heads % heads[i]:
            raise FormatError(
                f"{section.path}: {n_heads} query heads do not share {heads[i]} key heads (layer {i})."
            )
        if dims[i] % 2:
            raise FormatError(f"{section.path}: the head dim {dims[i]} of layer {i} is odd.")
    return dims, heads


def _experts(section: Section) -> tuple[int, int, int]:
    """(experts, experts used, width of one); zeros for a dense model."""
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if section.get("moe_intermediate_size") is None and section.get("expert_intermediate_size") is not None:
        keys = ("num_experts", "top_k_experts", "expert_intermediate_size")
    for key in ("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size"):
        section.get(key)
    if not section.flag("enable_moe_block", False):
        return 0, 0, 0
    n, used, width = (section.count(key) for key in keys)
    if used > n:
        raise section.bad("top_k_experts", f"at most num_experts {n}")
    return n, used, width


def _read_gemma3(section: Section, *, tied: bool, is_drafter: bool, unified: bool) -> TextConfig:
    del is_drafter, unified
    for key, value in (
        ("vocab_size", 262208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
        ("sliding_window", 4096),
    ):
        # Older multimodal configs leave out what equals the default of the configuration class.
        section.values.setdefault(key, value)
    common = _common(section)
    n_layers = section.count("num_hidden_layers", high=_MAX_LAYERS)
    n_kv = section.count("num_key_value_heads", 4, high=4096)
    head_dim = section.count("head_dim", 256, high=65536)
    if common["n_heads"] % n_kv or head_dim % 2:
        raise FormatError(
            f"{section.path}: {common['n_heads']} query heads of {head_dim} do not share {n_kv} key heads."
        )
    period = section.count("sliding_window_pattern", 6)
    section.get("_sliding_window_pattern")
    sliding = _layer_types(section, n_layers, period)
    if sliding != [i % 6 != 5 for i in range(n_layers)]:
        key = "layer_types" if section.get("layer_types") else "sliding_window_pattern"
        raise section.refuse(key, "Gemma 3 files need every sixth layer to be the full one")
    if section.get("use_bidirectional_attention"):
        raise section.refuse("use_bidirectional_attention", "embedding models are not supported")
    _check_query_scale(section, n_layers, head_dim, common)
    theta_sliding, theta_global, divisor = _gemma3_rope(section)
    layer_count = range(n_layers)
    return TextConfig(
        family="gemma3",
        **common,
        theta_sliding=theta_sliding,
        theta_global=theta_global,
        rotary_fraction=1.0,
        rope_divisor=divisor,
        tied=tied,
        n_shared=0,
        double_wide=False,
        d_ple=0,
        n_vocab_ple=0,
        n_experts=0,
        n_experts_used=0,
        d_expert=0,
        image_attention="bidirectional",
        layers=tuple(Layer(sliding[i], head_dim, n_kv, common["d_ff"], True, True) for i in layer_count),
    )


def _check_query_scale(section: Section, n_layers: int, head_dim: int, common: dict[str, Any]) -> None:
    """The engines derive the attention scale from the sizes: head dim, or width / heads in the 27B."""
    expected = common["d_model"] // common["n_heads"] if n_layers == 62 else head_dim
    value = section.number("query_pre_attn_scalar", 256, low=1, high=65536)
    if value != expected:
        raise section.refuse(
            "query_pre_attn_scalar", f"this shape needs {expected}, the file has no key for it"
        )


def _gemma3_rope(section: Section) -> tuple[float, float, float]:
    """(theta sliding, theta global, divisor of global positions) from either dialect."""
    theta_sliding = section.number("rope_local_base_freq", 1e4, low=1.0, high=1e12)
    theta_global = section.number("rope_theta", 1e6, low=1.0, high=1e12)
    scaling = section.part("rope_scaling")
    new_sliding, new_global = _rope(section, "sliding_attention"), _rope(section, "full_attention")
    divisor = 1.0
    if new_sliding is not None:
        new_sliding.only("rope_type", ["default"], "sliding layers need the rope type default")
        theta_sliding = _theta(new_sliding, theta_sliding)
    if new_global is not None:
        theta_global = _theta(new_global, theta_global)
    for part in (scaling, new_global):
        if part is None:
            continue
        kind = part.get("rope_type", part.get("type", "default"))
        if kind not in ("default", "linear"):
            raise part.refuse("rope_type", "only default and linear are supported")
        part.get("type")
        if kind == "linear":
            divisor = part.number("factor", 1.0, low=1.0, high=1e6)
    for part in (scaling, new_sliding, new_global):
        if part is not None:
            finish_rope(part)
    return theta_sliding, theta_global, divisor


# -- media and drafter ---


def _read_media(
    top: Section, model_type: str, warnings: list[str]
) -> tuple[PatchEmbedder | VisionTower | None, FrameEmbedder | AudioTower | None]:
    vision, audio = top.part("vision_config"), top.part("audio_config")
    if model_type == "gemma3":
        return None, None
    seen_vision: PatchEmbedder | VisionTower | None = None
    seen_audio: FrameEmbedder | AudioTower | None = None
    if vision is not None:
        seen_vision = patch_embedder(vision) if model_type == "gemma4_unified" else vision_tower(vision)
        warnings += vision.unknown(strict=False)
    if audio is not None:
        seen_audio = frame_embedder(audio) if model_type == "gemma4_unified" else audio_tower(audio)
        warnings += audio.unknown(strict=False)
    return seen_vision, seen_audio


def _read_drafter(top: Section, n_vocab: int) -> Drafter:
    ordered = top.flag("use_ordered_embeddings", False)
    n_centroids = top.count("num_centroids", 2048)
    n_used = top.count("centroid_intermediate_top_k", 32)
    if not ordered:
        return Drafter(top.count("backbone_hidden_size"))
    if n_used > n_centroids:
        raise top.bad("centroid_intermediate_top_k", f"at most num_centroids {n_centroids}")
    if n_vocab % n_centroids:
        raise top.bad("num_centroids", f"a divisor of vocab_size {n_vocab}")
    return Drafter(top.count("backbone_hidden_size"), n_centroids, n_used)


_TOKEN_KEYS = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id",),
    "audio": ("audio_token_id",),
    "image_begin": ("boi_token_id", "boi_token_index"),
    "image_end": ("eoi_token_id", "eoi_token_index"),
    "audio_begin": ("boa_token_id", "boa_token_index"),
    "audio_end": ("eoa_token_id", "eoa_token_index"),
}


def _token_ids(top: Section) -> dict[str, int]:
    """Ids of the media markers the config names."""
    ids: dict[str, int] = {}
    for name, keys in _TOKEN_KEYS.items():
        said = {top.count(key, low=0, high=_MAX_VOCAB) for key in keys if top.get(key) is not None}
        if len(said) > 1:
            raise FormatError(f"{top.path}: {keys[0]} and {keys[1]} name different tokens.")
        if said:
            ids[name] = said.pop()
    return ids
