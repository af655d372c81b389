"""One file in two layouts: where everything lies in GGUF's and in the packed one, and the header of each.

Packing permutes the bytes of matrices and nothing else, so the header stays what it is except for this: the
types of packed tensors have 4096 added, offsets are others, and every key that says where something is (or
what the header's own checksum is) becomes gemmule.unpacked.KEY, its value untouched; the values that hold for
the packed file follow behind all other keys. Undoing that gives the first header byte for byte. It is undone
once before a file is packed: a file is packed without loss or not at all.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemmule._convert import card
from gemmule._convert.gguf_source import Header, Section, layout_of, sections_of, walk
from gemmule._convert.gguf_writer import (
    ALIGNMENT,
    PANEL_ROWS,
    TENSOR_IDS,
    FileLayout,
    align,
    encode_value,
    section_starts,
)
from gemmule._convert.image import Kv
from gemmule._convert.matching import ROLES
from gemmule._errors import FormatError, UnsupportedError

__all__ = [
    "PACKED_ALIGNMENT",
    "Arrangement",
    "gaps",
    "in_gguf_layout",
    "packed_arrangement",
    "planned_header",
    "unpacked_arrangement",
]

PACKED_ALIGNMENT = 4096  # of the tensors in a packed file
_PACKED_TYPE = 4096  # added to the number of a tensor type
_GROUP_ROWS = 8
_PACKABLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_ALIGNMENT_KEY = "general.alignment"
_ALIGNMENTS = tuple(1 << n for n in range(3, 21))
_OFFSETS = card.UNPACKED + "offsets"
_SIZE = card.UNPACKED + "size"


@dataclass(frozen=True)
class Arrangement:
    """Where everything of a file lies, counted from its start. What no part covers is zero."""

    header: bytes
    tensors: tuple[int, ...]  # in the order of the table
    packed: frozenset[str]  # names of tensors
    sections: dict[str, int]
    size: int


def packed_arrangement(header: Header) -> Arrangement:
    """The packed form of a file in GGUF's layout."""
    if layout_of(header) != "gguf" or any(key.startswith(card.UNPACKED) for key in header.entries):
        raise FormatError(f"{header.path} is packed already; use it as it is, or run gemmule unpack first")
    if header.get("general.architecture") in ROLES.values():
        raise FormatError(f"{header.path} is a part, not a text model; only text models are packed")
    packed = _packable(header)
    if not packed:
        raise UnsupportedError(
            f"{header.path} has no matrix that can be packed; quantize it first, for example to Q4_K_M"
        )
    sections = sections_of(header)
    offsets, end = [], 0
    for *_, n_bytes in header.tensors:
        offsets.append(end)
        end += align(n_bytes, PACKED_ALIGNMENT)
    length = len(_packed_header(header, packed, offsets, {section.name: 0 for section in sections}))
    starts, size = section_starts(length + end, {section.name: section.size for section in sections})
    found = Arrangement(
        header=_packed_header(header, packed, offsets, starts),
        tensors=tuple(length + offset for offset in offsets),
        packed=packed,
        sections=starts,
        size=size,
    )
    _check_lossless(header, sections, found)
    return found


def unpacked_arrangement(header: Header) -> Arrangement:
    """What a packed file was packed from."""
    if layout_of(header) != card.PACKED:
        raise FormatError(f"{header.path} is not packed; there is nothing to unpack")
    alignment = ALIGNMENT
    if card.UNPACKED + _ALIGNMENT_KEY in header.entries:
        alignment = _number(header, _ALIGNMENT_KEY)
    offsets = _offsets(header)
    if alignment not in _ALIGNMENTS or any(offset % alignment for offset in offsets):
        raise _impossible(header)
    entries = {}
    for key, entry in header.entries.items():
        was = key.removeprefix(card.UNPACKED)
        if (was != key and _is_displaced(was)) or not (_is_displaced(key) or key in (_OFFSETS, _SIZE)):
            entries[was if _is_displaced(was) else key] = header.raw[entry.position - 4 : entry.end]
    expected = _number(header, card.METADATA_CHECKSUM) if card.METADATA_CHECKSUM in entries else 0
    raw, at_checksum = _header_bytes(header, entries, frozenset(), offsets, alignment)
    if at_checksum and card.metadata_checksum(raw, at_checksum) != expected:
        raise FormatError(
            f"{header.path}: the metadata is damaged (its checksum differs); get the file again"
        )
    found = Arrangement(
        header=raw,
        tensors=tuple(len(raw) + offset for offset in offsets),
        packed=frozenset(),
        sections={s.name: _number(header, card.section_key(s.name, "offset")) for s in sections_of(header)},
        size=_number(header, "size"),
    )
    _check_places(header, found)
    return found


def in_gguf_layout(header: Header) -> Header:
    """The header as it is without packing; the places of the tensors stay those in the file."""
    if layout_of(header) == "gguf":
        return header
    raw = unpacked_arrangement(header).header
    return replace(header, raw=raw, entries=walk(raw))


def planned_header(path: Path, layout: FileLayout) -> Header:
    """The header of a file that is not written yet."""
    raw = bytes(layout.text.header)
    return Header(
        path=path,
        start=0,
        size=layout.size,
        data_offset=layout.text.data_offset,
        raw=raw,
        entries=walk(raw),
        tensors=tuple((t.spec.name, t.type, t.spec.shape, t.offset, t.n_bytes) for t in layout.text.tensors),
    )


def gaps(start: int, used: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of what lies before, between and behind ranges (offset, size) in [start, end)."""
    for offset, size in [*sorted(used), (end, 0)]:
        if offset > start:
            yield start, offset - start
        start = max(start, offset + size)


def _packable(header: Header) -> frozenset[str]:
    """The matrices that have a packed form and are multiplied; of a table only single rows are read."""
    names = {name for name, *_ in header.tensors}
    tables = {"per_layer_token_embd.weight"}
    if "output.weight" in names:
        tables.add("token_embd.weight")
    return frozenset(
        name
        for name, kind, shape, *_ in header.tensors
        if kind in _PACKABLE and name not in tables and _has_whole_groups(shape)
    )


def _has_whole_groups(shape: tuple[int, ...]) -> bool:
    """Of several matrices (experts) each must begin with a panel."""
    return len(shape) > 1 and shape[1] % (_GROUP_ROWS if len(shape) == 2 else PANEL_ROWS) == 0


def _is_displaced(key: str) -> bool:
    """Whether a key has another value in the other layout."""
    is_place = key.startswith("gemmule.section.") and key.endswith(".offset")
    return is_place or key in (_ALIGNMENT_KEY, card.LAYOUT, card.METADATA_CHECKSUM)


def _packed_header(
    header: Header, packed: frozenset[str], offsets: Sequence[int], starts: Mapping[str, int]
) -> bytes:
    entries = {
        card.UNPACKED + key if _is_displaced(key) else key: header.raw[entry.position - 4 : entry.end]
        for key, entry in header.entries.items()
    }
    new = [
        Kv(_OFFSETS, "array[u64]", [offset - header.data_offset for *_, offset, _ in header.tensors]),
        Kv(_SIZE, "u64", header.size),
        Kv(card.LAYOUT, "string", card.PACKED),
        Kv(_ALIGNMENT_KEY, "u32", PACKED_ALIGNMENT),
        *(Kv(card.section_key(name, "offset"), "u64", start) for name, start in starts.items()),
    ]
    if card.METADATA_CHECKSUM in header.entries:
        new.append(Kv(card.METADATA_CHECKSUM, "u64", 0))
    entries |= {kv.key: encode_value(kv.key, kv.type, kv.value) for kv in new}
    raw, at_checksum = _header_bytes(header, entries, packed, offsets, PACKED_ALIGNMENT)
    if not at_checksum:
        return raw
    checksum = struct.pack("<Q", card.metadata_checksum(raw, at_checksum))
    return raw[:at_checksum] + checksum + raw[at_checksum + 8 :]


def _header_bytes(
    header: Header,
    entries: Mapping[str, bytes],
    packed: frozenset[str],
    offsets: Sequence[int],
    alignment: int,
) -> tuple[bytes, int]:
    """[0, data_offset) with other entries (type word and value), types and offsets; and where the eight bytes
    of the metadata checksum are, 0 without one.
    """
    out = bytearray(header.raw[:16] + struct.pack("<Q", len(entries)))
    at_checksum = 0
    for key, value in entries.items():
        out += struct.pack("<Q", len(key.encode())) + key.encode()
        if key == card.METADATA_CHECKSUM:
            at_checksum = len(out) + 4
        out += value
    for (name, kind, shape, *_), offset in zip(header.tensors, offsets, strict=True):
        number = TENSOR_IDS[kind] + (_PACKED_TYPE if name in packed else 0)
        out += struct.pack("<Q", len(name.encode())) + name.encode()
        out += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
    return bytes(out) + bytes(align(len(out), alignment) - len(out)), at_checksum


def _number(header: Header, key: str) -> int:
    """The value a key has in GGUF's layout: an unsigned number."""
    entry = header.entries.get(card.UNPACKED + key)
    if entry is None or entry.type not in ("u32", "u64"):
        raise FormatError(
            f"{header.path}: key {card.UNPACKED + key!r} is missing or no u64; pack the file again"
        )
    return int(header.value(card.UNPACKED + key))


def _offsets(header: Header) -> list[int]:
    """Of the tensors in GGUF's layout, from the start of the tensor data."""
    entry = header.entries.get(_OFFSETS)
    if entry is None or entry.type != "array[u64]" or len(header.value(_OFFSETS)) != len(header.tensors):
        raise FormatError(
            f"{header.path}: key {_OFFSETS!r} is missing or has no u64 for each tensor; pack the file again"
        )
    return [int(offset) for offset in header.value(_OFFSETS)]


def _check_places(header: Header, found: Arrangement) -> None:
    """Everything lies apart and inside the file, with no more padding than the largest alignment gives."""
    sizes = {section.name: section.size for section in sections_of(header)}
    ranges = [(at, tensor[4]) for at, tensor in zip(found.tensors, header.tensors, strict=True)]
    ranges += [(at, sizes[name]) for name, at in found.sections.items()]
    end = len(found.header)
    for offset, size in sorted(ranges):
        if offset < end:
            raise _impossible(header)
        end = offset + size
    if not end <= found.size <= _largest_size(header, header.size):
        raise _impossible(header)


def _largest_size(header: Header, size: int) -> int:
    """Of the other layout of a file of `size` bytes: one full alignment more for each of its parts."""
    return size + (len(header.tensors) + len(card.SECTIONS) + 1) * _ALIGNMENTS[-1]


def _impossible(header: Header) -> FormatError:
    return FormatError(
        f"{header.path}: the places under {card.UNPACKED}* are impossible; pack the file again"
    )


def _check_lossless(header: Header, sections: Sequence[Section], found: Arrangement) -> None:
    """Unpacking the new header must give the old one."""
    before = Arrangement(
        header=header.raw,
        tensors=tuple(offset for *_, offset, _ in header.tensors),
        packed=frozenset(),
        sections={section.name: section.offset for section in sections},
        size=header.size,
    )
    if header.size <= _largest_size(header, found.size):
        places = zip(header.tensors, found.tensors, strict=True)
        again = replace(
            header,
            size=found.size,
            data_offset=len(found.header),
            raw=found.header,
            entries=walk(found.header),
            tensors=tuple((*tensor[:3], at, tensor[4]) for tensor, at in places),
            packed=found.packed,
        )
        if unpacked_arrangement(again) == before:
            return
    raise UnsupportedError(
        f"{header.path} has an unusual header or padding that packing would lose; write it again first, "
        "for example with gemmule split or gemmule quantize"
    )
