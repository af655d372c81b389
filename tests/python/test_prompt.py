"""From parts to rows: markers, order, counts, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule._media.cache import EmbeddingCache
from gemmule._prompt import build_prompt, identity
from media_model import write_tiny_12b

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
SOUND = (np.random.default_rng(1).standard_normal(1000).astype(np.float32) * 0.1, 16000)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_12b(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(model_path: Path) -> gemmule.Model:
    return gemmule.Model(model_path, n_ctx=1024)


def picture(**options: int) -> gemmule.Image:
    return gemmule.Image(PIXELS, **{"tokens": 70, **options})


def test_markers_stand_around_media_in_the_order_given(model: gemmule.Model) -> None:
    s = model._media.settings
    prompt = build_prompt(model.tokenizer, model._media, ["a", picture(), gemmule.Audio(SOUND), "b"])
    ids = list(prompt.tokens)
    n_image, n_audio = ids.count(s.image), ids.count(s.audio)  # type: ignore[arg-type]
    before = model.tokenizer.encode("a")
    expected = [
        *before, s.boi, *[s.image] * n_image, s.eoi, s.boa, *[s.audio] * n_audio, s.eoa,
        *model.tokenizer.encode("b", add_bos=False),
    ]  # fmt: skip
    assert ids == expected
    assert n_audio == -(-1000 // s.samples_per_token)
    assert [(span.first, span.n, span.kind) for span in prompt.spans] == [
        (len(before) + 1, n_image, "image"),
        (len(before) + n_image + 3, n_audio, "audio"),
    ]
    assert prompt.text == "a<|image|><|audio|>b"


def test_bos_comes_before_a_first_picture(model: gemmule.Model) -> None:
    prompt = build_prompt(model.tokenizer, model._media, picture())
    assert prompt.tokens[0] == model.tokenizer.bos_id
    assert prompt.tokens[1] == model._media.settings.boi
    again = build_prompt(model.tokenizer, model._media, picture(), add_bos=False)
    assert again.tokens == prompt.tokens[1:]


def test_counts_say_what_the_tokens_are(model: gemmule.Model) -> None:
    count = model.count_tokens(["text ", picture(), gemmule.Audio(SOUND)])
    assert count == count.text + count.image + count.audio + count.video
    assert count.image > 0
    assert count.audio == -(-1000 // model._media.settings.samples_per_token)
    assert count.to_dict()["total"] == int(count)
    usage = model.generate(["text ", picture(), gemmule.Audio(SOUND)], max_tokens=1).usage
    assert (usage.image_tokens, usage.audio_tokens) == (count.image, count.audio)
    assert usage.prompt_tokens == count + 1  # BOS


def test_image_tokens_of_the_request_and_of_the_picture(model: gemmule.Model) -> None:
    small = model.render([{"role": "user", "content": ["x", gemmule.Image(PIXELS)]}], image_tokens=70)
    large = model.render([{"role": "user", "content": ["x", gemmule.Image(PIXELS)]}], image_tokens=140)
    own = model.render([{"role": "user", "content": ["x", picture()]}], image_tokens=140)
    assert small.count.image == own.count.image <= 70 < large.count.image <= 140


def test_a_prompt_can_be_given_again(model: gemmule.Model) -> None:
    prompt = build_prompt(model.tokenizer, model._media, ["a", picture()])
    np.testing.assert_array_equal(model.logits(prompt), model.logits(["a", picture()]))


def test_the_same_picture_is_embedded_once(model_path: Path) -> None:
    with gemmule.Model(model_path, n_ctx=512) as model:
        first = model.logits(["a", picture()])
        second = model.logits(["a", gemmule.Image(PIXELS.copy(), tokens=70)])
        assert (model._media.cache.hits, model._media.cache.misses) == (1, 1)
        np.testing.assert_array_equal(first, second)
        other = PIXELS.copy()
        other[0, 0, 0] ^= 128
        assert not np.array_equal(model.logits(["a", gemmule.Image(other, tokens=70)]), first)


def test_sessions_take_media_and_rewind_around_them(model: gemmule.Model) -> None:
    with model.session() as session:
        session.append(["a", picture(), "b"])
        before = session.logits.copy()
        session.append([gemmule.Audio(SOUND), "c"])
        session.rewind(session.n_tokens - 1)
        session.append("c")
        after = session.logits.copy()
        np.testing.assert_array_equal(after, model.logits(["a", picture(), "b", gemmule.Audio(SOUND), "c"]))
        session.rewind(len(build_prompt(model.tokenizer, model._media, ["a", picture(), "b"])))
        np.testing.assert_array_equal(session.logits, before)
        with pytest.raises(ValueError, match="middle of an image"):
            session.rewind(5)
        np.testing.assert_array_equal(session.logits, before)


def test_identity_tells_pictures_apart(model: gemmule.Model) -> None:
    one = build_prompt(model.tokenizer, model._media, ["a", picture()])
    other = build_prompt(model.tokenizer, model._media, ["a", gemmule.Image(255 - PIXELS, tokens=70)])
    assert one.tokens == other.tokens
    assert one.identity() != other.identity()
    assert one.identity() == identity(one.tokens, one.spans)


def test_after_keeps_what_follows(model: gemmule.Model) -> None:
    prompt = build_prompt(model.tokenizer, model._media, ["abc", picture(), "d", gemmule.Audio(SOUND)])
    cut = prompt.spans[0].first + prompt.spans[0].n
    rest = prompt.after(cut)
    assert rest.tokens == prompt.tokens[cut:]
    assert rest.identity() == prompt.identity()[cut:]
    assert rest.count.image == 0 < rest.count.audio


def test_text_models_refuse_media(tiny_gemma4_path: Path) -> None:
    with (
        gemmule.Model(tiny_gemma4_path) as model,
        pytest.raises(gemmule.UnsupportedError, match="takes text only"),
    ):
        model.generate([picture()], max_tokens=1)


def test_a_model_may_be_told_to_take_none(model_path: Path) -> None:
    with gemmule.Model(model_path, mmproj=False) as model:
        with pytest.raises(gemmule.UnsupportedError, match="takes text only"):
            model.count_tokens([picture()])
        assert model.generate("a", max_tokens=1).usage.completion_tokens == 1


def test_the_media_file_may_lie_beside_the_model(model_path: Path, tmp_path: Path) -> None:
    gemmule.split(model_path, tmp_path)
    others = ("mmproj", "assistant")
    text = next(p for p in tmp_path.glob("*.gguf") if not any(name in p.name for name in others))
    with gemmule.Model(model_path) as whole, gemmule.Model(text) as split:
        np.testing.assert_array_equal(whole.logits(["a", picture()]), split.logits(["a", picture()]))


def test_too_many_media(model: gemmule.Model) -> None:
    with pytest.raises(gemmule.MediaError, match="32"):
        model.count_tokens([picture()] * 33)


def test_a_media_prompt_longer_than_the_context(model: gemmule.Model) -> None:
    with pytest.raises(gemmule.ContextLengthError) as caught:
        model.generate([picture(tokens=280)] * 6, max_tokens=1)
    assert caught.value.n_prompt > caught.value.n_ctx == 1024


def test_the_cache_forgets_the_oldest() -> None:
    cache = EmbeddingCache(max_bytes=100)
    rows = [np.zeros((1, 10), np.float32) for _ in range(3)]
    for i in range(3):
        cache.get(bytes([i]), lambda i=i: rows[i])  # type: ignore[misc]
    assert cache.misses == 3
    cache.get(b"\x02", lambda: rows[2])
    assert cache.hits == 1
    cache.get(b"\x00", lambda: rows[0])
    assert cache.misses == 4
