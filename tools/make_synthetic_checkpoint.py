"""Write a Hugging Face folder with the true shapes of Gemma 4 12B (unified) and random BF16 weights.

For conversion speed and memory at full size without the weights: 24 GB, in shards. Every matrix takes its
numbers from one block of 32 Mi Gaussian values (64 MiB, too large for caches) per row length, scaled by
1 / sqrt(row length), beginning at a place of its own, so writing runs at disk speed. A vocabulary of 262144
tokens has the true special tokens at their ids and a few thousand merges. --sparse leaves holes instead of
matrices (a sparse file, zeros when read); --drafter also writes the 4-layer assistant, as FOLDER-assistant.
The text such a model writes means nothing.

Usage: python tools/make_synthetic_checkpoint.py FOLDER --layers 2 --drafter
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import string
import sys
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from export_checkpoint import Entry, round_to, write_shards

__all__ = ["entries_12b", "entries_assistant", "write_checkpoint"]

_TEMPLATE = Path(__file__).resolve().parents[1] / "python" / "gemmule" / "_chat" / "gemma4.jinja"
D_MODEL, D_FF, N_HEADS, N_VOCAB = 3840, 15360, 16, 262144
HEAD_DIM, HEAD_DIM_GLOBAL, KV_HEADS, KV_HEADS_GLOBAL = 256, 512, 8, 1
DRAFT_WIDTH, DRAFT_FF, DRAFT_LAYERS = 1024, 8192, 4
PATCH_VALUES, N_POSITIONS, AUDIO_SAMPLES = 6912, 1120, 640
_BLOCK = 32 << 20  # numbers
_IMAGE, _AUDIO, _VIDEO = 258880, 258881, 258884

_SPECIALS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
    255999: "<|image>",
    256000: "<|audio>",
    258880: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
    258884: "<|video|>",
}


@cache
def _block(n_cols: int) -> bytes:
    """_BLOCK Gaussian numbers of deviation 1 / sqrt(n_cols), as BF16."""
    rng = np.random.default_rng(n_cols)
    out = np.empty(_BLOCK, np.uint16)
    for first in range(0, _BLOCK, 1 << 20):
        part = rng.standard_normal(1 << 20, dtype=np.float32) / np.float32(math.sqrt(n_cols))
        out[first : first + (1 << 20)] = round_to(part, "BF16")
    return out.tobytes()


def _noise(name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
    """The block from a place that depends on the name, again and again."""
    block = memoryview(_block(shape[-1]))
    left = math.prod(shape) * 2
    place = zlib.crc32(name.encode()) % _BLOCK * 2
    while left:
        size = min(left, len(block) - place)
        yield block[place : place + size]
        left -= size
        place = 0


def _vector(name: str, shape: tuple[int, ...], centre: float, spread: float) -> Iterator[bytes]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = centre + spread * rng.standard_normal(shape, dtype=np.float32)
    yield round_to(values.astype(np.float32), "BF16").tobytes()


def _matrix(name: str, *shape: int) -> Entry:
    return Entry(name, "BF16", shape, partial(_noise, name, shape))


def _norm(name: str, n: int, centre: float = 1.0, spread: float = 0.1) -> Entry:
    return Entry(name, "BF16", (n,), partial(_vector, name, (n,), centre, spread))


def _layer(prefix: str, width: int, d_ff: int, *, sliding: bool, owns_kv: bool) -> Iterator[Entry]:
    head_dim = HEAD_DIM if sliding else HEAD_DIM_GLOBAL
    kv = (KV_HEADS if sliding else KV_HEADS_GLOBAL) * head_dim
    for norm in (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ):
        yield _norm(f"{prefix}{norm}.weight", width)
    yield _norm(f"{prefix}layer_scalar", 1, 0.8, 0.0)
    yield _norm(f"{prefix}self_attn.q_norm.weight", head_dim)
    yield _matrix(f"{prefix}self_attn.q_proj.weight", N_HEADS * head_dim, width)
    if owns_kv:
        yield _norm(f"{prefix}self_attn.k_norm.weight", head_dim)
        yield _matrix(f"{prefix}self_attn.k_proj.weight", kv, width)
        if sliding:
            yield _matrix(f"{prefix}self_attn.v_proj.weight", kv, width)
    yield _matrix(f"{prefix}self_attn.o_proj.weight", width, N_HEADS * head_dim)
    yield _matrix(f"{prefix}mlp.gate_proj.weight", d_ff, width)
    yield _matrix(f"{prefix}mlp.up_proj.weight", d_ff, width)
    yield _matrix(f"{prefix}mlp.down_proj.weight", width, d_ff)


def layer_types(n_layers: int) -> list[str]:
    """Every sixth layer is global, and so is the last."""
    types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(n_layers)]
    types[-1] = "full_attention"
    return types


def entries_12b(n_layers: int) -> list[Entry]:
    """The tensors of the unified model: text, vision embedder, audio embedder."""
    text = "model.language_model."
    out = [_matrix(f"{text}embed_tokens.weight", N_VOCAB, D_MODEL)]
    for i, kind in enumerate(layer_types(n_layers)):
        sliding = kind == "sliding_attention"
        out += _layer(f"{text}layers.{i}.", D_MODEL, D_FF, sliding=sliding, owns_kv=True)
    out.append(_norm(f"{text}norm.weight", D_MODEL))
    vision = "model.vision_embedder."
    for name, n in (("patch_ln1", PATCH_VALUES), ("patch_ln2", D_MODEL), ("pos_norm", D_MODEL)):
        out.append(_norm(f"{vision}{name}.weight", n))
        out.append(_norm(f"{vision}{name}.bias", n, 0.0))
    out.append(_matrix(f"{vision}patch_dense.weight", D_MODEL, PATCH_VALUES))
    out.append(_norm(f"{vision}patch_dense.bias", D_MODEL, 0.0))
    out.append(_matrix(f"{vision}pos_embedding", N_POSITIONS, 2, D_MODEL))
    out.append(_matrix("model.embed_vision.embedding_projection.weight", D_MODEL, D_MODEL))
    out.append(_matrix("model.embed_audio.embedding_projection.weight", D_MODEL, AUDIO_SAMPLES))
    return out


def entries_assistant() -> list[Entry]:
    """The tensors of the drafter."""
    out = [_matrix("model.embed_tokens.weight", N_VOCAB, DRAFT_WIDTH)]
    for i in range(DRAFT_LAYERS):
        last = i == DRAFT_LAYERS - 1
        out += _layer(f"model.layers.{i}.", DRAFT_WIDTH, DRAFT_FF, sliding=not last, owns_kv=False)
    out.append(_norm("model.norm.weight", DRAFT_WIDTH))
    out.append(_matrix("pre_projection.weight", DRAFT_WIDTH, 2 * D_MODEL))
    out.append(_matrix("post_projection.weight", D_MODEL, DRAFT_WIDTH))
    return out


def _text_config(
    n_layers: int, width: int, d_ff: int, n_shared: int, softcap: float | None
) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": True,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": softcap,
        "global_head_dim": HEAD_DIM_GLOBAL,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": width,
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "intermediate_size": d_ff,
        "layer_types": layer_types(n_layers),
        "max_position_embeddings": 262144,
        "model_type": "gemma4_unified_text",
        "moe_intermediate_size": None,
        "num_attention_heads": N_HEADS,
        "num_experts": None,
        "num_global_key_value_heads": KV_HEADS_GLOBAL,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": KV_HEADS,
        "num_kv_shared_layers": n_shared,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": N_VOCAB,
        "vocab_size_per_layer_input": N_VOCAB,
    }


def _config_12b(n_layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "dtype": "bfloat16",
        "audio_token_id": _AUDIO,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "eoa_token_index": 258883,
        "eoi_token_id": 258882,
        "image_token_id": _IMAGE,
        "video_token_id": _VIDEO,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "text_config": _text_config(n_layers, D_MODEL, D_FF, 0, 30.0),
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "mm_embed_dim": D_MODEL,
            "mm_posemb_size": N_POSITIONS,
            "output_proj_dims": D_MODEL,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "rms_norm_eps": 1e-6,
        },
        "audio_config": {
            "model_type": "gemma4_unified_audio",
            "audio_embed_dim": AUDIO_SAMPLES,
            "rms_norm_eps": 1e-6,
        },
    }


def _config_assistant() -> dict[str, Any]:
    return {
        "architectures": ["Gemma4UnifiedAssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant",
        "backbone_hidden_size": D_MODEL,
        "centroid_intermediate_top_k": 32,
        "dtype": "bfloat16",
        "num_centroids": 2048,
        "text_config": _text_config(DRAFT_LAYERS, DRAFT_WIDTH, DRAFT_FF, DRAFT_LAYERS, None),
        "tie_word_embeddings": True,
        "use_ordered_embeddings": False,
    }


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """262144 tokens (the true specials, newline and space runs, bytes, characters, joined letters) and the
    merges of the joined ones; the rest are words that no merge makes.
    """
    tokens = [f"<unused{i}>" for i in range(N_VOCAB)]
    for i, text in _SPECIALS.items():
        tokens[i] = text
    merges: list[tuple[str, str]] = []
    for n in range(1, 32):
        tokens[106 + n] = "\n" * n
    for n in range(2, 32):
        tokens[136 + n] = "\u2581" * n
    for i in range(256):
        tokens[238 + i] = f"<0x{i:02X}>"
    joined = (a + b for a, b in itertools.product("\u2581" + string.ascii_letters, string.ascii_lowercase))
    triples = (
        a + b + c
        for a, b, c in itertools.product(
            "\u2581" + string.ascii_lowercase, string.ascii_lowercase, string.ascii_lowercase
        )
    )
    place = 494
    for text in itertools.chain(joined, triples):
        tokens[place] = text
        merges.append((text[:-1], text[-1]))
        place += 1
    for i in range(place, 236743):
        tokens[i] = f"word{i}"
    singles = ["\u2581", *(chr(c) for c in (*range(33, 127), *range(0xA1, 0x250), *range(0x4E00, 0x6E00)))]
    tokens[236743 : 236743 + len(singles)] = singles
    runs = [("\n" * (n - 1), "\n") for n in range(2, 32)]
    runs += [("\u2581" * (n - 1), "\u2581") for n in range(2, 32)]
    if len(set(tokens)) != N_VOCAB:
        raise RuntimeError(f"the vocabulary has {len(set(tokens))} different tokens instead of {N_VOCAB}")
    return tokens, runs + merges


def _write_tokenizer(folder: Path) -> None:
    tokens, merges = _vocabulary()
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in sorted(_SPECIALS.items())
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
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
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    config = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "mask_token": "<mask>",
        "model_max_length": 10**30,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "Gemma4UnifiedProcessor",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(_TEMPLATE.read_text("utf-8"), encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_settings(folder: Path, *, processor: bool) -> None:
    generation = {
        "bos_token_id": 2,
        "do_sample": True,
        "eos_token_id": [1, 106, 50],
        "pad_token_id": 0,
        "suppress_tokens": [258883, 258882],
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }
    _write_json(folder / "generation_config.json", generation)
    if not processor:
        return
    image = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": 280,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    content = {
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "feature_extractor": {
            "audio_samples_per_token": AUDIO_SAMPLES,
            "feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor",
            "feature_size": AUDIO_SAMPLES,
            "padding_side": "right",
            "padding_value": 0.0,
            "sampling_rate": 16000,
        },
        "image_processor": image | {"image_processor_type": "Gemma4UnifiedImageProcessor"},
        "image_seq_length": 280,
        "processor_class": "Gemma4UnifiedProcessor",
        "video_processor": image
        | {
            "do_normalize": True,
            "do_sample_frames": True,
            "max_soft_tokens": 70,
            "num_frames": 32,
            "video_processor_type": "Gemma4UnifiedVideoProcessor",
        },
    }
    _write_json(folder / "processor_config.json", content)


def _shards(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Consecutive groups of at most `shard_bytes`; a larger tensor is a group of its own."""
    groups: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if groups[-1] and used + entry.n_bytes > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += entry.n_bytes
    return groups


def write_checkpoint(
    folder: Path, *, n_layers: int, shard_bytes: int, sparse: bool = False, assistant: bool = False
) -> int:
    """Write one folder; return the bytes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = entries_assistant() if assistant else entries_12b(n_layers)
    write_shards(folder, _shards(entries, shard_bytes), hole_bytes=1 << 20 if sparse else None)
    _write_json(folder / "config.json", _config_assistant() if assistant else _config_12b(n_layers))
    _write_tokenizer(folder)
    _write_settings(folder, processor=not assistant)
    return sum(entry.n_bytes for entry in entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--shard-bytes", type=float, default=5e9)
    parser.add_argument("--sparse", action="store_true", help="leave holes where matrices would be")
    parser.add_argument("--drafter", action="store_true", help="also write FOLDER-assistant")
    args = parser.parse_args()
    sizes = [("", False)] + ([("-assistant", True)] if args.drafter else [])
    for suffix, assistant in sizes:
        folder = args.folder.with_name(args.folder.name + suffix)
        written = write_checkpoint(
            folder,
            n_layers=args.layers,
            shard_bytes=int(args.shard_bytes),
            sparse=args.sparse,
            assistant=assistant,
        )
        print(f"{folder}: {len(list(folder.glob('*.safetensors')))} shards, {written} bytes of tensors")


if __name__ == "__main__":
    main()
