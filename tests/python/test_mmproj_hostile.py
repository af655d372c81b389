"""Damaged and hostile media files through the public API: an error of one sentence, or the right numbers.

Each file is the media section of the tiny 12B with a few bytes changed: shapes, types, places and numbers of
tensors, keys, truncation, and random flips of the header. No file may end the process, hang, take memory by
what it claims, or give numbers that are not finite.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule import _core
from project_modules import load_module

media = load_module("tools", "make_media_golden")

SETUP = media.Setup()
Patch = Callable[[bytearray], None]
HUGE = 1 << 40


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """(text file, bytes of the media file)"""
    folder = tmp_path_factory.mktemp("hostile")
    media.write_checkpoint(folder / "12b", SETUP)
    gemmule.convert(folder / "12b", folder / "whole.gguf", type="F32")
    (folder / "parts").mkdir()
    text, mmproj = gemmule.split(folder / "whole.gguf", folder / "parts")
    return Path(text), Path(mmproj).read_bytes()


def _ask(text: Path, mmproj: Path) -> np.ndarray:
    """Logits after a picture and a sound."""
    _, pixels = media.make_prompt((media.Picture(7, 10),), SETUP).media[0][1:]
    sound = np.linspace(-0.5, 0.5, 64 * 5, dtype=np.float32)
    with gemmule.Model(text, mmproj=mmproj, n_ctx=256, n_threads=1) as model:
        return model.logits([[2], gemmule.Image(pixels, tokens=70), gemmule.Audio(sound), [300]])


def _refused(text: Path, raw: bytes, folder: Path) -> str:
    """The message of the error that the file must cause."""
    path = folder / "hostile-mmproj.gguf"
    path.write_bytes(raw)
    with pytest.raises((gemmule.Error, ValueError)) as caught:
        _ask(text, path)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    assert len(message) < 600
    return message


# -- places in the file --


def _key(raw: bytes, name: str) -> int:
    """Where the value of a key begins, after its type."""
    data = struct.pack("<Q", len(name)) + name.encode()
    assert raw.count(data) == 1, name
    return raw.index(data) + len(data) + 4


def _info(raw: bytes, name: str) -> int:
    """Where the dimensions of a tensor begin: their number u32, each u64, type u32, offset u64."""
    data = struct.pack("<Q", len(name)) + name.encode()
    assert raw.count(data) == 1, name
    return raw.index(data) + len(data)


def _set_dim(name: str, dim: int, value: int) -> Patch:
    return lambda raw: struct.pack_into("<Q", raw, _info(raw, name) + 4 + 8 * dim, value)


def _swap_dims(name: str) -> Patch:
    def patch(raw: bytearray) -> None:
        at = _info(raw, name) + 4
        raw[at : at + 16] = raw[at + 8 : at + 16] + raw[at : at + 8]

    return patch


def _after_dims(raw: bytes, name: str) -> int:
    at = _info(raw, name)
    return at + 4 + 8 * int(struct.unpack_from("<I", raw, at)[0])


def _set_type(name: str, value: int) -> Patch:
    return lambda raw: struct.pack_into("<I", raw, _after_dims(raw, name), value)


def _set_offset(name: str, value: int) -> Patch:
    return lambda raw: struct.pack_into("<Q", raw, _after_dims(raw, name) + 4, value)


def _rename(old: str, new: str) -> Patch:
    assert len(old) == len(new)

    def patch(raw: bytearray) -> None:
        at = _info(raw, old)
        raw[at - len(old) : at] = new.encode()

    return patch


def _set_key(name: str, value: int) -> Patch:
    return lambda raw: struct.pack_into("<I", raw, _key(raw, name), value)


def _set_text(name: str, old: str, new: str) -> Patch:
    def patch(raw: bytearray) -> None:
        at = _key(raw, name) + 8
        assert raw[at : at + len(old)] == old.encode()
        raw[at : at + len(old)] = new.encode()[: len(old)].ljust(len(old), b"x")

    return patch


WEIGHTS = {
    "v.patch_embd.weight": 2,
    "v.patch_embd.bias": 1,
    "v.patch_norm.1.weight": 1,
    "v.patch_norm.2.bias": 1,
    "v.patch_norm.3.weight": 1,
    "v.position_embd.weight": 3,
    "mm.input_projection.weight": 2,
    "mm.a.input_projection.weight": 2,
}
DAMAGES: dict[str, Patch] = {
    **{
        f"{n} dim {d} = {v}": _set_dim(n, d, v)
        for n, k in WEIGHTS.items()
        for d in range(k)
        for v in (0, 1, 7, HUGE)
    },
    **{f"{n} swapped": _swap_dims(n) for n in ("v.patch_embd.weight", "mm.a.input_projection.weight")},
    **{f"{n} type {t}": _set_type(n, t) for n in WEIGHTS for t in (2, 14, 26, 99, 0xFFFFFFFF)},
    **{f"{n} outside": _set_offset(n, v) for n in WEIGHTS for v in (HUGE, (1 << 64) - 32)},
    **{f"{n} missing": _rename(n, "z" + n[1:]) for n in WEIGHTS},
    "patch size 0": _set_key("clip.vision.patch_size", 0),
    "patch size 5": _set_key("clip.vision.patch_size", 5),
    "patch size 2^31": _set_key("clip.vision.patch_size", 1 << 31),
    "width of another model": _set_key("clip.vision.projection_dim", 41),
    "other projector": _set_text("clip.vision.projector_type", "gemma4uv", "gemma3"),
    "other audio projector": _set_text("clip.audio.projector_type", "gemma4ua", "gemma4a"),
    "samples 0": _set_key("gemmule.media.audio.samples_per_token", 0),
    "samples of another frame": _set_key("gemmule.media.audio.samples_per_token", 32),
    "tile of another size": _set_key("gemmule.media.image.patch_size", 16),
    "rate 0": _set_key("gemmule.media.audio.sampling_rate", 0),
    "marker outside": _set_key("gemmule.media.token.image", 1 << 30),
    "begin marker outside": _set_key("gemmule.media.token.audio_begin", 640),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_headers_are_refused(parts: tuple[Path, bytes], tmp_path: Path, name: str) -> None:
    text, good = parts
    raw = bytearray(good)
    DAMAGES[name](raw)
    assert bytes(raw) != good
    _refused(text, bytes(raw), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WEIGHTS)
def test_numbers_that_are_not_finite_are_refused(
    parts: tuple[Path, bytes], tmp_path: Path, name: str, value: float
) -> None:
    """One such number; of the position table in the row that the first tile reads."""
    text, good = parts
    raw = bytearray(good)
    path = tmp_path / "good.gguf"
    path.write_bytes(good)
    offset, kind = next((t[3], t[1]) for t in _core.GgufFile(str(path)).tensors() if t[0] == name)
    assert kind == "F32"
    struct.pack_into("<f", raw, offset, value)
    assert "finite" in _refused(text, bytes(raw), tmp_path)


def test_truncated_files_are_refused(parts: tuple[Path, bytes], tmp_path: Path) -> None:
    text, good = parts
    for n in [0, 1, 4, 23, 24, 100, 500, 1000, 2000, *range(3000, len(good), len(good) // 12), len(good) - 1]:
        _refused(text, good[:n], tmp_path)


def test_flipped_bytes_never_end_the_process(parts: tuple[Path, bytes], tmp_path: Path) -> None:
    """Random changes of the header: refused in one sentence, or harmless with finite numbers."""
    text, good = parts
    path = tmp_path / "good.gguf"
    path.write_bytes(good)
    header = _core.GgufFile(str(path)).data_offset
    rng = np.random.default_rng(4)
    messages = []
    for _ in range(150):
        raw = bytearray(good)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            raw[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
        path.write_bytes(raw)
        try:
            logits = _ask(text, path)
        except (gemmule.Error, ValueError) as error:
            messages.append(str(error))
        else:
            assert np.isfinite(logits).all()
    assert len(messages) > 40
    assert all(message.strip() and "\n" not in message for message in messages)


def test_the_unchanged_file_works(parts: tuple[Path, bytes], tmp_path: Path) -> None:
    text, good = parts
    path = tmp_path / "good.gguf"
    path.write_bytes(good)
    assert np.isfinite(_ask(text, path)).all()
