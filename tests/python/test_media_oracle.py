"""Live comparison of images, sound and video with transformers, on tiny 12B models of other sizes and seeds.

Needs torch and transformers >= 5.17 (marker oracle); the tests of the processors need torchvision as well.
The reference is transformers in float64. Embeddings must agree to 5e-6 of the largest of their row, logits to
1e-4, or to four times the distance of transformers' own float32 run where these random models amplify
rounding more than that (long blocks). What such bounds are worth is measured here too: every wrong mask,
order or scale of _WRONG moves the reference by a hundred times as much or more.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import gemmule
from gemmule import _core
from gemmule._convert.gguf_source import read_header, sections_of
from project_modules import load_module

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.17")

media = load_module("tools", "make_media_golden")
Picture, Frame, Sound = media.Picture, media.Frame, media.Sound

BOUND_MEDIA, BOUND_LOGITS = 5e-6, 1e-4
SETUPS = {
    "tiny": media.Setup(),
    "seed": media.Setup(seed=5),
    "window-5": media.Setup(window=5, seed=2),
    "narrow": media.Setup(d_embed=24, seed=3),
    "wide": media.Setup(d_embed=72, n_positions=33, window=32, seed=4),
    "true-tiles": media.Setup(patch=16, d_frame=640, seed=6),  # 48 x 48 pixels and 40 ms, as in the 12B
}


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    scale = np.abs(expected).max(axis=1)
    return float((np.abs(value - expected).max(axis=1) / np.where(scale == 0, 1, scale)).max())


def _section(path: Path) -> _core.GgufFile:
    section = next(s for s in sections_of(read_header(path)) if s.name == "mmproj")
    return _core.GgufFile(str(path), offset=section.offset, size=section.size)


def _embed(embedder: _core.MediaEmbedder, prompt: Any) -> list[tuple[int, np.ndarray, bool]]:
    out = []
    for start, part, numbers in prompt.media:
        is_sound = isinstance(part, Sound)
        rows = embedder.embed_audio(numbers) if is_sound else embedder.embed_image(numbers)
        out.append((start, np.asarray(rows), not is_sound))
    return out


def _reference(tmp_path: Path, setup: Any, dtype: str = "F32") -> Any:
    return media.load_reference(media.write_checkpoint(tmp_path / "checkpoint", setup, dtype))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """(model of transformers, our file) of a setup."""

    def build(setup: Any, dtype: str = "F32") -> tuple[Any, Path]:
        path = tmp_path / "out.gguf"
        reference = _reference(tmp_path, setup, dtype)
        gemmule.convert(tmp_path / "checkpoint", path, type=dtype)
        return reference, path

    return build


Make = Callable[..., tuple[Any, Path]]


def _scaled(case: Any, setup: Any) -> Any:
    """The case with sounds of the same number of frames."""
    return tuple(
        replace(part, n_samples=part.n_samples * setup.d_frame // 64) if isinstance(part, Sound) else part
        for part in case
    )


class _Comparison:
    """Errors of our embeddings and logits on prompts of one model, against float64."""

    def __init__(self, reference: Any, path: Path, **options: Any) -> None:
        self._reference, self._single = reference, copy.deepcopy(reference).float()
        self._model = _core.Model(str(path), **options)
        self._embedder = _core.MediaEmbedder(self._model, _section(path))
        self.worst = [0.0, 0.0, 0.0]

    def check(self, prompt: Any, what: str) -> np.ndarray:
        logits, embeddings = media.run_reference(self._reference, prompt)
        items = _embed(self._embedder, prompt)
        session = self._model.session(n_ctx=len(prompt.ids), kv_type="f32")
        found = np.asarray(session.append_logits(prompt.ids, media=items))
        pairs = zip([rows for _, rows, _ in items], embeddings, strict=True)
        of_media = max(_error(rows, expected) for rows, expected in pairs)
        of_logits = _error(found, logits)
        of_single = _error(media.run_reference(self._single, prompt)[0], logits)
        self.worst = [max(pair) for pair in zip(self.worst, (of_media, of_logits, of_single), strict=True)]
        assert of_media < BOUND_MEDIA, what
        assert of_logits < max(BOUND_LOGITS, 4 * of_single), what
        return found

    def __str__(self) -> str:
        a, b, c = self.worst
        return f"embeddings {a:.1e}, logits {b:.1e} (transformers in float32: {c:.1e})"


# -- numbers --


@pytest.mark.parametrize("name", SETUPS)
def test_every_case_matches(make: Make, name: str) -> None:
    setup = SETUPS[name]
    comparison = _Comparison(*make(setup), n_ubatch=32)
    for case_name, case in media.CASES.items():
        comparison.check(media.make_prompt(_scaled(case, setup), setup), case_name)
    print(f"{name}: {comparison}")


@pytest.mark.parametrize(("rows", "cols", "before"), [(28, 40, 37), (35, 32, 1100), (8, 33, 1000)])
def test_largest_image_and_the_true_window(make: Make, rows: int, cols: int, before: int) -> None:
    """A block of 1120 tokens is longer than the window of 1024 and than any step of the text."""
    setup = media.Setup(window=1024, n_positions=64)
    reference, path = make(setup)
    prompt = media.make_prompt((before, Picture(rows, cols), 40, Picture(3, 3), 5), setup)
    comparison = _Comparison(reference, path, n_ubatch=64)
    found = comparison.check(prompt, "")
    print(f"{rows} x {cols} after {before}: {comparison}")
    other = _core.Model(str(path), n_ubatch=256, n_threads=1)
    items = _embed(_core.MediaEmbedder(other, _section(path)), prompt)
    session = other.session(n_ctx=len(prompt.ids), kv_type="f32")
    assert session.append_logits(prompt.ids, media=items).tobytes() == found.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_checkpoints_match(make: Make, dtype: str) -> None:
    setup = media.Setup(seed=7)
    comparison = _Comparison(*make(setup, dtype))
    for case in ("image-audio-video", "longer-than-window", "flat-and-quiet"):
        comparison.check(media.make_prompt(media.CASES[case], setup), case)
    print(f"{dtype}: {comparison}")


def test_greedy_continuation_is_that_of_transformers(make: Make) -> None:
    """Tokens written after the media see them through the cache. Placeholders are not drawn."""
    setup = media.Setup(seed=8)
    reference, path = make(setup)
    prompt = media.make_prompt(media.CASES["image-audio-video"], setup)
    vocabulary = media.tiny_folder.vocabulary(gemma3=False)[0]
    banned = [i for i, token in enumerate(vocabulary) if "|>" in token or "<|" in token]

    def best(row: np.ndarray) -> int:
        row = row.copy()
        row[banned] = -np.inf
        return int(row.argmax())

    expected: list[int] = []
    while len(expected) < 24:
        longer = media.Prompt(
            np.array([*prompt.ids.tolist(), *expected], np.int32),
            np.pad(prompt.types, (0, len(expected))),
            prompt.media,
        )
        expected.append(best(media.run_reference(reference, longer)[0][-1]))
    model = _core.Model(str(path))
    items = _embed(_core.MediaEmbedder(model, _section(path)), prompt)
    session = model.session(n_ctx=256, kv_type="f32")
    session.append(prompt.ids, media=items)
    found: list[int] = []
    while len(found) < 24:
        found.append(best(np.asarray(session.logits())))
        session.append(np.array(found[-1:], np.int32))
    assert found == expected
    assert len(set(found)) > 3


# -- what the bounds see --


def _blocks(types: np.ndarray) -> np.ndarray:
    """int64 [n]: the number of the block of each position, -1 outside."""
    is_block = (types == 1) | (types == 2)
    starts = is_block & ~np.concatenate([[False], is_block[:-1]])
    return np.where(is_block, np.cumsum(starts), -1)


def _mask(allowed: np.ndarray) -> Any:
    """bool [n, n] -> float [1, 1, n, n] as transformers adds it to the scores."""
    lowest = torch.finfo(torch.float32).min
    return torch.where(torch.from_numpy(allowed), 0.0, lowest).double()[None, None]


def _wrong_masks(kind: str, types: np.ndarray, window: int) -> dict[str, Any]:
    n = len(types)
    q, k = np.mgrid[:n, :n]
    blocks = _blocks(types)
    same = (blocks[q] == blocks[k]) & (blocks[q] >= 0)
    if kind == "split":  # a step boundary in the middle of each block
        half = np.zeros(n, bool)
        for block in range(1, int(blocks.max()) + 1):
            rows = np.flatnonzero(blocks == block)
            half[rows[len(rows) // 2 :]] = True
        same &= half[q] == half[k]
    elif kind == "audio-too":
        audio = types == 3
        same |= audio[q] & audio[k]
    elif kind == "one-block":
        inside = blocks >= 0
        same = inside[q] & inside[k]
    past, near = k <= q, k > q - window
    sliding = near & (past if kind == "causal" else past | same)
    if kind == "no-lower-bound":
        sliding = (near & past) | same
    if kind == "window-off-by-one":
        sliding = (k >= q - window) & (past | same)
    full = past | same if kind == "global" else past
    return {"sliding_attention": _mask(sliding), "full_attention": _mask(full)}


def test_masks_of_the_reference_are_those_of_the_family(tmp_path: Path) -> None:
    """Window and (past or own block) in sliding layers, past in global ones: what _WRONG starts from."""
    setup = media.Setup(window=5)
    reference = _reference(tmp_path, setup)
    prompt = media.make_prompt(media.CASES["image-audio-video"], setup)
    expected = _wrong_masks("none", prompt.types, setup.window)
    found: dict[str, Any] = {}

    def keep(made: dict[str, Any]) -> dict[str, Any]:
        found.update(made)
        return made

    media.run_reference(reference, prompt, masks=keep)
    for name, mask in expected.items():
        assert ((found[name] >= 0) == (mask >= 0)).all(), name


_WRONG = {
    "causal": "longer-than-window",
    "global": "longer-than-window",
    "split": "longer-than-window",
    "no-lower-bound": "longer-than-window",
    "window-off-by-one": "longer-than-window",
    "one-block": "two-images",
    "audio-too": "image-audio-video",
}


@pytest.mark.parametrize("kind", _WRONG)
def test_wrong_masks_are_seen(tmp_path: Path, kind: str) -> None:
    setup = SETUPS["tiny"]
    reference = _reference(tmp_path, setup)
    prompt = media.make_prompt(media.CASES[_WRONG[kind]], setup)
    right, _ = media.run_reference(reference, prompt)
    wrong, _ = media.run_reference(
        reference, prompt, masks=lambda _: _wrong_masks(kind, prompt.types, setup.window)
    )
    factor = _error(wrong, right) / BOUND_LOGITS
    print(f"{kind}: {factor:.0f} times the bound")
    assert factor > 100


def _wrong_embedder(reference: Any, kind: str) -> None:
    """Change one step of the embedder in place."""
    vision = reference.model.embed_vision
    width = reference.config.text_config.hidden_size
    if kind == "scaled":
        for part in (vision.multimodal_embedder, reference.model.embed_audio):
            part.register_forward_hook(lambda _m, _a, out: out * math.sqrt(width))
    elif kind == "x-y-swapped":
        vision.pos_embedding.data = vision.pos_embedding.data.flip(1)
    elif kind == "position-after-norm":
        norm, vision.pos_norm = vision.pos_norm, torch.nn.Identity()
        vision.patch_ln2.register_forward_hook(lambda _m, _a, out: norm(out))
    elif kind == "planar-tiles":
        side = math.isqrt(vision.patch_ln1.normalized_shape[0] // 3)
        vision.patch_ln1.register_forward_pre_hook(
            lambda _m, args: (args[0].unflatten(-1, (side, side, 3)).movedim(-1, -3).flatten(-3),)
        )
    elif kind == "rms-for-layer-norm":
        for norm in (vision.patch_ln1, vision.patch_ln2, vision.pos_norm):
            norm.register_forward_hook(
                lambda m, args, _out: (
                    args[0] * torch.rsqrt(args[0].pow(2).mean(-1, keepdim=True) + m.eps) * m.weight + m.bias
                )
            )
    elif kind == "no-last-norm":
        vision.multimodal_embedder.embedding_pre_projection_norm = torch.nn.Identity()
    elif kind == "epsilon-1e-6":
        for norm in (vision.patch_ln1, vision.patch_ln2, vision.pos_norm):
            norm.eps = 1e-6
    elif kind == "audio-epsilon-1e-5":
        reference.model.embed_audio.embedding_pre_projection_norm.eps = 1e-5
    elif kind == "bytes-over-256":
        vision.patch_ln1.register_forward_pre_hook(lambda _m, args: (args[0] * (255 / 256),))


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("scaled", "image-then-audio"),
        ("x-y-swapped", "image"),
        ("position-after-norm", "image"),
        ("planar-tiles", "image"),
        ("rms-for-layer-norm", "image"),
        ("no-last-norm", "image"),
        ("epsilon-1e-6", "flat-and-quiet"),
        ("audio-epsilon-1e-5", "flat-and-quiet"),
        ("bytes-over-256", "flat-and-quiet"),
    ],
)
def test_wrong_embedders_are_seen(tmp_path: Path, kind: str, case: str) -> None:
    setup = SETUPS["tiny"]
    reference = _reference(tmp_path, setup)
    prompt = media.make_prompt(media.CASES[case], setup)
    logits, right = media.run_reference(reference, prompt)
    _wrong_embedder(reference, kind)
    wrong_logits, wrong = media.run_reference(reference, prompt)
    factor = max(_error(a, b) for a, b in zip(wrong, right, strict=True)) / BOUND_MEDIA
    print(f"{kind}: {factor:.0f} times the bound, logits {_error(wrong_logits, logits) / BOUND_LOGITS:.0f}")
    assert factor > 100


# -- llama.cpp --


class _Text(ctypes.Structure):
    _fields_ = [
        ("text", ctypes.c_char_p),
        ("n_bytes", ctypes.c_size_t),
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
    ]


class _Mtmd:
    """The media functions of the llama.cpp inside xllamacpp, on the split files of a bundle."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        from gemmule._bench import llamacpp

        text, mmproj = gemmule.split(bundle, folder)
        self.engine = llamacpp.LlamaCpp(text, n_ctx=512, n_threads=1, kv_type="f32")
        self._lib = ctypes.CDLL(importlib.util.find_spec("xllamacpp.xllamacpp").origin)  # type: ignore[union-attr,arg-type]
        block = llamacpp._Block
        params = self._call("mtmd_context_params_default", block)()
        init = self._call("mtmd_init_from_file", _P, ctypes.c_char_p, _P, block)
        self._ctx = init(str(mmproj).encode(), self.engine._model, params)
        assert self._ctx
        self.marker = self._call("mtmd_default_marker", ctypes.c_char_p)().decode()

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._lib, name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def chunks(self, text: str, media_: list[np.ndarray]) -> Any:
        """Pieces of a text with markers: its tokens, and the media in its places."""
        bitmaps = []
        for x in media_:
            if x.dtype == np.uint8:
                make = self._call("mtmd_bitmap_init", _P, ctypes.c_uint32, ctypes.c_uint32, _P)
                bitmaps.append(make(x.shape[1], x.shape[0], x.ctypes.data))
            else:
                make = self._call("mtmd_bitmap_init_from_audio", _P, ctypes.c_size_t, _P)
                bitmaps.append(make(len(x), x.ctypes.data))
        out = self._call("mtmd_input_chunks_init", _P)()
        data = text.encode()
        tokenize = self._call(
            "mtmd_tokenize", ctypes.c_int32, _P, _P, ctypes.POINTER(_Text), _PP, ctypes.c_size_t
        )
        whole = ctypes.byref(_Text(data, len(data), True, True))
        assert tokenize(self._ctx, out, whole, (_P * len(bitmaps))(*bitmaps), len(bitmaps)) == 0
        return out

    def pieces(self, chunks: Any) -> list[tuple[int, list[int] | int, Any]]:
        """(kind, ids of a text or number of soft tokens, chunk): kind 0 text, 1 image, 2 audio."""
        out: list[tuple[int, list[int] | int, Any]] = []
        for i in range(self._call("mtmd_input_chunks_size", ctypes.c_size_t, _P)(chunks)):
            chunk = self._call("mtmd_input_chunks_get", _P, _P, ctypes.c_size_t)(chunks, i)
            kind = self._call("mtmd_input_chunk_get_type", ctypes.c_int, _P)(chunk)
            if kind == 0:
                n = ctypes.c_size_t()
                read = self._call(
                    "mtmd_input_chunk_get_tokens_text",
                    ctypes.POINTER(ctypes.c_int32),
                    _P,
                    ctypes.POINTER(ctypes.c_size_t),
                )
                ids = read(chunk, ctypes.byref(n))
                out.append((kind, ids[: n.value], chunk))
            else:
                count = self._call("mtmd_input_chunk_get_n_tokens", ctypes.c_size_t, _P)(chunk)
                out.append((kind, count, chunk))
        return out

    def embed(self, chunk: Any, shape: tuple[int, int]) -> np.ndarray:
        assert self._call("mtmd_encode_chunk", ctypes.c_int32, _P, _P)(self._ctx, chunk) == 0
        found = self._call("mtmd_get_output_embd", ctypes.POINTER(ctypes.c_float), _P)(self._ctx)
        return np.ctypeslib.as_array(found, shape=shape).copy()

    def last_logits(self, chunks: Any) -> np.ndarray:
        integer = ctypes.c_int32
        run = self._call(
            "mtmd_helper_eval_chunks", integer, _P, _P, _P, integer, integer, integer, ctypes.c_bool, _P
        )
        n_past = integer()
        assert run(self._ctx, self.engine._ctx, chunks, 0, 0, 512, True, ctypes.byref(n_past)) == 0
        row = self.engine._lib.llama_get_logits_ith(self.engine._ctx, -1)
        return np.ctypeslib.as_array(row, shape=(self.engine.n_vocab,)).copy()


_P, _PP = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)


@pytest.mark.parametrize("patch", [4, 16])
def test_llama_cpp_agrees_from_the_same_file(make: Make, tmp_path: Path, patch: int) -> None:
    """Three ways to the same numbers. llama.cpp rounds attention to f16 in places (1.5e-3 here); each wrong
    mask is at least ten times as far from it. Its images keep their size from 70 to 1120 tokens.
    """
    pytest.importorskip("xllamacpp")
    setup = media.Setup(patch=patch, d_frame=640, n_positions=64)
    reference, path = make(setup)
    (tmp_path / "parts").mkdir()
    llama = _Mtmd(path, tmp_path / "parts")
    parts = (Picture(9, 10), 3, Sound(640 * 7 - 100), 2, Picture(8, 9))
    drawn = media.make_prompt(parts, setup).media
    text = f"Hello the user {llama.marker} and {llama.marker} that {llama.marker} what is"
    chunks = llama.chunks(text, [numbers for _, _, numbers in drawn])
    index = {token: i for i, token in enumerate(media.tiny_folder.vocabulary(gemma3=False)[0])}
    ids: list[int] = []
    kinds: list[int] = []
    placed, of_llama = [], []
    for kind, content, chunk in llama.pieces(chunks):
        if isinstance(content, list):
            ids += content
            kinds += [0] * len(content)
            continue
        _, part, numbers = drawn[len(placed)]
        placed.append((len(ids), part, numbers))
        ids += [index["<|image|>" if kind == 1 else "<|audio|>"]] * content
        kinds += [1 if kind == 1 else 3] * content
        of_llama.append(llama.embed(chunk, (content, 40)))
    prompt = media.Prompt(np.array(ids, np.int32), np.array(kinds), tuple(placed))
    logits, embeddings = media.run_reference(reference, prompt)
    model = _core.Model(str(path))
    items = _embed(_core.MediaEmbedder(model, _section(path)), prompt)
    session = model.session(n_ctx=512, kv_type="f32")
    session.append(prompt.ids, media=items)
    for ours, theirs, expected in zip([rows for _, rows, _ in items], of_llama, embeddings, strict=True):
        assert _error(theirs, expected) < BOUND_MEDIA
        assert _error(ours, theirs) < BOUND_MEDIA
    last = llama.last_logits(chunks)[None]
    assert _error(np.asarray(session.logits())[None], logits[-1:]) < BOUND_LOGITS
    right = _error(last, logits[-1:])
    wrong = {
        kind: _error(
            last,
            media.run_reference(
                reference, prompt, masks=lambda _, kind=kind: _wrong_masks(kind, prompt.types, setup.window)
            )[0][-1:],
        )
        for kind in _WRONG
    }
    print(f"llama.cpp: {right:.2e} from the right mask, {min(wrong.values()):.2e} from the nearest wrong one")
    assert right < 4e-3
    assert min(wrong.values()) > 10 * right, wrong


# -- ids: transformers' processor --

# Content parts as in the official template; what it does beyond that is the business of test_chat_template.
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text | trim }}{% else %}{{ '<|' + part.type + '|>' }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
_NAMES = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


def _processor(folder: Path) -> Any:
    """The processor of the 12B on the tiny vocabulary."""
    import transformers
    from transformers.models.gemma4_unified import (
        feature_extraction_gemma4_unified,
        image_processing_gemma4_unified,
        processing_gemma4_unified,
        video_processing_gemma4_unified,
    )

    return processing_gemma4_unified.Gemma4UnifiedProcessor(
        feature_extraction_gemma4_unified.Gemma4UnifiedAudioFeatureExtractor(),
        image_processing_gemma4_unified.Gemma4UnifiedImageProcessor(),
        transformers.AutoTokenizer.from_pretrained(folder, extra_special_tokens=_NAMES),
        video_processing_gemma4_unified.Gemma4UnifiedVideoProcessor(),
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, gemmule.Model]]:
    """(transformers' processor, our model) of a tiny 12B with true tiles and frames."""
    if not media.import_torchvision():
        pytest.skip("torchvision, which transformers' processors need, is not installed")
    folder = tmp_path_factory.mktemp("chat")
    media.write_checkpoint(folder / "12b", media.Setup(patch=16, d_frame=640, n_positions=1120))
    config = json.loads((folder / "12b" / "processor_config.json").read_text())
    config["image_processor"]["patch_size"] = 16
    (folder / "12b" / "processor_config.json").write_text(json.dumps(config))
    (folder / "12b" / "chat_template.jinja").write_text(_TEMPLATE)
    gemmule.convert(folder / "12b", folder / "chat.gguf", type="F32")
    with gemmule.Model(folder / "chat.gguf", n_ctx=4096, kv_type="f32") as model:
        yield _processor(folder / "12b"), model


def _expected_ids(processor: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    plain = [
        m | {"content": [p if p["type"] == "text" else {"type": p["type"]} for p in m["content"]]}
        for m in messages
    ]
    text = processor.apply_chat_template(
        plain, chat_template=_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    found: dict[str, list[Any]] = {"images": [], "audio": [], "videos": []}
    for part in (part for m in messages for part in m["content"]):
        if part["type"] != "text":
            found["audio" if part["type"] == "audio" else part["type"] + "s"].append(part[part["type"]])
    given = {key: value for key, value in found.items() if value}
    out = processor(text=text, add_special_tokens=False, return_tensors="np", **given, **options)
    return [int(i) for i in out["input_ids"][0]]


def _message(*parts: Any) -> dict[str, Any]:
    kinds = {str: "text", gemmule.Image: "image", gemmule.Audio: "audio", gemmule.Video: "video"}
    content = []
    for part in parts:
        kind = kinds[type(part)]
        content.append({"type": kind, kind: part})
    return {"role": "user", "content": content}


def _sources(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with arrays and PIL pictures in place of our parts."""

    def source(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        if kind == "text":
            return part
        src = part[kind].src
        return {"type": kind, kind: PIL.Image.fromarray(src) if kind == "image" else src}

    return [m | {"content": [source(part) for part in m["content"]]} for m in messages]


SIZES = [(1, 1), (47, 49), (48, 48), (480, 640), (1080, 1920), (100, 4000), (3000, 90), (20, 2000), (7, 2500)]


@pytest.mark.parametrize("tokens", [70, 140, 280, 560, 1120])
def test_ids_of_images(chat: tuple[Any, gemmule.Model], tokens: int) -> None:
    processor, model = chat
    for height, width in SIZES:
        pixels = np.full((height, width, 3), 7, np.uint8)
        messages = [_message("what is ", gemmule.Image(pixels), " that?\n")]
        expected = _expected_ids(processor, _sources(messages), max_soft_tokens=tokens)
        found = model.render(messages, image_tokens=tokens)
        assert list(found.tokens) == expected, (height, width)
        assert found.count.image == expected.count(processor.image_token_id)


@pytest.mark.parametrize("n_samples", [1, 639, 640, 641, 16000, 123_457, 480_000])
def test_ids_of_sounds(chat: tuple[Any, gemmule.Model], n_samples: int) -> None:
    processor, model = chat
    messages = [_message("hear", gemmule.Audio(np.full(n_samples, 0.1, np.float32)), "the user")]
    found = model.render(messages)
    assert list(found.tokens) == _expected_ids(processor, _sources(messages))
    assert found.count.audio == -(-n_samples // 640)


def test_ids_of_a_conversation(chat: tuple[Any, gemmule.Model]) -> None:
    processor, model = chat
    image, sound = np.zeros((90, 160, 3), np.uint8), np.zeros(5000, np.float32)
    messages = [
        _message(gemmule.Image(image), gemmule.Image(image[:40]), "  both? "),
        {"role": "assistant", "content": [{"type": "text", "text": "the model is hello"}]},
        _message("and", gemmule.Audio(sound), gemmule.Image(image)),
    ]
    expected = _expected_ids(processor, _sources(messages))
    assert list(model.render(messages).tokens) == expected


def test_logits_of_a_chat(chat: tuple[Any, gemmule.Model], tmp_path: Path) -> None:
    """From messages to numbers: ids by transformers' processor, logits by its model."""
    processor, model = chat
    setup = media.Setup(patch=16, d_frame=640, n_positions=1120)
    drawn = media.make_prompt((Picture(7, 10), Sound(640 * 20 - 3), Picture(5, 14)), setup).media
    first, sound, second = (numbers for _, _, numbers in drawn)
    messages = [
        _message("what is", gemmule.Image(first, tokens=70), gemmule.Audio(sound)),
        {"role": "assistant", "content": [{"type": "text", "text": "the model is hello"}]},
        _message(gemmule.Image(second, tokens=70), "and that?"),
    ]
    expected = np.array(_expected_ids(processor, _sources(messages), max_soft_tokens=70), np.int32)
    rendered = model.render(messages)
    assert list(rendered.tokens) == expected.tolist()
    types = np.zeros(len(expected), np.int64)
    types[expected == processor.image_token_id] = 1
    types[expected == processor.audio_token_id] = 3
    starts = np.flatnonzero((types != 0) & (np.roll(types, 1) == 0))
    placed = tuple((int(at), part, numbers) for at, (_, part, numbers) in zip(starts, drawn, strict=True))
    reference = _reference(tmp_path, setup)
    logits, _ = media.run_reference(reference, media.Prompt(expected, types, placed))
    error = _error(model.logits(rendered, all=True), logits)
    print(f"chat: logits {error:.1e}")
    assert error < BOUND_LOGITS


@pytest.mark.parametrize(
    ("n_source", "rate", "frames", "before"),
    [(50, 10, 4, "see"), (90, 1, 8, "in 1 "), (40, 25, 32, ""), (200, 2, 5, "a:\n\n"), (64, 30, 64, "x  y")],
)
def test_ids_of_videos(
    chat: tuple[Any, gemmule.Model], tmp_path: Path, n_source: int, rate: int, frames: int, before: str
) -> None:
    av = pytest.importorskip("av")
    from transformers.video_utils import VideoMetadata

    processor, model = chat
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(n_source):
            picture = np.full((96, 160, 3), i, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    messages = [_message(before, gemmule.Video(path, frames=frames, sound=False), "why?")]
    if not before:
        messages[0]["content"].pop(0)
    theirs = [
        m
        | {
            "content": [
                part
                if part["type"] == "text"
                else {"type": "video", "video": np.zeros((n_source, 96, 160, 3), np.uint8)}
                for part in m["content"]
            ]
        }
        for m in messages
    ]
    metadata = VideoMetadata(total_num_frames=n_source, fps=float(rate), duration=n_source / rate)
    expected = _expected_ids(processor, theirs, num_frames=frames, video_metadata=[metadata])
    found = model.render(messages)
    assert list(found.tokens) == expected
    assert found.count.video == expected.count(processor.video_token_id)
