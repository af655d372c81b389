"""The keys gemmule adds to a file: what it was made from and how, where its sections are, checksums, quality.

    gemmule.version, .layout, .convert.type, .source.*, .quality.*, .section.*, .checksum.*

The metadata checksum is XXH64 over [0, data_offset) with its own eight bytes zero, so it covers every other
key and the tensor table; the tensor checksums cover the stored bytes of each tensor without padding. All keys
are described in docs/FORMAT.md.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemmule import _core
from gemmule._convert.gguf_writer import ImageLayout
from gemmule._convert.image import Kv
from gemmule._version import __version__

__all__ = [
    "CHECKSUM",
    "LAYOUT",
    "METADATA_CHECKSUM",
    "PACKED",
    "RMS_ERROR",
    "SECTIONS",
    "TENSOR_RMS_ERROR",
    "UNPACKED",
    "WEIGHTED_RMS_ERROR",
    "Origin",
    "checksum_keys",
    "is_derived",
    "is_own",
    "metadata_checksum",
    "origin_keys",
    "patch_sections",
    "seal",
    "section_key",
    "section_keys",
    "type_keys",
]

LAYOUT = "gemmule.layout"
PACKED = "r8p64"  # the value of LAYOUT in a packed file
UNPACKED = "gemmule.unpacked."  # + key: what that key is in the same file in GGUF's layout
CHECKSUM = "gemmule.checksum.xxh64"
SECTIONS = ("mmproj", "drafter")
METADATA_CHECKSUM = "gemmule.checksum.metadata"
RMS_ERROR = "gemmule.quality.rms_error"
TENSOR_RMS_ERROR = "gemmule.quality.tensor_rms_error"
WEIGHTED_RMS_ERROR = "gemmule.quality.weighted_rms_error"
_DERIVED = ("gemmule.checksum.", "gemmule.section.")
_OF_SOURCE = ("gemmule.convert.", "gemmule.quality.", "gemmule.source.")
_OWN = (*_DERIVED, UNPACKED, LAYOUT, "gemmule.version", *_OF_SOURCE)
_TYPE_KEYS = ("general.file_type", "general.quantization_version", "general.alignment")


@dataclass(frozen=True)
class Origin:
    """What a converted file says about its making."""

    type: str
    file_type: int
    source_name: str
    source_dtype: str
    imatrix: str = ""


def is_derived(key: str) -> bool:
    """Whether a key describes the bytes of one file and must not be copied into another."""
    return key.startswith(_DERIVED) or key == "general.alignment"


def is_own(key: str) -> bool:
    """Whether a conversion writes this key anew."""
    return key.startswith(_OWN) or key in _TYPE_KEYS


def type_keys(file_type: int) -> list[Kv]:
    return [Kv("general.quantization_version", "u32", 2), Kv("general.file_type", "u32", file_type)]


def origin_keys(origin: Origin, n_tensors: int) -> list[Kv]:
    """Keys of a converted text image; the quality is a placeholder."""
    return [
        *type_keys(origin.file_type),
        *identity_keys(),
        Kv("gemmule.convert.type", "string", origin.type),
        Kv("gemmule.source.name", "string", origin.source_name),
        Kv("gemmule.source.dtype", "string", origin.source_dtype),
        Kv("gemmule.quality.imatrix", "string", origin.imatrix),
        Kv(RMS_ERROR, "f32", 0.0),
        Kv(WEIGHTED_RMS_ERROR, "f32", 0.0),
        Kv(TENSOR_RMS_ERROR, "array[f32]", [0.0] * n_tensors),
    ]


def identity_keys() -> list[Kv]:
    return [Kv("gemmule.version", "string", __version__), Kv(LAYOUT, "string", "gguf")]


def section_key(name: str, what: str) -> str:
    return f"gemmule.section.{name}.{what}"


def section_keys(names: Sequence[str]) -> list[Kv]:
    """Where the sections are; placeholders until they are placed and written."""
    if not names:
        return []
    keys = [Kv("gemmule.section.count", "u32", len(names))]
    for name in names:
        keys += [
            Kv(section_key(name, "offset"), "u64", 0),
            Kv(section_key(name, "size"), "u64", 0),
            Kv(section_key(name, "sha256"), "string", "0" * 64),
        ]
    return keys


def checksum_keys(n_tensors: int) -> list[Kv]:
    return [Kv(CHECKSUM, "array[u64]", [0] * n_tensors), Kv(METADATA_CHECKSUM, "u64", 0)]


def seal(layout: ImageLayout, checksums: Sequence[int]) -> None:
    """Writes the checksums into a header whose other values are final."""
    layout.patch(CHECKSUM, list(checksums))
    layout.patch(METADATA_CHECKSUM, metadata_checksum(layout.header, layout.positions[METADATA_CHECKSUM]))


def metadata_checksum(header: bytes | bytearray, position: int) -> int:
    """XXH64 of a header with the eight bytes at `position` zero."""
    zeroed = bytearray(header)
    struct.pack_into("<Q", zeroed, position, 0)
    hasher = _core.Xxh64()
    hasher.update(zeroed)
    return int(hasher.digest())


def patch_sections(text: ImageLayout, starts: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Writes where the sections are into the text header."""
    for name, start in starts.items():
        text.patch(section_key(name, "offset"), start)
        text.patch(section_key(name, "size"), sizes[name])
