"""The bytes of a GGUF header, and where everything of a file goes, before any tensor is read.

    "GGUF" u32 3, u64 n_tensors, u64 n_keys, keys, tensor table, padding to 32, tensors (each padded to 32)

Layout as docs/FORMAT.md says and llama.cpp demands: offsets contiguous in table order. Values that are known
only at the end (checksums, quality) start as placeholders of the same size, which `ImageLayout.patch`
replaces.
Sections start at multiples of 4096 bytes of the file.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmule._convert.image import Image, Kv, TensorSpec
from gemmule._convert.mixes import tensor_bytes

__all__ = [
    "ALIGNMENT",
    "PANEL_ROWS",
    "SECTION_ALIGNMENT",
    "FileLayout",
    "ImageLayout",
    "PlacedTensor",
    "align",
    "encode_value",
    "lay_out",
    "place_images",
    "section_starts",
]

ALIGNMENT = 32
SECTION_ALIGNMENT = 4096
PANEL_ROWS = 64  # of the packed layout: rows that must be read and written together
VERSION = 3

VALUE_IDS = {
    "u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "string": 8, "array": 9,
    "u64": 10, "i64": 11, "f64": 12,
}  # fmt: skip
VALUE_DTYPES = {
    "u8": "<u1", "i8": "<i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4", "f32": "<f4",
    "u64": "<u8", "i64": "<i8", "f64": "<f8", "bool": "u1",
}  # fmt: skip
TENSOR_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30,
}  # fmt: skip


def align(n: int, to: int = ALIGNMENT) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


@dataclass(frozen=True)
class PlacedTensor:
    """One tensor and its place. `offset` counts from the start of the image."""

    spec: TensorSpec
    type: str
    offset: int
    n_bytes: int


@dataclass
class ImageLayout:
    """One complete GGUF image: header bytes, and the place of every tensor."""

    header: bytearray  # [0, data_offset)
    data_offset: int
    size: int  # of the image, the padding after the last tensor included
    tensors: tuple[PlacedTensor, ...]
    positions: dict[str, int]  # key: first byte of its value, after the type word
    types: dict[str, str]  # key: type of its value
    start: int = 0  # of the image in the file

    def patch(self, key: str, value: Any) -> None:
        """Replaces a placeholder by a value of the same size."""
        raw = encode_value(key, self.types[key], value)[4:]
        at = self.positions[key]
        if len(raw) != self._size_at(key):
            raise ValueError(f"{key}: a patched value must keep its size of {self._size_at(key)} bytes")
        self.header[at : at + len(raw)] = raw

    def _size_at(self, key: str) -> int:
        type_name, at = self.types[key], self.positions[key]
        if type_name == "string":
            return 8 + int(struct.unpack_from("<Q", self.header, at)[0])
        if type_name.startswith("array["):
            item = np.dtype(VALUE_DTYPES[type_name[6:-1]]).itemsize
            return 12 + item * int(struct.unpack_from("<Q", self.header, at + 4)[0])
        return np.dtype(VALUE_DTYPES[type_name]).itemsize


def lay_out(image: Image, types: Mapping[str, str], extra: Sequence[Kv] = ()) -> ImageLayout:
    """Places every tensor and serialises the header. `extra` keys follow those of the image."""
    entries = [*image.metadata, *extra]
    _check_unique("key", [kv.key for kv in entries])
    _check_unique("tensor", [spec.name for spec in image.tensors])
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", VERSION, len(image.tensors), len(entries)))
    positions: dict[str, int] = {}
    for kv in entries:
        header += _string(kv.key)
        positions[kv.key] = len(header) + 4
        header += encode_value(kv.key, kv.type, kv.value)
    sizes = [tensor_bytes(spec, types[spec.name]) for spec in image.tensors]
    at = 0
    for spec, n_bytes in zip(image.tensors, sizes, strict=True):
        header += _tensor_info(spec, types[spec.name], at)
        at += align(n_bytes)
    data_offset = align(len(header))
    header.extend(bytes(data_offset - len(header)))
    placed = []
    at = data_offset
    for spec, n_bytes in zip(image.tensors, sizes, strict=True):
        placed.append(PlacedTensor(spec, types[spec.name], at, n_bytes))
        at += align(n_bytes)
    return ImageLayout(
        header=header,
        data_offset=data_offset,
        size=at,
        tensors=tuple(placed),
        positions=positions,
        types={kv.key: kv.type for kv in entries},
    )


def encode_value(key: str, type_name: str, value: Any) -> bytes:
    """The type word and the value. An array of arrays is given as bytes: element type, count, items."""
    if type_name == "string":
        return struct.pack("<I", VALUE_IDS["string"]) + _string(value)
    if not type_name.startswith("array["):
        return struct.pack("<I", VALUE_IDS[type_name]) + _numbers(key, type_name, [value])
    element = type_name[6:-1]
    head = struct.pack("<I", VALUE_IDS["array"])
    if element == "array":
        return head + bytes(value)
    head += struct.pack("<IQ", VALUE_IDS[element], len(value))
    if element == "string":
        return head + b"".join(_string(item) for item in value)
    return head + _numbers(key, element, value)


def _numbers(key: str, type_name: str, values: Any) -> bytes:
    """Numbers as little-endian bytes; one that does not fit its type is an error, a rounded float is not."""
    dtype = np.dtype(VALUE_DTYPES[type_name])
    try:
        out = np.array(values, dtype=dtype, ndmin=1)
        exact = dtype.kind == "f" or np.array_equal(out, values) or out.tolist() == list(values)
    except (OverflowError, TypeError, ValueError):
        exact = False
    if not exact or out.ndim != 1 or (type_name == "bool" and out.size and out.max() > 1):
        raise ValueError(f"key {key!r}: {_shown(values)} is not of type {type_name}")
    return out.tobytes()


def _shown(values: Any) -> str:
    text = repr(values[0] if len(values) == 1 else values)
    return text if len(text) < 80 else text[:80] + "..."


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else bytes(text)
    return struct.pack("<Q", len(raw)) + raw


def _tensor_info(spec: TensorSpec, type_name: str, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *spec.shape)
    return _string(spec.name) + dims + struct.pack("<IQ", TENSOR_IDS[type_name], offset)


def _check_unique(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {name!r} occurs twice")
        seen.add(name)


@dataclass
class FileLayout:
    """One output file: the text image, then the sections."""

    text: ImageLayout
    sections: dict[str, ImageLayout]
    size: int

    @property
    def images(self) -> list[ImageLayout]:
        return [self.text, *self.sections.values()]


def place_images(text: ImageLayout, sections: dict[str, ImageLayout]) -> FileLayout:
    """Puts the sections behind the text image."""
    starts, size = section_starts(text.size, {name: section.size for name, section in sections.items()})
    for name, section in sections.items():
        section.start = starts[name]
    return FileLayout(text, sections, size)


def section_starts(text_size: int, sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where the sections begin, and the size of the file."""
    starts = {}
    end = text_size
    for name, size in sizes.items():
        starts[name] = align(end, SECTION_ALIGNMENT)
        end = starts[name] + size
    return starts, end
