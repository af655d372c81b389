"""What a file will hold, before a byte of it is written: metadata, tensors, where their numbers come from.

A `Bundle` is one output file: the text image first, then the sections (media embedders, drafter), each a
complete GGUF image. Shapes are in GGUF order: the contiguous dimension first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayRows", "Bundle", "Image", "Kv", "RowSource", "TensorSpec"]

# Value types of GGUF metadata; an array is "array[u32]" and so on.
SCALARS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "u64", "i64", "f64")


@dataclass(frozen=True)
class Kv:
    """One metadata entry. `type` is a name of SCALARS or "array[name]"; strings may be str or bytes."""

    key: str
    type: str
    value: Any


class RowSource(Protocol):
    """The numbers of one tensor as a matrix [n_rows, n_cols], read a few rows at a time."""

    @property
    def dtype(self) -> str:
        """ "F32", "F16" or "BF16" for float sources, else a block type such as "Q4_K"."""

    @property
    def n_rows(self) -> int: ...

    @property
    def n_cols(self) -> int: ...

    @property
    def origin(self) -> str:
        """For messages: the file and the name of the tensor in it."""

    def read_into(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        """Rows [first, first + n) as stored bytes into `out`, which has exactly their size."""


@dataclass(frozen=True)
class ArrayRows:
    """A small tensor that is computed (transposed, shifted, generated) when it is first read."""

    origin: str
    n_rows: int
    n_cols: int
    make: Callable[[], NDArray[np.float32]]  # n_rows * n_cols numbers
    dtype: str = "F32"
    _made: list[NDArray[np.float32]] = field(default_factory=list, compare=False, repr=False)

    def read_into(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        if not self._made:
            array = np.ascontiguousarray(self.make(), dtype=np.float32)
            self._made.append(array.reshape(self.n_rows, self.n_cols))
        out[:] = self._made[0][first : first + n].reshape(-1).view(np.uint8)
        if first + n == self.n_rows:
            self._made.clear()


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an image. `keep` is the type it always has; None: the mix decides."""

    name: str
    shape: tuple[int, ...]
    rows: RowSource
    keep: str | None = None

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Image:
    """One complete GGUF image: what the header says and the tensors in file order."""

    metadata: tuple[Kv, ...]  # without general.file_type and gemmule.*, which the writer adds
    tensors: tuple[TensorSpec, ...]

    @property
    def architecture(self) -> str:
        return next(str(kv.value) for kv in self.metadata if kv.key == "general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        return next((kv.value for kv in self.metadata if kv.key == key), default)


@dataclass(frozen=True)
class Bundle:
    """One output file."""

    text: Image
    sections: dict[str, Image] = field(default_factory=dict)  # "mmproj", "drafter", in file order
    source: str = ""  # path of the folder or file
    source_dtype: str = ""  # the type most of its numbers have
    warnings: Sequence[str] = ()
