"""Drive the llama.cpp inside the xllamacpp wheel through its C functions, in this process, with ctypes.

Only the few calls a comparison needs: load, decode, logits. The parameter structs are treated as byte blocks;
the fields set here are found at offsets that are checked against the defaults the library itself returns, so
an xllamacpp with another layout raises an error instead of giving wrong numbers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np

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
    ]


# Byte offsets in llama_context_params and the defaults expected there (2026.10 builds).
_CTX_DEFAULTS = {0: 512, 4: 2048, 8: 512, 12: 1, 28: 4, 32: 4, 104: 1, 108: 1}
_OFF_CTX, _OFF_BATCH, _OFF_UBATCH, _OFF_THREADS, _OFF_THREADS_BATCH, _OFF_TYPE_K, _OFF_TYPE_V = (
    0,
    4,
    8,
    28,
    32,
    104,
    108,
)
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LlamaCpp:
    """One llama.cpp model and context; kv_type "f16" or "f32"."""

    def __init__(
        self, path: str | Path, *, n_ctx: int, n_threads: int, n_batch: int = 512, kv_type: str = "f16"
    ) -> None:
        spec = importlib.util.find_spec("xllamacpp.xllamacpp")
        if spec is None or spec.origin is None:
            raise ImportError("xllamacpp is not installed; install it to compare with llama.cpp")
        lib = ctypes.CDLL(spec.origin)
        self._lib = lib
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
            ("llama_get_memory", ctypes.c_void_p, [ctypes.c_void_p]),
            ("llama_memory_clear", None, [ctypes.c_void_p, ctypes.c_bool]),
            ("llama_model_get_vocab", ctypes.c_void_p, [ctypes.c_void_p]),
            ("llama_vocab_n_tokens", ctypes.c_int32, [ctypes.c_void_p]),
            ("llama_tokenize", ctypes.c_int32, None),
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
        raw = bytes(params.data)
        found = {offset: struct.unpack_from("<i", raw, offset)[0] for offset in _CTX_DEFAULTS}
        if found != _CTX_DEFAULTS:
            raise RuntimeError(f"this xllamacpp has another llama_context_params layout: {found}")
        kv = {"f32": 0, "f16": 1}[kv_type]
        for offset, value in (
            (_OFF_CTX, n_ctx),
            (_OFF_BATCH, max(n_batch, 32)),
            (_OFF_UBATCH, min(512, max(n_batch, 32))),
            (_OFF_THREADS, n_threads),
            (_OFF_THREADS_BATCH, n_threads),
            (_OFF_TYPE_K, kv),
            (_OFF_TYPE_V, kv),
        ):
            struct.pack_into("<i", params.data, offset, value)
        self._model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._ctx = lib.llama_init_from_model(self._model, params)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self.n_tokens = 0

    def clear(self) -> None:
        """Forget all tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)
        self.n_tokens = 0

    def append(self, ids: np.ndarray, *, all_logits: bool = False) -> np.ndarray:
        """Run ids (int32 [n]); return float32 [n_vocab] of the last token or [n, n_vocab] of all."""
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
        if all_logits:
            pointer = self._lib.llama_get_logits(self._ctx)
            return np.ctypeslib.as_array(pointer, shape=(n, self.n_vocab)).copy()
        pointer = self._lib.llama_get_logits_ith(self._ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).copy()

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
