"""What this machine can do: read bandwidth and arithmetic peaks, measured once and kept in the cache folder.

They are the denominators of the efficiencies. The key of a kept result is the processor, the number of cores
and the version; `gemmule bench roofline --again` measures anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule._bench.machine import describe, refuse_if_busy
from gemmule._cache import atomic_write, cache_dir
from gemmule._version import __version__

__all__ = ["Roofline", "kept_roofline", "measure_roofline"]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Results as the core reports them: {"name", "threads", "value", "unit", "note"}."""

    results: tuple[dict[str, Any], ...]

    def best(self, prefix: str, threads: int) -> float:
        """The largest value of the results of a kind; 0 where there is none for that many threads."""
        values = (
            r["value"] for r in self.results if r["name"].startswith(prefix) and r["threads"] == threads
        )
        return max(values, default=0.0)

    def bandwidth(self, threads: int) -> float:
        """GB/s."""
        return self.best("read", threads)

    def arithmetic(self, threads: int, quantization: str) -> float:
        """GMAC/s of the best multiply instruction: of floats for weights that are floats, else of bytes."""
        return self.best("f32" if quantization in ("F32", "F16", "BF16") else "int8", threads)

    @classmethod
    def load(cls, path: Path) -> Roofline:
        """From JSON lines."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return cls(tuple(json.loads(line) for line in lines if line))

    def text(self) -> str:
        """For people."""
        rows = (
            f"{r['name']:<30} {r['threads']:>3} threads {r['value']:>9.2f} {r['unit']:<7} {r['note']}"
            for r in self.results
        )
        return "".join(f"{row.rstrip()}\n" for row in rows)

    def lines(self) -> str:
        """JSON lines."""
        return "".join(json.dumps(result) + "\n" for result in self.results)


def kept_roofline() -> Roofline | None:
    """The one measured here before, if any."""
    path = _place()
    return Roofline.load(path) if path.is_file() else None


def measure_roofline(n_threads: int = 0, *, force: bool = False) -> Roofline:
    """Some seconds of all cores; the result is kept. Throws BusyMachineError."""
    from gemmule import _core

    if not force:
        refuse_if_busy()

    found = Roofline(tuple(_core.measure_roofline(n_threads)))
    with atomic_write(_place()) as out:
        out.write(found.lines().encode())
    return found


def _place() -> Path:
    facts = describe()
    key = f"{__version__}|{facts['cpu_info']}|{facts['gm_cores']}|{facts['gm_cpu_flags']}"
    return cache_dir() / "bench" / f"roofline-{hashlib.sha256(key.encode()).hexdigest()[:12]}.jsonl"
