"""What a file is and what it needs, from its header alone: no weight is read, so this takes milliseconds."""

import math
import os
from collections import Counter
from typing import Any

from gemmule import _core
from gemmule._checks import byte_size, path_text
from gemmule._errors import FormatError
from gemmule._memory import machine_memory
from gemmule._plan import ContextSize, checked_context, choose_plan, plan_for
from gemmule._types import Device, MemoryPlan, ModelInfo

__all__ = [
    "Header",
    "build_facts",
    "devices",
    "estimate",
    "info_of",
    "inspect",
    "modalities_of",
    "open_header",
    "section_file",
    "weights_read",
]

Header = _core.GgufFile

# general.file_type as llama.cpp numbers it.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12:
    "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


def open_header(path: str | os.PathLike[str]) -> _core.GgufFile:
    """The validated header of a file."""
    return _core.GgufFile(path_text(path))


def build_facts() -> tuple[dict[str, Any], dict[str, Any]]:
    """How the core was built, and what this processor offers it."""
    return _core.build_info(), _core.cpu_info()


def inspect(path: str | os.PathLike[str]) -> ModelInfo:
    """Describes a GGUF file."""
    return info_of(open_header(path))


def estimate(
    path: str | os.PathLike[str],
    *,
    n_ctx: ContextSize = 8192,
    kv_type: str = "f16",
    memory_limit: int | str | None = None,
) -> MemoryPlan:
    """The memory needed to run a file with a context of `n_ctx` tokens. "auto" chooses the context as Model
    does and throws NotEnoughMemoryError where none fits; a number is never refused.
    """
    file, n_ctx = open_header(path), checked_context(n_ctx)
    limit = None if memory_limit is None else byte_size("memory_limit", memory_limit)
    mmproj, drafter = section_file(file, "mmproj"), section_file(file, "drafter")
    if isinstance(n_ctx, int):
        return plan_for(
            file, n_ctx=n_ctx, kv_type=kv_type, mmproj=mmproj, drafter=drafter, memory_limit=limit
        )
    return choose_plan(file, n_ctx, kv_type=kv_type, mmproj=mmproj, drafter=drafter, memory_limit=limit)


def devices() -> list[Device]:
    """Everything on this machine that can run a model."""
    cpu = _core.cpu_info()
    return [
        Device(
            name="cpu",
            kind="cpu",
            isa=cpu["best"],
            isas=tuple(level["name"] for level in cpu["levels"] if level["supported"]),
            n_physical=cpu["n_physical"],
            n_logical=cpu["n_logical"],
            memory=machine_memory()[0],
        )
    ]


def section_file(file: _core.GgufFile, name: str) -> _core.GgufFile | None:
    """A section of a bundle, opened as the complete GGUF image it is; None where there is none."""
    offset, size = (f"gemmule.section.{name}.{what}" for what in ("offset", "size"))
    keys = set(file.keys())
    if offset not in keys or size not in keys:
        return None
    start, n_bytes = file.get(offset), file.get(size)
    if not (isinstance(start, int) and isinstance(n_bytes, int) and n_bytes > 0 and start > 0):
        raise FormatError(f"{file.path}: {offset} and {size} must say where the section lies")
    return _core.GgufFile(file.path, start, n_bytes)


def modalities_of(mmproj: _core.GgufFile | None) -> tuple[str, ...]:
    """What a model with these embedders takes in."""
    kinds = ["text"]
    keys = set() if mmproj is None else set(mmproj.keys())
    for name, kind in (("vision", "image"), ("audio", "audio"), ("vision", "video")):
        key = f"clip.has_{name}_encoder"
        if mmproj is not None and key in keys and mmproj.get(key) is True:
            kinds.append(kind)
    return tuple(kinds)


def weights_read(file: _core.GgufFile) -> dict[str, int]:
    """Bytes that one token reads, by type: all but tables of which it takes a row, and experts it does not
    use.
    """
    keys = set(file.keys())
    architecture = file.get("general.architecture") if "general.architecture" in keys else ""

    def number(name: str) -> int:
        key = f"{architecture}.{name}"
        value = file.get(key) if key in keys else 0
        return value if isinstance(value, int) else 0

    n_experts, n_used = number("expert_count"), number("expert_used_count")
    tensors = file.tensors()
    tied = not any(name == "output.weight" for name, *_ in tensors)
    n_bytes: Counter[str] = Counter()
    for name, kind, _, _, size, *_ in tensors:
        if name.startswith("per_layer_token_embd") or (name.startswith("token_embd") and not tied):
            continue
        n_bytes[kind] += size * n_used // n_experts if "_exps." in name and n_experts > 0 else size
    return dict(n_bytes)


def info_of(
    file: _core.GgufFile, mmproj: _core.GgufFile | None = None, *, has_drafter: bool | None = None
) -> ModelInfo:
    """`mmproj` and `has_drafter`: what an open model found; None: what the file holds."""
    keys = set(file.keys())

    def read(key: str, default: Any) -> Any:
        value = file.get(key) if key in keys else default
        return value if isinstance(value, type(default)) else default

    architecture = read("general.architecture", "")
    tensors = file.tensors()
    shapes = {name: shape for name, _, shape, *_ in tensors}
    embedding = shapes.get("token_embd.weight", ())
    sections = sorted(
        {key.split(".")[2] for key in keys if key.startswith("gemmule.section.") and key.count(".") > 2}
    )
    return ModelInfo(
        path=file.path,
        architecture=architecture,
        name=read("general.name", ""),
        n_params=sum(math.prod(shape) for shape in shapes.values()),
        quantization=_quantization(read("general.file_type", -1), tensors),
        file_size=file.file_size,
        n_ctx_train=read(f"{architecture}.context_length", 0),
        n_layers=read(f"{architecture}.block_count", 0),
        d_model=read(f"{architecture}.embedding_length", 0),
        n_vocab=embedding[1] if len(embedding) == 2 else 0,
        modalities=modalities_of(mmproj or section_file(file, "mmproj")),
        has_drafter="drafter" in sections if has_drafter is None else has_drafter,
        sections=tuple(sections),
        layout=read("gemmule.layout", "gguf"),
    )


def _quantization(file_type: int, tensors: list[Any]) -> str:
    """The file's own word for it, else the type that most of its bytes have."""
    if file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    n_bytes: Counter[str] = Counter()
    for _, kind, _, _, size, *_ in tensors:
        n_bytes[kind] += size
    return n_bytes.most_common(1)[0][0] if n_bytes else "none"
