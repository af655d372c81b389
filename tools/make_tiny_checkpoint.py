"""Write tiny random Hugging Face folders of the Gemma 4 and Gemma 3 variants with transformers.

The configuration and the numbers come from tiny_folder.py; the modules, names and files of the weights are
transformers' own, so the folders prove that those written without it are right. Needs torch and
transformers >= 5.17.

Usage: python tools/make_tiny_checkpoint.py --variant 12b --dtype BF16 --shards FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tiny_folder

__all__ = ["build", "save"]


# Modules whose weights are saved under another name, by model type.
_SAVED = {
    "gemma4_unified": (
        ("model.embed_vision.multimodal_embedder.", "model.embed_vision."),
        ("model.embed_vision.", "model.vision_embedder."),
    ),
    "gemma3": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
}


def saved_name(key: str, model_type: str) -> str:
    """The name a parameter has in the file."""
    for module, saved in _SAVED.get(model_type, ()):
        if key.startswith(module):
            return saved + key.removeprefix(module)
    return key


def build(name: str, *, seed: int = 1, **options: bool) -> Any:
    """The transformers model of one variant with the numbers of tiny_folder, in float32."""
    import torch
    import transformers

    variant = tiny_folder.VARIANTS[name]
    raw = tiny_folder.config(name, **options)
    cls = getattr(transformers, raw["architectures"][0])
    config = cls.config_class.from_dict(raw)
    config._attn_implementation = "eager"
    model = cls(config).to(torch.float32).eval()
    state = model.state_dict()
    wanted = dict(tiny_folder.tensors(name, **options))
    new: dict[str, Any] = {}
    for key, value in state.items():
        if key == "lm_head.weight" and key not in wanted:
            continue
        array = tiny_folder.values(
            saved_name(key, variant.model_type), tuple(value.shape), gemma3=variant.is_gemma3, seed=seed
        )
        new[key] = torch.from_numpy(array)
    missing, unexpected = model.load_state_dict(new, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"{name}: without a value: {missing}, unknown: {unexpected}")
    model.tie_weights()
    return model


def save(
    name: str, folder: Path, *, dtype: str = "BF16", shards: bool = False, seed: int = 1, **options: bool
) -> None:
    """Save one variant as transformers does, with the other files of a checkpoint beside it."""
    import torch

    model = build(name, seed=seed, **options)
    model = model.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype])
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=max(1 << 16, size // 3) if shards else "5GB")
    tiny_folder.write_extras(folder, name)
    if options.get("old_dialect"):
        raw = tiny_folder.config(name, **options)
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=[*tiny_folder.VARIANTS, "all"], required=True)
    parser.add_argument("--dtype", choices=["F32", "BF16", "F16"], default="BF16")
    parser.add_argument("--shards", action="store_true", help="about three shards instead of one file")
    parser.add_argument("--wide", action="store_true", help="rows that are multiples of 256")
    parser.add_argument(
        "--old-dialect", action="store_true", help="global_head_dim instead of per_layer_config"
    )
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("folder", type=Path, help="where to write; with --variant all one folder for each")
    args = parser.parse_args()
    options = {"wide": args.wide, "old_dialect": args.old_dialect, "tied": not args.untied}
    for name in tiny_folder.VARIANTS if args.variant == "all" else [args.variant]:
        folder = args.folder / name if args.variant == "all" else args.folder
        save(name, folder, dtype=args.dtype, shards=args.shards, seed=args.seed, **options)
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir())} bytes")


if __name__ == "__main__":
    main()
