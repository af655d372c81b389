"""What the tests of the checkpoint reader share: tiny folders, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule._convert.image import Image, TensorSpec
from gemmule._convert.safetensors import widen
from project_modules import load_module

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

tiny_folder = load_module("tools", "tiny_folder")


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[dict[str, tuple[str, NDArray[Any]]]], Any]) -> None:
    """Read a safetensors file, let `change` edit {name: (dtype, stored array)}, write it again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    storage = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
    entries: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[8 + length + begin : 8 + length + end], storage[entry["dtype"]])
        entries[name] = (entry["dtype"], array.reshape(entry["shape"]))
    change(entries)
    tiny_folder.write_safetensors(path, entries)


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the header of a safetensors file and leave its data as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def read_tensor(spec: TensorSpec, step: int = 7) -> NDArray[np.float32]:
    """All numbers of a tensor in file order, read a few rows at a time."""
    rows = spec.rows
    row_bytes = rows.n_cols * ITEM_BYTES[rows.dtype]
    out = np.empty(rows.n_rows * row_bytes, np.uint8)
    for first in range(0, rows.n_rows, step):
        n = min(step, rows.n_rows - first)
        rows.read_into(first, n, out[first * row_bytes : (first + n) * row_bytes])
    return widen(out, rows.dtype)


def tensor(image: Image, name: str) -> TensorSpec:
    return next(spec for spec in image.tensors if spec.name == name)
