"""A tiny model over 200,000 positions, against double precision.

Two sliding layers and a global one, the global one in the 12B's form (values are keys, only some of them
turn). The reference needs the last layer at a few rows alone, so no attention of n^2 positions has to be
computed twice. Every chunk of 256 positions matters: leaving out any of them moves the logits a hundred times
further than the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gemmule import _core
from project_modules import load_module

tiny = load_module("tools", "make_tiny_model")

Numbers = NDArray[np.float64]

N_TOKENS = 200_000
CHECKED = (65_536, 131_071, N_TOKENS)  # tokens before a look at the logits
SHAPE = tiny.Shape("gemma4", 32, 48, 1, 1, 1, 16, 32, 48, (True, True, False), n_vocab=384, n_ctx=262_144)
EPS = 1e-6
TOLERANCE = 3e-6  # of the largest logit
PIECE = 8192  # positions that the reference takes at a time


def random_weights(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    d, n_heads = SHAPE.d_model, SHAPE.n_heads

    def matrix(rows: int, cols: int) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    def norm(n: int, centre: float = 1.0) -> NDArray[np.float32]:
        return (centre * (1 + 0.3 * rng.standard_normal(n))).astype(np.float32)

    embedding = (0.5 * rng.standard_normal((SHAPE.n_vocab, d))).astype(np.float32)
    weights = {"token_embd.weight": embedding, "output_norm.weight": norm(d)}
    for i, is_sliding in enumerate(SHAPE.sliding_layers):
        dim = SHAPE.head_dim if is_sliding else SHAPE.head_dim_global
        layer = {
            "attn_norm": norm(d),
            "attn_q": matrix(n_heads * dim, d),
            "attn_k": matrix(dim, d),
            "attn_output": matrix(d, n_heads * dim),
            "attn_q_norm": norm(dim, 0.25),  # no position takes everything: all of the past has weight
            "attn_k_norm": norm(dim),
            "post_attention_norm": norm(d),
            "ffn_norm": norm(d),
            "ffn_gate": matrix(SHAPE.d_ff, d),
            "ffn_up": matrix(SHAPE.d_ff, d),
            "ffn_down": matrix(d, SHAPE.d_ff),
            "post_ffw_norm": norm(d),
            "layer_output_scale": norm(1),
        }
        if is_sliding:
            layer["attn_v"] = matrix(dim, d)
        weights |= {f"blk.{i}.{name}.weight": value for name, value in layer.items()}
    return weights


def write_model(path: Path, weights: dict[str, NDArray[np.float32]]) -> None:
    writer = gguf.GGUFWriter(str(path), "gemma4")
    tiny.write_header(writer, SHAPE, seed=1, type_name="F32")
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rms(x: Numbers, weight: Numbers | float = 1.0) -> Numbers:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * weight)


def gelu(x: Numbers) -> Numbers:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def softmax(x: Numbers) -> Numbers:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def turned(x: Numbers, pos: NDArray[np.int64], n_pairs: int, base: float) -> Numbers:
    """The first n_pairs pairs of heads [n, heads, dim] rotated; angles are f32 numbers, as promised."""
    half = x.shape[-1] // 2
    freq = (base ** (-np.arange(n_pairs) / half)).astype(np.float32)
    angle = (pos.astype(np.float32)[:, None] * freq).astype(np.float64)[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    out = x.copy()
    a, b = x[..., :n_pairs], x[..., half : half + n_pairs]
    out[..., :n_pairs] = a * cos - b * sin
    out[..., half : half + n_pairs] = b * cos + a * sin
    return out


@dataclass(frozen=True)
class Layer:
    """One layer in double precision, for rows [n, d_model] whose keys and values are given."""

    w: dict[str, Numbers]
    is_sliding: bool

    @property
    def dim(self) -> int:
        return int(SHAPE.head_dim if self.is_sliding else SHAPE.head_dim_global)

    def _turned(self, x: Numbers, pos: NDArray[np.int64]) -> Numbers:
        kind = "sliding" if self.is_sliding else "global"
        return turned(x, pos, self.dim // (2 if self.is_sliding else 8), SHAPE.theta[kind])

    def keys_and_values(self, x: Numbers, pos: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
        h = rms(x, self.w["attn_norm"])
        k = h @ self.w["attn_k"].T
        v = h @ self.w["attn_v"].T if self.is_sliding else k
        k = self._turned(rms(k, self.w["attn_k_norm"])[:, None, :], pos)[:, 0]
        return k, rms(v)

    def queries(self, x: Numbers, pos: NDArray[np.int64]) -> Numbers:
        q = (rms(x, self.w["attn_norm"]) @ self.w["attn_q"].T).reshape(len(x), SHAPE.n_heads, self.dim)
        return self._turned(rms(q, self.w["attn_q_norm"]), pos)

    def rest(self, x: Numbers, heads: Numbers) -> Numbers:
        """What follows attention, whose results of all heads are [n, n_heads * dim]."""
        x = x + rms(heads @ self.w["attn_output"].T, self.w["post_attention_norm"])
        h = rms(x, self.w["ffn_norm"])
        h = gelu(h @ self.w["ffn_gate"].T) * (h @ self.w["ffn_up"].T)
        x = x + rms(h @ self.w["ffn_down"].T, self.w["post_ffw_norm"])
        return np.asarray(x * self.w["layer_output_scale"])


def through_sliding_layer(layer: Layer, x: Numbers) -> Numbers:
    """Piece by piece, each with the window before it."""
    n, window = len(x), SHAPE.window
    out = np.empty_like(x)
    for first in range(0, n, PIECE):
        begin, end = max(0, first - window + 1), min(n, first + PIECE)
        k, v = layer.keys_and_values(x[begin:end], np.arange(begin, end))
        pos = np.arange(first, end)
        seen = pos[:, None] - np.arange(window)[None, ::-1]  # [rows, window], below 0: nothing there
        at = np.maximum(seen - begin, 0)
        q = layer.queries(x[first:end], pos)
        scores = np.einsum("nhd,nwd->nhw", q, k[at])
        weights = softmax(np.where(seen[:, None, :] >= 0, scores, -np.inf))
        heads = np.einsum("nhw,nwd->nhd", weights, v[at])
        out[first:end] = layer.rest(x[first:end], heads.reshape(end - first, -1))
    return out


@dataclass(frozen=True)
class Reference:
    """Logits after some tokens, and the least that leaving out one chunk of the past changes them by."""

    logits: Numbers
    least_change: float


class DoubleModel:
    def __init__(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self._w = {name: value.astype(np.float64) for name, value in weights.items()}
        self._layers = []
        for i, is_sliding in enumerate(SHAPE.sliding_layers):
            start = f"blk.{i}."
            own = {n.removeprefix(start).removesuffix(".weight"): v for n, v in self._w.items() if start in n}
            self._layers.append(Layer(own, is_sliding))

    def last_input(self, ids: NDArray[np.int32]) -> Numbers:
        """The input of the global layer, [n, d_model]."""
        x = self._w["token_embd.weight"][ids] * np.sqrt(SHAPE.d_model)
        for layer in self._layers[:-1]:
            x = through_sliding_layer(layer, x)
        return x

    def after(self, x: Numbers) -> Reference:
        """The logits of the last of the rows x, whose sums over chunks are kept apart."""
        layer, n, row = self._layers[-1], len(x), x[-1:]
        q = layer.queries(row, np.array([n - 1]))[0]
        parts = []
        for first in range(0, n, 256):
            k, v = layer.keys_and_values(x[first : first + 256], np.arange(first, min(n, first + 256)))
            e = np.exp(q @ k.T)  # scores are small: see attn_q_norm
            parts.append((e @ v, e.sum(axis=-1, keepdims=True)))
        sums = np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])
        whole = self._logits(layer, row, sums[0].sum(0)[None] / sums[1].sum(0))
        without = (sums[0].sum(0) - sums[0]) / (sums[1].sum(0) - sums[1])
        changes = np.abs(self._logits(layer, row, without) - whole).max(axis=-1)
        return Reference(whole[0], float(changes.min()))

    def _logits(self, layer: Layer, row: Numbers, heads: Numbers) -> Numbers:
        x = layer.rest(np.repeat(row, len(heads), axis=0), heads.reshape(len(heads), -1))
        return np.asarray(
            30 * np.tanh(rms(x, self._w["output_norm.weight"]) @ self._w["token_embd.weight"].T / 30)
        )


def worst(logits: NDArray[Any], reference: Reference) -> float:
    return float(np.abs(logits - reference.logits).max() / np.abs(reference.logits).max())


@pytest.mark.slow
def test_two_hundred_thousand_tokens_agree_with_double_precision(tmp_path: Path) -> None:
    weights = random_weights(7)
    path = tmp_path / "long.gguf"
    write_model(path, weights)
    ids = np.random.default_rng(3).integers(0, SHAPE.n_vocab, N_TOKENS, dtype=np.int32)
    model = _core.Model(str(path), n_threads=2)
    session = model.session(n_ctx=SHAPE.n_ctx, kv_type="f32")
    double = DoubleModel(weights)
    x = double.last_input(ids)
    done = 0
    for n in CHECKED:
        session.append(ids[done:n])
        done = n
        reference = double.after(x[:n])
        error = worst(session.logits(), reference)
        assert error <= TOLERANCE, n
        assert reference.least_change > 100 * error * np.abs(reference.logits).max(), n
    # 32 numbers of a value and 16 of a key in the global layer; whole chunks in use
    used = -(-N_TOKENS // 256) * 256 * (32 + 16) * 4
    assert used <= session.kv_used_bytes <= used + (1 << 20)
    # the last token again, alone: the same bits as in its batch
    before = session.logits().tobytes()
    session.rewind(N_TOKENS - 1)
    session.append(ids[-1:])
    assert session.logits().tobytes() == before
