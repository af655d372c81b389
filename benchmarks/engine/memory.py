"""Predicted against measured peak memory: a fresh process for each model, context and number format.

The process opens the model, fills the whole context and generates. Measured is the peak of its resident
memory (VmHWM) above what the interpreter with numpy held before; predicted is `model.plan.total`. The error
is that of the whole process.

Usage: python benchmarks/engine/memory.py MODEL.gguf ... [--ctx 512 4096] [--kv f16 f32] [--packed auto no]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main"]


def _resident(field: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _child(model_path: str, n_ctx: int, kv_type: str, packed: str) -> dict[str, Any]:
    """Fills a context; the plan and the peak."""
    before = _resident()
    import gemmule

    how: Any = {"auto": "auto", "yes": True, "no": False}[packed]
    with gemmule.Model(model_path, n_ctx=n_ctx, kv_type=kv_type, packed=how, snapshot_limit=0) as model:
        ids = np.random.default_rng(0).integers(5, model.tokenizer.n_vocab - 1, n_ctx - 4)
        with model.session() as session:
            session.append("a text, so that the vocabulary is used")
            session.rewind(0)
            session.append(ids)
            session.generate(max_tokens=4, logit_bias={i: -1e9 for i in model.tokenizer.eos_ids})
        plan = model.plan
    return {"plan": plan.to_dict(), "before": before, "peak": _resident("VmHWM") - before}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--ctx", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--kv", nargs="+", default=["f16", "f32"])
    parser.add_argument("--packed", nargs="+", choices=["auto", "yes", "no"], default=["auto"])
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_child(**json.loads(args.child))))
        return
    print(f"{'model':<28} {'ctx':>6} {'kv':<26} {'packed':<6} {'predicted':>10} {'measured':>10}   MB")
    worst = 0.0
    for path in args.models:
        for n_ctx in args.ctx:
            for kv_type in args.kv:
                for packed in args.packed:
                    what = {"model_path": path, "n_ctx": n_ctx, "kv_type": kv_type, "packed": packed}
                    command = [sys.executable, __file__, "--child", json.dumps(what)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        print(f"{Path(path).stem:<28} {n_ctx:>6} failed: {done.stderr.splitlines()[-1]}")
                        continue
                    row = json.loads(done.stdout)
                    predicted, measured = row["plan"]["total"] / 1e6, row["peak"] / 1e6
                    # Of the whole process, as a user sees it.
                    base = row["before"] / 1e6
                    error = (predicted + base) / (measured + base) - 1
                    worst = max(worst, abs(error))
                    cells = f"{Path(path).stem:<28} {n_ctx:>6} {kv_type:<26} {packed:<6}"
                    print(f"{cells} {predicted:>10.1f} {measured:>10.1f}   {error:+.2%}", flush=True)
                    if args.json:
                        with args.json.open("a") as out:
                            out.write(json.dumps({**what, **row}) + "\n")
    print(f"worst {worst:.2%}")


if __name__ == "__main__":
    main()
