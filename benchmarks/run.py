"""Run the micro-benchmarks and keep their rows in benchmarks/results/MACHINE.jsonl.

MACHINE is the processor, its cores and its best vector extension: intel-xeon-2.50ghz-2c-avx512vnni. The
first row says what was measured where: commit, date, processor, flags, and the yardstick of `gemmule bench`
before and after; every other row is what a program prints with --json, with its name as "bench". A busy
machine is refused. Programs: those of benchmarks/kernels, built with the preset dev; with models also
benchmarks/engine/load.py.

Usage: python benchmarks/run.py [MODEL.gguf ...] [--only vector roofline] [--build build/dev] [--force]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gemmule
from gemmule._bench import machine
from gemmule._bench.record import now
from gemmule._cache import public_write

ROOT = Path(__file__).resolve().parents[1]
# The context_bench of the engine takes a model and minutes, and prints tables: see docs/PERF.md.
KERNELS = ("roofline", "vector", "matmul", "attention", "encode")
_FILLERS = re.compile(r"\((r|tm)\)|\b(processor|cpu|with radeon graphics|\d+-core)\b|@")
_EXTENSIONS = (
    "amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp", "asimd",
)  # fmt: skip


def machine_name(cpu: str, flags: str, n_cores: int) -> str:
    """The name of a results file."""
    words = re.findall(r"[a-z0-9.]+", _FILLERS.sub(" ", cpu.lower()))
    found = next((name for name in _EXTENSIONS if name in flags.split()), "")
    return "-".join([*words, f"{n_cores}c", *([found.replace("_", "")] if found else [])])


def head() -> dict[str, Any]:
    """The machine and the state of the sources."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + ("-changed" if git("status", "--porcelain") else "")
    return {
        "bench": "machine",
        "commit": commit,
        "date": now(),
        "version": gemmule.__version__,
        **machine.describe(),
    }


def rows_of(name: str, command: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """What a program prints, as it comes."""
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield {"bench": name, **json.loads(line)}
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}; nothing was written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--only", nargs="+", choices=[*KERNELS, "load"], help="a part, which is only printed")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "dev", help="the build folder")
    parser.add_argument("--output", type=Path, help="the file, instead of benchmarks/results/MACHINE.jsonl")
    parser.add_argument("--force", action="store_true", help="measure even while others use the machine")
    args = parser.parse_args()
    wanted = args.only or [*KERNELS, "load"]
    commands: dict[str, list[str | Path]] = {}
    for name in KERNELS:
        if name in wanted:
            found = [*args.build.rglob(f"{name}_bench")]
            if not found:
                raise SystemExit(f"{args.build} has no {name}_bench; build the preset dev (make bench)")
            commands[name] = [found[0], "--json"]
    if args.models and "load" in wanted:
        load = ROOT / "benchmarks" / "engine" / "load.py"
        commands["load"] = [sys.executable, load, "--json", *args.models]
    if not args.force:
        machine.refuse_if_busy()
    first = head()
    if "attention" in commands:
        commands["attention"].append(first["gm_isa"])  # of this level alone, as the others are
    first["yardstick"] = [machine.yardstick()]
    rows = [first]
    for name, command in commands.items():
        for row in rows_of(name, command):
            print(json.dumps(row), flush=True)
            rows.append(row)
    first["yardstick"].append(machine.yardstick())
    if args.only and args.output is None:
        return
    name = machine_name(first["cpu_info"], first["gm_cpu_flags"], first["gm_cores"])
    path = args.output or ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with public_write(path) as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    print(path)


if __name__ == "__main__":
    main()
