"""One measurement as a row: the fields of llama-bench under their names, and ours as gm_*.

A speed row is what `llama-bench -o jsonl` writes, so readers made for it take ours. Rows of memory and
quality have the same head (machine, build, file) and gm_* figures only. Fields that have no meaning here hold
the value llama-bench gives them when it runs on a processor alone.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gemmule._types import format_count

__all__ = ["KIND", "Keep", "Row", "build_id", "describe_test", "file_digest", "head", "now", "timed"]

Row = dict[str, Any]
Keep = Callable[[Sequence[Row]], None]  # takes all rows of a measurement so far, to keep them
KIND = "gm_kind"  # "speed", "memory" or "quality"

_NEUTRAL: Row = {
    "build_number": 0, "gpu_info": "", "backends": "CPU", "n_batch": 256, "n_ubatch": 256, "cpu_mask": "0x0",
    "cpu_strict": False, "poll": 0, "n_gpu_layers": 0, "n_cpu_moe": 0, "split_mode": "none", "main_gpu": 0,
    "no_kv_offload": False, "flash_attn": True, "devices": "none", "tensor_split": "0.00",
    "tensor_buft_overrides": "none", "load_mode": "mmap", "use_mmap": True, "use_direct_io": False,
    "embeddings": False, "no_op_offload": 0, "no_host": False, "repack": True, "fit_target": 0,
    "fit_min_ctx": 0,
}  # fmt: skip


def build_id(library: str = "") -> str:
    """Eight hex digits of a library's file, by default the core's: two builds of one version differ."""
    from gemmule import _core

    return file_digest(library or str(_core.__file__))[:8]


def file_digest(path: str) -> str:
    """SHA-256 of a model file. A file of gigabytes takes seconds, so callers do it once, before measuring."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def head(path: str, machine: Row, *, n_threads: int, kv_type: str, digest: str = "") -> Row:
    """What all rows of one file share. n_threads 0: all physical cores."""
    from gemmule import __version__, inspect

    info = inspect(path)
    name = " ".join(filter(None, (info.architecture, format_count(info.n_params), info.quantization)))
    return {
        "build_commit": build_id(),
        **_NEUTRAL,
        **machine,
        "model_filename": Path(path).name,
        "model_type": name + (" packed" if info.layout != "gguf" else ""),
        "model_size": info.file_size,
        "model_n_params": info.n_params,
        "n_threads": n_threads or machine["gm_cores"],
        "type_k": kv_type,
        "type_v": kv_type,
        "gm_engine": "gemmule",
        "gm_version": __version__,
        "gm_quantization": info.quantization,
        "gm_sha256": digest,
    }


def timed(
    base: Row, seconds: Sequence[float], *, n_prompt: int = 0, n_gen: int = 0, n_depth: int = 0, **extra: Any
) -> Row:
    """A speed row: mean and sample deviation of the times, and of tokens per second, over the repetitions."""
    rates = [(n_prompt + n_gen) / s for s in seconds]
    return {
        **base,
        KIND: "speed",
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": now(),
        "avg_ns": round(1e9 * _mean(seconds)),
        "stddev_ns": round(1e9 * _deviation(seconds)),
        "avg_ts": _mean(rates),
        "stddev_ts": _deviation(rates),
        "samples_ns": [round(1e9 * s) for s in seconds],
        "samples_ts": rates,
        **{f"gm_{key}": value for key, value in extra.items()},
    }


def now() -> str:
    """UTC, as llama-bench writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def describe_test(row: Row) -> str:
    """ "pp512", "tg128 @ d4096", "first token, image", as in the tables."""
    if row.get("gm_test"):
        return str(row["gm_test"])
    parts = [f"{key}{row[field]}" for key, field in (("pp", "n_prompt"), ("tg", "n_gen")) if row[field]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
