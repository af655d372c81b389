"""bundle(), split() and verify(): parts come back byte for byte, and every changed bit is found."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule._convert.bundle import bundle, split, verify
from gemmule._convert.convert import convert
from gemmule._convert.gguf_source import read_header, sections_of
from gemmule._convert.image import Kv
from gguf_parts import TOKENS, drafter_image, image, media_image, text_image, write_image


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return (
        write_image(folder / "text.gguf", text_image(1), "BF16"),
        write_image(folder / "media.gguf", media_image()),
        write_image(folder / "drafter.gguf", drafter_image()),
    )


@pytest.fixture
def one(parts: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    text, media, drafter = parts
    bundle(text, mmproj=media, drafter=drafter, dst=tmp_path / "one.gguf")
    return tmp_path / "one.gguf"


@pytest.fixture
def converted(one: Path, tmp_path: Path) -> Path:
    convert(one, tmp_path / "converted.gguf", type="Q4_K_M")
    return tmp_path / "converted.gguf"


def test_split_returns_the_parts(parts: tuple[Path, Path, Path], one: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    paths = split(one, tmp_path / "out")
    assert [path.name for path in paths] == ["one.gguf", "mmproj-one.gguf", "assistant-one.gguf"]
    assert paths[1].read_bytes() == parts[1].read_bytes()
    assert paths[2].read_bytes() == parts[2].read_bytes()
    before, after = read_header(parts[0]), read_header(paths[0])
    assert not any(key.startswith("gemmule.section.") for key in after.entries)
    for key, entry in before.entries.items():
        new = after.entries[key]
        assert before.raw[entry.position : entry.end] == after.raw[new.position : new.end]
    assert [tensor[:3] for tensor in before.tensors] == [tensor[:3] for tensor in after.tensors]
    assert all(verify(path).ok for path in paths)


def test_bundle_of_split_is_the_same_file(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    text, media, drafter = split(converted, tmp_path / "out")
    bundle(text, mmproj=media, drafter=drafter, dst=tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == converted.read_bytes()


def test_split_beside_the_file(one: Path) -> None:
    assert split(one)[0].name == "one-text.gguf"
    with pytest.raises(FileExistsError):
        split(one)


def test_sections_stay_unless_replaced(parts: tuple[Path, Path, Path], one: Path, tmp_path: Path) -> None:
    other = write_image(tmp_path / "other.gguf", drafter_image(), "F16")
    bundle(one, drafter=other, dst=tmp_path / "two.gguf")
    found = {s.name: s for s in sections_of(read_header(tmp_path / "two.gguf"))}
    raw = (tmp_path / "two.gguf").read_bytes()
    assert raw[found["mmproj"].offset :][: found["mmproj"].size] == parts[1].read_bytes()
    assert raw[found["drafter"].offset :][: found["drafter"].size] == other.read_bytes()


def test_parts_that_do_not_fit(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    text, media, drafter = parts
    out = tmp_path / "out.gguf"
    wide = write_image(tmp_path / "wide.gguf", media_image(512))
    words = write_image(tmp_path / "words.gguf", drafter_image(tokens=[*TOKENS[:-1], b"other"]))
    with pytest.raises(gemmule.FormatError, match=r"wide\.gguf.*512"):
        bundle(text, mmproj=wide, dst=out)
    keys = [*media_image().metadata, Kv("clip.projector_type", "string", "gemma3")]
    old = write_image(tmp_path / "old.gguf", image(keys, media_image().tensors))
    with pytest.raises(gemmule.FormatError, match=r"old\.gguf.*'gemma3'.*gemma4"):
        bundle(text, mmproj=old, dst=out)
    with pytest.raises(gemmule.FormatError, match="vocabulary"):
        bundle(text, drafter=words, dst=out)
    with pytest.raises(gemmule.FormatError, match="clip"):
        bundle(text, mmproj=drafter, dst=out)
    with pytest.raises(gemmule.FormatError, match="not a text model"):
        bundle(media, mmproj=media, dst=out)
    with pytest.raises(ValueError, match="nothing to join"):
        bundle(text, dst=out)
    with pytest.raises(ValueError, match="also the input"):
        bundle(text, mmproj=media, dst=media, overwrite=True)
    with pytest.raises(gemmule.UnsupportedError, match="nothing to split"):
        split(text, tmp_path)
    assert not out.exists()


def test_damaged_tensors_are_named(converted: Path) -> None:
    header = read_header(converted)
    raw = bytearray(converted.read_bytes())
    for index in (0, 3):
        raw[header.tensors[index][3] + 5] ^= 1
    converted.write_bytes(raw)
    report = verify(converted)
    assert not report.ok
    assert report.damaged == (header.tensors[0][0], header.tensors[3][0])
    assert header.tensors[3][0] in str(report)


def test_damage_is_not_passed_on(converted: Path, tmp_path: Path) -> None:
    header = read_header(converted)
    good = converted.read_bytes()
    (tmp_path / "out").mkdir()
    for at in (header.tensors[1][3], sections_of(header)[1].offset + 100):
        raw = bytearray(good)
        raw[at] ^= 1
        converted.write_bytes(raw)
        with pytest.raises(gemmule.FormatError, match="damaged"):
            split(converted, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["one", "converted"])
def test_every_changed_bit_is_found(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In a file of gemmule each byte is covered: header, tensors, padding, sections."""
    path: Path = request.getfixturevalue(name)
    assert verify(path, full=True).ok
    raw = bytearray(path.read_bytes())
    header = read_header(path)
    rng = random.Random(1)
    places = [rng.randrange(8 * len(raw)) for _ in range(60)]
    places += [rng.randrange(8 * header.data_offset) for _ in range(60)]
    places += [8 * (header.tensors[-1][3] + header.tensors[-1][4] - 1), 8 * len(raw) - 1]
    for key in ("gemmule.checksum.xxh64", "gemmule.checksum.metadata", "gemmule.section.mmproj.offset"):
        at = header.entries[key].position
        places += [8 * (at - 6), 8 * at, 8 * at + 40]  # in the name, the type or the value
    damaged = tmp_path / "damaged.gguf"
    for place in places:
        raw[place // 8] ^= 1 << place % 8
        damaged.write_bytes(raw)
        assert not is_good(damaged), f"bit {place % 8} of byte {place // 8}"
        raw[place // 8] ^= 1 << place % 8


def is_good(path: Path) -> bool:
    try:
        return verify(path).ok
    except gemmule.Error:
        return False


def test_cut_files(converted: Path, tmp_path: Path) -> None:
    raw = converted.read_bytes()
    for size in (10, 1000, len(raw) // 2, len(raw) - 1):
        (tmp_path / "cut.gguf").write_bytes(raw[:size])
        with pytest.raises(gemmule.FormatError):
            verify(tmp_path / "cut.gguf")
    with pytest.raises(gemmule.ModelNotFoundError):
        verify(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("kind", "at"),
    [("Q4_0", 0), ("Q4_1", 2), ("Q5_0", 0), ("Q5_1", 2), ("Q8_0", 0), ("Q2_K", 80), ("Q2_K", 82),
     ("Q3_K", 108),
     ("Q4_K", 0), ("Q5_K", 2), ("Q6_K", 208), ("F16", 0), ("BF16", 0), ("F32", 2)],
)  # fmt: skip
@pytest.mark.parametrize("scale", [0x7C00, 0xFE01])
def test_bad_scales_are_found_without_checksums(tmp_path: Path, kind: str, at: int, scale: int) -> None:
    """A plain file of other programs: NaN and infinite scales and numbers are named with their row."""
    from gemmule._convert.gguf_writer import lay_out

    small = text_image(1)
    types = {t.name: kind if len(t.shape) > 1 else "F32" for t in small.tensors}
    layout = lay_out(small, types)
    raw = bytearray(layout.size)
    raw[: len(layout.header)] = layout.header
    path = tmp_path / "plain.gguf"
    path.write_bytes(raw)
    report = verify(path)
    assert report.ok
    assert not report.has_checksums
    assert report.warnings
    tensor = layout.tensors[2]
    row = tensor.n_bytes // tensor.spec.rows.n_rows
    if kind in ("BF16", "F32"):
        scale = 0x7F80 if scale == 0x7C00 else 0xFFC1
    struct.pack_into("<H", raw, tensor.offset + 5 * row + at, scale)
    path.write_bytes(raw)
    report = verify(path)
    assert report.damaged == (tensor.spec.name,)
    assert "row 5 " in report.problems[0]


def test_progress(one: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = verify(one, progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == report.n_bytes
    assert np.isfinite(report.seconds)


def test_sections_that_lie(one: Path, tmp_path: Path) -> None:
    """Names and places come from the file: nothing outside it is read, nothing outside the folder written."""
    header = read_header(one)
    raw = bytearray(one.read_bytes())

    def refused(changed: bytes, error: type[Exception]) -> None:
        (tmp_path / "bad.gguf").write_bytes(changed)
        for action in (verify, split):
            with pytest.raises(error):
                action(tmp_path / "bad.gguf")

    refused(raw.replace(b"section.drafter", b"section.../evil"), gemmule.UnsupportedError)
    beyond = [2**63, 2**64 - 1, header.value("gemmule.section.drafter.offset")]
    for what, values in (("offset", [0, 32, *beyond]), ("size", beyond)):
        for value in values:
            changed = bytearray(raw)
            struct.pack_into("<Q", changed, header.entries[f"gemmule.section.mmproj.{what}"].position, value)
            refused(changed, gemmule.FormatError)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.gguf", "one.gguf"]


def test_split_makes_its_folder(tmp_path: Path, parts: tuple[Path, ...]) -> None:
    one = tmp_path / "one.gguf"
    bundle(parts[0], mmproj=parts[1], dst=one)
    paths = split(one, tmp_path / "new")
    assert [path.parent for path in paths] == [tmp_path / "new"] * 2
    assert verify(paths[0]).ok
