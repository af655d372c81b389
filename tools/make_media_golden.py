"""Write the golden results of prompts with images, sound and video under tests/golden.

The reference is transformers in float64 with eager attention on the tiny 12B of tiny_folder. Weights, ids,
pixels and samples follow from seeds, so the .npz holds results only: per case `<name>.logits`
float32 [n, n_vocab / 16] (every 16th), `<name>.media.i` float32 [m, d_model], and info (JSON: versions and
a checksum of the weights). The masks are those of the class's create_masks_for_generate: sliding layers see
the window AND (the past OR the own block), global layers the past. A plain forward() of gemma4_unified in
transformers 5.17 still uses older masks, which Google's code and the other Gemma 4 classes do not.

Usage: python tools/make_media_golden.py tests/golden
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny_folder

__all__ = [
    "CASES",
    "EVERY",
    "Case",
    "Frame",
    "Picture",
    "Prompt",
    "Setup",
    "Sound",
    "check_weights",
    "import_torchvision",
    "load_reference",
    "make_prompt",
    "patches",
    "run_reference",
    "write_checkpoint",
]

FORMAT_VERSION = 1
EVERY = 16  # logits kept of the golden runs; 40 of them still determine the 40 numbers behind them


@dataclass(frozen=True)
class Setup:
    """Sizes of the tiny 12B that a case may need otherwise. The default is tiny_folder's own."""

    window: int = 16
    n_positions: int = 20
    patch: int = 4  # a tile has 3 x 3 patches
    d_embed: int = 40  # width between tile and projection
    d_frame: int = 64
    seed: int = 1

    @property
    def side(self) -> int:
        return 3 * self.patch


@dataclass(frozen=True)
class Picture:
    """An image of rows x cols tiles. `bare`: without the markers around it. `look`: "noise", "flat" (one
    color a tile) or "faint" (two neighboring grays, where the epsilon of the norms matters).
    """

    rows: int
    cols: int
    bare: bool = False
    look: str = "noise"
    video: bool = False


def Frame(rows: int, cols: int) -> Picture:
    """A frame of a video: the same as an image but for its placeholder."""
    return Picture(rows, cols, video=True)


@dataclass(frozen=True)
class Sound:
    """Samples; `quiet` ones are small enough for the norm's epsilon to matter, and end in silence."""

    n_samples: int
    quiet: bool = False


Part = int | Picture | Sound  # int: so many tokens of text
Case = tuple[Part, ...]

CASES: dict[str, Case] = {
    "image": (5, Picture(4, 5), 7),
    "two-images": (3, Picture(2, 3), 2, Picture(3, 2), 6),
    "image-first": (Picture(3, 4, bare=True), 9),
    "image-last": (6, Picture(4, 4, bare=True)),
    "image-then-audio": (4, Picture(3, 3), 3, Sound(64 * 9 + 5), 5),
    "audio": (3, Sound(64 * 11 - 7), 6),
    "video": (2, Frame(2, 3), 6, Frame(2, 3), 6, Frame(2, 3), 4),
    "image-audio-video": (2, Picture(2, 4), 3, Sound(200), 2, Frame(2, 2), 6, Frame(2, 2), 4),
    "longer-than-window": (7, Picture(6, 6), 9),
    "strips": (3, Picture(1, 20), 2, Picture(20, 1), 3),
    "whole-budget": (5, Picture(7, 10), 3, Sound(64 * 20 - 3), 4),  # an image that no resize changes
    "flat-and-quiet": (
        2,
        Picture(2, 2, look="flat"),
        1,
        Picture(2, 3, look="faint"),
        1,
        Sound(64 * 4, quiet=True),
        3,
    ),
}


# -- inputs: integer arithmetic, the same everywhere --


def _mix(n: int, key: int) -> np.ndarray:
    """uint32 [n]: scrambled counters (xor and shift rounds with odd factors)."""
    x = np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B9 * (key + 1) & 0xFFFFFFFF)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> np.uint64(16))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return (x ^ (x >> np.uint64(15))).astype(np.uint32)


def _pixels(part: Picture, side: int, key: int) -> np.ndarray:
    """uint8 [rows * side, cols * side, 3]; noise lies on a slope, the first flat tile is black."""
    height, width = part.rows * side, part.cols * side
    if part.look == "flat":
        colors = (_mix(part.rows * part.cols * 3, key) >> np.uint32(24)).astype(np.uint8)
        colors[:3] = 0
        tiles = colors.reshape(part.rows, part.cols, 3)
        return np.ascontiguousarray(tiles.repeat(side, axis=0).repeat(side, axis=1))
    noise = (_mix(height * width * 3, key) >> np.uint32(25)).reshape(height, width, 3)  # 0 .. 127
    if part.look == "faint":
        return (100 + noise % 2).astype(np.uint8)
    y, x, _ = np.mgrid[:height, :width, :3]
    return (noise + (2 * x + 3 * y) % 129).astype(np.uint8)


def _samples(part: Sound, key: int) -> np.ndarray:
    """float32 [n] within -1 .. 1."""
    wave = _mix(part.n_samples, key).astype(np.float64) / 2**31 - 1
    if part.quiet:
        wave *= 2e-3
        wave[part.n_samples // 2 :] = 0
    return wave.astype(np.float32)


@dataclass(frozen=True)
class Prompt:
    """ids int32 [n], types int64 [n] (0 text, 1 image, 2 video, 3 audio), media (first row, part, array)."""

    ids: np.ndarray
    types: np.ndarray
    media: tuple[tuple[int, Part, np.ndarray], ...]


def make_prompt(case: Case, setup: Setup) -> Prompt:
    """Lay out a case: text, then begin marker, placeholders and end marker of each medium."""
    index = {token: i for i, token in enumerate(tiny_folder.vocabulary(gemma3=False)[0])}
    words = ("image", "audio", "video")
    text = np.array([i for token, i in index.items() if not any(word in token for word in words)], np.int32)
    ids: list[int] = []
    kinds: list[int] = []
    media: list[tuple[int, Part, np.ndarray]] = []
    for place, part in enumerate(case):
        if isinstance(part, int):
            drawn = text[_mix(part, 1000 + place) % np.uint32(len(text))].tolist()
            ids += [2, *drawn[1:]] if place == 0 else drawn
            kinds += [0] * part
            continue
        if isinstance(part, Picture):
            n, kind, name = part.rows * part.cols, 2 if part.video else 1, "image"
            numbers, bare = _pixels(part, setup.side, place), part.bare
        else:
            n, kind, name = -(-part.n_samples // setup.d_frame), 3, "audio"
            numbers, bare = _samples(part, place), False
        placeholder = index["<|video|>" if kind == 2 else f"<|{name}|>"]
        before, after = ([], []) if bare else ([index[f"<|{name}>"]], [index[f"<{name}|>"]])
        media.append((len(ids) + len(before), part, numbers))
        ids += [*before, *([placeholder] * n), *after]
        kinds += [0] * len(before) + [kind] * n + [0] * len(after)
    return Prompt(np.array(ids, np.int32), np.array(kinds, np.int64), tuple(media))


# -- weights --


def _shape(name: str, shape: tuple[int, ...], setup: Setup) -> tuple[int, ...]:
    tile = 3 * setup.side**2
    return {
        "model.vision_embedder.patch_ln1.weight": (tile,),
        "model.vision_embedder.patch_ln1.bias": (tile,),
        "model.vision_embedder.patch_dense.weight": (setup.d_embed, tile),
        "model.vision_embedder.patch_dense.bias": (setup.d_embed,),
        "model.vision_embedder.patch_ln2.weight": (setup.d_embed,),
        "model.vision_embedder.patch_ln2.bias": (setup.d_embed,),
        "model.vision_embedder.pos_embedding": (setup.n_positions, 2, setup.d_embed),
        "model.vision_embedder.pos_norm.weight": (setup.d_embed,),
        "model.vision_embedder.pos_norm.bias": (setup.d_embed,),
        "model.embed_vision.embedding_projection.weight": (shape[0], setup.d_embed),
        "model.embed_audio.embedding_projection.weight": (shape[0], setup.d_frame),
    }.get(name, shape)


def _weights(setup: Setup) -> Iterator[tuple[str, np.ndarray]]:
    for name, shape in tiny_folder.tensors("12b"):
        yield name, tiny_folder.values(name, _shape(name, shape, setup), gemma3=False, seed=setup.seed)


def check_weights(setup: Setup) -> int:
    """CRC-32 of all weights: tells whether this numpy draws the numbers the results were made with."""
    crc = 0
    for _, array in _weights(setup):
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def write_checkpoint(folder: Path, setup: Setup, dtype: str = "F32") -> Path:
    """Write the tiny 12B with the sizes of `setup`, with numpy alone."""
    tiny_folder.write_folder(folder, "12b", dtype=dtype, seed=setup.seed)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"sliding_window": setup.window, "max_position_embeddings": 4096}
    config["vision_config"] |= {
        "patch_size": setup.patch,
        "mm_embed_dim": setup.d_embed,
        "mm_posemb_size": setup.n_positions,
        "output_proj_dims": setup.d_embed,
    }
    config["audio_config"]["audio_embed_dim"] = setup.d_frame
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    entries = {name: (dtype, tiny_folder.round_to(array, dtype)) for name, array in _weights(setup)}
    tiny_folder.write_weights(folder, entries)
    return folder


# -- transformers --


def load_reference(folder: Path) -> Any:
    """The checkpoint in float64, as transformers reads it; `.float()` gives the usual float32 model."""
    import torch
    import transformers

    import_torchvision()  # before transformers tries to
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    return cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval().double()


@contextmanager
def _all_double() -> Iterator[None]:
    """transformers rounds to float32 in norms, rotations and softmax; here that means float64."""
    import torch

    functional = torch.nn.functional
    saved = torch.float, torch.Tensor.float, functional.softmax

    def softmax(x: Any, dim: int, dtype: Any = None) -> Any:
        return saved[2](x, dim=dim)

    torch.float, torch.Tensor.float, functional.softmax = torch.float64, torch.Tensor.double, softmax
    try:
        yield
    finally:
        torch.float, torch.Tensor.float, functional.softmax = saved


_kept: list[Any] = []  # operators vanish with the object that declared them


def import_torchvision() -> bool:
    """Whether torchvision is installed. A build for another torch lacks its compiled operators; what is used
    here calls none of them, so their names are enough.
    """
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _kept[0].define(name + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
    return True


def _image_processing() -> Any:
    """transformers' module of the image processor. It imports torchvision, though what is used here does
    not call it: where that is not installed an empty module stands in for it during the import.
    """
    name = "transformers.models.gemma4_unified.image_processing_gemma4_unified"
    if name in sys.modules or import_torchvision():
        return importlib.import_module(name)
    paths = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    for path in paths:
        sys.modules[path] = types.ModuleType(path)
    sys.modules[paths[-1]].functional = types.SimpleNamespace(InterpolationMode=object)  # type: ignore[attr-defined]
    try:
        return importlib.import_module(name)
    finally:
        for path in paths:
            del sys.modules[path]


def patches(pixels: np.ndarray, patch: int) -> tuple[Any, Any]:
    """uint8 [H, W, 3] -> tiles float32 [n, 27 * patch^2] and their places int64 [n, 2] (x, y), cut by the
    functions of transformers' own image processor.
    """
    import torch

    source = _image_processing()
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() * (1 / 255)
    small = source.convert_image_to_patches(image, patch)
    grid = torch.meshgrid(
        torch.arange(image.shape[2] // patch), torch.arange(image.shape[1] // patch), indexing="xy"
    )
    places = torch.stack(grid, dim=-1).reshape(len(small), 2)
    tiles, corners = source.patches_merge(small[None], places[None], len(small) // 9)
    return tiles[0], corners[0]


def _stack_pictures(prompt: Prompt, patch: int, *, video: bool) -> tuple[Any, Any]:
    """Tiles and places of all images [n, most tiles, ...], padded with 0 and -1 as the processor does."""
    import torch

    pairs = [
        patches(numbers, patch)
        for _, part, numbers in prompt.media
        if isinstance(part, Picture) and part.video == video
    ]
    if not pairs:
        return None, None
    pad = torch.nn.utils.rnn.pad_sequence
    tiles = pad([tile for tile, _ in pairs], batch_first=True)
    places = pad([place for _, place in pairs], batch_first=True, padding_value=-1)
    return tiles, places


def _stack_sounds(prompt: Prompt, d_frame: int) -> tuple[Any, Any]:
    """Frames [n, most frames, d_frame] and their mask, as the feature extractor gives."""
    from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import (
        Gemma4UnifiedAudioFeatureExtractor,
    )

    waves = [numbers for _, part, numbers in prompt.media if isinstance(part, Sound)]
    if not waves:
        return None, None
    extractor = Gemma4UnifiedAudioFeatureExtractor(feature_size=d_frame, audio_samples_per_token=d_frame)
    out = extractor(waves, return_tensors="pt")
    return out["input_features"], out["input_features_mask"]


Masks = Callable[[dict[str, Any]], dict[str, Any]]


def run_reference(
    model: Any, prompt: Prompt, *, masks: Masks = lambda made: made
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [n, n_vocab] of every position and the embeddings [m, d_model] of each medium, in the precision
    of the model.

    `masks` may change the two masks {"sliding_attention", "full_attention"}, float [1, 1, n, n]: 0 or -max.
    """
    import torch

    with _all_double() if model.dtype == torch.float64 else nullcontext():
        return _run(model, prompt, masks)


def _run(model: Any, prompt: Prompt, masks: Masks) -> tuple[np.ndarray, list[np.ndarray]]:
    import torch

    config = model.config
    patch, d_frame = config.vision_config.patch_size, config.audio_config.audio_embed_dim
    images, image_places = _stack_pictures(prompt, patch, video=False)
    frames, frame_places = _stack_pictures(prompt, patch, video=True)
    features, feature_mask = _stack_sounds(prompt, d_frame)
    ids = torch.from_numpy(prompt.ids.astype(np.int64))[None]
    types_ = torch.from_numpy(prompt.types)[None]
    position_ids = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        made = model.create_masks_for_generate(
            config, model.get_input_embeddings()(ids), None, None, position_ids, mm_token_type_ids=types_
        )
        result = model(
            input_ids=ids,
            pixel_values=images,
            image_position_ids=image_places,
            pixel_values_videos=None if frames is None else frames[None],
            video_position_ids=None if frames is None else frame_places[None],
            input_features=features,
            input_features_mask=feature_mask,
            mm_token_type_ids=types_,
            attention_mask=masks(made),
            use_cache=False,
        )
        embeddings = _embeddings(model, prompt, (images, image_places), (frames, frame_places), features)
    return result.logits[0].numpy(), embeddings


def _embeddings(
    model: Any, prompt: Prompt, images: Sequence[Any], frames: Sequence[Any], features: Any
) -> list[np.ndarray]:
    """[m, d_model] of each medium in the order of the prompt."""
    rows: dict[int, list[Any]] = {1: [], 2: [], 3: []}
    if images[0] is not None:
        rows[1] = list(model.model.get_image_features(*images, return_dict=True).pooler_output)
    if frames[0] is not None:
        whole = model.model.get_video_features(
            frames[0][None], frames[1][None], return_dict=True
        ).pooler_output[0]
        rows[2] = list(whole.split([int(n) for n in (frames[1] >= 0).all(-1).sum(-1)]))
    if features is not None:
        rows[3] = list(model.model.get_audio_features(features, None, return_dict=True).pooler_output)
    out: list[np.ndarray] = []
    for start, part, numbers in prompt.media:
        found = rows[int(prompt.types[start])].pop(0).numpy()
        d_frame = model.config.audio_config.audio_embed_dim
        n = -(-len(numbers) // d_frame) if isinstance(part, Sound) else len(found)
        out.append(found[:n])
    return out


def main() -> None:
    import tempfile

    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setup = Setup()
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = load_reference(write_checkpoint(Path(temporary) / "12b", setup))
        for name, case in CASES.items():
            logits, media = run_reference(model, make_prompt(case, setup))
            arrays[f"{name}.logits"] = logits[:, ::EVERY].astype(np.float32)
            arrays |= {f"{name}.media.{i}": rows.astype(np.float32) for i, rows in enumerate(media)}
    info = {
        "format_version": FORMAT_VERSION,
        "command": "python tools/make_media_golden.py tests/golden",
        "weights_crc32": check_weights(setup),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    path = args.folder / "tiny-gemma4-12b-media.npz"
    np.savez_compressed(path, allow_pickle=False, info=np.array(json.dumps(info)), **arrays)
    print(f"{path}: {path.stat().st_size} bytes, {json.dumps(info)}")


if __name__ == "__main__":
    main()
