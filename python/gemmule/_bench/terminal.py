"""The two pictures that matter most as text: tokens per second, and size against quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gemmule._bench.formats import of_kind
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.record import Row, describe_test
from gemmule._types import format_bytes

__all__ = ["bar", "terminal_plots"]

_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int = _WIDTH) -> str:
    """A bar of a share of the width, in eighths of a character."""
    n = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (n // 8) + (_EIGHTHS[n % 8] if n % 8 else "")


def terminal_plots(rows: Sequence[Row]) -> str:
    """Bars of each plain test, with a mark where the machine's limit is; then divergence by size."""
    parts = []
    speed = [row for row in of_kind(rows, "speed") if not row.get("gm_test")]
    for test in dict.fromkeys(describe_test(row) for row in speed):
        mine = [row for row in speed if describe_test(row) == test]
        most = max(max(row["avg_ts"], row.get("gm_limit_ts", 0.0)) for row in mine)
        lines = [f"{test}, tokens per second" + (" (| what the memory allows)" if _limited(mine) else "")]
        for row in mine:
            drawn = bar(row["avg_ts"] / most).ljust(_WIDTH)
            if row.get("gm_limit_ts"):
                at = min(_WIDTH - 1, round(row["gm_limit_ts"] / most * _WIDTH))
                drawn = f"{drawn[:at]}|{drawn[at + 1 :]}"
            lines.append(f"  {_name(row):<24} {drawn} {row['avg_ts']:.1f} ± {row['stddev_ts']:.1f}")
        parts.append("\n".join(lines))
    points = sorted(
        (row for row in summary_rows(rows) if row.get("gm_kl_mean", 0) > 0),
        key=lambda row: int(row["model_size"]),
    )
    if points:
        logs = [math.log(row["gm_kl_mean"]) for row in points]
        low, span = min(logs) - 0.5, max(logs) - min(logs) + 0.5
        lines = ["mean KL divergence from the reference, by size (logarithmic; short is good)"]
        for row, value in zip(points, logs, strict=True):
            drawn = bar((value - low) / span).ljust(_WIDTH)
            size = format_bytes(row["model_size"])
            lines.append(f"  {_name(row):<13} {size:>10} {drawn} {row['gm_kl_mean']:.2g}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _limited(rows: Sequence[Row]) -> bool:
    return any(row.get("gm_limit_ts") for row in rows)


def _name(row: Row) -> str:
    engine = str(row.get("gm_engine", ""))
    name = str(row.get("gm_quantization") or row["model_type"])
    return name if engine in ("", "gemmule") else f"{name} {engine}"
