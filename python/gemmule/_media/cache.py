"""Embeddings of pictures and sounds that were computed before, found by what they show.

The key is a hash of the exact numbers that go into the embedder, so the same picture from another file, or at
another place of a conversation, costs nothing; other numbers can never be mistaken for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["EmbeddingCache"]

Rows = NDArray[np.float32]


class EmbeddingCache:
    """Keeps the most recently used rows up to `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[bytes, Rows] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, key: bytes, compute: Callable[[], Rows]) -> Rows:
        """The rows of `key`: float32 [n, d_model], read-only; computed outside the lock when missing."""
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        rows = compute()
        rows.flags.writeable = False
        with self._lock:
            if key not in self._rows and rows.nbytes <= self._max_bytes:
                self._rows[key] = rows
                self._n_bytes += rows.nbytes
                while self._n_bytes > self._max_bytes:
                    _, oldest = self._rows.popitem(last=False)
                    self._n_bytes -= oldest.nbytes
        return rows
