"""A Hugging Face model folder as a Bundle: what the output file will hold, and where its numbers lie.

The folder is checked completely before anything is written: the config by hf_config, every tensor against the
table in names, the vocabulary against the original tokenizer. A tensor that has no place is an error, so is a
missing one. Numbers are read later, row by row; only the few that change on the way are computed here:
Gemma 3 norms (w + 1), pixel order (row, column, colour -> colour, row, column), axes, softplus, clip limits.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gemmule._convert import metadata
from gemmule._convert.hf_config import Drafter, ModelConfig, TextConfig, read_config
from gemmule._convert.image import ArrayRows, Bundle, Image, Kv, RowSource, TensorSpec
from gemmule._convert.media_config import PatchEmbedder
from gemmule._convert.names import (
    Entry,
    audio_entries,
    drafter_entries,
    droppable,
    text_entries,
    vision_entries,
)
from gemmule._convert.safetensors import FLOATS, StoredTensor, Weights, open_weights
from gemmule._convert.vocabulary import Vocabulary, load_vocabulary
from gemmule._errors import FormatError, ModelNotFoundError, UnsupportedError

__all__ = ["load_checkpoint"]

_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
_MEDIA_PREFIXES = ("model.", "")
_UNROTATED = 1e30  # an angle divided by this is no rotation
_INTEGERS = {"I64": "<i8", "I32": "<i4"}
_MAX_FLOAT = float(np.finfo(np.float32).max)


def load_checkpoint(
    folder: Path | str,
    *,
    drafter: Path | str | Literal["auto"] | None = "auto",
    vision: bool = True,
    audio: bool = True,
) -> Bundle:
    """Describe the file that `folder` becomes.

    `drafter`: the folder of the matching assistant, None for none, or "auto" for one that fits: `assistant`
    inside `folder`, or one beside it whose name ends in "-assistant". `vision` and `audio` say whether those
    parts are wanted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: there is no such folder.")
    config = read_config(folder)
    if config.drafter is not None:
        raise UnsupportedError(
            f"{folder}: this is a drafter ({config.model_type}); convert its target model and give this "
            "folder as the drafter."
        )
    weights = open_weights(folder)
    card = metadata.read_card(folder)
    vocabulary = load_vocabulary(folder, config, card.generation)
    warnings = [*weights.warnings, *config.warnings, *vocabulary.warnings]
    text = _text_image(config, weights, card, vocabulary)
    sections: dict[str, Image] = {}
    media = _media_image(config, weights, card, folder, vision=vision, audio=audio)
    if media is not None:
        sections["mmproj"] = media
    elif config.model_type == "gemma3" and vision and any("vision_tower." in name for name in weights):
        warnings.append(f"{folder}: the image tower of Gemma 3 is not converted; the file is text only.")
    _refuse_unused(weights, _used_names(config, weights), config.text.family)
    found = _find_drafter(folder, config, drafter, warnings)
    if found is not None:
        sections["drafter"] = _drafter_image(found, config, vocabulary, warnings)
    return Bundle(
        text=text,
        sections=sections,
        source=str(folder),
        source_dtype=weights.main_dtype(),
        warnings=tuple(warnings),
    )


# -- images ---


def _text_image(config: ModelConfig, weights: Weights, card: metadata.Card, vocabulary: Vocabulary) -> Image:
    prefix, head = _text_names(weights)
    entries = list(text_entries(config.text, prefix, head))
    tensors = [*_rope_freqs(config.text), *_tensors(entries, weights)]
    if config.text.tied and head in weights:
        _check_tied_head(weights, prefix, head)
    label = metadata.size_label(*_weight_counts(tensors, config.text))
    return Image((*metadata.text_kvs(config, card, label), *vocabulary.kvs), tuple(tensors))


def _media_image(
    config: ModelConfig, weights: Weights, card: metadata.Card, folder: Path, *, vision: bool, audio: bool
) -> Image | None:
    entries = _media_entries(config, weights, vision=vision, audio=audio)
    if not entries:
        return None
    side = config.vision.patch * config.vision.pool if isinstance(config.vision, PatchEmbedder) else 0
    tensors = list(_tensors(entries, weights, side))
    label = metadata.size_label(sum(spec.n_elements for spec in tensors))
    kvs = metadata.media_kvs(config, folder, card, label, vision=vision, audio=audio)
    return Image(tuple(kvs), tuple(tensors))


def _drafter_image(folder: Path, target: ModelConfig, vocabulary: Vocabulary, warnings: list[str]) -> Image:
    config = read_config(folder)
    _check_drafter(config, target)
    weights = open_weights(folder)
    card = metadata.read_card(folder)
    if (folder / "tokenizer.json").exists():
        own = load_vocabulary(folder, config, card.generation, check=False)
        _check_same_vocabulary(folder, own, vocabulary)
        vocabulary = own
    prefix, head = _text_names(weights)
    assert config.drafter is not None
    entries = list(drafter_entries(config.text, config.drafter, prefix))
    tensors = [*_rope_freqs(config.text), *_tensors(entries, weights)]
    if head in weights:
        _check_tied_head(weights, prefix, head)
    _refuse_unused(weights, {entry.hf for entry in entries} | {head}, "gemma4")
    warnings += [*weights.warnings, *config.warnings]
    label = metadata.size_label(sum(spec.n_elements for spec in tensors))
    clusters = _clusters(config.drafter, config.text, weights)
    return Image((*metadata.drafter_kvs(config, card, label), *clusters, *vocabulary.kvs), tuple(tensors))


def _weight_counts(tensors: Iterable[TensorSpec], text: TextConfig) -> tuple[int, int, int]:
    total = experts = 0
    for spec in tensors:
        total += spec.n_elements
        experts += spec.n_elements if "_exps." in spec.name else 0
    return total, text.n_experts, experts


def _rope_freqs(text: TextConfig) -> list[TensorSpec]:
    """Divisors of the angles of global layers: [head_dim / 2], huge where a pair does not rotate."""
    if text.family != "gemma4":
        return []
    n_pairs = text.layers[-1].head_dim // 2
    factors = np.full(n_pairs, _UNROTATED, np.float32)
    factors[: int(text.layers[-1].head_dim * text.rotary_fraction / 2)] = 1.0
    rows = ArrayRows("rope_freqs.weight (generated)", 1, n_pairs, lambda: factors)
    return [TensorSpec("rope_freqs.weight", (n_pairs,), rows, "F32")]


# -- names ---


def _text_names(weights: Weights) -> tuple[str, str]:
    """(prefix of the text stack, name of the output matrix if it exists)."""
    for prefix in _TEXT_PREFIXES:
        if prefix + "embed_tokens.weight" in weights:
            heads = ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"]
            return prefix, next((head for head in heads if head in weights), heads[0])
    raise FormatError(
        f"{weights.folder}: no tensor is named ...embed_tokens.weight, the first is {next(iter(weights))}."
    )


def _media_entries(config: ModelConfig, weights: Weights, *, vision: bool, audio: bool) -> list[Entry]:
    prefix = next(
        (
            p
            for p in _MEDIA_PREFIXES
            if any(name.startswith((p + "embed_", p + "vision_")) for name in weights)
        ),
        _MEDIA_PREFIXES[0],
    )
    entries: list[Entry] = []
    if vision and config.vision is not None:
        entries += vision_entries(config.vision, config.text.d_model, prefix)
    if audio and config.audio is not None:
        entries += audio_entries(config.audio, config.text.d_model, prefix)
    return entries


def _used_names(config: ModelConfig, weights: Weights) -> set[str]:
    """Every tensor that has a place, wanted now or not."""
    prefix, head = _text_names(weights)
    entries = [
        *text_entries(config.text, prefix, head),
        *_media_entries(config, weights, vision=True, audio=True),
    ]
    return {entry.hf for entry in entries} | {head}


def _refuse_unused(weights: Weights, used: set[str], family: str) -> None:
    strangers = [
        tensor for name, tensor in weights.items() if name not in used and not droppable(name, family)
    ]
    if strangers:
        raise UnsupportedError(
            f"{strangers[0].origin} {list(strangers[0].shape)} has no place in a file of this model"
            + (f" (and {len(strangers) - 1} more tensors)." if len(strangers) > 1 else ".")
        )


def _check_tied_head(weights: Weights, prefix: str, head: str) -> None:
    """A stored head of a tied model must be the embedding itself, else something would be lost."""
    embedding, output = weights[prefix + "embed_tokens.weight"], weights[head]
    same = (embedding.shape, embedding.dtype) == (output.shape, output.dtype)
    step = 1 << 24
    for first in range(0, embedding.n_bytes if same else 0, step):
        n = min(step, embedding.n_bytes - first)
        a, b = bytearray(n), bytearray(n)
        embedding.read_bytes(first, memoryview(a))
        output.read_bytes(first, memoryview(b))
        same = same and a == b
        if not same:
            break
    if not same:
        raise FormatError(
            f"{output.origin}: differs from the embedding although tie_word_embeddings is true; "
            "set it to false in config.json if the model has a head of its own."
        )


# -- tensors ---


def _tensors(entries: Iterable[Entry], weights: Weights, side: int = 0) -> Iterable[TensorSpec]:
    """The entries that exist, each checked. `side` is the edge of an image patch in pixels."""
    missing = [entry.hf for entry in entries if not entry.optional and entry.hf not in weights]
    if missing:
        raise FormatError(
            f"{weights.folder}: the tensor {missing[0]} is missing"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else ".")
        )
    for entry in entries:
        tensor = weights.get(entry.hf)
        if tensor is not None:
            yield _tensor(entry, tensor, side)


def _tensor(entry: Entry, tensor: StoredTensor, side: int) -> TensorSpec:
    if tensor.dtype not in FLOATS:
        raise UnsupportedError(
            f"{tensor.origin}: the dtype is {tensor.dtype}; BF16, F16 and F32 are converted."
        )
    if tensor.shape != entry.shape and not (entry.shape == () and tensor.shape == (1,)):
        raise FormatError(
            f"{tensor.origin}: the shape is {list(tensor.shape)}, the config asks for {list(entry.shape)}."
        )
    shape = entry.gguf_shape or tuple(reversed(entry.shape))
    rows: RowSource
    if entry.how == "" and entry.shape == ():
        rows = _computed(tensor, _finite, shape)
    elif entry.how == "" and entry.gguf_shape:
        rows = _computed(tensor, np.asarray, shape)
    elif entry.how == "":
        rows = tensor.rows()
    elif entry.how == "planes":
        rows = GatheredRows(tensor.rows(), columns=_plane_order(side))
    elif entry.how == "axes":
        rows, shape = _swapped_axes(tensor)
    else:
        rows = _computed(tensor, TRANSFORMS[entry.how], shape)
    keep = tensor.dtype if entry.keep == "source" else entry.keep or None
    return TensorSpec(entry.gguf, shape, rows, keep)


def _computed(
    tensor: StoredTensor, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], shape: tuple[int, ...]
) -> ArrayRows:
    n_rows = math.prod(shape[1:])
    return ArrayRows(tensor.origin, n_rows, shape[0], lambda: change(tensor.to_float32()))


def _finite(limit: NDArray[np.float32]) -> NDArray[np.float32]:
    """A clip limit; an infinite one becomes the largest number, which clips as little."""
    return np.clip(limit, -_MAX_FLOAT, _MAX_FLOAT)


def _softplus(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + e^x), in double precision."""
    return np.logaddexp(0.0, x.astype(np.float64)).astype(np.float32)


def _kernel(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[width, side * side * 3] with colour innermost -> [width, 3, side, side]."""
    side = math.isqrt(x.shape[1] // 3)
    return x.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)


TRANSFORMS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "norm": lambda w: w + np.float32(1.0),
    "softplus": _softplus,
    "kernel": _kernel,
}


@dataclass(frozen=True)
class GatheredRows:
    """Rows in another order, or their columns in another order; the numbers keep their type and bits."""

    source: RowSource
    columns: NDArray[np.int64] | None = None  # [n_cols]: new column i is old column columns[i]
    rows: NDArray[np.int64] | None = None  # [n_rows]: new row i is old row rows[i]

    @property
    def dtype(self) -> str:
        return self.source.dtype

    @property
    def n_rows(self) -> int:
        return self.source.n_rows

    @property
    def n_cols(self) -> int:
        return self.source.n_cols

    @property
    def origin(self) -> str:
        return self.source.origin

    def read_into(self, first: int, n: int, out: NDArray[np.uint8]) -> None:
        row_bytes = out.nbytes // max(1, n)
        if self.rows is None:
            self.source.read_into(first, n, out)
        else:
            for i, row in enumerate(self.rows[first : first + n].tolist()):
                self.source.read_into(row, 1, out[i * row_bytes : (i + 1) * row_bytes])
        if self.columns is not None:
            items = out.view(np.uint8).reshape(n, self.n_cols, row_bytes // self.n_cols)
            items[:] = items[:, self.columns]


def _plane_order(side: int) -> NDArray[np.int64]:
    """[3 * side * side]: the place in (row, column, colour) order of each (colour, row, column)."""
    return np.arange(3 * side * side).reshape(side, side, 3).transpose(2, 0, 1).reshape(-1)


def _swapped_axes(tensor: StoredTensor) -> tuple[RowSource, tuple[int, ...]]:
    """[N, 2, C] -> [2, N, C]: (rows, GGUF shape)."""
    n, two, width = tensor.shape
    order = np.arange(n * two).reshape(n, two).T.reshape(-1)
    return GatheredRows(tensor.rows(), rows=order), (width, n, two)


# -- drafter ---


def _clusters(drafter: Drafter, text: TextConfig, weights: Weights) -> list[Kv]:
    """How a small drafter chooses the tokens that get a logit. Keys, because llama.cpp opens no drafter with
    tensors it does not read.
    """
    if not drafter.n_centroids:
        return []
    wanted = {
        "masked_embedding.centroids.weight": (drafter.n_centroids, text.d_model),
        "masked_embedding.token_ordering": (text.n_vocab,),
    }
    for name, shape in wanted.items():
        if name not in weights:
            raise FormatError(f"{weights.folder}: the tensor {name} is missing.")
        if weights[name].shape != shape:
            raise FormatError(
                f"{weights[name].origin}: the shape is {list(weights[name].shape)}, the config asks for "
                f"{list(shape)}."
            )
    centroids, ordering = (weights[name] for name in wanted)
    if centroids.dtype not in FLOATS or ordering.dtype not in _INTEGERS:
        raise UnsupportedError(
            f"{weights.folder}: clusters of {centroids.dtype} numbers and {ordering.dtype} tokens are not "
            "supported."
        )
    raw = bytearray(ordering.n_bytes)
    ordering.read_bytes(0, memoryview(raw))
    tokens = np.frombuffer(raw, _INTEGERS[ordering.dtype])
    if not np.array_equal(np.sort(tokens), np.arange(text.n_vocab)):
        raise FormatError(f"{ordering.origin}: it must hold each of {text.n_vocab} tokens once.")
    return [
        Kv("gemmule.drafter.centroids", "array[f32]", centroids.to_float32().reshape(-1)),
        Kv("gemmule.drafter.clusters", "array[i32]", tokens.astype(np.int32)),
        Kv("gemmule.drafter.n_clusters_used", "u32", drafter.n_centroids_used),
    ]


def _find_drafter(
    folder: Path, config: ModelConfig, drafter: Path | str | None, warnings: list[str]
) -> Path | None:
    """The folder of the drafter, or None."""
    if drafter is None:
        return None
    if drafter != "auto":
        path = Path(drafter)
        if not path.is_dir():
            raise ModelNotFoundError(f"{path}: there is no such folder; it was given as the drafter.")
        return path
    if config.text.family != "gemma4":
        return None
    folder = folder.resolve()
    for exact in (folder / "assistant", folder.with_name(folder.name + "-assistant")):
        if (exact / "config.json").is_file():
            if (reason := _misfit(exact, config)) is None:
                return exact
            warnings.append(f"{exact}: lies beside the model but is not its drafter ({reason})")
    try:
        others = sorted(path for path in folder.parent.iterdir() if path.name.endswith("-assistant"))
    except OSError:
        others = []
    fitting = [path for path in others if (path / "config.json").is_file() and _misfit(path, config) is None]
    if len(fitting) > 1:
        names = " and ".join(path.name for path in fitting[:2])
        warnings.append(
            f"{folder}: {names} both fit as the drafter, so none is used; give one by its folder."
        )
        return None
    return fitting[0] if fitting else None


def _misfit(path: Path, target: ModelConfig) -> str | None:
    """Why the drafter in `path` is not the one of `target`, or None."""
    try:
        config = read_config(path)
        _check_drafter(config, target)
    except (FormatError, UnsupportedError) as error:
        return str(error)
    return None if config.unified == target.unified else f"its model_type is {config.model_type}"


def _check_drafter(config: ModelConfig, target: ModelConfig) -> None:
    """The drafter reads its target's keys and embeddings, so their sizes must agree."""
    drafter = config.drafter
    if drafter is None:
        raise UnsupportedError(f"{config.path}: model_type is {config.model_type}, which is not a drafter.")

    def compare(what: str, ours: object, wanted: object) -> None:
        if ours != wanted:
            raise FormatError(
                f"{config.path}: the drafter does not fit {target.path.parent.name}: "
                f"{what} is {ours}, the target has {wanted}."
            )

    if target.text.family != "gemma4":
        raise FormatError(f"{config.path}: a Gemma 4 drafter does not fit a {target.model_type} model.")
    compare("backbone_hidden_size", drafter.d_backbone, target.text.d_model)
    compare("vocab_size", config.text.n_vocab, target.text.n_vocab)
    for sliding, kind in ((True, "sliding"), (False, "full")):
        ours = config.text.of_kind(sliding=sliding)
        owners = [layer for layer in target.text.layers if layer.owns_kv and layer.sliding == sliding]
        if ours is None:
            continue
        if not owners:
            raise FormatError(f"{config.path}: the drafter has {kind} layers, the target has none with keys.")
        compare(f"head_dim of {kind} layers", ours.head_dim, owners[-1].head_dim)
        compare(f"num_key_value_heads of {kind} layers", ours.n_kv_heads, owners[-1].n_kv_heads)
        if sliding:
            compare("sliding_window", config.text.window, target.text.window)


def _check_same_vocabulary(folder: Path, own: Vocabulary, target: Vocabulary) -> None:
    for i, (a, b) in enumerate(zip(own.tokens, target.tokens, strict=True)):
        if a != b:
            raise FormatError(
                f"{folder}: token {i} is {a.decode()[:40]!r} in the drafter "
                f"and {b.decode()[:40]!r} in the target."
            )
