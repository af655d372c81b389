"""Speed and memory of quantizing a checkpoint: gemmule against llama.cpp's converter and quantizer.

Ways measured, each in a process of its own, in turn (A B C A B C ...):
  gemmule convert      Hugging Face folder -> one quantized file
  gemmule quantize     BF16 GGUF -> quantized GGUF
  llama-quantize       the same
  llama.cpp two steps  convert_hf_to_gguf.py (BF16), then llama-quantize, with the file between them
Before each run the inputs are dropped from the page cache (--warm leaves them). M weights/s counts the
weights of all tensors read, MB/s the bytes of the input. Peak: ru_maxrss of the process tree, in which mapped
file pages count; for two steps the larger one.

Usage: python benchmarks/convert/speed.py --folder HF --gguf BF16.gguf --work DIR --llama-quantize PATH
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

__all__ = ["Run", "run_child", "table"]

_CONVERT = (
    "import sys, gemmule; gemmule.convert(*sys.argv[1:3], type=sys.argv[3], n_threads=int(sys.argv[4]))"
)
_QUANTIZE = (
    "import sys, gemmule; gemmule.quantize_file(*sys.argv[1:4], n_threads=int(sys.argv[4]), overwrite=True)"
)


@dataclass(frozen=True)
class Run:
    """One measured run."""

    way: str
    type: str
    threads: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    weights: int
    bytes_in: int
    bytes_out: int
    bytes_between: int = 0


def run_child(command: Sequence[str]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, peak resident bytes) of a command; RuntimeError if it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as child:
        assert child.stdout is not None
        tail = b""
        while chunk := child.stdout.read(1 << 16):
            tail = (tail + chunk)[-4000:]
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {child.returncode}: {tail.decode(errors='replace')}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the cached pages of these files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _weights_of_folder(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                n = 1
                for extent in entry["shape"]:
                    n *= extent
                total += n
    return total


def _weights_of_gguf(path: Path) -> int:
    return sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(str(path)).tensors)


class Bench:
    """The ways, and what they read and write."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._out: Path = args.work / "speed-out.gguf"
        self._between: Path = args.work / "speed-between.gguf"
        self._shards = sorted(args.folder.glob("*.safetensors")) if args.folder else []

    def _python(self, code: str, source: Path, *rest: str) -> list[str]:
        return [sys.executable, "-c", code, str(source), str(self._out), *rest]

    def _measure(
        self,
        way: str,
        kind: str,
        threads: int,
        inputs: Sequence[Path],
        weights: int,
        commands: list[list[str]],
    ) -> Run:
        for path in (self._out, self._between):
            path.unlink(missing_ok=True)
        if not self._args.warm:
            drop_from_cache(inputs)
        parts = [run_child(command) for command in commands]
        between = self._between.stat().st_size if self._between.exists() else 0
        run = Run(
            way,
            kind,
            threads,
            sum(p[0] for p in parts),
            sum(p[1] for p in parts),
            max(p[2] for p in parts),
            weights,
            sum(path.stat().st_size for path in inputs),
            self._out.stat().st_size,
            between,
        )
        for path in (self._out, self._between):
            path.unlink(missing_ok=True)
        return run

    def run(self, way: str, kind: str, threads: int) -> Run:
        args = self._args
        quantize = [str(args.llama_quantize)]
        if way == "gemmule convert":
            command = self._python(_CONVERT, args.folder, kind, str(threads))
            return self._measure(way, kind, threads, self._shards, _weights_of_folder(args.folder), [command])
        if way == "two steps":
            first = [str(args.llama_python), str(args.llama_convert), str(args.folder), "--outtype", "bf16"]
            first += ["--outfile", str(self._between)]
            second = [*quantize, str(self._between), str(self._out), kind, str(threads)]
            weights = _weights_of_folder(args.folder)
            return self._measure(way, kind, threads, self._shards, weights, [first, second])
        source: Path = args.gguf
        if way == "gemmule quantize":
            command = self._python(_QUANTIZE, source, kind, str(threads))
        else:
            command = [*quantize, str(source), str(self._out), kind, str(threads)]
        return self._measure(way, kind, threads, [source], _weights_of_gguf(source), [command])


def table(runs: Sequence[Run]) -> str:
    """Markdown: medians per way, type and thread count."""
    lines = [
        "| way | type | threads | wall s | CPU s | M weights/s | MB/s in | peak MiB | between MB | out MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.type, run.way, run.threads), []).append(run)
    for (kind, way, threads), group in groups.items():
        seconds = statistics.median(run.seconds for run in group)
        cpu = statistics.median(run.cpu_seconds for run in group)
        peak = statistics.median(run.peak_bytes for run in group)
        one = group[0]
        lines.append(
            f"| {way} | {kind} | {threads} | {seconds:.1f} | {cpu:.1f} | {one.weights / seconds / 1e6:.1f} "
            f"| {one.bytes_in / seconds / 1e6:.0f} | {peak / 2**20:.0f} | {one.bytes_between / 1e6:.0f} "
            f"| {one.bytes_out / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="a BF16 Hugging Face folder")
    parser.add_argument("--gguf", type=Path, help="its BF16 GGUF, for the ways that begin there")
    parser.add_argument("--work", type=Path, required=True, help="folder for outputs, deleted after each run")
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--llama-convert", type=Path, help="convert_hf_to_gguf.py")
    parser.add_argument(
        "--llama-python", type=Path, default=Path(sys.executable), help="runs --llama-convert"
    )
    parser.add_argument("--types", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--warm", action="store_true", help="leave the inputs in the page cache")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    ways = []
    if args.folder:
        ways.append("gemmule convert")
    if args.gguf:
        ways.append("gemmule quantize")
        ways += ["llama-quantize"] if args.llama_quantize else []
    if args.folder and args.llama_convert and args.llama_quantize:
        ways.append("two steps")
    ways = [way for way in ways if not args.ways or way in args.ways]
    bench = Bench(args)
    runs: list[Run] = []
    for kind in args.types:
        for threads in args.threads:
            for _ in range(args.repeats):
                for way in ways:
                    runs.append(bench.run(way, kind, threads))
                    print(json.dumps(runs[-1].__dict__), file=sys.stderr, flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(table(runs))


if __name__ == "__main__":
    main()
