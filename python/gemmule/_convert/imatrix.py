"""Importance matrices: the mean square of every input column of every matrix, measured on a text.

A quantizer that knows them spends its error where the inputs are small. Files are those of llama.cpp: GGUF
with `<tensor>.in_sum2` [n_cols, n_matrices] and `<tensor>.counts` [1, n_matrices] (sums of squares, and how
many rows; one matrix per expert), and, for reading, the older binary form.
"""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._checks import MAX_CONTEXT, path_text, whole
from gemmule._convert.gguf_writer import lay_out
from gemmule._convert.image import ArrayRows, Image, Kv, TensorSpec
from gemmule._convert.output import Output, check_target
from gemmule._errors import FormatError, ModelNotFoundError
from gemmule._model import Model

__all__ = ["Imatrix", "ImatrixEntry", "compute", "imatrix", "read_imatrix", "write_imatrix"]

Progress = Callable[[int, int, str], None]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_LEGACY_BYTES = 4 << 30
# Matrices that read the same rows, so that the numbers of one serve for the other.
_SAME_INPUT = (
    ("ffn_gate_up_exps", "ffn_gate_exps"),
    ("ffn_gate_up_exps", "ffn_up_exps"),
    ("attn_qkv", "attn_q"),
)


@dataclass(frozen=True)
class ImatrixEntry:
    """What was measured for one tensor."""

    sum2: NDArray[np.float32]  # [n_matrices, n_cols]; the old form keeps experts in one row
    counts: NDArray[np.int64]  # [n_matrices] rows each matrix saw


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. `chunk_size` is the tokens of a window, 0 if the file does not say; `origin`, for
    messages, the file it was read from.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_size: int = 0
    origin: str = "the importance matrix"

    @property
    def name(self) -> str:
        """What it was measured on."""
        return ", ".join(Path(dataset).name for dataset in self.datasets)

    def __str__(self) -> str:
        tokens = f"{self.n_chunks} windows of {self.chunk_size} tokens"
        partial = sum(bool((entry.counts == 0).any()) for entry in self.entries.values())
        idle = f"; {partial} of them have experts that no token reached" if partial else ""
        return f"importance of {len(self.entries)} tensors from {tokens}{idle}"

    def importance(self, name: str, n_cols: int, n_matrices: int = 1) -> NDArray[np.float32] | None:
        """Mean squares float32 [n_matrices, n_cols], or None where nothing is known about the tensor.

        An expert that no row reached, and a matrix whose inputs were all zero, weigh every column alike.
        """
        entry = self._entry(name)
        if entry is None:
            return None
        if entry.sum2.size != n_cols * n_matrices or len(entry.counts) not in (1, n_matrices):
            raise FormatError(
                f"{self.origin}: {entry.sum2.size} values and {len(entry.counts)} counts for {name}, which "
                f"needs {n_matrices} x {n_cols}; it was made from another model; make one "
                "with gemmule imatrix."
            )
        counts = np.maximum(entry.counts, 1).astype(np.float64)
        mean = entry.sum2.reshape(n_matrices, n_cols) / counts[:, None]
        idle = ~(mean > 0).any(axis=1)
        mean[idle] = 1.0
        return np.ascontiguousarray(mean, dtype=np.float32)

    def _entry(self, name: str) -> ImatrixEntry | None:
        names = [name]
        for a, b in _SAME_INPUT:
            names += [name.replace(f"{x}.", f"{y}.") for x, y in ((a, b), (b, a)) if f".{x}." in name]
        return next((self.entries[n] for n in names if n in self.entries), None)


def _checked(name: str, sum2: NDArray[np.float32], counts: NDArray[np.float32], path: Path) -> ImatrixEntry:
    """An entry, if its numbers are what sums of squares and counts can be."""
    if sum2.size == 0 or counts.size == 0 or sum2.size % counts.size:
        raise FormatError(
            f"{path}: {name} has {sum2.size} sums for {counts.size} counts; the file is damaged."
        )
    for what, values in (("sum", sum2), ("count", counts)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)).reshape(-1))
        if bad.size:
            at = int(bad[0])
            raise FormatError(
                f"{path}: {name} has the {what} {values.reshape(-1)[at]} at {at}, which nothing can measure; "
                "make the file again."
            )
    rounded = np.rint(counts.astype(np.float64)).astype(np.int64).reshape(-1)
    return ImatrixEntry(sum2.reshape(len(rounded), -1), rounded)


def _read_gguf(path: Path) -> Imatrix:
    file = _core.GgufFile(path_text(path))
    keys = set(file.keys())
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    with path.open("rb") as stream:
        for tensor, kind, shape, offset, n_bytes, _ in file.tensors():
            suffix = next((s for s in (_SUMS, _COUNTS) if tensor.endswith(s)), None)
            if suffix is None:
                continue
            if kind != "F32":
                raise FormatError(f"{path}: {tensor} is {kind} and must be F32.")
            n_matrices = shape[1] if len(shape) > 1 else 1
            stream.seek(offset)
            values = np.frombuffer(stream.read(n_bytes), "<f4").astype(np.float32)
            if values.size * 4 != n_bytes:
                raise FormatError(f"{path}: the file ends within {tensor}; copy it again.")
            parts.setdefault(tensor.removesuffix(suffix), {})[suffix] = values.reshape(n_matrices, -1)
    entries = {}
    for name, pair in parts.items():
        if len(pair) != 2:
            missing = _COUNTS if _SUMS in pair else _SUMS
            raise FormatError(f"{path}: {name}{missing} is missing; the file is damaged.")
        entries[name] = _checked(name, pair[_SUMS], pair[_COUNTS], path)
    if not entries:
        raise FormatError(f"{path}: holds no importance matrix; make one with gemmule imatrix.")
    datasets = file.get("imatrix.datasets") if "imatrix.datasets" in keys else []
    return Imatrix(
        entries,
        tuple(str(dataset) for dataset in datasets) if isinstance(datasets, list) else (),
        _number(file, "imatrix.chunk_count", keys),
        _number(file, "imatrix.chunk_size", keys),
    )


def _number(file: _core.GgufFile, key: str, keys: set[str]) -> int:
    value = file.get(key) if key in keys else 0
    return value if isinstance(value, int) and value >= 0 else 0


class _Legacy:
    """The old form: i32 n_entries, then (i32 length, name, i32 calls, i32 n_values, f32 mean * calls) each,
    then optionally i32 calls, i32 length, dataset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size > _MAX_LEGACY_BYTES:
            raise FormatError(f"{path}: is too large for an importance matrix.")
        self.data = path.read_bytes()
        self.at = 0

    def take(self, n: int, what: str) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise FormatError(f"{self.path}: is no importance matrix, or is cut off: no room for {what}.")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, what: str, low: int = 1) -> int:
        value = int(struct.unpack("<i", self.take(4, what))[0])
        if value < low:
            raise FormatError(f"{self.path}: is no importance matrix, or is damaged: {what} is {value}.")
        return value

    def text(self, what: str, low: int = 1) -> str:
        return self.take(self.number(f"the length of {what}", low), what).decode(errors="replace")

    def read(self) -> Imatrix:
        entries: dict[str, ImatrixEntry] = {}
        for i in range(self.number("the number of entries")):
            name = self.text(f"the name of entry {i}")
            calls = self.number(f"the count of {name}", 0)
            raw = self.take(4 * self.number(f"the size of {name}"), f"the values of {name}")
            sums = np.frombuffer(raw, "<f4").astype(np.float32)
            if name in entries:
                raise FormatError(f"{self.path}: {name} occurs twice; the file is damaged.")
            entries[name] = _checked(name, sums, np.array([max(calls, 1)], np.float32), self.path)
        n_chunks, dataset = 0, ""
        if self.at < len(self.data):
            n_chunks = self.number("the number of calls", 0)
        if self.at < len(self.data):
            dataset = self.text("the dataset", 0)
        return Imatrix(entries, (dataset,) if dataset else (), n_chunks)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix of llama.cpp or gemmule, GGUF or the older binary form.

    Raises:
        ModelNotFoundError: no such file.
        FormatError: not an importance matrix, or a damaged one; names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file; make one with gemmule imatrix.")
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    return replace(_read_gguf(path) if is_gguf else _Legacy(path).read(), origin=str(path))


def write_imatrix(path: str | os.PathLike[str], matrix: Imatrix, *, overwrite: bool = False) -> None:
    """Write the GGUF form, which llama.cpp's tools read too. The file appears whole or not at all."""
    metadata = (
        Kv("general.type", "string", "imatrix"),
        Kv("imatrix.datasets", "array[string]", list(matrix.datasets)),
        Kv("imatrix.chunk_count", "u32", matrix.n_chunks),
        Kv("imatrix.chunk_size", "u32", matrix.chunk_size),
    )
    tensors = []
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        tensors.append(_vectors(name + _SUMS, entry.sum2))
        tensors.append(_vectors(name + _COUNTS, entry.counts.reshape(-1, 1)))
    layout = lay_out(Image(metadata, tuple(tensors)), {spec.name: "F32" for spec in tensors})
    with Output(path, layout.size, overwrite=overwrite) as output:
        output.write(0, bytes(layout.header))
        for placed in layout.tensors:
            raw = np.empty(placed.n_bytes, np.uint8)
            placed.spec.rows.read_into(0, placed.spec.rows.n_rows, raw)
            output.write(placed.offset, raw)
        output.commit()


def _vectors(name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> TensorSpec:
    n_rows, n_cols = values.shape
    rows = ArrayRows(name, n_rows, n_cols, lambda: values.astype(np.float32))
    return TensorSpec(name, (n_cols, n_rows), rows, "F32")


def compute(
    model_path: str | os.PathLike[str],
    text: str,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_threads: int | None = None,
    head: bool = False,
    dataset: str = "",
    progress: Progress | None = None,
    stop: _core.StopToken | None = None,
) -> Imatrix:
    """Run a model over a text and measure the inputs of its matrices.

    The text is cut into whole windows of `n_ctx` tokens, each of which starts with BOS if the model uses one
    and is run on its own; a shorter rest is dropped, as llama.cpp's tool does. The result does not depend on
    the number of threads.

    Args:
        model_path: a GGUF file, best with the original numbers or Q8_0.
        text: what the model will be used for, at least one window long; tens of windows are better.
        n_ctx: tokens of a window.
        n_chunks: windows to read at most; None reads all.
        n_threads: None uses the physical cores.
        head: measure the output matrix as well, which llama.cpp leaves out by default.
        dataset: what the file should say about the origin of the text.
        progress: called with (tokens done, tokens in all, what).
        stop: ends the run from another thread.
    """
    n_ctx = whole("n_ctx", n_ctx, 16, MAX_CONTEXT)
    limit = MAX_CONTEXT if n_chunks is None else whole("n_chunks", n_chunks, 1, MAX_CONTEXT)
    with Model(model_path, n_ctx=n_ctx, n_threads=n_threads) as model:
        tokenizer = model.tokenizer
        ids = np.array(tokenizer.encode(text, special=False), np.int32)
        n_windows = min(len(ids) // n_ctx, limit)
        if n_windows == 0:
            raise ValueError(
                f"the text has {len(ids)} tokens and one window takes {n_ctx}; "
                "use a longer text or a smaller n_ctx."
            )
        engine = model._engine()
        collector = _core.ImportanceCollector(engine, head=head)
        session = engine.session(n_ctx=n_ctx)
        for i in range(n_windows):
            window = ids[i * n_ctx : (i + 1) * n_ctx].copy()
            if tokenizer.adds_bos and tokenizer.bos_id is not None:
                window[0] = tokenizer.bos_id
            session.rewind(0)
            session.append_importance(window, collector, stop=stop)
            if progress is not None:
                progress((i + 1) * n_ctx, n_windows * n_ctx, "measuring")
        entries = {
            name: ImatrixEntry(sum2.astype(np.float32), counts)
            for name, sum2, counts in collector.entries()
            if counts.any()
        }
    return Imatrix(entries, (dataset,) if dataset else (), n_windows, n_ctx)


def imatrix(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Imatrix:
    """Measure the importance matrix of a model on a text file and write it.

    Args:
        model: a GGUF file, best with the original numbers or Q8_0.
        text: a UTF-8 text file.
        dst: the file to write, in llama.cpp's GGUF form.
        n_ctx: tokens of a window.
        n_chunks: windows to read at most; None reads all.
        overwrite: replace a file that exists.
        n_threads: None uses the physical cores.
        progress: called with (tokens done, tokens in all, what).
    """
    source = Path(text)
    check_target(Path(dst), overwrite=overwrite, sources=(Path(model), source))
    try:
        content = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: is not UTF-8 text: {error}.") from None
    made = compute(
        model,
        content,
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        n_threads=n_threads,
        dataset=str(source),
        progress=progress,
    )
    write_imatrix(dst, made, overwrite=overwrite)
    return made
