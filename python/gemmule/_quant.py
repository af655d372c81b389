"""Encode and decode the block formats of GGUF tensors with numpy arrays.

A thin layer over the codecs of the C++ core: it checks shapes, dtypes and sizes, and restores the shape of
arrays. Rows are encoded one by one, so the last axis must hold whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import _core

__all__ = ["dequantize", "quantize"]

_BLOCKS: dict[str, tuple[int, int]] = {  # type: (elements, bytes) of one block
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


def _block_of(type: str) -> tuple[int, int]:
    if not isinstance(type, str):
        raise TypeError(f"type must be a string such as 'Q4_K', not {type.__class__.__name__}.")
    if type not in _BLOCKS:
        raise ValueError(f"unknown tensor type {type!r}; use one of {', '.join(_BLOCKS)}.")
    return _BLOCKS[type]


def _checked_array(array: Any, name: str, dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {array.__class__.__name__}.")
    if array.dtype != dtype:
        wanted = np.dtype(dtype).name
        raise TypeError(f"{name} must have dtype {wanted}, not {array.dtype}; convert it with .astype.")


def quantize(array: npt.NDArray[np.float32], type: str) -> npt.NDArray[np.uint8]:
    """Encode float32 numbers as the blocks of a GGUF tensor type.

    Args:
        array: float32, shape ``[cols]`` or ``[rows, cols]``; ``cols`` is a multiple of the block size of
            the type (1, 32 or 256) and, for the block types, every number is finite.
        type: ``F32``, ``F16``, ``BF16``, ``Q8_0``, ``Q4_0``, ``Q4_1``, ``Q5_0``, ``Q5_1``, ``Q2_K``,
            ``Q3_K``, ``Q4_K``, ``Q5_K`` or ``Q6_K``.

    Returns:
        uint8, shape ``[row_bytes]`` or ``[rows, row_bytes]``. The bytes depend on the input alone.

    Raises:
        TypeError: ``array`` is not a float32 array or ``type`` is not a string.
        ValueError: an unknown type, a wrong number of dimensions, columns that are not whole blocks, or a
            number that is not finite.

    Example:
        >>> import numpy as np
        >>> from gemmule import quantize
        >>> quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), "Q8_0").shape
        (2, 34)
    """
    block_size, block_bytes = _block_of(type)
    _checked_array(array, "array", np.float32)
    if array.ndim not in (1, 2):
        raise ValueError(f"array must have 1 or 2 dimensions, not {array.ndim}; reshape it to [rows, cols].")
    cols = array.shape[-1]
    if cols % block_size != 0:
        raise ValueError(f"{type} needs rows of whole blocks of {block_size}, but the last axis is {cols}.")
    if block_size > 1 and not np.isfinite(array).all():
        raise ValueError(f"{type} cannot hold NaN or infinity; replace these numbers before quantizing.")
    shape = (*array.shape[:-1], cols // block_size * block_bytes)
    if array.size == 0:
        return np.empty(shape, np.uint8)
    blocks = _core.quantize(np.ascontiguousarray(array).reshape(-1), type)
    return np.asarray(blocks, np.uint8).reshape(shape)


def dequantize(data: npt.NDArray[np.uint8], type: str, shape: int | Sequence[int]) -> npt.NDArray[np.float32]:
    """Decode the blocks of a GGUF tensor to float32.

    Args:
        data: uint8, any shape; its bytes in order are the rows of the tensor.
        type: the tensor type, as in :func:`quantize`.
        shape: shape of the result, slowest axis first; the last axis holds whole blocks.

    Returns:
        float32 array of the given shape.

    Raises:
        TypeError: ``data`` is not a uint8 array, ``type`` is not a string, or ``shape`` holds no integers.
        ValueError: an unknown type, a negative size, a last axis that is not whole blocks, or a number of
            bytes that does not fit the shape.

    Example:
        >>> import numpy as np
        >>> from gemmule import dequantize, quantize
        >>> x = np.linspace(-1, 1, 256, dtype=np.float32)
        >>> y = dequantize(quantize(x, "Q6_K"), "Q6_K", x.shape)
        >>> bool(abs(x - y).max() < 0.05)
        True
    """
    block_size, block_bytes = _block_of(type)
    _checked_array(data, "data", np.uint8)
    single = isinstance(shape, (int, np.integer)) or not isinstance(shape, (Sequence, np.ndarray))
    axes: Sequence[Any] = (shape,) if single else tuple(shape)  # type: ignore[arg-type]
    if not axes or not all(isinstance(n, (int, np.integer)) for n in axes):
        raise TypeError(f"shape must be one or more integers, not {shape!r}.")
    sizes = tuple(int(n) for n in axes)
    if min(sizes) < 0:
        raise ValueError(f"shape {sizes} has a negative size; give every axis its length.")
    last = sizes[-1]
    if last % block_size != 0:
        raise ValueError(f"{type} needs rows of whole blocks of {block_size}, but the last axis is {last}.")
    n_bytes = math.prod(sizes) // block_size * block_bytes
    if data.size != n_bytes:
        raise ValueError(f"shape {sizes} of type {type} takes {n_bytes} bytes, but data has {data.size}.")
    if n_bytes == 0:
        return np.empty(sizes, np.float32)
    values = _core.dequantize(np.ascontiguousarray(data).reshape(-1), type)
    return np.asarray(values, np.float32).reshape(sizes)
