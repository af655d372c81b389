"""The pictures that matter most as text, drawn by plotext: tokens per second, size against quality, memory
against context, speed behind a context.

Lines of different files have letters, so that they can be told apart without colours.
"""

from __future__ import annotations

import importlib
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

from gemmule._bench.formats import told_apart
from gemmule._bench.record import Row, describe_test
from gemmule._bench.series import (
    Lines,
    by_context,
    by_depth,
    distant_rows,
    label,
    pareto,
    plain_speed,
    taken_bytes,
)
from gemmule._errors import MissingExtraError

__all__ = ["terminal_plots"]

_HEIGHT = 20
_COLOURS = (25, 166, 36, 175, 178, 74)  # those of the charts, as far as terminals have them


def terminal_plots(rows: Sequence[Row], *, width: int = 80, colours: bool = False) -> str:
    """Every picture for which there are rows; empty where there is none."""
    rows, canvas = told_apart(rows), _Canvas(width, colours)
    speed = [row for row in plain_speed(rows) if not row["n_depth"]]
    for test in dict.fromkeys(describe_test(row) for row in speed):
        _draw_bars(canvas, test, [row for row in speed if describe_test(row) == test])
    _draw_sizes(canvas, distant_rows(rows))
    _draw_memory(canvas, by_context(rows))
    _draw_depth(canvas, by_depth(rows))
    return "\n".join(canvas.pictures)


class _Canvas:
    """plotext's one figure, used again for every picture."""

    def __init__(self, width: int, colours: bool) -> None:
        try:
            self._plotext: Any = importlib.import_module("plotext")
            self.figure = self._plotext.figure
        except (ImportError, AttributeError):  # releases before 6 have no figure
            raise MissingExtraError(
                "pictures in the terminal need one more package: pip install 'gemmule[bench]'"
            ) from None
        self._plotext.terminal.limit(False, False)  # the caller knows how wide and a file has no height
        self.width, self._colours = width, colours
        self.pictures: list[str] = []

    def begin(self, title: str, height: int) -> Any:
        self.figure.clear()
        self.figure.theme("simple" if self._colours else "colorless")
        self.figure.plot_size(self.width, height).legend(False).title(title)
        return self.figure

    def marker(self, shape: str, number: int = 0) -> Any:
        """What points are drawn as, in a colour of its own for every number."""
        return self._plotext.marker(shape, pixel=_COLOURS[number % len(_COLOURS)])

    def end(self, *captions: str) -> None:
        lines = self.figure.build().string(colorless=not self._colours).splitlines()
        lines = [line.rstrip() for line in lines]
        self.pictures.append("\n".join([*lines, *(f"  {caption}" for caption in captions)]) + "\n")


def _draw_bars(canvas: _Canvas, test: str, rows: Sequence[Row]) -> None:
    """One line of text a bar."""
    figure = canvas.begin(f"{test}, tokens per second", len(rows) + 4)
    at = list(range(len(rows), 0, -1))
    figure.draw(
        figure.bar(at, [row["avg_ts"] for row in rows], orientation="h", width=0.1, marker=canvas.marker("█"))
    )
    limits = [(row["gm_limit_ts"], y) for y, row in zip(at, rows, strict=True) if row.get("gm_limit_ts")]
    if limits:
        figure.draw(figure.signal(*map(list, zip(*limits, strict=True)), marker=canvas.marker("|", 1)))
    names = [f"{label(row)}  {row['avg_ts']:.1f} ± {row['stddev_ts']:.1f} " for row in rows]
    figure.ruler("y").ticks(at, names)
    figure.ruler("y").lim(0.5, len(rows) + 0.5)
    _from_zero(figure, "x", max(max(row["avg_ts"], row.get("gm_limit_ts", 0.0)) for row in rows))
    canvas.end(*(["| what the read bandwidth allows"] if limits else []))


def _draw_sizes(canvas: _Canvas, rows: Sequence[Row]) -> None:
    if not rows:
        return
    figure = canvas.begin("mean KL divergence by size of the file, MB (logarithmic)", _HEIGHT)
    points = [(row["model_size"] / 1e6, math.log10(row["gm_kl_mean"])) for row in rows]
    front = [points[i] for i in pareto(points)]
    if len(front) > 1:
        figure.draw(
            figure.signal(*map(list, zip(*front, strict=True)), marker=canvas.marker("braille", 1)).lines(
                True
            )
        )
    middle = (points[0][0] + points[-1][0]) / 2
    for row, (x, y) in zip(rows, points, strict=True):
        left = x > middle  # of the point, as there is no room behind the right edge
        text = f"{label(row)} ●" if left else f"● {label(row)}"
        figure.draw(figure.text(x, y, text, alignment="right" if left else "left"))
    _by_powers(figure, [y for _, y in points])
    canvas.end("the line joins the best of their size; lower left is better")


def _draw_memory(canvas: _Canvas, lines: Lines) -> None:
    if lines:
        figure = canvas.begin("memory of a process by context, GB", _HEIGHT)
        _from_zero(figure, "y", max(taken_bytes(row) / 1e9 for rows in lines.values() for row in rows))
        _draw_lines(canvas, lines, "gm_n_ctx", lambda row: taken_bytes(row) / 1e9)


def _draw_depth(canvas: _Canvas, lines: Lines) -> None:
    if lines:
        figure = canvas.begin("tokens per second by depth (logarithmic)", _HEIGHT)
        _by_powers(figure, [math.log10(row["avg_ts"]) for rows in lines.values() for row in rows])
        _draw_lines(canvas, lines, "n_depth", lambda row: math.log10(row["avg_ts"]))


def _draw_lines(canvas: _Canvas, lines: Lines, field: str, value: Callable[[Row], float]) -> None:
    """A letter at every point of a line, and below what it stands for."""
    figure, captions = canvas.figure, []
    for number, ((name, kind), rows) in enumerate(lines.items()):
        letter = string.ascii_letters[number % len(string.ascii_letters)]
        x, y = [row[field] for row in rows], [value(row) for row in rows]
        figure.draw(figure.signal(x, y, marker=canvas.marker("braille", number)).lines(True))
        figure.draw(figure.signal(x, y, marker=canvas.marker(letter, number)))
        captions.append(f"{letter} {name} {kind}")
    ticks = sorted({row[field] for rows in lines.values() for row in rows})
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    canvas.end(*captions)


def _from_zero(figure: Any, axis: str, most: float) -> None:
    """An axis up to a little more than `most`, with ticks at round numbers."""
    step = 10.0 ** math.floor(math.log10(most / 2))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= most / 2)
    ticks = [i * step for i in range(int(most / step) + 1)]
    figure.ruler(axis).ticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.ruler(axis).lim(0, 1.05 * most)


def _by_powers(figure: Any, exponents: Sequence[float]) -> None:
    """A y axis of powers of ten, with ticks at 1, 2 and 5 of each."""
    low, high = min(exponents) - 0.1, max(exponents) + 0.1
    round_numbers = [f * 10.0**n for n in range(math.floor(low), math.ceil(high)) for f in (1, 2, 5)]
    ticks = [number for number in round_numbers if low <= math.log10(number) <= high]
    figure.ruler("y").ticks([math.log10(number) for number in ticks], [f"{number:g}" for number in ticks])
    figure.ruler("y").lim(low, high)
