"""Types for a wanted size: spend the bits where measured error does the most harm.

    minimise  sum over tensors t of  harm(t) * error(t, type)    subject to  sum of bytes <= budget

error is the relative squared error of encoding a sample of the tensor's rows, weighted by the importance of
its columns where that is known; harm says how far such an error in a tensor of its role moves predictions.
This is a multiple-choice knapsack: each tensor walks up the lower convex hull of its (bytes, harm) points and
the step that wins most per byte goes first (the Lagrangian sweep); the few matrices too big for that to be
exact are tried at every type, and what is left of the budget goes to single upgrades.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._convert.image import Image, TensorSpec
from gemmule._convert.mixes import (
    fallback,
    is_quantizable,
    keep_type,
    matching_override,
    parse_overrides,
    role_of,
    tensor_bytes,
)
from gemmule._convert.stream import search_weights
from gemmule._errors import FormatError

__all__ = ["choose_types"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Harm:
    """KL divergence per relative squared error, for the first, middle and last third of the layers."""

    plain: tuple[float, float, float]  # of errors in which every column counts alike
    weighted: tuple[float, float, float]  # of errors weighted by the importance of the columns


def _everywhere(plain: float, weighted: float) -> _Harm:
    return _Harm((plain,) * 3, (weighted,) * 3)


# Measured by tools/measure_sensitivity.py on Gemma 3 270M (18 layers, 576 positions of English prose): all
# matrices of a role in a third of the depth rounded to Q4_0, mean KL divergence (nat) of the next-token
# distribution from that of the unchanged model, divided by the mean relative squared error of those matrices.
# One model, one text: the order of the parts is sure, the numbers are not. The head is by far the most
# sensitive part.
_HARM = {
    "head": _everywhere(10.2, 24.1),
    "embedding": _everywhere(2.8, 2.8),
    "attn_q": _Harm((0.76, 1.21, 0.87), (0.65, 0.84, 0.43)),
    "attn_k": _Harm((1.14, 0.99, 1.43), (0.90, 0.68, 0.87)),
    "attn_v": _Harm((3.09, 3.61, 3.04), (1.36, 1.41, 1.44)),
    "attn_output": _Harm((1.68, 2.24, 0.99), (1.17, 1.93, 0.81)),
    "ffn_gate": _Harm((2.15, 1.41, 1.19), (1.88, 1.20, 1.03)),
    "ffn_up": _Harm((4.60, 2.36, 1.81), (2.61, 1.32, 1.30)),
    "ffn_down": _Harm((3.66, 3.64, 4.07), (3.14, 3.01, 2.54)),
    # Not measured: the small matrices of per-layer embeddings and of drafters, taken for an average part, and
    # the table of per-layer embeddings, whose errors reach every layer's sum as those of attn_output do.
    "other": _everywhere(2.0, 1.5),
    "per_layer_table": _everywhere(4.9, 3.9),
}
_LAYER = re.compile(r"blk\.(\d+)\.")

# Q4_0 beside Q4_K: weights that were trained for it lose nothing there.
_TYPES_256 = ("Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_TYPES_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_SAMPLE_ELEMENTS = 1 << 18
_MIN_ROWS = 16
_ALIGNMENT = 32  # between tensors of a file
_BIG_SHARE = 0.03  # of all numbers: matrices whose every type is tried
_MAX_BIG = 2


@dataclass(frozen=True)
class _Option:
    """One type a tensor may have."""

    type: str
    n_bytes: int  # in the file, padding included
    harm: float


@dataclass(frozen=True)
class _Step:
    """From one corner of a tensor's hull to the next."""

    tensor: str
    start: _Option
    end: _Option

    @property
    def gain(self) -> float:
        return (self.start.harm - self.end.harm) / (self.end.n_bytes - self.start.n_bytes)


def _padded(spec: TensorSpec, type_name: str) -> int:
    return -(-tensor_bytes(spec, type_name) // _ALIGNMENT) * _ALIGNMENT


def _candidates(spec: TensorSpec) -> list[str]:
    """Types whose blocks fill the rows, with that of the source and the widest float worth having."""
    if spec.shape[0] % 32:
        return ["F16"]
    own = spec.rows.dtype
    types = [*(_TYPES_256 if spec.shape[0] % 256 == 0 else _TYPES_32), "F16" if own == "F16" else "BF16"]
    return [*types, own] if own in _TYPES_32 and own not in types else types


def _sample(spec: TensorSpec) -> list[tuple[int, int]]:
    """(matrix, row) of the rows to measure, evenly spread over the matrices and within them."""
    n_rows, n_matrices = spec.rows.n_rows, math.prod(spec.shape[2:])
    n = min(n_rows, max(_MIN_ROWS, _SAMPLE_ELEMENTS // spec.rows.n_cols))
    per_matrix = n_rows // n_matrices
    picked = sorted({(2 * i + 1) * n_rows // (2 * n) for i in range(n)})
    return [(row // per_matrix, row) for row in picked]


def _errors(
    spec: TensorSpec,
    encoder: _core.Encoder,
    types: Sequence[str],
    importance: NDArray[np.float32] | None,
    stop: _core.StopToken | None,
) -> dict[str, float]:
    """The relative squared error of each type on the sample, without types that cannot hold the numbers."""
    rows = spec.rows
    row_bytes = tensor_bytes(spec, rows.dtype) // rows.n_rows
    error = dict.fromkeys(types, 0.0)
    norm = 0.0
    for matrix, group in itertools.groupby(_sample(spec), key=lambda item: item[0]):
        indices = [row for _, row in group]
        data = np.empty(len(indices) * row_bytes, np.uint8)
        for i, row in enumerate(indices):
            rows.read_into(row, 1, data[i * row_bytes : (i + 1) * row_bytes])
        weights = None
        if importance is not None:
            weights = np.ascontiguousarray(importance[matrix if len(importance) > 1 else 0])
        group_norm = 0.0
        for type_name in list(error):
            out = np.empty(len(indices) * tensor_bytes(spec, type_name) // rows.n_rows, np.uint8)
            _, _, error2, group_norm, first_bad = encoder.encode(
                data,
                rows.dtype,
                rows.n_cols,
                type_name,
                out,
                stop=stop,
                importance=search_weights(type_name, weights, rows.n_cols),
            )
            if first_bad >= 0:
                del error[type_name]
            else:
                error[type_name] += error2
        norm += group_norm
    if not error:
        raise FormatError(f"{rows.origin}: holds numbers that are not finite or too large for every type.")
    return {type_name: error2 / norm if norm > 0 else 0.0 for type_name, error2 in error.items()}


def _hull(options: Iterable[_Option]) -> list[_Option]:
    """The corners of the lower convex hull: more bytes, less harm, ever smaller gains."""
    corners: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.n_bytes, o.harm)):
        if corners and option.harm >= corners[-1].harm:
            continue
        while (
            len(corners) > 1
            and _Step("", corners[-2], corners[-1]).gain <= _Step("", corners[-1], option).gain
        ):
            corners.pop()
        corners.append(option)
    return corners


def _fill(options: Mapping[str, Sequence[_Option]], budget: int) -> dict[str, _Option] | None:
    """One option per tensor within the budget, or None if even the smallest ones do not fit."""
    hulls = {name: _hull(choices) for name, choices in options.items()}
    chosen = {name: corners[0] for name, corners in hulls.items()}
    left = budget - sum(option.n_bytes for option in chosen.values())
    if left < 0:
        return None
    steps = [_Step(name, a, b) for name, corners in hulls.items() for a, b in itertools.pairwise(corners)]
    for step in sorted(steps, key=lambda s: (-s.gain, s.tensor)):
        if chosen[step.tensor] is step.start and step.end.n_bytes - step.start.n_bytes <= left:
            chosen[step.tensor] = step.end
            left -= step.end.n_bytes - step.start.n_bytes
    return _use_rest(options, chosen, left)


def _use_rest(
    options: Mapping[str, Sequence[_Option]], chosen: dict[str, _Option], left: int
) -> dict[str, _Option]:
    """Upgrades that fit into what the sweep left over, the most useful first, also off the hull."""
    while True:
        steps = [
            _Step(name, chosen[name], option)
            for name, choices in options.items()
            for option in choices
            if 0 < option.n_bytes - chosen[name].n_bytes <= left and option.harm < chosen[name].harm
        ]
        if not steps:
            return chosen
        best = max(steps, key=lambda s: (s.start.harm - s.end.harm, s.tensor))
        chosen[best.tensor] = best.end
        left -= best.end.n_bytes - best.start.n_bytes


def _solve(options: Mapping[str, Sequence[_Option]], big: Sequence[str], budget: int) -> dict[str, _Option]:
    """The least harm within the budget over all types of the big matrices."""
    best: tuple[float, dict[str, _Option]] | None = None
    for combination in itertools.product(*(options[name] for name in big)):
        fixed = {name: (option,) for name, option in zip(big, combination, strict=True)}
        chosen = _fill({**options, **fixed}, budget)
        if chosen is None:
            continue
        harm = sum(option.harm for option in chosen.values())
        if best is None or harm < best[0]:
            best = (harm, chosen)
    if best is None:
        raise AssertionError("the smallest types were checked to fit")
    return best[1]


def _budget(image: Image, target_bytes: int | None, other_bytes: int, target_bpw: float | None) -> int:
    """Bytes that the tensors may take."""
    if (target_bytes is None) == (target_bpw is None):
        raise ValueError("give either a size or bits per weight, not both.")
    if target_bpw is None:
        return int(target_bytes or 0) - other_bytes
    if not (math.isfinite(target_bpw) and target_bpw > 0):
        raise ValueError(f"bits per weight must be a positive number, not {target_bpw!r}.")
    return int(target_bpw * sum(spec.n_elements for spec in image.tensors) / 8)


def _out_of_reach(budget: int, smallest: int, largest: int, other_bytes: int, n_weights: int) -> ValueError:
    """The refusal in the unit of the request: bits per weight, or without `n_weights` bytes of the file."""
    if n_weights:
        wanted, low, high = (f"{8 * n / n_weights:.3f}" for n in (budget, smallest, largest))
        unit = "bits per weight"
    else:
        wanted, low, high = (f"{n + other_bytes:,}" for n in (budget, smallest, largest))
        unit = "bytes"
    return ValueError(f"{wanted} {unit} cannot be reached: this model takes {low} to {high} {unit}.")


def choose_types(
    image: Image,
    encoder: _core.Encoder,
    *,
    target_bytes: int | None = None,
    other_bytes: int = 0,
    target_bpw: float | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Progress | None = None,
    stop: _core.StopToken | None = None,
) -> dict[str, str]:
    """The types with the least measured harm whose total comes just under a target.

    Args:
        image: the tensors; a sample of their rows is read and encoded in every type.
        encoder: does that; the result does not depend on its threads.
        target_bytes: of the file: the tensors with their padding and
        other_bytes: what is in the file beside them; or
        target_bpw: bits per weight over all tensors.
        overrides: (regular expression, tensor type) pairs that are not up for choice.
        importance: tensor name to mean squares of its inputs [n_matrices, n_cols].
        progress: called with (numbers measured, numbers in all, what).
        stop: ends the call from another thread.

    Returns:
        Tensor name to tensor type, in file order.

    Raises:
        ValueError: a target outside what the model can take (the message holds the range), or a bad override.
        FormatError: a tensor whose numbers are not finite.
    """
    budget = _budget(image, target_bytes, other_bytes, target_bpw)
    parsed = parse_overrides(image, overrides)
    fixed: dict[str, str] = {}
    free: list[TensorSpec] = []
    for spec in image.tensors:
        override = matching_override(parsed, spec.name)
        if not is_quantizable(spec):
            fixed[spec.name] = keep_type(spec)
        elif override is not None:
            fixed[spec.name] = fallback(override, spec.shape[0])
        else:
            free.append(spec)
    fixed_bytes = sum(_padded(spec, fixed[spec.name]) for spec in image.tensors if spec.name in fixed)
    sizes = [[_padded(spec, type_name) for type_name in _candidates(spec)] for spec in free]
    smallest, largest = fixed_bytes + sum(map(min, sizes)), fixed_bytes + sum(map(max, sizes))
    if not smallest <= budget <= largest:
        n_weights = sum(spec.n_elements for spec in image.tensors) if target_bpw is not None else 0
        raise _out_of_reach(budget, smallest, largest, other_bytes, n_weights)

    options = _measure(image, free, encoder, importance or {}, progress, stop)
    total = sum(spec.n_elements for spec in free)
    by_size = sorted(free, key=lambda spec: -spec.n_elements)[:_MAX_BIG]
    big = [spec.name for spec in by_size if spec.n_elements > _BIG_SHARE * total]
    chosen = _solve(options, big, budget - fixed_bytes)
    return {
        spec.name: fixed[spec.name] if spec.name in fixed else chosen[spec.name].type
        for spec in image.tensors
    }


def _measure(
    image: Image,
    specs: Sequence[TensorSpec],
    encoder: _core.Encoder,
    importance: Mapping[str, NDArray[np.float32]],
    progress: Progress | None,
    stop: _core.StopToken | None,
) -> dict[str, list[_Option]]:
    """The options of every free tensor."""
    harms = _harms(image, specs, importance)
    total = sum(len(_sample(spec)) * spec.rows.n_cols for spec in specs)
    done = 0
    options = {}
    for spec in specs:
        errors = _errors(spec, encoder, _candidates(spec), importance.get(spec.name), stop)
        options[spec.name] = [
            _Option(type_name, _padded(spec, type_name), harms[spec.name] * error)
            for type_name, error in errors.items()
        ]
        done += len(_sample(spec)) * spec.rows.n_cols
        if progress is not None:
            progress(done, total, "measuring")
    return options


def _harms(image: Image, specs: Sequence[TensorSpec], known: Collection[str]) -> dict[str, float]:
    """How much a relative squared error in each tensor matters.

    The harm of a third of the depth is shared by its layers, and in a layer by the tensors of the role, so
    that a stack of experts counts as much as the dense matrix beside it. `known`: tensors with importance.
    """
    tied = all(spec.name != "output.weight" for spec in image.tensors)
    layers = {spec.name: int(found[1]) for spec in specs if (found := _LAYER.match(spec.name))}
    n_layers = max(layers.values(), default=0) + 1
    per_third = [sum(layer * 3 // n_layers == third for layer in range(n_layers)) for third in range(3)]
    roles = {spec.name: _role(spec.name, tied) for spec in specs}
    peers = Counter((role, layers.get(name)) for name, role in roles.items())

    harms = {}
    for name, role in roles.items():
        layer = layers.get(name)
        third = 0 if layer is None else layer * 3 // n_layers
        table = _HARM[role].weighted if name in known else _HARM[role].plain
        share = 1 if layer is None else per_third[third]
        harms[name] = table[third] / share / peers[role, layer]
        if role == "head" and tied:  # it is the embedding as well
            harms[name] += _HARM["embedding"].plain[0]
    return harms


def _role(name: str, tied: bool) -> str:
    return "per_layer_table" if name == "per_layer_token_embd.weight" else role_of(name, tied=tied)
