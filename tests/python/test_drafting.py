"""Drafting changes no answer and no bit: with any length and source, sampled or not, with grammars, tools,
media, rewinds and cancelled streams. Drafts are scripted where random weights would expect nothing rightly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule
from gemmule import _core
from gemmule._demo import world
from gemmule._drafting import Drafts
from media_files import pattern
from media_model import write_tiny_12b

Answer = Callable[..., gemmule.Reply]
PROMPTS = ["one two three one two three one", "Once upon a time there was a", "0 1 0 1 0 1 0", "x"]


@pytest.fixture(scope="module")
def tiny_12b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_12b(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny_12b: Path) -> Iterator[gemmule.Model]:
    with gemmule.Model(tiny_12b, n_ctx=512) as model:
        yield model


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Drafts of every later request: the given timeline, each token right with a chance."""

    def use(tokens: Iterable[int], accept: float, length: int, seed: int = 0) -> None:
        known = list(tokens)

        def start(
            self: Drafts, option: Any, sampler: Any, n_prompt: int, ends: Iterable[int]
        ) -> _core.Drafting | None:
            if option is False:
                return None
            return _core.Drafting(
                self.table, sampler, n_prompt=n_prompt, ends=sorted(ends), length=length, script=known,
                accept=accept, seed=seed,
            )  # fmt: skip

        monkeypatch.setattr(Drafts, "start", start)

    return use


def same(a: gemmule.Reply, b: gemmule.Reply) -> None:
    """All that an answer says, the log-probabilities to the bit."""
    assert a.tokens == b.tokens
    assert (a.text, a.thinking, a.finish_reason) == (b.text, b.thinking, b.finish_reason)
    calls, others = ([(call.name, call.arguments) for call in reply.tool_calls] for reply in (a, b))
    assert calls == others
    assert a.logprobs == b.logprobs
    assert a.usage == b.usage


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_same_answer_with_any_drafts(
    tiny_12b: Path, scripted: Callable[..., None], kv_type: str, n_threads: int
) -> None:
    with gemmule.Model(tiny_12b, n_ctx=256, kv_type=kv_type, n_threads=n_threads) as model:
        for i, prompt in enumerate(PROMPTS):
            for options in ({"temperature": 0}, {"seed": i, "top_k": 8, "repeat_penalty": 1.2}):
                options |= {"max_tokens": 40, "logprobs": 2, "logit_bias": dict.fromkeys([1, 106], -np.inf)}
                with model.session() as session:
                    plain = session.generate(prompt, draft=False, **options)
                    logits, timeline = session.logits, session.tokens.tolist()
                assert plain.timings.draft_n == 0
                for length, accept in ((0, 0.7), (1, 0.5), (3, 0.8), (7, 0.9), (12, 1)):
                    scripted(timeline, accept, length, seed=i)
                    with model.session() as session:
                        reply = session.generate(prompt, **options)
                        same(reply, plain)
                        np.testing.assert_array_equal(session.logits, logits)
                    if length:
                        assert reply.timings.draft_n > 0
                    assert reply.timings.draft_n_accepted > (5 if length else -1)


@pytest.mark.parametrize("draft", ["auto", "lookup", 1, 5])
def test_what_was_said_before_is_expected(tiny: gemmule.Model, draft: Any) -> None:
    """Random weights that always take the likeliest token soon repeat themselves."""
    options: Any = {"temperature": 0, "max_tokens": 120, "logprobs": 1}
    options["logit_bias"] = dict.fromkeys(tiny.tokenizer.eos_ids, -np.inf)
    plain = tiny.generate("a b c a b c", draft=False, **options)
    reply = tiny.generate("a b c a b c", draft=draft, **options)
    same(reply, plain)
    if isinstance(draft, int):  # otherwise measured time decides
        assert reply.timings.draft_n_accepted > 20
        assert len(reply.timings.draft_acceptance) >= 1
        assert "drafts right" in str(reply.timings)


DRAFTERS = {
    "tiny-gemma4-f32.gguf": "tiny-gemma4-drafter-f32.gguf",
    "tiny-gemma4-e2b-f16.gguf": "tiny-gemma4-e2b-drafter-f16.gguf",
    "tiny-gemma4-26b-f16.gguf": "tiny-gemma4-26b-drafter-f16.gguf",
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_same_answer_with_a_drafter(golden: Path, name: str) -> None:
    with gemmule.Model(golden / name, drafter=golden / DRAFTERS[name], n_ctx=256) as model:
        for options in ({"temperature": 0}, {"seed": 1, "top_k": 3}):
            asked: Any = {**options, "max_tokens": 60, "logprobs": 1}
            asked["logit_bias"] = dict.fromkeys(model.tokenizer.eos_ids, -np.inf)
            plain = model.generate("a b c a b c", draft=False, **asked)
            for draft in ("mtp", "auto", 1, 3, 8):
                reply = model.generate("a b c a b c", draft=draft, **asked)
                same(reply, plain)
                if isinstance(draft, int):
                    assert reply.timings.draft_n >= 20


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_round_begins_where_the_answer_is(golden: Path, name: str) -> None:
    """The drafts are the drafter's own from the right state, also after half of the last ones were right."""
    model = _core.Model(str(golden / name))
    drafter = _core.Drafter(model, _core.GgufFile(str(golden / DRAFTERS[name])))
    rng = np.random.default_rng(1)
    session, reference = model.session(n_ctx=200), model.session(n_ctx=200)
    prompt = rng.integers(0, model.n_vocab, 70).astype(np.int32)
    session.append(prompt)
    hidden = reference.append_hidden(prompt)[-1]
    drafting = _core.Drafting(
        _core.DraftTable(), _core.Sampler(temperature=0), drafter=drafter, lookup=False, length=4
    )
    expected = 0
    for n_right in (4, 0, 2, 1, 4, 3):
        token = int(rng.integers(0, model.n_vocab))
        said, state = [token], hidden
        for _ in range(n_right):
            logits, state = drafter.step(reference, said[-1], state, reference.n_tokens)
            said.append(int(logits.argmax()))
        for one in said:
            drafting.append(session, one, most=10)
        expected += n_right
        assert drafting.n_accepted == expected
        hidden = reference.append_hidden(np.array(said, np.int32))[-1]
        np.testing.assert_array_equal(session.logits(), model_logits(model, session.tokens))


def model_logits(model: _core.Model, tokens: np.ndarray) -> np.ndarray:
    fresh = model.session(n_ctx=len(tokens))
    fresh.append(tokens)
    return fresh.logits()


def chat_cases() -> list[dict[str, Any]]:
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return city

    shape = {
        "type": "object", "properties": {"a": {"enum": ["x", "yy"]}, "n": {"type": "integer"}},
        "required": ["a", "n"], "additionalProperties": False,
    }  # fmt: skip
    sound = np.sin(np.arange(16000, dtype=np.float32))
    return [
        {"schema": shape},
        {"choices": ["first answer", "first choice", "second"]},
        {"tools": [weather], "tool_choice": "required"},
        {"think": 8, "regex": "[a-c]{5}"},
        {"images": gemmule.Image(pattern(96, 96), tokens=70)},
        {"audio": gemmule.Audio((sound, 16000))},
        {"stop": ["e", "a"]},
    ]


@pytest.mark.parametrize("case", range(len(chat_cases())))
def test_grammars_tools_and_media(model: gemmule.Model, scripted: Callable[..., None], case: int) -> None:
    options: Any = {"max_tokens": 30, "logprobs": 1, "seed": 3, **chat_cases()[case]}
    plain = model.chat("Tell me.", draft=False, **options)
    asked = {name: options[name] for name in options if name not in ("max_tokens", "logprobs", "seed")}
    timeline = (*model.render("Tell me.", **asked).tokens, *plain.tokens)
    for length, accept in ((2, 0.6), (8, 1), (0, 0.9)):
        scripted(timeline, accept, length)
        same(model.chat("Tell me.", **options), plain)


def test_what_a_grammar_demands_is_run_ahead(model: gemmule.Model) -> None:
    """A model that knows nothing still writes the names of the fields in one pass each."""
    named = {name: {"type": "boolean"} for name in ("first_name_of_a_field", "and_another_one")}
    schema = {"type": "object", "properties": named, "required": [*named], "additionalProperties": False}
    options: Any = {"schema": schema, "max_tokens": 200, "logprobs": 1, "seed": 1}
    plain = model.chat("Tell me.", draft=False, **options)
    for draft in ("auto", "lookup", 4):
        reply = model.chat("Tell me.", draft=draft, **options)
        same(reply, plain)
        if isinstance(draft, int):  # otherwise measured time decides
            assert reply.timings.draft_n_accepted >= 20
            assert reply.timings.draft_n_accepted > 0.8 * reply.timings.draft_n


def test_sessions_rewind_fork_save_and_cancel_in_the_middle(
    model: gemmule.Model, scripted: Callable[..., None], tmp_path: Path
) -> None:
    options: Any = {"temperature": 0, "logit_bias": dict.fromkeys(model.tokenizer.eos_ids, -np.inf)}
    with model.session() as session:
        session.generate("Begin here", max_tokens=60, draft=False, **options)
        timeline = session.tokens.tolist()
    scripted(timeline, 0.9, 6)
    session = model.session()
    stream = session.generate("Begin here", stream=True, max_tokens=60, **options)
    for _ in range(10):
        next(stream)
    stream.close()  # with rows ahead
    held = session.n_tokens
    assert session.tokens.tolist() == timeline[:held]
    session.save(tmp_path / "s")
    for one in (session.fork(), model.load_session(tmp_path / "s"), session):
        one.generate(max_tokens=60 - held, **options)
        assert one.tokens.tolist() == timeline[: one.n_tokens]
        one.rewind(held - 2)
        one.generate(max_tokens=20, **options)
        assert one.tokens.tolist() == timeline[: held - 2 + 20]
        with model.session() as fresh:
            fresh.append(one.tokens)
            np.testing.assert_array_equal(one.logits, fresh.logits)


def test_several_sessions_take_turns(model: gemmule.Model, scripted: Callable[..., None]) -> None:
    options: Any = {"temperature": 0, "max_tokens": 30}
    expected = [model.generate(prompt, draft=False, **options) for prompt in PROMPTS]
    scripted(range(400), 0.5, 3)
    streams = [model.generate(prompt, stream=True, **options) for prompt in PROMPTS]
    for step in range(40):
        for stream in streams:
            next(stream, None)
        if step == 7:
            model.generate("in between", max_tokens=5)
    for stream, plain in zip(streams, expected, strict=True):
        assert stream.reply.tokens == plain.tokens


def test_nothing_is_drafted_beyond_the_last_token(
    model: gemmule.Model, scripted: Callable[..., None]
) -> None:
    scripted([7] * 400, 1, 12)
    assert model.generate("x", max_tokens=1).timings.draft_n == 0
    assert model.generate("x", max_tokens=2).timings.draft_n == 0
    assert model.generate("x", max_tokens=3, logit_bias={7: 1e6}).timings.draft_n == 1


def test_options_are_checked(model: gemmule.Model) -> None:
    for bad in ("always", -1, 13, 1.5, None):
        with pytest.raises(ValueError, match="draft"):
            model.generate("x", max_tokens=1, draft=bad)
    with pytest.raises(ValueError, match="has none"):
        model.chat("x", max_tokens=1, draft="mtp")
    for fine in (True, False, 0, 12, "auto", "lookup"):
        model.generate("x", max_tokens=2, draft=fine)


def test_openai_reports_drafts(model: gemmule.Model) -> None:
    request: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "draft": 2}
    timings = model.create_chat_completion(**request)["timings"]
    assert timings["draft_n"] >= timings["draft_n_accepted"] >= 0


def test_what_was_learnt_is_kept(
    tiny_12b: Path, tmp_path: Path, scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._drafting.cache_dir", lambda: tmp_path)
    with gemmule.Model(tiny_12b, n_ctx=256) as model:
        bias = dict.fromkeys(model.tokenizer.eos_ids, -np.inf)
        model.generate("x", max_tokens=200, draft=1, logit_bias=bias)
        table = model._drafts.table
        assert set(table.pass_times()) >= {1}
        numbers = table.numbers
    (kept,) = (tmp_path / "draft").iterdir()
    record = json.loads(kept.read_text())
    assert record["numbers"] == pytest.approx(numbers, abs=1e-4)
    numbers[1] = 1.5  # what was measured on a model this small may be beyond belief
    kept.write_text(json.dumps({**record, "numbers": numbers}))
    with gemmule.Model(tiny_12b, n_ctx=256) as model:
        assert model._drafts.table.numbers == pytest.approx(numbers, abs=1e-4)
    for nonsense in (
        "",
        "{}",
        "[" * 100_000,
        "[]",
        '{"numbers": [1, 2]}',
        '{"numbers": "no"}',
        '{"numbers": null}',
    ):
        kept.write_text(nonsense)
        with gemmule.Model(tiny_12b, n_ctx=256) as model:
            model.generate("x", max_tokens=3)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("gemmule._drafting.cache_dir", homeless)
    with gemmule.Model(tiny_12b, n_ctx=256) as model:
        model.generate("x", max_tokens=100, draft=1, logit_bias=bias)


@pytest.mark.slow
def test_three_hundred_prompts_of_a_trained_model(tmp_path: Path) -> None:
    """The small model of the package: its own text repeats, so that drafts are right, wrong and mixed."""
    path = tmp_path / "demo.gguf"
    gemmule.convert(Path(world.__file__).with_name("model"), path, type="Q8_0")
    rng = np.random.default_rng(5)
    words = [
        "the",
        "red",
        "ball",
        "is",
        "left",
        "of",
        "blue",
        "box",
        "and",
        "a",
        "circle",
        "above",
        "it",
        "what",
        "where",
    ]
    n_right = 0
    for n_threads, kv_type in ((1, "f16"), (2, "q8_0")):
        with gemmule.Model(path, n_ctx=512, n_threads=n_threads, kv_type=kv_type) as model:
            for i in range(150):
                prompt = " ".join(rng.choice(words, rng.integers(3, 40)))
                options: Any = {"max_tokens": 30, "logprobs": 1, "seed": i % 3}
                if i % 4 == 0:
                    options["temperature"] = 0
                plain = model.generate(prompt, draft=False, **options)
                for draft in (1, 3, 7, "auto", "lookup"):
                    reply = model.generate(prompt, draft=draft, **options)
                    same(reply, plain)
                    n_right += reply.timings.draft_n_accepted
    assert n_right > 1000
