"""Which types the tensors of each output get and where they go; the size is known before a weight is read."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._convert import card, mixes, stream
from gemmule._convert.gguf_writer import FileLayout, ImageLayout, lay_out, place_images
from gemmule._convert.image import Bundle, Image, TensorSpec
from gemmule._convert.imatrix import Imatrix
from gemmule._convert.layout import PACKED_ALIGNMENT, Arrangement, packed_arrangement, planned_header
from gemmule._convert.sensitivity import choose_types
from gemmule._types import ConvertReport, format_bytes

__all__ = [
    "FLOATS",
    "Plan",
    "Request",
    "census",
    "dominant_file_type",
    "dry_report",
    "importance_of",
    "make_plan",
    "warnings_of",
]

FLOATS = ("F32", "F16", "BF16")
_LOW_BITS = ("Q2_K", "Q3_K")
_MIX_OF_BLOCK = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_LATTICE_SHARE = 0.9  # of the sampled blocks: above it the weights were trained for Q4_0
_SAMPLE_ELEMENTS = 1 << 20
_N_SAMPLES = 3


@dataclass(frozen=True)
class Request:
    """What all files of one call share."""

    overrides: tuple[tuple[str, str], ...] = ()
    imatrix: Imatrix | None = None
    drafter_type: str | None = None
    size: int | None = None  # of the file
    bpw: float | None = None
    is_packed: bool = False


@dataclass
class Plan:
    """One output file before it is written."""

    path: Path
    label: str  # what was asked
    types: dict[str, str]  # of the text tensors
    layout: FileLayout
    packed: Arrangement | None = None  # the places in a packed file
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.layout.size if self.packed is None else self.packed.size

    @property
    def layout_name(self) -> str:
        return "gguf" if self.packed is None else card.PACKED

    def section_start(self, name: str) -> int:
        return self.layout.sections[name].start if self.packed is None else self.packed.sections[name]

    def place(self, image: ImageLayout, index: int) -> tuple[int, bool]:
        """Where a tensor goes in the file, and whether it is packed."""
        tensor = image.tensors[index]
        if self.packed is None:
            return image.start + tensor.offset, False
        if image is self.layout.text:
            return self.packed.tensors[index], tensor.spec.name in self.packed.packed
        name = next(name for name, section in self.layout.sections.items() if section is image)
        return self.packed.sections[name] + tensor.offset, False

    def arrange_packed(self) -> Arrangement:
        """The packed form of the file as its header is now."""
        return packed_arrangement(planned_header(self.path, self.layout))

    @property
    def bits_per_weight(self) -> float:
        tensors = self.layout.text.tensors
        n = sum(tensor.spec.n_elements for tensor in tensors)
        return 8 * sum(tensor.n_bytes for tensor in tensors) / n if n else 0.0


def make_plan(
    bundle: Bundle,
    path: Path,
    name: str,
    label: str,
    request: Request,
    encoder: _core.Encoder,
    progress: stream.Progress | None = None,
    stop: _core.StopToken | None = None,
) -> Plan:
    """Chooses the types and places everything. `name` is the mix, `label` what the file says it is."""
    has_importance = request.imatrix is not None
    sections = _section_layouts(bundle, request.drafter_type or (name if name.upper() in FLOATS else "Q8_0"))
    if request.size is None and request.bpw is None:
        types = mixes.assign_types(
            bundle.text, name, overrides=request.overrides, has_importance=has_importance
        )
        number = mixes.file_type(name)
    else:
        types = choose_types(
            bundle.text,
            encoder,
            target_bytes=request.size,
            other_bytes=_other_bytes(bundle, sections, label, request),
            target_bpw=request.bpw,
            overrides=request.overrides,
            importance=_importances(bundle.text, request.imatrix),
            progress=progress,
            stop=stop,
        )
        number = dominant_file_type(bundle.text, types)
    layout = _file_layout(bundle, types, sections, _origin(bundle, label, number, request))
    plan = Plan(path, label, types, layout, warnings=_type_warnings(bundle, label, types, request))
    if request.is_packed:
        card.seal(layout.text, [0] * len(types))  # for now: only a sealed header is looked at
        plan.packed = plan.arrange_packed()
    return plan


def importance_of(spec: TensorSpec, imatrix: Imatrix | None) -> NDArray[np.float32] | None:
    """The importance of a tensor's columns, [n_matrices, n_cols]."""
    if imatrix is None or len(spec.shape) < 2:
        return None
    return imatrix.importance(spec.name, spec.shape[0], math.prod(spec.shape[2:]))


def census(layout: ImageLayout) -> dict[str, int]:
    """How many tensors have each type, the most bytes first."""
    counts, sizes = Counter[str](), Counter[str]()
    for tensor in layout.tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.n_bytes
    return {kind: counts[kind] for kind, _ in sizes.most_common()}


def dominant_file_type(image: Image, types: Mapping[str, str]) -> int:
    """The number in `general.file_type` that says best what most bytes are."""
    sizes = Counter[str]()
    for spec in image.tensors:
        if types[spec.name] in stream.BLOCK_TYPES:
            sizes[types[spec.name]] += mixes.tensor_bytes(spec, types[spec.name])
    kind = sizes.most_common(1)[0][0] if sizes else "F32"
    return mixes.file_type(_MIX_OF_BLOCK.get(kind, kind))


def dry_report(bundle: Bundle, plan: Plan, encoder: _core.Encoder, n_read: int) -> ConvertReport:
    """What would be written; the time is extrapolated from samples that are encoded for the purpose."""
    layout = plan.layout
    sizes = Counter[str]()
    for tensor in layout.text.tensors:
        sizes[tensor.type] += tensor.n_bytes
    lines = [
        f"{kind:10} {n:5} tensors {format_bytes(sizes[kind]):>10}" for kind, n in census(layout.text).items()
    ]
    lines += [
        f"{name:10} {len(section.tensors):5} tensors {format_bytes(section.size):>10}"
        for name, section in layout.sections.items()
    ]
    placed = [(tensor.spec, (tensor.type,)) for image in layout.images for tensor in image.tensors]
    memory = stream.buffer_bytes(placed)
    lines.append(
        f"reads {format_bytes(n_read)}, writes {format_bytes(plan.size)}, buffers {format_bytes(memory)}"
    )
    return ConvertReport(
        path=str(plan.path),
        type=plan.label,
        size=plan.size,
        tensor_types=census(layout.text),
        bits_per_weight=plan.bits_per_weight,
        sections={name: section.size for name, section in layout.sections.items()},
        seconds=_estimated_seconds(layout, encoder),
        bytes_read=n_read,
        peak_memory=memory,
        layout=plan.layout_name,
        dry_run=True,
        warnings=tuple(plan.warnings),
        plan=tuple(lines),
    )


def warnings_of(bundle: Bundle, encoder: _core.Encoder, plans: list[Plan]) -> list[str]:
    """Warnings about the source; those about the types of one file go to its plan."""
    warnings = list(bundle.warnings)
    if bundle.source_dtype not in FLOATS:
        warnings.append(
            f"the source is quantized already (mostly {bundle.source_dtype}); what it lost does not come back"
        )
        return warnings
    others = [plan for plan in plans if plan.label.upper() not in (*FLOATS, "Q4_0")]
    if others and _lies_on_q4_0_lattice(bundle.text, encoder):
        for plan in others:
            plan.warnings.append("these weights were trained for Q4_0; type Q4_0 keeps them exactly")
    return warnings


def _section_layouts(bundle: Bundle, drafter_type: str) -> dict[str, ImageLayout]:
    layouts = {}
    for name, image in bundle.sections.items():
        if name == "drafter":
            types = mixes.assign_types(image, drafter_type)
        else:
            types = {spec.name: spec.keep or spec.rows.dtype for spec in image.tensors}
        extra = card.type_keys(dominant_file_type(image, types)) + card.checksum_keys(len(image.tensors))
        layouts[name] = lay_out(image, types, extra)
    return layouts


def _origin(bundle: Bundle, label: str, number: int, request: Request) -> card.Origin:
    return card.Origin(
        type=label,
        file_type=number,
        source_name=Path(bundle.source).resolve().name,
        source_dtype=bundle.source_dtype,
        imatrix=request.imatrix.name if request.imatrix is not None else "",
    )


def _file_layout(
    bundle: Bundle, types: Mapping[str, str], sections: dict[str, ImageLayout], origin: card.Origin
) -> FileLayout:
    n = len(bundle.text.tensors)
    extra = [*card.origin_keys(origin, n), *card.section_keys(list(sections)), *card.checksum_keys(n)]
    layout = place_images(lay_out(bundle.text, types, extra), sections)
    starts = {name: section.start for name, section in sections.items()}
    card.patch_sections(layout.text, starts, {name: section.size for name, section in sections.items()})
    return layout


def _other_bytes(bundle: Bundle, sections: dict[str, ImageLayout], label: str, request: Request) -> int:
    """What a file takes beside its text tensors: header and sections."""
    types = mixes.assign_types(bundle.text, "Q8_0")
    layout = _file_layout(bundle, types, sections, _origin(bundle, label, 0, request))
    behind = layout.size - layout.text.size + 4096 * len(sections)  # the padding before them may grow
    if request.is_packed:  # more keys and padding; every tensor begins a page
        behind += PACKED_ALIGNMENT * (len(layout.text.tensors) + 2) + 16 * len(layout.text.tensors)
    return layout.text.data_offset + behind


def _importances(image: Image, imatrix: Imatrix | None) -> dict[str, NDArray[np.float32]] | None:
    if imatrix is None:
        return None
    known = ((spec.name, importance_of(spec, imatrix)) for spec in image.tensors)
    return {name: values for name, values in known if values is not None}


def _type_warnings(bundle: Bundle, label: str, types: Mapping[str, str], request: Request) -> list[str]:
    quantized = [spec for spec in bundle.text.tensors if types[spec.name] not in (*FLOATS, spec.keep)]
    warnings = []
    if request.imatrix is None:
        if any(types[spec.name] in _LOW_BITS for spec in quantized):
            warnings.append(f"{label} loses much without an importance matrix; make one: gemmule imatrix")
        return warnings
    missing = [spec.name for spec in quantized if importance_of(spec, request.imatrix) is None]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(f"the importance matrix says nothing about {len(missing)} tensors ({some})")
    return warnings


def _lies_on_q4_0_lattice(image: Image, encoder: _core.Encoder) -> bool:
    """Whether sampled blocks are what a model trained for Q4_0 has."""
    floats = (spec for spec in image.tensors if spec.rows.dtype in FLOATS)
    specs = [spec for spec in floats if mixes.is_quantizable(spec) and spec.shape[0] % 32 == 0]
    chosen = specs[:: max(1, len(specs) // _N_SAMPLES)][:_N_SAMPLES]
    shares = [
        encoder.lattice_q4_0(sample, spec.rows.dtype, spec.rows.n_cols) for spec, sample in _samples(chosen)
    ]
    return bool(shares) and min(shares) >= _LATTICE_SHARE


def _samples(specs: list[TensorSpec]) -> Iterator[tuple[TensorSpec, NDArray[np.uint8]]]:
    """The first rows of tensors."""
    for spec in specs:
        n = min(spec.rows.n_rows, max(1, _SAMPLE_ELEMENTS // spec.rows.n_cols))
        sample = np.empty(n * stream.row_bytes(spec, spec.rows.dtype), np.uint8)
        spec.rows.read_into(0, n, sample)
        yield spec, sample


def _estimated_seconds(layout: FileLayout, encoder: _core.Encoder) -> float:
    """Elements of each type divided by the measured speed of a sample."""
    largest: dict[str, TensorSpec] = {}
    elements = Counter[str]()
    for image in layout.images:
        for tensor in image.tensors:
            if tensor.type not in stream.BLOCK_TYPES:
                continue
            elements[tensor.type] += tensor.spec.n_elements
            if tensor.type not in largest or tensor.spec.n_elements > largest[tensor.type].n_elements:
                largest[tensor.type] = tensor.spec
    seconds = 0.0
    for kind, spec in largest.items():
        for _, sample in _samples([spec]):
            n = sample.size // stream.row_bytes(spec, spec.rows.dtype)
            out = np.empty(n * stream.row_bytes(spec, kind), np.uint8)
            started = time.perf_counter()
            encoder.encode(sample, spec.rows.dtype, spec.rows.n_cols, kind, out)
            seconds += (time.perf_counter() - started) * elements[kind] / (n * spec.rows.n_cols)
    return seconds
