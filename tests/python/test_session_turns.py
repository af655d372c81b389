"""A turn costs its new tokens: what a chat with thinking runs, what `usage.cached_tokens` says, and forks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule._session import Session
from media_files import pattern
from media_model import write_tiny_12b

N_TURNS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemmule.Model]:
    with gemmule.Model(write_tiny_12b(tmp_path_factory.mktemp("tiny")), n_ctx=8192) as model:
        yield model


@pytest.fixture
def say(model: gemmule.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Scripts the tokens of the next answer; returns their number."""
    waiting: list[int] = []

    def sample(
        self: Session, sampler: Any, n_prompt: int, mask: Any, stop: Any
    ) -> tuple[int, float, list[Any]]:
        token = waiting.pop(0)
        self._put(token)
        return token, -1.0, []

    def say(text: str) -> int:
        ids = model.tokenizer.encode(text, add_bos=False)
        waiting.extend(ids)
        return len(ids)

    monkeypatch.setattr(Session, "_sample", sample)
    return say


def same_start(a: Any, b: Any) -> int:
    """How many tokens two sequences share at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("images", [False, True])
def test_twenty_turns_with_thinking_run_only_new_tokens(
    model: gemmule.Model, say: Callable[[str], int], images: bool
) -> None:
    """Every third answer thinks for longer than the sliding rings keep what they overwrite."""
    session = model.session(system="be brief")
    before = 0
    for turn in range(N_TURNS):
        n_said = say(
            f"<|channel>thought\n{'hm ' * (600 if turn % 3 == 1 else 5)}<channel|>Answer {turn}.<turn|>"
        )
        content: Any = f"Question {turn}?"
        if images and turn % 5 == 2:
            content = [gemmule.Image(pattern(96, 96) + np.uint8(turn), tokens=70), content]
        timeline = session.tokens.tolist()
        reply = session.chat([{"role": "user", "content": content}], think=True)
        assert reply.finish_reason == "stop"
        assert len(reply.tokens) == n_said
        prompt = model.render(session.messages[:-1], think=True)
        usage = reply.usage
        assert usage.prompt_tokens == len(prompt)
        # The text alone: whatever parts the prompts, the model runs no token before it again. The one token
        # more is the answer's last, which was sampled and never run.
        shared = same_start(timeline, prompt.tokens)
        assert shared - 1 <= usage.cached_tokens <= shared
        assert reply.timings.prompt_n == usage.prompt_tokens - usage.cached_tokens
        # The new part of the prompt, with the answer before it rendered again without its thoughts.
        assert usage.prompt_tokens - usage.cached_tokens <= len(prompt) - before + 8
        before = len(prompt)
    fresh = model.session()
    fresh.append(prompt)
    session.rewind(len(prompt))
    np.testing.assert_array_equal(session.logits, fresh.logits)


def test_without_snapshots_the_count_is_honest(model: gemmule.Model, say: Callable[[str], int]) -> None:
    session = model.session(snapshot_limit=0)
    for turn in range(2):
        say(f"<|channel>thought\n{'hm ' * 600}<channel|>Yes.<turn|>")
        reply = session.chat(f"Question {turn}?", think=True)
    assert reply.usage.cached_tokens == 0
    assert reply.timings.prompt_n == reply.usage.prompt_tokens
    fresh = model.session()
    fresh.append(model.render(session.messages[:-1], think=True))
    session.rewind(fresh.n_tokens)
    np.testing.assert_array_equal(session.logits, fresh.logits)


def test_an_answer_made_again_runs_one_token(model: gemmule.Model, say: Callable[[str], int]) -> None:
    session = model.session()
    for _ in range(3):
        say("word " * 700 + "<turn|>")
        session.messages = []
        reply = session.chat("Tell me.")
    assert reply.usage.prompt_tokens - reply.usage.cached_tokens == 1


def test_forks_share_the_past_and_not_the_future(model: gemmule.Model, say: Callable[[str], int]) -> None:
    session = model.session(system="be brief")
    say("One.<turn|>")
    session.chat("Count.")
    with session.fork() as fork:
        assert fork.messages == session.messages
        np.testing.assert_array_equal(fork.tokens, session.tokens)
        for name, one in (("Two.", session), ("Zwei.", fork)):
            say(f"{name}<turn|>")
            reply = one.chat("Go on.")
            assert reply.text == name
            assert reply.usage.cached_tokens >= one.n_tokens - len(reply.tokens) - 30
        assert [message.text for message in fork.messages][-3:] == ["One.", "Go on.", "Zwei."]
        for one in (session, fork):
            fresh = model.session()
            fresh.append(one.tokens)
            np.testing.assert_array_equal(one.logits, fresh.logits)
    assert session.n_tokens > 0


def test_snapshot_limits_are_checked(model: gemmule.Model) -> None:
    assert model.session(snapshot_limit="1MiB")._engine().snapshot_limit == 1 << 20
    assert model.session(snapshot_limit=0)._engine().snapshot_limit == 0
    assert model.session()._engine().snapshot_limit > 0
    for wrong in (-1, "many", True, 1.5):
        with pytest.raises(ValueError, match="snapshot_limit"):
            model.session(snapshot_limit=wrong)  # type: ignore[arg-type]
