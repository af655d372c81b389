"""Rendered text in pieces that keep apart what the template wrote and what people wrote.

Text from people must never become a control token. Encoding each part apart would change tokens at the
seams, so only spots where such text spells a special token are cut out (`special=False`); all else stays
joined.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemmule._media.parts import MediaPart

__all__ = ["SPECIALS", "Piece", "PieceWriter", "special_pattern"]

_PAIRED = ("turn", "channel", "tool", "tool_call", "tool_response", "image", "audio")
# Every special token of Gemma 4 and Gemma 3, by its text.
SPECIALS: tuple[str, ...] = (
    *(f"<|{name}>" for name in _PAIRED),
    *(f"<{name}|>" for name in _PAIRED),
    *("<|image|>", "<|audio|>", "<|video|>", "<|think|>", '<|"|>'),
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to encode. `special=False`: special tokens in it are ordinary characters."""

    text: str
    special: bool = True


@lru_cache(maxsize=8)
def special_pattern(specials: tuple[str, ...] = SPECIALS) -> re.Pattern[str]:
    """Matches any special token's text, the longest first, and Gemma 3's <unused7>."""
    longest_first = sorted(specials, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest_first), r"<unused\d+>"]))


class PieceWriter:
    """Collects text and media: `text` the template's own words, `foreign` those of people and models."""

    def __init__(self, specials: tuple[str, ...] = SPECIALS) -> None:
        self._pattern = special_pattern(specials)
        self._pieces: list[Piece | MediaPart] = []
        self._run: list[str] = []
        self._foreign: list[tuple[int, int]] = []  # [start, end) within the run
        self._size = 0

    def text(self, text: str) -> None:
        self._run.append(text)
        self._size += len(text)

    def foreign(self, text: str) -> None:
        if text:
            self._foreign.append((self._size, self._size + len(text)))
            self.text(text)

    def media(self, part: "MediaPart") -> None:
        self._flush()
        self._pieces.append(part)

    def pieces(self) -> "list[Piece | MediaPart]":
        self._flush()
        return self._pieces

    def _flush(self) -> None:
        text, spots = "".join(self._run), self._foreign
        self._run, self._foreign, self._size = [], [], 0
        self._pieces += _cut(text, spots, self._pattern)


def _cut(text: str, spots: list[tuple[int, int]], pattern: re.Pattern[str]) -> Iterable[Piece]:
    """The text in pieces: a special token's spelling that touches a spot is one of its own. The whole text is
    searched, so that a token spelled by two neighbouring parts is found too.
    """
    starts = [start for start, _ in spots]
    done = 0
    for match in pattern.finditer(text) if spots else ():
        k = bisect_right(starts, match.end() - 1) - 1  # the last spot that begins inside or before the match
        if k < 0 or spots[k][1] <= match.start():
            continue
        if match.start() > done:
            yield Piece(text[done : match.start()])
        yield Piece(match[0], special=False)
        done = match.end()
    if done < len(text):
        yield Piece(text[done:])
