"""Tables of quality rows: all texts together, the categories, and the questions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gemmule._bench.formats import of_kind, table
from gemmule._bench.quality import ALL
from gemmule._bench.record import Row
from gemmule._types import format_bytes

__all__ = ["indistinguishable", "quality_markdown", "summary_rows"]


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """One quality row a file: that of all texts, or of the only one."""
    best: dict[str, Row] = {}
    for row in of_kind(rows, "quality"):
        if "gm_ppl" in row and (row["model_filename"] not in best or row["gm_text"] == ALL):
            best[row["model_filename"]] = row
    return list(best.values())


def quality_markdown(rows: Sequence[Row]) -> str:
    """Everything that was measured."""
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
    unit = " %" if factor == 100 else ""
    return f"{factor * row[f'gm_{name}']:.{digits}f} ± {factor * row[f'gm_{name}_error']:.{digits}f}{unit}"


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
    parts = [row for row in of_kind(rows, "quality") if row.get("gm_text", ALL) != ALL]
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
    asked = [row for row in of_kind(rows, "quality") if "gm_question" in row]
    if not asked:
        return ""
    names = list(dict.fromkeys(row["gm_question"] for row in asked))
    lines = []
    for file in dict.fromkeys(row["model_filename"] for row in asked):
        mine = {row["gm_question"]: row for row in asked if row["model_filename"] == file}
        cells = [_pair(mine[name], "right", 1, 100) if name in mine else "" for name in names]
        lines.append([next(iter(mine.values()))["model_type"], *cells])
    return table(["right", *names], lines)
