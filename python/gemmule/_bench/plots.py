"""Pictures of rows with matplotlib: SVG, and PNG at twice the size; the numbers lie beside each as CSV.

Every picture has units, the machine in its title, and error bars where there are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gemmule._bench import charts
from gemmule._bench.formats import csv_text
from gemmule._bench.record import Row
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
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in _PLOTS.items():
        figure, axes = plt.subplots(figsize=(6.4, 4.0))
        used = draw(axes, rows)
        if used:
            axes.set_title(f"{axes.get_title()}\n{_subtitle(used)}", fontsize=9)
            for suffix in ("svg", "png") if png else ("svg",):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
            path = folder / f"{name}.csv"
            path.write_text(csv_text(used), encoding="utf-8")
            written.append(path)
        plt.close(figure)
    return written


def _subtitle(rows: Sequence[Row]) -> str:
    row = rows[0]
    parts = [row.get("cpu_info"), f"{row.get('n_threads')} threads" if row.get("n_threads") else ""]
    parts += [
        row.get("gm_isa") if row.get("gm_engine") == "gemmule" else "",
        f"gemmule {row.get('gm_version')}",
    ]
    return ", ".join(str(part) for part in [*parts, str(row.get("test_time", ""))[:10]] if part)


_PLOTS: dict[str, Callable[[Any, Sequence[Row]], list[Row]]] = {
    "size-quality": charts.draw_size_quality,
    "speed-single": partial(charts.draw_tokens, "n_gen"),
    "speed-prompt": partial(charts.draw_tokens, "n_prompt"),
    "memory": charts.draw_memory,
    "depth": charts.draw_depth,
    "roofline": charts.draw_roofline,
    "categories": charts.draw_categories,
    "drafting": charts.draw_drafting,
}
