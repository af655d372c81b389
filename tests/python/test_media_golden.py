"""Prompts with images, sound and video against stored float64 results of transformers, and equal bits.

The tiny 12B is written from a seed and converted here; tests/golden holds results only (logits of every
16th token, and the embeddings of each medium), made by tools/make_media_golden.py. Error of one row =
max|a - b| / max|b|; the bounds are 5e-6 for embeddings (3e-7 is reached) and 1e-4 for logits with an f32
KV cache (4e-5). The bit
tests run the same prompt in every other way: the bytes must be the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import _core
from gemmule._convert.gguf_source import read_header, sections_of
from project_modules import load_module

media = load_module("tools", "make_media_golden")

SETUP = media.Setup()
BOUND_MEDIA, BOUND_LOGITS = 5e-6, 1e-4
# One of each kind for the bit tests: a block beyond the window, neighbors, and everything at once.
BIT_CASES = ["longer-than-window", "two-images", "image-first", "image-last", "image-audio-video"]
N_CTX = 128


@pytest.fixture(scope="module")
def golden_media(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "tiny-gemma4-12b-media.npz") as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 12B with its media embedders in one F32 file."""
    folder = tmp_path_factory.mktemp("media")
    media.write_checkpoint(folder / "12b", SETUP)
    gemmule.convert(folder / "12b", folder / "tiny-12b.gguf", type="F32")
    return folder / "tiny-12b.gguf"


def _section(path: Path) -> _core.GgufFile:
    section = next(s for s in sections_of(read_header(path)) if s.name == "mmproj")
    return _core.GgufFile(str(path), offset=section.offset, size=section.size)


def _embed(embedder: _core.MediaEmbedder, prompt: Any) -> list[tuple[int, np.ndarray, bool]]:
    """The media of a prompt as Session.append takes them."""
    out = []
    for start, part, numbers in prompt.media:
        is_sound = isinstance(part, media.Sound)
        rows = embedder.embed_audio(numbers) if is_sound else embedder.embed_image(numbers)
        out.append((start, rows, not is_sound))
    return out


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of a row; a row of zeros must be one."""
    assert value.shape == expected.shape
    scale = np.abs(expected).max(axis=1)
    assert not np.abs(value[scale == 0]).any()
    return float((np.abs(value - expected).max(axis=1) / np.where(scale == 0, 1, scale)).max())


def _run(path: Path, name: str, *, kv_type: str = "f32", **options: Any) -> np.ndarray:
    """Logits float32 [n, n_vocab] of a case."""
    model = _core.Model(str(path), **options)
    prompt = media.make_prompt(media.CASES[name], SETUP)
    items = _embed(_core.MediaEmbedder(model, _section(path)), prompt)
    return np.asarray(model.session(n_ctx=N_CTX, kv_type=kv_type).append_logits(prompt.ids, media=items))


def test_weights_are_those_of_the_results(golden_media: dict[str, np.ndarray]) -> None:
    """If this fails, numpy draws other numbers than it did: write the golden file again."""
    assert media.check_weights(SETUP) == json.loads(str(golden_media["info"]))["weights_crc32"]


def test_embedder_tells_what_the_file_holds(bundle: Path) -> None:
    model = _core.Model(str(bundle))
    embedder = _core.MediaEmbedder(model, _section(bundle))
    assert (embedder.has_image, embedder.has_audio, embedder.image_attention) == (True, True, True)
    assert embedder.d_model == model.d_model == 40
    assert embedder.patch_size == SETUP.side
    assert embedder.n_positions == SETUP.n_positions
    assert embedder.samples_per_token == SETUP.d_frame


@pytest.mark.parametrize("name", media.CASES)
def test_embeddings_match_the_reference(bundle: Path, golden_media: dict[str, np.ndarray], name: str) -> None:
    model = _core.Model(str(bundle))
    prompt = media.make_prompt(media.CASES[name], SETUP)
    items = _embed(_core.MediaEmbedder(model, _section(bundle)), prompt)
    assert len(items) == sum(key.startswith(f"{name}.media.") for key in golden_media)
    errors = [_error(rows, golden_media[f"{name}.media.{i}"]) for i, (_, rows, _) in enumerate(items)]
    assert max(errors) < BOUND_MEDIA, errors


@pytest.mark.parametrize("name", media.CASES)
def test_logits_match_the_reference(bundle: Path, golden_media: dict[str, np.ndarray], name: str) -> None:
    logits = _run(bundle, name)
    assert _error(logits[:, :: media.EVERY], golden_media[f"{name}.logits"]) < BOUND_LOGITS


@pytest.mark.parametrize("name", BIT_CASES)
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_bits_do_not_depend_on_the_way_to_run(bundle: Path, name: str, kv_type: str) -> None:
    base = _run(bundle, name, kv_type=kv_type, n_threads=1, n_ubatch=256, isa="scalar").tobytes()
    for n_ubatch in (1, 5, 16, 64, 256):
        for n_threads in (1, 2):
            other = _run(bundle, name, kv_type=kv_type, n_threads=n_threads, n_ubatch=n_ubatch)
            assert other.tobytes() == base, (n_ubatch, n_threads)


def test_every_supported_level_gives_the_same_bits(bundle: Path) -> None:
    levels = [level["name"] for level in _core.cpu_info()["levels"] if level["supported"]]
    for name in ("longer-than-window", "image-audio-video"):
        results = {isa: _run(bundle, name, isa=isa).tobytes() for isa in levels}
        assert len(set(results.values())) == 1, (name, list(results))


def test_embeddings_do_not_depend_on_threads_or_level(bundle: Path) -> None:
    levels = [level["name"] for level in _core.cpu_info()["levels"] if level["supported"]]
    prompt = media.make_prompt((media.Picture(13, 11), media.Sound(64 * 150 + 1)), SETUP)
    results = set()
    for isa in levels:
        for n_threads in (1, 2, 5):
            model = _core.Model(str(bundle), n_threads=n_threads, isa=isa)
            items = _embed(_core.MediaEmbedder(model, _section(bundle)), prompt)
            results.add(b"".join(np.asarray(rows).tobytes() for _, rows, _ in items))
    assert len(results) == 1


def test_a_tile_does_not_depend_on_its_neighbors(bundle: Path) -> None:
    """The top left tile of a large image is that of the tile alone; frames of sound likewise."""
    embedder = _core.MediaEmbedder(_core.Model(str(bundle)), _section(bundle))
    prompt = media.make_prompt((media.Picture(9, 9), media.Sound(64 * 9)), SETUP)
    pixels, samples = prompt.media[0][2], prompt.media[1][2]
    side = SETUP.side
    corner = np.ascontiguousarray(pixels[:side, :side])
    assert embedder.embed_image(pixels)[0].tobytes() == embedder.embed_image(corner)[0].tobytes()
    whole = embedder.embed_audio(samples)
    assert whole[4].tobytes() == embedder.embed_audio(samples[256:320])[0].tobytes()
    cut = np.concatenate([samples[:70], np.zeros(58, np.float32)])
    assert embedder.embed_audio(samples[:70]).tobytes() == embedder.embed_audio(cut).tobytes()


@pytest.mark.parametrize("name", BIT_CASES)
def test_pieces_give_the_bits_of_the_whole(bundle: Path, name: str) -> None:
    """Text, each medium and the rest appended one after the other."""
    whole = _run(bundle, name)
    model = _core.Model(str(bundle))
    prompt = media.make_prompt(media.CASES[name], SETUP)
    items = _embed(_core.MediaEmbedder(model, _section(bundle)), prompt)
    session = model.session(n_ctx=N_CTX, kv_type="f32")
    rows, at = [], 0
    for start, embeddings, bidirectional in items:
        end = start + len(embeddings)
        if start > at:
            rows.append(session.append_logits(prompt.ids[at:start]))
        rows.append(session.append_logits(prompt.ids[start:end], media=[(0, embeddings, bidirectional)]))
        at = end
    if at < len(prompt.ids):
        rows.append(session.append_logits(prompt.ids[at:]))
    assert np.concatenate(rows).tobytes() == whole.tobytes()


def _appended(bundle: Path, name: str) -> tuple[Any, Any, list[Any], set[int]]:
    """A session that holds a case in small steps, its prompt and media, and the places inside blocks."""
    model = _core.Model(str(bundle), n_ubatch=16)
    prompt = media.make_prompt(media.CASES[name], SETUP)
    items = _embed(_core.MediaEmbedder(model, _section(bundle)), prompt)
    inside = {place for start, rows, block in items if block for place in range(start + 1, start + len(rows))}
    session = model.session(n_ctx=N_CTX, kv_type="f32")
    session.append(prompt.ids, media=items)
    return session, prompt, items, inside


@pytest.mark.parametrize("name", BIT_CASES)
def test_rewind_and_replay_gives_the_same_bits(bundle: Path, name: str) -> None:
    """Rewinding to every place outside a block, other tokens in between, then the rest again."""
    whole = _run(bundle, name)
    session, prompt, items, inside = _appended(bundle, name)
    for keep in range(len(prompt.ids) - 1, -1, -3):
        if keep in inside:
            with pytest.raises(ValueError, match=r"block|image"):
                session.rewind(keep)
            continue
        session.rewind(keep)
        session.append(np.full(20, 300, np.int32))
        session.rewind(keep)
        rest = [
            (max(start - keep, 0), rows[max(keep - start, 0) :], block)
            for start, rows, block in items
            if start + len(rows) > keep
        ]
        again = session.append_logits(prompt.ids[keep:], media=rest)
        assert again.tobytes() == whole[keep:].tobytes(), keep
        assert session.logits().tobytes() == whole[-1].tobytes()


@pytest.mark.parametrize("name", BIT_CASES)
def test_logits_after_rewind_are_those_of_the_prefix(bundle: Path, name: str) -> None:
    """The session replays what it needs, embeddings included, when the last kept row asks for it."""
    whole = _run(bundle, name)
    session, prompt, _, inside = _appended(bundle, name)
    for keep in range(len(prompt.ids) - 1, 0, -2):
        if keep not in inside:
            session.rewind(keep)
            assert session.logits().tobytes() == whole[keep - 1].tobytes(), keep


def test_f16_cache_stays_close_to_the_reference(bundle: Path, golden_media: dict[str, np.ndarray]) -> None:
    logits = _run(bundle, "image-audio-video", kv_type="f16")
    assert _error(logits[:, :: media.EVERY], golden_media["image-audio-video.logits"]) < 2e-2


def test_placeholder_ids_do_not_matter_where_embeddings_are(bundle: Path) -> None:
    """Rows with an embedding ignore the token's own row of the table."""
    model = _core.Model(str(bundle))
    prompt = media.make_prompt(media.CASES["two-images"], SETUP)
    items = _embed(_core.MediaEmbedder(model, _section(bundle)), prompt)
    other = np.where(prompt.types == 1, 300, prompt.ids).astype(np.int32)
    results = [
        model.session(n_ctx=N_CTX).append_logits(ids, media=items).tobytes() for ids in (prompt.ids, other)
    ]
    assert results[0] == results[1]


# -- the public way --


def _parts(prompt: Any) -> list[Any]:
    """The prompt as a user writes it: ids, pictures and sounds, without the markers around them."""
    parts: list[Any] = []
    at = 0
    for start, part, numbers in prompt.media:
        parts.append(prompt.ids[at : start - 1].tolist())
        if isinstance(part, media.Sound):
            parts.append(gemmule.Audio(numbers))
            n = -(-len(numbers) // SETUP.d_frame)
        else:
            parts.append(gemmule.Image(numbers, tokens=70))
            n = part.rows * part.cols
        at = start + n + 1
    return [*parts, prompt.ids[at:].tolist()]


def test_public_logits_match_the_reference(bundle: Path, golden_media: dict[str, np.ndarray]) -> None:
    prompt = media.make_prompt(media.CASES["whole-budget"], SETUP)
    with gemmule.Model(bundle, kv_type="f32", n_ctx=256) as model:
        logits = model.logits(_parts(prompt), all=True)
        last = model.logits(_parts(prompt))
    assert _error(logits[:, :: media.EVERY], golden_media["whole-budget.logits"]) < BOUND_LOGITS
    assert logits.tobytes() == _run(bundle, "whole-budget").tobytes()
    assert last.tobytes() == logits[-1].tobytes()


def test_public_hidden_states_are_those_of_the_core(bundle: Path) -> None:
    prompt = media.make_prompt(media.CASES["whole-budget"], SETUP)
    core = _core.Model(str(bundle))
    items = _embed(_core.MediaEmbedder(core, _section(bundle)), prompt)
    expected = core.session(n_ctx=N_CTX, kv_type="f32").append_hidden(prompt.ids, media=items)
    with gemmule.Model(bundle, kv_type="f32", n_ctx=256) as model:
        assert model.hidden(_parts(prompt)).tobytes() == expected.tobytes()


def test_sessions_give_the_bits_of_one_prompt(bundle: Path) -> None:
    """A session fed part by part, and generate on the whole, continue alike."""
    prompt = media.make_prompt(media.CASES["whole-budget"], SETUP)
    parts = _parts(prompt)
    with gemmule.Model(bundle, kv_type="f32", n_ctx=256) as model:
        whole = model.logits(parts)
        session = model.session()
        for part in parts:
            session.append(part)
        assert session.n_tokens == len(prompt.ids)
        assert np.array_equal(session.tokens, prompt.ids)
        assert session.logits.tobytes() == whole.tobytes()
        expected = model.generate(parts, max_tokens=12, temperature=0.0)
        assert expected.tokens[0] == int(whole.argmax())
        assert session.generate(max_tokens=12, temperature=0.0).tokens == expected.tokens
        again = model.session()
        again.append(parts)
        assert again.logits.tobytes() == whole.tobytes()


def test_counts_of_a_prompt(bundle: Path) -> None:
    prompt = media.make_prompt(media.CASES["whole-budget"], SETUP)
    with gemmule.Model(bundle, n_ctx=256) as model:
        count = model.count_tokens(_parts(prompt))
        usage = model.generate(_parts(prompt), max_tokens=1).usage
    assert (int(count), count.image, count.audio, count.video) == (len(prompt.ids), 70, 20, 0)
    assert (usage.prompt_tokens, usage.image_tokens, usage.audio_tokens) == (len(prompt.ids), 70, 20)
