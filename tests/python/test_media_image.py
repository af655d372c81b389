"""Pictures: sizes and pixels as transformers makes them, every format and mode, orientation, arrays.

tests/golden/media_pixels.json holds hashes of what torch's resize gives; test_media_pixels_oracle.py has the
same comparison live.
"""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from gemmule._errors import MediaError
from gemmule._media import limits
from gemmule._media.image import image_size, load_image, prepare_image, resize, target_size
from gemmule._media.parts import Image
from gemmule._media.settings import MediaSettings
from media_files import encoded, pattern

SETTINGS = MediaSettings()
BUDGETS = SETTINGS.image_budgets


@pytest.mark.parametrize(
    ("size", "tokens", "target"),
    [
        ((1080, 1920), 280, (576, 1056)),
        ((1080, 1920), 70, (288, 528)),
        ((1080, 1920), 1120, (1200, 2112)),
        ((480, 640), 280, (672, 912)),
        ((1024, 1024), 280, (768, 768)),
        ((100, 4000), 280, (96, 5040)),
        ((20, 2000), 70, (48, 3360)),
        ((2000, 20), 70, (3360, 48)),
        ((1, 1), 280, (768, 768)),
        ((1, 10000), 280, (48, 13440)),
        ((10000, 1), 1120, (53760, 48)),
    ],
)
def test_target_size_of_the_specification(
    size: tuple[int, int], tokens: int, target: tuple[int, int]
) -> None:
    assert target_size(*size, tokens) == target


def test_every_size_keeps_the_budget() -> None:
    rng = np.random.default_rng(5)
    for _ in range(5000):
        height, width = np.exp(rng.uniform(0, np.log(65535), 2)).astype(int).tolist()
        tokens = int(rng.choice(BUDGETS))
        new_height, new_width = target_size(height, width, tokens)
        assert new_height % 48 == new_width % 48 == 0
        assert 1 <= new_height // 48 * (new_width // 48) <= tokens


def test_pixels_equal_torch(golden: Path) -> None:
    cases = json.loads((golden / "media_pixels.json").read_text())["cases"]
    assert len(cases) >= 50
    for case in cases:
        height, width, tokens = case["height"], case["width"], case["tokens"]
        prepared = prepare_image(Image(pattern(height, width)), tokens, SETTINGS)
        assert list(prepared.pixels.shape[:2]) == case["target"], case
        assert prepared.n_tokens == case["n_tokens"], case
        assert hashlib.sha256(prepared.pixels.tobytes()).hexdigest() == case["sha256"], case


def test_resize_to_the_same_size_changes_nothing() -> None:
    pixels = pattern(96, 48)
    assert np.array_equal(resize(pixels, 96, 48), pixels)
    flat = np.full((70, 30, 3), 137, np.uint8)
    assert (resize(flat, 48, 96) == 137).all()


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pattern(217, 131)
    whole = resize(pixels, 96, 240)
    monkeypatch.setattr("gemmule._media.image._BAND_VALUES", 1)
    monkeypatch.setattr("gemmule._media.image._SMALL_PRODUCT", 1)
    assert np.array_equal(resize(pixels, 96, 240), whole)


def test_budget_comes_from_the_part_then_the_request_then_the_file() -> None:
    pixels = pattern(96, 96)
    assert prepare_image(Image(pixels, tokens=70), 560, SETTINGS).n_tokens == 64
    assert prepare_image(Image(pixels), 560, SETTINGS).n_tokens == 529
    assert prepare_image(Image(pixels), None, SETTINGS).n_tokens == 256
    with pytest.raises(ValueError, match="100 tokens; the model knows 70, 140"):
        prepare_image(Image(pixels, tokens=100), None, SETTINGS)
    with pytest.raises(MediaError, match="8 positions"):
        prepare_image(Image(pixels), None, MediaSettings(n_positions=8))


def test_key_is_of_the_pixels_alone(tmp_path: Path) -> None:
    pixels = pattern(60, 90)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(pixels, "PNG"))
    first, second = (prepare_image(Image(src), 70, SETTINGS) for src in (str(path), encoded(pixels, "BMP")))
    assert first.key == second.key
    assert len(first.key) == 32
    assert first.source_size == (60, 90)
    assert first.key != prepare_image(Image(pixels), 140, SETTINGS).key
    flat = np.zeros((96, 48, 3), np.uint8)
    assert prepare_image(Image(flat), 70, SETTINGS).key != prepare_image(Image(flat[:48]), 70, SETTINGS).key


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(kind: str, turn: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = turn
    data = encoded(pattern(37, 53), kind, exif=exif)
    with PillowImage.open(BytesIO(data)) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    part = Image(data)
    assert np.array_equal(load_image(part), upright)
    assert image_size(part) == upright.shape[:2]
    with PillowImage.open(BytesIO(data)) as lazy, PillowImage.open(BytesIO(data)) as loaded:
        loaded.load()
        assert image_size(Image(lazy)) == image_size(Image(loaded)) == upright.shape[:2]
        assert np.array_equal(load_image(Image(loaded)), upright)
    turned, straight = (prepare_image(Image(src), 70, SETTINGS) for src in (data, upright))
    assert turned.key == straight.key


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {"transparency": 3}),
        ("GIF", "L", {}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "RGBA", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "1", {"compression": "group4"}),
    ],
)
def test_modes_become_what_transformers_makes_of_them(kind: str, mode: str, options: dict[str, Any]) -> None:
    picture = PillowImage.fromarray(pattern(29, 41)).convert(mode)
    if "A" in mode:
        picture.putalpha(PillowImage.fromarray(pattern(29, 41)[:, :, 0]))
    data = encoded(picture, kind, mode, **options)
    with PillowImage.open(BytesIO(data)) as reference:
        expected = np.asarray(reference.convert("RGB"))
    assert np.array_equal(load_image(Image(data)), expected)


def test_first_picture_of_an_animation() -> None:
    first, second = (PillowImage.fromarray(pixels) for pixels in (pattern(20, 30), 255 - pattern(20, 30)))
    for kind, options in (("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        data = encoded(first, kind, save_all=True, append_images=[second], **options)
        assert np.array_equal(load_image(Image(data)), pattern(20, 30)), kind
    gif = encoded(first.convert("L"), "GIF", "L", save_all=True, append_images=[second.convert("L")])
    assert np.array_equal(load_image(Image(gif))[:, :, 0], np.asarray(first.convert("L")))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = pattern(20, 30)[:, :, 0]
    wide = grey.astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        data = encoded(PillowImage.fromarray(wide), kind, "I;16")
        assert np.array_equal(load_image(Image(data)), np.repeat(grey[:, :, None], 3, axis=2)), kind
    assert np.array_equal(load_image(Image(wide))[:, :, 1], grey)


def test_samples_of_32_bits_are_scaled_by_their_range() -> None:
    grey = pattern(20, 30)[:, :, 0]
    for values in (
        grey.astype(np.int32),
        grey.astype(np.int32) * 257,
        grey.astype(np.float32) / 255,
        grey.astype(np.float32),
    ):
        picture = PillowImage.fromarray(values)
        for src in (picture, encoded(picture, "TIFF", picture.mode)):
            assert np.array_equal(load_image(Image(src))[:, :, 2], grey)
    for values in (grey.astype(np.float32) * 9, np.full((3, 3), np.nan, np.float32)):
        with pytest.raises(MediaError, match="save it with 8 or 16 bits"):
            load_image(Image(PillowImage.fromarray(values)))


def test_sixteen_bit_cmyk_tiff() -> None:
    """Pillow writes none, so the file is put together here: four samples of 16 bits, one strip."""
    inks = (pattern(6, 8).astype(np.uint16) * 257)[:, :, [0, 1, 2, 0]]
    body = inks.astype("<u2").tobytes()
    tags = [
        (256, 4, 1, 8),
        (257, 4, 1, 6),
        (258, 3, 4, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 5),
        (273, 4, 1, 16),
        (277, 3, 1, 4),
        (278, 4, 1, 6),
        (279, 4, 1, len(body)),
    ]
    at = 16 + len(body)
    entries = b"".join(
        np.array([tag, kind], "<u2").tobytes() + np.array([n, v], "<u4").tobytes() for tag, kind, n, v in tags
    )
    data = (
        b"II*\0"
        + np.array([at], "<u4").tobytes()
        + np.array([16, 16, 16, 16], "<u2").tobytes()
        + body
        + np.array([len(tags)], "<u2").tobytes()
        + entries
        + b"\0\0\0\0"
    )
    eight = PillowImage.frombytes("CMYK", (8, 6), (inks >> 8).astype(np.uint8).tobytes())
    assert np.array_equal(load_image(Image(data)), np.asarray(eight.convert("RGB")))


def test_damaged_exif_counts_as_upright() -> None:
    data = encoded(pattern(20, 30), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert load_image(Image(data)).shape == (20, 30, 3)
    assert image_size(Image(data)) == (20, 30)


# -- arrays --------------------------------------------------------------------------------------------------


def test_arrays() -> None:
    pixels = pattern(11, 13)
    grey = pixels[:, :, 0]
    as_grey = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(load_image(Image(pixels)), pixels)
    assert np.array_equal(load_image(Image(pixels[::-1, ::-1])), pixels[::-1, ::-1])
    assert np.array_equal(load_image(Image(np.dstack([pixels, grey]))), pixels)
    assert np.array_equal(load_image(Image(grey)), as_grey)
    assert np.array_equal(load_image(Image(grey[:, :, None])), as_grey)
    assert np.array_equal(load_image(Image(pixels.astype(np.float64) / 255)), pixels)
    assert np.array_equal(load_image(Image(pixels.astype(np.float32) / 255)), pixels)
    assert np.array_equal(load_image(Image(grey > 127)), np.where(as_grey > 127, 255, 0))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), "move the channels"),
        (np.zeros((8, 8, 2), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "0 x 8"),
        (np.zeros((8,), np.uint8), "shape"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 1.5), "divide by 255"),
        (np.full((8, 8, 3), -0.5, np.float32), "divide by 255"),
        (np.full((8, 8, 3), np.nan, np.float32), "divide by 255"),
        (np.zeros((8, 8, 3), np.complex64), "complex64"),
        (np.broadcast_to(np.uint8(0), (1, 70000, 3)), "a side has at most"),
        (np.broadcast_to(np.uint8(0), (60000, 60000, 3)), "million"),
    ],
)
def test_arrays_that_are_no_picture(array: Any, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        prepare_image(Image(array), None, SETTINGS)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "alpha": True}])
def test_webp_has_a_smaller_limit(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Its decoder takes 16 bytes for each pixel; the size is read before anything is allocated."""
    mode = "RGBA" if options.pop("alpha", False) else "RGB"
    buffer = BytesIO()
    PillowImage.new(mode, (70, 30), (10, 200, 30, 90)[: len(mode)]).save(buffer, "WEBP", **options)
    monkeypatch.setattr(limits, "MAX_WEBP_PIXELS", 70 * 30)
    assert load_image(Image(buffer.getvalue())).shape == (30, 70, 3)
    monkeypatch.setattr(limits, "MAX_WEBP_PIXELS", 70 * 30 - 1)
    with pytest.raises(MediaError, match="30 x 70 pixels"):
        load_image(Image(buffer.getvalue()))
