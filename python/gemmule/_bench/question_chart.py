"""The chart of questions and tasks: which share of them each file answers right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemmule._bench.charts import colour_of, finish
from gemmule._bench.formats import of_kind
from gemmule._bench.record import Row

__all__ = ["draw_questions", "share_interval"]


def draw_questions(axes: Any, rows: Sequence[Row]) -> list[Row]:
    """A group for each kind of question, in it the files in their order."""
    used = [row for row in of_kind(rows, "quality") if "gm_right" in row and row["gm_asked"] > 0]
    kinds = list(dict.fromkeys(row["gm_question"] for row in used))
    names = list(dict.fromkeys(str(row["gm_quantization"]) for row in used))
    step = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        mine = [row for row in used if row["gm_quantization"] == name]
        at = [kinds.index(row["gm_question"]) + (number - (len(names) - 1) / 2) * step for row in mine]
        right = [row["gm_right"] for row in mine]
        spans = [share_interval(row["gm_right"], row["gm_asked"]) for row in mine]
        below = [100 * (p - low) for p, (low, _) in zip(right, spans, strict=True)]
        above = [100 * (high - p) for p, (_, high) in zip(right, spans, strict=True)]
        axes.errorbar(
            at, [100 * p for p in right], yerr=(below, above), fmt="o", ms=4, capsize=2,
            color=colour_of(number), label=name,
        )  # fmt: skip
    if used:
        axes.set_xticks(range(len(kinds)), kinds)
        asked = {row["gm_asked"] for row in used}
        title = "Right answers" + (f", {asked.pop()} questions of each kind" if len(asked) == 1 else "")
        finish(axes, title, ylabel="right answers, % (interval of 95 %)")
    return used


def share_interval(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of n, which never leaves 0 to 1."""
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return min(low, p), max(high, p)
