"""Greedy continuations of 20 prompts: gemmule and llama.cpp against the float32 reference.

For each engine: how many prompts agree with the reference over all tokens, and the mean length of the
common prefix. Ties broken by rounding make some prompts part early; both engines face the same prompts
and the same ids.

Usage: python benchmarks/quality/greedy.py MODEL.gguf --tokens 32 --cache FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))

__all__ = ["PROMPTS", "common_prefix"]

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "The three primary colours are",
    "In 1969 the first man",
    "To bake bread you need flour,",
    "import numpy as np\n\nx = np",
    "The opposite of hot is",
    "My favourite season is autumn because",
    "La capitale de l'Espagne est",
    "Photosynthesis is the process by which",
    "1, 2, 3, 4, 5,",
    "Dear Sir or Madam,\n\n",
    "A good password should",
    "The largest planet of the solar system is",
    "She opened the door and saw",
    "for (int i = 0; i < 10; i++) {",
    "Der schnellste Weg nach Hause",
    "The recipe is simple: first,",
)


def common_prefix(a: list[int], b: list[int]) -> int:
    """Number of equal tokens at the start."""
    n = 0
    for left, right in zip(a, b, strict=True):
        if left != right:
            break
        n += 1
    return n


def _continue(append: Any, ids: np.ndarray, n: int) -> list[int]:
    out: list[int] = []
    logits = append(ids)
    for _ in range(n):
        out.append(int(logits.argmax()))
        logits = append(np.array(out[-1:], np.int32))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    from gemmule import _core
    from gemmule._bench.llamacpp import LlamaCpp

    other = LlamaCpp(args.model, n_ctx=256, n_threads=args.threads)
    prompts = [other.tokenize(text, bos=True) for text in PROMPTS]
    key = hashlib.sha256(b"".join(p.tobytes() for p in prompts) + Path(args.model).name.encode()).hexdigest()[
        :16
    ]
    file = args.cache / f"greedy-{args.tokens}-{key}.json"
    if not file.exists():
        import torch
        from reference import load_reference

        model = load_reference(args.model)
        expected = []
        for ids in prompts:
            with torch.no_grad():
                out = model.generate(
                    torch.from_numpy(ids.astype(np.int64))[None],
                    attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                    do_sample=False,
                    min_new_tokens=args.tokens,
                    max_new_tokens=args.tokens,
                    eos_token_id=None,
                )
            expected.append(out[0, len(ids) :].tolist())
        file.write_text(json.dumps(expected))
    reference: list[list[int]] = json.loads(file.read_text())
    session = _core.Model(args.model, n_threads=args.threads).session(n_ctx=256, kv_type="f16")

    def append_ours(ids: np.ndarray) -> np.ndarray:
        session.append(ids)
        return np.asarray(session.logits())

    results: dict[str, list[list[int]]] = {"gemmule": [], "llama.cpp": []}
    for ids in prompts:
        session.rewind(0)
        results["gemmule"].append(_continue(append_ours, ids, args.tokens))
        other.clear()
        results["llama.cpp"].append(_continue(other.append, ids, args.tokens))
    pairs = [(name, out, reference) for name, out in results.items()]
    pairs.append(("gemmule vs llama.cpp", results["gemmule"], results["llama.cpp"]))
    for name, out, against in pairs:
        lengths = [common_prefix(a, b) for a, b in zip(out, against, strict=True)]
        line = {
            "engine": name,
            "prompts": len(lengths),
            "tokens": args.tokens,
            "identical": sum(n == args.tokens for n in lengths),
            "mean_prefix": float(np.mean(lengths)),
            "prefixes": lengths,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
