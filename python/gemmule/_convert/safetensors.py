"""The tensors of a checkpoint folder in safetensors format, indexed without reading their data.

File: u64 header length n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the data,
which the tensors cover without gap or overlap; offsets count from byte 8 + n. A folder holds one
model.safetensors, or shards named by model.safetensors.index.json ({"weight_map": {tensor: shard}}).
Data is read with positioned reads into the caller's buffer: nothing is mapped, so memory in use stays flat.
Nothing outside the folder is opened by a name from inside it; links made by the user are followed.
"""

import math
import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule._convert.jsonfile import parse_object, read_object
from gemmule._errors import Error, FormatError, ModelNotFoundError, UnsupportedError

__all__ = ["FLOATS", "StoredRows", "StoredTensor", "Weights", "open_weights"]

# Bytes of one element by dtype name; sub-byte types never fit a Gemma checkpoint.
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
FLOATS = ("F32", "F16", "BF16")
_MAX_HEADER = 100 << 20
_MAX_TENSORS = 1 << 20
_MAX_DIMS = 8
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


class _File:
    """One shard, opened at its first read and closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = threading.Lock()

    def descriptor(self) -> int:
        with self._lock:
            if self._fd is None:
                try:
                    self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                except FileNotFoundError:
                    raise ModelNotFoundError(
                        f"{self.path}: this shard of the checkpoint is missing; download it again."
                    ) from None
                weakref.finalize(self, os.close, self._fd)
            return self._fd

    def read(self, offset: int, out: memoryview, what: str) -> None:
        """Fill `out` from `offset`, however many calls that takes."""
        fd = self.descriptor()
        done = 0
        while done < len(out):
            try:
                n = self._read_some(fd, offset + done, out[done:])
            except OSError as error:
                error.add_note(f"{self.path}: while reading {what} at byte {offset + done}")
                raise
            if n == 0:
                raise FormatError(
                    f"{self.path}: the file ends at byte {offset + done}, inside {what}; download it again."
                )
            done += n

    def _read_some(self, fd: int, offset: int, out: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(fd, [out], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, min(len(out), 1 << 24))
        out[: len(data)] = data
        return len(data)

    def size(self) -> int:
        return os.fstat(self.descriptor()).st_size


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in a shard. `shape` is in checkpoint order: the contiguous dimension last."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    n_bytes: int
    file: _File

    @property
    def origin(self) -> str:
        return f"{self.file.path}: {self.name}"

    def read_bytes(self, first: int, out: memoryview) -> None:
        """Bytes [first, first + len(out)) of the tensor."""
        self.file.read(self.offset + first, out, self.name)

    def to_float32(self) -> NDArray[np.float32]:
        """The whole tensor: float32 in its own shape. For small tensors."""
        raw = bytearray(self.n_bytes)
        self.read_bytes(0, memoryview(raw))
        return widen(np.frombuffer(raw, np.uint8), self.dtype).reshape(self.shape)

    def rows(self) -> "StoredRows":
        """The tensor as a matrix: all but the last dimension are rows."""
        n_cols = self.shape[-1] if self.shape else 1
        return StoredRows(self, math.prod(self.shape[:-1]), n_cols)


@dataclass(frozen=True)
class StoredRows:
    """A stored tensor as rows, read straight from its shard."""

    tensor: StoredTensor
    n_rows: int
    n_cols: int

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def origin(self) -> str:
        return self.tensor.origin

    def read_into(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        row_bytes = self.n_cols * _SIZES[self.dtype]
        if first < 0 or n < 0 or first + n > self.n_rows or out.nbytes != n * row_bytes:
            raise ValueError(
                f"{self.origin}: rows {first}..{first + n} of {self.n_rows} into {out.nbytes} bytes"
            )
        if n:
            self.tensor.read_bytes(first * row_bytes, out.data.cast("B"))


class Weights(Mapping[str, StoredTensor]):
    """All tensors of a folder by name."""

    def __init__(
        self, folder: Path, tensors: dict[str, StoredTensor], warnings: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.warnings = warnings
        self._tensors = tensors

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def main_dtype(self) -> str:
        """The dtype most of the numbers have."""
        total: dict[str, int] = {}
        for tensor in self.values():
            total[tensor.dtype] = total.get(tensor.dtype, 0) + math.prod(tensor.shape)
        return max(total, key=lambda dtype: total[dtype])


def widen(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Stored bytes of a float type as float32 [n]; exact for all three types."""
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"{dtype} is not a float type")


def open_weights(folder: Path) -> Weights:
    """Index every safetensors file of `folder`."""
    shards, weight_map, warnings = _find_shards(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in _read_header(_File(folder / shard)):
            earlier = tensors.get(tensor.name)
            if earlier is not None:
                raise FormatError(
                    f"{folder / shard}: the tensor {tensor.name} is also in {earlier.file.path.name}; "
                    "one of the two shards does not belong to this checkpoint."
                )
            if weight_map is not None and weight_map.get(tensor.name) != shard:
                listed = weight_map.get(tensor.name)
                raise FormatError(
                    f"{folder / shard}: holds {tensor.name}, which {_INDEX} "
                    + (f"places in {listed}." if listed else "does not list.")
                )
            tensors[tensor.name] = tensor
    for name, shard in (weight_map or {}).items():
        if name not in tensors:
            raise FormatError(
                f"{folder / shard}: the tensor {name} is listed in {_INDEX} but not in this shard."
            )
    if not tensors:
        raise FormatError(f"{folder / shards[0]}: the file holds no tensors.")
    return Weights(folder, tensors, tuple(warnings))


def _find_shards(folder: Path) -> tuple[list[str], dict[str, str] | None, list[str]]:
    """(shard names, tensor -> shard from the index or None, warnings)."""
    if (folder / _SINGLE).exists():
        warnings = []
        if (folder / _INDEX).exists():
            warnings.append(f"{folder}: both {_SINGLE} and {_INDEX} are there; the single file is used.")
        return [_SINGLE], None, warnings
    if (folder / _INDEX).exists():
        weight_map = _read_index(folder / _INDEX)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise ModelNotFoundError(
                f"{folder / missing[0]}: this shard is missing ({len(missing)} of {len(shards)} are); "
                "download the checkpoint completely."
            )
        return shards, weight_map, []
    found = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if found:
        counts = sorted({shard[15:20] for shard in found})
        if len(counts) > 1:
            raise FormatError(f"{folder}: the shards come from two checkpoints ({found[0]}, {found[-1]}).")
        names = [f"model-{i + 1:05d}-of-{counts[0]}.safetensors" for i in range(int(counts[0]))]
        for name in names:
            if name not in found:
                raise ModelNotFoundError(f"{folder / name}: this shard is missing; download it again.")
        return names, None, []
    raise _nothing_found(folder)


def _nothing_found(folder: Path) -> Error:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.startswith("adapter_model") for name in names):
        return UnsupportedError(f"{folder}: this is an adapter (LoRA); merge it into its base model first.")
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return UnsupportedError(
            f"{folder / pickles[0]}: pickled weights can run code when loaded and are not read; "
            "save the model again with save_pretrained(..., safe_serialization=True)."
        )
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return UnsupportedError(f"{folder}: holds {ggufs[0]} but no {_SINGLE}; give the GGUF file itself.")
    return ModelNotFoundError(f"{folder}: no {_SINGLE} and no {_INDEX}; is this a Hugging Face model folder?")


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_object(path, limit_mb=256).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: the key weight_map is missing or empty.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise FormatError(
                f"{path}: {name[:200]} points to {shard!r}, which is not a file name in this folder."
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return (
        name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\:") and len(name) < 256
    )


def _read_header(file: _File) -> list[StoredTensor]:
    """The tensors of one shard, every number in their entries checked."""
    path = file.path
    size = file.size()
    if size < 8:
        raise FormatError(
            f"{path}: the file has {size} bytes, too few for a safetensors header; download it again."
        )
    prefix = bytearray(8)
    file.read(0, memoryview(prefix), "the header")
    length = int.from_bytes(prefix, "little")
    if prefix.startswith(b"version "):
        raise FormatError(f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull`.")
    if prefix.startswith(b"GGUF"):
        raise FormatError(f"{path}: this is a GGUF file with the wrong name; convert it directly.")
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise UnsupportedError(f"{path}: this is a pickled PyTorch file with the wrong name; it is not read.")
    if length > min(_MAX_HEADER, size - 8):
        raise FormatError(
            f"{path}: the header claims {length} bytes, the file has {size}; truncated or not safetensors."
        )
    text = bytearray(length)
    file.read(8, memoryview(text), "the header")
    header = parse_object(bytes(text), f"{path} (header)")
    header.pop("__metadata__", None)
    if len(header) > _MAX_TENSORS:
        raise FormatError(f"{path}: the header lists {len(header)} tensors, more than any checkpoint has.")
    start = 8 + length
    tensors = [_check_entry(file, name, entry, start, size) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise FormatError(f"{path}: {tensor.name} {problem} (byte {tensor.offset} instead of {end}).")
        end = tensor.offset + tensor.n_bytes
    if end != size:
        raise FormatError(f"{path}: {size - end} bytes follow the last tensor; the file is damaged.")
    return tensors


def _check_entry(file: _File, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    where = f"{file.path}: {name[:200]}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FormatError(f"{where}: the entry needs dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise UnsupportedError(
            f"{where}: the dtype {dtype!r} is not known; use a BF16, F16 or F32 checkpoint."
        )
    if not _are_counts(shape) or len(shape) > _MAX_DIMS:
        raise FormatError(f"{where}: the shape {str(shape)[:100]} is not a short list of counts.")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets {str(offsets)[:100]} is not [begin, end].")
    begin, end = offsets
    if end > size - start:
        raise FormatError(
            f"{where}: needs bytes up to {start + end} but the file has {size}; download it again."
        )
    n_bytes = math.prod(shape) * _SIZES[dtype]
    if end - begin != n_bytes:
        raise FormatError(
            f"{where}: {dtype} {shape} needs {n_bytes} bytes, data_offsets spans {end - begin}."
        )
    return StoredTensor(name, dtype, tuple(shape), start + begin, n_bytes, file)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 53 for n in value)
