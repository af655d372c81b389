"""Quality per byte of two quantizers on one checkpoint: gemmule.convert and llama.cpp's llama-quantize.

Both start from the same BF16 numbers (a Hugging Face folder for gemmule, the BF16 GGUF that gemmule makes of
it for llama-quantize), with and without the same importance matrix, and one engine evaluates all files, so
only the encoders differ. Windows as in perplexity.py: n_ctx tokens, the first replaced by BOS, the second
half scored. Per file: perplexity, mean KL(BF16 || file), share of positions with the same top token; then
the paired differences of the two quantizers at the same positions. Every figure has its standard error over
windows, whose tokens are not independent of each other. The importance matrix comes from the last quarter
of the text, the windows from the rest. Each finished file is kept as a few numbers under --work, so an
interrupted run continues where it was; the models themselves are deleted.

Usage: python benchmarks/quality/quantizers.py FOLDER --llama-quantize PATH --work FOLDER --windows 8
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from corpus import load_corpus
from perplexity import log_softmax

__all__ = ["Scores", "pair_table", "quality_table"]

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
OURS, PEER = "gemmule", "llama-quantize"
_ROWS = 64  # positions compared at once


@dataclass(frozen=True)
class Scores:
    """One evaluated file: values of each scored position, float64 [n_windows, n_ctx / 2 - 1]."""

    encoder: str
    type: str
    weighted: bool  # made with the importance matrix
    tensor_bytes: int
    loss: np.ndarray
    kl: np.ndarray
    same: np.ndarray

    @property
    def key(self) -> str:
        return f"{self.encoder}-{self.type}{'-imatrix' if self.weighted else ''}"


def mean_error(values: np.ndarray) -> tuple[float, float]:
    """Mean, and its standard error from the spread of the window means."""
    means = values.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0


def quality_table(rows: list[Scores]) -> str:
    """Markdown: one line per file."""
    lines = [
        "| type | imatrix | quantizer | tensor bytes | perplexity | mean KL to BF16 | same top token |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss, loss_error = mean_error(row.loss)
        perplexity = np.exp(loss)
        kl, kl_error = mean_error(row.kl)
        same, same_error = mean_error(row.same)
        lines.append(
            f"| {row.type} | {'yes' if row.weighted else 'no'} | {row.encoder} | {row.tensor_bytes} "
            f"| {perplexity:.3f} ± {perplexity * loss_error:.3f} | {kl:.5f} ± {kl_error:.5f} "
            f"| {100 * same:.2f} ± {100 * same_error:.2f} % |"
        )
    return "\n".join(lines)


def pair_table(rows: list[Scores]) -> str:
    """Markdown: gemmule minus llama-quantize at the same positions; negative KL and loss are better."""
    found = {(row.encoder, row.type, row.weighted): row for row in rows}
    lines = [
        "| type | imatrix | bytes, ours - theirs | KL, ours / theirs | KL difference | loss difference "
        "| same top difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (encoder, kind, weighted), ours in found.items():
        theirs = found.get((PEER, kind, weighted))
        if encoder != OURS or theirs is None:
            continue
        kl, kl_error = mean_error(ours.kl - theirs.kl)
        loss, loss_error = mean_error(ours.loss - theirs.loss)
        same, same_error = mean_error(ours.same - theirs.same)
        lines.append(
            f"| {kind} | {'yes' if weighted else 'no'} | {ours.tensor_bytes - theirs.tensor_bytes} "
            f"| {ours.kl.mean() / theirs.kl.mean():.3f} | {kl:+.6f} ± {kl_error:.6f} "
            f"| {loss:+.5f} ± {loss_error:.5f} | {100 * same:+.2f} ± {100 * same_error:.2f} % |"
        )
    return "\n".join(lines)


def _open_engine(name: str, path: Path, n_ctx: int, n_threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from ids int32 [n_ctx] to the logits of the scored positions, float32 [n_ctx / 2 - 1, v]."""
    half = n_ctx // 2
    if name == "llama.cpp":
        from gemmule._bench.llamacpp import LlamaCpp

        other = LlamaCpp(path, n_ctx=n_ctx, n_threads=n_threads, n_batch=n_ctx)

        def run_other(ids: np.ndarray) -> np.ndarray:
            other.clear()
            return other.append(ids, all_logits=True)[half:-1]

        return run_other
    from gemmule import _core

    session = _core.Model(str(path), n_threads=n_threads).session(n_ctx=n_ctx, kv_type="f32")

    def run(ids: np.ndarray) -> np.ndarray:
        session.rewind(0)
        session.append(ids[:half])
        return np.asarray(session.append_logits(ids[half:-1]))

    return run


class Evaluator:
    """Compares files with the BF16 one, whose log-probabilities are kept on disk."""

    def __init__(self, source: Path, args: argparse.Namespace, ids: np.ndarray) -> None:
        self._engine: str = args.engine
        self._n_threads: int = args.threads
        self._n_ctx: int = args.n_ctx
        self._windows = ids[: args.windows * args.n_ctx].reshape(args.windows, args.n_ctx).copy()
        self._windows[:, 0] = 2
        half = args.n_ctx // 2
        self._targets = self._windows[:, half + 1 :]
        digest = hashlib.sha256(self._windows.tobytes() + args.engine.encode())
        with source.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        self.stamp = digest.hexdigest()
        self._files = [args.work / f"reference-{self.stamp[:12]}-{i}.npy" for i in range(args.windows)]
        missing = [i for i, file in enumerate(self._files) if not file.exists()]
        if missing:
            run = _open_engine(self._engine, source, self._n_ctx, self._n_threads)
            for i in missing:
                part = self._files[i].with_suffix(".part")
                with part.open("wb") as out:
                    np.save(out, log_softmax(run(self._windows[i])))
                part.rename(self._files[i])

    def score(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(loss, KL, same top) of one file at all positions, float64 [n_windows, n_ctx / 2 - 1] each."""
        run = _open_engine(self._engine, path, self._n_ctx, self._n_threads)
        shape = self._targets.shape
        loss, kl, same = np.empty(shape), np.empty(shape), np.empty(shape)
        for w, (ids, targets) in enumerate(zip(self._windows, self._targets, strict=True)):
            logits = run(ids)
            reference = np.load(self._files[w], mmap_mode="r")
            for first in range(0, len(targets), _ROWS):
                rows = slice(first, first + _ROWS)
                ref = np.asarray(reference[rows])
                other = log_softmax(logits[rows])
                loss[w, rows] = -other[np.arange(len(other)), targets[rows]]
                kl[w, rows] = (np.exp(ref) * (ref - other)).sum(axis=1, dtype=np.float64)
                same[w, rows] = ref.argmax(axis=1) == other.argmax(axis=1)
        return loss, kl, same

    def score_source(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for the BF16 file itself, from its log-probabilities."""
        shape = self._targets.shape
        loss = np.empty(shape)
        for w, targets in enumerate(self._targets):
            loss[w] = -np.load(self._files[w], mmap_mode="r")[np.arange(len(targets)), targets]
        return loss, np.zeros(shape), np.ones(shape)


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors of a file."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(str(path)).tensors)


def _load(work: Path, key: str, stamp: str) -> Scores | None:
    file = work / f"{key}.npz"
    if not file.exists():
        return None
    with np.load(file) as data:
        info = json.loads(str(data["info"]))
        if info["stamp"] != stamp:
            return None
        scores = info["scores"]
        return Scores(**scores, loss=data["loss"], kl=data["kl"], same=data["same"])


def _save(work: Path, scores: Scores, stamp: str) -> None:
    names = ("encoder", "type", "weighted", "tensor_bytes")
    info = json.dumps({"stamp": stamp, "scores": {name: getattr(scores, name) for name in names}})
    file = work / f"{scores.key}.npz"
    part = file.with_suffix(".part")
    with part.open("wb") as out:
        np.savez(out, info=info, loss=scores.loss, kl=scores.kl, same=scores.same)
    part.rename(file)


def _quantize(
    encoder: str, kind: str, out: Path, args: argparse.Namespace, source: Path, imatrix: Any
) -> None:
    if encoder == OURS:
        import gemmule

        gemmule.convert(
            args.folder, out, type=kind, imatrix=imatrix, n_threads=args.threads, overwrite=True, drafter=None
        )
        return
    command = [str(args.llama_quantize)]
    if imatrix is not None:
        command += ["--imatrix", str(imatrix)]
    command += [str(source), str(out), kind, str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"llama-quantize failed: {done.stderr[-2000:]}")


def _prepare(args: argparse.Namespace) -> tuple[Path, Path | None, np.ndarray, dict[str, str]]:
    """The BF16 file, the importance matrix, the ids of the text's first three quarters, facts of the text."""
    import gemmule
    from gemmule import _core

    source = args.work / "source-BF16.gguf"
    if not source.exists():
        gemmule.convert(args.folder, source, type="BF16", drafter=None)
    text, info = load_corpus()
    cut = text.rindex("\n", 0, len(text) * 3 // 4)
    imatrix: Path | None = args.imatrix
    if imatrix is None and "yes" in args.weighted:
        calibration = args.work / "calibration.txt"
        calibration.write_text(text[cut:], encoding="utf-8")
        imatrix = args.work / "imatrix.gguf"
        if not imatrix.exists():
            gemmule.imatrix(source, calibration, imatrix, n_chunks=args.chunks, n_threads=args.threads)
    tokenizer = gemmule.Tokenizer(_core.GgufFile(str(source)))
    ids = np.array(tokenizer.encode(text[:cut], add_bos=False), dtype=np.int32)
    # Windows from all over the text, not its first pages only.
    n = min(args.windows or len(ids), len(ids) // args.n_ctx)
    args.windows = n
    starts = np.linspace(0, len(ids) - args.n_ctx, n).astype(np.int64)
    return source, imatrix, np.concatenate([ids[s : s + args.n_ctx] for s in starts]), info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="a BF16 Hugging Face folder (tools/export_checkpoint.py)")
    parser.add_argument("--llama-quantize", type=Path, help="the peer's program")
    parser.add_argument("--work", type=Path, required=True, help="folder for results and temporary models")
    parser.add_argument("--quantizers", nargs="+", choices=[OURS, PEER], default=[OURS, PEER])
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--weighted", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--imatrix", type=Path, help="importance matrix; default: measured by gemmule")
    parser.add_argument("--chunks", type=int, default=64, help="windows of the measured importance matrix")
    parser.add_argument("--windows", type=int, default=8, help="0 = the whole text")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=["gemmule", "llama.cpp"], default="gemmule")
    parser.add_argument("--keep", action="store_true", help="keep the models")
    args = parser.parse_args()
    if PEER in args.quantizers and args.llama_quantize is None:
        parser.error("give --llama-quantize, or --quantizers gemmule")
    args.work.mkdir(parents=True, exist_ok=True)
    source, imatrix, ids, info = _prepare(args)
    evaluator = Evaluator(source, args, ids)
    stamp = evaluator.stamp
    if imatrix is not None:
        stamp += hashlib.sha256(imatrix.read_bytes()).hexdigest()
    jobs = [("source", "BF16", False)]
    for kind in args.types:
        for weighted in args.weighted:
            if weighted == "yes" and kind in ("BF16", "F16", "F32"):
                continue
            jobs += [(encoder, kind, weighted == "yes") for encoder in (OURS, PEER)]
    rows: list[Scores] = []
    for encoder, kind, weighted in jobs:
        if encoder != "source" and encoder not in args.quantizers:
            continue
        key = f"{encoder}-{kind}{'-imatrix' if weighted else ''}"
        scores = _load(args.work, key, stamp)
        if scores is None:
            start = time.perf_counter()
            model = source if encoder == "source" else args.work / f"{key}.gguf"
            if encoder != "source":
                _quantize(encoder, kind, model, args, source, imatrix if weighted else None)
            middle = time.perf_counter()
            loss, kl, same = evaluator.score_source() if encoder == "source" else evaluator.score(model)
            scores = Scores(encoder, kind, weighted, tensor_bytes(model), loss, kl, same)
            _save(args.work, scores, stamp)
            if encoder != "source" and not args.keep:
                model.unlink()
            seconds = f"{middle - start:.1f} s to make, {time.perf_counter() - middle:.1f} s to score"
            print(f"{key}: KL {kl.mean():.6f}, {seconds}", file=sys.stderr, flush=True)
        rows.append(scores)
    print(
        f"{rows[0].loss.size} positions in {len(rows[0].loss)} windows of {args.n_ctx}, engine {args.engine}"
    )
    print(f"text: {json.dumps(info)}\n")
    print(quality_table(rows))
    print()
    print(pair_table(rows))


if __name__ == "__main__":
    main()
