"""The machine under a measurement: what it is, what else it is doing, and how fast it is right now.

A figure is worth nothing while somebody else computes, so a busy machine is refused; and because hosts of
virtual machines differ by the minute, a yardstick that has nothing to do with the engine runs beside it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gemmule._bench.record import Row
from gemmule._cpu import cpu_flags, cpu_name
from gemmule._errors import DeviceError

__all__ = ["BusyMachineError", "Watch", "describe", "other_load", "refuse_if_busy", "watch", "yardstick"]

_MAX_LOAD = 0.10  # of the machine, by others, before a measurement begins


class BusyMachineError(DeviceError):
    """Somebody else uses the processor, so no time measured now would mean anything."""


def describe() -> Row:
    """The machine's part of every row."""
    from gemmule import devices

    cpu = devices()[0]
    return {
        "cpu_info": cpu_name(),
        "gm_isa": os.environ.get("GEMMULE_CPU_ISA") or cpu.isa,
        "gm_cpu_flags": cpu_flags(),
        "gm_cores": cpu.n_physical,
        "gm_memory": cpu.memory,
        "gm_system": f"{platform.system()} {platform.machine()}",
        "gm_load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    }


def other_load(seconds: float = 1.0) -> float:
    """The share of the machine that is busy while this process sleeps, with what its host withholds."""
    before = _busy()
    time.sleep(seconds)
    return max(0.0, _busy() - before) / (seconds * (os.cpu_count() or 1))


def refuse_if_busy(limit: float = _MAX_LOAD, *, seconds: float = 1.0) -> None:
    """Throws BusyMachineError."""
    load = other_load(seconds)
    if load > limit:
        raise BusyMachineError(
            f"{load:.0%} of this machine is in use by others, so times would be wrong; "
            "wait until it is idle, or use --force"
        )


def yardstick() -> tuple[float, float]:
    """GB/s of one core right now, reading memory and hashing in its cache."""
    import numpy as np

    large, small = np.ones(8 << 20), bytes(1 << 17)
    rates = []
    for work, n_bytes in ((large.sum, large.nbytes), (lambda: hashlib.blake2b(small), len(small))):
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        rates.append(1e-9 * n_bytes / min(seconds))
    return rates[0], rates[1]


@dataclass(slots=True)
class Watch:
    """What happened beside a measurement: the share of the machine that others used."""

    others: float = 0.0
    seconds: float = field(default=0.0)


@contextmanager
def watch() -> Iterator[Watch]:
    """Around one child process; its own use of the processor is taken off."""
    times = os.times()
    own, busy, start = times.children_user + times.children_system, _busy(), time.perf_counter()
    result = Watch()
    try:
        yield result
    finally:
        result.seconds = time.perf_counter() - start
        times = os.times()
        used = times.children_user + times.children_system - own
        result.others = max(0.0, _busy() - busy - used) / (result.seconds * (os.cpu_count() or 1))


def _busy() -> float:
    """Processor seconds of the machine so far that were not idle."""
    times = importlib.import_module("psutil").cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))
