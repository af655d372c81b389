"""Streaming decode: pieces join to the whole, and no piece ends inside a code point."""

from hypothesis import given
from hypothesis import strategies as st

from gemmule import Detokenizer, Model

# A table of words, special text, and every byte.
TABLE = [b"<bos>", b" the", b"cat", "é".encode(), "🙂".encode(), b"\n", *(bytes([b]) for b in range(256))]
BYTES = 6


def test_bytes_are_held_until_the_character_is_whole() -> None:
    stream = Detokenizer(TABLE)
    smile = [BYTES + b for b in "🙂".encode()]
    assert [stream.feed(token) for token in smile] == ["", "", "", "🙂"]
    assert stream.flush() == ""


def test_broken_sequences_become_replacement_characters() -> None:
    stream = Detokenizer(TABLE)
    assert stream.feed(BYTES + 0xE2) == ""
    assert stream.feed(2) == "\ufffdcat"
    assert stream.feed(BYTES + 0xF0) == ""
    assert stream.flush() == "\ufffd"
    assert stream.feed(2) == "cat"


def test_hidden_tokens_do_not_break_a_character() -> None:
    stream = Detokenizer(TABLE, frozenset({0}))
    first, second = "é".encode()
    assert [stream.feed(BYTES + first), stream.feed(0), stream.feed(BYTES + second)] == ["", "", "é"]


@given(st.lists(st.integers(0, len(TABLE) - 1), max_size=60))
def test_pieces_join_to_the_whole(tokens: list[int]) -> None:
    stream = Detokenizer(TABLE)
    pieces = [stream.feed(token) for token in tokens] + [stream.flush()]
    whole = b"".join(TABLE[token] for token in tokens).decode("utf-8", "replace")
    assert "".join(pieces) == Detokenizer(TABLE).decode(tokens) == whole
    for piece in pieces:
        piece.encode()  # a lone half of a character would raise


def test_real_vocabulary_streams_like_it_decodes(tiny: Model) -> None:
    import random

    tokenizer = tiny.tokenizer
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(tokenizer.n_vocab) for _ in range(40)]
        for skip in (False, True):
            stream = tokenizer.detokenizer(skip_special=skip)
            joined = "".join(stream.feed(token) for token in ids) + stream.flush()
            assert joined == tokenizer.decode(ids, skip_special=skip)
