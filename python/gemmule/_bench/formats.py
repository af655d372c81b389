"""Rows as JSON lines, CSV, and Markdown in llama-bench's layout; and which rows may stand in one table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gemmule._bench.record import KIND, Row, describe_test
from gemmule._errors import FormatError

__all__ = [
    "check_comparable",
    "csv_text",
    "jsonl_text",
    "of_kind",
    "read_rows",
    "speed_markdown",
    "table",
    "told_apart",
]

# Quality figures of two rows mean the same only if these are equal.
_QUALITY_KEYS = ("gm_text_sha256", "gm_reference_sha256", "gm_n_ctx")
_NUMBER = int | float
_HEAD: dict[str, Any] = {"model_filename": str, "model_type": str, "model_size": int, "test_time": str}
# What tables, pictures and comparisons need of every row of a kind. The speed rows' are llama-bench's too.
_NEEDED: dict[str, dict[str, Any]] = {
    "speed": _HEAD | {
        "model_n_params": int, "n_threads": int, "n_prompt": int, "n_gen": int, "avg_ts": _NUMBER,
        "stddev_ts": _NUMBER, "samples_ns": list,
    },
    "memory": _HEAD | {
        "type_k": str, "gm_n_ctx": int, "gm_file": int, "gm_planned": int, "gm_planned_kv": int,
        "gm_kv_bytes": int, "gm_before": int, "gm_peak_rss": int, "gm_uss": int,
    },
    "quality": _HEAD | {"gm_text": str},
}  # fmt: skip
_NEEDED_WITH: dict[str, dict[str, Any]] = {  # of quality rows that have the first
    "gm_ppl": {"gm_ppl": _NUMBER, "gm_samples_nll": list},
    "gm_kl_mean": {
        "gm_kl_mean": _NUMBER, "gm_kl_mean_error": _NUMBER, "gm_kl_median": _NUMBER, "gm_kl_99": _NUMBER,
        "gm_kl_999": _NUMBER, "gm_same_top": _NUMBER, "gm_dp_rms": _NUMBER, "gm_samples_kl": list,
        "gm_samples_same": list,
    },
    "gm_right": {"gm_question": str, "gm_asked": int, "gm_right_error": _NUMBER},
    "gm_value": {"gm_question": str, "gm_value": _NUMBER},
}  # fmt: skip


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
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise FormatError(f"{file} is no text; give a file of JSON lines") from None
        rows += [_row(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
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
    kind = row.setdefault(KIND, "speed")
    if kind not in _NEEDED:
        raise FormatError(f"{where} is of the kind {kind!r}; rows are of {', '.join(_NEEDED)}")
    needed = dict(_NEEDED[kind])
    for name, more in _NEEDED_WITH.items():
        needed |= more if name in row else {}
    for name, kinds in needed.items():
        if not isinstance(row.get(name), kinds):
            raise FormatError(f"{where} has no {name} as `gemmule bench` or llama-bench write it")
    row["model_filename"] = Path(row["model_filename"]).name
    if kind == "speed":
        row.setdefault("n_depth", 0)
        row.setdefault("gm_engine", "llama.cpp")
    return row


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows with the file's name in model and quantization where several files have the same one."""
    files: dict[str, set[str]] = {}
    for row in rows:
        files.setdefault(_quantization(row), set()).add(row["model_filename"])
    made = []
    for row in rows:
        if len(files[_quantization(row)]) > 1:
            stem = Path(row["model_filename"]).stem
            row = {**row, "model_type": f"{row['model_type']} {stem}", "gm_quantization": stem}
        made.append(row)
    return made


def _quantization(row: Row) -> str:
    return str(row.get("gm_quantization") or row["model_type"])


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of "speed", "memory" or "quality"."""
    return [row for row in rows if row.get(KIND, "speed") == kind]


def check_comparable(rows: Sequence[Row]) -> None:
    """Refuses quality rows of different texts, references or windows, a task that was asked in two ways, and
    speed rows of two machines.
    """
    quality = of_kind(rows, "quality")
    groups = [("quality", quality, key) for key in _QUALITY_KEYS]
    groups.append(("speed", of_kind(rows, "speed"), "cpu_info"))
    for task in dict.fromkeys(row["gm_question"] for row in quality if "gm_protocol" in row):
        groups.append((task, [row for row in quality if row.get("gm_question") == task], "gm_protocol"))
    for kind, mine, key in groups:
        values = {row[key] for row in mine if key in row}
        if len(values) > 1:
            shown = "; ".join(str(value)[:60] for value in sorted(values, key=str))
            raise FormatError(
                f"these {kind} rows cannot stand in one table, as their {key.removeprefix('gm_')} "
                f"differs ({shown}); measure them together"
            )


def speed_markdown(rows: Sequence[Row]) -> str:
    """llama-bench's table; behind it the share of the machine's limit and, of peers, the engine."""
    speed = told_apart(of_kind(rows, "speed"))
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
