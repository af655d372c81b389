"""Sessions: a timeline in pieces gives the same bits as one run at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gemmule

IDS = [2, *range(20, 60)]


def test_pieces_equal_one_run(tiny: gemmule.Model) -> None:
    with tiny.session() as session:
        session.append(IDS[:7])
        session.append(IDS[7:])
        np.testing.assert_array_equal(session.logits, tiny.logits(IDS))
        assert session.n_tokens == len(IDS)
        np.testing.assert_array_equal(session.tokens, IDS)


def test_generate_continues_the_timeline(tiny: gemmule.Model) -> None:
    whole = tiny.generate(IDS, max_tokens=12, temperature=0)
    session = tiny.session(n_ctx=128)
    first = session.generate(IDS, max_tokens=5, temperature=0)
    assert session.n_tokens == len(IDS) + 5
    second = session.generate(max_tokens=7, temperature=0)
    assert first.tokens + second.tokens == whole.tokens
    assert (second.usage.prompt_tokens, second.usage.cached_tokens) == (len(IDS) + 5, len(IDS) + 4)
    np.testing.assert_array_equal(session.tokens, IDS + list(whole.tokens))
    np.testing.assert_array_equal(session.logits, tiny.logits(IDS + list(whole.tokens)))


def test_rewind_forgets(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=128)
    reply = session.generate(IDS, max_tokens=6, seed=4)
    session.rewind(len(IDS) + 2)
    np.testing.assert_array_equal(session.logits, tiny.logits(IDS + list(reply.tokens[:2])))
    with pytest.raises(ValueError, match="cannot keep"):
        session.rewind(100)
    session.rewind(0)
    with pytest.raises(ValueError, match="empty"):
        _ = session.logits


def test_bos_only_at_the_start(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=64)
    session.append("ab")
    session.append("cd")
    assert session.tokens.tolist().count(2) == 1


def test_a_refused_prompt_changes_nothing(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=16)
    session.append(IDS[:10])
    before = session.logits
    with pytest.raises(gemmule.ContextLengthError) as caught:
        session.append(IDS[:7])
    assert (caught.value.n_prompt, caught.value.n_ctx) == (17, 16)
    np.testing.assert_array_equal(session.logits, before)


def test_a_new_call_ends_an_open_stream(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=128)
    stream = session.generate(IDS, max_tokens=50, seed=4, stream=True)
    next(stream)
    session.append([20])
    assert stream.reply.finish_reason == "cancelled"
    assert session.tokens.tolist() == [*IDS, *stream.reply.tokens, 20]


def test_a_cancelled_prompt_leaves_the_session_usable(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=128)
    token = gemmule.StopToken()
    token.cancel()
    assert session.generate(IDS, cancel=token).finish_reason == "cancelled"
    assert session.n_tokens == 0
    session.append(IDS)
    np.testing.assert_array_equal(session.logits, tiny.logits(IDS))


def test_closed_sessions_say_so(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=16)
    session.close()
    session.close()
    with pytest.raises(gemmule.Error, match="closed"):
        session.append([2])


def never_end(model: gemmule.Model) -> dict[int, float]:
    return {i: -math.inf for i in model.tokenizer.eos_ids}


def test_an_answer_never_overruns_the_session(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=len(IDS) + 4)
    reply = session.generate(IDS, seed=1, logit_bias=never_end(tiny))
    assert (reply.finish_reason, session.n_tokens) == ("length", session.n_ctx)
    assert session.logits.shape == (tiny.info.n_vocab,)
    assert session.generate().tokens == ()


def test_a_rejected_call_leaves_the_stream_open(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=64)
    stream = session.generate(IDS, max_tokens=8, seed=4, logit_bias=never_end(tiny), stream=True)
    next(stream)
    with pytest.raises(ValueError, match="top_p"):
        session.generate([20], top_p=7)
    with pytest.raises(ValueError, match="outside"):
        session.append([10**6])
    with pytest.raises(gemmule.ContextLengthError):
        session.append([20] * 64)
    with pytest.raises(gemmule.ContextLengthError):
        session.generate([20] * 64)
    with pytest.raises(ValueError, match="cannot keep"):
        session.rewind(64)
    assert stream.reply.finish_reason == "length"
    assert len(stream.reply.tokens) == 8


def test_a_failed_stream_stays_failed(tiny: gemmule.Model) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("from the callback")

    session = tiny.session(n_ctx=64)
    stream = session.generate(IDS, max_tokens=4, progress=fail, stream=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="from the callback"):
            next(stream)
        with pytest.raises(RuntimeError, match="from the callback"):
            _ = stream.reply
    stream.close()
    assert session.n_tokens == 0
    assert len(session.generate(IDS, max_tokens=1, seed=1).tokens) == 1


def test_a_cancelled_prompt_counts_nothing(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=64)
    session.append(IDS)
    token = gemmule.StopToken()
    token.cancel()
    reply = session.generate([20] * 5, cancel=token)
    assert (reply.timings.prompt_n, reply.timings.prompt_per_second) == (0, 0.0)
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (len(IDS), len(IDS))


def test_a_callback_may_read_but_not_run_its_session(tiny: gemmule.Model) -> None:
    session = tiny.session(n_ctx=64)
    session.append(IDS)
    seen: list[object] = []

    def look(done: int, total: int) -> None:
        seen.extend([session.n_tokens, session.n_ctx, len(session.tokens)])
        for call in (lambda: session.append([5]), lambda: session.rewind(0), session.generate, session.close):
            with pytest.raises(gemmule.Error, match="busy"):
                call()

    session.append([20] * 5, progress=look)
    assert seen[:3] == [len(IDS), 64, len(IDS)]
    assert session.n_tokens == len(IDS) + 5


def test_a_callback_may_cancel_but_not_read_its_stream(tiny: gemmule.Model) -> None:
    def look(done: int, total: int) -> None:
        with pytest.raises(gemmule.Error, match="busy"):
            next(stream)
        stream.close()

    stream = tiny.generate(IDS, max_tokens=5, progress=look, stream=True)
    assert stream.reply.finish_reason == "cancelled"
