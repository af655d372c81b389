"""The engine of the tokens that occur in a text gives the ids of the engine of the whole vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule import FormatError, Tokenizer, _core, _tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TINY = [GOLDEN / "tiny-gemma3-f32.gguf", GOLDEN / "tiny-gemma4-f32.gguf"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FRAGMENTS = (
    "the", " the ", "Hello", "ing", "user", "model", "\u2581", "\u2581\u2581", " " * 17, "\n\n\n", "\t", "é",
    "日本語", "🙂", "👩‍👩‍👧", "\u0301", "\u0000", "\ufffd", "\ufeff", "\U0010ffff", "<0xE2>", "<0x4",
    "<", ">", "<bos>", "<eos>", "<unk>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>",
    "<|channel>", '<|"|>', "<unused7>", "<start_of_image>", "<|image|>", "[multimodal]", "<h1>", "</",
    "1234567890",
)  # fmt: skip
# Not st.text(): its table of all characters takes seconds to make.
characters = st.integers(0, 0x10F7FF).map(lambda n: chr(n if n < 0xD800 else n + 0x800))
words = st.lists(characters | st.sampled_from("ab <>\u2581\n"), max_size=12).map("".join)
texts = st.lists(st.sampled_from(FRAGMENTS) | words, max_size=12).map("".join)


def assert_equal_ids(tokenizer: Tokenizer, text: str) -> None:
    whole = tokenizer._engine
    part = tokenizer._from_part(text)
    assert part is not None
    for special in (True, False):
        whole.encode_special_tokens = part.encode_special_tokens = not special
        expected = whole.encode(text, add_special_tokens=False).ids
        assert part.encode(text, add_special_tokens=False).ids == expected, (text, special)


@pytest.fixture(scope="module", params=TINY, ids=lambda path: path.stem)
def tiny_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(_core.GgufFile(str(request.param)))


@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_tiny_vocabularies(tiny_tokenizer: Tokenizer, text: str) -> None:
    assert_equal_ids(tiny_tokenizer, text)


@pytest.fixture(scope="module")
def real_tokenizer(demo_model_path: Path) -> Tokenizer:
    return Tokenizer(_core.GgufFile(str(demo_model_path)))


@pytest.mark.real_model
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_the_real_vocabulary(real_tokenizer: Tokenizer, text: str) -> None:
    assert_equal_ids(real_tokenizer, text)


class Arrays:
    """A vocabulary in memory."""

    path = "arrays.gguf"

    def __init__(self, tokens: list[str], merges: list[bytes] | None) -> None:
        names = ["<unk>", "<bos>", *BYTES, *tokens]
        self.values: dict[str, Any] = {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": [name.encode() for name in names],
            "tokenizer.ggml.token_type": np.array([2, 3] + [6] * 256 + [1] * len(tokens), np.int32),
            "tokenizer.ggml.unknown_token_id": 0,
        }
        if merges is not None:
            self.values["tokenizer.ggml.merges"] = merges

    def keys(self) -> list[str]:
        return list(self.values)

    def get(self, key: str) -> Any:
        return self.values[key]

    def get_token_bytes(self, key: str) -> list[bytes]:
        value: list[bytes] = self.values[key]
        return value


@pytest.mark.parametrize(
    ("tokens", "merges", "text"),
    [
        (["a", "b", "c", "ab", "bc"], [b"a b", b"b c", b"a b"], "abc ab"),  # repeated: the last place counts
        (["a", "<0xC3><0xA9>", "a<0xC3>"], [b"<0xC3> <0xA9>", b"a <0xC3>"], "aé é"),  # merges of byte names
        (["<", "0", "x", "4", "1", ">", "<0"], [b"< 0"], "<0x41>A"),
        (["a", " ", "a ", " a"], [b"a  ", b"  a"], "a a"),  # spaces that no text can hold any more
    ],
)
def test_odd_merges(tokens: list[str], merges: list[bytes], text: str) -> None:
    assert_equal_ids(Tokenizer(Arrays(tokens, merges)), text)


def test_what_a_part_cannot_tell_is_left_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokenizer, "_FEW_TOKENS", 0)
    file = Arrays(["a"], [])
    assert Tokenizer(file)._from_part("aé") is not None
    file.values["tokenizer.ggml.tokens"][2 + 0xC3] = b"<0xGG>"
    assert Tokenizer(file)._from_part("aé") is None
    assert Tokenizer(file).encode("aé", add_bos=False) == [258, 0]
    broken = Tokenizer(Arrays(["a", "\ufffd", "a\ufffd"], [b"a \xff"]))
    assert broken._from_part("a\ufffd") is None
    assert broken.encode("a\ufffd", add_bos=False) == [260]


def test_the_whole_engine_is_made_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokenizer, "_FEW_TOKENS", 0)
    monkeypatch.setattr(_tokenizer, "_SMALL_COSTS", 1000)
    tokenizer = Tokenizer(Arrays(["a", "aa"], [b"a a"]))
    n_small = 0
    while "_engine" not in tokenizer.__dict__:
        assert tokenizer.encode("aaa", add_bos=False) == [259, 258]
        n_small += 1
    assert 5 < n_small < 25
    other = Tokenizer(Arrays(["a"], []))
    other.encode("a" * 2000)
    assert "_engine" in other.__dict__


def test_missing_merges_are_refused_at_once_and_bad_ones_by_the_whole_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_tokenizer, "_FEW_TOKENS", 0)
    with pytest.raises(FormatError, match=r"the key tokenizer\.ggml\.merges is missing"):
        Tokenizer(Arrays(["a"], None)).encode("a")
    for merges in ([b"ab"], [b"q r"]):
        tokenizer = Tokenizer(Arrays(["a"], merges))
        assert tokenizer.encode("a", add_bos=False) == [258]
        with pytest.raises(FormatError, match=r"arrays\.gguf: tokenizer\.ggml\.merges"):
            tokenizer.encode("a" * 100_000)
