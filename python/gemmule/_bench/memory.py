"""Memory: what a process takes that fills its context, beside what the plan promised.

Every figure comes from a fresh process. The peak is that of its resident memory above what the interpreter
with numpy held before, mapped pages of the file included; the unique part (USS) is what would be free again
if the process ended, which leaves out the pages of the file that stay in the page cache.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule._bench import machine
from gemmule._bench.child import call
from gemmule._bench.formats import of_kind, table, told_apart
from gemmule._bench.record import KIND, Keep, Row, head, now
from gemmule._types import format_bytes

__all__ = ["child", "measure_memory", "memory_markdown"]


def measure_memory(
    paths: Sequence[str],
    contexts: Sequence[int],
    kv_types: Sequence[str],
    *,
    packed: str = "auto",
    n_threads: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Row]:
    """A row for every file, context and number format of the cache."""
    facts = machine.describe()
    rows: list[Row] = []
    for path in paths:
        for n_ctx in contexts:
            for kv_type in kv_types:
                progress(f"memory of {path}, context {n_ctx}, cache {kv_type}")
                request = {"path": path, "n_ctx": n_ctx, "kv_type": kv_type, "packed": packed}
                (found,) = call("memory", request | {"n_threads": n_threads})
                base = head(path, facts, n_threads=found.pop("n_threads"), kv_type=kv_type)
                rows.append({
                    **base, KIND: "memory", "test_time": now(), "gm_packed": packed, "gm_n_ctx": n_ctx,
                    **{f"gm_{key}": value for key, value in found.items()},
                })  # fmt: skip
                keep(rows)
    return rows


def child(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fills a context in this process; the plan, the peak, the cache."""
    before = _resident()
    import gemmule

    packed: Any = {"auto": "auto", "yes": True, "no": False}[request["packed"]]
    with gemmule.Model(
        request["path"], n_ctx=request["n_ctx"], kv_type=request["kv_type"], packed=packed, snapshot_limit=0,
        n_threads=request["n_threads"] or None,
    ) as model:  # fmt: skip
        ids = np.random.default_rng(0).integers(5, model.tokenizer.n_vocab - 1, request["n_ctx"] - 4)
        with model.session() as session:
            session.append("a text, so that the vocabulary is used")
            session.rewind(0)
            session.append(ids)
            session.generate(max_tokens=4, logit_bias={i: -1e9 for i in model.tokenizer.eos_ids})
            core = session._engine()
            kv_bytes, kv_used = core.kv_bytes, core.kv_used_bytes
            unique = int(importlib.import_module("psutil").Process().memory_full_info().uss)
        plan = model.plan
        yield {
            "file": model.info.file_size,
            "planned": plan.total,
            "planned_kv": plan.kv,
            "planned_weights": plan.weights,
            "planned_rest": plan.total - plan.kv - plan.weights,
            "kv_bytes": kv_bytes,
            "kv_used_bytes": kv_used,
            "before": before,
            "peak_rss": _peak() - before,
            "uss": unique,
            "n_threads": model.n_threads,
        }


def _resident() -> int:
    return int(importlib.import_module("psutil").Process().memory_info().rss)


def _peak() -> int:
    """The most resident memory this process had."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a process begins with that of the one that started it
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_markdown(rows: Sequence[Row]) -> str:
    """A line for every row."""
    columns = [
        "model",
        "context",
        "cache",
        "file",
        "KV planned",
        "KV held",
        "planned",
        "peak",
        "error",
        "unique",
    ]
    lines = []
    for row in told_apart(of_kind(rows, "memory")):
        error = (row["gm_planned"] + row["gm_before"]) / (row["gm_peak_rss"] + row["gm_before"]) - 1
        sizes = ("file", "planned_kv", "kv_bytes", "planned", "peak_rss")
        lines.append([
            row["model_type"], str(row["gm_n_ctx"]), str(row["type_k"]),
            *(format_bytes(row[f"gm_{name}"]) for name in sizes),
            f"{error:+.1%}", format_bytes(row["gm_uss"]),
        ])  # fmt: skip
    return table(columns, lines) if lines else ""
