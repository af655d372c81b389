"""Rows as JSON lines, CSV, and Markdown in llama-bench's layout; and which rows may stand in one table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gemmule._bench.record import KIND, Row, describe_test
from gemmule._errors import FormatError

__all__ = ["check_comparable", "csv_text", "jsonl_text", "of_kind", "read_rows", "speed_markdown", "table"]

# Quality figures of two rows mean the same only if these are equal.
_QUALITY_KEYS = ("gm_text_sha256", "gm_reference_sha256", "gm_n_ctx")
_NEEDED = ("model_filename", "model_size", "n_prompt", "n_gen", "avg_ts")


def jsonl_text(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_text(rows: Sequence[Row]) -> str:
    """A column for every field of any row; lists as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        writer.writerow([json.dumps(c) if isinstance(c, list | dict | bool) else c for c in cells])
    return out.getvalue()


def read_rows(path: Path) -> list[Row]:
    """Rows of a file of JSON lines (ours or llama-bench's), or of every such file in a folder."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    rows: list[Row] = []
    for file in files:
        if file.name.startswith("roofline"):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                rows.append(_row(line, f"{file}:{number}"))
    if not rows:
        raise FormatError(f"{path} holds no rows; give a file of JSON lines or a folder of them")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise FormatError(f"{where} is not a row of a benchmark")
    row.setdefault(KIND, "speed")
    if row[KIND] == "speed":
        missing = [key for key in _NEEDED if key not in row]
        if missing:
            raise FormatError(f"{where} lacks {missing[0]}, which every row of llama-bench has")
        row["model_filename"] = Path(row["model_filename"]).name
        row.setdefault("n_depth", 0)
        row.setdefault("gm_engine", "llama.cpp")
    return row


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of "speed", "memory" or "quality"."""
    return [row for row in rows if row.get(KIND, "speed") == kind]


def check_comparable(rows: Sequence[Row]) -> None:
    """Refuses quality rows of different texts, references or windows, and speed rows of two machines."""
    for kind, keys in (("quality", _QUALITY_KEYS), ("speed", ("cpu_info",))):
        for key in keys:
            values = {row[key] for row in of_kind(rows, kind) if key in row}
            if len(values) > 1:
                shown = ", ".join(str(value)[:40] for value in sorted(values, key=str))
                raise FormatError(
                    f"these {kind} rows cannot stand in one table, as their {key.removeprefix('gm_')} "
                    f"differs ({shown}); measure them together"
                )


def speed_markdown(rows: Sequence[Row]) -> str:
    """llama-bench's table; behind it the share of the machine's limit and, of peers, the engine."""
    speed = of_kind(rows, "speed")
    if not speed:
        return ""
    columns = ["model", "size", "params", "backend", "threads"]
    if len({row.get("type_k") for row in speed}) > 1:
        columns.append("type_k")
    columns += ["test", "t/s", "of limit"]
    lines = []
    for row in speed:
        gemmule = row.get("gm_engine", "gemmule") == "gemmule"
        cells = [
            row["model_type"], _size(row["model_size"]), _params(row["model_n_params"]),
            "gemmule CPU" if gemmule else f"{row['gm_engine']} {row.get('backends', 'CPU')}",
            str(row["n_threads"]),
        ]  # fmt: skip
        if "type_k" in columns:
            cells.append(str(row.get("type_k")))
        share = row.get("gm_decode_efficiency") or row.get("gm_prefill_efficiency")
        cells += [
            describe_test(row),
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}" + ("" if row.get("gm_clean", True) else " !"),
            f"{share:.0%}" if share else "",
        ]
        lines.append(cells)
    return table(columns, lines, left={"model", "backend"})


def table(columns: Sequence[str], lines: Sequence[Sequence[str]], left: set[str] | None = None) -> str:
    """A Markdown table padded so that it can be read as text too."""
    left = left or {columns[0]}
    widths = [max(len(columns[i]), 3, *(len(line[i]) for line in lines)) for i in range(len(columns))]

    def row(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(w) if name in left else cell.rjust(w)
            for cell, w, name in zip(cells, widths, columns, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ("-" * w if name in left else "-" * (w - 1) + ":" for w, name in zip(widths, columns, strict=True))
    return "\n".join([row(columns), f"| {' | '.join(rule)} |", *map(row, lines)]) + "\n"


def _size(n_bytes: int) -> str:
    """As llama-bench writes it."""
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


def _params(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"
