"""Write a GGUF file of the true shapes of Gemma 4 12B with random weights, for speed work without weights.

The types follow the public Q4_K_M rule (Q6_K for the embedding and for half of the value and down
projections) or are Q8_0 throughout. Every code is random and valid; the f16 scales are U(0.5, 1.5) times
what gives rows of unit gain, so activations stay finite through all layers. The text such a model writes
means nothing. Tensors are made and written in pieces of about 8 MB, so memory use does not grow with the
file. Tensor bytes of 48 layers: 7,365,558,464 (Q4_K_M), 12,653,822,144 (Q8_0). With --drafter the file is the
12B's drafter, which fits such models of any number of layers.

Usage: python tools/make_synthetic.py OUT.gguf --layers 6 --type Q4_K_M [--layout packed]
       python tools/make_synthetic.py mtp-OUT.gguf --drafter Q8_0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from make_tiny_model import Shape, write_header

__all__ = ["shape_12b", "shape_drafter", "type_of", "write_synthetic"]

_ALIGNMENT = 32
_PIECE = 8 << 20


@dataclass(frozen=True)
class _Format:
    """Where the f16 scales of a block lie, and their mean for rows whose numbers have variance 1 / cols.

    Q4_K: (d sc) q - (dmin mn) with sc and mn up to 63 and q up to 15: the means cancel at dmin = 7.5 d.
    """

    scales: tuple[tuple[int, float], ...]


_FORMATS = {
    "Q4_K": _Format(((0, 2.0**-8), (2, 7.5 * 2.0**-8))),
    "Q6_K": _Format(((208, 2.0**-10),)),
    "Q8_0": _Format(((0, 2.0**-6),)),
}


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


def shape_drafter() -> Shape:
    """The assistant of the 12B."""
    pattern = (True, True, True, False)
    return replace(
        shape_12b(0),
        arch="gemma4-assistant",
        d_model=1024,
        d_ff=8192,
        sliding_layers=pattern,
        n_shared=len(pattern),
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


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file: [rows, cols], a vector where rows is 0."""

    name: str
    kind: str
    rows: int
    cols: int

    @property
    def n_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return max(self.rows, 1) * self.cols // block * size


def _entries(shape: Shape, mix: str) -> Iterator[_Entry]:
    n_layers, n_v = len(shape.sliding_layers), sum(shape.sliding_layers)
    d_model, d_ff = shape.d_model, shape.d_ff
    v_index = 0

    def matrix(block: str, stem: str, rows: int, cols: int, layer: int = 0) -> _Entry:
        kind = type_of(stem, layer, n_layers, v_index, n_v, mix)
        return _Entry(f"{block}{stem}.weight", kind, rows, cols)

    yield matrix("", "token_embd", shape.n_vocab, d_model)
    yield _Entry("output_norm.weight", "F32", 0, d_model)
    is_drafter = shape.n_shared == n_layers
    if is_drafter:
        d_target = shape_12b(0).d_model
        yield matrix("", "nextn.pre_projection", d_model, 2 * d_target)
        yield matrix("", "nextn.post_projection", d_target, d_model)
    for i, sliding in enumerate(shape.sliding_layers):
        head_dim = shape.head_dim if sliding else shape.head_dim_global
        kv = (shape.n_kv_heads if sliding else shape.n_kv_heads_global) * head_dim
        q = shape.n_heads * head_dim
        block = f"blk.{i}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            yield _Entry(f"{block}{norm}.weight", "F32", 0, d_model)
        yield _Entry(f"{block}attn_q_norm.weight", "F32", 0, head_dim)
        if not is_drafter:
            yield _Entry(f"{block}attn_k_norm.weight", "F32", 0, head_dim)
        yield _Entry(f"{block}layer_output_scale.weight", "F32", 0, 1)
        yield matrix(block, "attn_q", q, d_model, i)
        if not is_drafter:
            yield matrix(block, "attn_k", kv, d_model, i)
        if sliding and not is_drafter:
            yield matrix(block, "attn_v", kv, d_model, i)
            v_index += 1
        yield matrix(block, "attn_output", d_model, q, i)
        yield matrix(block, "ffn_gate", d_ff, d_model, i)
        yield matrix(block, "ffn_up", d_ff, d_model, i)
        yield matrix(block, "ffn_down", d_model, d_ff, i)


def _pieces(entry: _Entry, noise: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The bytes of a tensor, uint8 [blocks, block size] at a time; noise: uint8 [2 * _PIECE]."""
    if entry.rows == 0:
        yield rng.uniform(0.9, 1.1, entry.cols).astype(np.float32).view(np.uint8)
        return
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[entry.kind]][1]
    left = entry.n_bytes // size
    while left:
        n = min(left, _PIECE // size)
        left -= n
        start = int(rng.integers(noise.size - n * size))
        blocks = noise[start : start + n * size].reshape(n, size).copy()
        spread = rng.uniform(0.5, 1.5, n) / np.sqrt(entry.cols)
        for offset, mean in _FORMATS[entry.kind].scales:
            blocks[:, offset : offset + 2] = (spread * mean).astype(np.float16).view(np.uint8).reshape(n, 2)
        yield blocks


def write_synthetic(path: Path, shape: Shape, *, mix: str, seed: int) -> None:
    """Write the file. The same arguments always give the same bytes."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, 2 * _PIECE, dtype=np.uint8)
    writer = gguf.GGUFWriter(str(path), shape.arch)
    write_header(writer, shape, seed=seed, type_name="F32")
    if shape.n_shared:
        writer.add_uint32(f"{shape.arch}.embedding_length_out", shape_12b(0).d_model)
        writer.add_uint32(f"{shape.arch}.nextn_predict_layers", shape.n_shared)
    ready = [info.tensor for info in writer.tensors[0].values()]  # the rotary factors
    entries = list(_entries(shape, mix))
    for entry in entries:
        extents = (entry.rows, entry.cols) if entry.rows else (entry.cols,)
        kind = gguf.GGMLQuantizationType[entry.kind]
        writer.add_tensor_info(entry.name, extents, np.dtype(np.float32), entry.n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:

        def align() -> None:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))

        align()
        for tensor in ready:
            assert tensor is not None
            file.write(tensor.tobytes())
            align()
        for entry in entries:
            for piece in _pieces(entry, noise, rng):
                file.write(piece.data)
            align()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--drafter", choices=["Q4_K_M", "Q8_0"], help="write the drafter, of this type")
    parser.add_argument("--type", default="Q4_K_M", choices=["Q4_K_M", "Q8_0"])
    parser.add_argument("--layout", default="gguf", choices=["gguf", "packed"])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = args.out if args.layout == "gguf" else args.out.with_name(args.out.name + ".rows")
    shape = shape_drafter() if args.drafter else shape_12b(args.layers)
    write_synthetic(rows, shape, mix=args.drafter or args.type, seed=args.seed)
    if args.layout == "packed":
        import gemmule

        gemmule.pack(rows, args.out, overwrite=True)
        rows.unlink()
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
