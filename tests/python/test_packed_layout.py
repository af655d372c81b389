"""The packed layout read as docs/FORMAT.md describes it, by a reader that shares nothing with the packer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import gemmule
from gemmule import _core

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float64]


class Reader:
    """Walks the bytes of a matrix from front to back."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, *shape: int) -> Bytes:
        n = int(np.prod(shape))
        self.at += n
        return self.data[self.at - n : self.at].reshape(shape)

    def halves(self, n: int) -> Numbers:
        """f16 [n][8]."""
        return self.take(n, 16).view(np.float16).astype(np.float64)

    def vectors(self, n: int) -> Bytes:
        """[n][row][element]."""
        return self.take(n, 8, 4)


def nibble_block(read: Reader, high: bool) -> Numbers:
    """The codes [row][32] of a block of Q4_0, or with `high` of Q5_0."""
    top = read.vectors(1)[0] if high else None
    v = read.vectors(4)
    codes = np.concatenate([v & 15, v >> 4])  # [k-group][row][element]
    if top is not None:
        codes |= np.stack([(top >> g & 1) << 4 for g in range(8)])
    return codes.transpose(1, 0, 2).reshape(8, 32).astype(np.float64)


def joined(k_groups: Bytes) -> Numbers:
    """[k-group][row][element] -> [row][numbers]."""
    return k_groups.transpose(1, 0, 2).reshape(8, -1).astype(np.float64)


def quarters(v: Bytes) -> Bytes:
    """The four k-groups in the bit pairs of a vector."""
    return np.stack([v >> 2 * g & 3 for g in range(4)])


def small_group(read: Reader, kind: str, n: int) -> Numbers:
    """n blocks of 32 of 8 rows."""
    d = read.halves(n)
    m = read.halves(n) if kind.endswith("_1") else None
    blocks = []
    for b in range(n):
        if kind == "Q8_0":
            q = read.vectors(8).view(np.int8).transpose(1, 0, 2).reshape(8, 32).astype(np.float64)
        else:
            q = nibble_block(read, kind.startswith("Q5"))
        offset = {"Q4_0": 8, "Q5_0": 16}.get(kind, 0)
        blocks.append(d[b][:, None] * (q - offset) + (0 if m is None else m[b][:, None]))
    return np.concatenate(blocks, axis=1)


def k_group(read: Reader, kind: str, d: Numbers | None) -> Numbers:
    """A block of 256 of 8 rows; `d` where it lies in front of the step."""
    dmin = np.zeros(8)
    if d is None:
        d, dmin = read.halves(1)[0], read.halves(1)[0]
    scale, low, blocks = [], [np.zeros(8)] * 16, []
    if kind in ("Q4_K", "Q5_K"):
        lo, hi = read.take(8, 8), read.take(4, 8)
        pair = [hi[j % 4] >> (4 if j >= 4 else 0) for j in range(8)]
        scale = [(lo[j] & 15) + (pair[j] & 3) * 16.0 for j in range(8)]
        low = [(lo[j] >> 4) + (pair[j] >> 2 & 3) * 16.0 for j in range(8)]
        blocks = [nibble_block(read, kind == "Q5_K") for _ in range(8)]
    elif kind == "Q2_K":
        both = read.take(16, 8)
        scale, low = list(both & 15), list((both >> 4).astype(np.float64))
        blocks = [joined(quarters(read.vectors(1)[0])) for _ in range(16)]
    elif kind == "Q6_K":
        scale = list(read.take(16, 8).view(np.int8).astype(np.float64))
        for _ in range(16):
            v = read.vectors(3)
            last = v[0] >> 6 | v[1] >> 6 << 2 | v[2] >> 6 << 4
            blocks.append(joined(np.concatenate([v & 63, last[None]])) - 32)
    else:
        lo, hi = read.take(8, 8), read.take(4, 8)
        four = [lo[j % 8] >> (4 if j >= 8 else 0) & 15 for j in range(16)]
        scale = [four[j] + (hi[j % 4] >> 2 * (j // 4) & 3) * 16.0 - 32 for j in range(16)]
        for _ in range(8):
            top = read.vectors(1)[0]
            for s in range(2):
                high = np.stack([(top >> (4 * s + g) & 1) << 2 for g in range(4)])
                blocks.append(joined(quarters(read.vectors(1)[0]) | high) - 4)
    columns = [
        (d * s)[:, None] * q - (dmin * m)[:, None] for s, m, q in zip(scale, low, blocks, strict=False)
    ]
    return np.concatenate(columns, axis=1)


def read_matrix(kind: str, n_rows: int, n_cols: int, data: Bytes) -> Numbers:
    read = Reader(data)
    out = np.zeros((n_rows, n_cols))
    for panel in range(0, n_rows, 64):
        n_groups = min(64, n_rows - panel) // 8
        for column in range(0, n_cols, 256):
            width = min(256, n_cols - column)
            before = read.halves(n_groups) if kind in ("Q6_K", "Q3_K") else None
            for g in range(n_groups):
                if kind.endswith("_K"):
                    values = k_group(read, kind, None if before is None else before[g])
                else:
                    values = small_group(read, kind, width // 32)
                out[panel + 8 * g : panel + 8 * g + 8, column : column + width] = values
    assert read.at == data.size
    return out


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
@pytest.mark.parametrize("n_rows", [8, 64, 136])
def test_the_layout_is_the_documented_one(kind: str, n_rows: int) -> None:
    n_cols = 512 if kind.endswith("_K") else 352
    numbers = np.random.default_rng(n_rows).standard_normal((n_rows, n_cols)).astype(np.float32)
    rows = gemmule.quantize(numbers, kind)
    packed = _core.pack_rows(kind, n_rows, n_cols, rows.reshape(-1))
    expected = gemmule.dequantize(rows, kind, numbers.shape)
    assert np.allclose(read_matrix(kind, n_rows, n_cols, packed), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(_core.unpack_rows(kind, n_rows, n_cols, packed), rows.reshape(-1))
