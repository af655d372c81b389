"""pack() and unpack(): the same file in the packed layout and in GGUF's, there and back without loss.

Threads read and permute pieces of a tensor, whole panels of 64 rows; the calling thread takes the pieces in
order, checks them against the file's checksums and writes them. A few pieces are in memory at a time.
"""

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._convert import card
from gemmule._convert.bundle import report_of
from gemmule._convert.gguf_source import Header, open_input, read_exactly, read_header, sections_of
from gemmule._convert.gguf_writer import PANEL_ROWS
from gemmule._convert.layout import Arrangement, gaps, packed_arrangement, unpacked_arrangement
from gemmule._convert.output import Output, output_path
from gemmule._convert.stream import Meter, Progress
from gemmule._errors import FormatError, UnsupportedError
from gemmule._types import ConvertReport

__all__ = ["pack", "unpack"]

PathLike = str | os.PathLike[str]
Bytes = NDArray[np.uint8]

_PIECE_BYTES = 8 << 20
_SUFFIX = ".packed"


@dataclass(frozen=True)
class _Piece:
    """Bytes that move from one place to another. `turn` permutes them and is None for a plain copy."""

    source: int
    target: int
    n_bytes: int
    what: str
    turn: Callable[[Bytes], Bytes] | None = None


def pack(
    src: PathLike, dst: PathLike | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> ConvertReport:
    """Writes a GGUF file again with its matrices in the packed layout, the order in which kernels read them.

    The size stays the same but for padding, and `unpack` gives back the same file byte for byte. Only gemmule
    opens a packed file. Media embedders and drafter stay as they are.

    Args:
        src: a GGUF file that holds a text model.
        dst: the file to write, or an existing folder for `<name>.packed.gguf`; default the current folder.
        overwrite: replace an existing file.
        progress: called with (done bytes, total bytes, what).
    """
    source = Path(src)
    target = output_path(dst, f"{source.stem}{_SUFFIX}.gguf")
    header = read_header(source)
    arrangement = packed_arrangement(header)
    _check_padding(header)
    return _rewrite(header, arrangement, target, overwrite, progress)


def unpack(
    src: PathLike, dst: PathLike | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> ConvertReport:
    """Writes a packed file again in GGUF's layout, which other programs open.

    A file that `pack` made becomes the file it was made from, byte for byte.

    Args:
        src: a packed file.
        dst: the file to write, or an existing folder for `<name>.gguf`, where the name is that of `src`
            without `.packed`; default the current folder.
        overwrite: replace an existing file.
        progress: called with (done bytes, total bytes, what).
    """
    source = Path(src)
    stem = source.stem.removesuffix(_SUFFIX)
    target = output_path(dst, f"{stem}.gguf" if stem != source.stem else f"{stem}.unpacked.gguf")
    header = read_header(source)
    return _rewrite(header, unpacked_arrangement(header), target, overwrite, progress)


def _rewrite(
    header: Header, to: Arrangement, path: Path, overwrite: bool, progress: Progress | None
) -> ConvertReport:
    started = time.monotonic()
    sections = sections_of(header)
    n_bytes = sum(tensor[4] for tensor in header.tensors) + sum(section.size for section in sections)
    meter = Meter(progress, n_bytes)
    n_threads = len(os.sched_getaffinity(0))
    with (
        Output(path, to.size, overwrite=overwrite, sources=[header.path]) as output,
        open_input(header.path) as fd,
        ThreadPoolExecutor(n_threads) as pool,
    ):
        mover = _Mover(fd, output, pool, n_threads, meter)
        checksums = header.get(card.CHECKSUM)
        known = checksums is not None and len(checksums) == len(header.tensors)
        for index, place in enumerate(to.tensors):
            found = mover.move_tensor(header, index, place, to)
            if known and found != int(checksums[index]):
                what = header.what(header.tensors[index][0])
                raise FormatError(f"{what} is damaged (its checksum differs); get the file again")
        for section in sections:
            what = f"{header.path}: section {section.name!r}"
            hasher = hashlib.sha256()
            for data, _ in mover.move(_plain(section.offset, to.sections[section.name], section.size, what)):
                hasher.update(data.data)
            if hasher.hexdigest() != section.sha256:
                raise FormatError(f"{what} is damaged (its SHA-256 differs); get the file again")
        output.write(0, to.header)
        output.commit()
    sizes = {section.name: section.size for section in sections}
    report = report_of(path, header, to.size, sizes, time.monotonic() - started)
    return replace(report, layout=card.PACKED if to.packed else "gguf")


class _Mover:
    """Moves pieces with a few of them under way at a time."""

    def __init__(self, fd: int, output: Output, pool: ThreadPoolExecutor, n: int, meter: Meter) -> None:
        self._fd = fd
        self._output = output
        self._pool = pool
        self._n = n
        self._meter = meter

    def move_tensor(self, header: Header, index: int, place: int, to: Arrangement) -> int:
        """Returns the checksum of the blocks in GGUF's order."""
        name, kind, shape, offset, n_bytes = header.tensors[index]
        what = header.what(name)
        becomes_packed = name in to.packed
        if becomes_packed == (name in header.packed):
            pieces = _plain(offset, place, n_bytes, what)
        else:
            turn = _core.pack_rows if becomes_packed else _core.unpack_rows
            matrix = (kind, math.prod(shape[1:]), shape[0], n_bytes)
            pieces = _panels(matrix, offset, place, what, turn)
        hasher = _core.Xxh64()
        for before, after in self.move(pieces):
            hasher.update((before if becomes_packed else after).data)
        return int(hasher.digest())

    def move(self, pieces: Iterator[_Piece]) -> Iterator[tuple[Bytes, Bytes]]:
        """Yields each piece as read and as written, in order."""
        pending: deque[tuple[_Piece, Future[tuple[Bytes, Bytes]]]] = deque()
        try:
            for piece in pieces:
                pending.append((piece, self._pool.submit(self._read, piece)))
                if len(pending) > self._n:
                    yield self._write(*pending.popleft())
            while pending:
                yield self._write(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def _read(self, piece: _Piece) -> tuple[Bytes, Bytes]:
        before = np.empty(piece.n_bytes, np.uint8)
        read_exactly(self._fd, piece.source, before.data, piece.what)
        os.posix_fadvise(self._fd, piece.source, piece.n_bytes, os.POSIX_FADV_DONTNEED)
        return before, before if piece.turn is None else piece.turn(before)

    def _write(self, piece: _Piece, future: Future[tuple[Bytes, Bytes]]) -> tuple[Bytes, Bytes]:
        before, after = future.result()
        self._output.write(piece.target, after)
        self._meter.add(piece.n_bytes, piece.what)
        return before, after


def _plain(source: int, target: int, n_bytes: int, what: str) -> Iterator[_Piece]:
    for at in range(0, n_bytes, _PIECE_BYTES):
        yield _Piece(source + at, target + at, min(_PIECE_BYTES, n_bytes - at), what)


def _panels(
    matrix: tuple[str, int, int, int],
    source: int,
    target: int,
    what: str,
    turn: Callable[[str, int, int, Bytes], Bytes],
) -> Iterator[_Piece]:
    """Whole panels of a matrix (type, rows, columns, bytes): a panel is as large in both layouts."""
    kind, n_rows, n_cols, n_bytes = matrix
    row = n_bytes // n_rows
    step = max(1, _PIECE_BYTES // (row * PANEL_ROWS)) * PANEL_ROWS
    for first in range(0, n_rows, step):
        n = min(step, n_rows - first)

        def permute(data: Bytes, n: int = n) -> Bytes:
            return turn(kind, n, n_cols, data)

        yield _Piece(source + first * row, target + first * row, n * row, what, permute)


def _check_padding(header: Header) -> None:
    """What lies between the parts must be zero: the packed file does not keep it."""
    used = [(offset, n_bytes) for *_, offset, n_bytes in header.tensors]
    used += [(section.offset, section.size) for section in sections_of(header)]
    with open_input(header.path) as fd:
        for at, size in gaps(header.data_offset, used, header.size):
            for piece in _plain(at, 0, size, f"{header.path}: the padding"):
                data = np.empty(piece.n_bytes, np.uint8)
                read_exactly(fd, piece.source, data.data, piece.what)
                if data.any():
                    raise UnsupportedError(
                        f"{header.path} holds bytes at {at} that belong to no tensor and would be lost; "
                        "write it again first, for example with gemmule quantize"
                    )
