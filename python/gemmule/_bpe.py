"""BPE engines of the `tokenizers` package: for a whole vocabulary, or for the tokens that one text can use.

BPE joins neighbours, so every token that it can make of a text is a part of that text. An engine of the
tokens that occur in the text, with the merges among them in their old order, therefore gives the very same
ids; it is made in a millisecond, where that of 262,144 tokens and 513,000 merges takes a second. Characters
without a token of their own are looked for as what they fall back to, the names of their bytes.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmule._spm_merges import merges_among

if TYPE_CHECKING:
    import tokenizers

    from gemmule._core import StringIndex

__all__ = ["SPACE", "make_engine", "score_pairs", "stored_pairs", "tokens_inside"]

SPACE = "\u2581"


def make_engine(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unknown: str | None,
    special: Iterable[str],
    added: Iterable[str],
) -> "tokenizers.Tokenizer":
    """An engine; `special` are the tokens that encode_special_tokens turns into ordinary text, `added` the
    others that are split off first. Merges that do not fit the vocabulary raise what `tokenizers` raises.
    """
    import tokenizers
    from tokenizers import AddedToken, models, normalizers

    bpe = models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    engine = tokenizers.Tokenizer(bpe)
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special if name])
    engine.add_tokens([AddedToken(name, normalized=False, special=False) for name in added if name])
    return engine


def tokens_inside(text: str, tokens: "StringIndex") -> dict[int, str] | None:
    """Every token that an engine could make of `text` or split off it, by id; None where that cannot be told:
    a character has neither a token nor those of all its bytes.
    """
    changed = text.replace(" ", SPACE)
    names: dict[int, str] = {}
    spelled = {}
    for char in set(changed):
        raw = char.encode()
        if tokens.find(raw) is None:
            spelled[ord(char)] = "".join([f"<0x{byte:02X}>" for byte in raw])
            if any(tokens.find(b"<0x%02X>" % byte) is None for byte in raw):
                return None
    if changed != text:  # markup is split off before spaces change
        names.update((i, name.decode()) for i, name in tokens.find_inside(text.encode()))
    if spelled:
        changed = changed.translate(spelled)
    names.update((i, name.decode()) for i, name in tokens.find_inside(changed.encode()))
    return names


def stored_pairs(names: Iterable[str], merges: "StringIndex") -> list[tuple[str, str]]:
    """The merges among some tokens, in the order of the file, whose items are "left right". Of a merge that
    occurs twice the last place counts, as in the whole engine.
    """
    known = frozenset(names)
    ranked = []
    for name in known:
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            # A space inside the left part would be read as the end of it.
            if left in known and right in known and left.find(" ", 1) < 0:
                rank = merges.find(f"{left} {right}".encode())
                if rank is not None:
                    ranked.append((rank, left, right))
    ranked.sort()
    return [(left, right) for _, left, right in ranked]


def score_pairs(
    names: Mapping[int, str], scores: NDArray[np.float32], normal: NDArray[np.bool_]
) -> list[tuple[str, str]]:
    """The merges among some tokens of a vocabulary with scores, best first."""
    ids = np.array([i for i in sorted(names) if normal[i]], np.int64)
    return [(names[left], names[right]) for left, right in merges_among(names, ids, scores).tolist()]
