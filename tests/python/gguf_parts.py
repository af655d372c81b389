"""Small GGUF files for the tests of the converter: any tensors, a media part, a drafter part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmule._convert.bundle import bundle
from gemmule._convert.gguf_writer import lay_out
from gemmule._convert.image import ArrayRows, Image, Kv, TensorSpec

__all__ = [
    "TOKENS",
    "drafter_image",
    "image",
    "media_image",
    "spec",
    "text_image",
    "write_bundle",
    "write_image",
]

TOKENS = [b"<pad>", b"<eos>", b"<bos>", b"\xe2\x96\x81a", b"\xff"] + [f"t{i}".encode() for i in range(59)]
WIDTH = 256


def spec(name: str, array: NDArray[np.float32], keep: str | None = None) -> TensorSpec:
    """A tensor from numbers [..., n_cols]."""
    rows = array.reshape(-1, array.shape[-1])
    source = ArrayRows(f"test: tensor {name!r}", *rows.shape, lambda: rows)
    return TensorSpec(name, tuple(reversed(array.shape)), source, keep)


def image(keys: Sequence[Kv], tensors: Sequence[TensorSpec]) -> Image:
    return Image(tuple(keys), tuple(tensors))


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def text_image(n_layers: int = 3, width: int = WIDTH) -> Image:
    """Has the names and shapes of a Gemma 4 text model, but not enough keys to run."""
    keys = [
        Kv("general.architecture", "string", "gemma4"),
        Kv("general.name", "string", "small"),
        Kv("gemma4.block_count", "u32", n_layers),
        Kv("gemma4.embedding_length", "u32", width),
        Kv("gemma4.attention.head_count", "u32", 4),
        Kv("gemma4.attention.head_count_kv", "u32", 2),
        Kv("tokenizer.ggml.tokens", "array[string]", TOKENS),
        Kv("tokenizer.ggml.scores", "array[f32]", np.zeros(len(TOKENS), np.float32)),
        Kv("test.largest", "u64", 2**64 - 1),
    ]
    tensors = [
        spec("token_embd.weight", normal(len(TOKENS), width)),
        spec("output_norm.weight", normal(width, seed=1)),
    ]
    for layer in range(n_layers):
        for index, name in enumerate(("attn_q", "attn_v", "ffn_gate", "ffn_down")):
            array = normal(2 * width, width, seed=10 * layer + index + 2)
            tensors.append(spec(f"blk.{layer}.{name}.weight", array))
        tensors.append(spec(f"blk.{layer}.attn_norm.weight", normal(width, seed=layer + 99)))
    return image(keys, tensors)


def media_image(width: int = WIDTH) -> Image:
    keys = [
        Kv("general.architecture", "string", "clip"),
        Kv("general.type", "string", "mmproj"),
        Kv("clip.has_vision_encoder", "bool", True),
        Kv("clip.vision.projection_dim", "u32", width),
    ]
    return image(keys, [spec("mm.input_projection.weight", normal(width, 64, seed=7), keep="F16")])


def drafter_image(width: int = WIDTH, tokens: Sequence[bytes] = TOKENS) -> Image:
    keys = [
        Kv("general.architecture", "string", "gemma4-assistant"),
        Kv("gemma4-assistant.block_count", "u32", 1),
        Kv("gemma4-assistant.embedding_length_out", "u32", width),
        Kv("tokenizer.ggml.tokens", "array[string]", list(tokens)),
    ]
    tensors = [
        spec("token_embd.weight", normal(len(tokens), 128, seed=8)),
        spec("nextn.pre_projection.weight", normal(128, 2 * width, seed=9)),
        spec("output_norm.weight", normal(128, seed=10)),
    ]
    return image(keys, tensors)


def write_bundle(path: Path) -> Path:
    """One file with text model, media part and drafter; the parts (floats) stay beside it."""
    folder = path.parent
    text = write_image(folder / "text.gguf", text_image(), "BF16")
    media = write_image(folder / "media.gguf", media_image())
    drafter = write_image(folder / "drafter.gguf", drafter_image())
    bundle(text, mmproj=media, drafter=drafter, dst=path)
    return path


def write_image(path: Path, parts: Image, dtype: str = "F32") -> Path:
    """The file in floats, written the plain way: an independent writer of tensor bytes for the tests."""
    types = {t.name: t.keep or (dtype if len(t.shape) > 1 else "F32") for t in parts.tensors}
    layout = lay_out(parts, types)
    raw = bytearray(layout.size)
    raw[: len(layout.header)] = layout.header
    for tensor in layout.tensors:
        out = np.empty(4 * tensor.spec.n_elements, np.uint8)
        tensor.spec.rows.read_into(0, tensor.spec.rows.n_rows, out)
        numbers = out.view(np.float32)
        if tensor.type == "F16":
            data = numbers.astype(np.float16).tobytes()
        elif tensor.type == "BF16":
            data = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            data = numbers.tobytes()
        raw[tensor.offset : tensor.offset + len(data)] = data
    path.write_bytes(raw)
    return path
