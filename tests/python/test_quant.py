"""The block codecs against the gguf package: equal bits wherever it has a codec, error budgets elsewhere."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from gemmule import _quant, dequantize, quantize

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SAME_ENCODER = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
HALVES = {  # byte offsets of the f16 fields of a block
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
K_BUDGETS = {"Q2_K": 0.284, "Q3_K": 0.153, "Q4_K": 0.075, "Q5_K": 0.038, "Q6_K": 0.0183}
SHAPES = [(256,), (1, 256), (7, 512), (33, 1024)]


def _kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def _random_halves(rng: np.random.Generator, n: int) -> np.ndarray:
    bits = rng.integers(0, 1 << 16, n).astype(np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000  # no NaN, no infinity
    bits[: n // 8] &= 0x83FF  # subnormal
    bits[: n // 16] &= 0x8000  # both zeros
    return bits


def _random_blocks(name: str, rng: np.random.Generator, n_blocks: int) -> np.ndarray:
    """uint8 [n_blocks, block_bytes]: any bytes, with f16 fields that are finite."""
    n_bytes = gguf.GGML_QUANT_SIZES[_kind(name)][1]
    if name == "F32":
        values = rng.integers(0, 1 << 32, n_blocks, dtype=np.uint64).astype(np.uint32)
        values[(values & 0x7F800000) == 0x7F800000] = 0
        return values.view(np.uint8).reshape(n_blocks, 4)
    if name in ("F16", "BF16"):
        halves = _random_halves(rng, n_blocks)
        halves[(halves & 0x7F80) == 0x7F80] = 0
        return halves.view(np.uint8).reshape(n_blocks, 2)
    blocks = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    for offset in HALVES[name]:
        blocks[:, offset : offset + 2] = _random_halves(rng, n_blocks).view(np.uint8).reshape(n_blocks, 2)
    return blocks


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", TYPES)
def test_dequantize_equals_gguf_by_bits(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    block_size = gguf.GGML_QUANT_SIZES[_kind(name)][0]
    rows, blocks_per_row = 48, 1 + seed * 3
    data = _random_blocks(name, rng, rows * blocks_per_row).reshape(rows, -1)
    got = dequantize(data, name, (rows, blocks_per_row * block_size))
    want = quants.dequantize(data, _kind(name)).astype(np.float32)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def _finite_inputs(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    heavy = np.clip(x * np.exp(3 * rng.standard_normal(shape)), -65504, 65504)
    inputs = {
        "gaussian": x,
        "small": x * 1e-3,
        "subnormal scales": x * 1e-6,
        "scales below f16": x * 1e-12,
        "large": x * 1e4,
        "zeros": np.zeros(shape),
        "negative zeros": -np.zeros(shape),
        "constant": np.full(shape, 0.37),
        "negative constant": np.full(shape, -2.5),
        "positive": np.abs(x),
        "negative": -np.abs(x),
        "integers": np.rint(4 * x),
        "ties": np.rint(60 * x) / 2,
        "heavy tail": heavy,
        "sparse": np.where(rng.random(shape) < 0.9, 0, x),
    }
    return {key: value.astype(np.float32) for key, value in inputs.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SAME_ENCODER)
def test_quantize_equals_gguf_by_bits(name: str, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        for label, x in _finite_inputs(shape, seed).items():
            got = quantize(x, name)
            want = np.ascontiguousarray(quants.quantize(x, _kind(name))).view(np.uint8)
            assert got.dtype == np.uint8
            assert got.shape == want.shape
            if name == "Q4_0":  # blocks on a lattice are stored without loss; gguf may lose something there
                exact = (dequantize(got, name, shape) == x).reshape(-1, 32).all(axis=1)
                got, want = got.reshape(-1, 18)[~exact], want.reshape(-1, 18)[~exact]
            np.testing.assert_array_equal(got, want, err_msg=f"{label}, seed {seed}")


@pytest.mark.parametrize("name", K_BUDGETS)
def test_k_types_round_trip_within_budget(name: str) -> None:
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((64, 1024)).astype(np.float32)
        for scale in (1.0, 1e-2, 1e3):
            y = x * np.float32(scale)
            error = quants.dequantize(quantize(y, name), _kind(name)) - y
            assert np.sqrt(np.mean(error**2) / np.mean(y**2)) < K_BUDGETS[name]


@pytest.mark.parametrize("name", K_BUDGETS)
@pytest.mark.parametrize("fill", [0.0, 1e-30, -1e-42, 3e38, -3.4e38, 1e6])
def test_k_types_never_give_nan(name: str, fill: float) -> None:
    x = np.full(512, fill, np.float32)
    x[::3] *= -0.5
    x[1] = 1.0
    y = dequantize(quantize(x, name), name, 512)
    assert np.isfinite(y).all()
    assert np.abs(y).max() > 0


@pytest.mark.parametrize("name", TYPES)
def test_zeros_stay_zero(name: str) -> None:
    assert not dequantize(quantize(np.zeros((2, 256), np.float32), name), name, (2, 256)).any()


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_independent(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((3, 512)).astype(np.float32)
    together = quantize(x, name)
    np.testing.assert_array_equal(together, np.stack([quantize(row, name) for row in x]))
    np.testing.assert_array_equal(together, quantize(np.asfortranarray(x), name))


def test_block_table_is_that_of_gguf() -> None:
    assert {name: gguf.GGML_QUANT_SIZES[_kind(name)] for name in TYPES} == _quant._BLOCKS


def test_empty_arrays() -> None:
    assert quantize(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert dequantize(np.empty(0, np.uint8), "Q4_K", (0, 256)).shape == (0, 256)


def test_quantize_refuses_bad_input() -> None:
    x = np.zeros(256, np.float32)
    with pytest.raises(ValueError, match="unknown tensor type 'Q9_K'"):
        quantize(x, "Q9_K")
    with pytest.raises(TypeError, match="type must be a string"):
        quantize(x, 12)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must have dtype float32, not float64"):
        quantize(x.astype(np.float64), "Q4_K")
    with pytest.raises(TypeError, match="must be a numpy array"):
        quantize([0.0] * 256, "Q4_K")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or 2 dimensions, not 3"):
        quantize(x.reshape(1, 1, 256), "Q4_K")
    with pytest.raises(ValueError, match="whole blocks of 256, but the last axis is 64"):
        quantize(x.reshape(4, 64), "Q4_K")
    for bad in (np.nan, np.inf, -np.inf):
        x[7] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize(x, "Q8_0")


def test_dequantize_refuses_bad_input() -> None:
    data = np.zeros(144, np.uint8)
    with pytest.raises(ValueError, match="unknown tensor type"):
        dequantize(data, "q4_k", 256)
    with pytest.raises(TypeError, match="must have dtype uint8"):
        dequantize(data.view(np.int8), "Q4_K", 256)
    with pytest.raises(TypeError, match="one or more integers"):
        dequantize(data, "Q4_K", (256.0,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one or more integers"):
        dequantize(data, "Q4_K", ())
    with pytest.raises(ValueError, match="negative size"):
        dequantize(data, "Q4_K", (-1, 256))
    with pytest.raises(ValueError, match="whole blocks of 256, but the last axis is 128"):
        dequantize(data, "Q4_K", (2, 128))
    with pytest.raises(ValueError, match="takes 288 bytes, but data has 144"):
        dequantize(data, "Q4_K", (2, 256))
