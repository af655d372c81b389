"""Speed and memory of gemmule, llama.cpp and ik_llama.cpp on one model file.

Every measurement is a fresh process; the ways alternate (A B C A B C ...), so a machine that slows down does
so for all. In each process, in this order:
  first  seconds from before the engine is loaded to the first token of a 16-token prompt, file in page cache
  pp     tokens/s of a prompt of --pp random ids, logits of the last only, --repeats times after a warm-up
  tg     tokens/s of --tg single tokens after that prompt, a greedy choice after each, timed in pieces
  peak   largest resident memory minus the one before the load; mapped pages of the file count
KV cache f16 everywhere. "others" is the processor time of everyone else during the process, in percent of
the machine (from /proc/stat), with the share stolen by the host: a measurement above --max-others is made
again, at most twice more, and its row is marked ! if that does not help. --busy: one other process, in its
own session, spins all the time. Each line also has what a yardstick ran at just before, as hosts differ by
the minute.

Ways:
  gemmule-rows    the file as it lies, never packed
  gemmule-auto    the file, packed in memory while it runs
  gemmule-packed  the file given by --packed
  llama.cpp       --llama-cpp, else the xllamacpp wheel; llama.cpp-rows: without repacking
  ik              --ik; ik-rtr: with run-time repacking
The ratios compare with the better of each peer's ways. Ed = bytes of weights read per second / read
bandwidth, Ep = multiply-accumulates per second of the prompt (attention not counted) / int8 peak of the
processor, both with the same threads, from `roofline_bench --json > FILE` (--roofline).

Usage: python benchmarks/engine/compare.py MODEL.gguf --llama-cpp libllama.so --ik libllama.so --threads 1 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmule._bench.machine import yardstick
from gemmule._bench.work import Work

__all__ = ["Job", "Load", "Roofline", "main", "measure", "table"]

N_FIRST = 16
TG_PIECE = 16
OURS = ("gemmule-rows", "gemmule-auto", "gemmule-packed")
PEERS = {"llama.cpp": ("llama.cpp", "llama.cpp-rows"), "ik": ("ik", "ik-rtr")}
WAYS = (*OURS, *PEERS["llama.cpp"], *PEERS["ik"])
MEASURES = {"pp": 1, "tg": 1, "first_s": -1, "peak_mib": -1}  # 1: more is better


@dataclass(frozen=True)
class Job:
    """What one child process measures."""

    way: str
    path: str
    threads: int
    n_prompt: int
    n_generated: int
    repeats: int
    library: str = ""
    isa: str = ""
    kv_type: str = "f16"


class Gemmule:
    """Our engine through the extension, as its Python classes use it."""

    def __init__(self, job: Job, n_ctx: int) -> None:
        import gemmule
        from gemmule import _core

        packed: Any = False if job.way == "gemmule-rows" else "auto"
        model = gemmule.Model(
            job.path, n_ctx=n_ctx, n_threads=job.threads, isa=job.isa or None, mmproj=False, packed=packed
        )
        core = model._core
        assert core is not None
        self._session = core.session(n_ctx=n_ctx, kv_type=job.kv_type)
        self._greedy = _core.Sampler(temperature=0.0)
        self.n_vocab = core.n_vocab
        self.note = core.isa
        self.step: Callable[[np.ndarray], None] = self._session.append

    def choose(self) -> int:
        return int(self._session.sample(self._greedy)[0])

    def clear(self) -> None:
        self._session.rewind(0)

    def last_logits(self) -> np.ndarray:
        return self._session.logits()


class Peer:
    """llama.cpp or ik_llama.cpp, with the calls of Gemmule."""

    def __init__(self, job: Job, n_ctx: int) -> None:
        from gemmule._bench.llamacpp import LlamaCpp

        repack = {"llama.cpp-rows": False, "ik-rtr": True}.get(job.way)
        self._engine = LlamaCpp(
            job.path,
            n_ctx=n_ctx,
            n_threads=job.threads,
            n_batch=max(job.n_prompt, N_FIRST),
            kv_type=job.kv_type,
            library=job.library or None,
            repack=repack,
        )
        self.n_vocab = self._engine.n_vocab
        flags = self._engine.system_info.split("|")
        self.note = " ".join(f.split("=")[0].strip() for f in flags if "AVX" in f and f.strip().endswith("1"))
        self.step = self._engine.step
        self.clear = self._engine.clear
        self.last_logits = self._engine.last_logits

    def choose(self) -> int:
        return int(self._engine.last_logits().argmax())


def measure(job: Job) -> dict[str, Any]:
    """Measure in this process."""
    n_ids = (job.n_prompt or N_FIRST) + job.n_generated
    n_ctx = n_ids + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(7)
    start = time.perf_counter()
    engine = Gemmule(job, n_ctx) if job.way in OURS else Peer(job, n_ctx)
    load_s = time.perf_counter() - start
    ids = rng.integers(8, engine.n_vocab, n_ids).astype(np.int32)
    ids[0] = 2
    engine.step(ids[:N_FIRST])
    engine.choose()
    result: dict[str, Any] = {"first_s": time.perf_counter() - start, "load_s": load_s}
    prompt = ids[: job.n_prompt or N_FIRST]
    seconds = []
    for _ in range(1 + job.repeats if job.n_prompt else 1):
        engine.clear()
        start = time.perf_counter()
        engine.step(prompt)
        engine.choose()
        seconds.append(time.perf_counter() - start)
    if job.n_prompt:  # the first one paged the weights in, packed them and started the threads
        result["pp"] = [job.n_prompt / s for s in seconds[1:]]
    if job.n_generated:
        engine.step(ids[-1:])
        result["tg"] = []
        for piece in np.array_split(ids[len(prompt) :], max(1, job.n_generated // TG_PIECE)):
            start = time.perf_counter()
            for i in range(len(piece)):
                engine.step(piece[i : i + 1])
                engine.choose()
            result["tg"].append(len(piece) / (time.perf_counter() - start))
    if not np.isfinite(engine.last_logits()).all():
        raise RuntimeError(f"{job.way} returned logits that are not finite")
    result["peak_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result["note"] = engine.note
    return result


@dataclass(frozen=True)
class Load:
    """Processor seconds of the machine so far."""

    busy: float
    steal: float

    @classmethod
    def now(cls) -> Load:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ticks = [int(f) / os.sysconf("SC_CLK_TCK") for f in fields]
        return cls(ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6], ticks[7])


def _run_child(job: Job) -> dict[str, Any]:
    """One measurement, with what the rest of the machine did meanwhile."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asdict(job))]
    read_rate, hash_rate = yardstick()
    load, start = Load.now(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        out, errors = child.stdout.read(), child.stderr.read()  # both small
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall, end = time.perf_counter() - start, Load.now()
    if child.returncode != 0:
        raise RuntimeError(f"{job.way} failed: {errors.decode(errors='replace')[-1500:]}")
    row: dict[str, Any] = asdict(job) | json.loads(out.splitlines()[-1])
    machine = wall * (os.cpu_count() or 1)
    row["others"] = max(0.0, end.busy - load.busy - usage.ru_utime - usage.ru_stime) / machine
    row |= {"read_rate": read_rate, "hash_rate": hash_rate}
    row["steal"] = (end.steal - load.steal) / machine
    return row


@contextlib.contextmanager
def _neighbour(wanted: bool) -> Iterator[None]:
    """A process in its own session that spins, as another user's program would."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as spinner:
        try:
            yield
        finally:
            spinner.kill()


@dataclass(frozen=True)
class Roofline:
    """Denominators of the efficiencies: GB/s and GMAC/s by number of threads."""

    bandwidth: dict[int, float]
    int8: dict[int, float]

    @classmethod
    def load(cls, path: Path) -> Roofline:
        bandwidth: dict[int, float] = {}
        int8: dict[int, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            into = {"read": bandwidth, "int8": int8}.get(entry["name"].split()[0])
            if into is not None:
                into[entry["threads"]] = max(into.get(entry["threads"], 0.0), entry["value"])
        return cls(bandwidth, int8)


def _value(rows: Sequence[dict[str, Any]], way: str, threads: int, key: str, best: bool) -> float | None:
    mine = [r for r in rows if r["way"] == way and r["threads"] == threads and key in r]
    used = [r for r in mine if r["clean"]] or mine
    values: list[float] = [v for r in used for v in (r[key] if isinstance(r[key], list) else [r[key]])]
    if not values:
        return None
    return (max if MEASURES[key] > 0 else min)(values) if best else statistics.median(values)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(rows: Sequence[dict[str, Any]], work: Work, roofline: Roofline | None) -> str:
    """Markdown: median (best) of every way, then the ratios of our ways to the better way of each peer."""
    lines = [
        "| threads | way | pp tok/s | tg tok/s | first token s | peak MiB | Ep | Ed | others % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ways = [w for w in WAYS if any(r["way"] == w for r in rows)]
    counts = sorted({r["threads"] for r in rows})
    for threads in counts:
        for way in ways:
            mine = [r for r in rows if r["way"] == way and r["threads"] == threads]
            if not mine:
                continue
            cells = []
            for key, digits in (("pp", 2), ("tg", 2), ("first_s", 3), ("peak_mib", 0)):
                median, best = (_value(rows, way, threads, key, b) for b in (False, True))
                cells.append("-" if median is None else f"{_cell(median, digits)} ({_cell(best, digits)})")
            pp, tg = (_value(rows, way, threads, key, True) for key in ("pp", "tg"))
            peak = roofline.int8.get(threads) if roofline else None
            bandwidth = roofline.bandwidth.get(threads) if roofline else None
            ep = pp * work.macs / peak / 1e9 if pp and peak else None
            ed = tg * work.weight_bytes / bandwidth / 1e9 if tg and bandwidth else None
            others = 100 * max(r["others"] + r["steal"] for r in mine)
            mark = "" if all(r["clean"] for r in mine) else " !"
            cells += [_cell(ep, 3), _cell(ed, 3), f"{others:.1f}{mark}"]
            lines.append(f"| {threads} | {way} | {' | '.join(cells)} |")
    lines += [
        "",
        "| threads | ratio, median (best) | pp | tg | first token | peak |",
        "|---|---|---|---|---|---|",
    ]
    for threads in counts:
        for ours in [w for w in ways if w in OURS]:
            for peer, modes in PEERS.items():
                cells = []
                for key, sign in MEASURES.items():
                    ratios = []
                    for best in (False, True):
                        own = _value(rows, ours, threads, key, best)
                        theirs = [v for m in modes if (v := _value(rows, m, threads, key, best)) is not None]
                        if own and theirs:
                            other = max(theirs) if sign > 0 else min(theirs)
                            ratios.append(own / other if sign > 0 else other / own)
                    cells.append(f"{ratios[0]:.2f} ({ratios[1]:.2f})" if ratios else "-")
                if any(c != "-" for c in cells):
                    lines.append(f"| {threads} | {ours} / {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(row: dict[str, Any]) -> str:
    numbers = []
    for key, value in row.items():
        if isinstance(value, list):
            value = statistics.median(value)
        if isinstance(value, float):
            numbers.append(f"{key} {value:.3f}")
    return f"{row['way']} x{row['threads']} {row['note']}: {', '.join(numbers)}"


def _jobs(args: argparse.Namespace, threads: int) -> list[Job]:
    paths = dict.fromkeys(WAYS, args.model) | {"gemmule-packed": args.packed}
    libraries = {way: args.llama_cpp for way in PEERS["llama.cpp"]} | {way: args.ik for way in PEERS["ik"]}
    common = {
        "threads": threads,
        "n_prompt": args.pp,
        "n_generated": args.tg,
        "repeats": args.repeats,
        "isa": args.isa,
    }
    return [Job(way, paths[way], library=libraries.get(way, ""), **common) for way in args.ways]


def _measured(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """A row, made again while others use the machine; `clean` says whether they did not."""
    for _ in range(3):
        with _neighbour(args.busy):
            row = _run_child(job)
        row["busy"] = args.busy
        row["clean"] = args.busy or row["others"] + row["steal"] <= args.max_others
        if row["clean"]:
            break
        time.sleep(args.pause)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--packed", default="", help="the same model in the packed layout")
    parser.add_argument("--llama-cpp", default="", help="libllama.so of llama.cpp")
    parser.add_argument("--ik", default="", help="libllama.so of ik_llama.cpp")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all for which a file is given")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3, help="0: only the table of what is in --json")
    parser.add_argument("--pp", type=int, default=512, help="tokens of the prompt; 0 measures none")
    parser.add_argument("--tg", type=int, default=128, help="generated tokens; 0 measures none")
    parser.add_argument("--repeats", type=int, default=3, help="prompts timed in each process")
    parser.add_argument("--busy", action="store_true", help="with a neighbour that spins")
    parser.add_argument("--isa", default="", help="instruction set of gemmule; default: the best")
    parser.add_argument("--roofline", type=Path, help="output of roofline_bench --json")
    parser.add_argument("--json", type=Path, help="file of all measurements, a line each; grows")
    parser.add_argument("--max-others", type=float, default=0.03, help="share of the machine others may use")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before a measurement is made again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(Job(**json.loads(args.child)))))
        return
    if not args.model:
        parser.error("give a model file")
    if args.ways is None:
        given = {"gemmule-packed": args.packed, "ik": args.ik, "ik-rtr": args.ik}
        args.ways = [way for way in WAYS if given.get(way, "yes")]
    work = Work.of(args.model)
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        rows = [json.loads(line) for line in args.json.read_text(encoding="utf-8").splitlines()]
    for threads in args.threads:
        for _ in range(args.rounds):
            for job in _jobs(args, threads):
                row = _measured(job, args)
                rows.append(row)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                print(_short(row), file=sys.stderr, flush=True)
    print(f"{args.model}, pp{args.pp}, tg{args.tg}{', busy neighbour' * args.busy}")
    print(f"{work.weight_bytes / 1e9:.3f} GB a token, {work.macs / 1e9:.3f} GMAC a prompt token\n")
    print(table(rows, work, Roofline.load(args.roofline) if args.roofline else None))


if __name__ == "__main__":
    main()
