"""One pass over the tensors: read, encode, write, in three threads.

    reader --slot--> encoder --slot--> writer --slot--> reader ...

A slot is one chunk of rows: about 32 MB of source bytes and the blocks they become, once per type even when
several files want it. The few slots go round, so memory stays flat whatever the size of the model, and a slow
stage holds up the others. The calling thread only waits, reports progress and sees Ctrl-C. The first error of
any thread ends all of them and is raised here.
"""

import math
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._convert.gguf_writer import PANEL_ROWS, align
from gemmule._convert.image import TensorSpec
from gemmule._convert.mixes import tensor_bytes
from gemmule._convert.output import Output
from gemmule._errors import Cancelled, FormatError
from gemmule._quant import _BLOCKS as BLOCK_TYPES

__all__ = [
    "BLOCK_TYPES",
    "Job",
    "Meter",
    "Progress",
    "Sums",
    "Target",
    "TensorResult",
    "buffer_bytes",
    "peak_memory",
    "row_bytes",
    "run",
    "search_weights",
    "source_bytes",
]

CHUNK_BYTES = 32 << 20
N_SLOTS = 4
_TICK = 0.1  # seconds between progress reports, and how soon Ctrl-C is seen

Progress = Callable[[int, int, str], None]
Bytes = NDArray[np.uint8]


class Meter:
    """Reports progress at most ten times a second."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._next = 0.0

    def add(self, n_bytes: int, what: str) -> None:
        self._done += n_bytes
        now = time.monotonic()
        if self._progress is not None and (now >= self._next or self._done == self._total):
            self._progress(self._done, self._total, what)
            self._next = now + _TICK


@dataclass(frozen=True)
class Target:
    """Where one encoding of a tensor goes, in GGUF's layout or packed."""

    output: Output
    offset: int  # in the file
    type: str
    is_packed: bool = False


@dataclass(frozen=True)
class Job:
    """One tensor. `importance` is [n_matrices, n_cols]: one row for all, or one for each matrix (expert)."""

    spec: TensorSpec
    targets: tuple[Target, ...]
    importance: NDArray[np.float32] | None = None


@dataclass
class Sums:
    """Squared error and squared norm over the elements, plain and weighted by importance."""

    error: float = 0.0
    norm: float = 0.0
    weighted_error: float = 0.0
    weighted_norm: float = 0.0

    def add(self, other: "Sums") -> None:
        self.error += other.error
        self.norm += other.norm
        self.weighted_error += other.weighted_error
        self.weighted_norm += other.weighted_norm

    @property
    def rms(self) -> float:
        return math.sqrt(self.error / self.norm) if self.norm > 0 else 0.0

    @property
    def weighted_rms(self) -> float:
        return math.sqrt(self.weighted_error / self.weighted_norm) if self.weighted_norm > 0 else 0.0


@dataclass(frozen=True)
class TensorResult:
    """What one encoding of one tensor gave. `checksum` is the XXH64 of its stored bytes."""

    checksum: int
    sums: Sums


@dataclass(frozen=True)
class _Chunk:
    job: int
    first: int  # row
    n: int
    matrix: int
    is_last: bool


@dataclass
class _Slot:
    source: Bytes
    memory: Bytes  # for the encoded rows of all types
    blocks: dict[str, Bytes] = field(default_factory=dict)  # type: its part of `memory`
    chunk: _Chunk = field(default_factory=lambda: _Chunk(0, 0, 0, 0, False))


def source_bytes(spec: TensorSpec) -> int:
    """Bytes read for a tensor."""
    return spec.rows.n_rows * row_bytes(spec, spec.rows.dtype)


def run(
    jobs: Sequence[Job],
    encoder: _core.Encoder,
    *,
    progress: Progress | None = None,
    stop: _core.StopToken | None = None,
) -> list[dict[str, TensorResult]]:
    """Encodes every job into its targets; one result for each type of each job."""
    return _Pipeline(jobs, encoder).run(progress, stop)


def peak_memory() -> int:
    """The most bytes of memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Left alone, the encoders of the older types take the scale from the largest number, by bits as every other
# program does, and those of the K types count large numbers for more. Searching the scales as if all columns
# were equally important leaves a smaller error and less divergence: docs/PERF.md has the figures.
_SEARCHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def search_weights(
    kind: str, importance: NDArray[np.float32] | None, n_cols: int
) -> NDArray[np.float32] | None:
    """What the encoder of a type is given as the importance of the columns, [n_cols]."""
    if importance is None and kind in _SEARCHED:
        return np.ones(n_cols, np.float32)
    return importance


class _Pipeline:
    def __init__(self, jobs: Sequence[Job], encoder: _core.Encoder) -> None:
        self._jobs = jobs
        self._encoder = encoder
        self._stop = _core.StopToken()
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._filled: SimpleQueue[_Slot | None] = SimpleQueue()
        self._encoded: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._n_read = 0
        self._what = ""
        self._sums: list[dict[str, Sums]] = [{t.type: Sums() for t in job.targets} for job in jobs]
        self._checksums: list[dict[str, int]] = [{} for _ in jobs]

    def run(self, progress: Progress | None, stop: _core.StopToken | None) -> list[dict[str, TensorResult]]:
        stages = (self._read, self._encode, self._write)
        threads = [threading.Thread(target=self._guarded, args=(stage,), daemon=True) for stage in stages]
        try:
            self._add_slots()
            for thread in threads:
                thread.start()
            self._wait(progress, stop)
        finally:
            self._join(threads)
        if self._failure is not None:
            raise self._failure
        return [
            {kind: TensorResult(checksums[kind], sums[kind]) for kind in sums}
            for checksums, sums in zip(self._checksums, self._sums, strict=True)
        ]

    def _wait(self, progress: Progress | None, stop: _core.StopToken | None) -> None:
        total = sum(source_bytes(job.spec) for job in self._jobs)
        last = 0.0
        while True:
            if stop is not None and stop.cancelled:
                raise Cancelled("the conversion was stopped; nothing was written")
            if self._ended.wait(_TICK):
                break
            now = time.monotonic()
            if progress is not None and now - last >= _TICK:
                progress(self._n_read, total, self._what)
                last = now
        if progress is not None and self._failure is None:
            progress(total, total, self._what)

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """Ends the threads, however often Ctrl-C comes: they must not outlive the files they write."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._end()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _end(self) -> None:
        self._stop.cancel()
        for queue in (self._free, self._filled, self._encoded):
            queue.put(None)

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:
            if self._failure is None and not self._stop.cancelled:
                self._failure = error
            self._end()
            self._ended.set()

    def _add_slots(self) -> None:
        """Buffers large enough for every chunk; untouched pages cost nothing."""
        n_source, n_blocks = _slot_bytes([(job.spec, [t.type for t in job.targets]) for job in self._jobs])
        for _ in range(N_SLOTS):
            self._free.put(_Slot(np.empty(n_source, np.uint8), np.empty(n_blocks, np.uint8)))

    def _read(self) -> None:
        for index, job in enumerate(self._jobs):
            for chunk in _chunks(index, job):
                slot = self._free.get()
                if slot is None:
                    return
                slot.chunk = chunk
                rows = job.spec.rows
                rows.read_into(chunk.first, chunk.n, _source_part(slot, job.spec))
                self._filled.put(slot)
        self._filled.put(None)

    def _encode(self) -> None:
        while (slot := self._filled.get()) is not None:
            job, sums = self._jobs[slot.chunk.job], self._sums[slot.chunk.job]
            slot.blocks, at = {}, 0
            for kind in sums:
                n_bytes = slot.chunk.n * row_bytes(job.spec, kind)
                slot.blocks[kind] = slot.memory[at : at + n_bytes]
                at += align(n_bytes)
                sums[kind].add(self._encode_chunk(job, slot, kind))
            self._encoded.put(slot)
        self._encoded.put(None)

    def _encode_chunk(self, job: Job, slot: _Slot, kind: str) -> Sums:
        rows, chunk = job.spec.rows, slot.chunk
        source = _source_part(slot, job.spec)
        out = slot.blocks[kind]
        if kind not in BLOCK_TYPES:  # tables of integers
            if kind != rows.dtype:
                raise FormatError(f"{rows.origin}: a tensor of type {rows.dtype} cannot become {kind}.")
            out[:] = source
            return Sums()
        importance = None
        if job.importance is not None:
            importance = job.importance[chunk.matrix if len(job.importance) > 1 else 0]
        weights = search_weights(kind, importance, rows.n_cols)
        *sums, bad = self._encoder.encode(
            source, rows.dtype, rows.n_cols, kind, out, importance=weights, stop=self._stop
        )
        if bad >= 0:
            raise _bad_number(job.spec, kind, source, chunk.first, int(bad))
        if not all(math.isfinite(value) for value in sums):
            raise FormatError(
                f"{rows.origin}: rows {chunk.first} to {chunk.first + chunk.n - 1} hold numbers too large "
                f"for {kind}; keep this tensor in BF16 or F32."
            )
        return Sums(*sums)

    def _write(self) -> None:
        hashers: dict[str, _core.Xxh64] = {}
        while (slot := self._encoded.get()) is not None:
            chunk = slot.chunk
            job = self._jobs[chunk.job]
            if chunk.first == 0:
                hashers = {target.type: _core.Xxh64() for target in job.targets}
                self._what = job.spec.name
            for kind, hasher in hashers.items():
                hasher.update(slot.blocks[kind].data)
            packed = {
                kind: _core.pack_rows(kind, chunk.n, job.spec.rows.n_cols, slot.blocks[kind])
                for kind in {target.type for target in job.targets if target.is_packed}
            }
            for target in job.targets:
                at = target.offset + chunk.first * row_bytes(job.spec, target.type)
                blocks = packed if target.is_packed else slot.blocks
                target.output.write(at, blocks[target.type])
            if chunk.is_last:
                self._checksums[chunk.job] = {kind: int(hasher.digest()) for kind, hasher in hashers.items()}
            self._n_read += chunk.n * row_bytes(job.spec, job.spec.rows.dtype)
            self._free.put(slot)
        self._ended.set()


def row_bytes(spec: TensorSpec, kind: str) -> int:
    """Bytes of one row stored as `kind`."""
    return tensor_bytes(spec, kind) // spec.rows.n_rows


def buffer_bytes(tensors: Sequence[tuple[TensorSpec, Sequence[str]]]) -> int:
    """Memory that a pass over tensors with these types takes."""
    return N_SLOTS * sum(_slot_bytes(tensors))


def _slot_bytes(tensors: Sequence[tuple[TensorSpec, Sequence[str]]]) -> tuple[int, int]:
    """The largest chunk in bytes: as stored in the source, and as all its types together."""
    n_source = n_blocks = 0
    for spec, types in tensors:
        n = _rows_per_chunk(spec, types)
        n_source = max(n_source, n * row_bytes(spec, spec.rows.dtype))
        n_blocks = max(n_blocks, sum(align(n * row_bytes(spec, kind)) for kind in set(types)))
    return n_source, n_blocks


def _rows_per_chunk(spec: TensorSpec, types: Sequence[str]) -> int:
    """Whole panels of the packed layout, so that a chunk can be packed."""
    widest = max(row_bytes(spec, kind) for kind in (spec.rows.dtype, *types))
    return min(max(1, CHUNK_BYTES // (widest * PANEL_ROWS)) * PANEL_ROWS, spec.rows.n_rows)


def _chunks(index: int, job: Job) -> Iterator[_Chunk]:
    """Runs of rows; none crosses from one matrix (expert) to the next when each has its own importance."""
    n_rows = job.spec.rows.n_rows
    n_matrices = 1 if job.importance is None else len(job.importance)
    per_matrix = n_rows // n_matrices
    step = _rows_per_chunk(job.spec, [target.type for target in job.targets])
    for matrix in range(n_matrices):
        end = (matrix + 1) * per_matrix
        for first in range(matrix * per_matrix, end, step):
            n = min(step, end - first)
            yield _Chunk(index, first, n, matrix, is_last=first + n == n_rows)


def _source_part(slot: _Slot, spec: TensorSpec) -> Bytes:
    return slot.source[: slot.chunk.n * row_bytes(spec, spec.rows.dtype)]


def _bad_number(spec: TensorSpec, kind: str, source: Bytes, first: int, index: int) -> FormatError:
    """Names the place of a number that cannot be encoded."""
    row, column = divmod(index, spec.rows.n_cols)
    elements, n_bytes = BLOCK_TYPES[spec.rows.dtype]
    at = index // elements * n_bytes
    value = float(_core.dequantize(source[at : at + n_bytes].copy(), spec.rows.dtype)[index % elements])
    where = f"{spec.rows.origin}: row {first + row}, column {column}"
    if math.isfinite(value):
        return FormatError(f"{where} is {value:g}, too large for {kind}; choose F32 for this tensor.")
    return FormatError(f"{where} is not a number ({value}); get an undamaged checkpoint.")
