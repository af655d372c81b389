"""Which block type each tensor of a mix gets: llama.cpp's public rules for Gemma 3 and Gemma 4 as a table.

A mix has a base type and a few exceptions by the role of a tensor and its place in the stack; rows that do
not fill whole blocks fall back to a type with smaller blocks. The names, numbers and choices are those of
llama.cpp's `src/llama-quant.cpp`, so a file of the same mix has the same types and the same size.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gemmule._convert.image import Image, TensorSpec
from gemmule._quant import _BLOCKS

__all__ = [
    "TYPES",
    "assign_types",
    "fallback",
    "file_type",
    "is_quantizable",
    "keep_type",
    "matching_override",
    "parse_overrides",
    "role_of",
    "tensor_bytes",
    "types_bytes",
]

# Types that hold no weights (orderings, tables) but may stand in an image: bytes of one element.
_PLAIN_BYTES = {"I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class _Site:
    """Where a tensor stands: the `i`-th of `n` of its role, in what kind of model."""

    i: int
    n: int
    gqa: int  # query heads per key/value head of layer 0
    n_experts: int  # 1 for dense models
    has_importance: bool


def _always(_: _Site) -> bool:
    return True


def _first(parts: int) -> Callable[[_Site], bool]:
    return lambda s: s.i < s.n // parts


def _more(s: _Site) -> bool:
    """The first and last eighth of the stack, and every third layer between them."""
    return s.i < s.n // 8 or s.i >= 7 * s.n // 8 or (s.i - s.n // 8) % 3 == 2


def _guarded(s: _Site) -> bool:
    return s.has_importance and _first(8)(s)


def _shared(s: _Site) -> bool:
    return s.gqa >= 4


@dataclass(frozen=True)
class _Rule:
    role: str
    type: str
    when: Callable[[_Site], bool] = _always


def _before(count: int) -> Callable[[_Site], bool]:
    return lambda s: s.i < count


def _eight(s: _Site) -> bool:
    return s.n_experts == 8


@dataclass(frozen=True)
class _Mix:
    """One mix: its number in `general.file_type`, the type of most tensors, and the exceptions in order."""

    file_type: int
    base: str
    rules: tuple[_Rule, ...] = ()


_HEAD = _Rule("head", "Q6_K")
# Files with exactly 8 experts have few and small attention matrices beside their feed-forward layers.
_EIGHT_EXPERTS = (_Rule("attn_v", "Q8_0", _eight), _Rule("attn_k", "Q8_0", _eight))
_EIGHT_OUTPUT = _Rule("attn_output", "Q5_K", _eight)

_MIXES: dict[str, _Mix] = {
    "F32": _Mix(0, "F32"),
    "F16": _Mix(1, "F16"),
    "BF16": _Mix(32, "BF16"),
    "Q8_0": _Mix(7, "Q8_0", _EIGHT_EXPERTS),
    "Q4_0": _Mix(2, "Q4_0", (_HEAD, *_EIGHT_EXPERTS, _Rule("ffn_down", "Q4_1", _guarded))),
    "Q4_1": _Mix(3, "Q4_1", (_HEAD, *_EIGHT_EXPERTS)),
    "Q5_0": _Mix(8, "Q5_0", (_HEAD, *_EIGHT_EXPERTS, _Rule("ffn_down", "Q5_1", _guarded))),
    "Q5_1": _Mix(9, "Q5_1", (_HEAD, *_EIGHT_EXPERTS)),
    "Q2_K": _Mix(
        10,
        "Q2_K",
        (
            _HEAD,
            *_EIGHT_EXPERTS,
            _Rule("attn_v", "Q4_K", _shared),
            _Rule("attn_v", "Q3_K"),
            _Rule("ffn_down", "Q3_K"),
            _EIGHT_OUTPUT,
            _Rule("attn_output", "Q3_K"),
        ),
    ),
    "Q3_K_S": _Mix(11, "Q3_K", (_HEAD, *_EIGHT_EXPERTS, _EIGHT_OUTPUT)),
    "Q3_K_M": _Mix(
        12,
        "Q3_K",
        (
            _HEAD,
            *_EIGHT_EXPERTS,
            _Rule("attn_v", "Q5_K", _before(2)),
            _Rule("attn_v", "Q4_K"),
            _Rule("ffn_down", "Q5_K", _first(16)),
            _Rule("ffn_down", "Q4_K"),
            _EIGHT_OUTPUT,
            _Rule("attn_output", "Q4_K"),
        ),
    ),
    "Q3_K_L": _Mix(
        13,
        "Q3_K",
        (
            _HEAD,
            *_EIGHT_EXPERTS,
            _Rule("attn_v", "Q5_K"),
            _Rule("ffn_down", "Q5_K"),
            _Rule("attn_output", "Q3_K", _eight),
            _Rule("attn_output", "Q5_K"),
        ),
    ),
    "Q4_K_S": _Mix(
        14,
        "Q4_K",
        (
            _HEAD,
            *_EIGHT_EXPERTS,
            _Rule("attn_v", "Q5_K", _before(4)),
            _Rule("ffn_down", "Q5_K", _first(8)),
            _EIGHT_OUTPUT,
        ),
    ),
    "Q4_K_M": _Mix(
        15,
        "Q4_K",
        (
            _HEAD,
            *_EIGHT_EXPERTS,
            _Rule("attn_v", "Q6_K", _more),
            _Rule("ffn_down", "Q6_K", _more),
            _EIGHT_OUTPUT,
        ),
    ),
    "Q5_K_S": _Mix(16, "Q5_K", (_HEAD, *_EIGHT_EXPERTS)),
    "Q5_K_M": _Mix(
        17,
        "Q5_K",
        (_HEAD, *_EIGHT_EXPERTS, _Rule("attn_v", "Q6_K", _more), _Rule("ffn_down", "Q6_K", _more)),
    ),
    "Q6_K": _Mix(18, "Q6_K", (_HEAD, *_EIGHT_EXPERTS)),
}

TYPES: tuple[str, ...] = tuple(_MIXES)

# A type whose blocks are too long for a row, and the one with blocks of 32 that takes its place.
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# Matrices that stay as they are: too small or too sensitive to be worth a block type. Parts of names.
_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "per_layer_model_proj",
    "altup",
    "laurel",
    ".position_embd",
    ".patch_embd",
    ".rel_pos",
)
# ... of which these are stored as F32 whatever the float type of the source; so are vectors.
_ALWAYS_F32 = ("_norm.weight", "ffn_gate_inp.weight")

# (part of the name, role), in the order in which they are looked for.
_ROLES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")


def role_of(name: str, *, tied: bool) -> str:
    """The part a tensor plays; an embedding that is also the output matrix (`tied`) counts as the head."""
    if name == "output.weight" or (tied and name in _EMBEDDINGS):
        return "head"
    if name in _EMBEDDINGS:
        return "embedding"
    return next((role for part, role in _ROLES if part in name), "other")


def _mix(type_name: str) -> _Mix:
    mix = _MIXES.get(type_name.upper()) if isinstance(type_name, str) else None
    if mix is None:
        raise ValueError(f"unknown type {type_name!r}; use one of {', '.join(TYPES)}.")
    return mix


def file_type(type_name: str) -> int:
    """The number of a mix in `general.file_type`."""
    return _mix(type_name).file_type


def _n_dims(shape: tuple[int, ...]) -> int:
    return max((axis + 1 for axis, size in enumerate(shape) if size > 1), default=1)


def is_quantizable(spec: TensorSpec) -> bool:
    """Whether the mix decides about this tensor: a matrix of weights without a fixed type."""
    return (
        spec.keep is None
        and _n_dims(spec.shape) >= 2
        and spec.name.endswith("weight")
        and not any(part in spec.name for part in _NEVER)
    )


def keep_type(spec: TensorSpec) -> str:
    """The type of a tensor that no mix changes."""
    if spec.keep is not None:
        return spec.keep
    small = _n_dims(spec.shape) < 2 or any(part in spec.name for part in _ALWAYS_F32)
    return "F32" if small and spec.rows.dtype in _FLOATS else spec.rows.dtype


def fallback(type_name: str, n_cols: int) -> str:
    """`type_name`, or what replaces it when rows of `n_cols` numbers do not fill its blocks."""
    if n_cols % _BLOCKS[type_name][0] == 0:
        return type_name
    smaller = _FALLBACKS.get(type_name, type_name)
    return smaller if n_cols % _BLOCKS[smaller][0] == 0 else "F16"


def _block(type_name: str) -> tuple[int, int]:
    if type_name in _PLAIN_BYTES:
        return 1, _PLAIN_BYTES[type_name]
    if type_name not in _BLOCKS:
        raise ValueError(f"tensors of type {type_name} are not supported; use one of {', '.join(_BLOCKS)}.")
    return _BLOCKS[type_name]


def tensor_bytes(spec: TensorSpec, type_name: str) -> int:
    """Bytes of one tensor stored as `type_name`."""
    elements, size = _block(type_name)
    n_cols = spec.shape[0]
    if n_cols % elements:
        raise ValueError(f"{spec.name}: rows of {n_cols} do not fill {type_name} blocks of {elements}.")
    return spec.n_elements // elements * size


def types_bytes(image: Image, types: Mapping[str, str]) -> int:
    """Bytes of the tensor data of an image under an assignment, without the padding between tensors."""
    return sum(tensor_bytes(spec, types[spec.name]) for spec in image.tensors)


def parse_overrides(image: Image, overrides: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    """Check the (pattern, tensor type) pairs against the tensors of the image."""
    names = [spec.name for spec in image.tensors if is_quantizable(spec)]
    parsed = []
    for pattern, type_name in overrides:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}.") from None
        upper = str(type_name).upper()
        if upper not in _BLOCKS:
            raise ValueError(
                f"unknown tensor type {type_name!r} for pattern {pattern!r}; use one of {', '.join(_BLOCKS)}."
            )
        if not any(compiled.search(name) for name in names):
            fixed = any(compiled.search(spec.name) for spec in image.tensors)
            why = "only tensors that always keep their type" if fixed else "no tensor"
            some = ", ".join(dict.fromkeys(_LAYER.sub("blk.N.", name) for name in names))
            raise ValueError(f"pattern {pattern!r} matches {why}; there are {some}.")
        parsed.append((compiled, upper))
    return parsed


def matching_override(parsed: Sequence[tuple[re.Pattern[str], str]], name: str) -> str | None:
    """The type of the first pattern found in the name."""
    return next((type_name for pattern, type_name in parsed if pattern.search(name)), None)


def _layer_of(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _per_layer(value: object) -> int:
    """Layer 0's entry of a value that may be one number or a list with one per layer."""
    if isinstance(value, (int, float)):
        return int(value)
    return int(value[0]) if isinstance(value, Sequence) or hasattr(value, "__getitem__") else 0


def _model_facts(image: Image) -> tuple[int, int, int]:
    """(layers, query heads per key/value head, experts) from the metadata."""
    arch = image.architecture
    n_heads = _per_layer(image.get(f"{arch}.attention.head_count", 0))
    n_kv_heads = _per_layer(image.get(f"{arch}.attention.head_count_kv", n_heads))
    gqa = n_heads // n_kv_heads if n_kv_heads else 0
    n_layers = int(image.get(f"{arch}.block_count", 0))
    return n_layers, gqa, max(1, int(image.get(f"{arch}.expert_count", 0)))


def _sites(image: Image, has_importance: bool, tied: bool) -> dict[str, _Site]:
    """The place of every quantizable tensor, counted in layer order whatever the order in the file."""
    n_layers, gqa, n_experts = _model_facts(image)
    ordered = sorted(image.tensors, key=lambda spec: (_layer_of(spec.name), spec.name))
    n_values = sum(role_of(spec.name, tied=tied) == "attn_v" for spec in ordered)
    seen: dict[str, int] = {}
    sites = {}
    for spec in ordered:
        if not is_quantizable(spec):
            continue
        role = role_of(spec.name, tied=tied)
        count = seen.get(role, 0)
        seen[role] = count + 1
        # With experts a layer has two down matrices, so there the layer is read from the name.
        by_name = n_experts > 1 and role == "ffn_down"
        sites[spec.name] = _Site(
            i=_layer_of(spec.name) if by_name else count,
            n=n_values if role == "attn_v" else n_layers,
            gqa=gqa,
            n_experts=n_experts,
            has_importance=has_importance,
        )
    return sites


def assign_types(
    image: Image,
    type_name: str,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    has_importance: bool = False,
) -> dict[str, str]:
    """The type of every tensor of an image under a mix.

    Args:
        image: the tensors and the metadata.
        type_name: one of `TYPES`, in any case.
        overrides: (regular expression, tensor type) pairs; the first one found in a name decides.
        has_importance: whether an importance matrix is given, which changes a few rules.

    Returns:
        Tensor name to tensor type, in file order.

    Raises:
        ValueError: an unknown type, a bad pattern, or a pattern that matches no quantizable tensor.
    """
    mix = _mix(type_name)
    parsed = parse_overrides(image, overrides)
    tied = all(spec.name != "output.weight" for spec in image.tensors)
    sites = _sites(image, has_importance, tied)
    types = {}
    for spec in image.tensors:
        site = sites.get(spec.name)
        if site is None:
            types[spec.name] = keep_type(spec)
            continue
        role = role_of(spec.name, tied=tied)
        by_rule = next((r.type for r in mix.rules if r.role == role and r.when(site)), mix.base)
        wanted = matching_override(parsed, spec.name) or by_rule
        types[spec.name] = fallback(wanted, spec.shape[0])
    return types
