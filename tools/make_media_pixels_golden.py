"""Write tests/golden/media_pixels.json: what torch's bicubic resize of uint8 gives for a table of pictures.

Each case holds the size, the token budget, the size after the resize and the sha256 of the pixels
(uint8 [H, W, 3]). The pictures are those of tests/python/media_files.py; the sizes come from transformers'
own rule, the pixels from torch.nn.functional.interpolate, which torchvision and so transformers call.

Usage: python tools/make_media_pixels_golden.py tests/golden
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from media_files import pattern

__all__ = ["BUDGETS", "SIZES", "reference_pixels", "reference_size"]

BUDGETS = (70, 140, 280, 560, 1120)
SIZES = (
    (1, 1),
    (1, 10000),
    (10000, 1),
    (47, 49),
    (49, 47),
    (48, 48),
    (17, 3),
    (3, 5000),
    (100, 4000),
    (480, 640),
    (333, 777),
    (768, 768),
    (1080, 1920),
)


def reference_size(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The resize rule for tiles of 48 pixels, written down a second time."""
    factor = math.sqrt(tokens * 9 * 256 / (height * width))
    tall, wide = (math.floor(factor * side / 48) for side in (height, width))
    if tall == 0:
        tall, wide = 1, min(width // height, tokens)
    elif wide == 0:
        tall, wide = min(height // width, tokens), 1
    return tall * 48, wide * 48


def reference_pixels(height: int, width: int, tokens: int) -> torch.Tensor:
    """uint8 [H, W, 3]."""
    pixels = torch.from_numpy(pattern(height, width)).permute(2, 0, 1)[None]
    size = reference_size(height, width, tokens)
    if size != (height, width):
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    return pixels[0].permute(1, 2, 0).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    cases = []
    for height, width in SIZES:
        for tokens in BUDGETS:
            pixels = reference_pixels(height, width, tokens).numpy()
            target = list(pixels.shape[:2])
            cases.append(
                {
                    "height": height,
                    "width": width,
                    "tokens": tokens,
                    "target": target,
                    "n_tokens": target[0] // 48 * (target[1] // 48),
                    "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
                }
            )
    lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    text = f'{{\n "torch": "{torch.__version__}",\n "cases": [\n{lines}\n ]\n}}\n'
    (folder / "media_pixels.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
