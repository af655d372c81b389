"""Drive a llama.cpp or ik_llama.cpp library through its C functions, in this process, with ctypes.

Only the few calls a comparison needs: load, decode, logits. Without a library given, the one inside the
xllamacpp wheel. The parameter structs are treated as byte blocks; the fields set here are found at offsets
that are checked against the defaults the library itself returns, so a library with another layout raises an
error instead of giving wrong numbers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmule._errors import MissingExtraError, UnsupportedError

__all__ = ["LlamaCpp"]


class _Block(ctypes.Structure):
    """A parameter struct passed by value; x86-64 allows it to be larger than the real one."""

    _fields_ = [("data", ctypes.c_uint8 * 512)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("only_ik", ctypes.c_int32 * 3),
    ]


@dataclass(frozen=True)
class _Layout:
    """Byte offsets in the two parameter structs, and defaults (int32 or bool) that prove them."""

    ctx_defaults: dict[int, int]
    model_defaults: dict[int, int]
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_threads_batch: int
    type_k: int
    type_v: int
    repack: int  # a bool of the model: whether weights are rearranged at load


_LAYOUTS = {  # by a function that only this family has
    "llama_get_memory": _Layout(  # llama.cpp, builds of 2026.10
        ctx_defaults={0: 512, 4: 2048, 8: 512, 12: 1, 28: 4, 32: 4, 104: 1, 108: 1},
        model_defaults={72: 0, 73: 0, 74: 1},
        n_ctx=0,
        n_batch=4,
        n_ubatch=8,
        n_threads=28,
        n_threads_batch=32,
        type_k=104,
        type_v=108,
        repack=74,
    ),
    "llama_kv_cache_clear": _Layout(  # ik_llama.cpp, builds of 2026.9
        ctx_defaults={4: 512, 8: 2048, 12: 512, 16: 1, 20: 4, 24: 4, 96: 1, 100: 1},
        model_defaults={152: 0, 153: 1, 154: 0, 156: 0},
        n_ctx=4,
        n_batch=8,
        n_ubatch=12,
        n_threads=20,
        n_threads_batch=24,
        type_k=96,
        type_v=100,
        repack=156,
    ),
}
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _open(library: str | Path | None) -> ctypes.CDLL:
    if library is not None:
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise UnsupportedError(f"{library} is no library of llama.cpp: {error}") from None
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    if spec is None or spec.origin is None:
        raise MissingExtraError("to compare with llama.cpp: pip install xllamacpp, or name a library")
    return ctypes.CDLL(spec.origin)


class LlamaCpp:
    """One model and context; kv_type "f16", "q8_0" or "f32"; repack None leaves the library's default."""

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int,
        n_threads: int,
        n_batch: int = 512,
        kv_type: str = "f16",
        library: str | Path | None = None,
        repack: bool | None = None,
    ) -> None:
        lib = _open(library)
        self._lib = lib
        self.library = str(lib._name)
        family = next((name for name in _LAYOUTS if hasattr(lib, name)), None)
        if family is None:
            raise UnsupportedError(
                f"{library} is neither a llama.cpp nor an ik_llama.cpp that this file knows"
            )
        self._is_ik = family == "llama_kv_cache_clear"
        layout = _LAYOUTS[family]
        memory: list[tuple[str, Any, Any]] = (
            [("llama_kv_cache_clear", None, [ctypes.c_void_p])]
            if self._is_ik
            else [
                ("llama_get_memory", ctypes.c_void_p, [ctypes.c_void_p]),
                ("llama_memory_clear", None, [ctypes.c_void_p, ctypes.c_bool]),
            ]
        )
        for name, result, args in (
            ("llama_model_default_params", _Block, []),
            ("llama_context_default_params", _Block, []),
            ("llama_model_load_from_file", ctypes.c_void_p, [ctypes.c_char_p, _Block]),
            ("llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, _Block]),
            ("llama_batch_get_one", _Batch, [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32]),
            ("llama_batch_init", _Batch, [ctypes.c_int32] * 3),
            ("llama_decode", ctypes.c_int32, [ctypes.c_void_p, _Batch]),
            ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
            ("llama_model_get_vocab", ctypes.c_void_p, [ctypes.c_void_p]),
            ("llama_vocab_n_tokens", ctypes.c_int32, [ctypes.c_void_p]),
            ("llama_tokenize", ctypes.c_int32, None),
            ("llama_print_system_info", ctypes.c_char_p, []),
            *memory,
        ):
            function = getattr(lib, name)
            function.restype = result
            if args is not None:
                function.argtypes = args
        self._quiet = _LOG_CALLBACK(lambda _level, _text, _data: None)
        lib.llama_log_set(self._quiet, None)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        params = lib.llama_context_default_params()
        raw, model_raw = bytes(params.data), bytes(model_params.data)
        found = {offset: struct.unpack_from("<i", raw, offset)[0] for offset in layout.ctx_defaults}
        flags = {offset: int(model_raw[offset]) for offset in layout.model_defaults}
        if found != layout.ctx_defaults or flags != layout.model_defaults:
            raise UnsupportedError(f"this library has another layout of its parameters: {found}, {flags}")
        kv = {"f32": 0, "f16": 1, "q8_0": 8}[kv_type]
        for offset, value in (
            (layout.n_ctx, n_ctx),
            (layout.n_batch, max(n_batch, 32)),
            (layout.n_ubatch, min(512, max(n_batch, 32))),
            (layout.n_threads, n_threads),
            (layout.n_threads_batch, n_threads),
            (layout.type_k, kv),
            (layout.type_v, kv),
        ):
            struct.pack_into("<i", params.data, offset, value)
        if repack is not None:
            model_params.data[layout.repack] = int(repack)
        self._model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise UnsupportedError(f"llama.cpp cannot load {path}")
        self._ctx = lib.llama_init_from_model(self._model, params)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self.n_tokens = 0

    def clear(self) -> None:
        """Forget all tokens."""
        if self._is_ik:
            self._lib.llama_kv_cache_clear(self._ctx)
        else:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)
        self.n_tokens = 0

    @property
    def system_info(self) -> str:
        """The instruction sets the library was built for."""
        return str(self._lib.llama_print_system_info().decode())

    def step(self, ids: np.ndarray, *, all_logits: bool = False) -> None:
        """Run ids (int32 [n]) and keep the logits of the last one, or of all, in the library."""
        n = len(ids)
        batch = self._batch
        batch.n_tokens = n
        for i in range(n):
            batch.token[i] = int(ids[i])
            batch.pos[i] = self.n_tokens + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1 if all_logits or i == n - 1 else 0
        code = self._lib.llama_decode(self._ctx, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self.n_tokens += n

    def last_logits(self) -> np.ndarray:
        """A view, float32 [n_vocab], of the logits of the last token; the next step overwrites it."""
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._ctx, -1), shape=(self.n_vocab,))

    def append(self, ids: np.ndarray, *, all_logits: bool = False) -> np.ndarray:
        """Run ids (int32 [n]); return float32 [n_vocab] of the last token or [n, n_vocab] of all."""
        self.step(ids, all_logits=all_logits)
        if all_logits:
            pointer = self._lib.llama_get_logits(self._ctx)
            return np.ctypeslib.as_array(pointer, shape=(len(ids), self.n_vocab)).copy()
        return self.last_logits().copy()

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> np.ndarray:
        """int32 [n] token ids of the text."""
        raw = text.encode()
        size = len(raw) + 16
        out = (ctypes.c_int32 * size)()
        call: Any = self._lib.llama_tokenize
        call.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ]
        n = call(self._vocab, raw, len(raw), out, size, bos, special)
        if n < 0:
            raise RuntimeError(f"llama_tokenize returned {n}")
        return np.array(out[:n], dtype=np.int32)
