"""Perplexity, and mean KL divergence to a float32 reference, of gemmule and llama.cpp on the same tokens.

Windows as in llama-perplexity: n_ctx tokens each, the first replaced by BOS, the second half scored
(position n_ctx/2 .. n_ctx-2 predict the next token). KL(ref || engine) and the share of positions with
the same top token are taken over the same positions. The reference is transformers in float32 on the
dequantized weights; its logits of the scored positions are kept as float32 files under --cache, because
they take a while.

Usage: python benchmarks/quality/perplexity.py MODEL.gguf --windows 4 --cache FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from corpus import load_corpus

__all__ = ["compare_rows", "log_softmax"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [n, v] -> float32 [n, v], with the sum in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


def compare_rows(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || other) float64 [n] and same-top bool [n] of two blocks of log-probabilities [n, v]."""
    kl = (np.exp(reference) * (reference - other)).sum(axis=1, dtype=np.float64)
    return kl, reference.argmax(axis=1) == other.argmax(axis=1)


class Gemmule:
    """gemmule with the interface of llamacpp.LlamaCpp."""

    def __init__(self, path: str, n_ctx: int, n_threads: int, isa: str) -> None:
        from gemmule import _core

        self.session = _core.Model(path, n_threads=n_threads, isa=isa).session(n_ctx=n_ctx, kv_type="f16")

    def run(self, ids: np.ndarray) -> np.ndarray:
        self.session.rewind(0)
        return np.asarray(self.session.append_logits(ids))


class Other:
    """llama.cpp, all logits of one window."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        from gemmule._bench.llamacpp import LlamaCpp

        self.engine = LlamaCpp(path, n_ctx=n_ctx, n_threads=n_threads, n_batch=n_ctx)

    def run(self, ids: np.ndarray) -> np.ndarray:
        self.engine.clear()
        return self.engine.append(ids, all_logits=True)


def tokens_of(path: str, text: str, cache: Path) -> np.ndarray:
    """int32 [n]: ids of the text by llama.cpp's tokenizer (cached); both engines get the same ids."""
    key = hashlib.sha256(Path(path).name.encode() + b"\0" + text.encode()).hexdigest()[:16]
    file = cache / f"ids-{key}.npy"
    if not file.exists():
        from gemmule._bench.llamacpp import LlamaCpp

        np.save(file, LlamaCpp(path, n_ctx=64, n_threads=1).tokenize(text))
    return np.asarray(np.load(file))


def reference_rows(path: str, ids: np.ndarray, cache: Path, model: list[Any]) -> np.ndarray:
    """float32 [n_ctx/2 - 1, v] reference logits of the scored positions of one window."""
    half = len(ids) // 2
    file = cache / f"ref-{hashlib.sha256(ids.tobytes() + Path(path).name.encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        import torch
        from reference import load_reference

        if not model:
            model.append(load_reference(path))
        with torch.no_grad():
            out = model[0](input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
        np.save(file, out[half:-1].float().numpy())
    return np.asarray(np.load(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=4, help="0 = the whole text")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--engines", nargs="+", default=["gemmule", "llama.cpp"])
    parser.add_argument("--no-reference", action="store_true", help="perplexity only")
    parser.add_argument("--isa", default="")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    text, info = load_corpus()
    ids = tokens_of(args.model, text, args.cache)
    n_windows = len(ids) // args.n_ctx
    n_windows = min(n_windows, args.windows) if args.windows else n_windows
    engines: dict[str, Any] = {}
    for name in args.engines:
        if name == "gemmule":
            engines[name] = Gemmule(args.model, args.n_ctx, args.threads, args.isa)
        elif name == "llama.cpp":
            engines[name] = Other(args.model, args.n_ctx, args.threads)
    loss: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    kl: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    same: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    seconds = dict.fromkeys(engines, 0.0)
    if not args.no_reference:
        loss["reference"] = []
    holder: list[Any] = []
    half = args.n_ctx // 2
    for w in range(n_windows):
        window = ids[w * args.n_ctx : (w + 1) * args.n_ctx].copy()
        window[0] = 2
        targets = window[half + 1 :]
        rows = np.arange(len(targets))
        reference = None
        if not args.no_reference:
            reference = log_softmax(reference_rows(args.model, window, args.cache, holder))
            loss["reference"].append(-reference[rows, targets])
        for name, engine in engines.items():
            start = time.perf_counter()
            logits = engine.run(window)
            seconds[name] += time.perf_counter() - start
            logp = log_softmax(logits[half:-1])
            loss[name].append(-logp[rows, targets])
            if reference is not None:
                divergence, top = compare_rows(reference, logp)
                kl[name].append(divergence)
                same[name].append(top)
    for name, parts in loss.items():
        values = np.concatenate(parts).astype(np.float64)
        result: dict[str, Any] = {
            "engine": name,
            "perplexity": float(np.exp(values.mean())),
            "error": float(np.exp(values.mean()) * values.std() / np.sqrt(len(values))),
            "positions": len(values),
            "windows": n_windows,
            "n_ctx": args.n_ctx,
            "corpus": info,
        }
        if name in seconds:
            result["seconds"] = round(seconds[name], 2)
        if kl.get(name):
            divergence = np.concatenate(kl[name])
            result |= {
                "kl_mean": float(divergence.mean()),
                "kl_99": float(np.quantile(divergence, 0.99)),
                "kl_max": float(divergence.max()),
                "same_top": float(np.concatenate(same[name]).mean()),
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
