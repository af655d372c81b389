"""Measure how much an encoding error in each part of a model moves its predictions.

For each role (attn_q, ffn_down, head, ...) and each part of the depth, the matrices are rounded to a coarse
type, everything else stays, and the mean KL divergence of the next-token distribution from the unchanged
model's is taken over a text. KL / relative squared error, plain and weighted by the importance of the
columns, is the harm that python/gemmule/_convert/sensitivity.py holds as a table. A tied embedding is split
into a table and a head, so that both uses are seen apart. A quantized source lies on the lattice of its own
types, where rounding to them costs nothing; --blur adds noise that takes it off.

Usage: python tools/measure_sensitivity.py gemma-3-270m.gguf text.txt --work folder
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gemmule
from gemmule import _core
from gemmule._convert.gguf_source import load_gguf
from gemmule._convert.gguf_writer import ImageLayout, PlacedTensor, lay_out
from gemmule._convert.image import Image, TensorSpec
from gemmule._convert.imatrix import compute
from gemmule._convert.mixes import is_quantizable, keep_type, role_of

Floats = NDArray[np.float32]
BASE = "Q8_0"


@dataclass(frozen=True)
class Part:
    """The matrices of one role in one part of the depth."""

    role: str
    depth: str
    tensors: tuple[str, ...]


def decoded(spec: TensorSpec) -> Floats:
    """All numbers of a tensor, float32 [rows, cols]."""
    rows = spec.rows
    element, size = _core.block_size(rows.dtype)
    raw = np.empty(rows.n_rows * rows.n_cols // element * size, np.uint8)
    rows.read_into(0, rows.n_rows, raw)
    return gemmule.dequantize(raw, rows.dtype, (rows.n_rows, rows.n_cols))


def blurred(values: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """The numbers with noise of `amount` times their root mean square."""
    if amount == 0:
        return values
    scale = np.float32(amount * np.sqrt(np.mean(values**2)))
    return values + scale * rng.standard_normal(values.shape, dtype=np.float32)


def write_base(source: Path, target: Path, blur: float) -> ImageLayout:
    """The model with every matrix in the base type and a head of its own."""
    image = load_gguf(source).text
    tensors = list(image.tensors)
    if all(spec.name != "output.weight" for spec in tensors):
        table = next(spec for spec in tensors if spec.name == "token_embd.weight")
        tensors.append(TensorSpec("output.weight", table.shape, table.rows))
    types = {spec.name: BASE if is_quantizable(spec) else keep_type(spec) for spec in tensors}
    layout = lay_out(Image(image.metadata, tuple(tensors)), types)
    with target.open("wb") as stream:
        stream.write(layout.header)
        for placed in layout.tensors:
            # The table and the head must blur alike: one generator per tensor data, seeded alike.
            rng = np.random.default_rng(placed.spec.rows.n_rows)
            values = decoded(placed.spec)
            if types[placed.spec.name] == BASE:
                values = blurred(values, blur, rng)
            stream.seek(placed.offset)
            stream.write(gemmule.quantize(np.ascontiguousarray(values), placed.type).tobytes())
        stream.truncate(layout.size)
    return layout


def parts_of(image_layout: ImageLayout, n_layers: int, n_depths: int) -> Iterator[Part]:
    """Every role by part of the depth; the embedding and the head stand alone."""
    found: dict[tuple[str, str], list[str]] = {}
    for placed in image_layout.tensors:
        name = placed.spec.name
        if placed.type != BASE:
            continue
        layer = re.match(r"blk\.(\d+)\.", name)
        depth = f"{int(layer[1]) * n_depths // n_layers + 1}/{n_depths}" if layer else "-"
        found.setdefault((role_of(name, tied=False), depth), []).append(name)
    for (role, depth), names in sorted(found.items()):
        yield Part(role, depth, tuple(names))


class Bench:
    """The base model, its predictions on a text, and what a change of its matrices does to them."""

    def __init__(self, path: Path, layout: ImageLayout, text: Path, windows: int, n_ctx: int) -> None:
        self.path = path
        self.places: dict[str, PlacedTensor] = {placed.spec.name: placed for placed in layout.tensors}
        with gemmule.Model(path, n_ctx=n_ctx) as model:
            ids = np.array(model.tokenizer.encode(text.read_text()), np.int32)
            bos = model.tokenizer.bos_id
        first = len(ids) // 2 - len(ids) // 2 % n_ctx  # the first half measures the importance
        self.windows = [ids[first + i * n_ctx : first + (i + 1) * n_ctx].copy() for i in range(windows)]
        for window in self.windows:
            window[0] = bos
        half = text.read_text()[: len(text.read_text()) // 2]
        self.importance = compute(path, half, n_ctx=n_ctx, n_chunks=8, head=True)
        self.base = list(self.predictions())

    def predictions(self) -> Iterator[Floats]:
        """Log-probabilities [n_ctx / 2, n_vocab] of the second half of each window."""
        model = _core.Model(str(self.path))
        session = model.session(n_ctx=len(self.windows[0]))
        for window in self.windows:
            session.rewind(0)
            half = len(window) // 2
            session.append(window[:half])
            logits = session.append_logits(window[half:])
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
            yield logits

    def divergence(self) -> float:
        """Mean KL divergence of what the file now predicts from what it predicted at first."""
        rows = [
            (np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64)
            for p, q in zip(self.base, self.predictions(), strict=True)
        ]
        return float(np.concatenate(rows).mean())

    def change(self, part: Part, coarse: str) -> tuple[float, float, float]:
        """(relative squared error, the same weighted, mean KL) with the matrices of a part rounded."""
        plain = weighted = 0.0
        saved: dict[int, bytes] = {}
        with self.path.open("r+b") as file:
            for name in part.tensors:
                placed = self.places[name]
                file.seek(placed.offset)
                raw = file.read(placed.n_bytes)
                saved[placed.offset] = raw
                shape = (placed.spec.rows.n_rows, placed.spec.rows.n_cols)
                values = gemmule.dequantize(np.frombuffer(raw, np.uint8), BASE, shape)
                rounded = gemmule.dequantize(gemmule.quantize(values, coarse), coarse, shape)
                again = gemmule.quantize(rounded, BASE)
                weights = self.importance.importance(name, shape[1])
                weights = np.ones((1, shape[1]), np.float32) if weights is None else weights
                delta = gemmule.dequantize(again, BASE, shape) - values
                plain += float((delta**2).sum() / (values**2).sum())
                weighted += float((weights * delta**2).sum() / (weights * values**2).sum())
                file.seek(placed.offset)
                file.write(again.tobytes())
            file.flush()
            try:
                divergence = self.divergence()
            finally:
                for offset, raw in saved.items():
                    file.seek(offset)
                    file.write(raw)
        n = len(part.tensors)
        return plain / n, weighted / n, divergence


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the base model")
    parser.add_argument("--coarse", default="Q4_0", help="type the matrices are rounded to")
    parser.add_argument("--blur", type=float, default=0.03, help="noise relative to the root mean square")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--n-ctx", type=int, default=384)
    parser.add_argument("--depths", type=int, default=3, help="parts of the depth")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "base.gguf"
    layout = write_base(args.model, path, args.blur)
    bench = Bench(path, layout, args.text, args.windows, args.n_ctx)
    n_layers = _core.Model(str(path)).n_layers
    print("| role | depth | matrices | error^2 | weighted error^2 | KL (nat) | harm | weighted harm |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for part in parts_of(layout, n_layers, args.depths):
        plain, weighted, kl = bench.change(part, args.coarse)
        rows.append(
            (part.role, part.depth, len(part.tensors), plain, weighted, kl, kl / plain, kl / weighted)
        )
        print("| {} | {} | {} | {:.5f} | {:.5f} | {:.6f} | {:.3f} | {:.3f} |".format(*rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
