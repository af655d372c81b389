"""Tables of quality rows: all texts together, the categories, and the questions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gemmule._bench.formats import of_kind, table, told_apart
from gemmule._bench.quality import ALL
from gemmule._bench.record import Row
from gemmule._types import format_bytes

__all__ = ["indistinguishable", "quality_markdown", "summary_rows"]


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """One quality row a file: that of all texts, or of the only one; none of a file that was not finished."""
    texts: dict[str, dict[str, Row]] = {}
    for row in of_kind(rows, "quality"):
        if "gm_ppl" in row:
            texts.setdefault(row["model_filename"], {})[row["gm_text"]] = row
    return [
        mine[ALL] if ALL in mine else next(iter(mine.values()))
        for mine in texts.values()
        if ALL in mine or len(mine) == 1
    ]


def quality_markdown(rows: Sequence[Row]) -> str:
    """Everything that was measured."""
    rows = told_apart(of_kind(rows, "quality"))
    parts = [_overall(summary_rows(rows)), _categories(rows), _questions(rows)]
    return "\n".join(part for part in parts if part)


def _overall(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = ["model", "file", "perplexity"]
    if "gm_kl_mean" in rows[0]:
        columns += ["mean KL", "median", "99 %", "99.9 %", "same top", "RMS Δp"]
    lines = []
    for row in rows:
        cells = [row["model_type"], format_bytes(row["model_size"]), _pair(row, "ppl", 3)]
        if "gm_kl_mean" in row:
            cells += [_pair(row, name, 5) for name in ("kl_mean", "kl_median", "kl_99", "kl_999")]
            cells += [_pair(row, "same_top", 2, 100), _pair(row, "dp_rms", 2, 100)]
        lines.append(cells)
    text = table(columns, lines)
    groups = indistinguishable(rows)
    if groups:
        text += (
            "\nIndistinguishable in mean KL: " + "; ".join(" and ".join(group) for group in groups) + ".\n"
        )
    return text


def _pair(row: Row, name: str, digits: int, factor: float = 1.0) -> str:
    """The figure and its standard error, of which a single position has none."""
    parts = (row.get(f"gm_{key}") for key in (name, f"{name}_error"))
    text = " ± ".join("?" if part is None else f"{factor * part:.{digits}f}" for part in parts)
    return text + (" %" if factor == 100 else "")


def indistinguishable(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Neighbours by mean KL whose intervals of two standard errors overlap."""
    if not rows or "gm_kl_mean" not in rows[0]:
        return []
    ordered = sorted(rows, key=lambda row: float(row["gm_kl_mean"]))
    pairs = []
    for a, b in itertools.pairwise(ordered):
        if b["gm_kl_mean"] - a["gm_kl_mean"] < 2 * (a["gm_kl_mean_error"] + b["gm_kl_mean_error"]):
            pairs.append((str(a["gm_quantization"]), str(b["gm_quantization"])))
    return pairs


def _categories(rows: Sequence[Row]) -> str:
    """Mean KL (or perplexity without a reference) by category of text."""
    parts = [row for row in of_kind(rows, "quality") if "gm_ppl" in row and row["gm_text"] != ALL]
    names = list(dict.fromkeys(row["gm_text"] for row in parts))
    if len(names) < 2:
        return ""
    name = "kl_mean" if "gm_kl_mean" in parts[0] else "ppl"
    lines = []
    for file in dict.fromkeys(row["model_filename"] for row in parts):
        mine = {row["gm_text"]: row for row in parts if row["model_filename"] == file}
        cells = [
            _pair(mine[text], name, 4 if name == "kl_mean" else 2) if text in mine else "" for text in names
        ]
        lines.append([next(iter(mine.values()))["model_type"], *cells])
    return table(["mean KL" if name == "kl_mean" else "perplexity", *names], lines)


def _questions(rows: Sequence[Row]) -> str:
    """The shares of right answers, and of answers in the form that was asked for; other figures of tasks."""
    tables = []
    for field, factor in (("right", 100), ("valid", 100), ("value", 1)):
        asked = [row for row in of_kind(rows, "quality") if "gm_question" in row and f"gm_{field}" in row]
        names = list(dict.fromkeys(row["gm_question"] for row in asked))
        lines = []
        for file in dict.fromkeys(row["model_filename"] for row in asked):
            mine = {row["gm_question"]: row for row in asked if row["model_filename"] == file}
            cells = [
                _pair(mine[name], field, 1 if factor == 100 else 4, factor) if name in mine else ""
                for name in names
            ]
            lines.append([next(iter(mine.values()))["model_type"], *cells])
        if lines:
            tables.append(table([field, *names], lines))
    return "\n".join(tables)
