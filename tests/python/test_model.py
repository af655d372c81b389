"""The Model class: facts, logits, scores, generation, cancelling, limits."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

import gemmule

IDS = [2, *range(20, 60)]


def test_facts(tiny: gemmule.Model) -> None:
    assert tiny.info.architecture in ("gemma3", "gemma4")
    assert tiny.info.n_vocab == tiny.tokenizer.n_vocab
    assert tiny.n_ctx == tiny.plan.n_ctx <= tiny.info.n_ctx_train
    assert tiny.plan.total >= tiny.plan.weights + tiny.plan.kv
    assert tiny.plan.fits
    assert tiny.info.name in str(tiny.info)
    assert tiny.info.to_dict()["modalities"] == ["text"]


def test_inspect_and_estimate_read_the_header(tiny_gemma3_path: Path) -> None:
    assert gemmule.inspect(tiny_gemma3_path).quantization == "F32"
    small, large = (gemmule.estimate(tiny_gemma3_path, n_ctx=n) for n in (64, 1024))
    assert small.kv < large.kv
    assert gemmule.devices()[0].n_physical >= 1


def test_logits_of_all_tokens_agree_with_the_last(tiny: gemmule.Model) -> None:
    everything = tiny.logits(IDS, all=True)
    assert everything.shape == (len(IDS), tiny.tokenizer.n_vocab)
    np.testing.assert_array_equal(everything[-1], tiny.logits(IDS))
    assert tiny.hidden(IDS).shape == (len(IDS), tiny.info.d_model)


@pytest.mark.parametrize("prompt", ["text", ["text", [20, 21], "more"], [2, 20], np.array([2, 20])])
def test_prompt_forms(tiny: gemmule.Model, prompt: gemmule._prompt.Prompt) -> None:
    assert tiny.generate(prompt, max_tokens=2, seed=1).usage.prompt_tokens > 0


@pytest.mark.parametrize("prompt", [[b"bytes"], 5, [{"type": "image"}], b"x"])
def test_other_parts_are_unsupported(tiny: gemmule.Model, prompt: object) -> None:
    with pytest.raises(gemmule.UnsupportedError):
        tiny.generate(prompt)  # type: ignore[call-overload]


def test_bad_ids_and_empty_prompts_are_refused(tiny: gemmule.Model) -> None:
    with pytest.raises(ValueError, match="outside"):
        tiny.logits([10**6])
    with pytest.raises(ValueError, match="no token"):
        tiny.logits([])


def test_unknown_options_are_refused(tiny: gemmule.Model) -> None:
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword argument 'scheme'"):
        tiny.generate("a", scheme={})  # type: ignore[call-overload]


def test_same_seed_same_text_and_stream_equals_reply(tiny: gemmule.Model) -> None:
    reply = tiny.generate(IDS, max_tokens=30, seed=5)
    again = tiny.generate(IDS, max_tokens=30, seed=reply.seed)
    with tiny.generate(IDS, max_tokens=30, seed=5, stream=True) as stream:
        pieces = list(stream)
    assert again.tokens == reply.tokens == stream.reply.tokens
    assert "".join(pieces) == stream.reply.text == reply.text == str(reply)
    assert reply.usage.total_tokens == len(IDS) + len(reply.tokens)
    assert tiny.generate(IDS, max_tokens=1).seed != tiny.generate(IDS, max_tokens=1).seed


def test_greedy_takes_the_largest_logit(tiny: gemmule.Model) -> None:
    reply = tiny.generate(IDS, max_tokens=4, temperature=0, logprobs=3)
    assert reply.tokens[0] == int(np.argmax(tiny.logits(IDS)))
    assert reply.logprobs is not None
    assert len(reply.logprobs) == len(reply.tokens)
    first = reply.logprobs[0]
    logits = tiny.logits(IDS).astype(np.float64)
    expected = logits[first.token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert first.logprob == pytest.approx(expected, abs=1e-4)
    assert [row[0] for row in first.top] == np.argsort(-logits)[:3].tolist()


def test_finish_reasons(tiny: gemmule.Model) -> None:
    assert tiny.generate(IDS, max_tokens=3, seed=1).finish_reason == "length"
    assert tiny.generate(IDS, max_tokens=0).tokens == ()
    text = tiny.generate(IDS, max_tokens=20, temperature=0).text
    stop = text[3:6]
    reply = tiny.generate(IDS, max_tokens=20, temperature=0, stop=stop)
    assert reply.finish_reason == "stop"
    assert reply.text == text[: text.find(stop)]


def test_end_token_stops(tiny: gemmule.Model) -> None:
    end = min(tiny.tokenizer.eos_ids)
    reply = tiny.generate(IDS, max_tokens=20, temperature=0, logit_bias={end: 1e6})
    assert reply.tokens == (end,)
    assert (reply.text, reply.finish_reason) == ("", "stop")


def test_context_is_never_overrun(tiny_gemma3_path: Path) -> None:
    with gemmule.Model(tiny_gemma3_path, n_ctx=48) as model:
        reply = model.generate(IDS, temperature=0, logit_bias={i: -math.inf for i in model.tokenizer.eos_ids})
        assert reply.finish_reason == "length"
        assert len(IDS) + len(reply.tokens) == 48 + 1  # the last one is sampled but never run
        with pytest.raises(gemmule.ContextLengthError) as caught:
            model.generate([2] * 49)
        assert (caught.value.n_prompt, caught.value.n_ctx) == (49, 48)


def test_cancel_from_a_token_and_from_the_stream(tiny: gemmule.Model) -> None:
    token = gemmule.StopToken()
    token.cancel()
    reply = tiny.generate(IDS, cancel=token)
    assert (reply.finish_reason, reply.tokens) == ("cancelled", ())
    stream = tiny.generate(
        IDS, seed=2, logit_bias={i: -math.inf for i in tiny.tokenizer.eos_ids}, stream=True
    )
    next(stream)
    stream.cancel()
    assert stream.reply.finish_reason == "cancelled"
    assert len(stream.reply.tokens) < 20
    stream.close()


def test_stopping_the_loop_and_leaving_keeps_what_exists(tiny: gemmule.Model) -> None:
    with tiny.generate(IDS, seed=2, max_tokens=50, stream=True) as stream:
        first = next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text.startswith(first)


def test_threads_share_a_model(tiny: gemmule.Model) -> None:
    expected = tiny.generate(IDS, max_tokens=10, seed=3).tokens
    results: list[tuple[int, ...]] = []

    def work() -> None:
        results.append(tiny.generate(IDS, max_tokens=10, seed=3).tokens)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_score_windows_are_those_of_llama_perplexity(tiny: gemmule.Model) -> None:
    ids = [2, *[20 + i * 7 % 200 for i in range(69)]]
    score = tiny.score(ids, n_ctx=16, top=2)
    expected: list[float] = []
    tokens: list[int] = []
    for start in range(0, 64, 16):
        window = [2, *ids[start + 1 : start + 16]]
        logits = tiny.logits(window, all=True).astype(np.float64)
        for i in range(8, 15):
            row = logits[i] - logits[i].max()
            expected.append(row[window[i + 1]] - math.log(np.exp(row).sum()))
            tokens.append(window[i + 1])
    assert score.tokens == tuple(tokens)
    assert score.n_tokens == 4 * 7
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-np.mean(expected)), rel=1e-4)
    error = score.perplexity * np.std(expected) / math.sqrt(len(expected) - 1)
    assert score.perplexity_error == pytest.approx(error, rel=1e-3)
    assert len(score.top) == score.n_tokens
    assert len(score.top[0]) == 2


def test_short_texts_are_scored_whole(tiny: gemmule.Model) -> None:
    assert tiny.score(IDS).tokens == tuple(IDS[1:])
    with pytest.raises(ValueError, match="nothing to score"):
        tiny.score([2])


@pytest.mark.parametrize("options", [{"n_ctx": "huge"}, {"n_ctx": 0}, {"n_threads": 0}, {"kv_type": "q9"}])
def test_bad_model_options(tiny_gemma3_path: Path, options: dict[str, object]) -> None:
    with pytest.raises((ValueError, gemmule.Error)):
        gemmule.Model(tiny_gemma3_path, **options)  # type: ignore[arg-type]


def test_max_context_and_close(tiny_gemma3_path: Path) -> None:
    model = gemmule.Model(tiny_gemma3_path, n_ctx="max")
    assert model.n_ctx == model.info.n_ctx_train
    model.close()
    model.close()
    with pytest.raises(gemmule.Error, match="closed"):
        model.logits([2])


@pytest.mark.real_model
def test_real_weights_write_sense(demo_model: gemmule.Model) -> None:
    text = demo_model.generate("One, two, three, four,", max_tokens=8, temperature=0).text
    assert "five, six" in text
    score = demo_model.score("The sun rises in the east and sets in the west. Water freezes at zero degrees.")
    assert 1 < score.perplexity < 60
