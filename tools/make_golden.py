"""Write the golden GGUF files and reference activations under tests/golden.

The reference is transformers in float32 with eager attention, with the values of the file's weights. Each
.npz holds: ids int32 [n], logits float32 [n, n_vocab], embed, layer_out.i and output_norm float32
[n, d_model], and info (JSON: versions, seed, command). The window is proved to be active: a second run with
a window longer than the prompt must differ, and only from position `window` on.

Usage: python tools/make_golden.py tests/golden
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_tiny_model import SHAPES, Shape, build_model, load_weights, write_gguf

__all__ = ["GOLDEN", "check_window", "make_prompt", "run_reference"]

FORMAT_VERSION = 1
# (shape, weight type, tokens of the prompt). F16 keeps the files of the younger members small.
GOLDEN = (
    ("gemma3", "F32", 70),
    ("gemma4", "F32", 70),
    ("gemma4-e2b", "F16", 40),
    ("gemma4-26b", "F16", 40),
)


def make_prompt(n_vocab: int, n: int, seed: int) -> np.ndarray:
    """int32 [n]: BOS first, then random ids with the other special tokens scattered among them."""
    ids = np.random.default_rng(seed).integers(0, n_vocab, n, dtype=np.int32)
    ids[0] = 2
    for place, special in ((7, 0), (19, 1), (33, 2), (48, 3), (61, 4), (66, 5)):
        if place < n:
            ids[place] = special
    return ids


# Inputs of these modules of a layer are what a tap of ours shows.
INPUT_TAPS = {
    "self_attn.q_proj": "attn_in",
    "self_attn.o_proj": "attn_heads",
    "pre_feedforward_layernorm": "attn_out",
    "mlp.gate_proj": "ffn_in",
    "mlp.down_proj": "ffn_act",
    "router.proj": "router_in",
    "per_layer_input_gate": "ple_in",
    "per_layer_projection": "ple_act",
}


def run_reference(model: Any, ids: np.ndarray, *, inputs: bool = False) -> dict[str, np.ndarray]:
    """Run the model once without a cache; return the logits of all positions and the taps.

    With `inputs` also those of the inputs of the products.
    """
    out: dict[str, np.ndarray] = {}
    hooks = []
    core = model.model

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            out[name] = value.detach().reshape(len(ids), -1).float().numpy().copy()

        return hook

    hooks.append(core.embed_tokens.register_forward_hook(keep("embed")))
    hooks += [layer.register_forward_hook(keep(f"layer_out.{i}")) for i, layer in enumerate(core.layers)]
    hooks.append(core.norm.register_forward_hook(keep("output_norm")))

    def keep_input(name: str) -> Any:
        def hook(_module: Any, args: Any) -> None:
            out[name] = args[0].detach().reshape(len(ids), -1).float().numpy().copy()

        return hook

    for path, module in core.named_modules() if inputs else ():
        layer, _, part = path.removeprefix("layers.").partition(".")
        if part in INPUT_TAPS:
            hooks.append(module.register_forward_pre_hook(keep_input(f"{INPUT_TAPS[part]}.{layer}")))
        elif path == "per_layer_model_projection":
            hooks.append(module.register_forward_pre_hook(keep_input("ple_model_in")))
    with torch.no_grad():
        result = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    for handle in hooks:
        handle.remove()
    out["logits"] = result.logits[0].float().numpy()
    return out


def check_window(
    shape: Shape, seed: int, ids: np.ndarray, logits: np.ndarray, weights: Path | None = None
) -> float:
    """Return the largest change a longer window makes; raise if the short window was not applied."""
    model = build_model(replace(shape, window=4 * len(ids)), seed)
    if weights is not None:
        load_weights(model, shape, weights)
    wide = run_reference(model, ids)["logits"]
    change = np.abs(wide - logits).max(axis=1)
    if change[: shape.window].max() > 1e-4 or change[shape.window :].min() < 1e-3:
        raise RuntimeError("the sliding window of the reference does not start at position `window`")
    return float(change.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[name for name, _, _ in GOLDEN], help="one of them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, type_name, length in GOLDEN:
        if args.only not in (None, name):
            continue
        shape = SHAPES[name]
        model = build_model(shape, args.seed)
        weights = args.folder / f"tiny-{name}-{type_name.lower()}.gguf"
        write_gguf(model, shape, weights, seed=args.seed, type_name=type_name)
        load_weights(model, shape, weights)
        ids = make_prompt(shape.n_vocab, length, args.seed)
        arrays = run_reference(model, ids)
        info = {
            "format_version": FORMAT_VERSION,
            "command": f"python tools/make_golden.py tests/golden --seed {args.seed}",
            "seed": args.seed,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "window_effect": check_window(shape, args.seed, ids, arrays["logits"], weights),
        }
        path = weights.with_suffix(".npz")
        np.savez_compressed(path, allow_pickle=False, ids=ids, info=np.array(json.dumps(info)), **arrays)
        print(f"{path}: {path.stat().st_size} bytes, {json.dumps(info)}")


if __name__ == "__main__":
    main()
