"""The statistics of a comparison of two models on the same tokens, as llama-perplexity defines them, and the
test whether two measurements differ.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Doubles", "compare_rows", "divergence_figures", "log_softmax", "t_quantile"]

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

_ROWS = 1  # at a time: one of a large vocabulary is a megabyte, and its temporaries stay in the cache


def log_softmax(logits: Floats) -> Floats:
    """float32 [n, v] -> float32 [n, v], with the sum in float64; in place."""
    for first in range(0, len(logits), _ROWS):
        rows = logits[first : first + _ROWS]
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def compare_rows(reference: Floats, other: Floats, targets: NDArray[np.int32]) -> dict[str, Doubles]:
    """Log-probabilities [n, v] of both and the true tokens [n] -> float64 [n] each of the divergence
    KL(reference || other), the change of the true token's probability, and whether the top token is the same.
    """
    n = len(targets)
    kl, same = np.empty(n), np.empty(n)
    for first in range(0, n, _ROWS):
        a, b = reference[first : first + _ROWS], other[first : first + _ROWS]
        kl[first : first + _ROWS] = (np.exp(a) * (a - b)).sum(axis=1, dtype=np.float64)
        same[first : first + _ROWS] = a.argmax(axis=1) == b.argmax(axis=1)
    at = np.arange(n)
    change = np.exp(other[at, targets].astype(np.float64)) - np.exp(reference[at, targets].astype(np.float64))
    return {"kl": kl, "dp": change, "same": same}


def divergence_figures(kl: Doubles, dp: Doubles, same: Doubles, log_ratio: Doubles) -> dict[str, float]:
    """Mean, median and tail of the divergence; RMS change of probability; share of equal top tokens; mean of
    ln(PPL / PPL of the reference). Each with its standard error, that of a quantile from the neighbouring
    order statistics.
    """
    squares = dp * dp
    rms = math.sqrt(float(squares.mean()))
    share = float(same.mean())
    figures: dict[str, float] = {
        "kl_mean": float(kl.mean()),
        "kl_mean_error": _mean_error(kl),
        "kl_max": float(kl.max()),
        "dp_rms": rms,
        "dp_rms_error": _mean_error(squares) / (2 * rms) if rms else 0.0,
        "same_top": share,
        "same_top_error": math.sqrt(share * (1 - share) / max(1, len(same) - 1)),
        "ln_ppl_ratio": float(log_ratio.mean()),
        "ln_ppl_ratio_error": _mean_error(log_ratio),
    }
    for name, q in (("kl_median", 0.5), ("kl_99", 0.99), ("kl_999", 0.999)):
        figures[name] = float(np.quantile(kl, q))
        spread = math.sqrt(q * (1 - q) / len(kl))
        low, high = np.quantile(kl, [max(0.0, q - spread), min(1.0, q + spread)])
        figures[f"{name}_error"] = float(high - low) / 2
    return figures


def _mean_error(values: Doubles) -> float:
    return math.sqrt(float(values.var()) / (len(values) - 1)) if len(values) > 1 else 0.0


def t_quantile(p: float, degrees: float) -> float:
    """Of Student's t, by Cornish and Fisher's expansion around the normal one; within 3 % from 3 degrees on,
    and on the safe side below, where it is not used for fewer than 2.
    """
    z = NormalDist().inv_cdf(p)
    if degrees < 3:  # exact for 1 and 2
        if degrees < 2:
            return math.tan(math.pi * (p - 0.5))
        a = 4 * p * (1 - p)
        return 2 * (p - 0.5) * math.sqrt(2 / a)
    terms: tuple[Any, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(float(term) / degrees**k for k, term in enumerate(terms, 1))
