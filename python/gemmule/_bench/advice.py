"""Which file to take: what each one costs in distance, time and memory, and one sentence for this machine.

The sentence names the fastest file that fits (a tenth of the memory stays free) and stays within a mean
divergence of 0.05, which lies between Q4_K_M (0.03) and Q3_K_M (0.10) of Llama 3 8B in the tables of
llama.cpp's perplexity tool. Among files whose speeds differ by less than their errors, the one closest to the
reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gemmule._bench.formats import of_kind
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.record import Row
from gemmule._bench.series import plain_speed, taken_bytes
from gemmule._types import format_bytes

__all__ = ["Choice", "choices", "recommendation"]

_MAX_KL = 0.05
_USABLE = 0.9  # of the machine's memory


@dataclass(frozen=True, slots=True)
class Choice:
    """A file in our engine: its quality row, its row of single tokens, and the bytes it takes."""

    quality: Row
    speed: Row
    memory: int
    n_ctx: int  # that goes with `memory`; 0: the file alone

    @property
    def kl(self) -> float:
        return float(self.quality["gm_kl_mean"])

    @property
    def rate(self) -> float:
        return float(self.speed["avg_ts"])

    @property
    def rate_error(self) -> float:
        return float(self.speed["stddev_ts"]) / math.sqrt(len(self.speed.get("samples_ns") or [0]))


def choices(rows: Sequence[Row]) -> list[Choice]:
    """Every file that has a distance from the reference and a speed. Memory is that of the files alone where
    one of them has no other figure.
    """
    ours = [row for row in rows if row.get("gm_engine") == "gemmule"]
    found = []
    for quality in summary_rows(ours):
        mine = [row for row in ours if row["model_filename"] == quality["model_filename"]]
        single = [row for row in plain_speed(mine) if row["n_gen"] and not row["n_prompt"]]
        if "gm_kl_mean" in quality and single:
            full = max(of_kind(mine, "memory"), key=taken_bytes, default=None)
            found.append((quality, min(single, key=lambda row: int(row["n_depth"])), full))
    known = all(full for *_, full in found)
    return [
        Choice(quality, speed, taken_bytes(full), int(full["gm_n_ctx"]))
        if full and known
        else Choice(quality, speed, int(quality["model_size"]), 0)
        for quality, speed, full in found
    ]


def recommendation(rows: Sequence[Row]) -> str:
    """One sentence; empty where distances or speeds are missing, or there is nothing to choose from."""
    found = choices(rows)
    if len(found) < 2:
        return ""
    machine = int(found[0].speed["gm_memory"])
    where = f"For this machine ({machine / 1e9:.1f} GB)"
    fitting = [choice for choice in found if choice.memory <= _USABLE * machine]
    if not fitting:
        return f"{where}: none of these files fits into its memory."
    close = [choice for choice in fitting if choice.kl <= _MAX_KL]
    if close:
        best = _fastest(close)
        why = f"the fastest that fits within a mean KL of {_MAX_KL}"
    else:
        best = min(fitting, key=lambda choice: choice.kl)
        why = f"the closest to the reference that fits, though beyond a mean KL of {_MAX_KL}"
    behind = f" with a context of {best.n_ctx}" if best.n_ctx else ""
    return (
        f"{where}: {best.quality['model_filename']}, {why} "
        f"({best.rate:.1f} tokens/s, {format_bytes(best.memory)}{behind}, mean KL {best.kl:.2g})."
    )


def _fastest(some: Sequence[Choice]) -> Choice:
    first = max(some, key=lambda choice: choice.rate)
    level = [c for c in some if first.rate - c.rate <= 2 * (first.rate_error + c.rate_error)]
    return min(level, key=lambda choice: choice.kl)
