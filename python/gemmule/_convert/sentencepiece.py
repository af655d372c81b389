"""The pieces of a tokenizer.model file: ModelProto.pieces = 1 {piece = 1, score = 2, type = 3}.

A small reader of the protobuf wire format: fields of tag = number << 3 | kind, kind 0 a varint, 1 eight
bytes, 2 a length and that many bytes, 5 four bytes. Source: sentencepiece_model.proto.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemmule._convert.jsonfile import read_bytes
from gemmule._errors import FormatError

__all__ = ["read_pieces"]

_NORMAL, _BYTE = 1, 6


def read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """(text, score, type) of every piece; types are those of GGUF token types."""
    pieces: list[tuple[str, float, int]] = []
    for number, kind, value in _fields(read_bytes(path, limit_mb=256), path):
        if number != 1 or kind != 2:
            continue
        text, score, type_ = "", 0.0, _NORMAL
        for inner, _, item in _fields(value, path):
            try:
                if inner == 1:
                    text = item.decode()
                elif inner == 2:
                    (score,) = struct.unpack("<f", item)
                elif inner == 3:
                    type_ = int(item)
            except (UnicodeDecodeError, struct.error, AttributeError, TypeError, ValueError):
                raise FormatError(f"{path}: piece {len(pieces)} is damaged.") from None
        if not _NORMAL <= type_ <= _BYTE or not math.isfinite(score):
            raise FormatError(f"{path}: piece {len(pieces)} has the type {type_} and the score {score}.")
        pieces.append((text, score, type_))
    if not pieces:
        raise FormatError(f"{path}: no pieces; this is not a SentencePiece model.")
    return pieces


def _fields(data: bytes, path: Path) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of one protobuf message: varints as int, everything else as bytes."""
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= end or shift > 63:
                raise FormatError(f"{path}: the protobuf data breaks off at byte {at}.")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < end:
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, kind, varint()
            continue
        if kind not in (1, 2, 5):
            raise FormatError(f"{path}: the protobuf data has an unknown field type at byte {at}.")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if size > end - at:
            raise FormatError(f"{path}: the protobuf data breaks off at byte {at}.")
        yield tag >> 3, kind, data[at : at + size]
        at += size
