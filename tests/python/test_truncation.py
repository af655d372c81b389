"""What `truncation` leaves out of prompts and conversations, what it never cuts, and that it says so."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import Message, ToolCall
from gemmule._prompt import Prompt, Span, count_of
from gemmule._truncate import answer_room, cut_rows, fit_turns, policy_of
from media_model import write_tiny_12b

# -- rows ----------------------------------------------------------------------------------------------------


class _Source:
    """A picture of some tokens."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.key = b"%d" % n_tokens


def _rows(n: int, *media: tuple[int, int]) -> Prompt:
    """Rows 0 .. n - 1 with pictures (first row, rows)."""
    spans = tuple(Span(first, size, "image", _Source(size)) for first, size in media)
    return Prompt(tuple(range(n)), "", count_of(n, spans), (), spans)


@pytest.mark.parametrize("policy", ["oldest", "middle"])
def test_rows_that_fit_are_left_alone(policy: Any) -> None:
    prompt = _rows(50, (10, 5))
    assert cut_rows(prompt, policy, 50, 1) == (prompt, 0)


def test_the_beginning_or_the_middle_goes() -> None:
    prompt, gone = cut_rows(_rows(100), "oldest", 30, 1)
    assert prompt.tokens == (0, *range(71, 100))
    assert gone == 70
    assert "70 of 100 tokens" in prompt.warnings[0]
    prompt, gone = cut_rows(_rows(100), "middle", 30, 1)
    assert prompt.tokens == (*range(15), *range(85, 100))
    assert cut_rows(_rows(100), "oldest", 30, 0)[0].tokens == tuple(range(70, 100))


def test_a_picture_goes_whole_with_its_markers_or_stays_whole() -> None:
    rng = random.Random(3)
    for _ in range(300):
        n = rng.randint(60, 200)
        media, at = [], 2
        while at + 12 < n:
            size = rng.randint(1, 8)
            media.append((at, size))
            at += size + 2 + rng.randint(0, 10)
        room = rng.randint(20, n)
        prompt, gone = cut_rows(_rows(n, *media), rng.choice(["oldest", "middle"]), room, 1)
        assert len(prompt) == n - gone <= max(room, n - gone)
        assert len(prompt) <= room
        assert prompt.tokens[0] == 0
        assert prompt.tokens[-1] == n - 1
        cuts = [i for i, (a, b) in enumerate(pairwise(prompt.tokens)) if b != a + 1]
        assert len(cuts) <= 1
        kept = {span.source.n_tokens: span for span in prompt.spans}
        assert all(
            prompt.tokens[span.first - 1 : span.first + span.n + 1]
            == tuple(range(prompt.tokens[span.first] - 1, prompt.tokens[span.first] + span.n + 1))
            for span in kept.values()
        )
        inside = set(prompt.tokens)
        for first, size in media:
            rows = set(range(first - 1, first + size + 1))
            assert rows <= inside or not rows & inside


def test_a_picture_at_the_end_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(gemmule.ContextLengthError) as caught:
        cut_rows(_rows(100, (10, 89)), "oldest", 50, 1)
    assert (caught.value.n_prompt, caught.value.n_ctx) == (100, 50)


# -- turns ---------------------------------------------------------------------------------------------------


def _size(message: Message) -> int:
    return len(message.text.split())


def _build(messages: Sequence[Message]) -> Prompt:
    words = " ".join(message.text for message in messages).split()
    return Prompt(tuple(range(len(words))), " ".join(words))


def _talk(n_turns: int, words: int = 10) -> list[Message]:
    out = [Message("system", "sys sys")]
    for i in range(n_turns):
        out += [
            Message("user", " ".join([f"q{i}"] * words)),
            Message("assistant", " ".join([f"a{i}"] * words)),
        ]
    return [*out, Message("user", "now")]


def _fit(
    history: Sequence[Message], policy: Any, n_ctx: int, n_answer: int = 0
) -> tuple[list[str], int, Prompt]:
    prompt, gone = fit_turns(history, policy, n_ctx=n_ctx, n_answer=n_answer, build=_build, size_of=_size)
    return list(dict.fromkeys(prompt.text.split())), gone, prompt


def test_whole_turns_go_and_system_and_the_last_stay() -> None:
    history = _talk(6)
    words, gone, prompt = _fit(history, "oldest", 60)
    assert words[0] == "sys"
    assert words[-1] == "now"
    assert gone == 123 - len(prompt)
    assert len(prompt) <= 60
    kept = [word for word in words[1:-1]]
    assert kept == [f"{kind}{i}" for i in range(6 - len(kept) // 2, 6) for kind in "qa"]
    assert "turns" in prompt.warnings[0]
    assert f"{gone} tokens" in prompt.warnings[0]
    words, _, _ = _fit(history, "middle", 80)
    assert words[:3] == ["sys", "q0", "a0"]
    assert words[-1] == "now"
    assert "q1" not in words


def test_a_turn_with_tool_calls_is_never_cut() -> None:
    call = ToolCall("f", {}, "c1")
    turn = [
        Message("user", "q " * 10),
        Message("assistant", "calls", tool_calls=(call,)),
        Message("tool", "result " * 10, tool_call_id="c1"),
        Message("assistant", "a " * 10),
    ]
    history = [*turn, *turn, *turn, Message("user", "now")]
    for n_ctx in range(1, 100):
        sizes = {0, 31, 62, 93}
        try:
            _, _, prompt = _fit(history, "oldest", n_ctx)
        except gemmule.ContextLengthError:  # pragma: no cover - only where not even "now" fits
            raise
        assert len(prompt) - 1 in sizes


def test_system_messages_between_turns_stay() -> None:
    history = [*_talk(3)[:3], Message("system", "rule"), *_talk(3)[3:]]
    words, _, _ = _fit(history, "oldest", 30)
    assert "rule" in words
    assert "q0" not in words


def test_error_keeps_everything_and_what_cannot_fit_is_an_error_with_both_numbers() -> None:
    history = _talk(2)
    assert _fit(history, "error", 5)[1] == 0
    for policy in ("oldest", "middle"):
        with pytest.raises(gemmule.ContextLengthError) as caught:
            _fit(history, policy, 2)
        assert (caught.value.n_prompt, caught.value.n_ctx) == (3, 2)
        assert _fit(history, policy, 3)[0] == ["sys", "now"]


def test_the_answer_gets_room_as_long_as_turns_can_go() -> None:
    _, _, prompt = _fit(_talk(6), "oldest", 100, n_answer=50)
    assert len(prompt) <= 50
    _, gone, prompt = _fit([Message("user", "w " * 80)], "oldest", 100, n_answer=50)
    assert (len(prompt), gone) == (80, 0)
    assert answer_room(None, 8192) == 1024
    assert answer_room(None, 1000) == 250
    assert answer_room(100, 8192) == 100
    assert answer_room(10**9, 8192) == 4096


def test_the_cut_stays_where_it_is_for_many_turns() -> None:
    rng = random.Random(11)
    for policy in ("oldest", "middle"):
        history, previous, n_moves = [Message("system", "sys sys")], "", 0
        for i in range(80):
            history.append(Message("user", " ".join([f"q{i}"] * rng.randint(1, 12))))
            _, _, prompt = _fit(history, policy, 300, n_answer=20)
            assert len(prompt) <= 280
            n_moves += not prompt.text.startswith(previous)
            previous = prompt.text
            history.append(Message("assistant", " ".join([f"a{i}"] * rng.randint(1, 12))))
        assert 5 <= n_moves <= 20, policy  # of 80 turns: about a quarter of the room goes each time


def test_a_first_turn_that_leaves_no_room_goes_too() -> None:
    history = [Message("user", "first " * 50), *_talk(3)[1:]]
    words, _, prompt = _fit(history, "middle", 40)
    assert "first" not in words
    assert words[-1] == "now"
    assert len(prompt) <= 40


def test_only_three_policies() -> None:
    assert policy_of({}) == "error"
    assert policy_of({"truncation": None}) == "error"
    for bad in ("auto", 3, True):
        with pytest.raises(ValueError, match="truncation"):
            policy_of({"truncation": bad})  # type: ignore[typeddict-item]


# -- models --------------------------------------------------------------------------------------------------

IDS = [2, *range(20, 200)]


def test_generate_goes_on_after_what_is_kept(tiny: gemmule.Model) -> None:
    with gemmule.Model(tiny.info.path, n_ctx=64) as model:
        with pytest.raises(gemmule.ContextLengthError):
            model.generate(IDS)
        for policy, expected in (
            ("oldest", [2, *IDS[-47:]]),
            ("middle", [*IDS[:24], *IDS[-24:]]),
        ):
            reply = model.generate(IDS, truncation=policy, temperature=0, max_tokens=16)  # type: ignore[arg-type]
            assert reply.tokens == model.generate(expected, temperature=0, max_tokens=16).tokens
            assert reply.usage.prompt_tokens == 48
            assert reply.usage.dropped_tokens == len(IDS) - 48
            assert "left out" in reply.warnings[-1]
            assert "more left out" in str(reply.usage)


def test_a_session_drops_what_it_holds(tiny: gemmule.Model) -> None:
    with tiny.session(n_ctx=64) as session:
        session.append(IDS[:50])
        reply = session.generate(IDS[50:70], truncation="oldest", temperature=0, max_tokens=8)
        kept = [2, *IDS[15:70]]
        assert session.tokens.tolist() == [*kept, *reply.tokens]
        assert reply.usage.dropped_tokens == 14
        assert reply.tokens == tiny.generate(kept, temperature=0, max_tokens=8).tokens
        reply = session.generate([7, 8, 9], truncation="middle", temperature=0, max_tokens=8)
        assert reply.usage.cached_tokens > 0  # the head need not be read again
        np.testing.assert_array_equal(session.logits, tiny.logits(session.tokens))


def test_a_session_that_has_room_goes_on_as_ever(tiny: gemmule.Model) -> None:
    with tiny.session(n_ctx=64) as session:
        session.append(IDS[:20])
        reply = session.generate([5], truncation="oldest", temperature=0, max_tokens=4)
        assert (reply.usage.cached_tokens, reply.usage.dropped_tokens) == (20, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemmule.Model]:
    with gemmule.Model(write_tiny_12b(tmp_path_factory.mktemp("tiny")), n_ctx=512) as model:
        yield model


def _chat(n: int) -> list[dict[str, str]]:
    out = [{"role": "system", "content": "be brief"}]
    for i in range(n):
        out += [
            {"role": "user", "content": f"question {i} about something"},
            {"role": "assistant", "content": f"answer {i}"},
        ]
    return [*out, {"role": "user", "content": "the last question"}]


def test_chat_leaves_out_turns_and_says_so(model: gemmule.Model) -> None:
    history = _chat(30)
    with pytest.raises(gemmule.ContextLengthError):
        model.chat(history)
    for policy in ("oldest", "middle"):
        prompt = model.render(history, truncation=policy, max_tokens=50)  # type: ignore[arg-type]
        assert len(prompt) <= 512 - 50
        assert "be brief" in prompt.text
        assert "the last question" in prompt.text
        assert ("question 0 " in prompt.text) == (policy == "middle")
        assert "question 29" in prompt.text
        assert prompt.text.count("<|turn>") == prompt.text.count("<turn|>") + 1
        reply = model.chat(history, truncation=policy, max_tokens=5)  # type: ignore[arg-type]
        assert reply.usage.prompt_tokens <= 512 - 5
        assert reply.usage.dropped_tokens > 0
        assert any("left out" in warning for warning in reply.warnings)


def test_pictures_go_with_their_turn_and_are_decoded_once(
    model: gemmule.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (48, 48, 3), np.uint8)
    decoded: list[Any] = []
    prepare = type(model._media).prepare

    def counted(self: Any, part: Any, image_tokens: int | None) -> Any:
        decoded.append(part)
        return prepare(self, part, image_tokens)

    monkeypatch.setattr(type(model._media), "prepare", counted)
    history = []
    for i in range(8):
        picture = gemmule.Image(pixels, tokens=70)
        history += [Message("user", (picture, f"look {i}")), Message("assistant", f"seen {i}")]
    history.append(Message("user", "now"))
    reply = model.chat(history, truncation="oldest", max_tokens=4)
    assert len(decoded) == 8
    assert 0 < reply.usage.image_tokens < 8 * 70
    prompt = model.render(history, truncation="oldest", max_tokens=4)
    assert prompt.text.count("<|image|>") == len(prompt.spans)


def test_a_session_chat_keeps_the_whole_conversation_and_its_cache(model: gemmule.Model) -> None:
    with model.session() as session:
        cached, sizes = 0, []
        for i in range(40):
            reply = session.chat(f"question {i} about something", truncation="oldest", max_tokens=3)
            sizes.append(reply.usage.prompt_tokens)
            cached += reply.usage.cached_tokens > reply.usage.prompt_tokens // 2
        assert max(sizes) <= 512 - 3
        assert len(session.messages) == 80
        assert reply.usage.dropped_tokens > 0
        assert cached >= 30  # most turns go on after what the session holds


def test_openai_requests_take_it(model: gemmule.Model) -> None:
    done = model.create_chat_completion(messages=_chat(30), truncation="oldest", max_tokens=3)
    assert any("left out" in warning for warning in done["warnings"])
