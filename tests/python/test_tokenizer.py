"""Encode and decode: llama.cpp's ids on the real vocabulary, injection safety, and refusal of bad arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmule import FormatError, Model, Tokenizer, UnsupportedError, _core
from gemmule._spm_merges import _order, _pairs_by_hash, _pairs_by_lookup

TEXTS = ["Hello", "  two  spaces ", "a\n\n\tb", "é 日本 🙂", "<bos>", "x" * 50, ""]


class FakeFile:
    """A small vocabulary with scores that a test can break."""

    path = "fake.gguf"

    def __init__(self, **changes: Any) -> None:
        normal = ["a", "b", "c", "ab", "bc", "abc", "\u2581", "\u2581a"]
        tokens = ["<unk>", "<eos>", "<bos>", *(f"<0x{b:02X}>" for b in range(256)), *normal]
        self.values: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [token.encode() for token in tokens],
            "tokenizer.ggml.scores": np.array([0.0] * 259 + [-i for i in range(8)], np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 8, np.int32),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 0,
        }
        for key, value in changes.items():
            full = f"tokenizer.ggml.{key}"
            if value is None:
                del self.values[full]
            else:
                self.values[full] = value

    def keys(self) -> list[str]:
        return list(self.values)

    def get(self, key: str) -> Any:
        return self.values[key]

    def get_token_bytes(self, key: str) -> list[bytes]:
        return self.values[key]


def test_scores_decide_the_merge_order() -> None:
    tokenizer = Tokenizer(FakeFile())
    a = 259
    assert tokenizer.encode("abc", add_bos=False) == [a + 5]  # ab (score -3) before bc (-4), then abc
    assert tokenizer.encode(" a") == [2, a + 7]
    assert tokenizer.encode("é", add_bos=False) == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([a + 7, 3 + 0xC3, 3 + 0xA9]) == " aé"
    assert tokenizer.eos_ids == {1}
    assert tokenizer.bos_id == 2


def test_the_converters_list_of_end_tokens_counts() -> None:
    file = FakeFile()
    file.values["gemmule.tokenizer.eos_token_ids"] = np.array([1, 260], np.uint32)
    assert Tokenizer(file).eos_ids == {1, 260}
    file.values["gemmule.tokenizer.eos_token_ids"] = np.array([1, 100_000], np.uint32)
    with pytest.raises(FormatError, match="eos_token_ids"):
        _ = Tokenizer(file).eos_ids


def test_bos_once_and_only_if_the_file_says_so() -> None:
    assert Tokenizer(FakeFile()).encode("<bos>a") == [2, 259]
    assert Tokenizer(FakeFile(add_bos_token=False)).encode("a") == [259]


def test_special_text_can_be_encoded_as_plain_text() -> None:
    tokenizer = Tokenizer(FakeFile())
    safe = tokenizer.encode("a<bos>b<eos>", special=False)
    assert not {1, 2} & set(safe[1:])
    assert tokenizer.decode(safe[1:]) == "a<bos>b<eos>"
    assert tokenizer.encode("a<bos>b", add_bos=False) == [259, 2, 260]  # the choice does not stick
    assert tokenizer.decode([2, 259], skip_special=True) == "a"


TOKENS = FakeFile().values["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"scores": np.zeros(3, np.float32)}, "scores"),
        ({"scores": None}, "scores"),
        ({"scores": np.full(267, np.nan, np.float32)}, "scores"),
        ({"token_type": np.zeros(267, np.int32)}, "token_type"),
        ({"token_type": np.ones(5, np.int32)}, "token_type"),
        ({"tokens": [b"x"] * 267}, "tokens"),
        ({"tokens": [*TOKENS[:-1], b"\xff"]}, "tokens"),
        ({"tokens": []}, "tokens"),
        ({"tokens": None}, "tokens"),
        ({"bos_token_id": 267}, "bos_token_id"),
        ({"model": "gemma4"}, "merges"),
        ({"model": "gemma4", "merges": [b"ab"]}, "merges"),
        ({"model": "gemma4", "merges": [b"q r"]}, "merges"),
    ],
)
def test_bad_vocabularies_are_refused_by_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(FormatError, match=rf"fake\.gguf.*tokenizer\.ggml\.{key}"):
        Tokenizer(FakeFile(**changes)).encode("a b")


def test_mislabelled_byte_token_is_refused() -> None:
    types = FakeFile().values["tokenizer.ggml.token_type"].copy()
    types[260] = 6
    with pytest.raises(FormatError, match="byte"):
        Tokenizer(FakeFile(token_type=types)).decode([3])


def test_unknown_vocabulary_kind_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="gpt2"):
        Tokenizer(FakeFile(model="gpt2"))


def test_embedded_json_is_used_and_checked() -> None:
    file = FakeFile()
    file.values["tokenizer.huggingface.json"] = Tokenizer(file)._engine.to_str()
    assert Tokenizer(file).encode("abc", add_bos=False) == [264]
    file.values["tokenizer.huggingface.json"] = "{}"
    with pytest.raises(FormatError, match=r"huggingface\.json"):
        Tokenizer(file).encode("abc")


def test_ids_and_text_are_checked() -> None:
    tokenizer = Tokenizer(FakeFile())
    with pytest.raises(ValueError, match="267"):
        tokenizer.decode([267])
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(TypeError):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_hashed_merges_equal_the_plain_loop() -> None:
    import random

    rng = random.Random(1)
    words = list(
        dict.fromkeys("".join(rng.choice("abé🙂") for _ in range(rng.randint(1, 6))) for _ in range(900))
    )
    ids = np.flatnonzero(np.array([rng.random() < 0.9 for _ in words]))
    scores = np.array([rng.randint(-50, 0) for _ in words], np.float32)
    hashed = _pairs_by_hash(words, ids)
    assert hashed is not None
    np.testing.assert_array_equal(_order(hashed, scores), _order(_pairs_by_lookup(words, ids), scores))


def test_tiny_models_round_trip(tiny: Model) -> None:
    for text in TEXTS:
        assert tiny.tokenizer.decode(tiny.tokenizer.encode(text, add_bos=False)) == text


@pytest.mark.real_model
def test_ids_equal_llama_cpp(demo_model_path: Path, golden: Path) -> None:
    tokenizer = Tokenizer(_core.GgufFile(str(demo_model_path)))
    rows = json.loads((golden / "tokenizer_gemma3_270m.json").read_text(encoding="utf-8"))
    assert len(rows) > 60
    for row in rows:
        assert tokenizer.encode(row["text"], add_bos=False) == row["ids"], row["text"]
    assert tokenizer.eos_ids == {1, 106}


@pytest.mark.real_model
def test_merge_cache_is_rebuilt_when_damaged(
    demo_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMULE_CACHE_DIR", str(tmp_path))
    file = _core.GgufFile(str(demo_model_path))
    ids = Tokenizer(file)._engine.encode("Hello world").ids
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"damaged")
    assert Tokenizer(file)._engine.encode("Hello world").ids == ids
    assert cached.stat().st_size > 1000


@pytest.mark.real_model
def test_image_markers_are_hidden_like_control_tokens(demo_model_path: Path) -> None:
    tokenizer = Tokenizer(_core.GgufFile(str(demo_model_path)))
    for name in ("<start_of_image>", "<end_of_image>", "[multimodal]"):
        token = tokenizer.id_of(name)
        assert token is not None
        assert tokenizer.is_special(token)
        assert tokenizer.decode([token]) == name
        assert tokenizer.decode([token], skip_special=True) == ""
        assert tokenizer.encode(name, add_bos=False) == [token]


def test_merges_that_spell_a_special_token_are_of_no_use_to_a_user() -> None:
    """A trained vocabulary may build <x> from its characters; typed text must still not become the token."""
    tokens = ["<unk>", "<eos>", "<bos>", *(f"<0x{b:02X}>" for b in range(256)), "<", "x", ">", "<x", "<x>"]
    tokenizer = Tokenizer(
        FakeFile(
            model="gemma4",
            tokens=[token.encode() for token in tokens],
            scores=None,
            token_type=np.array([2, 3, 3] + [6] * 256 + [1] * 4 + [3], np.int32),
            merges=[b"< x", b"<x >"],
        )
    )
    special = len(tokens) - 1
    assert tokenizer.encode("<x>", add_bos=False) == [special]
    for text in ("<x>", "a<x><x>b", "<<x>>"):
        ids = tokenizer.encode(text, add_bos=False, special=False)
        assert special not in ids
        assert tokenizer.decode(ids) == text
