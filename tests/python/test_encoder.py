"""The core's Encoder and Xxh64: what the bindings check, and what importance does to the K types."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from gemmule import Cancelled, _core, dequantize

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _room(shape: tuple[int, int], name: str) -> np.ndarray:
    size, n_bytes = _core.block_size(name)
    return np.zeros(shape[0] * (shape[1] // size) * n_bytes, np.uint8)


@pytest.mark.parametrize("name", TYPES)
def test_sums_are_those_of_the_gguf_decoder(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 512)).astype(np.float32)
    importance = rng.gamma(0.5, 1.0, 512).astype(np.float32)
    out = _room(x.shape, name)
    error2, norm2, weighted_error2, weighted_norm2, first_bad = _core.Encoder(2).encode(
        _bytes(x), "F32", 512, name, out, importance=importance
    )
    y = quants.dequantize(out.reshape(24, -1), GGMLQuantizationType[name]).astype(np.float64)
    assert first_bad == -1
    assert error2 == pytest.approx(((x - y) ** 2).sum(), rel=1e-6)
    assert norm2 == pytest.approx((x.astype(np.float64) ** 2).sum(), rel=1e-6)
    assert weighted_error2 == pytest.approx((importance * (x - y) ** 2).sum(), rel=1e-6)
    assert weighted_norm2 == pytest.approx((importance * x.astype(np.float64) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize("name", K_TYPES)
def test_importance_moves_the_error_to_where_it_counts_less(name: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_t(4, (64, 1024)).astype(np.float32)
    importance = np.where(np.arange(1024) % 16 == 0, 40.0, 1.0).astype(np.float32)
    encoder = _core.Encoder(2)
    out = _room(x.shape, name)
    with_importance = encoder.encode(_bytes(x), "F32", 1024, name, out, importance=importance)
    encoder.encode(_bytes(x), "F32", 1024, name, out)
    plain = (importance * (x - dequantize(out.reshape(64, -1), name, x.shape)) ** 2).sum()
    assert with_importance[2] < 0.9 * plain


def test_training_for_q4_0_is_recognized() -> None:
    rng = np.random.default_rng(2)
    d = rng.uniform(1e-3, 1e-2, (32, 8, 1)).astype(np.float16).astype(np.float32)
    x = (d * rng.integers(-8, 8, (32, 8, 32)).astype(np.float32)).reshape(32, 256)
    encoder = _core.Encoder(1)
    assert encoder.lattice_q4_0(_bytes(x), "F32", 256) == 1.0
    assert encoder.lattice_q4_0(_bytes(rng.standard_normal((32, 256)).astype(np.float32)), "F32", 256) == 0.0
    out = _room(x.shape, "Q4_0")
    assert encoder.encode(_bytes(x), "F32", 256, "Q4_0", out)[0] == 0.0
    with pytest.raises(ValueError, match="must be a float type, not Q8_0"):
        encoder.lattice_q4_0(np.zeros(272, np.uint8), "Q8_0", 256)


def test_bad_numbers_are_named() -> None:
    x = np.zeros((3, 256), np.float32)
    x[2, 7] = np.nan
    x[2, 9] = np.inf
    assert _core.Encoder(1).encode(_bytes(x), "F32", 256, "Q4_K", _room(x.shape, "Q4_K"))[4] == 519
    x[2] = 1e5
    assert _core.Encoder(1).encode(_bytes(x), "F32", 256, "F16", _room(x.shape, "F16"))[4] == 512


def test_refusals() -> None:
    encoder = _core.Encoder(1)
    x = _bytes(np.zeros((2, 256), np.float32))
    out = _room((2, 256), "Q4_K")
    with pytest.raises(ValueError, match='"Q9" is not a tensor type'):
        encoder.encode(x, "F32", 256, "Q9", out)
    with pytest.raises(ValueError, match="not whole Q4_K blocks of 256"):
        encoder.encode(x, "F32", 128, "Q4_K", out)
    with pytest.raises(ValueError, match="not whole F32 rows of 1024"):
        encoder.encode(x[:-4], "F32", 256, "Q4_K", out)
    with pytest.raises(ValueError, match="out has 287 bytes, the rows take 288"):
        encoder.encode(x, "F32", 256, "Q4_K", out[:-1])
    with pytest.raises(ValueError, match="importance has 3 values, a row has 256"):
        encoder.encode(x, "F32", 256, "Q4_K", out, importance=np.ones(3, np.float32))
    for bad in (-1.0, np.nan, np.inf):
        importance = np.ones(256, np.float32)
        importance[5] = bad
        with pytest.raises(ValueError, match=r"importance\[5\] is .* must be finite and not negative"):
            encoder.encode(x, "F32", 256, "Q4_K", out, importance=importance)
    with pytest.raises(TypeError):
        encoder.encode(x.view(np.int8), "F32", 256, "Q4_K", out)
    frozen = out.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        encoder.encode(x, "F32", 256, "Q4_K", frozen)
    stop = _core.StopToken()
    stop.cancel()
    with pytest.raises(Cancelled):
        encoder.encode(x, "F32", 256, "Q4_K", out, stop=stop)
    with pytest.raises(ValueError, match="n_threads must be 0"):
        _core.Encoder(-1)


def test_threads_share_an_encoder() -> None:
    x = np.random.default_rng(3).standard_normal((64, 512)).astype(np.float32)
    encoder = _core.Encoder(2)
    outs = [_room(x.shape, "Q4_K") for _ in range(4)]
    workers = [
        threading.Thread(target=encoder.encode, args=(_bytes(x), "F32", 512, "Q4_K", out)) for out in outs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for out in outs:
        np.testing.assert_array_equal(out, outs[0])


def test_xxh64() -> None:
    hash_ = _core.Xxh64()
    assert hash_.digest() == 0xEF46DB3751D8E999
    hash_.update(b"Nobody inspects")
    hash_.update(memoryview(b" the spammish repetition"))
    assert hash_.digest() == 0xFBCEA83C8A378BF1
    numbers = np.arange(1000, dtype=np.float32)
    one, two = _core.Xxh64(), _core.Xxh64()
    one.update(numbers)
    two.update(numbers.tobytes())
    assert one.digest() == two.digest()
    with pytest.raises(ValueError, match="contiguous"):
        one.update(numbers[::2])


@pytest.mark.parametrize("name", TYPES)
def test_block_sizes(name: str) -> None:
    assert _core.block_size(name) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]


def test_objects_of_the_core_refuse_none_and_absurd_sizes() -> None:
    with pytest.raises(TypeError):
        _core.ImportanceCollector(None)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        _core.append_together([None], [np.array([1], np.int32)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1024"):
        _core.Encoder(1025)
    encoder = _core.Encoder(1)
    data = np.zeros(1024, np.uint8)
    with pytest.raises(ValueError):  # noqa: PT011
        encoder.encode(data, "F32", 1 << 62, "Q8_0", np.zeros(272, np.uint8))
    with pytest.raises(ValueError, match="overlap"):
        encoder.encode(data, "F32", 32, "Q8_0", data[:272])
