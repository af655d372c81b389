"""Text to token ids and back, rebuilt from the arrays of a GGUF file with the `tokenizers` package.

model "gemma4": BPE with the stored merges. model "llama": SentencePiece scores, merges regenerated
(_spm_merges.py). Both: special tokens are split off first on the raw text, then space -> U+2581, then BPE
with byte fallback; no pre-tokenizer, nothing trimmed, no prefix space. A file may carry
`tokenizer.huggingface.json`, which is then used as it is.
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

from gemmule._detokenizer import Detokenizer
from gemmule._errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Detokenizer", "MetadataFile", "Tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_SCORES = "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"
_JSON = "tokenizer.huggingface.json"
# Tokens that end a turn without being the file's eos: Gemma 3, Gemma 4, and Gemma 4's wait for a tool answer.
_END_NAMES = ("<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>")
# Places for images: user-defined in Gemma 3's files, yet never text for a reader.
_MARKER_NAMES = ("<start_of_image>", "<end_of_image>", "[multimodal]")


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
        self.adds_bos = bool(self._read("tokenizer.ggml.add_bos_token", bool, True))

    # -- vocabulary ----------------------------------------------------------------------------------------

    @cached_property
    def _raw(self) -> list[bytes]:
        raw = self._file.get_token_bytes(_TOKENS)
        if not raw:
            raise FormatError(f"{self._where}: {_TOKENS} is empty")
        return raw

    @cached_property
    def _types(self) -> NDArray[np.int32]:
        """Kind of each token: int32 [n_vocab]."""
        types = self._array(_TYPES, np.integer).astype(np.int32)
        if len(types) and not (types.min() >= _NORMAL and types.max() <= _BYTE):
            raise FormatError(f"{self._where}: {_TYPES} holds a value outside 1..6")
        return types

    @cached_property
    def _texts(self) -> list[str]:
        try:
            texts = [token.decode() for token in self._raw]
        except UnicodeDecodeError:
            bad = next(i for i, token in enumerate(self._raw) if not _is_utf8(token))
            raise FormatError(f"{self._where}: {_TOKENS}[{bad}] is not valid UTF-8") from None
        return texts

    @cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = dict(zip(self._texts, range(len(self._texts)), strict=True))
        if len(vocab) != len(self._texts):
            bad = next(i for i, text in enumerate(self._texts) if vocab[text] != i)
            raise FormatError(f"{self._where}: {_TOKENS} holds {self._texts[bad]!r} twice")
        return vocab

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self._raw)

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
            found = self._vocab.get(name)
            if found is not None and types[found] in (_CONTROL, _USER):
                ids.add(found)
        return frozenset(i for i in ids if i is not None)

    def is_special(self, token: int) -> bool:
        """Whether the token is a control token or an image marker, hidden by `skip_special`."""
        self._check_id(token)
        return token in self._hidden

    @cached_property
    def _hidden(self) -> frozenset[int]:
        markers = [i for name in _MARKER_NAMES if (i := self._vocab.get(name)) is not None]
        return frozenset(
            [
                *np.flatnonzero(np.isin(self._types, (_CONTROL, _UNKNOWN))).tolist(),
                *(i for i in markers if self._types[i] == _USER),
            ]
        )

    def id_of(self, text: str) -> int | None:
        """The id of a token by its exact text, or None."""
        return self._vocab.get(text)

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
        engine = self._engine
        with self._lock:  # the flag belongs to the shared object
            engine.encode_special_tokens = not special
            ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        return ids

    def _encoded_plainly(self, text: str) -> list[int]:
        """Without special tokens. A vocabulary may hold merges that spell one out of its characters; such a
        spelling is cut in two, so that nobody can type what only a template may write.
        """
        ids = self._encoded(text, special=False)
        if self._markup.isdisjoint(ids):
            return ids
        names = "|".join(re.escape(self._texts[i]) for i in sorted(self._markup.intersection(ids)))
        cuts = [0, *(match.start() + 1 for match in re.finditer(names, text)), len(text)]
        if len(cuts) == 2:  # spelled in a way that only the vocabulary knows
            cuts = list(range(len(text) + 1))
        return [i for start, end in pairwise(cuts) for i in self._encoded_plainly(text[start:end])]

    @cached_property
    def _markup(self) -> frozenset[int]:
        """The tokens that only a template may write."""
        kinds = (_CONTROL, _USER) if self.model == "gemma4" else (_CONTROL,)
        names = self._texts
        return frozenset(i for i in np.flatnonzero(np.isin(self._types, kinds)).tolist() if len(names[i]) > 1)

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
        import tokenizers
        from tokenizers import AddedToken, models, normalizers

        texts, types, vocab = self._texts, self._types, self._vocab
        unknown = self._id("tokenizer.ggml.unknown_token_id")
        merges = self._stored_merges() if self.model == "gemma4" else self._score_merges()
        try:
            bpe = models.BPE(
                vocab,
                merges,
                unk_token=None if unknown is None else texts[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        except Exception as error:
            key = _MERGES if self.model == "gemma4" else _TOKENS
            raise FormatError(f"{self._where}: {key} makes no usable vocabulary ({error})") from None
        engine = tokenizers.Tokenizer(bpe)
        engine.normalizer = normalizers.Replace(" ", _SPACE)
        control = np.flatnonzero(types == _CONTROL).tolist()
        user = np.flatnonzero(types == _USER).tolist()
        if self.model == "gemma4":  # its user-defined tokens are markup too: tools, channels, quotes
            control, user = sorted(control + user), []
        engine.add_special_tokens(
            [AddedToken(texts[i], normalized=False, special=True) for i in control if texts[i]]
        )
        engine.add_tokens([AddedToken(texts[i], normalized=False, special=False) for i in user if texts[i]])
        return engine

    def _stored_merges(self) -> list[tuple[str, str]]:
        if _MERGES not in self._keys:
            raise FormatError(f"{self._where}: the key {_MERGES} is missing; a 'gemma4' vocabulary needs it")
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

    def _score_merges(self) -> list[tuple[str, str]]:
        from gemmule._spm_merges import spm_merges

        scores = self._array(_SCORES, np.floating).astype(np.float32)
        if np.isnan(scores).any():
            raise FormatError(f"{self._where}: {_SCORES} holds a NaN")
        pairs = spm_merges(self._texts, scores, self._types == _NORMAL)
        names = np.array(self._texts, dtype=object)
        return list(zip(names[pairs[:, 0]].tolist(), names[pairs[:, 1]].tolist(), strict=True))

    # -- decode --------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that form no character become U+FFFD. `skip_special` leaves control
        tokens and image markers out.
        """
        return self.detokenizer(skip_special=skip_special).decode(ids)

    def detokenizer(self, *, skip_special: bool = False) -> Detokenizer:
        """A streaming decoder: feed ids one by one, the pieces join to what `decode` gives."""
        return Detokenizer(self._pieces, self._hidden if skip_special else frozenset())

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes each token stands for."""
        space = _SPACE.encode()
        pieces = [raw.replace(space, b" ") for raw in self._raw]
        for i in np.flatnonzero(self._types == _BYTE).tolist():
            pieces[i] = self._byte_of(i)
        return pieces

    def _byte_of(self, token: int) -> bytes:
        name = self._raw[token]
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


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
