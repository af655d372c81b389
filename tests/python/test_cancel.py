"""Cancelling at any moment: the session stays what it was, and its bits are those of one never cancelled."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from media_model import write_tiny_12b

IDS = np.random.default_rng(8).integers(5, 250, 700).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemmule.Model]:
    with gemmule.Model(write_tiny_12b(tmp_path_factory.mktemp("tiny")), n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_gemma4_path: Path) -> Path:
    path = tmp_path_factory.mktemp("packed") / "tiny-q8_0.gguf"
    gemmule.quantize_file(tiny_gemma4_path, path, "Q8_0")
    return path


def _cancel_after(stop: gemmule.StopToken, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, stop.cancel)
    timer.start()
    return timer


@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_cancels_leave_the_session_right(packed: Path, n_threads: int) -> None:
    """At random moments of the prompt, of packing and of decoding."""
    rng = random.Random(n_threads)
    with gemmule.Model(packed, n_ctx=1024, n_threads=n_threads, packed=True) as model:
        with gemmule.Model(packed, n_ctx=1024, packed=False) as other:
            expected = other.logits(IDS)
            answer = other.generate(IDS, temperature=0, max_tokens=20).tokens
        session, began = model.session(), time.perf_counter()
        session.append(IDS[:1])
        session.append(IDS[1:])
        whole = time.perf_counter() - began
        n_cancelled = 0
        for _ in range(30):
            session.rewind(rng.randrange(0, 300))
            n = session.n_tokens
            stop = gemmule.StopToken()
            timer = _cancel_after(stop, rng.uniform(0, whole))
            try:
                session.append(IDS[n:], cancel=stop)
            except gemmule.Cancelled:
                n_cancelled += 1
                assert session.n_tokens == n
                session.append(IDS[n:])
            timer.join()
            np.testing.assert_array_equal(session.logits, expected)
        assert n_cancelled > 3
        for _ in range(10):
            session.rewind(len(IDS))
            tokens: tuple[int, ...] = ()
            while len(tokens) < 20:
                stop = gemmule.StopToken()
                timer = _cancel_after(stop, rng.uniform(0, 0.01))
                tokens += session.generate(temperature=0, max_tokens=20 - len(tokens), cancel=stop).tokens
                timer.cancel()
            assert tokens == answer


def test_a_cancel_during_the_first_packing(packed: Path) -> None:
    with gemmule.Model(packed, packed=False) as other:
        expected = other.logits(IDS)
    for i in range(25):
        with gemmule.Model(packed, packed=True, n_threads=2) as model:
            session, stop = model.session(), gemmule.StopToken()
            timer = _cancel_after(stop, i * 0.0004)
            try:
                session.append(IDS, cancel=stop)
            except gemmule.Cancelled:
                assert session.n_tokens == 0
                session.append(IDS)
            timer.join()
            np.testing.assert_array_equal(session.logits, expected)


def test_a_token_that_follows_is_cancelled_alone_and_with_the_first() -> None:
    first = gemmule.StopToken()
    one, other = gemmule.StopToken(first), gemmule.StopToken(follows=first)
    one.cancel()
    assert (one.cancelled, other.cancelled, first.cancelled) == (True, False, False)
    first.cancel()
    assert other.cancelled
    del first
    assert other.cancelled  # it keeps what it follows


def test_ending_a_stream_does_not_cancel_the_token_it_was_given(tiny: gemmule.Model) -> None:
    stop = gemmule.StopToken()
    with tiny.generate(IDS[:20], cancel=stop, stream=True, max_tokens=50) as stream:
        next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert not stop.cancelled
    assert tiny.generate(IDS[:20], cancel=stop, max_tokens=2).finish_reason != "cancelled"


def test_a_stream_is_cancelled_during_the_prompt_although_it_has_a_token(tiny: gemmule.Model) -> None:
    stream: Any = None

    def seen(done: int, total: int) -> None:
        stream.cancel()

    with tiny.session(n_ctx=1024) as session:
        stream = session.generate(IDS, cancel=gemmule.StopToken(), progress=seen, stream=True)
        assert stream.reply.finish_reason == "cancelled"
        assert session.n_tokens == 0


def test_logits_after_a_rewind_can_be_cancelled(tiny: gemmule.Model) -> None:
    stop = gemmule.StopToken()
    stop.cancel()
    with tiny.session(n_ctx=1024) as session:
        session.append(IDS)
        session.rewind(300)
        assert session.generate(max_tokens=3, cancel=stop).finish_reason == "cancelled"
        np.testing.assert_array_equal(session.logits, tiny.logits(IDS[:300]))


def _wav(seconds: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(int(48000 * seconds) * 2))
    return out.getvalue()


def test_media_that_nobody_wants_any_more_are_not_decoded(model: gemmule.Model) -> None:
    stop = gemmule.StopToken()
    stop.cancel()
    picture = gemmule.Image(b"no picture at all")  # decoding it would be an error
    reply = model.generate(["a", picture], cancel=stop)
    assert (reply.finish_reason, reply.usage.prompt_tokens) == ("cancelled", 0)
    assert model.chat("what is it?", images=picture, cancel=stop).finish_reason == "cancelled"
    with model.session() as session:
        with pytest.raises(gemmule.Cancelled):
            session.append([picture], cancel=stop)
        assert session.n_tokens == 0
        session.chat("one", max_tokens=2)
        n = session.n_tokens
        assert (
            session.chat("two", images=picture, cancel=stop, truncation="oldest").finish_reason == "cancelled"
        )
        assert session.n_tokens == n


def test_a_long_sound_is_cancelled_while_it_is_decoded(
    model: gemmule.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemmule._media import audio

    stop, blocks = gemmule.StopToken(), []

    def mono(block: Any, name: str) -> Any:
        blocks.append(len(block))
        stop.cancel()
        return original(block, name)

    original = audio._mono
    monkeypatch.setattr(audio, "_mono", mono)
    reply = model.generate([gemmule.Audio(_wav(20))], cancel=stop)
    assert reply.finish_reason == "cancelled"
    assert len(blocks) == 1


def test_a_request_that_waits_for_its_turn_can_be_cancelled(tiny: gemmule.Model) -> None:
    stop, done = gemmule.StopToken(), threading.Event()
    replies: list[gemmule.Reply] = []
    stream = tiny.generate(IDS[:9], cancel=stop, stream=True)

    def wait() -> None:
        replies.append(stream.reply)
        done.set()

    with tiny._lock:  # as a long prompt of another thread holds it
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        stop.cancel()
        assert done.wait(5)
    thread.join()
    assert replies[0].finish_reason == "cancelled"


def test_a_cancelled_task_stops_decoding_media(model: gemmule.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmule._media import audio

    blocks: list[int] = []
    original = audio._mono

    def slow(block: Any, name: str) -> Any:
        blocks.append(len(block))
        time.sleep(0.05)
        return original(block, name)

    monkeypatch.setattr(audio, "_mono", slow)

    async def main() -> None:
        task = asyncio.create_task(model.agenerate([gemmule.Audio(_wav(25))], max_tokens=2))
        while not blocks:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # waits for its threads
    assert len(blocks) <= 2  # of five


def test_ctrl_c_within_a_prompt_leaves_the_session_usable(tiny: gemmule.Model) -> None:
    with tiny.session(n_ctx=1024) as session:
        session.append(IDS[:10])
        fired: list[int] = []

        def seen(done: int, total: int) -> None:
            if not fired:
                fired.append(done)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            session.append(IDS[10:], progress=seen)
        assert session.n_tokens == 10
        session.append(IDS[10:])
        np.testing.assert_array_equal(session.logits, tiny.logits(IDS))
