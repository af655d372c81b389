"""The tokenizer files of a checkpoint as tokenizer.* keys of a GGUF file.

Gemma 4 (model "gemma4"): tokens, merges as "left right", types; scores are all -1000 and unused. Gemma 3
(model "llama"): tokens with SentencePiece scores, from tokenizer.model where it is there, else rebuilt from
the order of the merges. Types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
The arrays are turned back into a gemmule Tokenizer and compared with the source on sample texts.
Sources: tokenizers' JSON format, sentencepiece_model.proto, llama.cpp's choice of keys and types.
"""

import gc
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gemmule._convert.chat_template import template_kvs
from gemmule._convert.hf_config import ModelConfig
from gemmule._convert.image import Kv
from gemmule._convert.jsonfile import read_bytes, read_object
from gemmule._convert.sentencepiece import read_pieces
from gemmule._errors import FormatError, UnsupportedError

__all__ = ["Vocabulary", "load_vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_BYTE_NAME = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Markup a chat reader must see in the text, so it is user-defined and not control.
_VISIBLE = frozenset(
    [
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    ]
)
_TURN_ENDS = ("<turn|>", "<end_of_turn>")
# (name in the source, key in the file)
_SPECIAL = (
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
)
_SCORE_SPECIAL = -1000.0
_SCORE_PADDING = -10000.0
_PREFIX = "tokenizer.ggml."

_SAMPLES = (
    "Hello, world! The year is 2026; 1234567890 digits.",
    "Hello  world\n\n\tfoo   bar\r\n    indented\n\n\n\nend ",
    " leading and trailing  ",
    "日本語のテキスト 中文 한국어 العربية עברית हिन्दी ไทย",
    "naïve café — “quotes” … ½ ∑∫ 🙂👩‍👩‍👧‍👦 🏳️‍🌈 é é",
    "def f(x):\n\treturn {'a': [1, 2], \"b\": x ** 2}  # comment\n",
    "https://example.org/a?b=c&d=%20 <b>bold</b> <unused0> <pad><eos>",
    "\x00\x01\x7f\x80 \ufeff\u200b\u00a0 \U0001d54f",
)


@dataclass(frozen=True)
class Vocabulary:
    """The keys, in file order, and what is worth telling."""

    kvs: tuple[Kv, ...]
    warnings: tuple[str, ...] = ()

    def get(self, key: str) -> Any:
        return next((kv.value for kv in self.kvs if kv.key == key), None)

    @property
    def tokens(self) -> list[bytes]:
        tokens: list[bytes] = self.get(_PREFIX + "tokens")
        return tokens


@dataclass
class _Source:
    """The tokenizer files of one folder."""

    folder: Path
    tokenizer: dict[str, Any]  # tokenizer.json, {} without one
    config: dict[str, Any]  # tokenizer_config.json
    named: dict[str, str]  # "bos" -> "<bos>"
    warnings: list[str] = field(default_factory=list)

    @property
    def json_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def added(self) -> dict[int, tuple[str, bool]]:
        """Added tokens: id -> (text, special)."""
        entries = self.tokenizer.get("added_tokens")
        out: dict[int, tuple[str, bool]] = {}
        if isinstance(entries, list):
            items = [(entry.get("id"), entry) for entry in entries if isinstance(entry, dict)]
        else:
            decoder = self.config.get("added_tokens_decoder")
            pairs = decoder.items() if isinstance(decoder, dict) else ()
            items = [(int(key), entry) for key, entry in pairs if key.isdecimal() and isinstance(entry, dict)]
        for number, entry in items:
            text = entry.get("content")
            if type(number) is not int or number < 0 or not isinstance(text, str):
                raise FormatError(f"{self.json_path}: an entry of added_tokens has no valid id and content.")
            out[number] = (text, entry.get("special") is True)
        return out


@dataclass
class _Tokens:
    """Per id: text, score, type; and the merges of a BPE."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    merges: list[str] | None = None


def load_vocabulary(
    folder: Path, config: ModelConfig, generation: dict[str, Any], *, check: bool = True
) -> Vocabulary:
    """The tokenizer keys for `config`. `generation` is generation_config.json."""
    # A million short-lived lists wake the cycle collector again and again for nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _load(_open(folder), config, generation, check=check)
    finally:
        if collecting:
            gc.enable()


def _load(source: _Source, config: ModelConfig, generation: dict[str, Any], *, check: bool) -> Vocabulary:
    n_vocab = config.text.n_vocab
    tokens = _gemma4_tokens(source) if config.text.family == "gemma4" else _gemma3_tokens(source)
    if len(tokens.texts) > n_vocab:
        raise FormatError(
            f"{source.json_path}: the vocabulary has {len(tokens.texts)} tokens but vocab_size in "
            f"{config.path} is {n_vocab}."
        )
    if len(tokens.texts) < n_vocab:
        if config.text.family == "gemma4":
            source.warnings.append(
                f"{source.json_path}: {n_vocab - len(tokens.texts)} rows of the embedding have no token; "
                "placeholders stand for them."
            )
        for i in range(len(tokens.texts), n_vocab):
            _append(tokens, f"[PAD{i}]", _SCORE_PADDING, _UNUSED)
    index = dict(zip(tokens.texts, range(n_vocab), strict=True))
    if len(index) != n_vocab:
        i = next(i for i, text in enumerate(tokens.texts) if index[text] != i)
        text = tokens.texts[i]
        raise FormatError(f"{source.json_path}: tokens {i} and {index[text]} are both {text[:80]!r}.")
    kvs = _kvs(source, tokens, config, generation, index)
    if check and source.tokenizer:
        bad = _first_difference(source, kvs, tokens)
        if bad is not None:
            source.warnings.append(
                f"{source.json_path}: the vocabulary of the file splits {bad[:60]!r} differently; "
                "the original tokenizer is stored beside it and gemmule uses that one."
            )
            text = read_bytes(source.json_path, limit_mb=512).decode()
            kvs.append(Kv("tokenizer.huggingface.json", "string", text))
    return Vocabulary(tuple(kvs), tuple(source.warnings))


def _append(tokens: _Tokens, text: str, score: float, kind: int) -> None:
    tokens.texts.append(text)
    tokens.scores.append(score)
    tokens.types.append(kind)


def _open(folder: Path) -> _Source:
    def optional(name: str, limit_mb: int) -> dict[str, Any]:
        path = folder / name
        return read_object(path, limit_mb=limit_mb) if path.exists() else {}

    tokenizer = optional("tokenizer.json", 512)
    config = optional("tokenizer_config.json", 64)
    named: dict[str, str] = {}
    for table in (config, optional("special_tokens_map.json", 64)):
        for key, value in table.items():
            if key.endswith("_token") and (text := _content(value)) is not None:
                named.setdefault(key.removesuffix("_token"), text)
        for key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
            extra = table.get(key)
            values = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ()
            for i, value in enumerate(values):
                if (text := _content(value)) is not None:
                    named.setdefault(f"{key}.{i}", text)
    return _Source(folder, tokenizer, config, named)


def _content(value: Any) -> str | None:
    """The text of a token given as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


# -- tokenizer.json ---


def _bpe_model(source: _Source) -> dict[str, Any]:
    """The model part of tokenizer.json, checked to be what a GGUF of this family can say."""
    where = source.json_path
    model = source.tokenizer.get("model")
    if not isinstance(model, dict):
        raise FormatError(f"{where}: the key model is missing.")
    if model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        raise UnsupportedError(
            f"{where}: the model is {model.get('type')!r} with byte_fallback {model.get('byte_fallback')!r}; "
            "Gemma vocabularies are BPE with byte fallback."
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(f"{where}: model.{key} is {model[key]!r}, which no GGUF can say.")
    if not _is_space_replacement(source.tokenizer.get("normalizer")):
        raise UnsupportedError(f"{where}: the normalizer must replace spaces by U+2581 and do nothing else.")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise FormatError(f"{where}: model.vocab and model.merges should be an object and a list.")
    return model


def _is_space_replacement(normalizer: Any) -> bool:
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        parts = normalizer.get("normalizers")
        return isinstance(parts, list) and len(parts) == 1 and _is_space_replacement(parts[0])
    return (
        isinstance(normalizer, dict)
        and normalizer.get("type") == "Replace"
        and normalizer.get("pattern") == {"String": " "}
        and normalizer.get("content") == _SPACE
    )


def _texts_by_id(source: _Source, vocab: dict[str, Any], added: dict[int, tuple[str, bool]]) -> list[str]:
    """Token texts in id order; holes become placeholders."""
    where = source.json_path
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number < 1 << 24:
            raise FormatError(f"{where}: the id of {text[:80]!r} is {str(number)[:40]}.")
    by_id = {number: text for text, number in vocab.items()}
    if len(by_id) != len(vocab):
        text, number = next((t, n) for t, n in vocab.items() if by_id[n] != t)
        raise FormatError(f"{where}: {text[:80]!r} and {by_id[number][:80]!r} share the id {number}.")
    for number, (text, _) in added.items():
        if number >= 1 << 24 or by_id.setdefault(number, text) != text:
            raise FormatError(f"{where}: added token {text[:80]!r} has the id {number} of another token.")
    if not by_id:
        raise FormatError(f"{where}: the vocabulary is empty.")
    n = max(by_id) + 1
    if len(by_id) != n:
        source.warnings.append(f"{where}: {n - len(by_id)} ids below {n} have no token.")
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(n)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        i = next(i for i, text in enumerate(texts) if re.search("[\ud800-\udfff]", text))
        raise FormatError(f"{where}: token {i} holds a lone surrogate, which is no text.") from None
    return texts


def _merge_pairs(source: _Source, model: dict[str, Any]) -> list[tuple[str, str]]:
    vocab = model["vocab"]
    pairs: list[tuple[str, str]] = []
    for i, merge in enumerate(model["merges"]):
        try:
            left, right = merge.split(" ") if type(merge) is str else merge
            known = left in vocab and right in vocab and left + right in vocab
        except (TypeError, ValueError):
            known = False
        if not known:
            raise FormatError(
                f"{source.json_path}: merge {i} is {str(merge)[:80]!r}, not two tokens that make a third."
            )
        if " " not in left and " " not in right:  # the normalizer leaves no space to merge
            pairs.append((left, right))
    return pairs


def _gemma4_tokens(source: _Source) -> _Tokens:
    if not source.tokenizer:
        raise FormatError(f"{source.json_path}: the file is missing; a Gemma 4 checkpoint needs it.")
    model = _bpe_model(source)
    added = source.added()
    texts = _texts_by_id(source, model["vocab"], added)
    pairs = _merge_pairs(source, model)
    special = {text for text, is_special in added.values() if is_special} | set(source.named.values())
    made = {left + right for left, right in pairs}
    types = []
    for i, text in enumerate(texts):
        if text in _VISIBLE:
            types.append(_USER)
        elif _BYTE_NAME.fullmatch(text):
            types.append(_BYTE)
        elif text in special:
            types.append(_CONTROL)
        elif i in added and (text not in model["vocab"] or (len(text) > 1 and text not in made)):
            types.append(_USER)  # merging never gives it, so it must be split off as it stands
        else:
            types.append(_NORMAL)
    return _Tokens(texts, [_SCORE_SPECIAL] * len(texts), types, [f"{left} {right}" for left, right in pairs])


# -- Gemma 3 ---


def _gemma3_tokens(source: _Source) -> _Tokens:
    path = source.folder / "tokenizer.model"
    if path.exists():
        tokens = _sentencepiece_tokens(path)
    elif source.tokenizer:
        tokens = _scored_tokens(source)
    else:
        raise FormatError(
            f"{path}: neither tokenizer.model nor tokenizer.json is there; the vocabulary is missing."
        )
    for number, (text, is_special) in source.added().items():
        while number >= len(tokens.texts):
            _append(tokens, f"[PAD{len(tokens.texts)}]", _SCORE_PADDING, _UNUSED)
        control = is_special or text in source.named.values() or _looks_special(text)
        tokens.types[number] = _CONTROL if control else _USER
        tokens.texts[number] = text if control else text.replace(_SPACE, " ")
        tokens.scores[number] = _SCORE_SPECIAL
    return tokens


def _looks_special(text: str) -> bool:
    """Added tokens of Gemma that are markup although their entry does not say so."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or (
        text.startswith("<unused") and text.endswith(">")
    )


def _scored_tokens(source: _Source) -> _Tokens:
    """Scores from the order of the merges: a lower rank is a higher score, as SentencePiece counts."""
    model = _bpe_model(source)
    texts = _texts_by_id(source, model["vocab"], source.added())
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(_merge_pairs(source, model)):
        rank.setdefault(left + right, i)
    types = [_BYTE if _BYTE_NAME.fullmatch(text) else _NORMAL for text in texts]
    ranks = [rank[text] for text in texts if text in rank]
    if all(a < b for a, b in pairwise(ranks)):
        last_byte = max((i for i, kind in enumerate(types) if kind == _BYTE), default=-1)
        scores = [float(min(0, last_byte + 1 - i)) for i in range(len(texts))]
    else:
        scores = [-float(rank.get(text, 0)) for text in texts]
    return _Tokens(texts, [0.0 if t == _BYTE else s for t, s in zip(types, scores, strict=True)], types)


def _sentencepiece_tokens(path: Path) -> _Tokens:
    tokens = _Tokens([], [], [])
    for text, score, kind in read_pieces(path):
        if kind == _USER:
            text, score = text.replace(_SPACE, " "), _SCORE_SPECIAL
        _append(tokens, text, score, kind)
    return tokens


# -- keys ---


def _kvs(
    source: _Source, tokens: _Tokens, config: ModelConfig, generation: dict[str, Any], index: dict[str, int]
) -> list[Kv]:
    is_gemma4 = config.text.family == "gemma4"
    kvs = [Kv(_PREFIX + "model", "string", "gemma4" if is_gemma4 else "llama")]
    if not is_gemma4:
        kvs.append(Kv(_PREFIX + "pre", "string", "default"))
    kvs += [
        Kv(_PREFIX + "tokens", "array[string]", [text.encode() for text in tokens.texts]),
        Kv(_PREFIX + "scores", "array[f32]", np.array(tokens.scores, np.float32)),
        Kv(_PREFIX + "token_type", "array[i32]", np.array(tokens.types, np.int32)),
    ]
    if tokens.merges is not None:
        kvs.append(Kv(_PREFIX + "merges", "array[string]", [merge.encode() for merge in tokens.merges]))
    ids = _special_ids(source, config, index)
    kvs += [Kv(_PREFIX + key, "u32", ids[name]) for name, key in _SPECIAL if name in ids]
    ends = _end_ids(generation, config, ids, len(tokens.texts))
    turn_end = next((i for i in ends if tokens.texts[i] in _TURN_ENDS), None)
    if turn_end is not None and turn_end != ids.get("eos"):
        kvs.append(Kv(_PREFIX + "eot_token_id", "u32", turn_end))
    kvs.append(Kv(_PREFIX + "add_bos_token", "bool", is_gemma4 or _adds_bos(source)))
    if isinstance(source.config.get("add_eos_token"), bool) and not is_gemma4:
        kvs.append(Kv(_PREFIX + "add_eos_token", "bool", source.config["add_eos_token"]))
    kvs.append(Kv(_PREFIX + "add_space_prefix", "bool", False))
    if ends:
        kvs.append(Kv("gemmule.tokenizer.eos_token_ids", "array[u32]", np.array(ends, np.uint32)))
    suppressed = generation.get("suppress_tokens")
    if suppressed is not None:
        _check_ids(source.folder / "generation_config.json", "suppress_tokens", suppressed, len(tokens.texts))
        kvs.append(Kv(_PREFIX + "suppress_tokens", "array[i32]", np.array(suppressed, np.int32)))
    kvs += template_kvs(source.folder, source.config, source.warnings)
    return kvs


def _special_ids(source: _Source, config: ModelConfig, index: dict[str, int]) -> dict[str, int]:
    ids: dict[str, int] = {}
    text_config = config.raw.get("text_config")
    for name, _ in _SPECIAL:
        found = index.get(source.named.get(name, ""))
        for table in (config.raw, text_config):
            value = table.get(f"{name}_token_id") if isinstance(table, dict) else None
            if found is None and type(value) is int and 0 <= value < len(index):
                found = value
        if found is None and name in ("bos", "eos", "unk", "pad", "mask"):
            found = index.get(f"<{name}>")
        if found is not None:
            ids[name] = found
    for name in ("bos", "eos", "unk"):
        if name not in ids:
            raise FormatError(f"{source.folder}: no tokenizer file names the {name} token.")
    return ids


def _end_ids(
    generation: dict[str, Any], config: ModelConfig, ids: dict[str, int], n_tokens: int
) -> list[int]:
    """Every id that ends an answer, the file's own eos first."""
    text_config = config.raw.get("text_config")
    tables = (generation, config.raw, text_config if isinstance(text_config, dict) else {})
    said: Any = next((table["eos_token_id"] for table in tables if table.get("eos_token_id") is not None), [])
    said = [said] if type(said) is int else said
    _check_ids(config.path.parent / "generation_config.json", "eos_token_id", said, n_tokens)
    return list(dict.fromkeys([ids["eos"], *said]))


def _check_ids(path: Path, key: str, value: Any, n_tokens: int) -> None:
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < n_tokens for i in value):
        raise FormatError(f"{path}: {key} is {str(value)[:80]}; token ids below {n_tokens} are expected.")


def _adds_bos(source: _Source) -> bool:
    said = source.config.get("add_bos_token")
    processor = source.tokenizer.get("post_processor")
    if isinstance(processor, dict) and processor.get("type") == "TemplateProcessing":
        single = processor.get("single")
        first = single[0] if isinstance(single, list) and single else {}
        return isinstance(first, dict) and "SpecialToken" in first
    return said if isinstance(said, bool) else True


# -- check ---


@dataclass(frozen=True)
class _Arrays:
    """The keys as the file a gemmule Tokenizer reads."""

    path: str
    values: dict[str, Any]

    def keys(self) -> list[str]:
        return list(self.values)

    def get(self, key: str) -> Any:
        return self.values[key]

    def get_token_bytes(self, key: str) -> list[bytes]:
        tokens: list[bytes] = self.values[key]
        return tokens


def _first_difference(source: _Source, kvs: list[Kv], tokens: _Tokens) -> str | None:
    """The first sample that our Tokenizer splits differently from the source, or None."""
    import tokenizers

    from gemmule._tokenizer import Tokenizer

    try:
        theirs = tokenizers.Tokenizer.from_file(str(source.json_path))
    except Exception as error:
        raise FormatError(
            f"{source.json_path}: the tokenizers package cannot read it ({str(error)[:200]})."
        ) from None
    ours = Tokenizer(_Arrays(str(source.json_path), {kv.key: kv.value for kv in kvs}))
    marked = [
        text for text, kind in zip(tokens.texts, tokens.types, strict=True) if kind in (_CONTROL, _USER)
    ]
    shown = [*marked[:200], *marked[-200:]]
    samples = [*_SAMPLES, *(f"a{text}b {text}" for text in shown), "".join(shown)]
    for text in samples:
        if ours.encode(text, add_bos=False) != theirs.encode(text, add_special_tokens=False).ids:
            return text
    return None
