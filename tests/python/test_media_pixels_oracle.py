"""Live comparison with transformers' Gemma4UnifiedImageProcessor: counts, positions and pixels.

The processor needs torchvision, which has to be there before anything imports transformers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from gemmule._media.image import prepare_image, resize
from gemmule._media.parts import Image
from gemmule._media.settings import MediaSettings
from media_files import pattern
from project_modules import load_module

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.17")

SETTINGS = MediaSettings()


@pytest.fixture(scope="module")
def processor_class() -> Any:
    if not load_module("tools", "make_media_golden").import_torchvision():
        pytest.skip("torchvision, which transformers' processors need, is not installed")
    from transformers.models.gemma4_unified import image_processing_gemma4_unified as module

    return module.Gemma4UnifiedImageProcessor


def tiles(pixels: Any) -> Any:
    """uint8 [H, W, 3] -> float32 [n, 6912], each tile row by row with the colours of a pixel together."""
    rows, columns = pixels.shape[0] // 48, pixels.shape[1] // 48
    values = pixels.astype(np.float32) / 255
    return values.reshape(rows, 48, columns, 48, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 6912)


@pytest.mark.parametrize("tokens", [70, 140, 280, 560, 1120])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 10000),
        (10000, 1),
        (47, 49),
        (49, 47),
        (48, 48),
        (29, 5),
        (100, 4000),
        (768, 768),
        (631, 1201),
    ],
)
def test_pixels_counts_and_positions(processor_class: Any, size: tuple[int, int], tokens: int) -> None:
    picture = PillowImage.fromarray(pattern(*size))
    # The channels are named because the processor takes a picture 1 or 3 pixels high for one of its layouts.
    out = processor_class(max_soft_tokens=tokens)(
        picture, return_tensors="pt", input_data_format="channels_first"
    )
    n = int(out["num_soft_tokens_per_image"][0])
    prepared = prepare_image(Image(picture), tokens, SETTINGS)
    assert prepared.n_tokens == n
    columns = prepared.pixels.shape[1] // 48
    positions = out["image_position_ids"][0][:n].numpy()
    assert np.array_equal(positions, np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1))
    error = np.abs(tiles(prepared.pixels) - out["pixel_values"][0][:n].numpy()).max()
    assert error < 1e-6  # of 1/255 = 4e-3


def test_resize_equals_torch_for_random_sizes() -> None:
    rng = np.random.default_rng(11)
    for _ in range(60):
        height, width, new_height, new_width = np.exp(rng.uniform(0, np.log(900), 4)).astype(int).tolist()
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(pixels).permute(2, 0, 1)[None],
            size=(new_height, new_width),
            mode="bicubic",
            antialias=True,
        )
        found = resize(pixels, new_height, new_width)
        assert np.array_equal(found, expected[0].permute(1, 2, 0).numpy()), (
            height,
            width,
            new_height,
            new_width,
        )


def test_golden_file_is_what_torch_gives(golden: Any) -> None:
    import hashlib
    import json

    maker = load_module("tools", "make_media_pixels_golden")
    for case in json.loads((golden / "media_pixels.json").read_text())["cases"][::7]:
        pixels = maker.reference_pixels(case["height"], case["width"], case["tokens"]).numpy()
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["sha256"], case
