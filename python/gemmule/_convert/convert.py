"""convert() and quantize_file(): from a checkpoint or a GGUF file to one GGUF file per type, in one read.

    source -> Bundle -> a type for each tensor -> layout of each file (exact size) -> one pass -> commit

Everything that can be refused is refused before the first weight is read.
"""

import dataclasses
import errno
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

from gemmule import _core
from gemmule._checks import MAX_THREADS, byte_size, real, whole
from gemmule._convert import card, mixes, stream
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.gguf_source import load_gguf
from gemmule._convert.gguf_writer import ImageLayout
from gemmule._convert.image import Bundle, Image, TensorSpec
from gemmule._convert.imatrix import Imatrix, read_imatrix
from gemmule._convert.matching import check_parts
from gemmule._convert.output import Output, check_target
from gemmule._convert.planning import (
    FLOATS,
    Plan,
    Request,
    census,
    dry_report,
    importance_of,
    make_plan,
    warnings_of,
)
from gemmule._errors import FormatError, ModelNotFoundError, UnsupportedError
from gemmule._types import ConvertReport, format_bytes

__all__ = ["convert", "quantize_file", "write_files"]

_COPY_BYTES = 8 << 20

PathLike = str | os.PathLike[str]
Overrides = Mapping[str, str] | Sequence[tuple[str, str]]
DrafterChoice = PathLike | None | Literal["auto"]
_Several = list[str] | tuple[str, ...]
Results = list[dict[str, stream.TensorResult]]


class _QuantizeOptions(TypedDict, total=False):
    imatrix: PathLike | Imatrix | None
    tensor_types: Overrides | None
    size: int | str | None
    bpw: float | None
    drafter_type: str | None
    layout: str
    n_threads: int | None
    overwrite: bool
    dry_run: bool
    progress: stream.Progress | None
    stop: _core.StopToken | None


class _ConvertOptions(_QuantizeOptions, total=False):
    drafter: DrafterChoice
    vision: bool
    audio: bool


@overload
def convert(
    src: PathLike, dst: PathLike | None = None, *, type: str = "Q4_K_M", **options: Unpack[_ConvertOptions]
) -> ConvertReport: ...
@overload
def convert(
    src: PathLike, dst: PathLike | None = None, *, type: _Several, **options: Unpack[_ConvertOptions]
) -> list[ConvertReport]: ...
def convert(
    src: PathLike,
    dst: PathLike | None = None,
    *,
    type: str | _Several = "Q4_K_M",
    drafter: DrafterChoice = "auto",
    imatrix: PathLike | Imatrix | None = None,
    tensor_types: Overrides | None = None,
    layout: str = "gguf",
    vision: bool = True,
    audio: bool = True,
    size: int | str | None = None,
    bpw: float | None = None,
    drafter_type: str | None = None,
    n_threads: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: stream.Progress | None = None,
    stop: _core.StopToken | None = None,
) -> ConvertReport | list[ConvertReport]:
    """Writes a checkpoint as one GGUF file: text, media embedders, drafter, tokenizer, chat template.

    Args:
        src: a Hugging Face folder, or a GGUF file.
        dst: the file to write, or an existing folder for `<name>-<TYPE>.gguf` (with several types always a
            folder; packed: `.packed.gguf`); default the current folder.
        type: a mix such as "Q4_K_M", or several for several files from one read.
        drafter: the assistant's folder (or GGUF file); "auto" finds it beside `src`, None leaves it out.
        imatrix: an importance matrix, or its file.
        tensor_types: {regular expression: type} for tensors that do not follow the mix; the first match
            counts.
        layout: "gguf", which other programs open too, or "packed": the same file as `pack` makes of it.
        vision: include the image embedder.
        audio: include the audio embedder.
        size: choose the types so that the file has this size: a number of bytes or "7.5GB". Replaces `type`.
        bpw: the same as bits per weight of the text model.
        drafter_type: type of the drafter; default Q8_0, or the float type of the text model.
        n_threads: default all cores.
        overwrite: replace an existing file.
        dry_run: only say what would be written.
        progress: called with (done bytes, total bytes, what).
        stop: ends the conversion from another thread.

    Returns:
        A report, or with a list of types a list of reports.
    """
    started = time.monotonic()
    names = _names(type)
    if layout not in ("gguf", "packed"):
        raise ValueError(f"layout must be 'gguf' or 'packed', not {layout!r}")
    request = _request(imatrix, tensor_types, drafter_type, size, bpw)
    request = dataclasses.replace(request, is_packed=layout == "packed")
    labels = _labels(request, names)
    source = Path(src)
    paths = _output_paths(source, dst, labels, ".packed" if request.is_packed else "")
    sources = _source_files(source, drafter)
    if isinstance(imatrix, str | os.PathLike):
        sources.append(Path(imatrix))
    if not dry_run:
        for path in paths:
            check_target(path, overwrite=overwrite, sources=sources)
    encoder = _core.Encoder(0 if n_threads is None else whole("n_threads", n_threads, 1, MAX_THREADS))
    bundle = _load(source, drafter, vision=vision, audio=audio)
    plans = [
        make_plan(bundle, path, name, label, request, encoder, progress, stop)
        for path, name, label in zip(paths, names, labels, strict=True)
    ]
    common = tuple(warnings_of(bundle, encoder, plans))
    n_read = sum(stream.source_bytes(spec) for spec in _specs(bundle))
    if dry_run:
        reports = [dry_report(bundle, plan, encoder, n_read) for plan in plans]
    else:
        results = write_files(
            bundle,
            plans,
            request,
            encoder,
            overwrite=overwrite,
            sources=sources,
            progress=progress,
            stop=stop,
        )
        seconds = time.monotonic() - started
        reports = [
            _report(plan, result, request, seconds, n_read)
            for plan, result in zip(plans, results, strict=True)
        ]
    reports = [dataclasses.replace(report, warnings=(*common, *report.warnings)) for report in reports]
    return reports[0] if isinstance(type, str) else reports


@overload
def quantize_file(
    src: PathLike, dst: PathLike | None, type: str, **options: Unpack[_QuantizeOptions]
) -> ConvertReport: ...
@overload
def quantize_file(
    src: PathLike, dst: PathLike | None, type: _Several, **options: Unpack[_QuantizeOptions]
) -> list[ConvertReport]: ...
def quantize_file(
    src: PathLike, dst: PathLike | None, type: str | _Several, **options: Unpack[_QuantizeOptions]
) -> ConvertReport | list[ConvertReport]:
    """Writes a GGUF file again with other tensor types; its media embedders are copied as they are.

    A drafter in floats becomes `drafter_type`, a quantized one stays as it is. Options as in `convert`:
    imatrix, tensor_types, layout, size, bpw, drafter_type, n_threads, overwrite, dry_run, progress, stop.
    """
    if Path(src).is_dir():
        raise IsADirectoryError(f"{os.fspath(src)} is a folder; use convert for it")
    return convert(src, dst, type=type, **options)


def _names(types: str | _Several) -> list[str]:
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"type must be the name of a mix such as 'Q4_K_M' or a list of such, not {types!r}")
    return list(names)


def _overrides(tensor_types: Overrides | None) -> tuple[tuple[str, str], ...]:
    pairs = tuple(tensor_types.items() if isinstance(tensor_types, Mapping) else tensor_types or ())
    if any(list(map(type, pair)) != [str, str] for pair in pairs):
        raise TypeError(f"tensor_types must be like {{'ffn_down': 'Q6_K'}}, not {tensor_types!r}")
    return pairs


def _request(
    imatrix: PathLike | Imatrix | None,
    tensor_types: Overrides | None,
    drafter_type: str | None,
    size: int | str | None,
    bpw: float | None,
) -> Request:
    if size is not None and bpw is not None:
        raise ValueError("size and bpw exclude each other; give one")
    return Request(
        overrides=_overrides(tensor_types),
        imatrix=imatrix if imatrix is None or isinstance(imatrix, Imatrix) else read_imatrix(Path(imatrix)),
        drafter_type=drafter_type,
        size=None if size is None else byte_size("size", size),
        bpw=None if bpw is None else real("bpw", bpw),
    )


def _labels(request: Request, names: Sequence[str]) -> list[str]:
    """What each file is called: the mix, or the size that was asked for."""
    if not names or len({name.upper() for name in names}) != len(names):
        raise ValueError(f"type must be one mix or several different ones, not {list(names)!r}")
    for name in names:
        mixes.file_type(name)  # refuses an unknown one
    if request.size is None and request.bpw is None:
        return [name.upper() for name in names]
    if len(names) > 1:
        raise ValueError("size and bpw make one file; leave the types out")
    if request.size is not None:
        return [format_bytes(request.size).replace(" ", "")]
    return [f"{request.bpw:g}bpw"]


def _output_paths(source: Path, dst: PathLike | None, labels: Sequence[str], suffix: str) -> list[Path]:
    """The files to write: `dst` itself, or files named after the source in the folder `dst` (None: here)."""
    if dst is not None and not Path(dst).is_dir():
        wanted = os.fspath(dst)
        if len(labels) > 1 or wanted.endswith(os.sep):
            why = "several types need a folder to write to; " if len(labels) > 1 else ""
            raise NotADirectoryError(errno.ENOTDIR, f"{why}this is no folder; create it", wanted)
        if wanted.upper() in mixes.TYPES:
            raise ValueError(f"{wanted!r} is a type and no file to write; choose the type with -q or type=")
        return [Path(dst)]
    resolved = source.resolve()
    name = resolved.name if resolved.is_dir() else _without_type(resolved.stem.removesuffix(".packed"))
    folder = Path(dst) if dst is not None else Path()
    return [folder / f"{name}-{label}{suffix}.gguf" for label in labels]


def _without_type(stem: str) -> str:
    """model-BF16 -> model."""
    head, _, tail = stem.rpartition("-")
    return head if head and tail.upper() in mixes.TYPES else stem


def _source_files(source: Path, drafter: DrafterChoice) -> list[Path]:
    """Every file that might be read, so that none of them is taken for the output."""
    roots = [source]
    if drafter == "auto":
        roots += source.resolve().parent.glob("*-assistant")
    elif drafter is not None:
        roots.append(Path(drafter))
    return [file for root in roots for file in (root.iterdir() if root.is_dir() else [root])]


def _load(source: Path, drafter: DrafterChoice, *, vision: bool, audio: bool) -> Bundle:
    if not source.exists():
        raise ModelNotFoundError(f"{source} does not exist; give a checkpoint folder or a GGUF file")
    if source.is_file() and source.suffix in (".safetensors", ".json"):
        raise FormatError(f"{source} is one file of a checkpoint; give its folder {source.parent}")
    separate = drafter is not None and drafter != "auto" and not Path(drafter).is_dir()
    if source.is_dir():
        chosen = None if separate else drafter if drafter is None or drafter == "auto" else Path(drafter)
        bundle = load_checkpoint(source, drafter=chosen, vision=vision, audio=audio)
    else:
        bundle = _without_parts(load_gguf(source), drafter, vision=vision, audio=audio)
    if separate:
        bundle = dataclasses.replace(
            bundle, sections={**bundle.sections, "drafter": _drafter_image(Path(str(drafter)))}
        )
    check_parts(bundle.text, bundle.sections)
    return bundle


def _without_parts(bundle: Bundle, drafter: DrafterChoice, *, vision: bool, audio: bool) -> Bundle:
    """A loaded file without the sections that are not wanted."""
    sections = dict(bundle.sections)
    if drafter != "auto":
        sections.pop("drafter", None)
        if drafter is not None and Path(drafter).is_dir():
            raise UnsupportedError(
                f"{os.fspath(drafter)} is a folder; beside a GGUF source the drafter must be GGUF"
            )
    if vision != audio and "mmproj" in sections:
        raise UnsupportedError("a GGUF file has image and sound in one part; keep both or leave both out")
    if not vision and not audio:
        sections.pop("mmproj", None)
    return dataclasses.replace(bundle, sections=sections)


def _drafter_image(path: Path) -> Image:
    if not path.exists():
        raise ModelNotFoundError(f"the drafter {path} does not exist; give its folder or GGUF file")
    return load_gguf(path).text


def _images(bundle: Bundle) -> list[Image]:
    return [bundle.text, *bundle.sections.values()]


def _specs(bundle: Bundle) -> Iterator[TensorSpec]:
    return (spec for image in _images(bundle) for spec in image.tensors)


def write_files(
    bundle: Bundle,
    plans: Sequence[Plan],
    request: Request,
    encoder: _core.Encoder,
    *,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
    progress: stream.Progress | None = None,
    stop: _core.StopToken | None = None,
) -> list[Results]:
    """One pass; the files appear together at its end. Returns, per file, the result of each text tensor."""
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(Output(plan.path, plan.size, overwrite=overwrite, sources=sources))
            for plan in plans
        ]
        results = stream.run(_jobs(bundle, plans, outputs, request), encoder, progress=progress, stop=stop)
        per_plan = [_seal(plan, output, results) for plan, output in zip(plans, outputs, strict=True)]
        for output in outputs:
            output.commit()
    return per_plan


def _jobs(
    bundle: Bundle, plans: Sequence[Plan], outputs: Sequence[Output], request: Request
) -> list[stream.Job]:
    """The tensors in file order, each with its place in every output."""
    jobs = []
    for at, image in enumerate(_images(bundle)):
        for index, spec in enumerate(image.tensors):
            targets = tuple(
                _target(plan, plan.layout.images[at], index, output)
                for plan, output in zip(plans, outputs, strict=True)
            )
            importance = importance_of(spec, request.imatrix) if at == 0 else None
            jobs.append(stream.Job(spec, targets, importance))
    return jobs


def _target(plan: Plan, image: ImageLayout, index: int, output: Output) -> stream.Target:
    offset, is_packed = plan.place(image, index)
    return stream.Target(output, offset, image.tensors[index].type, is_packed)


def _seal(plan: Plan, output: Output, results: Results) -> Results:
    """Completes and writes the headers: sections first, because the text header holds their SHA-256."""
    layout = plan.layout
    n_text = len(layout.text.tensors)
    at = n_text
    for name, section in layout.sections.items():
        end = at + len(section.tensors)
        card.seal(section, _checksums(section, results[at:end]))
        start = plan.section_start(name)
        output.write(start, section.header)
        layout.text.patch(card.section_key(name, "sha256"), _sha256(output, start, section.size))
        at = end
    sums = _quality(layout.text, results[:n_text])
    layout.text.patch(card.RMS_ERROR, sums.rms)
    layout.text.patch(card.WEIGHTED_RMS_ERROR, sums.weighted_rms)
    errors = [
        result[t.type].sums.rms for t, result in zip(layout.text.tensors, results[:n_text], strict=True)
    ]
    layout.text.patch(card.TENSOR_RMS_ERROR, errors)
    card.seal(layout.text, _checksums(layout.text, results[:n_text]))
    output.write(0, layout.text.header if plan.packed is None else plan.arrange_packed().header)
    return results[:n_text]


def _quality(layout: ImageLayout, results: Results) -> stream.Sums:
    """The sums over the tensors that are stored in blocks of fewer bits."""
    total = stream.Sums()
    for tensor, result in zip(layout.tensors, results, strict=True):
        if tensor.type not in FLOATS:
            total.add(result[tensor.type].sums)
    return total


def _checksums(layout: ImageLayout, results: Results) -> list[int]:
    return [result[tensor.type].checksum for tensor, result in zip(layout.tensors, results, strict=True)]


def _sha256(output: Output, start: int, size: int) -> str:
    """Of a section as it now stands in the file."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(_COPY_BYTES, size)))
    for at in range(0, size, _COPY_BYTES):
        piece = buffer[: min(_COPY_BYTES, size - at)]
        output.read_into(start + at, piece)
        hasher.update(piece)
    return hasher.hexdigest()


def _report(plan: Plan, results: Results, request: Request, seconds: float, n_read: int) -> ConvertReport:
    sums = _quality(plan.layout.text, results)
    return ConvertReport(
        path=str(plan.path),
        type=plan.label,
        size=plan.size,
        tensor_types=census(plan.layout.text),
        bits_per_weight=plan.bits_per_weight,
        sections={name: section.size for name, section in plan.layout.sections.items()},
        rms_error=sums.rms,
        weighted_rms_error=sums.weighted_rms,
        imatrix=request.imatrix.name if request.imatrix is not None else "",
        seconds=seconds,
        bytes_read=n_read,
        peak_memory=stream.peak_memory(),
        layout=plan.layout_name,
        warnings=tuple(plan.warnings),
    )
