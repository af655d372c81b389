"""A measurement in a process of its own: `python -m gemmule._bench.child TASK JSON` prints a line of JSON for
everything it finds, when it finds it.

A fresh process has its own peak of memory, its own page tables and threads, and frees what a peer's library
would not. If it dies, what it has found so far is known.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from gemmule import _errors

__all__ = ["call", "lines_of"]

_TASKS = ("speed", "memory")
_FAILED = "failed"  # the class of an error; its message stands beside it


def call(task: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Runs a task in a new process and yields what it finds. Throws the task's own Error or ValueError."""
    command = [sys.executable, "-m", "gemmule._bench.child", task, json.dumps(request)]
    for line in lines_of(command, f"the measurement of {task}"):
        if not line.startswith("{"):  # a peer's library may print what it likes
            continue
        found: dict[str, Any] = json.loads(line)
        if _FAILED in found:
            raise getattr(_errors, found[_FAILED], ValueError)(found["message"])
        yield found


def lines_of(command: Sequence[str], name: str) -> Iterator[str]:
    """The lines that a program prints; it is ended if the loop is left. Throws Error with `name` and the last
    line of its stderr if it fails.
    """
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="replace"
        ) as process:
            assert process.stdout is not None
            try:
                yield from process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with {process.returncode}"
            raise _errors.Error(f"{name} failed: {reason}")


def _main(task: str, request: str) -> None:
    if task not in _TASKS:
        raise ValueError(f"there is no task {task!r}")
    try:
        for found in importlib.import_module(f"gemmule._bench.{task}").child(json.loads(request)):
            print(json.dumps(found), flush=True)
    except (_errors.Error, ValueError) as error:
        print(json.dumps({_FAILED: type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
