"""verify(): is every bit of a file what its writer wrote?

Files of gemmule: XXH64 of the header and of each tensor, zero padding, and for parts without checksums of
their own the SHA-256 of the section; so every byte is covered. Other files: no number and no block scale
may be NaN or infinite. Tensors are checked on all cores, packed ones as their bytes are in GGUF's layout.
"""

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._convert import card
from gemmule._convert.gguf_source import Header, Section, open_input, read_exactly, read_header, sections_of
from gemmule._convert.gguf_writer import PANEL_ROWS
from gemmule._convert.layout import gaps
from gemmule._convert.stream import Progress
from gemmule._errors import FormatError
from gemmule._quant import _BLOCKS
from gemmule._types import VerifyReport

__all__ = ["verify"]

_PIECE_BYTES = 4 << 20
_TICK = 0.1
# Where the half floats of a block are; exponent bits all ones mean NaN or infinity.
_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "F16": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class _Check:
    """One range to look at: returns a problem or an empty string."""

    name: str  # of the tensor or section
    n_bytes: int
    look: Callable[["_Reader"], str]


class _Reader:
    """Reads a range in pieces; the bytes it has read are counted, and it ends when the caller gives up."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self.n_bytes = 0

    def pieces(self, offset: int, size: int, what: str, step: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Pieces of a multiple of `step` bytes; each is valid until the next."""
        length = max(step, _PIECE_BYTES // step * step)
        buffer = np.empty(min(size, length), np.uint8)
        for at in range(0, size, length):
            if self.stop.is_set():
                return
            piece = buffer[: min(length, size - at)]
            read_exactly(self.fd, offset + at, piece.data, what)
            with self._lock:
                self.n_bytes += len(piece)
            yield piece


def verify(
    path: str | os.PathLike[str], *, full: bool = False, progress: Progress | None = None
) -> VerifyReport:
    """Checks a GGUF file: structure, metadata, every tensor and section.

    Args:
        path: the file.
        full: also the SHA-256 of sections that have checksums of their own (slower).
        progress: called with (done bytes, total bytes, what).

    Returns:
        A report that names what is damaged; `ok` says whether nothing is.

    Raises:
        FormatError: the structure itself is broken, so that there is nothing to check.
    """
    started = time.monotonic()
    header = read_header(Path(path))
    problems: list[tuple[str, str]] = []  # damaged name, sentence
    checks = _image_checks(header, "", problems)
    n_tensors = len(header.tensors)
    sections = sections_of(header)
    for section in sections:
        inner, found = _section_checks(header, section, full, problems)
        checks += found
        n_tensors += len(inner.tensors) if inner is not None else 0
    has_checksums = card.CHECKSUM in header.entries
    if has_checksums:
        checks += _gap_checks(header, sections)
    with open_input(header.path) as fd:
        reader = _Reader(fd)
        problems += _run(checks, reader, progress)
    return VerifyReport(
        path=str(path),
        ok=not problems,
        has_checksums=has_checksums,
        n_tensors=n_tensors,
        n_bytes=reader.n_bytes,
        seconds=time.monotonic() - started,
        damaged=tuple(dict.fromkeys(name for name, _ in problems)),
        problems=tuple(sentence for _, sentence in problems),
        warnings=() if has_checksums else ("the file has no checksums; only its numbers were checked",),
    )


def _image_checks(header: Header, prefix: str, problems: list[tuple[str, str]]) -> list[_Check]:
    """The tensors of an image. The metadata is checked at once."""
    checksums = header.get(card.CHECKSUM)
    where = f"{prefix}metadata"
    if checksums is None and card.METADATA_CHECKSUM not in header.entries:
        return [_scale_check(header, i, prefix) for i in range(len(header.tensors))]
    if not _is_metadata_good(header):
        problems.append((where, f"the {where} is damaged: its checksum differs or is missing"))
    if checksums is None or len(checksums) != len(header.tensors):
        problems.append((where, f"the {where} is damaged: it has no checksum for each tensor"))
        return []
    return [_checksum_check(header, i, prefix, int(value)) for i, value in enumerate(checksums)]


def _is_metadata_good(header: Header) -> bool:
    entry = header.entries.get(card.METADATA_CHECKSUM)
    if entry is None or entry.type != "u64":
        return False
    return bool(card.metadata_checksum(header.raw, entry.position) == header.value(card.METADATA_CHECKSUM))


def _section_checks(
    header: Header, section: Section, full: bool, problems: list[tuple[str, str]]
) -> tuple[Header | None, list[_Check]]:
    prefix = f"{section.name}: "
    try:
        inner = read_header(header.path, offset=section.offset, size=section.size)
    except FormatError as error:
        problems.append((section.name, f"section {section.name!r} is damaged: {error}"))
        return None, []
    checks = _image_checks(inner, prefix, problems) if card.CHECKSUM in inner.entries else []
    if checks:
        checks += _padding_checks(inner, prefix)
    if full or not checks:
        checks.append(_sha256_check(section))
    return inner, checks


def _rows_of(header: Header, index: int, reader: _Reader, step: int = 1) -> Iterator[NDArray[np.uint8]]:
    """A tensor in GGUF's layout, in pieces of a multiple of `step` bytes, which is a block or less."""
    name, kind, shape, offset, n_bytes = header.tensors[index]
    if name not in header.packed:
        yield from reader.pieces(header.start + offset, n_bytes, header.what(name), step)
        return
    row = n_bytes // math.prod(shape[1:])
    for panels in reader.pieces(header.start + offset, n_bytes, header.what(name), row * PANEL_ROWS):
        yield _core.unpack_rows(kind, len(panels) // row, shape[0], panels)


def _checksum_check(header: Header, index: int, prefix: str, expected: int) -> _Check:
    name, _, _, _, n_bytes = header.tensors[index]

    def look(reader: _Reader) -> str:
        hasher = _core.Xxh64()
        for piece in _rows_of(header, index, reader):
            hasher.update(piece.data)
        same = reader.stop.is_set() or int(hasher.digest()) == expected
        return "" if same else f"tensor '{prefix}{name}' is damaged: its checksum differs"

    return _Check(prefix + name, n_bytes, look)


def _sha256_check(section: Section) -> _Check:
    def look(reader: _Reader) -> str:
        hasher = hashlib.sha256()
        for piece in reader.pieces(section.offset, section.size, f"section {section.name!r}"):
            hasher.update(piece.data)
        same = reader.stop.is_set() or hasher.hexdigest() == section.sha256
        return "" if same else f"section {section.name!r} is damaged: its SHA-256 differs"

    return _Check(section.name, section.size, look)


def _scale_check(header: Header, index: int, prefix: str) -> _Check:
    name, kind, shape, _, n_bytes = header.tensors[index]

    def look(reader: _Reader) -> str:
        elements, step = _BLOCKS[kind]
        done = 0
        for piece in _rows_of(header, index, reader, step):
            bad = _first_bad_block(piece.reshape(-1, step), kind)
            if bad >= 0:
                row = (done + bad) * elements // shape[0]
                return f"tensor '{prefix}{name}' is damaged: row {row} holds a NaN or infinite number"
            done += len(piece) // step
        return ""

    return _Check(prefix + name, n_bytes, look)


def _first_bad_block(blocks: NDArray[np.uint8], kind: str) -> int:
    """Index of the first of [n, bytes] blocks with a scale (or number) that is not finite, or -1."""
    bad = np.zeros(len(blocks), bool)
    if kind == "F32":
        bad = (blocks.view("<u4")[:, 0] & 0x7F800000) == 0x7F800000
    elif kind == "BF16":
        bad = (blocks.view("<u2")[:, 0] & 0x7F80) == 0x7F80
    else:
        for at in _SCALES[kind]:
            bad |= (blocks[:, at + 1] & 0x7C) == 0x7C
    return int(bad.argmax()) if bad.any() else -1


def _gap_checks(header: Header, sections: list[Section]) -> list[_Check]:
    """Padding of the text image, and what lies around the sections up to the end of the file."""
    used = [(header.start + offset, n_bytes) for _, _, _, offset, n_bytes in header.tensors]
    used += [(section.offset, section.size) for section in sections]
    return [_zero_check(at, size, "") for at, size in gaps(header.data_offset, used, header.size)]


def _padding_checks(header: Header, prefix: str) -> list[_Check]:
    """Padding of a section."""
    used = [(header.start + offset, n_bytes) for _, _, _, offset, n_bytes in header.tensors]
    start, end = header.start + header.data_offset, header.start + header.size
    return [_zero_check(at, size, prefix) for at, size in gaps(start, used, end)]


def _zero_check(offset: int, size: int, prefix: str) -> _Check:
    name = f"{prefix}padding at byte {offset}"

    def look(reader: _Reader) -> str:
        for piece in reader.pieces(offset, size, name):
            if piece.any():
                return f"the {name} is damaged: it is not zero"
        return ""

    return _Check(name, size, look)


def _run(checks: list[_Check], reader: _Reader, progress: Progress | None) -> list[tuple[str, str]]:
    """All checks on all cores, the largest first; problems in the order of the checks."""
    total = sum(check.n_bytes for check in checks)
    small = [check for check in checks if check.n_bytes < _PIECE_BYTES]
    batches = [[check] for check in sorted(checks, key=_by_size) if check.n_bytes >= _PIECE_BYTES]
    batches += [small[i : i + 64] for i in range(0, len(small), 64)]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    shown = 0.0
    try:
        pending: set[Future[dict[str, str]]] = {pool.submit(_look, batch, reader) for batch in batches}
        found: dict[str, str] = {}
        while pending:
            done, pending = wait(pending, timeout=_TICK, return_when=FIRST_COMPLETED)
            for future in done:
                found |= future.result()
            if progress is not None and (not pending or time.monotonic() - shown >= _TICK):
                progress(reader.n_bytes, total, "checking")
                shown = time.monotonic()
    finally:
        reader.stop.set()
        pool.shutdown(cancel_futures=True)
    order = dict.fromkeys(check.name for check in checks)
    return [(name, found[name]) for name in order if name in found]


def _by_size(check: _Check) -> int:
    return -check.n_bytes


def _look(batch: list[_Check], reader: _Reader) -> dict[str, str]:
    problems = ((check.name, check.look(reader)) for check in batch)
    return {name: sentence for name, sentence in problems if sentence}
