"""Tiny random Hugging Face folders of every Gemma 4 and Gemma 3 variant, written with numpy alone.

Names, shapes and configs follow transformers' modules (tools/make_tiny_checkpoint.py builds the same models
with transformers and gets the same bytes). Every number depends on seed and tensor name only. No two
important sizes are equal; with `wide` every row is a multiple of 256, as the K block types need.
A safetensors file is u64 header length, JSON {name: {dtype, shape, data_offsets}}, then the raw numbers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "VARIANTS",
    "Variant",
    "config",
    "round_to",
    "tensors",
    "values",
    "write_folder",
    "write_safetensors",
]

N_VOCAB = 640
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8}

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_TEMPLATE_FILE = Path(__file__).resolve().parents[1] / "python" / "gemmule" / "_chat" / "gemma4.jinja"
GEMMA4_TEMPLATE = _TEMPLATE_FILE.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Variant:
    """What sets one member of the family apart."""

    model_type: str
    pattern: str  # S sliding, G global
    n_kv_heads: int = 2
    n_kv_heads_global: int = 1
    k_eq_v: bool = False
    n_shared: int = 0
    double_wide: bool = False
    ple: bool = False
    moe: bool = False
    vision: str = ""  # "embedder" or "tower"
    audio: str = ""
    window: int = 16
    ordered: bool = False  # assistants only

    @property
    def is_drafter(self) -> bool:
        return self.model_type.endswith("assistant")

    @property
    def is_gemma3(self) -> bool:
        return self.model_type.startswith("gemma3")


VARIANTS: dict[str, Variant] = {
    "12b": Variant("gemma4_unified", "SSGSSG", k_eq_v=True, vision="embedder", audio="embedder"),
    "12b-text": Variant("gemma4_unified_text", "SSGSSG", k_eq_v=True),
    "e2b": Variant(
        "gemma4", "SSGSSSG", 1, 1, n_shared=4, double_wide=True, ple=True, vision="tower", audio="tower"
    ),
    "e4b": Variant("gemma4", "SSGSSG", 2, 2, n_shared=3, ple=True, vision="tower", audio="tower"),
    "26b": Variant("gemma4", "SSGSSG", k_eq_v=True, moe=True, vision="tower"),
    "31b": Variant("gemma4", "SSGSSG", k_eq_v=True, vision="tower"),
    "31b-text": Variant("gemma4_text", "SSGSSG", k_eq_v=True),
    "gemma3-text": Variant("gemma3_text", "SSSSSGS", 2, 2),
    "gemma3": Variant("gemma3", "SSSSSGS", 2, 2, vision="siglip"),
    "12b-assistant": Variant("gemma4_unified_assistant", "SSG"),
    "e2b-assistant": Variant("gemma4_assistant", "SSG", 1, 1, ordered=True),
    "31b-assistant": Variant("gemma4_assistant", "SSG"),
}
_MEDIA_IDS = {
    "<|image>": "boi_token_id",
    "<image|>": "eoi_token_id",
    "<|image|>": "image_token_id",
    "<|video|>": "video_token_id",
    "<|audio>": "boa_token_id",
    "<audio|>": "eoa_token_index",
    "<|audio|>": "audio_token_id",
}


# -- vocabulary ---


def vocabulary(
    gemma3: bool, n: int = N_VOCAB
) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    """(tokens, special ones, other added ones, merges): each learned token joins two earlier ones."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    if gemma3:
        special += ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
    else:
        special += ["<|turn>", "<turn|>", "<|think|>", "<|tool>", "<tool|>", *_MEDIA_IDS]
        special += ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"]
        special += ["<tool_response|>", '<|"|>']
    added = ["\n\n", "\u2581\u2581", "\t", "<b>", "</b>"] if gemma3 else []
    tokens = special + added + [f"<0x{b:02X}>" for b in range(256)]
    letters = ["\n", "\u2581", *(chr(c) for c in range(33, 127)), "é", "ü", "日", "本"]
    tokens += [letter for letter in letters if letter not in tokens]
    merges: list[tuple[str, str]] = []
    text = (
        "_the _and _user user model _model _hello Hello _world ing tion er re on at en in or es is it ed al "
        "ar _a _s _t _of _to _in _w _c _b _p _f _h _m ou le st nt ion ent ate _that _was _for _with ment "
        "system _you _are _help ful ly est ver ight _I _it _be _as _on"
    )
    words = text.replace("_", "\u2581").split()
    known = set(tokens)
    spares = 8
    for word in [*words, *(a + b for a in "bcdfghlmnprst" for b in "aeiouy")]:
        left = word[0]
        for char in word[1:]:
            joined = left + char
            if joined not in known and len(tokens) < n - spares:
                merges.append((left, char))
                known.add(joined)
                tokens.append(joined)
            if joined not in known:
                break
            left = joined
    for letter in ("\u2581", "\n"):  # runs of blanks come first, as in the real list
        merges.insert(0, (letter, letter))
        if not gemma3:
            tokens.append(letter + letter)
    if gemma3:
        merges = _all_merges(tokens, merges)
    unused = [f"<unused{i}>" for i in range(n - len(tokens))]
    return tokens + unused, special, added + unused, merges


def _all_merges(tokens: list[str], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every way to make the learned tokens from two others, as SentencePiece vocabularies are converted."""
    index = {token: i for i, token in enumerate(tokens)}
    out: list[tuple[str, str]] = []
    for token in (left + right for left, right in merges):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left in index and right in index]
        out += sorted(pairs, key=lambda pair: (index[pair[0]], index[pair[1]]))
    return out


def write_tokenizer(folder: Path, *, gemma3: bool) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokens, special, added, merges = vocabulary(gemma3)
    index = {token: i for i, token in enumerate(tokens)}
    entries = [
        {
            "id": index[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in special,
        }
        for token in tokens
        if token in special or (gemma3 and token in added)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<bos>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": index,
            "merges": [list(pair) for pair in merges],
        },
    }
    named = {name: f"<{name.removesuffix('_token')}>" for name in ("bos_token", "eos_token", "pad_token")}
    named |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    settings: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer", **named, "add_bos_token": True}
    if not gemma3:
        settings["extra_special_tokens"] = [token for token in special[5:] if not token.startswith("<unused")]
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)
    template = GEMMA3_TEMPLATE if gemma3 else GEMMA4_TEMPLATE
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def sentencepiece_model() -> bytes:
    """tokenizer.model of the tiny Gemma 3: pieces = 1 {text = 1, score = 2, type = 3}, trainer 2, rules 3."""
    tokens, special, added, _ = vocabulary(True)

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(payload)) + payload

    out, rank = b"", 0
    for token in tokens:
        kind = 6 if token.startswith("<0x") else 2 if token == "<unk>" else 3 if token in special else 1
        kind = 4 if token in added else kind
        score = -float(rank) if kind == 1 else 0.0
        rank += kind == 1
        piece = field(1, token.encode()) + b"\x15" + np.float32(score).tobytes()
        out += field(1, piece + (b"\x18" + bytes([kind]) if kind != 1 else b""))
    # BPE (3 = 2), byte fallback (35), ids of unk, bos, eos and pad (40 to 43)
    trainer = b"\x18\x02" + b"".join(
        _varint(n << 3) + _varint(v) for n, v in ((35, 1), (40, 3), (41, 2), (42, 1))
    )
    rules = field(1, b"identity") + b"".join(bytes([n << 3, 0]) for n in (3, 4))
    return out + field(2, trainer) + field(3, rules)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


# -- config ---


def config(name: str, *, wide: bool = False, old_dialect: bool = False, tied: bool = True) -> dict[str, Any]:
    """config.json of one variant. `old_dialect`: global sizes as keys of their own."""
    variant = VARIANTS[name]
    text = _text_config(variant, wide=wide, old_dialect=old_dialect)
    text["tie_word_embeddings"] = tied
    if variant.model_type.endswith("_text"):
        return {**text, "architectures": [_architecture(variant)], "model_type": variant.model_type}
    out: dict[str, Any] = {
        "architectures": [_architecture(variant)],
        "model_type": variant.model_type,
        "dtype": "bfloat16",
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "5.17.0",
    }
    if variant.is_drafter:
        target = _sizes(VARIANTS[name.removesuffix("-assistant")], wide=wide)
        return out | {
            "backbone_hidden_size": target["hidden_size"],
            "use_ordered_embeddings": variant.ordered,
            "num_centroids": 32,
            "centroid_intermediate_top_k": 4,
        }
    return out | _media_config(variant, text["hidden_size"])


def _media_config(variant: Variant, width: int) -> dict[str, Any]:
    """vision_config, audio_config and the ids of the markers."""
    if variant.is_gemma3:
        return {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 7,
            "eoi_token_index": 8,
            "image_token_index": N_VOCAB - 1,
        }
    index = {token: i for i, token in enumerate(vocabulary(False)[0])}
    out: dict[str, Any] = {key: index[token] for token, key in _MEDIA_IDS.items()}
    if variant.vision == "embedder":
        out["vision_config"] = {
            "model_type": "gemma4_unified_vision",
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "mm_embed_dim": width,
            "mm_posemb_size": 20,
            "output_proj_dims": width,
        }
        out["audio_config"] = {"model_type": "gemma4_unified_audio", "audio_embed_dim": 64}
        return out
    standard = variant.audio == ""
    out["vision_config"] = {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 24,
        "use_clipped_linears": not standard,
        "standardize": standard,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
    }
    if variant.audio:
        out["audio_config"] = {
            "model_type": "gemma4_audio",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [16, 8],
            "output_proj_dims": 28,
            "use_clipped_linears": True,
        }
    return out


def _architecture(variant: Variant) -> str:
    stem = {
        "gemma3": "Gemma3ForConditionalGeneration",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma4": "Gemma4ForConditionalGeneration",
        "gemma4_text": "Gemma4ForCausalLM",
        "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
        "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
        "gemma4_assistant": "Gemma4AssistantForCausalLM",
        "gemma4_unified_assistant": "Gemma4UnifiedAssistantForCausalLM",
    }
    return stem[variant.model_type]


def _sizes(variant: Variant, *, wide: bool) -> dict[str, int]:
    if variant.is_drafter:
        small = {"hidden_size": 24, "intermediate_size": 56, "num_attention_heads": 4}
        large = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    else:
        small = {"hidden_size": 40, "intermediate_size": 80, "num_attention_heads": 4}
        large = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 4}
    return (large if wide else small) | {"head_dim": 64 if wide else 24}


def _text_config(variant: Variant, *, wide: bool, old_dialect: bool) -> dict[str, Any]:
    sizes = _sizes(variant, wide=wide)
    kinds = ["sliding_attention" if kind == "S" else "full_attention" for kind in variant.pattern]
    text: dict[str, Any] = {
        "vocab_size": N_VOCAB,
        **sizes,
        "num_hidden_layers": len(kinds),
        "num_key_value_heads": variant.n_kv_heads,
        "sliding_window": variant.window,
        "layer_types": kinds,
        "max_position_embeddings": 1024,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if variant.is_gemma3:
        return text | {
            "model_type": "gemma3_text",
            "query_pre_attn_scalar": sizes["head_dim"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        }
    unified = variant.model_type.startswith("gemma4_unified")
    global_dim = 2 * sizes["head_dim"]
    text |= {
        "model_type": "gemma4_unified_text" if unified else "gemma4_text",
        "attention_k_eq_v": variant.k_eq_v,
        "num_kv_shared_layers": len(kinds) if variant.is_drafter else variant.n_shared,
        "use_double_wide_mlp": variant.double_wide,
        "final_logit_softcapping": None if variant.is_drafter else 30.0,
        "use_bidirectional_attention": None if variant.ple or variant.is_drafter else "vision",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            },
        },
    }
    if not unified:
        ple = (256 if wide else 8) if variant.ple else 0
        text |= {
            "hidden_size_per_layer_input": ple,
            "vocab_size_per_layer_input": 0 if variant.is_drafter else N_VOCAB,
            "enable_moe_block": variant.moe,
            "num_experts": 6 if variant.moe else None,
            "top_k_experts": 2 if variant.moe else None,
            "moe_intermediate_size": (256 if wide else 28) if variant.moe else None,
        }
    own_heads = variant.k_eq_v or variant.is_drafter
    if old_dialect:
        text["global_head_dim"] = global_dim
        text["num_global_key_value_heads"] = variant.n_kv_heads_global if own_heads else None
        return text
    override = {"head_dim": global_dim}
    if own_heads:
        override["num_key_value_heads"] = variant.n_kv_heads_global
    text["per_layer_config"] = {
        str(i): dict(override) for i, kind in enumerate(kinds) if kind == "full_attention"
    }
    return text


# -- tensors ---


def tensors(name: str, **options: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of everything transformers saves for a variant."""
    variant, whole = VARIANTS[name], config(name, **options)
    text = whole.get("text_config", whole)
    multimodal = variant.model_type in ("gemma4", "gemma4_unified", "gemma3")
    prefix = "model.language_model." if multimodal else "model."
    if variant.model_type == "gemma3":
        prefix = "language_model.model."
    yield from _text_tensors(variant, text, prefix)
    if not whole["tie_word_embeddings"]:
        yield "lm_head.weight", (text["vocab_size"], text["hidden_size"])
    if variant.is_drafter:
        width, target = text["hidden_size"], whole["backbone_hidden_size"]
        yield "pre_projection.weight", (width, 2 * target)
        yield "post_projection.weight", (target, width)
        if variant.ordered:
            yield "masked_embedding.centroids.weight", (whole["num_centroids"], width)
            yield "masked_embedding.token_ordering", (text["vocab_size"],)
    elif variant.is_gemma3 and variant.vision:
        yield from _siglip_tensors(whole["vision_config"], text["hidden_size"])
    elif variant.vision:
        yield from _media_tensors(whole, text["hidden_size"])


def _text_tensors(
    variant: Variant, text: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, n_heads, dim = text["hidden_size"], text["num_attention_heads"], text["head_dim"]
    n_layers = text["num_hidden_layers"]
    ple = text.get("hidden_size_per_layer_input") or 0
    yield prefix + "embed_tokens.weight", (text["vocab_size"], width)
    if ple:
        yield prefix + "embed_tokens_per_layer.weight", (text["vocab_size"], n_layers * ple)
        yield prefix + "per_layer_model_projection.weight", (n_layers * ple, width)
        yield prefix + "per_layer_projection_norm.weight", (ple,)
    for i, kind in enumerate(variant.pattern):
        at = f"{prefix}layers.{i}."
        is_global = kind == "G" and not variant.is_gemma3
        d = 2 * dim if is_global else dim
        own_heads = is_global and (variant.k_eq_v or variant.is_drafter)
        n_kv = variant.n_kv_heads_global if own_heads else variant.n_kv_heads
        shared = variant.is_drafter or i >= n_layers - variant.n_shared
        d_ff = text["intermediate_size"] * (2 if shared and variant.double_wide else 1)
        norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
        for norm in norms:
            yield f"{at}{norm}_layernorm.weight", (width,)
        yield at + "self_attn.q_proj.weight", (n_heads * d, width)
        yield at + "self_attn.o_proj.weight", (width, n_heads * d)
        yield at + "self_attn.q_norm.weight", (d,)
        if not shared:
            yield at + "self_attn.k_proj.weight", (n_kv * d, width)
            yield at + "self_attn.k_norm.weight", (d,)
            if not (is_global and variant.k_eq_v):
                yield at + "self_attn.v_proj.weight", (n_kv * d, width)
        yield at + "mlp.gate_proj.weight", (d_ff, width)
        yield at + "mlp.up_proj.weight", (d_ff, width)
        yield at + "mlp.down_proj.weight", (width, d_ff)
        if not variant.is_gemma3:
            yield at + "layer_scalar", (1,)
        if ple:
            yield at + "per_layer_input_gate.weight", (ple, width)
            yield at + "per_layer_projection.weight", (width, ple)
            yield at + "post_per_layer_input_norm.weight", (width,)
        if variant.moe:
            n, inner = text["num_experts"], text["moe_intermediate_size"]
            yield at + "router.proj.weight", (n, width)
            yield at + "router.scale", (width,)
            yield at + "router.per_expert_scale", (n,)
            yield at + "experts.gate_up_proj", (n, 2 * inner, width)
            yield at + "experts.down_proj", (n, width, inner)
            for norm in ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1"):
                yield f"{at}{norm}.weight", (width,)
            yield at + "post_feedforward_layernorm_2.weight", (width,)
    yield prefix + "norm.weight", (width,)


def _linear(name: str, out: int, n_in: int, clipped: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".linear.weight", (out, n_in)
    if clipped:
        for clip in ("input_min", "input_max", "output_min", "output_max"):
            yield f"{name}.{clip}", ()


def _media_tensors(whole: Mapping[str, Any], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    vision, audio = whole["vision_config"], whole.get("audio_config")
    side = vision["patch_size"] * vision["pooling_kernel_size"]
    if "mm_embed_dim" in vision:
        inner = vision["mm_embed_dim"]
        for norm, size in (("patch_ln1", 3 * side * side), ("patch_ln2", inner), ("pos_norm", inner)):
            for end in ("weight", "bias"):
                yield f"model.vision_embedder.{norm}.{end}", (size,)
        yield "model.vision_embedder.patch_dense.weight", (inner, 3 * side * side)
        yield "model.vision_embedder.patch_dense.bias", (inner,)
        yield "model.vision_embedder.pos_embedding", (vision["mm_posemb_size"], 2, inner)
        yield "model.embed_vision.embedding_projection.weight", (width, inner)
        yield "model.embed_audio.embedding_projection.weight", (width, audio["audio_embed_dim"])
        return
    inner, d_ff, clipped = vision["hidden_size"], vision["intermediate_size"], vision["use_clipped_linears"]
    tower = "model.vision_tower."
    yield tower + "patch_embedder.input_proj.weight", (inner, 3 * vision["patch_size"] ** 2)
    yield tower + "patch_embedder.position_embedding_table", (2, vision["position_embedding_size"], inner)
    for i in range(vision["num_hidden_layers"]):
        at = f"{tower}encoder.layers.{i}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{at}{norm}_layernorm.weight", (inner,)
        for norm in ("q_norm", "k_norm"):
            yield f"{at}self_attn.{norm}.weight", (vision["head_dim"],)
        for part in "qkvo":
            yield from _linear(f"{at}self_attn.{part}_proj", inner, inner, clipped)
        yield from _linear(at + "mlp.gate_proj", d_ff, inner, clipped)
        yield from _linear(at + "mlp.up_proj", d_ff, inner, clipped)
        yield from _linear(at + "mlp.down_proj", inner, d_ff, clipped)
    if vision["standardize"]:
        yield tower + "std_bias", (inner,)
        yield tower + "std_scale", (inner,)
    yield "model.embed_vision.embedding_projection.weight", (width, inner)
    if audio:
        yield from _conformer_tensors(audio, width)


def _conformer_tensors(audio: Mapping[str, Any], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, (first, second) = audio["hidden_size"], audio["subsampling_conv_channels"]
    tower = "model.audio_tower."
    for i, (n_in, n_out) in enumerate(((1, first), (first, second))):
        yield f"{tower}subsample_conv_projection.layer{i}.conv.weight", (n_out, n_in, 3, 3)
        yield f"{tower}subsample_conv_projection.layer{i}.norm.weight", (n_out,)
    yield tower + "subsample_conv_projection.input_proj_linear.weight", (inner, first // 4 * second)
    for i in range(audio["num_hidden_layers"]):
        at = f"{tower}layers.{i}."
        for part in ("feed_forward1", "feed_forward2"):
            yield from _linear(f"{at}{part}.ffw_layer_1", 4 * inner, inner, True)
            yield from _linear(f"{at}{part}.ffw_layer_2", inner, 4 * inner, True)
            for norm in ("pre_layer_norm", "post_layer_norm"):
                yield f"{at}{part}.{norm}.weight", (inner,)
        for part in ("q_proj", "k_proj", "v_proj", "post"):
            yield from _linear(f"{at}self_attn.{part}", inner, inner, True)
        yield at + "self_attn.per_dim_scale", (inner // audio["num_attention_heads"],)
        yield at + "self_attn.relative_k_proj.weight", (inner, inner)
        yield from _linear(at + "lconv1d.linear_start", 2 * inner, inner, True)
        yield from _linear(at + "lconv1d.linear_end", inner, inner, True)
        yield at + "lconv1d.depthwise_conv1d.weight", (inner, 1, 5)
        for norm in (
            "lconv1d.pre_layer_norm",
            "lconv1d.conv_norm",
            "norm_pre_attn",
            "norm_post_attn",
            "norm_out",
        ):
            yield f"{at}{norm}.weight", (inner,)
    yield tower + "output_proj.weight", (audio["output_proj_dims"], inner)
    yield tower + "output_proj.bias", (audio["output_proj_dims"],)
    yield "model.embed_audio.embedding_projection.weight", (width, audio["output_proj_dims"])


def _siglip_tensors(vision: Mapping[str, Any], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, d_ff, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tower = "vision_tower."
    yield tower + "embeddings.patch_embedding.weight", (inner, 3, patch, patch)
    yield tower + "embeddings.patch_embedding.bias", (inner,)
    yield tower + "embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2, inner)
    for i in range(vision["num_hidden_layers"]):
        at = f"{tower}encoder.layers.{i}."
        for part, n_out, n_in in (
            *((f"self_attn.{p}_proj", inner, inner) for p in ("q", "k", "v", "out")),
            ("mlp.fc1", d_ff, inner),
            ("mlp.fc2", inner, d_ff),
        ):
            yield f"{at}{part}.weight", (n_out, n_in)
            yield f"{at}{part}.bias", (n_out,)
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{at}{norm}.weight", (inner,)
            yield f"{at}{norm}.bias", (inner,)
    yield tower + "post_layernorm.weight", (inner,)
    yield tower + "post_layernorm.bias", (inner,)
    yield tower + "head.probe", (1, 1, inner)
    yield tower + "head.attention.in_proj_weight", (3 * inner, inner)
    yield tower + "head.attention.in_proj_bias", (3 * inner,)
    for part, n_out, n_in in (
        ("attention.out_proj", inner, inner),
        ("mlp.fc1", d_ff, inner),
        ("mlp.fc2", inner, d_ff),
    ):
        yield f"{tower}head.{part}.weight", (n_out, n_in)
        yield f"{tower}head.{part}.bias", (n_out,)
    yield tower + "head.layernorm.weight", (inner,)
    yield tower + "head.layernorm.bias", (inner,)
    yield "multi_modal_projector.mm_input_projection_weight", (inner, width)
    yield "multi_modal_projector.mm_soft_emb_norm.weight", (inner,)


def values(name: str, shape: tuple[int, ...], *, gemma3: bool, seed: int = 1) -> np.ndarray:
    """The numbers of one tensor: float32, or int64 for an ordering."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("token_ordering"):
        return rng.permutation(shape[0]).astype(np.int64)
    if name.endswith(("_min", "_max")):
        limit = rng.uniform(2.0, 6.0)
        return np.full(shape, -limit if name.endswith("_min") else limit, np.float32)
    if name.endswith(("layer_scalar", "std_scale", "per_expert_scale")):
        out = rng.uniform(0.6, 1.3, shape)
    elif len(shape) == 1:
        out = (0.0 if gemma3 or name.endswith("bias") else 1.0) + 0.3 * rng.standard_normal(shape)
    elif "embed_tokens" in name or "pos" in name:
        out = 0.5 * rng.standard_normal(shape)
    else:
        out = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) != 3 else shape[-1])
    return np.ascontiguousarray(out, dtype=np.float32)


# -- files ---


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the nearest number of `dtype`, ties to even; BF16 as uint16."""
    if dtype == "F16":
        return array.astype(np.float16)
    if dtype == "BF16":
        bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array


def write_safetensors(path: Path, entries: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """Write name -> (dtype, array in the storage type of that dtype)."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, array) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in entries.values():
            file.write(array.tobytes())


def write_folder(
    folder: Path, name: str, *, dtype: str = "BF16", shards: int = 1, seed: int = 1, **options: bool
) -> Path:
    """Write a complete folder of one variant; `options` as for config()."""
    folder.mkdir(parents=True, exist_ok=True)
    variant = VARIANTS[name]
    _write_json(folder / "config.json", config(name, **options))
    entries: dict[str, tuple[str, np.ndarray]] = {}
    for tensor, shape in tensors(name, **options):
        array = values(tensor, shape, gemma3=variant.is_gemma3, seed=seed)
        kind = "I64" if array.dtype == np.int64 else dtype
        entries[tensor] = (kind, round_to(array, kind))
    write_weights(folder, entries, shards)
    write_extras(folder, name)
    return folder


def write_weights(folder: Path, entries: Mapping[str, tuple[str, np.ndarray]], shards: int = 1) -> None:
    """model.safetensors, or shards with their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", entries)
        return
    names = list(entries)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / shard, {n: entries[n] for n in part})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(array.nbytes for _, array in entries.values())
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def write_extras(folder: Path, name: str) -> None:
    """The files beside config and weights: tokenizer, generation, processor, card."""
    variant = VARIANTS[name]
    write_tokenizer(folder, gemma3=variant.is_gemma3)
    tokens = {token: i for i, token in enumerate(vocabulary(variant.is_gemma3)[0])}
    generation: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
    generation |= {"bos_token_id": 2, "pad_token_id": 0}
    ends = ["<eos>", "<end_of_turn>"] if variant.is_gemma3 else ["<eos>", "<turn|>", "<|tool_response>"]
    generation["eos_token_id"] = [tokens[end] for end in ends]
    if variant.model_type.startswith("gemma4_unified"):
        generation["suppress_tokens"] = [tokens["<audio|>"], tokens["<image|>"]]
    _write_json(folder / "generation_config.json", generation)
    if variant.vision in ("embedder", "tower"):
        image = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": 280}
        processor: dict[str, Any] = {
            "processor_class": "Gemma4Processor",
            "image_processor": image | {"patch_size": 4, "pooling_kernel_size": 3, "resample": 3},
            "video_processor": {"num_frames": 32, "max_soft_tokens": 70},
            "image_seq_length": 280,
        }
        if variant.audio:
            processor |= {"audio_seq_length": 750, "audio_ms_per_token": 40}
            processor["feature_extractor"] = {"sampling_rate": 16000}
        _write_json(folder / "processor_config.json", processor)
        _write_json(folder / "preprocessor_config.json", image)
    card = (
        "---\nlicense: apache-2.0\nlicense_link: https://example.org/license\n"
        "base_model:\n- tiny/base-model\n"
        "pipeline_tag: image-text-to-text\ntags:\n  - tiny\n  - 'random'\nlanguage: [en, de]\n---\n# Tiny\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
