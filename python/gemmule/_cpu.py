"""What processor this is: its name and its vector extensions, as far as the system says."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_flags", "cpu_name"]


def cpu_name() -> str:
    """The model's name, else the machine's kind."""
    return _field("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The vector extensions alone, as they are what decides how fast kernels can be."""
    wanted = ("avx", "fma", "f16c", "amx", "asimd", "i8mm", "sve", "bf16")
    return " ".join(flag for flag in _field("flags", "Features").split() if flag.startswith(wanted))


def _field(*names: str) -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:  # made while it is read, core by core
            pairs = (line.partition(":") for line in lines)
            return next((value.strip() for key, _, value in pairs if key.strip() in names), "")
    except OSError:
        return ""
