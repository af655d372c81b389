"""What this machine can do: read bandwidth, arithmetic peaks and V(T), measured once and kept in the cache
folder.

They are the denominators of the efficiencies, and what a model that runs here for the first time begins with:
the number of threads that decode, and what passes of several tokens are thought to take. The key of a kept
result is the processor, the number of cores and the version; `gemmule bench roofline --again` measures anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule._cache import atomic_write, cache_dir
from gemmule._checks import MAX_THREADS
from gemmule._cpu import cpu_flags, cpu_name
from gemmule._inspect import Header, devices, weights_read
from gemmule._version import __version__

__all__ = ["Roofline", "SpeedLimit", "kept_roofline", "machine_roofline", "measure_roofline", "speed_limit"]

_READ_BYTES = 256 << 20  # more than caches hold
_ENOUGH = 0.97  # of the best bandwidth
_MOST_VALUE = 1e9  # beyond any machine, in any unit here


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

    def decode_threads(self) -> int:
        """The fewest threads that read nearly as fast as all cores do; 0 where those were not measured."""
        if not self.bandwidth(_cores()):
            return 0
        counts: set[int] = {r["threads"] for r in self.results}
        rates = {n: self.bandwidth(n) for n in counts}
        return min(n for n, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))

    def passes(self, weights: Mapping[str, int], threads: int, n: int) -> list[float]:
        """V(1) .. V(n) of a model with so many bytes of each type: what a pass of T tokens takes, by the time
        of one of a single token. Empty where most of the bytes are of types that were not measured.
        """
        known = {kind: size for kind, size in weights.items() if self.best(f"V({n}) {kind}", threads)}
        total = sum(known.values())
        if 2 * total <= sum(weights.values()):
            return []
        return [
            sum(size * self.best(f"V({t}) {kind}", threads) for kind, size in known.items()) / total
            for t in range(1, n + 1)
        ]

    @classmethod
    def load(cls, path: Path) -> Roofline:
        """From JSON lines. Throws ValueError for what is no result."""
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        if not results or not all(map(_is_result, results)):
            raise ValueError(f"{path} holds something else than results of `gemmule bench roofline`")
        return cls(tuple(results))

    def text(self) -> str:
        """For people; the V(T) of a type in one line."""
        rows: list[str] = []
        passes: dict[str, str] = {}
        for r in self.results:
            if not r["name"].startswith("V("):
                what = f"{r['name']:<30} {r['threads']:>3} threads"
                rows.append(f"{what} {r['value']:>9.2f} {r['unit']:<7} {r['note']}".rstrip())
                continue
            what = f"{'V(1), V(2), ... ' + r['name'].split()[-1]:<30} {r['threads']:>3} threads"
            passes[what] = f"{passes.get(what, what + '     ')} {r['value']:.2f}"
        return "".join(f"{row}\n" for row in (*rows, *passes.values()))

    def lines(self) -> str:
        """JSON lines."""
        return "".join(json.dumps(result) + "\n" for result in self.results)


@dataclass(frozen=True, slots=True)
class SpeedLimit:
    """What reading all weights once a token allows at most, without drafting."""

    tokens_per_second: float
    gb_per_second: float


def kept_roofline() -> Roofline | None:
    """What was measured here before, if anything; damaged results count as none."""
    try:
        return Roofline.load(_place())
    except (OSError, ValueError, TypeError, LookupError, RuntimeError):
        return None


def machine_roofline(*, force: bool = False) -> Roofline:
    """What was measured here before; measured now where all cores were not."""
    kept = kept_roofline()
    is_whole = kept is not None and kept.best("V(", _cores()) > 0
    return kept if kept is not None and is_whole else measure_roofline(force=force)


def measure_roofline(n_threads: int = 0, *, force: bool = False) -> Roofline:
    """Some seconds of all cores; the results are kept beside those of other numbers of threads. Throws
    BusyMachineError.
    """
    from gemmule import _core
    from gemmule._bench.machine import refuse_if_busy

    if not force:
        refuse_if_busy()

    free = _core.available_memory()
    n_bytes = min(_READ_BYTES, free // 4) if free else _READ_BYTES
    found = Roofline(tuple(_core.measure_roofline(n_threads, n_bytes=n_bytes)))
    before = kept_roofline() or Roofline(())
    merged = {(r["name"], r["threads"]): r for r in (*before.results, *found.results)}
    with contextlib.suppress(OSError, RuntimeError), atomic_write(_place()) as out:  # no home folder
        out.write(Roofline(tuple(merged.values())).lines().encode())
    return found


def speed_limit(file: Header) -> SpeedLimit | None:
    """Of a model on this machine; None where that was not measured, or the model may stay in the caches."""
    kept = kept_roofline()
    rate = kept.bandwidth(_cores()) if kept is not None else 0
    n_bytes = sum(weights_read(file).values())
    return SpeedLimit(rate * 1e9 / n_bytes, rate) if rate and n_bytes >= _READ_BYTES else None


def _cores() -> int:
    return devices()[0].n_physical


def _is_result(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    threads, value = entry.get("threads"), entry.get("value")
    is_number = isinstance(value, int | float) and 0 < value < _MOST_VALUE
    is_count = isinstance(threads, int) and 1 <= threads <= MAX_THREADS
    return is_number and is_count and all(isinstance(entry.get(key), str) for key in ("name", "unit", "note"))


def _place() -> Path:
    key = f"{__version__}|{cpu_name()}|{_cores()}|{cpu_flags()}"
    return cache_dir() / "bench" / f"roofline-{hashlib.sha256(key.encode()).hexdigest()[:12]}.jsonl"
