"""Text to token ids and back, rebuilt from the arrays of a GGUF file with the `tokenizers` package.

model "gemma4": BPE with the stored merges. model "llama": SentencePiece scores, merges regenerated
(_spm_merges.py). Both: special tokens are split off first on the raw text, then space -> U+2581, then BPE
with byte fallback; no pre-tokenizer, nothing trimmed, no prefix space. A file may carry
`tokenizer.huggingface.json`, which is then used as it is.

A large vocabulary is searched where it lies in the file, and short texts are encoded with an engine of the
tokens that occur in them (_bpe.py). The engine of the whole vocabulary is made when its second of time is
worth it, and only then are all merges of the file checked.
"""

import gc
import operator
import re
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemmule._bpe import SPACE, make_engine, score_pairs, stored_pairs, tokens_inside
from gemmule._core import GgufFile, StringIndex
from gemmule._detokenizer import Detokenizer, TokenBytes
from gemmule._errors import FormatError, UnsupportedError
from gemmule._spm_merges import spm_merges

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Detokenizer", "MetadataFile", "Tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_SCORES = "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"
_JSON = "tokenizer.huggingface.json"
# Tokens that end a turn without being the file's eos: Gemma 3, Gemma 4, and Gemma 4's wait for a tool answer.
_END_NAMES = ("<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>")
# Places for images: user-defined in Gemma 3's files, yet never text for a reader.
_MARKER_NAMES = ("<start_of_image>", "<end_of_image>", "[multimodal]")
_FEW_TOKENS = 20_000  # up to here the whole engine is made at once; it takes milliseconds
# What engines for single texts may cost in all before the whole one is made: a third of its time. The cost of
# one is its characters (7 us each) and a constant.
_SMALL_COSTS = 60_000
_SMALL_COST = 50


class MetadataFile(Protocol):
    """The part of a GGUF file that the tokenizer reads."""

    @property
    def path(self) -> str: ...
    def keys(self) -> list[str]: ...
    def get(self, key: str) -> Any: ...
    def get_token_bytes(self, key: str) -> list[bytes]: ...


class Tokenizer:
    """Encodes and decodes with the vocabulary of one file. Cheap to make; the vocabulary is built at first
    use.
    """

    def __init__(self, file: MetadataFile) -> None:
        self._file = file
        self._keys = frozenset(file.keys())
        self._where = file.path
        self.model = self._read("tokenizer.ggml.model", str, "")
        if self.model not in ("gemma4", "llama"):
            raise UnsupportedError(
                f"{self._where}: tokenizer.ggml.model is {self.model[:40]!r}; "
                "'gemma4' and 'llama' vocabularies are supported"
            )
        if _TOKENS not in self._keys:
            raise FormatError(f"{self._where}: the key {_TOKENS} is missing; the file has no vocabulary")
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._spent = 0  # on engines for single texts
        self.adds_bos = bool(self._read("tokenizer.ggml.add_bos_token", bool, True))

    # -- vocabulary ----------------------------------------------------------------------------------------

    @cached_property
    def _tokens(self) -> StringIndex:
        """The tokens, each once and each valid UTF-8, searched in place."""
        tokens = self._index(_TOKENS)
        if not len(tokens):
            raise FormatError(f"{self._where}: {_TOKENS} is empty")
        if (bad := tokens.first_not_utf8) is not None:
            raise FormatError(f"{self._where}: {_TOKENS}[{bad}] is not valid UTF-8")
        if (bad := tokens.first_repeated) is not None:
            raise FormatError(f"{self._where}: {_TOKENS} holds {tokens[bad].decode()!r} twice")
        return tokens

    def _index(self, key: str) -> StringIndex:
        file = self._file
        if isinstance(file, GgufFile):
            return StringIndex(file, key)
        return StringIndex(file.get_token_bytes(key))

    @cached_property
    def _types(self) -> NDArray[np.int32]:
        """Kind of each token: int32 [n_vocab]."""
        types = self._array(_TYPES, np.integer).astype(np.int32)
        if len(types) and not (types.min() >= _NORMAL and types.max() <= _BYTE):
            raise FormatError(f"{self._where}: {_TYPES} holds a value outside 1..6")
        return types

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    @cached_property
    def bos_id(self) -> int | None:
        """The id that starts a text, or None."""
        return self._id("tokenizer.ggml.bos_token_id")

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """All ids that end an answer: the file's end tokens and the known turn ends of the Gemma family."""
        ids = {self._id(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")}
        ids.update(self._ends())
        types = self._types
        for name in _END_NAMES:
            found = self.id_of(name)
            if found is not None and types[found] in (_CONTROL, _USER):
                ids.add(found)
        return frozenset(i for i in ids if i is not None)

    def is_special(self, token: int) -> bool:
        """Whether the token is a control token or an image marker, hidden by `skip_special`."""
        self._check_id(token)
        return token in self._hidden

    @cached_property
    def _hidden(self) -> frozenset[int]:
        markers = [i for name in _MARKER_NAMES if (i := self.id_of(name)) is not None]
        return frozenset(
            [
                *np.flatnonzero(np.isin(self._types, (_CONTROL, _UNKNOWN))).tolist(),
                *(i for i in markers if self._types[i] == _USER),
            ]
        )

    def id_of(self, text: str) -> int | None:
        """The id of a token by its exact text, or None."""
        try:
            return self._tokens.find(text.encode())
        except UnicodeEncodeError:  # a lone surrogate
            return None

    def _text(self, token: int) -> str:
        return self._tokens[token].decode()

    # -- encode --------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_bos` puts one BOS in front if the file asks for it (never a second one). With `special=False` the
        text of a special token, such as "<bos>" typed by a user, is encoded as ordinary characters.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        try:
            ids = self._encoded(text) if special else self._encoded_plainly(text)
        except (UnicodeEncodeError, TypeError):
            raise ValueError("the text holds a lone surrogate, which no token can stand for") from None
        if add_bos and self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _encoded(self, text: str, *, special: bool = True) -> list[int]:
        engine = self._engine_for(text)
        with self._lock:  # the flag belongs to the object, which may be shared
            engine.encode_special_tokens = not special
            ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        return ids

    def _encoded_plainly(self, text: str) -> list[int]:
        """Without special tokens. A vocabulary may hold merges that spell one out of its characters; such a
        spelling is cut in two, so that nobody can type what only a template may write.
        """
        ids = self._encoded(text, special=False)
        markup = self._markup_in(ids)
        if not markup:
            return ids
        names = "|".join(re.escape(self._text(i)) for i in markup)
        cuts = [0, *(match.start() + 1 for match in re.finditer(names, text)), len(text)]
        if len(cuts) == 2:  # spelled in a way that only the vocabulary knows
            cuts = list(range(len(text) + 1))
        return [i for start, end in pairwise(cuts) for i in self._encoded_plainly(text[start:end])]

    def _markup_in(self, ids: list[int]) -> list[int]:
        """Those of `ids`, each once, that only a template may write."""
        kinds = (_CONTROL, _USER) if self.model == "gemma4" else (_CONTROL,)
        used = np.unique(np.array(ids, np.int64))
        found = used[np.isin(self._types[used], kinds)].tolist()
        return [i for i in found if len(self._text(i)) > 1]

    def _engine_for(self, text: str) -> "tokenizers.Tokenizer":
        """The engine of the whole vocabulary where it is there or pays, else one for this text."""
        if "_engine" not in self.__dict__ and _JSON not in self._keys and self.n_vocab > _FEW_TOKENS:
            self._spent += len(text) + _SMALL_COST
            if self._spent <= _SMALL_COSTS and (small := self._from_part(text)) is not None:
                return small
        with self._making:
            return self._engine

    @cached_property
    def _engine(self) -> "tokenizers.Tokenizer":
        # Half a million short-lived tuples wake the cycle collector again and again for nothing: 3x the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._from_json() if _JSON in self._keys else self._from_arrays()
        finally:
            if collecting:
                gc.enable()

    def _from_json(self) -> "tokenizers.Tokenizer":
        import tokenizers

        try:
            engine = tokenizers.Tokenizer.from_str(self._file.get(_JSON))
        except Exception as error:
            raise FormatError(f"{self._where}: {_JSON} cannot be read ({error})") from None
        highest = max(engine.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= self.n_vocab:
            raise FormatError(
                f"{self._where}: {_JSON} uses token id {highest} but {_TOKENS} has {self.n_vocab} entries"
            )
        engine.no_truncation()
        engine.no_padding()
        return engine

    def _from_arrays(self) -> "tokenizers.Tokenizer":
        texts = [token.decode() for token in self._raw]
        merges = self._stored_merges() if self.model == "gemma4" else self._score_merges(texts)
        return self._assembled(dict(enumerate(texts)), merges)

    def _from_part(self, text: str) -> "tokenizers.Tokenizer | None":
        """From what `text` can use; None where only the whole vocabulary will do."""
        part = tokens_inside(text, self._tokens)
        if part is None:
            return None
        if self.model == "llama":
            pairs = score_pairs(part, self._scores, self._normal)
        else:
            if _MERGES not in self._keys:
                raise self._no_merges()
            # Broken bytes in a merge are read as U+FFFD, which no search in the file would find.
            if "\ufffd" in text and self._merges.first_not_utf8 is not None:
                return None
            pairs = stored_pairs(part.values(), self._merges)
        if (unknown := self._unknown) is not None:
            part[unknown] = self._text(unknown)
        return self._assembled(part, pairs)

    def _assembled(self, names: Mapping[int, str], merges: list[tuple[str, str]]) -> "tokenizers.Tokenizer":
        unknown = self._unknown
        # In Gemma 4 user-defined tokens are markup too: tools, channels, quotes.
        special = (_CONTROL, _USER) if self.model == "gemma4" else (_CONTROL,)
        added = () if self.model == "gemma4" else (_USER,)
        ids = np.fromiter(names, np.int64, len(names))
        kinds = self._types[ids]
        try:
            return make_engine(
                {name: i for i, name in names.items()},
                merges,
                unknown=None if unknown is None else names[unknown],
                special=[names[i] for i in ids[np.isin(kinds, special)].tolist()],
                added=[names[i] for i in ids[np.isin(kinds, added)].tolist()],
            )
        except Exception as error:
            key = _MERGES if self.model == "gemma4" else _TOKENS
            raise FormatError(f"{self._where}: {key} makes no usable vocabulary ({error})") from None

    @cached_property
    def _unknown(self) -> int | None:
        return self._id("tokenizer.ggml.unknown_token_id")

    @cached_property
    def _raw(self) -> list[bytes]:
        """All tokens at once, for those who need them all."""
        _ = self._tokens  # checks them
        return self._file.get_token_bytes(_TOKENS)

    @cached_property
    def _merges(self) -> StringIndex:
        """The stored merges, searched in place."""
        return self._index(_MERGES)

    def _no_merges(self) -> FormatError:
        return FormatError(f"{self._where}: the key {_MERGES} is missing; a 'gemma4' vocabulary needs it")

    def _stored_merges(self) -> list[tuple[str, str]]:
        if _MERGES not in self._keys:
            raise self._no_merges()
        pairs = []
        for i, line in enumerate(self._file.get_token_bytes(_MERGES)):
            # A left part may itself begin with a space, so the separator is searched from index 1 on.
            text = line.decode("utf-8", "replace")
            cut = text.find(" ", 1)
            if cut < 0 or cut == len(text) - 1:
                raise FormatError(
                    f"{self._where}: {_MERGES}[{i}] is {text!r}, not two tokens with a space between"
                )
            pairs.append((text[:cut], text[cut + 1 :]))
        return pairs

    @cached_property
    def _scores(self) -> NDArray[np.float32]:
        scores = self._array(_SCORES, np.floating).astype(np.float32)
        if np.isnan(scores).any():
            raise FormatError(f"{self._where}: {_SCORES} holds a NaN")
        return scores

    @cached_property
    def _normal(self) -> NDArray[np.bool_]:
        normal: NDArray[np.bool_] = self._types == _NORMAL
        return normal

    def _score_merges(self, texts: list[str]) -> list[tuple[str, str]]:
        pairs = spm_merges(texts, self._scores, self._normal)
        names = np.array(texts, dtype=object)
        return list(zip(names[pairs[:, 0]].tolist(), names[pairs[:, 1]].tolist(), strict=True))

    # -- decode --------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that form no character become U+FFFD. `skip_special` leaves control
        tokens and image markers out.
        """
        return self.detokenizer(skip_special=skip_special).decode(ids)

    def detokenizer(self, *, skip_special: bool = False) -> Detokenizer:
        """A streaming decoder: feed ids one by one, the pieces join to what `decode` gives."""
        return Detokenizer(self._token_bytes, self._hidden if skip_special else frozenset())

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self._tokens, self._bytes)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {i: self._byte_of(i) for i in np.flatnonzero(self._types == _BYTE).tolist()}

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes each token stands for, all at once."""
        space = SPACE.encode()
        pieces = [raw.replace(space, b" ") for raw in self._raw]
        for i, byte in self._bytes.items():
            pieces[i] = byte
        return pieces

    def _byte_of(self, token: int) -> bytes:
        name = self._tokens[token]
        try:
            if len(name) == 6 and name.startswith(b"<0x") and name.endswith(b">"):
                return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
        raise FormatError(
            f"{self._where}: {_TOKENS}[{token}] is marked as a byte but is {name!r}, not <0xNN>"
        )

    # -- reading the file ----------------------------------------------------------------------------------

    def _read(self, key: str, kind: type, default: Any) -> Any:
        if key not in self._keys:
            return default
        value = self._file.get(key)
        if not isinstance(value, kind):
            raise FormatError(f"{self._where}: {key} should be a {kind.__name__}, it is {value!r}")
        return value

    def _id(self, key: str) -> int | None:
        value = self._read(key, int, None)
        if value is None or value == 0xFFFFFFFF:
            return None
        if not 0 <= value < self.n_vocab:
            raise FormatError(f"{self._where}: {key} is {value} but the vocabulary has {self.n_vocab} tokens")
        return int(value)

    def _ends(self) -> list[int]:
        """The checkpoint's own list, where the converter wrote it."""
        key = "gemmule.tokenizer.eos_token_ids"
        if key not in self._keys:
            return []
        ids = np.asarray(self._file.get(key))
        if not np.issubdtype(ids.dtype, np.integer) or ((ids < 0) | (ids >= self.n_vocab)).any():
            raise FormatError(f"{self._where}: {key} must list ids of the {self.n_vocab} tokens")
        return [int(i) for i in ids.reshape(-1)]

    def _array(self, key: str, kind: type) -> NDArray[Any]:
        if key not in self._keys:
            raise FormatError(f"{self._where}: the key {key} is missing")
        array = self._file.get(key)
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, kind):
            raise FormatError(f"{self._where}: {key} is not an array of the expected kind of numbers")
        if len(array) != self.n_vocab:
            raise FormatError(
                f"{self._where}: {key} has {len(array)} entries but {_TOKENS} has {self.n_vocab}"
            )
        return array

    def _check_id(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.n_vocab}")

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """Plain ints, each checked to be in the vocabulary."""
        out = [operator.index(i) for i in ids]
        for token in out:
            self._check_id(token)
        return out

    def describe(self) -> Mapping[str, object]:
        """Short facts for `gemmule show`."""
        return {
            "model": self.model,
            "n_vocab": self.n_vocab,
            "bos_id": self.bos_id,
            "eos_ids": sorted(self.eos_ids),
        }
