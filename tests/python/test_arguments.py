"""Wrong arguments: one sentence that names the argument, never a message of the binding layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule

IDS = [2, *range(20, 40)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", 10**21),
        ("n_ctx", 0),
        ("n_ctx", 1.5),
        ("n_ctx", True),
        ("n_ctx", np.array([64])),
        ("n_threads", 1.5),
        ("n_threads", 10**12),
        ("n_threads", 1025),
        ("n_threads", "2"),
        ("n_threads", 0),
        ("kv_type", None),
        ("kv_type", 5),
        ("isa", 5),
    ],
)
def test_model_names_the_argument(tiny_gemma3_path: Path, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as caught:
        gemmule.Model(tiny_gemma3_path, **{name: value})
    assert "incompatible" not in str(caught.value)


@pytest.mark.parametrize("options", [{"n_ctx": 10**20}, {"kv_type": None}, {"n_ctx": "4k"}])
def test_estimate_names_the_argument(tiny_gemma3_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        gemmule.estimate(tiny_gemma3_path, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", 1.5),
        ("logprobs", "a"),
        ("logprobs", 101),
        ("cancel", threading.Event()),
        ("progress", 5),
        ("stop", 5),
        ("stop", [1]),
        ("stop", ""),
        ("max_tokens", 1.5),
        ("max_tokens", -1),
        ("logit_bias", [1, 2]),
        ("logit_bias", 5),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {3: "a"}),
        ("temperature", "hot"),
    ],
)
def test_generate_names_the_argument(tiny: gemmule.Model, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as caught:
        tiny.generate(IDS, **{name: value})
    assert "incompatible" not in str(caught.value)


@pytest.mark.parametrize("n", [1.5, "a", None, -1])
def test_rewind_wants_a_whole_number(tiny: gemmule.Model, n: Any) -> None:
    with tiny.session(n_ctx=64) as session:
        session.append(IDS)
        with pytest.raises(ValueError, match="whole number"):
            session.rewind(n)


@pytest.mark.parametrize("shape", [None, 1.5, "32", (), (1.5,)])
def test_dequantize_wants_a_shape(shape: Any) -> None:
    with pytest.raises(TypeError, match="shape must be one or more integers"):
        gemmule.dequantize(np.zeros(34, np.uint8), "Q8_0", shape)


@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.int64])
def test_numpy_integers_are_integers(tiny_gemma3_path: Path, kind: Callable[[int], Any]) -> None:
    assert gemmule.estimate(tiny_gemma3_path, n_ctx=kind(64)).n_ctx == 64
    with gemmule.Model(tiny_gemma3_path, n_ctx=kind(64), n_threads=kind(1)) as model:
        options = {"max_tokens": kind(3), "seed": kind(5), "top_k": kind(7)}
        reply = model.generate([kind(i) for i in IDS], **options, logit_bias={kind(9): np.float32(-1)})
        expected = model.generate(IDS, max_tokens=3, seed=5, top_k=7, logit_bias={9: -1.0})
        assert reply.tokens == expected.tokens
        assert reply.to_dict()["seed"] == 5
        assert model.score(IDS, n_ctx=kind(8), top=kind(1)).n_ctx == 8
        assert model.session(n_ctx=kind(16)).n_ctx == 16


def test_numpy_floats_are_numbers() -> None:
    params = gemmule.SamplingParams(temperature=np.float32(0.5), top_p=np.float64(0.5))
    assert (params.temperature, type(params.temperature)) == (0.5, float)


@pytest.mark.parametrize(
    "prompt", [b"x", bytearray(b"x"), memoryview(b"x"), [bytearray(b"x")], [memoryview(b"x")]]
)
def test_bytes_are_no_prompt(tiny: gemmule.Model, prompt: Any) -> None:
    with pytest.raises(gemmule.UnsupportedError):
        tiny.generate(prompt, max_tokens=1)


@pytest.mark.parametrize("prompt", [iter([2, 3]), {2, 3}, {2: 3}])
def test_other_collections_are_asked_to_be_lists(tiny: gemmule.Model, prompt: Any) -> None:
    with pytest.raises(gemmule.UnsupportedError, match="give a list of ids"):
        tiny.generate(prompt, max_tokens=1)


@pytest.mark.parametrize("ids", [[1.7], "12", b"12", ["1"]])
def test_decode_wants_whole_numbers(tiny: gemmule.Model, ids: Any) -> None:
    with pytest.raises(TypeError):
        tiny.tokenizer.decode(ids)
    assert tiny.tokenizer.decode(np.array([65, 66])) == tiny.tokenizer.decode([65, 66])


def test_an_unknown_option_is_named_with_its_method(tiny: gemmule.Model) -> None:
    with tiny.session(n_ctx=64) as session, pytest.raises(TypeError, match=r"generate\(\).*'temprature'"):
        session.generate(IDS, temprature=3)  # type: ignore[call-overload]


def test_a_context_above_the_trained_length_is_said(tiny_gemma3_path: Path) -> None:
    trained = gemmule.inspect(tiny_gemma3_path).n_ctx_train
    with gemmule.Model(tiny_gemma3_path, n_ctx=trained + 1) as model:
        assert f"above the trained {trained}" in model.plan.reason
        (sentence,) = model.generate(IDS, max_tokens=1).warnings
        assert f"above the trained {trained}" in sentence
        assert model.session(n_ctx=64).generate(IDS, max_tokens=1).warnings == ()
    with gemmule.Model(tiny_gemma3_path, n_ctx=64) as model:
        assert model.generate(IDS, max_tokens=1).warnings == ()
