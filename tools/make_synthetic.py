"""Write GGUF files of the true shapes of Gemma 4 12B with random weights, for speed work without weights.

They are what `gemmule convert` writes from a checkpoint of these shapes: text model, image and sound
embedders, drafter, a vocabulary of 262,144 tokens with the true special ones, checksums. Only the numbers of
the matrices come from nowhere: random codes with f16 scales of U(0.5, 1.5) times what gives rows of unit
gain, so activations stay finite through all layers; the text such a model writes means nothing. Matrices are
made while they are written, so memory does not grow with the file, and the same arguments always give the
same bytes. 48 layers take 7.4 GB in Q4_K_M and 12.7 GB in Q8_0, media 0.2 GB, the drafter 0.45 GB (Q8_0).

Usage: python tools/make_synthetic.py 12b-shaped.gguf --layers 6
       python tools/make_synthetic.py FOLDER --type Q4_K_M Q8_0      the whole set, 12b-shaped-TYPE.gguf
       gemmule split 12b-shaped.gguf                                 text, media and drafter as three files
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

import gemmule
from gemmule import _core
from gemmule._convert import mixes
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.convert import write_files
from gemmule._convert.image import Bundle, Image
from gemmule._convert.planning import FLOATS, Request, make_plan

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_synthetic_checkpoint import write_checkpoint

__all__ = ["RandomRows", "write_like", "write_synthetic"]

NAME = "12b-shaped"
_SHARD_BYTES = 5_000_000_000
_NOISE_BYTES = 68 << 20  # more than the converter asks for at a time: 32 MiB, of numbers of two bytes or more

# Where the f16 scales of a block lie, and their sizes beside one another. With a minimum, the codes' mean
# cancels: (d s) q - (dmin m) has s and m from the same bits, so dmin is d times the mean of q.
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 1.0),),
    "Q4_1": ((0, 1.0), (2, -7.5)),
    "Q5_0": ((0, 1.0),),
    "Q5_1": ((0, 1.0), (2, -15.5)),
    "Q8_0": ((0, 1.0),),
    "Q2_K": ((80, 1.0), (82, 1.5)),
    "Q3_K": ((108, 1.0),),
    "Q4_K": ((0, 1.0), (2, 7.5)),
    "Q5_K": ((0, 1.0), (2, 15.5)),
    "Q6_K": ((208, 1.0),),
}


@cache
def _noise(kind: str) -> np.ndarray:
    """Random codes uint8 [bytes], or Gaussian numbers float32 [numbers]."""
    rng = np.random.default_rng(1)
    if kind in FLOATS:
        return rng.standard_normal(_NOISE_BYTES // 4, dtype=np.float32)
    return rng.integers(0, 256, _NOISE_BYTES, dtype=np.uint8)


def _set_scales(blocks: np.ndarray, kind: str, d: np.ndarray) -> None:
    """Writes the scales of blocks uint8 [n, block size], d float [n]."""
    for offset, ratio in _SCALES[kind]:
        blocks[:, offset : offset + 2] = (ratio * d).astype("<f2").view(np.uint8).reshape(-1, 2)


@cache
def _deviation(kind: str) -> float:
    """Of the numbers that random codes stand for at scale 1."""
    elements, size = gemmule._quant._BLOCKS[kind]
    n = 4096
    blocks = _noise(kind)[: n * size].reshape(n, size).copy()
    _set_scales(blocks, kind, np.ones(n))
    return float(gemmule.dequantize(blocks.reshape(-1), kind, (n * elements,)).std())


@dataclass(frozen=True)
class RandomRows:
    """A matrix [n_rows, n_cols] of one type, of variance 1 / n_cols, that follows from its name."""

    origin: str
    n_rows: int
    n_cols: int
    dtype: str

    def read_into(self, first: int, n: int, out: np.ndarray) -> None:
        """Rows [first, first + n) as stored bytes: the noise from a random place on."""
        rng = np.random.default_rng([zlib.crc32(self.origin.encode()), first])
        noise, gain = _noise(self.dtype), 1 / np.sqrt(self.n_cols)
        if self.dtype in FLOATS:
            start = int(rng.integers(noise.size - n * self.n_cols))
            numbers = noise[start : start + n * self.n_cols] * np.float32(gain)
            if self.dtype == "BF16":
                numbers = (numbers.view(np.uint32) >> 16).astype(np.uint16)
            elif self.dtype == "F16":
                numbers = numbers.astype(np.float16)
            out[:] = numbers.view(np.uint8)
            return
        start = int(rng.integers(noise.size - out.size))
        out[:] = noise[start : start + out.size]
        blocks = out.reshape(-1, gemmule._quant._BLOCKS[self.dtype][1])
        spread = rng.uniform(0.5, 1.5, len(blocks))
        _set_scales(blocks, self.dtype, spread * gain / _deviation(self.dtype))


def _random(image: Image, name: str) -> Image:
    """The image with random matrices in the types of the mix; vectors stay as they are."""
    types = mixes.assign_types(image, name)
    tensors = [
        replace(spec, rows=RandomRows(spec.name, spec.rows.n_rows, spec.rows.n_cols, types[spec.name]))
        if spec.rows.n_rows > 1
        else spec
        for spec in image.tensors
    ]
    return Image(image.metadata, tuple(tensors))


def write_like(
    checkpoint: Path, out: Path, *, kind: str, drafter_kind: str = "Q8_0", layout: str = "gguf"
) -> None:
    """Writes what converting the checkpoint (and the assistant beside it) to this type would give, with
    random matrices. Numbers of the checkpoint's matrices are not read, so they may be holes.
    """
    bundle = load_checkpoint(checkpoint)
    kinds = {"mmproj": "F32", "drafter": drafter_kind}
    sections = {name: _random(image, kinds[name]) for name, image in bundle.sections.items()}
    bundle = Bundle(_random(bundle.text, kind), sections, bundle.source, bundle.source_dtype)
    request = Request(drafter_type=drafter_kind, is_packed=layout == "packed")
    encoder = _core.Encoder(1)  # has nothing to do but to copy
    plan = make_plan(bundle, out, kind, kind, request, encoder)
    write_files(bundle, [plan], request, encoder, overwrite=True)


def write_synthetic(
    files: Sequence[tuple[Path, str]], *, n_layers: int = 48, drafter_kind: str = "Q8_0", layout: str = "gguf"
) -> None:
    """Writes files (path, type) of the 12B's shapes with so many layers; every sixth is global."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / NAME
        write_checkpoint(checkpoint, n_layers=n_layers, shard_bytes=_SHARD_BYTES, sparse=True)
        assistant = checkpoint.with_name(f"{NAME}-assistant")
        write_checkpoint(assistant, n_layers=0, shard_bytes=_SHARD_BYTES, sparse=True, assistant=True)
        for path, kind in files:
            write_like(checkpoint, path, kind=kind, drafter_kind=drafter_kind, layout=layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="the file, NAME.gguf, or the folder of several")
    parser.add_argument("--layers", type=int, default=48, help="one alone is global, which fits no drafter")
    parser.add_argument("--type", nargs="+", default=["Q4_K_M"], metavar="TYPE", help="types, as of convert")
    parser.add_argument("--drafter", default="Q8_0", metavar="TYPE", help="the drafter's type (Q8_0)")
    parser.add_argument("--layout", default="gguf", choices=["gguf", "packed"])
    args = parser.parse_args()
    if args.out.suffix == ".gguf" and len(args.type) == 1:
        files = [(args.out, args.type[0])]
    else:
        args.out.mkdir(exist_ok=True)
        files = [(args.out / f"{NAME}-{kind}.gguf", kind) for kind in args.type]
    write_synthetic(files, n_layers=args.layers, drafter_kind=args.drafter, layout=args.layout)
    for path, _ in files:
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
