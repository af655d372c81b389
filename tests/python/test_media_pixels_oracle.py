"""Live comparison with transformers' Gemma4UnifiedImageProcessor: counts, positions and pixels.

The processor needs torchvision; where that is not installed, a stand-in gives it the function that matters,
resize on uint8, as torchvision does it: through torch.nn.functional.interpolate.
"""

from __future__ import annotations

import enum
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
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


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def _resize(image: Any, size: list[int], interpolation: object, antialias: bool) -> Any:
    assert interpolation in (InterpolationMode.BICUBIC, PillowImage.Resampling.BICUBIC)
    assert image.dtype == torch.uint8
    batch = image[None] if image.ndim == 3 else image
    out = torch.nn.functional.interpolate(batch, size=size, mode="bicubic", antialias=antialias)
    return out[0] if image.ndim == 3 else out


def _pil_to_tensor(picture: PillowImage.Image) -> Any:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _stand_in() -> dict[str, ModuleType]:
    names = (
        "",
        ".io",
        ".transforms",
        ".transforms.functional",
        ".transforms.v2",
        ".transforms.v2.functional",
    )
    modules = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules["torchvision"].__version__ = "0.28.0"  # type: ignore[attr-defined]
    modules["torchvision"].__file__ = __file__
    modules["torchvision.transforms"].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    modules["torchvision.io"].ImageReadMode = modules["torchvision.io"].decode_image = None  # type: ignore[attr-defined]
    modules["torchvision.transforms.functional"].pil_to_tensor = _pil_to_tensor  # type: ignore[attr-defined]
    functional = modules["torchvision.transforms.v2.functional"]
    functional.InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    functional.resize = _resize  # type: ignore[attr-defined]
    functional.pil_to_tensor = _pil_to_tensor  # type: ignore[attr-defined]
    return modules


@pytest.fixture(scope="module")
def processor_class() -> Iterator[Any]:
    from transformers.utils import import_utils

    added: dict[str, ModuleType] = {}
    probes = (import_utils.is_torchvision_available, import_utils.is_torchvision_v2_available)
    if importlib.util.find_spec("torchvision") is None:
        added = _stand_in()
        sys.modules.update(added)
        for probe in probes:
            probe.cache_clear()
    from transformers import image_processing_backends, image_utils

    if not hasattr(image_processing_backends, "tvF"):  # imported before by a test that went without
        importlib.reload(image_utils)
        importlib.reload(image_processing_backends)
    from transformers.models.gemma4_unified import image_processing_gemma4_unified as module

    yield module.Gemma4UnifiedImageProcessor
    for name in added:
        del sys.modules[name]
    for probe in probes:
        probe.cache_clear()


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
