"""Token ids to text, one id at a time, never splitting a code point.

Byte tokens <0xNN> carry raw UTF-8 bytes. They are collected until they form whole code points; bytes that
can no longer become valid become U+FFFD, and so does what is left over at the end. The whole-text decode
uses the same code, so streamed pieces always join to exactly the decoded text.
"""

import codecs
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from gemmule._core import StringIndex

__all__ = ["Detokenizer", "TokenBytes"]

_SPACE = "\u2581".encode()


class TokenBytes(Sequence[bytes]):
    """The bytes that each token stands for, made when asked for: spaces restored, byte tokens as they are."""

    def __init__(self, tokens: "StringIndex", bytes_: Mapping[int, bytes]) -> None:
        self._tokens = tokens
        self._bytes = bytes_

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, token: int) -> bytes: ...
    @overload
    def __getitem__(self, token: slice) -> list[bytes]: ...
    def __getitem__(self, token: int | slice) -> bytes | list[bytes]:
        if isinstance(token, slice):
            return [self[i] for i in range(*token.indices(len(self)))]
        found = self._bytes.get(token)
        return self._tokens[token].replace(_SPACE, b" ") if found is None else found


class Detokenizer:
    """Incremental decoder over a table of token bytes (spaces already restored, byte tokens already single
    bytes).
    """

    def __init__(self, table: Sequence[bytes], hidden: frozenset[int] = frozenset()) -> None:
        self._table = table
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that became complete with this token; possibly empty."""
        token = operator.index(token)
        if not 0 <= token < len(self._table):
            raise ValueError(f"token id {token} is outside the vocabulary of {len(self._table)}")
        if token in self._hidden:
            return ""
        return self._decoder.decode(self._table[token])

    def flush(self) -> str:
        """Ends the text: an incomplete byte sequence becomes U+FFFD. The object can then start over."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest

    def decode(self, tokens: Iterable[int]) -> str:
        """All tokens at once."""
        if isinstance(tokens, str | bytes | bytearray | memoryview):
            raise TypeError(f"give a list of ids to decode, not {type(tokens).__name__}")
        return "".join([self.feed(token) for token in tokens]) + self.flush()
