"""Write a GGUF file of the true shapes of Gemma 4 12B with random weights, for speed work without weights.

The types follow the public Q4_K_M rule (Q6_K for the embedding and for some value and down projections) or
Q8_0 throughout. Codes are random, scales small, values centred on zero, so activations stay finite. The
text it writes means nothing. Tensor bytes of the full Q4_K_M: 7,365,558,464.

Usage: python tools/make_synthetic.py OUT.gguf --layers 6 --type Q4_K_M
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

from make_tiny_model import Shape, write_header

__all__ = ["shape_12b", "type_of", "write_synthetic"]

_F16_STEP = 2.0**-10


def shape_12b(n_layers: int) -> Shape:
    """The 12B with fewer layers; every sixth is global."""
    return Shape(
        "gemma4",
        d_model=3840,
        d_ff=15360,
        n_heads=16,
        n_kv_heads=8,
        n_kv_heads_global=1,
        head_dim=256,
        head_dim_global=512,
        window=1024,
        sliding_layers=tuple(i % 6 != 5 for i in range(n_layers)),
        n_vocab=262144,
        n_ctx=262144,
    )


def _more(i: int, n: int) -> bool:
    """The layers to which the rule of the _M mixes gives more bits."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def type_of(name: str, layer: int, n_layers: int, v_index: int, n_v: int, mix: str) -> str:
    """The tensor type of a matrix in this mix."""
    if mix != "Q4_K_M":
        return mix
    if name == "token_embd":
        return "Q6_K"
    if name == "attn_v" and _more(v_index, n_v):
        return "Q6_K"
    if name == "ffn_down" and _more(layer, n_layers):
        return "Q6_K"
    return "Q4_K"


def _random_rows(kind: str, rows: int, cols: int, noise: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes per row]: random blocks with scales that keep the values near 1 / sqrt(cols)."""
    quant = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quant]
    n_blocks = rows * cols // block
    data = np.resize(noise[: len(noise) // size * size], n_blocks * size).reshape(n_blocks, size)
    spread = np.float16(_F16_STEP / np.sqrt(cols))
    if (
        kind == "Q4_K"
    ):  # (d sc) q - (dmin mn), sc and mn up to 63, q up to 15: the means cancel at dmin = 7.5 d
        data[:, 0:2] = np.frombuffer(np.float16(spread * 4).tobytes(), np.uint8)
        data[:, 2:4] = np.frombuffer(np.float16(spread * 30).tobytes(), np.uint8)
    elif kind == "Q6_K":
        data[:, 208:210] = np.frombuffer(np.float16(spread).tobytes(), np.uint8)
    elif kind == "Q8_0":
        data[:, 0:2] = np.frombuffer(np.float16(spread * 16).tobytes(), np.uint8)
    else:
        raise ValueError(f"no random blocks for {kind}; choose Q4_K_M or Q8_0")
    return data.reshape(rows, -1)


def write_synthetic(path: Path, *, n_layers: int, mix: str, seed: int) -> None:
    """Write the file. Peak memory is about the size of the file."""
    shape = shape_12b(n_layers)
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, 16 << 20, dtype=np.uint8)
    writer = gguf.GGUFWriter(str(path), shape.arch, use_temp_file=True)
    write_header(writer, shape, seed=seed, type_name="F32")
    n_v = sum(shape.sliding_layers)

    def matrix(name: str, stem: str, rows: int, cols: int, layer: int = 0, v_index: int = 0) -> None:
        kind = type_of(stem, layer, n_layers, v_index, n_v, mix)
        data = _random_rows(kind, rows, cols, np.roll(noise, int(rng.integers(1 << 20))))
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])

    def vector(name: str, n: int) -> None:
        writer.add_tensor(name, rng.uniform(0.9, 1.1, n).astype(np.float32))

    d_model, d_ff = shape.d_model, shape.d_ff
    matrix("token_embd.weight", "token_embd", shape.n_vocab, d_model)
    vector("output_norm.weight", d_model)
    v_index = 0
    for i, sliding in enumerate(shape.sliding_layers):
        head_dim = shape.head_dim if sliding else shape.head_dim_global
        kv = (shape.n_kv_heads if sliding else shape.n_kv_heads_global) * head_dim
        q = shape.n_heads * head_dim
        block = f"blk.{i}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            vector(f"{block}{norm}.weight", d_model)
        vector(f"{block}attn_q_norm.weight", head_dim)
        vector(f"{block}attn_k_norm.weight", head_dim)
        vector(f"{block}layer_output_scale.weight", 1)
        matrix(f"{block}attn_q.weight", "attn_q", q, d_model, i)
        matrix(f"{block}attn_k.weight", "attn_k", kv, d_model, i)
        if sliding:
            matrix(f"{block}attn_v.weight", "attn_v", kv, d_model, i, v_index)
            v_index += 1
        matrix(f"{block}attn_output.weight", "attn_output", d_model, q, i)
        matrix(f"{block}ffn_gate.weight", "ffn_gate", d_ff, d_model, i)
        matrix(f"{block}ffn_up.weight", "ffn_up", d_ff, d_model, i)
        matrix(f"{block}ffn_down.weight", "ffn_down", d_model, d_ff, i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--type", default="Q4_K_M", choices=["Q4_K_M", "Q8_0"])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_synthetic(args.out, n_layers=args.layers, mix=args.type, seed=args.seed)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
