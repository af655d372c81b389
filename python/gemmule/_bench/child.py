"""One measurement in a process of its own: `python -m gemmule._bench.child TASK JSON` prints JSON.

A fresh process has its own peak of memory, its own page tables and threads, and frees what a peer's library
would not.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

from gemmule._errors import Error

__all__ = ["call"]

_TASKS = ("speed", "memory")


def call(task: str, request: dict[str, Any]) -> dict[str, Any]:
    """Runs a task in a new process and returns what it found."""
    command = [sys.executable, "-m", "gemmule._bench.child", task, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise Error(f"a measurement failed ({task}): {lines[-1] if lines else done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _main(task: str, request: str) -> None:
    if task not in _TASKS:
        raise ValueError(f"there is no task {task!r}")
    print(json.dumps(importlib.import_module(f"gemmule._bench.{task}").child(json.loads(request))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
