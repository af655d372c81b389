"""Pictures of rows with matplotlib: SVG, and PNG at twice the size; the numbers lie beside each as CSV.

Every picture has units, the machine in its title, and error bars where there are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gemmule._bench import charts
from gemmule._bench.formats import csv_text, told_apart
from gemmule._bench.question_chart import draw_questions
from gemmule._bench.record import Row
from gemmule._cache import public_write
from gemmule._errors import MissingExtraError

__all__ = ["need_matplotlib", "write_plots"]


def need_matplotlib() -> Any:
    """pyplot with a backend that needs no screen."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtraError("pictures need one more package: pip install 'gemmule[bench]'") from None
    mpl.use("Agg")
    # Text stays text, so that it can be searched, and an SVG is the same every time.
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "gemmule", "font.size": 9, "axes.grid": True}
    )
    mpl.rcParams.update({"grid.alpha": 0.3, "axes.axisbelow": True, "figure.constrained_layout.use": True})
    import matplotlib.pyplot as plt

    return plt


def write_plots(rows: Sequence[Row], folder: Path, *, png: bool = False) -> list[Path]:
    """Every picture for which there are rows."""
    plt = need_matplotlib()
    rows, written = told_apart(rows), []
    for name, draw in _PLOTS.items():
        figure, axes = plt.subplots(figsize=(6.4, 4.0))
        used = draw(axes, rows)
        if used:
            axes.set_title(f"{axes.get_title()}\n{_subtitle(used)}", fontsize=9)
            for suffix in ("svg", "png") if png else ("svg",):
                written.append(folder / f"{name}.{suffix}")
                with public_write(written[-1]) as out:
                    metadata = {"Date": None} if suffix == "svg" else None
                    figure.savefig(out, format=suffix, dpi=200, metadata=metadata)
            written.append(folder / f"{name}.csv")
            with public_write(written[-1]) as out:
                out.write(csv_text(used).encode())
        plt.close(figure)
    return written


def _subtitle(rows: Sequence[Row]) -> str:
    row = rows[0]
    parts = [row.get("cpu_info"), f"{row.get('n_threads')} threads" if row.get("n_threads") else ""]
    ours = row.get("gm_engine") == "gemmule"
    parts += [row.get("gm_isa"), f"gemmule {row['gm_version']}"] if ours else [row.get("gm_engine")]
    return ", ".join(str(part) for part in [*parts, str(row.get("test_time", ""))[:10]] if part)


_PLOTS: dict[str, Callable[[Any, Sequence[Row]], list[Row]]] = {
    "size-quality": partial(charts.draw_by_size, "kl_mean"),
    "size-same-top": partial(charts.draw_by_size, "same_top"),
    "size-perplexity": partial(charts.draw_by_size, "ln_ppl_ratio"),
    "trade-off": charts.draw_trade_off,
    "speed-single": partial(charts.draw_tokens, "n_gen"),
    "speed-prompt": partial(charts.draw_tokens, "n_prompt"),
    "memory": charts.draw_memory,
    "depth": charts.draw_depth,
    "roofline": charts.draw_roofline,
    "categories": charts.draw_categories,
    "drafting": charts.draw_drafting,
    "questions": draw_questions,
}
