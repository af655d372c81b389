"""Write tiny drafters of the golden models, and what transformers' assistant drafts with them.

The reference is transformers in float32 with eager attention. The target runs the prompt with its own cache,
which keeps window - 1 positions of sliding layers: just those that a drafter may see. Each .npz holds ids
int32 [n], hidden float32 [d_model] of the last one, and of a round of steps token int32 [steps], logits
float32 [steps, n_vocab] and next_hidden float32 [steps, d_model]; and info (JSON). Every step but the first
takes the likeliest token of the one before it.

Usage: python tools/make_drafter_golden.py tests/golden
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_golden import make_prompt
from make_tiny_model import (
    SHAPES,
    Shape,
    add_tensors,
    build_model,
    fill,
    gguf_name,
    load_weights,
    text_config,
    write_header,
)

__all__ = ["GOLDEN", "DrafterShape", "build_drafter", "drafter_of", "run_reference", "write_drafter"]

N_STEPS = 6
# (shape of the target, weight type of both files, tokens of the prompt, clusters of the head)
GOLDEN = (
    ("gemma4", "F32", 40, 0),
    ("gemma4-e2b", "F16", 40, 24),
    ("gemma4-26b", "F16", 40, 0),
)


@dataclass(frozen=True)
class DrafterShape:
    """A drafter: its layers, the width of its target, and the clusters of its head (0: a plain one)."""

    stack: Shape
    d_target: int
    n_clusters: int = 0
    n_clusters_used: int = 0


def drafter_of(target: Shape, n_clusters: int = 0, **changes: Any) -> DrafterShape:
    """A small drafter that fits a target."""
    stack = replace(
        target,
        arch="gemma4-assistant",
        d_model=24,
        d_ff=56,
        n_heads=2 * target.n_kv_heads,
        sliding_layers=(True, True, False),
        n_shared=3,
        unread_kv=False,
        double_wide=False,
        d_ple=0,
        n_experts=0,
        n_experts_used=0,
        d_ff_expert=0,
    )
    return DrafterShape(replace(stack, **changes), target.d_model, n_clusters, 3 if n_clusters else 0)


def build_drafter(shape: DrafterShape, seed: int) -> Any:
    """The transformers model with random weights, in float32."""
    import torch
    import transformers

    stack = text_config(shape.stack)
    stack.final_logit_softcapping = None
    if not shape.stack.unified:
        stack.vocab_size_per_layer_input = 0
    unified = "Unified" if shape.stack.unified else ""
    cls = getattr(transformers, f"Gemma4{unified}AssistantForCausalLM")
    config = cls.config_class(
        text_config=stack,
        backbone_hidden_size=shape.d_target,
        use_ordered_embeddings=shape.n_clusters > 0,
        num_centroids=shape.n_clusters or 1,
        centroid_intermediate_top_k=shape.n_clusters_used or 1,
    )
    config._attn_implementation = "eager"
    model = cls(config).to(torch.float32).eval()
    fill(model, np.random.default_rng(seed))
    return model


def write_drafter(model: Any, shape: DrafterShape, path: Path, *, seed: int, type_name: str = "F32") -> None:
    """Write the GGUF file; matrices in `type_name` where the row length allows it."""
    writer = gguf.GGUFWriter(str(path), shape.stack.arch)
    write_header(writer, shape.stack, seed=seed, type_name=type_name)
    writer.add_uint32(f"{shape.stack.arch}.embedding_length_out", shape.d_target)
    writer.add_uint32(f"{shape.stack.arch}.nextn_predict_layers", len(shape.stack.sliding_layers))
    state = {name: value.numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if shape.n_clusters:
        centroids = state.pop("masked_embedding.centroids.weight")
        writer.add_array("gemmule.drafter.centroids", centroids.reshape(-1).tolist())
        writer.add_array("gemmule.drafter.clusters", state.pop("masked_embedding.token_ordering").tolist())
        writer.add_uint32("gemmule.drafter.n_clusters_used", shape.n_clusters_used)
    add_tensors(writer, ((gguf_name(name), value) for name, value in state.items()), type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_drafter(model: Any, path: Path) -> None:
    """Give the model the values that the file's tensors stand for."""
    import torch

    stored = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if name == "lm_head.weight" or name.startswith("masked_embedding."):
                continue
            tensor = stored[gguf_name(name)]
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            parameter.copy_(torch.from_numpy(np.array(value)).reshape(parameter.shape))


def run_reference(target: Any, drafter: Any, ids: np.ndarray, n_steps: int) -> dict[str, np.ndarray]:
    """A round of steps after a prompt."""
    import torch
    import transformers

    cache = transformers.DynamicCache(config=target.config)
    steps: dict[str, list[Any]] = {"token": [], "logits": [], "next_hidden": []}
    with torch.no_grad():
        result = target(
            input_ids=torch.from_numpy(ids.astype(np.int64))[None],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        types = target.config.layer_types
        n_own = len(types) - target.config.num_kv_shared_layers
        kv = {}
        for kind in set(types):
            source = max(i for i in range(n_own) if types[i] == kind)
            kv[kind] = (cache.layers[source].keys, cache.layers[source].values)
        window = target.config.sliding_window
        if kv["sliding_attention"][0].shape[2] != min(len(ids), window - 1):
            raise RuntimeError("the cache of a sliding layer does not hold what a drafter may see")
        # The last of the hidden states is the one after the last norm.
        hidden = result.hidden_states[-1][:, -1:]
        token = int(result.logits[0, -1].argmax())
        out = {"ids": ids, "hidden": hidden[0, 0].numpy()}
        for _ in range(n_steps):
            embedding = target.get_input_embeddings()(torch.tensor([[token]]))
            step = drafter(
                inputs_embeds=torch.cat([embedding, hidden], dim=-1),
                position_ids=torch.tensor([[len(ids)]]),
                shared_kv_states=kv,
            )
            hidden = step.last_hidden_state
            steps["token"].append(token)
            steps["logits"].append(step.logits[0, 0].numpy())
            steps["next_hidden"].append(hidden[0, 0].numpy())
            token = int(step.logits[0, 0].argmax())
    out["token"] = np.array(steps.pop("token"), np.int32)
    return out | {name: np.stack(values) for name, values in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    for name, type_name, length, n_clusters in GOLDEN:
        shape = SHAPES[name]
        target = build_model(shape, args.seed)
        load_weights(target, shape, args.folder / f"tiny-{name}-{type_name.lower()}.gguf")
        small = drafter_of(shape, n_clusters)
        drafter = build_drafter(small, args.seed)
        weights = args.folder / f"tiny-{name}-drafter-{type_name.lower()}.gguf"
        write_drafter(drafter, small, weights, seed=args.seed, type_name=type_name)
        load_drafter(drafter, weights)
        ids = make_prompt(shape.n_vocab, length, args.seed)
        arrays = run_reference(target, drafter, ids, N_STEPS)
        info = {
            "command": f"python tools/make_drafter_golden.py tests/golden --seed {args.seed}",
            "seed": args.seed,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
        path = weights.with_suffix(".npz")
        np.savez_compressed(path, allow_pickle=False, info=np.array(json.dumps(info)), **arrays)
        print(f"{weights.stat().st_size} + {path.stat().st_size} bytes, {path}: {json.dumps(info)}")


if __name__ == "__main__":
    main()
