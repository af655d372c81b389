"""What pictures show, on paper and in the terminal: which rows, under which names, in which lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gemmule._bench.formats import of_kind
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.record import Row

__all__ = ["Lines", "by_context", "by_depth", "distant_rows", "label", "pareto", "plain_speed", "taken_bytes"]

Lines = dict[tuple[str, str], list[Row]]


def label(row: Row) -> str:
    """The quantization, and the engine if it is not ours."""
    engine = str(row.get("gm_engine", "gemmule"))
    name = str(row.get("gm_quantization") or row["model_type"])
    return name if engine == "gemmule" else f"{name} {engine}"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points where less of both is better, the indices that no other one beats, by the first number."""
    best, kept = float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            kept.append(i)
    return kept


def plain_speed(rows: Iterable[Row]) -> list[Row]:
    """Prompts and single tokens, as llama-bench has them."""
    return [row for row in of_kind(rows, "speed") if not row.get("gm_test")]


def distant_rows(rows: Iterable[Row]) -> list[Row]:
    """One row a file that has a distance from the reference; by size."""
    used = [row for row in summary_rows(list(rows)) if row.get("gm_kl_mean", 0) > 0]
    return sorted(used, key=lambda row: int(row["model_size"]))


def taken_bytes(row: Row) -> int:
    """What a process of a memory row was promised to take, the interpreter included."""
    return int(row["gm_planned"] + row["gm_before"])


def by_context(rows: Iterable[Row]) -> Lines:
    """Memory rows of one file and cache, by context."""
    return _lines(of_kind(rows, "memory"), lambda row: str(row["type_k"]), "gm_n_ctx")


def by_depth(rows: Iterable[Row]) -> Lines:
    """Speed rows of one file and test, by depth; none if nothing was measured behind a context."""
    used = plain_speed(rows)
    if len({row["n_depth"] for row in used}) < 2:
        return {}
    return _lines(
        used, lambda row: f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}", "n_depth"
    )


def _lines(rows: Iterable[Row], kind: Callable[[Row], str], order: str) -> Lines:
    lines: Lines = {}
    for row in sorted(rows, key=lambda row: int(row[order])):
        lines.setdefault((label(row), kind(row)), []).append(row)
    return lines
