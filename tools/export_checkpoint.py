"""Turn a Gemma 3 text GGUF into a Hugging Face folder, so that a conversion can be proven on real weights.

Tensors are dequantized to float32 and rounded to --dtype (BF16: nearest even). Gemma 3 norms are stored as
1 + w in GGUF and as w in the folder. Written: config.json, generation_config.json, tokenizer.json (rebuilt
from the GGUF vocabulary), tokenizer_config.json, chat_template.jinja when the file has a template, and
model.safetensors or --shards N parts with their index. A safetensors file is u64 header length, a JSON
header {name: {dtype, shape, data_offsets}} padded with spaces to 8 bytes, then the raw numbers.

Usage: python tools/export_checkpoint.py MODEL.gguf FOLDER --shards 2
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

__all__ = ["Entry", "export", "round_to", "split_evenly", "write_safetensors", "write_shards"]

_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard: `chunks` yields its bytes in order, in pieces of any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[Any]]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the nearest BF16 (as uint16), F16 or F32, ties to even."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def write_safetensors(path: Path, entries: Sequence[Entry], *, hole_bytes: int | None = None) -> None:
    """Write one safetensors file; tensors follow each other without gaps, in the order given. Tensors of at
    least `hole_bytes` are left as holes, zeros to a reader.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.n_bytes],
        }
        offset += entry.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for entry in entries:
            if hole_bytes is not None and entry.n_bytes >= hole_bytes:
                file.truncate(file.tell() + entry.n_bytes)
                file.seek(0, 2)
                continue
            for chunk in entry.chunks():
                file.write(chunk)
        if file.tell() - start != offset:
            raise RuntimeError(f"{path}: wrote {file.tell() - start} bytes of tensors instead of {offset}")


def split_evenly(entries: Sequence[Entry], n: int) -> list[list[Entry]]:
    """At most `n` groups of consecutive tensors, cut where a tensor begins in the next n-th of all bytes."""
    total = sum(entry.n_bytes for entry in entries)
    groups: list[list[Entry]] = [[] for _ in range(n)]
    offset = 0
    for entry in entries:
        groups[offset * n // total].append(entry)
        offset += entry.n_bytes
    return [group for group in groups if group]


def write_shards(folder: Path, groups: Sequence[Sequence[Entry]], *, hole_bytes: int | None = None) -> None:
    """model.safetensors for one group, else model-0000i-of-0000n.safetensors and the index."""
    if len(groups) == 1:
        write_safetensors(folder / "model.safetensors", groups[0], hole_bytes=hole_bytes)
        return
    where: dict[str, str] = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05}-of-{len(groups):05}.safetensors"
        write_safetensors(folder / name, group, hole_bytes=hole_bytes)
        where |= {entry.name: name for entry in group}
    total = sum(entry.n_bytes for group in groups for entry in group)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _hf_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    raise ValueError(f"no Hugging Face name is known for the tensor {name}")


def _config(reader: gguf.GGUFReader, dtype: str) -> dict[str, Any]:
    arch = str(reader.fields["general.architecture"].contents())
    if arch != "gemma3":
        raise ValueError(f"{arch} files cannot be exported; give a Gemma 3 text model")

    def key(name: str) -> Any:
        return reader.fields[f"gemma3.{name}"].contents()

    n_layers = key("block_count")
    theta = float(key("rope.freq_base"))
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "head_dim": key("attention.key_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": key("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": key("feed_forward_length"),
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(n_layers)],
        "max_position_embeddings": key("context_length"),
        "num_attention_heads": key("attention.head_count"),
        "num_hidden_layers": n_layers,
        "num_key_value_heads": key("attention.head_count_kv"),
        "query_pre_attn_scalar": key("attention.key_length"),
        "rms_norm_eps": float(f"{key('attention.layer_norm_rms_epsilon'):.3g}"),
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": theta,
        "sliding_window": key("attention.sliding_window"),
        "tie_word_embeddings": True,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "use_cache": True,
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
    }


def _write_tokenizer(source: Path, folder: Path) -> None:
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, processors

    from gemmule import _core
    from gemmule._tokenizer import Tokenizer

    file = _core.GgufFile(str(source))
    tokenizer = Tokenizer(file)
    # A private copy: what a checkpoint adds (decoder, BOS) must not change the tokenizer of the library.
    built = HfTokenizer.from_str(tokenizer._engine.to_str())
    built.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    built.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    (folder / "tokenizer.json").write_text(built.to_str(), encoding="utf-8")
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "mask_token": "<mask>",
        "model_max_length": 10**30,
        "pad_token": "<pad>",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    if "tokenizer.chat_template" in set(file.keys()):
        config["chat_template"] = file.get("tokenizer.chat_template")
        (folder / "chat_template.jinja").write_text(config["chat_template"], encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def export(source: Path, folder: Path, *, dtype: str = "BF16", n_shards: int = 1) -> None:
    """Write the folder. Peak memory: the file (mapped) and its largest tensor in float32."""
    reader = gguf.GGUFReader(str(source))
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for tensor in reader.tensors:

        def chunks(tensor: Any = tensor) -> Iterator[Any]:
            rows = tensor.data.reshape(-1, tensor.data.shape[-1])
            step = max(1, (8 << 20) // rows.shape[1])
            for first in range(0, len(rows), step):
                part = gguf.quants.dequantize(rows[first : first + step], tensor.tensor_type)
                part = part.astype(np.float32)
                if len(tensor.shape) == 1:
                    part = part - np.float32(1.0)
                yield round_to(np.ascontiguousarray(part), dtype).reshape(-1).view(np.uint8).data

        shape = tuple(int(n) for n in reversed(tensor.shape))
        entries.append(Entry(_hf_name(tensor.name), dtype, shape, chunks))
    write_shards(folder, split_evenly(entries, n_shards))
    (folder / "config.json").write_text(json.dumps(_config(reader, dtype), indent=2) + "\n")
    generation = {"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, 106], "pad_token_id": 0}
    generation |= {"top_k": 64, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    _write_tokenizer(source, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="a Gemma 3 text GGUF")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["BF16", "F16", "F32"], default="BF16")
    parser.add_argument("--shards", type=int, default=1, help="at most this many files")
    args = parser.parse_args()
    export(args.source, args.folder, dtype=args.dtype, n_shards=args.shards)
    files = sorted(args.folder.glob("*.safetensors"))
    print(f"{args.folder}: {len(files)} safetensors file(s), {sum(f.stat().st_size for f in files)} bytes")


if __name__ == "__main__":
    main()
