"""GGUF files as a source: every key with its exact type, every tensor read a few rows at a time.

The core checks the file (structure, limits, offsets); what follows walks the checked bytes [0, data_offset)
once more, because values must come out bit for bit: unsigned numbers above 2^63, NaN, arrays of arrays.
"""

import contextlib
import errno
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._checks import path_text
from gemmule._convert import card
from gemmule._convert.gguf_writer import PANEL_ROWS, VALUE_DTYPES, VALUE_IDS, align
from gemmule._convert.image import Bundle, Image, Kv, TensorSpec
from gemmule._errors import FormatError, UnsupportedError
from gemmule._quant import _BLOCKS

__all__ = [
    "Entry",
    "FileRange",
    "Header",
    "Section",
    "image_of",
    "layout_of",
    "load_gguf",
    "open_input",
    "read_exactly",
    "read_header",
    "sections_of",
    "walk",
]

_LENGTH = struct.Struct("<Q")
_VALUE_NAMES = {number: name for name, number in VALUE_IDS.items()}


class _OpenFile:
    """A descriptor that several tensors share and that closes with the last of them."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True)
class FileRange:
    """The rows of a tensor that lies in one piece of a file; packed ones are read as GGUF's."""

    file: _OpenFile
    path: Path
    offset: int
    dtype: str
    n_rows: int
    n_cols: int
    row_bytes: int
    origin: str
    is_packed: bool = False

    def read_into(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        if not self.is_packed:
            self._read_stored(first, n, out)
            return
        begin = first // PANEL_ROWS * PANEL_ROWS
        n_panels = min(self.n_rows, align(first + n, PANEL_ROWS)) - begin
        panels = np.empty(n_panels * self.row_bytes, np.uint8)
        self._read_stored(begin, n_panels, panels)
        rows = _core.unpack_rows(self.dtype, n_panels, self.n_cols, panels)
        out[:] = rows[(first - begin) * self.row_bytes :][: n * self.row_bytes]

    def _read_stored(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        at = self.offset + first * self.row_bytes
        read_exactly(self.file.fd, at, out.data, self.origin)
        # Each byte is used once: the page cache should keep what others need.
        os.posix_fadvise(self.file.fd, at, n * self.row_bytes, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[int]:
    """A descriptor to read from."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_exactly(fd: int, offset: int, rest: "memoryview[Any]", what: str) -> None:
    """Fills the buffer or says what was cut short."""
    while rest.nbytes:
        try:
            n = os.preadv(fd, [rest], offset)
        except OSError as error:
            raise OSError(error.errno or errno.EIO, f"{what} cannot be read: {error.strerror}") from error
        if n == 0:
            raise FormatError(f"{what} ends early; the file was cut or is still being written, get it again.")
        rest, offset = rest[n:], offset + n


@dataclass(frozen=True)
class Entry:
    """One metadata value in the header: `position` is its first byte after the type word."""

    key: str
    type: str
    position: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of one GGUF image. Offsets of tensors count from the start of the image.

    `type` is that of the blocks; `packed` names the tensors whose blocks are in the packed layout.
    """

    path: Path
    start: int
    size: int
    data_offset: int
    raw: bytes  # [0, data_offset)
    entries: dict[str, Entry]
    tensors: tuple[tuple[str, str, tuple[int, ...], int, int], ...]  # name, type, shape, offset, bytes
    packed: frozenset[str] = frozenset()

    def value(self, key: str) -> Any:
        """A number, str or bytes (where it is not UTF-8), a numpy array, or a list of bytes."""
        entry = self.entries[key]
        return _value(self.raw, entry.type, entry.position, entry.end)

    def get(self, key: str, default: Any = None) -> Any:
        return self.value(key) if key in self.entries else default

    def kv(self, key: str) -> Kv:
        return Kv(key, self.entries[key].type, self.value(key))

    def what(self, name: str) -> str:
        return f"{self.path}: tensor {name!r}"


@dataclass(frozen=True)
class Section:
    """A complete GGUF image behind the text image."""

    name: str
    offset: int
    size: int
    sha256: str


def read_header(path: Path, *, offset: int = 0, size: int = 0) -> Header:
    """The checked header of a file, or of the image at `offset` in it."""
    whole = _core.GgufFile(path_text(path), offset=offset, size=size)
    raw = bytearray(whole.data_offset)
    file = _OpenFile(path)
    read_exactly(file.fd, offset, memoryview(raw), f"{path}: the header")
    return Header(
        path=path,
        start=offset,
        size=size or file.size - offset,
        data_offset=whole.data_offset,
        raw=bytes(raw),
        entries=walk(bytes(raw)),
        tensors=tuple(tensor[:5] for tensor in whole.tensors()),
        packed=frozenset(name for name, *_, layout in whole.tensors() if layout == card.PACKED),
    )


def layout_of(header: Header) -> str:
    """The order of the bytes of the text tensors: "gguf", or the name of another."""
    return str(header.get(card.LAYOUT, "gguf"))


def sections_of(header: Header) -> list[Section]:
    """The sections that a text image names, in file order: known, inside the file, in order."""
    prefix, suffix = "gemmule.section.", ".offset"
    keys = [key for key in header.entries if key.startswith(prefix) and key.endswith(suffix)]
    sections = [_section(header, key[len(prefix) : -len(suffix)]) for key in keys]
    count = header.get("gemmule.section.count", 0)
    if count != len(sections):
        raise FormatError(
            f"{header.path}: {count} sections announced, {len(sections)} described; get it again."
        )
    sections.sort(key=lambda section: section.offset)
    end = max((offset + n_bytes for *_, offset, n_bytes in header.tensors), default=header.data_offset)
    for section in sections:
        if section.offset < end or section.offset + section.size > header.size:
            raise FormatError(
                f"{header.path}: section {section.name!r} should be at bytes {section.offset} to "
                f"{section.offset + section.size}, but {end} to {header.size} are free; download it again."
            )
        end = section.offset + section.size
    return sections


def load_gguf(path: Path) -> Bundle:
    """A GGUF file as a Bundle: the text image and the sections, without the keys a conversion writes anew."""
    header = read_header(path)
    numbers: Counter[str] = Counter()
    for _, kind, shape, _, _ in header.tensors:
        numbers[kind] += math.prod(shape)
    sections = {}
    for section in sections_of(header):
        inner = read_header(path, offset=section.offset, size=section.size)
        keep = _keep_quantized if section.name == "drafter" else _keep_all
        sections[section.name] = image_of(inner, drop=card.is_own, keep=keep)
    return Bundle(
        text=image_of(header, drop=card.is_own, keep=_keep_tables),
        sections=sections,
        source=str(path),
        source_dtype=numbers.most_common(1)[0][0] if numbers else "F32",
    )


def image_of(
    header: Header, *, drop: Callable[[str], bool], keep: Callable[[str], str | None] | None = None
) -> Image:
    """Keys and tensors of an image, in the order of the file."""
    file = _OpenFile(header.path)
    tensors = []
    for name, kind, shape, offset, n_bytes in header.tensors:
        n_rows = math.prod(shape[1:])
        rows = FileRange(
            file=file,
            path=header.path,
            offset=header.start + offset,
            dtype=kind,
            n_rows=n_rows,
            n_cols=shape[0],
            row_bytes=n_bytes // n_rows,
            origin=header.what(name),
            is_packed=name in header.packed,
        )
        tensors.append(TensorSpec(name, shape, rows, keep(kind) if keep is not None else kind))
    return Image(tuple(header.kv(key) for key in header.entries if not drop(key)), tuple(tensors))


def _keep_all(kind: str) -> str | None:
    return kind


def _keep_quantized(kind: str) -> str | None:
    return None if kind in ("F32", "F16", "BF16") else kind


def _keep_tables(kind: str) -> str | None:
    return None if kind in _BLOCKS else kind


def _section(header: Header, name: str) -> Section:
    if name not in card.SECTIONS:
        raise UnsupportedError(
            f"{header.path}: section {name!r} is not known; use a newer version of gemmule."
        )
    facts = {}
    for what, kind in (("offset", "u64"), ("size", "u64"), ("sha256", "string")):
        key = card.section_key(name, what)
        entry = header.entries.get(key)
        if entry is None or entry.type != kind:
            raise FormatError(f"{header.path}: key {key!r} is missing or no {kind}; convert the file again.")
        facts[what] = header.value(key)
    return Section(name, **facts)


def walk(raw: bytes) -> dict[str, Entry]:
    """Finds every value; the core has checked that all lengths stay inside."""
    at = 24
    entries = {}
    for _ in range(struct.unpack_from("<Q", raw, 16)[0]):
        key_end = at + 8 + struct.unpack_from("<Q", raw, at)[0]
        key = raw[at + 8 : key_end].decode()
        name = _VALUE_NAMES[struct.unpack_from("<I", raw, key_end)[0]]
        start = key_end + 4
        at = _skip(raw, name, start)
        if name == "array":
            name = f"array[{_VALUE_NAMES[struct.unpack_from('<I', raw, start)[0]]}]"
        entries[key] = Entry(key, name, start, at)
    return entries


def _skip(raw: bytes, name: str, at: int) -> int:
    """The end of the value that starts at `at`."""
    if name == "string":
        return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
    if name != "array":
        return at + np.dtype(VALUE_DTYPES[name]).itemsize
    number, count = struct.unpack_from("<IQ", raw, at)
    element = _VALUE_NAMES[number]
    at += 12
    if element not in ("string", "array"):
        return at + int(count) * np.dtype(VALUE_DTYPES[element]).itemsize
    for _ in range(count):
        at = at + 8 + _LENGTH.unpack_from(raw, at)[0] if element == "string" else _skip(raw, element, at)
    return at


def _value(raw: bytes, type_name: str, at: int, end: int) -> Any:
    if type_name == "string":
        return _text(raw[at + 8 : end])
    if type_name == "bool":
        return raw[at] != 0
    if not type_name.startswith("array["):
        return np.frombuffer(raw, VALUE_DTYPES[type_name], 1, at)[0].item()
    element = type_name[6:-1]
    if element == "array":
        return raw[at:end]
    count = struct.unpack_from("<Q", raw, at + 4)[0]
    if element != "string":
        return np.frombuffer(raw, VALUE_DTYPES[element], count, at + 12)
    items = []
    at += 12
    for _ in range(count):
        stop = at + 8 + _LENGTH.unpack_from(raw, at)[0]
        items.append(raw[at + 8 : stop])
        at = stop
    return items


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
