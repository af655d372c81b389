"""bundle(), split() and verify(): files that exist already are joined, taken apart, checked.

Tensor bytes are only copied. A section is a complete GGUF file, byte for byte, so `split` returns what
`bundle` was given; the text header is written anew, because it says where the sections are. What comes out is
always in GGUF's layout, so a packed text model is unpacked on the way.
"""

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gemmule import _core
from gemmule._convert import card
from gemmule._convert.gguf_source import (
    Header,
    image_of,
    open_input,
    read_exactly,
    read_header,
    sections_of,
)
from gemmule._convert.gguf_writer import PANEL_ROWS, ImageLayout, PlacedTensor, lay_out, section_starts
from gemmule._convert.image import Kv
from gemmule._convert.layout import in_gguf_layout
from gemmule._convert.matching import ROLES, check_part
from gemmule._convert.output import Output
from gemmule._convert.stream import Meter, Progress, peak_memory
from gemmule._convert.verify import verify
from gemmule._errors import FormatError, UnsupportedError
from gemmule._types import ConvertReport

__all__ = ["bundle", "report_of", "split", "verify"]

PathLike = str | os.PathLike[str]

_PIECE_BYTES = 8 << 20
_FILE_NAMES = {"mmproj": "mmproj-{}.gguf", "drafter": "assistant-{}.gguf"}


@dataclass(frozen=True)
class _Part:
    """A complete GGUF image in some file. `sha256` is what it shall have, if that is known."""

    path: Path
    offset: int
    size: int
    sha256: str = ""


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def bundle(
    text: PathLike,
    *,
    mmproj: PathLike | None = None,
    drafter: PathLike | None = None,
    dst: PathLike,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Joins a text model, its media file and its drafter into one file that is still a valid text model.

    Args:
        text: the text model, a GGUF file. Sections it has already are kept unless replaced.
        mmproj: the GGUF file of the image and audio embedders.
        drafter: the GGUF file of the assistant.
        dst: the file to write.
        overwrite: replace an existing file.
        progress: called with (done bytes, total bytes, what).
    """
    started = time.monotonic()
    source = Path(text)
    stored = read_header(source)
    header = in_gguf_layout(stored)
    if header.get("general.architecture") in ROLES.values():
        raise FormatError(f"{source} is a part, not a text model; give the text model first")
    parts = {s.name: _Part(source, s.offset, s.size, s.sha256) for s in sections_of(stored)}
    for name, path in (("mmproj", mmproj), ("drafter", drafter)):
        if path is not None:
            parts[name] = _part_of(header, name, Path(path))
    if not parts:
        raise ValueError("there is nothing to join; give mmproj, drafter or both")
    layout = _text_layout(header, list(parts))
    sizes = {name: part.size for name, part in parts.items()}
    starts, size = section_starts(layout.size, sizes)
    card.patch_sections(layout, starts, sizes)
    meter = Meter(progress, layout.size + sum(sizes.values()))
    inputs = [source, *(part.path for part in parts.values())]
    with Output(dst, size, overwrite=overwrite, sources=inputs) as output:
        for name, part in parts.items():
            sha256 = _copy_section(part, name, output, starts[name], meter)
            layout.patch(card.section_key(name, "sha256"), sha256)
        _copy_text(header, layout, output, meter)
        output.commit()
    return report_of(Path(dst), header, size, sizes, time.monotonic() - started)


def split(
    src: PathLike,
    folder: PathLike | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the parts of a file as the files other programs expect; returns their paths, text first.

    The text model becomes NAME.gguf, or NAME-text.gguf in the folder of `src` itself (the default), the
    others mmproj-NAME.gguf and assistant-NAME.gguf. A `folder` that does not exist is made.
    """
    source = Path(src)
    stored = read_header(source)
    header, sections = in_gguf_layout(stored), sections_of(stored)
    if not sections:
        raise UnsupportedError(f"{source} is a text model and nothing else; there is nothing to split")
    target = source.parent if folder is None else Path(folder)
    layout = _text_layout(header, [])
    text_name = (
        f"{source.stem}-text.gguf" if _is_same_folder(target, source.parent) else f"{source.stem}.gguf"
    )
    names = [text_name, *(_FILE_NAMES[section.name].format(source.stem) for section in sections)]
    sizes = [layout.size, *(section.size for section in sections)]
    meter = Meter(progress, sum(sizes))
    target.mkdir(exist_ok=True)
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(Output(target / name, size, overwrite=overwrite, sources=[source]))
            for name, size in zip(names, sizes, strict=True)
        ]
        _copy_text(header, layout, outputs[0], meter)
        for section, output in zip(sections, outputs[1:], strict=True):
            part = _Part(source, section.offset, section.size, section.sha256)
            _copy_section(part, section.name, output, 0, meter)
        for output in outputs:
            output.commit()
    return [output.path for output in outputs]


def _part_of(text: Header, name: str, path: Path) -> _Part:
    """A given file as a part, if it fits the text model."""
    header = read_header(path)
    try:
        check_part(image_of(text, drop=_nothing), name, image_of(header, drop=_nothing))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    return _Part(path, 0, header.size)


def _nothing(_: str) -> bool:
    return False


def _is_same_folder(a: Path, b: Path) -> bool:
    return a.exists() and a.samefile(b)


def _text_layout(header: Header, section_names: list[str]) -> ImageLayout:
    """The text image of a file with other sections behind it."""
    image = image_of(header, drop=card.is_derived)
    known = [] if card.LAYOUT in header.entries else card.identity_keys()
    extra: list[Kv] = [*known, *card.section_keys(section_names), *card.checksum_keys(len(image.tensors))]
    return lay_out(image, {spec.name: spec.rows.dtype for spec in image.tensors}, extra)


def _copy_text(header: Header, layout: ImageLayout, output: Output, meter: Meter) -> None:
    """Tensors to their new places, then the header with their checksums. A damaged tensor ends it."""
    expected = header.get(card.CHECKSUM)
    checksums = []
    with open_input(header.path) as file:
        for index, (placed, stored) in enumerate(zip(layout.tensors, header.tensors, strict=True)):
            name, _, _, offset, n_bytes = stored
            hasher = _core.Xxh64()
            if name in header.packed:
                _copy_unpacked(placed, output, hasher, meter)
            else:
                place = (file, header.start + offset, n_bytes, header.what(name))
                _copy(place, output, placed.offset, hasher, meter)
            checksums.append(int(hasher.digest()))
            if (
                expected is not None
                and len(expected) == len(header.tensors)
                and expected[index] != checksums[-1]
            ):
                raise FormatError(
                    f"{header.what(name)} is damaged (its checksum differs); get the file again"
                )
    card.seal(layout, checksums)
    output.write(0, layout.header)
    meter.add(_header_and_padding(layout), "header")


def _header_and_padding(layout: ImageLayout) -> int:
    """Bytes of an image that are not tensor data."""
    return layout.size - sum(tensor.n_bytes for tensor in layout.tensors)


def _copy_section(part: _Part, name: str, output: Output, at: int, meter: Meter) -> str:
    """Returns the SHA-256."""
    hasher = hashlib.sha256()
    what = f"{part.path}: section {name!r}"
    with open_input(part.path) as file:
        _copy((file, part.offset, part.size, what), output, at, hasher, meter)
    if part.sha256 and part.sha256 != hasher.hexdigest():
        raise FormatError(f"{what} is damaged (its SHA-256 differs); get the file again")
    return hasher.hexdigest()


def _copy_unpacked(placed: PlacedTensor, output: Output, hasher: _Hash, meter: Meter) -> None:
    """A packed tensor as rows; what passes goes into the hash."""
    rows = placed.spec.rows
    row = placed.n_bytes // rows.n_rows
    step = max(1, _PIECE_BYTES // (row * PANEL_ROWS)) * PANEL_ROWS
    for first in range(0, rows.n_rows, step):
        piece = np.empty(min(step, rows.n_rows - first) * row, np.uint8)
        rows.read_into(first, len(piece) // row, piece)
        hasher.update(piece.data)
        output.write(placed.offset + first * row, piece)
        meter.add(len(piece), rows.origin)


def _copy(place: tuple[int, int, int, str], output: Output, at: int, hasher: _Hash, meter: Meter) -> None:
    """A range of a file; what passes goes into the hash."""
    fd, offset, size, what = place
    buffer = memoryview(bytearray(min(size, _PIECE_BYTES)))
    for done in range(0, size, _PIECE_BYTES):
        piece = buffer[: min(_PIECE_BYTES, size - done)]
        read_exactly(fd, offset + done, piece, what)
        os.posix_fadvise(fd, offset + done, len(piece), os.POSIX_FADV_DONTNEED)
        hasher.update(piece)
        output.write(at + done, piece)
        meter.add(len(piece), what)


def report_of(
    path: Path, header: Header, size: int, sections: Mapping[str, int], seconds: float
) -> ConvertReport:
    """What was written to `path`: the tensors of `header` as they are, and sections of these sizes."""
    counts, sizes = Counter[str](), Counter[str]()
    for _, kind, _, _, n_bytes in header.tensors:
        counts[kind] += 1
        sizes[kind] += n_bytes
    n_weights = sum(math.prod(shape) for _, _, shape, _, _ in header.tensors)
    return ConvertReport(
        path=str(path),
        type=str(header.get("gemmule.convert.type", "as stored")),
        size=size,
        tensor_types={kind: counts[kind] for kind, _ in sizes.most_common()},
        bits_per_weight=8 * sizes.total() / n_weights if n_weights else 0.0,
        sections=dict(sections),
        rms_error=float(header.get(card.RMS_ERROR, 0.0)),
        weighted_rms_error=float(header.get(card.WEIGHTED_RMS_ERROR, 0.0)),
        imatrix=str(header.get("gemmule.quality.imatrix", "")),
        seconds=seconds,
        bytes_read=sizes.total() + sum(sections.values()),
        peak_memory=peak_memory(),
    )
