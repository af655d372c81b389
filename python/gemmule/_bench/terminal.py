"""The two pictures that matter most, in the terminal: tokens per second, and size against quality."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from gemmule._bench.formats import of_kind
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.record import Row, describe_test
from gemmule._errors import MissingExtraError

__all__ = ["terminal_plots"]


def terminal_plots(rows: Sequence[Row]) -> str:
    """Bars and points of characters, 90 columns wide."""
    try:
        plotext: Any = importlib.import_module("plotext")
    except ImportError:
        raise MissingExtraError("--term needs one more package: pip install 'gemmule[bench]'") from None
    parts = []
    speed = [row for row in of_kind(rows, "speed") if not row.get("gm_test")]
    for test in dict.fromkeys(describe_test(row) for row in speed):
        mine = [row for row in speed if describe_test(row) == test]
        plotext.clear_figure()
        plotext.simple_bar(
            [f"{row.get('gm_quantization') or row['model_type']} {row.get('gm_engine', '')}" for row in mine],
            [round(row["avg_ts"], 2) for row in mine],
            width=90,
            title=f"{test}, tokens per second",
        )
        parts.append(plotext.build())
    points = [row for row in summary_rows(rows) if row.get("gm_kl_mean", 0) > 0]
    if points:
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(90, 20)
        for row in points:
            name = str(row["gm_quantization"])
            plotext.scatter([row["model_size"] / 1e9], [row["gm_kl_mean"]], label=name)
        plotext.yscale("log")
        plotext.xlabel("GB")
        plotext.title("mean KL divergence and size")
        parts.append(plotext.build())
    return "\n".join(parts) + "\n"
