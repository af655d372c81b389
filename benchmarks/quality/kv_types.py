"""What the number format of the cache costs: KL divergence to an f32 cache, same weights, same tokens.

Windows of n_ctx tokens of a long English text; the second half of each is scored. KL(f32 || other), the
largest one, the share of positions with the same top token, and perplexity.

Usage: python benchmarks/quality/kv_types.py MODEL.gguf [--windows 4] [--n-ctx 2048] [--types f16 q8_0]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import gemmule
from gemmule import _core

sys.path.insert(0, str(Path(__file__).resolve().parent))
from corpus import load_corpus
from perplexity import compare_rows, log_softmax

__all__ = ["main"]

_TYPES = ["f16", "q8_0", "sliding=q8_0,global=f16", "sliding=f16,global=q8_0"]


def log_probabilities(session: _core.Session, ids: np.ndarray) -> np.ndarray:
    """float32 [n_ctx / 2 - 1, n_vocab] of the scored positions of one window."""
    half = len(ids) // 2
    session.rewind(0)
    session.append(ids[:half])
    return log_softmax(np.asarray(session.append_logits(ids[half:]))[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--types", nargs="+", default=_TYPES)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    text, _ = load_corpus()
    with gemmule.Model(args.model) as model:
        ids = np.array(model.tokenizer.encode(text), np.int32)
    half, bos = args.n_ctx // 2, ids[0]
    core = _core.Model(args.model, n_threads=args.threads)
    sessions = {t: core.session(n_ctx=args.n_ctx, kv_type=t) for t in ["f32", *args.types]}
    losses: dict[str, list[np.ndarray]] = {t: [] for t in sessions}
    divergences: dict[str, list[np.ndarray]] = {t: [] for t in sessions}
    same: dict[str, list[np.ndarray]] = {t: [] for t in sessions}
    for i in range(args.windows):
        window = ids[i * args.n_ctx : (i + 1) * args.n_ctx].copy()
        window[0] = bos
        reference = log_probabilities(sessions["f32"], window)
        for kind, session in sessions.items():
            rows = reference if kind == "f32" else log_probabilities(session, window)
            losses[kind].append(-rows[np.arange(len(rows)), window[half + 1 :]])
            kl, top = compare_rows(reference, rows)
            divergences[kind].append(kl)
            same[kind].append(top)
    print("| cache | perplexity | mean KL | 99 % | largest | same top token, % |")
    print("|---|---|---|---|---|---|")
    for kind in sessions:
        kl = np.concatenate(divergences[kind])
        perplexity = np.exp(np.concatenate(losses[kind]).mean(dtype=np.float64))
        top = 100 * np.concatenate(same[kind]).mean()
        print(
            f"| {kind} | {perplexity:.4f} | {kl.mean():.3e} | {np.quantile(kl, 0.99):.2e} "
            f"| {kl.max():.2e} | {top:.2f} |"
        )


if __name__ == "__main__":
    main()
