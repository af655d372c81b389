"""Scores of a text: log-probabilities over the windows of llama.cpp's perplexity tool, and what they say."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmule import _core
from gemmule._request import Progress
from gemmule._types import Score

__all__ = ["Windows", "perplexity", "score_windows"]


@dataclass(frozen=True)
class Windows:
    """A text cut into whole windows of `size` tokens, of which those behind `first` are scored."""

    ids: NDArray[np.int32]
    size: int
    first: int  # the first position whose next token is scored
    bos: int | None  # the first token of each window

    @classmethod
    def of(cls, ids: NDArray[np.int32], n_ctx: int, bos: int | None) -> "Windows":
        """A text shorter than one window is one window, scored from its first token on."""
        if len(ids) < 2:
            raise ValueError("a text of one token has nothing to score")
        if len(ids) < n_ctx:
            return cls(ids, len(ids), 0, None)
        return cls(ids, n_ctx, n_ctx // 2, bos)

    def __len__(self) -> int:
        return len(self.ids) // self.size

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        for i in range(len(self)):
            window = self.ids[i * self.size : (i + 1) * self.size].copy()
            if self.bos is not None:
                window[0] = self.bos
            yield window


def score_windows(
    session: Any,
    windows: Windows,
    top: int,
    cancel: _core.StopToken | None,
    progress: Progress | None,
) -> Score:
    """Runs each window on its own in `session`, an engine's one with room for a window."""
    first = windows.first
    tokens: list[int] = []
    logprobs: list[NDArray[np.float32]] = []
    tops: list[tuple[tuple[int, float], ...]] = []
    for i, window in enumerate(windows):
        session.rewind(0)
        if first:
            session.append(window[:first], stop=cancel)
        values, top_ids, top_values = session.append_score(
            window[first:-1], window[first + 1 :], top=top, stop=cancel
        )
        logprobs.append(values)
        tokens += window[first + 1 :].tolist()
        if top:
            pairs = zip(top_ids.tolist(), top_values.tolist(), strict=True)
            tops += [tuple(zip(row, row_values, strict=True)) for row, row_values in pairs]
        if progress is not None:
            progress(i + 1, len(windows))
    flat = np.concatenate(logprobs)
    value, error = perplexity(flat)
    return Score(tuple(tokens), tuple(flat.tolist()), len(tokens), value, error, windows.size, tuple(tops))


def perplexity(logprobs: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """exp(mean nll) and its standard error, perplexity * sqrt(var(nll) / (n - 1))."""
    n = len(logprobs)
    if not n:
        return math.nan, math.nan
    nll = -logprobs.astype(np.float64)
    value = math.exp(nll.mean())
    return value, value * math.sqrt(nll.var() / (n - 1)) if n > 1 else math.nan
