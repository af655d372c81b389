"""Broken GGUF files, derived from a small valid one, for every way a model file can be wrong.

`hostile_files(seed_file, seed)` yields (name, content). The name says what a reader must do with the file:
`refuse.header.*` must be refused by the container parser, `refuse.model.*` at the latest when the model is
loaded or run; `any.*` may be accepted or refused, but must not crash. The seed file is any small GGUF (of
gemma3 or gemma4, whose numbers get lies of their own); when it does not exist, a tiny gemma3 model (2 layers,
width 64, 320 tokens) is written there first.

    python tests/hostile/make_hostile.py OUTDIR [--seed N]
"""

from __future__ import annotations

import argparse
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

__all__ = ["expectation", "hostile_files", "seed_image"]

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_SCALAR_FORMAT = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q",
    F64: "d",
}  # fmt: skip
# GGUF type number -> (elements of a block, bytes of a block, byte positions of its f16 scales)
_BLOCKS: dict[int, tuple[int, int, tuple[int, ...]]] = {
    0: (1, 4, ()), 1: (1, 2, ()), 2: (32, 18, (0,)), 3: (32, 20, (0, 2)), 6: (32, 22, (0,)),
    7: (32, 24, (0, 2)), 8: (32, 34, (0,)), 10: (256, 84, (80, 82)), 11: (256, 110, (108,)),
    12: (256, 144, (0, 2)), 13: (256, 176, (0, 2)), 14: (256, 210, (208,)), 30: (1, 2, ()),
}  # fmt: skip
_ALIGNMENT = 32
_PACKED = 4096  # added to the type number of a tensor in the packed layout
_PACKED_ALIGNMENT = 64
_F16_SPECIAL = {"nan": b"\x00\x7e", "inf": b"\x00\x7c", "minus-inf": b"\x00\xfc"}
_F32_SPECIAL = {"nan": float("nan"), "inf": float("inf"), "minus-inf": float("-inf")}
_HUGE = (2**31, 2**63, 2**64 - 1)

Stage = Literal["header", "model", "none"]


def expectation(name: str) -> tuple[Literal["refuse", "any"], Stage]:
    """What a reader must do with the file of this name, and by which stage at the latest."""
    if name.startswith("refuse.header."):
        return "refuse", "header"
    if name.startswith("refuse.model."):
        return "refuse", "model"
    return "any", "none"


def _string(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _array(element: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", element, len(items)) + b"".join(items)


@dataclass(frozen=True)
class _Key:
    name: bytes
    type: int
    payload: bytes


@dataclass(frozen=True)
class _Tensor:
    name: bytes
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None  # written instead of the true one


@dataclass(frozen=True)
class _Field:
    """One number or text of the header: where it is and what it is."""

    kind: str
    label: str
    position: int
    n_bytes: int


@dataclass(frozen=True)
class _Model:
    keys: tuple[_Key, ...]
    tensors: tuple[_Tensor, ...]
    version: int = 3
    alignment: int = _ALIGNMENT

    def get(self, name: str) -> _Key | None:
        return next((k for k in self.keys if k.name == name.encode()), None)

    def with_key(self, name: str, type_: int, payload: bytes) -> _Model:
        """The model with the key replaced, or appended when it is absent."""
        new = _Key(name.encode(), type_, payload)
        if self.get(name) is None:
            return replace(self, keys=(*self.keys, new))
        return replace(self, keys=tuple(new if k.name == new.name else k for k in self.keys))

    def with_tensor(self, i: int, **changes: object) -> _Model:
        tensors = list(self.tensors)
        tensors[i] = replace(tensors[i], **changes)  # type: ignore[arg-type]
        return replace(self, tensors=tuple(tensors))


@dataclass
class _Writer:
    out: bytearray = field(default_factory=bytearray)
    fields: list[_Field] = field(default_factory=list)

    def put(self, raw: bytes, kind: str, label: str) -> None:
        self.fields.append(_Field(kind, label, len(self.out), len(raw)))
        self.out += raw


def _pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _write(model: _Model) -> tuple[bytes, list[_Field], int]:
    """The image, the fields of its header, and where the data starts."""
    w = _Writer()
    w.put(b"GGUF", "magic", "magic")
    w.put(struct.pack("<I", model.version), "version", "version")
    w.put(struct.pack("<Q", len(model.tensors)), "n_tensors", "header")
    w.put(struct.pack("<Q", len(model.keys)), "n_keys", "header")
    for key in model.keys:
        label = key.name.decode(errors="replace")
        w.put(struct.pack("<Q", len(key.name)), "key_length", label)
        w.put(key.name, "key", label)
        w.put(struct.pack("<I", key.type), "value_type", label)
        if key.type == STRING:
            w.put(key.payload[:8], "string_length", label)
            w.put(key.payload[8:], "value", label)
        elif key.type == ARRAY:
            w.put(key.payload[:4], "element_type", label)
            w.put(key.payload[4:12], "array_count", label)
            if key.payload[:4] == struct.pack("<I", STRING) and len(key.payload) >= 20:
                w.put(key.payload[12:20], "item_length", label)
                w.put(key.payload[20:], "value", label)
            else:
                w.put(key.payload[12:], "value", label)
        else:
            w.put(key.payload, "value", label)
    offset = 0
    for t in model.tensors:
        label = t.name.decode(errors="replace")
        w.put(struct.pack("<Q", len(t.name)), "name_length", label)
        w.put(t.name, "name", label)
        w.put(struct.pack("<I", len(t.shape)), "n_dims", label)
        for dim in t.shape:
            w.put(struct.pack("<Q", dim), "dim", label)
        w.put(struct.pack("<I", t.type), "tensor_type", label)
        w.put(struct.pack("<Q", offset if t.offset is None else t.offset), "offset", label)
        offset = _pad(offset + len(t.data), model.alignment)
    data_start = _pad(len(w.out), model.alignment)
    out = w.out.ljust(data_start, b"\0")
    for t in model.tensors:
        out += t.data
        out = out.ljust(_pad(len(out), model.alignment), b"\0")
    return bytes(out), w.fields, data_start


def _image(model: _Model) -> bytes:
    return _write(model)[0]


def _value_size(raw: bytes, at: int, type_: int) -> int:
    if type_ == STRING:
        return 8 + int(struct.unpack_from("<Q", raw, at)[0])
    if type_ != ARRAY:
        return struct.calcsize("<" + _SCALAR_FORMAT[type_])
    element, count = struct.unpack_from("<IQ", raw, at)
    end = at + 12
    for _ in range(count):
        end += _value_size(raw, end, element)
    return end - at


def _read(raw: bytes) -> _Model:
    """Parses a valid GGUF image; the seed is trusted."""
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", raw, 4)
    at = 24

    def text() -> bytes:
        nonlocal at
        (n,) = struct.unpack_from("<Q", raw, at)
        at += 8 + n
        return raw[at - n : at]

    keys = []
    for _ in range(n_keys):
        name = text()
        (type_,) = struct.unpack_from("<I", raw, at)
        n = _value_size(raw, at + 4, type_)
        keys.append(_Key(name, type_, raw[at + 4 : at + 4 + n]))
        at += 4 + n
    infos = []
    for _ in range(n_tensors):
        name = text()
        (n_dims,) = struct.unpack_from("<I", raw, at)
        shape = struct.unpack_from(f"<{n_dims}Q", raw, at + 4)
        at += 4 + 8 * n_dims
        infos.append((name, shape, *struct.unpack_from("<IQ", raw, at)))
        at += 12
    alignment = next(
        (int.from_bytes(k.payload, "little") for k in keys if k.name == b"general.alignment"), _ALIGNMENT
    )
    start = _pad(at, alignment)
    tensors = []
    for name, shape, type_, offset in infos:
        block, block_bytes, _ = _BLOCKS[type_]
        n = prod(shape) // block * block_bytes
        tensors.append(_Tensor(name, shape, type_, raw[start + offset : start + offset + n]))
    return _Model(tuple(keys), tuple(tensors), version, alignment)


def _random_blocks(rng: np.random.Generator, type_: int, shape: tuple[int, ...]) -> bytes:
    """Valid weights: random codes, small finite scales."""
    n = prod(shape)
    if type_ == 0:
        return rng.normal(1.0 if len(shape) == 1 else 0.0, 0.05, n).astype("<f4").tobytes()
    if type_ == 1:
        return rng.normal(0.0, 0.05, n).astype("<f2").tobytes()
    if type_ == 30:
        return (rng.normal(0.0, 0.05, n).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    block, block_bytes, scales = _BLOCKS[type_]
    blocks = rng.integers(0, 256, (n // block, block_bytes), dtype=np.uint8)
    small = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = small
    return blocks.tobytes()


def _tokens() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types in the manner of Gemma 3: 1 normal, 3 control, 4 user-defined, 6 byte."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    types = [3] * len(tokens)
    scores = [-1000.0] * len(tokens)
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    types += [6] * 256
    scores += [0.0] * 256
    tokens += ["\n\n", "  "]
    types += [4] * 2
    scores += [-1000.0] * 2
    normal = ["he", "el", "lo", "th", "the", "in", "ing", "▁t", "▁the", "▁a", "hel", "hello", "▁in"]
    normal += ["er", "on", "an", "re", "at", "ou"]
    normal += ["▁", "\n", ".", ",", "?", "!", "0", "1", "2", "3", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += normal
    types += [1] * len(normal)
    scores += [-float(i) for i in range(len(normal))]
    return tokens, scores, types


def seed_image(seed: int = 0) -> bytes:
    """A tiny valid gemma3 model."""
    rng = np.random.default_rng(seed)
    tokens, scores, types = _tokens()
    d, ff, head_dim, heads, vocab, layers = 64, 256, 32, 4, len(tokens), 2
    keys: list[_Key] = []

    def add(name: str, type_: int, value: bytes | str | float | bool) -> None:
        raw = (
            _string(value)
            if isinstance(value, bytes | str)
            else struct.pack("<" + _SCALAR_FORMAT[type_], value)
        )
        keys.append(_Key(name.encode(), type_, raw))

    def add_array(name: str, element: int, items: list[bytes]) -> None:
        keys.append(_Key(name.encode(), ARRAY, _array(element, items)))

    add("general.architecture", STRING, "gemma3")
    add("general.type", STRING, "model")
    add("general.name", STRING, "tiny")
    add("general.file_type", U32, 7)
    add("general.quantization_version", U32, 2)
    add("gemma3.block_count", U32, layers)
    add("gemma3.context_length", U32, 512)
    add("gemma3.embedding_length", U32, d)
    add("gemma3.feed_forward_length", U32, ff)
    add("gemma3.attention.head_count", U32, heads)
    add("gemma3.attention.head_count_kv", U32, 1)
    add("gemma3.attention.key_length", U32, head_dim)
    add("gemma3.attention.value_length", U32, head_dim)
    add("gemma3.attention.sliding_window", U32, 64)
    add("gemma3.attention.layer_norm_rms_epsilon", F32, 1e-6)
    add("gemma3.rope.freq_base", F32, 1e6)
    add("tokenizer.ggml.model", STRING, "llama")
    add("tokenizer.ggml.pre", STRING, "default")
    add_array("tokenizer.ggml.tokens", STRING, [_string(t) for t in tokens])
    add_array("tokenizer.ggml.scores", F32, [struct.pack("<f", s) for s in scores])
    add_array("tokenizer.ggml.token_type", I32, [struct.pack("<i", t) for t in types])
    for i, name in enumerate(("padding", "eos", "bos", "unknown")):
        add(f"tokenizer.ggml.{name}_token_id", U32, i)
    add("tokenizer.ggml.add_bos_token", BOOL, True)
    add("tokenizer.ggml.add_eos_token", BOOL, False)
    add("tokenizer.ggml.add_space_prefix", BOOL, False)
    add(
        "tokenizer.chat_template", STRING, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )

    specs: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (d, vocab), 8),
        ("output_norm.weight", (d,), 0),
    ]
    for n in range(layers):
        specs += [
            (f"blk.{n}.attn_norm.weight", (d,), 0),
            (f"blk.{n}.attn_q.weight", (d, heads * head_dim), 6 if n else 2),
            (f"blk.{n}.attn_k.weight", (d, head_dim), 7 if n else 8),
            (f"blk.{n}.attn_v.weight", (d, head_dim), 3 if n else 1),
            (f"blk.{n}.attn_output.weight", (heads * head_dim, d), 30 if n else 8),
            (f"blk.{n}.attn_q_norm.weight", (head_dim,), 0),
            (f"blk.{n}.attn_k_norm.weight", (head_dim,), 0),
            (f"blk.{n}.post_attention_norm.weight", (d,), 0),
            (f"blk.{n}.ffn_norm.weight", (d,), 0),
            (f"blk.{n}.ffn_gate.weight", (d, ff), 2),
            (f"blk.{n}.ffn_up.weight", (d, ff), 8),
            (f"blk.{n}.ffn_down.weight", (ff, d), 14 if n else 12),
            (f"blk.{n}.post_ffw_norm.weight", (d,), 0),
        ]
    tensors = [
        _Tensor(name.encode(), shape, type_, _random_blocks(rng, type_, shape))
        for name, shape, type_ in specs
    ]
    return _image(_Model(tuple(keys), tuple(tensors)))


def _other_files(rng: random.Random, valid: bytes) -> Iterator[tuple[str, bytes]]:
    heads = {
        "empty": b"",
        "one-byte": b"G",
        "magic-only": b"GGUF",
        "magic-lower-case": b"gguf" + valid[4:],
        "magic-reversed": b"FUGG" + valid[4:],
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "json": b'{"error": "Repository not found"}',
        "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
        + b"0" * 64
        + b"\nsize 1\n",
        "zip": b"PK\x03\x04" + bytes(200),
        "gzip": b"\x1f\x8b\x08" + bytes(200),
        "safetensors": struct.pack("<Q", 2) + b"{}" + bytes(64),
        "ggml-old": b"tjgg" + struct.pack("<I", 3) + bytes(200),
        "text": "just a note ▁\n".encode() * 40,
        "random": rng.randbytes(4096),
        "shifted-by-one": b"\0" + valid,
        "twice-the-magic": b"GGUF" + valid,
    }
    for name, content in heads.items():
        yield f"refuse.header.file-{name}", content
    for version in (0, 1, 4, 2**16, 2**31, 2**32 - 1, 0x03000000, 0x02000000, 0x01000000):
        yield f"refuse.header.version-{version}", valid[:4] + struct.pack("<I", version) + valid[8:]
    yield "any.version-2", valid[:4] + struct.pack("<I", 2) + valid[8:]
    yield "any.trailing-bytes", valid + rng.randbytes(1000)


def _cuts(valid: bytes, fields: list[_Field], start: int, model: _Model) -> Iterator[tuple[str, bytes]]:
    ends = {f.position for f in fields} | {f.position + 1 for f in fields} | {f.position - 1 for f in fields}
    ends |= {start, start - 1, start + 1}
    at = start
    for t in model.tensors:
        ends |= {at, at + 1, at + len(t.data) // 2, at + len(t.data) - 1}
        last = at + len(t.data)
        at = _pad(last, model.alignment)
    for end in sorted(e for e in ends if 0 < e < last):
        yield f"refuse.header.cut-at-{end:07d}", valid[:end]
    if last < len(valid):
        yield "any.cut-in-the-last-padding", valid[:last]


def _lies(valid: bytes, fields: list[_Field]) -> Iterator[tuple[str, bytes]]:
    """Every count, length, type, dimension and offset of the header replaced by a wrong one."""
    for i, f in enumerate(fields):
        if f.kind in ("magic", "version", "key", "name", "value"):
            continue
        code = "<I" if f.n_bytes == 4 else "<Q"
        (true,) = struct.unpack_from(code, valid, f.position)
        lies: dict[int, str] = {}
        if f.kind in ("value_type", "element_type", "tensor_type"):
            lies = dict.fromkeys(
                (13 if f.kind != "tensor_type" else 39, 255, 2**31, 2**32 - 1), "refuse.header"
            )
            for other in range(13):
                lies.setdefault(other, "any")
        elif f.kind == "n_dims":
            lies = {0: "refuse.header", true + 1: "refuse.model", 5: "refuse.header", 2**31: "refuse.header"}
        elif f.kind == "offset":
            lies = {0: "refuse.header", true + 1: "refuse.header", true + _ALIGNMENT: "refuse.header"}
            lies |= dict.fromkeys((*_HUGE, 2**64 - _ALIGNMENT), "refuse.header")
        else:
            lies = {0: "refuse.model", true + 1: "refuse.model", max(true - 1, 0): "refuse.model"}
            lies |= dict.fromkeys(_HUGE, "refuse.header")
        for lie, expect in lies.items():
            if lie == true:
                continue
            raw = struct.pack(code, lie)
            yield (
                f"{expect}.lie-{f.kind}-{i:04d}-{f.label}-{lie}",
                valid[: f.position] + raw + valid[f.position + f.n_bytes :],
            )


def _numbers(model: _Model, arch: str) -> Iterator[tuple[str, bytes]]:
    """Absurd hyper-parameters."""
    big = 2**31
    ints: dict[str, tuple[int, ...]] = {
        "block_count": (0, 3, 1025, big, 2**32 - 1),
        "context_length": (0, 2**40),
        "embedding_length": (0, 32, 63, 65, 96, big, 2**32 - 1),
        "feed_forward_length": (0, 255, 257, 512, big),
        "attention.head_count": (0, 3, 8, 1025, big, 2**32 - 1),
        "attention.head_count_kv": (0, 2, 3, 5, big, 2**32 - 1),
        "attention.key_length": (0, 1, 31, 33, 64, big, 2**32 - 1),
        "attention.sliding_window": (0,),
    }
    for key, values in ints.items():
        if model.get(f"{arch}.{key}") is None:
            continue
        for value in values:
            type_, code = (U32, "<I") if value < 2**32 else (U64, "<Q")
            changed = model.with_key(f"{arch}.{key}", type_, struct.pack(code, value))
            yield f"refuse.model.number-{key}-{value}", _image(changed)
        changed = model.with_key(f"{arch}.{key}", I32, struct.pack("<i", -1))
        yield f"refuse.model.number-{key}-minus-one", _image(changed)
        changed = model.with_key(f"{arch}.{key}", U64, struct.pack("<Q", 2**64 - 1))
        yield f"refuse.model.number-{key}-2^64-1", _image(changed)
    floats = {
        "attention.layer_norm_rms_epsilon": (0.0, -1e-6, 1e30),
        "rope.freq_base": (0.0, -1.0),
    }
    for key, reals in floats.items():
        for name, real in [(str(r), r) for r in reals] + list(_F32_SPECIAL.items()):
            expect = "any" if real == 1e30 else "refuse.model"
            changed = model.with_key(f"{arch}.{key}", F32, struct.pack("<f", real))
            yield f"{expect}.number-{key}-{name}", _image(changed)
    for name, real in _F32_SPECIAL.items():
        changed = model.with_key(f"{arch}.rope.scaling.factor", F32, struct.pack("<f", real))
        yield f"any.number-rope.scaling.factor-{name}", _image(changed)
    for key in ("bos", "eos", "unknown", "padding"):
        for value in (10**6, 2**31, 2**32 - 1):
            changed = model.with_key(f"tokenizer.ggml.{key}_token_id", U32, struct.pack("<I", value))
            # An id of -1 in 32 bits is how some writers say "none".
            expect = "refuse.model" if key in ("bos", "eos") and value < 2**31 else "any"
            yield f"{expect}.number-{key}_token_id-{value}", _image(changed)
    for value in (0, 3, 24, 33, 2**21, 2**31, 2**32 - 1):
        changed = model.with_key("general.alignment", U32, struct.pack("<I", value))
        yield f"refuse.header.number-alignment-{value}", _image(changed)
    for value in (1, 8, 16, 64, 4096):
        changed = model.with_key("general.alignment", U32, struct.pack("<I", value))
        yield f"any.number-alignment-{value}", _image(changed)
    for name in ("", "llama", "gemma3\n", "gemma", "gemma3" * 1000):
        changed = model.with_key("general.architecture", STRING, _string(name))
        yield f"refuse.model.architecture-{name.strip()[:8] or 'empty'}-{len(name)}", _image(changed)


def _family(model: _Model) -> Iterator[tuple[str, bytes]]:
    """Lies about the parts that only some members of Gemma 4 have: sharing, per-layer embeddings, experts."""
    n_layers = int.from_bytes(model.get("gemma4.block_count").payload, "little")  # type: ignore[union-attr]
    big = (2**31, 2**32 - 1)
    ints: dict[str, tuple[int, ...]] = {
        "attention.shared_kv_layers": (n_layers - 2, n_layers - 1, n_layers, n_layers + 1, *big),
        "embedding_length_per_layer_input": (0, 7, 9, 16, 2**20, *big),
        "expert_count": (0, 6, 8, 1024, 1025, *big),
        "expert_used_count": (0, 8, 1025, *big),
        "expert_feed_forward_length": (0, 1, 11, 13, 24, 2**20, *big),
        "block_count": (n_layers - 1, n_layers + 1),
        "attention.key_length_swa": (0, 7, 16, *big),
    }
    for key, values in ints.items():
        name = f"gemma4.{key}"
        if model.get(name) is None:
            continue
        for value in values:
            if model.with_key(name, U32, struct.pack("<I", value)) == model:
                continue  # no lie
            yield (
                f"refuse.model.number-{key}-{value}",
                _image(model.with_key(name, U32, struct.pack("<I", value))),
            )
        yield f"refuse.model.number-{key}-minus-one", _image(model.with_key(name, I32, struct.pack("<i", -1)))
        huge = struct.pack("<Q", 2**64 - 1)
        yield f"refuse.model.number-{key}-2^64-1", _image(model.with_key(name, U64, huge))
        if key != "block_count":
            for n in (0, 1, n_layers - 1, n_layers + 1):
                items = [struct.pack("<I", 12)] * n
                changed = model.with_key(name, ARRAY, _array(U32, items))
                yield f"refuse.model.array-{key}-{n}", _image(changed)
    for key in ("feed_forward_length", "attention.head_count_kv", "attention.sliding_window_pattern"):
        name = f"gemma4.{key}"
        old = model.get(name)
        if old is None or old.type != ARRAY:
            continue
        element, items = _split_array(old.payload)
        flipped = bytes([items[0][0] ^ 1]) + items[0][1:]
        edits = {
            "empty": [],
            "one-less": items[:-1],
            "one-more": [*items, items[-1]],
            "first-changed": [flipped, *items[1:]],
            "last-changed": [*items[:-1], bytes([items[-1][0] ^ 1]) + items[-1][1:]],
        }
        if element != BOOL:
            edits["zero"] = [*items[:-1], bytes(len(items[-1]))]
            edits["minus-one"] = [*items[:-1], b"\xff" * len(items[-1])]
        for what, edited in edits.items():
            changed = model.with_key(name, ARRAY, _array(element, edited))
            yield f"refuse.model.array-{key}-{what}", _image(changed)


def _may_stay_unread(model: _Model, name: str) -> bool:
    """Whether a short prompt may leave the values, or even the whole tensor, unread."""
    if "per_layer_token_embd" in name or "_exps.weight" in name:
        return True
    return _is_shared_kv(model, name)


def _is_shared_kv(model: _Model, name: str) -> bool:
    shared, blocks = model.get("gemma4.attention.shared_kv_layers"), model.get("gemma4.block_count")
    kinds = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
    if shared is None or blocks is None or not name.startswith("blk.") or not name.endswith(kinds):
        return False
    first = int.from_bytes(blocks.payload, "little") - int.from_bytes(shared.payload, "little")
    return int(name.split(".")[1]) >= first


def _required(arch: str) -> tuple[str, ...]:
    return (
        "general.architecture",
        f"{arch}.block_count",
        f"{arch}.embedding_length",
        f"{arch}.feed_forward_length",
        f"{arch}.attention.head_count",
        f"{arch}.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
    )


def _keys(model: _Model, arch: str) -> Iterator[tuple[str, bytes]]:
    """Wrong types, missing keys, duplicate keys, bad UTF-8."""
    required = _required(arch)
    others: dict[str, tuple[int, bytes]] = {
        "string": (STRING, _string("12")),
        "float": (F32, struct.pack("<f", 2.5)),
        "bool": (BOOL, b"\1"),
        "int": (U32, struct.pack("<I", 2)),
        "strings": (ARRAY, _array(STRING, [_string("2")])),
        "empty-array": (ARRAY, _array(U32, [])),
        "nested-array": (ARRAY, _array(ARRAY, [_array(U32, [struct.pack("<I", 2)])])),
    }
    for key in model.keys:
        name = key.name.decode()
        kind = {STRING: "string", F32: "float", F64: "float", BOOL: "bool", ARRAY: "array"}.get(
            key.type, "int"
        )
        strict = name in required or name in (
            f"{arch}.attention.head_count_kv",
            f"{arch}.attention.key_length",
        )
        for other, (type_, payload) in others.items():
            if other == kind:
                continue
            yield (
                f"{'refuse.model' if strict else 'any'}.type-of-{name}-{other}",
                _image(model.with_key(name, type_, payload)),
            )
        without = replace(model, keys=tuple(k for k in model.keys if k is not key))
        yield f"{'refuse.model' if name in required else 'any'}.missing-key-{name}", _image(without)
        yield f"refuse.header.duplicate-key-{name}", _image(replace(model, keys=(*model.keys, key)))
    yield "refuse.model.missing-all-keys", _image(replace(model, keys=()))
    bad = {"lone-byte": b"\xff", "overlong": b"\xc0\x80", "surrogate": b"\xed\xa0\x80", "cut": b"\xe2\x96"}
    for what, raw in bad.items():
        new = _Key(b"general." + raw, U32, struct.pack("<I", 1))
        yield f"refuse.header.utf8-key-{what}", _image(replace(model, keys=(*model.keys, new)))
        yield f"refuse.header.utf8-tensor-name-{what}", _image(model.with_tensor(0, name=b"token_embd" + raw))
        for name, expect in (
            ("general.architecture", "refuse.model"),
            ("tokenizer.ggml.model", "refuse.model"),
            ("tokenizer.chat_template", "any"),
            ("general.name", "any"),
        ):
            yield (
                f"{expect}.utf8-value-{name}-{what}",
                _image(model.with_key(name, STRING, _string(b"gemma" + raw))),
            )
    for what, raw in {"empty": b"", "too-long": b"k" * 65537}.items():
        new = _Key(raw, U32, struct.pack("<I", 1))
        yield f"refuse.header.key-{what}", _image(replace(model, keys=(*model.keys, new)))
        yield f"refuse.header.tensor-name-{what}", _image(model.with_tensor(0, name=raw))
    for what, raw in {"newline": b"a\nb", "zero": b"a\0b", "escape": b"\x1b[31m"}.items():
        new = _Key(raw, U32, struct.pack("<I", 1))
        yield f"any.key-{what}", _image(replace(model, keys=(*model.keys, new)))
        yield f"refuse.model.tensor-name-{what}", _image(model.with_tensor(0, name=raw))
    for depth in (4, 5, 1000, 20000):
        payload = _array(U8, [])
        for _ in range(depth - 1):
            payload = struct.pack("<IQ", ARRAY, 1) + payload
        changed = model.with_key("general.nested", ARRAY, payload)
        yield f"{'any' if depth <= 4 else 'refuse.header'}.nested-{depth}", _image(changed)
    many = tuple(_Key(f"k{i}".encode(), U8, b"\0") for i in range(50_000))
    yield "any.many-keys", _image(replace(model, keys=model.keys + many))
    wide = _array(ARRAY, [_array(U8, [])] * 50_000)
    yield "any.wide-array", _image(model.with_key("general.wide", ARRAY, wide))
    for byte in (2, 255):
        changed = model.with_key("tokenizer.ggml.add_bos_token", BOOL, bytes([byte]))
        yield f"refuse.header.bool-{byte}", _image(changed)
        changed = model.with_key("general.flags", ARRAY, _array(BOOL, [b"\1", bytes([byte])]))
        yield f"refuse.header.bool-array-{byte}", _image(changed)


def _split_array(payload: bytes) -> tuple[int, list[bytes]]:
    element, count = struct.unpack_from("<IQ", payload)
    items, at = [], 12
    for _ in range(count):
        n = _value_size(payload, at, element)
        items.append(payload[at : at + n])
        at += n
    return element, items


def _vocabulary(model: _Model) -> Iterator[tuple[str, bytes]]:
    """Token arrays that do not fit each other, the embedding or their own rules."""
    edits: dict[str, Callable[[list[bytes]], list[bytes]]] = {
        "none": lambda items: [],
        "one": lambda items: items[:1],
        "one-less": lambda items: items[:-1],
        "one-more": lambda items: [*items, items[-1]],
    }
    for name in ("tokens", "scores", "token_type"):
        key = model.get(f"tokenizer.ggml.{name}")
        if key is None:
            continue
        element, items = _split_array(key.payload)
        for what, edit in edits.items():
            changed = model.with_key(f"tokenizer.ggml.{name}", ARRAY, _array(element, edit(items)))
            yield f"refuse.model.vocabulary-{name}-{what}", _image(changed)
        raws: dict[str, bytes] = {}
        if name == "tokens":
            raws = {
                "empty": _string(""),
                "bad-utf8": _string(b"\xff\xfe"),
                "long": _string("x" * 10**6),
                "duplicate": items[0],
                "zero": _string("\0"),
            }
        elif name == "scores":
            raws = {k: struct.pack("<f", v) for k, v in _F32_SPECIAL.items()}
        elif name == "token_type":
            raws = {str(v): struct.pack("<i", v) for v in (0, 7, -1, 2**31 - 1)}
        for what, raw in raws.items():
            changed = model.with_key(f"tokenizer.ggml.{name}", ARRAY, _array(element, [*items[:-1], raw]))
            yield f"any.vocabulary-{name}-last-{what}", _image(changed)
    for value in ("", "gpt2", "bert", "x" * 10**5):
        changed = model.with_key("tokenizer.ggml.model", STRING, _string(value))
        yield f"refuse.model.vocabulary-model-{value[:4] or 'empty'}", _image(changed)


def _reshaped(t: _Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Shapes of another meaning that the type still allows."""
    block = _BLOCKS[t.type][0]
    cols, rows = t.shape[0], prod(t.shape[1:])
    if len(t.shape) == 2 and cols != rows and rows % block == 0:
        yield "transposed", (rows, cols)
    if len(t.shape) == 2:
        yield "one-row-less", (cols, rows - 1)
        yield "one-row-more", (cols, rows + 1)
        yield "flat", (cols * rows,)
    if cols > block:
        yield "narrower", (cols - block, *t.shape[1:])
    yield "wider", (cols + block, *t.shape[1:])
    if rows % 2 == 0:
        yield "one-dimension-more", (cols, rows // 2, 2)
    if cols % (2 * block) == 0 and len(t.shape) == 1:
        yield "folded", (cols // 2, 2)


def _tensors(model: _Model) -> Iterator[tuple[str, bytes]]:
    """Shapes, types, names, places and values of tensors."""
    for i, t in enumerate(model.tensors):
        name = t.name.decode()
        block, block_bytes, scales = _BLOCKS[t.type]
        for what, shape in _reshaped(t):
            n = prod(shape) // block * block_bytes
            data = (t.data * (n // len(t.data) + 1))[:n]
            yield f"refuse.model.shape-{name}-{what}", _image(model.with_tensor(i, shape=shape, data=data))
        rest = model.tensors[:i] + model.tensors[i + 1 :]
        refuse = "any" if _is_shared_kv(model, name) else "refuse.model"
        yield f"{refuse}.missing-tensor-{name}", _image(replace(model, tensors=rest))
        yield f"refuse.model.renamed-tensor-{name}", _image(model.with_tensor(i, name=t.name + b"x"))
        yield f"refuse.header.duplicate-tensor-{name}", _image(replace(model, tensors=(*model.tensors, t)))
        other = model.tensors[(i + 1) % len(model.tensors)]
        yield f"refuse.header.same-name-{name}", _image(model.with_tensor(i, name=other.name))
        if i > 0:
            yield f"refuse.header.overlap-{name}", _image(model.with_tensor(i, offset=0))
        if t.type == 0:
            as_f16 = bytes(2 * prod(t.shape))
            yield f"any.as-f16-{name}", _image(model.with_tensor(i, type=1, data=as_f16))
        if len(t.shape) > 1:
            zero = model.with_tensor(i, data=bytes(len(t.data)))
            yield f"any.all-zero-{name}", _image(zero)
        refuse = "any" if _may_stay_unread(model, name) else "refuse.model"
        for what, number in _F32_SPECIAL.items():
            last = len(t.data) // block_bytes - 1
            if t.type == 0:
                bad = t.data[:-4] + struct.pack("<f", number)
                yield f"{refuse}.value-{name}-{what}", _image(model.with_tensor(i, data=bad))
            elif t.type == 1:
                bad = _F16_SPECIAL[what] + t.data[2:]
                yield f"{refuse}.value-{name}-{what}", _image(model.with_tensor(i, data=bad))
            elif t.type == 30:
                bad = struct.pack("<f", number)[2:] + t.data[2:]
                yield f"{refuse}.value-{name}-{what}", _image(model.with_tensor(i, data=bad))
            for position in scales:
                at = last // 2 * block_bytes + position
                bad = t.data[:at] + _F16_SPECIAL[what] + t.data[at + 2 :]
                yield f"{refuse}.scale-{name}-{position}-{what}", _image(model.with_tensor(i, data=bad))
    yield "refuse.model.no-tensors", _image(replace(model, tensors=()))
    extra = _Tensor(b"blk.99.surprise.weight", (8,), 0, bytes(32))
    yield "any.extra-tensor", _image(replace(model, tensors=(*model.tensors, extra)))
    yield "any.tensors-reversed", _image(replace(model, tensors=model.tensors[::-1]))


def _with_layout(model: _Model, layout: str, alignment: int = _PACKED_ALIGNMENT) -> _Model:
    """The model with the key of this layout and its tensors aligned."""
    keyed = model.with_key("gemmule.layout", STRING, _string(layout))
    keyed = keyed.with_key("general.alignment", U32, struct.pack("<I", alignment))
    return replace(keyed, alignment=alignment)


def _packed(rng: random.Random, model: _Model) -> Iterator[tuple[str, bytes]]:
    """Tensors that claim to be packed. Rows read as panels are panels of other, mostly huge, scales."""
    can = {
        t.name: len(t.shape) == 2 and t.shape[1] % 8 == 0 and _BLOCKS[t.type][0] > 1 for t in model.tensors
    }
    turned = tuple(replace(t, type=t.type + _PACKED) if can[t.name] else t for t in model.tensors)
    packed = _with_layout(replace(model, tensors=turned), "r8p64")
    raw, fields, start = _write(packed)
    yield "any.packed", raw
    zeros = tuple(replace(t, data=bytes(len(t.data))) if can[t.name] else t for t in turned)
    yield "any.packed-zeros", _image(replace(packed, tensors=zeros))
    yield "any.layout-r8p64-of-rows", _image(_with_layout(model, "r8p64"))
    for layout in ("", "r8", "R8P64", "r8p64 ", "gguf\0", "x" * 10**5):
        label = "".join(c if c.isalnum() else "_" for c in layout[:6]) or "empty"
        yield f"refuse.header.layout-{label}", _image(_with_layout(model, layout))
        yield f"refuse.header.packed-layout-{label}", _image(_with_layout(packed, layout))
    for what, (type_, payload) in {
        "int": (U32, struct.pack("<I", 1)),
        "array": (ARRAY, _array(STRING, [_string("r8p64")])),
        "utf8": (STRING, _string(b"r8p64\xff")),
    }.items():
        yield f"refuse.header.layout-{what}", _image(packed.with_key("gemmule.layout", type_, payload))
    yield "refuse.header.packed-layout-gguf", _image(_with_layout(packed, "gguf"))
    no_key = tuple(k for k in packed.keys if k.name != b"gemmule.layout")
    no_layout = "refuse.header" if any(can.values()) else "any"
    yield f"{no_layout}.packed-no-layout", _image(replace(packed, keys=no_key))
    for alignment in (8, 16, 32):
        yield f"refuse.header.packed-alignment-{alignment}", _image(_with_layout(packed, "r8p64", alignment))
    for i, t in enumerate(packed.tensors):
        name = t.name.decode()
        if not can[t.name]:
            yield f"refuse.header.packed-type-{name}", _image(packed.with_tensor(i, type=t.type + _PACKED))
            continue
        cols, rows = t.shape
        row = len(t.data) // rows
        yield f"refuse.header.packed-vector-{name}", _image(packed.with_tensor(i, shape=(cols * rows,)))
        for n in (1, 4, rows - 1, rows - 4, rows + 4):
            data = (t.data * 2)[: n * row]
            changed = packed.with_tensor(i, shape=(cols, n), data=data)
            yield f"refuse.header.packed-rows-{name}-{n}", _image(changed)
        changed = packed.with_tensor(i, shape=(cols, rows + 8), data=(t.data * 2)[: (rows + 8) * row])
        yield f"refuse.model.packed-rows-{name}-{rows + 8}", _image(changed)
        refuse = "refuse.model" if rows // 2 % 64 == 0 else "refuse.header"
        yield f"{refuse}.packed-matrices-{name}", _image(packed.with_tensor(i, shape=(cols, rows // 2, 2)))
    for number in (_PACKED + 4, _PACKED + 31, 2 * _PACKED + 8, 2**31 + _PACKED, 2**32 - 1):
        yield f"refuse.header.packed-type-{number}", _image(packed.with_tensor(0, type=number))
    for field_ in fields:
        if field_.kind in ("tensor_type", "dim", "n_dims", "offset"):
            at, bit = field_.position + rng.randrange(field_.n_bytes), rng.randrange(8)
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            yield f"any.packed-flip-{at:07d}-{bit}", bytes(damaged)
    for at in sorted(rng.sample(range(start, len(raw) - _PACKED_ALIGNMENT), 8)):
        yield f"refuse.header.packed-cut-{at:07d}", raw[:at]


def _flips(rng: random.Random, valid: bytes, start: int) -> Iterator[tuple[str, bytes]]:
    """Random damage: single bits, bytes, runs and cuts."""
    for _ in range(300):
        at, bit = rng.randrange(start), rng.randrange(8)
        raw = bytearray(valid)
        raw[at] ^= 1 << bit
        yield f"any.flip-{at:07d}-{bit}", bytes(raw)
    for _ in range(100):
        at, n = rng.randrange(start), rng.randrange(1, 17)
        yield f"any.noise-{at:07d}-{n}", valid[:at] + rng.randbytes(n) + valid[at + n :]
    for _ in range(50):
        at, n = rng.randrange(24, start), rng.randrange(1, 17)
        yield f"any.deleted-{at:07d}-{n}", valid[:at] + valid[at + n :]
        yield f"any.inserted-{at:07d}-{n}", valid[:at] + rng.randbytes(n) + valid[at:]
    for _ in range(50):
        at, bit = rng.randrange(start, len(valid)), rng.randrange(8)
        raw = bytearray(valid)
        raw[at] ^= 1 << bit
        yield f"any.flip-data-{at:07d}-{bit}", bytes(raw)


def hostile_files(seed_file: Path, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of every broken file; the same seed gives the same files. Names are unique."""
    if not seed_file.exists():
        seed_file.write_bytes(seed_image(seed))
    rng = random.Random(seed)
    model = _read(seed_file.read_bytes())
    valid, fields, start = _write(model)
    key = model.get("general.architecture")
    arch = key.payload[8:].decode() if key is not None else ""
    groups = (
        _other_files(rng, valid),
        _cuts(valid, fields, start, model),
        _lies(valid, fields),
        _family(model) if arch == "gemma4" else _numbers(model, arch),
        _keys(model, arch),
        _vocabulary(model),
        _tensors(model),
        _flips(rng, valid, start),
        _packed(rng, model),
    )
    seen: set[str] = set()
    for group in groups:
        for name, content in group:
            safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-^") else "_" for c in name)
            if safe in seen:
                safe += f"-{len(seen)}"
            seen.add(safe)
            yield safe + ".gguf", content


def _main() -> None:
    parser = argparse.ArgumentParser(description="Writes the corpus of broken GGUF files.")
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seed-file", type=Path, help="a small valid GGUF to derive from (default: a tiny gemma3)"
    )
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    seed_file = args.seed_file or args.outdir / "valid.gguf"
    n = 0
    for name, content in hostile_files(seed_file, args.seed):
        (args.outdir / name).write_bytes(content)
        n += 1
    print(f"{n} files in {args.outdir}")


if __name__ == "__main__":
    _main()
