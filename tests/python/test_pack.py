"""pack() and unpack(): every byte comes back, whatever the file; and what reads packed files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gemmule
from gemmule._convert import card, gguf_writer
from gemmule._convert.gguf_source import Header, image_of, read_header
from gemmule.cli import run_command_line
from gguf_parts import media_image, text_image, write_bundle, write_image

BLOCKS = {
    "F32": (1, 4), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, media and drafter in one converted file."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_bundle(folder / "one.gguf")
    gemmule.convert(source, folder / "whole.gguf", type="Q4_K_M")
    return folder / "whole.gguf"


@pytest.fixture
def packed(whole: Path, tmp_path: Path) -> Path:
    gemmule.pack(whole, tmp_path / "whole.packed.gguf")
    return tmp_path / "whole.packed.gguf"


def foreign_file(
    path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], alignment: int = 0, tail: int = 0
) -> Path:
    """A file as no writer of ours makes it: no key of gemmule, the last tensor first, random blocks. With an
    `alignment` also version 2.
    """
    keys = _string(b"general.architecture") + struct.pack("<I", 8) + _string(b"gemma4")
    if alignment:
        keys = _string(b"general.alignment") + struct.pack("<II", 4, alignment) + keys
    out = struct.pack("<4sIQQ", b"GGUF", 2 if alignment else 3, len(tensors), 2 if alignment else 1) + keys
    offsets, data = [], b""
    for seed, (_, kind, shape) in reversed(list(enumerate(tensors))):
        elements, size = BLOCKS[kind]
        offsets.append(len(data))
        piece = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) // elements * size, np.uint8)
        data += piece.tobytes() + bytes(-piece.size % (alignment or 32))
    for (name, kind, shape), offset in zip(tensors, reversed(offsets), strict=True):
        number = gguf_writer.TENSOR_IDS[kind]
        out += _string(name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
    path.write_bytes(out + bytes(-len(out) % (alignment or 32)) + data + bytes(tail))
    return path


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def round_trip(path: Path) -> Path:
    """The packed file, after the way back was compared."""
    there, back = path.with_name("there.gguf"), path.with_name("back.gguf")
    gemmule.pack(path, there, overwrite=True)
    gemmule.unpack(there, back, overwrite=True)
    assert back.read_bytes() == path.read_bytes()
    return there


@pytest.mark.parametrize(
    "name", ["tiny-gemma3-f32", "tiny-gemma4-f32", "tiny-gemma4-e2b-f16", "tiny-gemma4-26b-f16"]
)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "Q4_K_M", "Q2_K"])
def test_golden_files_come_back(golden: Path, tmp_path: Path, name: str, kind: str) -> None:
    gemmule.quantize_file(golden / f"{name}.gguf", tmp_path / "a.gguf", kind)
    there = round_trip(tmp_path / "a.gguf")
    before, after = read_header(tmp_path / "a.gguf"), read_header(there)
    assert after.packed
    assert not before.packed
    assert np.array_equal(before.value(card.CHECKSUM), after.value(card.CHECKSUM))
    report = gemmule.verify(there)
    assert report.ok
    assert report.has_checksums


def test_sections_come_back(whole: Path, packed: Path, tmp_path: Path) -> None:
    gemmule.unpack(packed, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == whole.read_bytes()
    assert gemmule.verify(packed, full=True).ok
    info = gemmule.inspect(packed)
    assert info.layout == "r8p64"
    assert info.sections == ("drafter", "mmproj")
    assert "packed" in str(info)
    assert gemmule.inspect(whole).layout == "gguf"


def test_conversion_writes_the_same_packed_file(whole: Path, packed: Path, tmp_path: Path) -> None:
    report = gemmule.convert(
        whole.with_name("one.gguf"), tmp_path / "direct.gguf", type="Q4_K_M", layout="packed"
    )
    assert (tmp_path / "direct.gguf").read_bytes() == packed.read_bytes()
    assert report.layout == "r8p64"
    assert report.size == packed.stat().st_size
    assert "Q4_K_M packed" in str(report)
    (tmp_path / "out").mkdir()
    dry = gemmule.convert(
        whole.with_name("one.gguf"), tmp_path / "out", type="Q4_K_M", layout="packed", dry_run=True
    )
    assert dry.size == report.size
    assert dry.layout == "r8p64"
    assert Path(dry.path).name == "one-Q4_K_M.packed.gguf"


def test_several_types_at_once(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one panel each, two packed files from one pass."""
    monkeypatch.setattr("gemmule._convert.stream.CHUNK_BYTES", 3000)
    types = ["Q8_0", "Q3_K_M"]
    gemmule.convert(whole.with_name("one.gguf"), tmp_path, type=types, layout="packed")
    for kind in types:
        gemmule.convert(whole.with_name("one.gguf"), tmp_path / "plain.gguf", type=kind, overwrite=True)
        gemmule.pack(tmp_path / "plain.gguf", tmp_path / "packed.gguf", overwrite=True)
        found = (tmp_path / f"one-{kind}.packed.gguf").read_bytes()
        assert found == (tmp_path / "packed.gguf").read_bytes()


def test_a_size_can_be_asked_for(whole: Path, tmp_path: Path) -> None:
    n = 10 * whole.stat().st_size // 9
    report = gemmule.convert(whole.with_name("one.gguf"), tmp_path / "a.gguf", size=n, layout="packed")
    assert report.size <= n
    assert (tmp_path / "a.gguf").stat().st_size == report.size


MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(
    kinds=st.lists(st.sampled_from(sorted(set(BLOCKS) - {"F32"})), min_size=1, max_size=3),
    groups=st.integers(1, 40),
    n_blocks=st.integers(1, 9),
    alignment=st.sampled_from([0, 8, 32, 64, 8192]),
    tail=st.integers(0, 100),
    row=st.integers(0, 10**6),
)
def test_any_shape_comes_back(
    tmp_path: Path, kinds: list[str], groups: int, n_blocks: int, alignment: int, tail: int, row: int
) -> None:
    tensors: list[tuple[str, str, tuple[int, ...]]] = [
        (f"packs.{i}", kind, (n_blocks * BLOCKS[kind][0], 8 * groups)) for i, kind in enumerate(kinds)
    ]
    tensors += [
        ("packs.experts", "Q4_0", (32, 64 * (groups % 3 + 1), 3)),
        ("rows_left_over", "Q8_0", (64, 9)),
        ("norm", "F32", (7,)),
        ("experts_across_panels", "Q4_0", (32, 72, 2)),
        ("output.weight", "Q8_0", (32, 9)),
        ("token_embd.weight", "Q8_0", (32, 8)),
    ]
    path = foreign_file(tmp_path / "a.gguf", tensors, alignment, tail)
    before, after = read_header(path), read_header(round_trip(path))
    assert after.packed == {name for name, *_ in tensors if name.startswith("packs.")}
    for a, b in zip(rows_of(before), rows_of(after), strict=True):
        first = row % a.n_rows
        n = min(70, a.n_rows - first)
        left, right = (np.zeros(n * a.row_bytes, np.uint8) for _ in range(2))
        a.read_into(first, n, left)
        b.read_into(first, n, right)
        assert np.array_equal(left, right)


def rows_of(header: Header) -> list[Any]:
    return [part.rows for part in image_of(header, drop=lambda _: False).tensors]


def test_nothing_is_packed_with_loss(whole: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    media = write_image(tmp_path / "media.gguf", media_image())
    floats = write_image(tmp_path / "floats.gguf", text_image(1))
    raw = bytearray(foreign_file(tmp_path / "odd.gguf", [("a.weight", "Q8_0", (32, 8))], tail=9).read_bytes())
    raw[-1] = 1
    (tmp_path / "odd.gguf").write_bytes(raw)
    for path, error, match in (
        (packed, gemmule.FormatError, "packed already"),
        (media, gemmule.FormatError, "is a part"),
        (floats, gemmule.UnsupportedError, "quantize it first"),
        (tmp_path / "odd.gguf", gemmule.UnsupportedError, "would be lost"),
        (tmp_path / "none.gguf", gemmule.ModelNotFoundError, "none"),
    ):
        with pytest.raises(error, match=match):
            gemmule.pack(path, out)
    with pytest.raises(gemmule.FormatError, match="is not packed"):
        gemmule.unpack(whole, out)
    with pytest.raises(gemmule.UnsupportedError, match="quantize it first"):
        gemmule.convert(floats, out, type="F16", layout="packed")
    with pytest.raises(ValueError, match="also the input"):
        gemmule.pack(whole, whole, overwrite=True)
    with pytest.raises(FileExistsError):
        gemmule.pack(whole, packed)
    with pytest.raises(NotADirectoryError):
        gemmule.pack(whole, f"{tmp_path}/no/")
    assert not out.exists()


def test_damage_is_found_and_not_passed_on(packed: Path, tmp_path: Path) -> None:
    good = packed.read_bytes()
    header = read_header(packed)
    tensors = [t for t in header.tensors if t[0] in header.packed]
    section = header.value("gemmule.section.mmproj.offset")
    for at, name in ((tensors[2][3] + 700, tensors[2][0]), (section + 3000, "mmproj"), (64, "metadata")):
        packed.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        try:
            report = gemmule.verify(packed, full=True)
            assert any(name in what for what in report.damaged), at
        except gemmule.FormatError:
            assert name == "metadata"
        with pytest.raises(gemmule.FormatError):
            gemmule.unpack(packed, tmp_path / "back.gguf")
    for n in (100, header.data_offset, tensors[1][3] + 5, len(good) - 1):
        packed.write_bytes(good[:n])
        with pytest.raises(gemmule.FormatError):
            gemmule.unpack(packed, tmp_path / "back.gguf")
    assert not (tmp_path / "back.gguf").exists()


def test_a_damaged_file_is_not_packed(whole: Path, tmp_path: Path) -> None:
    good = whole.read_bytes()
    header = read_header(whole)
    path = tmp_path / "bad.gguf"
    for at in (header.tensors[0][3] + 1, len(good) - 70, header.entries["general.name"].position + 9):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(gemmule.FormatError, match="damaged"):
            gemmule.pack(path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_nan_is_found_in_a_packed_file_without_checksums(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "a.gguf", [("a.weight", "Q8_0", (32, 80))])
    raw = bytearray(path.read_bytes())
    start = read_header(path).tensors[0][3]
    for row in range(80):
        raw[start + 34 * row : start + 34 * row + 2] = b"\0\x7c" if row == 71 else b"\0\x3c"
    path.write_bytes(raw)
    report = gemmule.verify(round_trip(path))
    assert not report.ok
    assert "row 71" in report.problems[0]


Change = Callable[[dict[str, tuple[str, Any]]], None]


def _set(key: str, kind: str, value: Any) -> Change:
    def change(entries: dict[str, tuple[str, Any]]) -> None:
        entries[key] = (kind, value)

    return change


def _drop(key: str) -> Change:
    def change(entries: dict[str, tuple[str, Any]]) -> None:
        del entries[key]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("gemmule.layout", "string", "gguf"),
        _set("gemmule.layout", "string", "r9p64"),
        _drop("gemmule.layout"),
        _drop("gemmule.unpacked.offsets"),
        _drop("gemmule.unpacked.size"),
        _set("gemmule.unpacked.size", "u64", 100),
        _set("gemmule.unpacked.size", "u64", 2**63),
        _set("gemmule.unpacked.size", "string", "x"),
        _set("gemmule.unpacked.offsets", "array[u64]", [0]),
        _set("gemmule.unpacked.offsets", "array[u64]", [0, 0]),
        _set("gemmule.unpacked.offsets", "array[u64]", [0, 2**64 - 32]),
        _set("gemmule.unpacked.offsets", "array[u64]", [0, 300]),
        _set("gemmule.unpacked.offsets", "array[u32]", [0, 544]),
        _set("gemmule.unpacked.general.alignment", "u32", 48),
        _set("gemmule.unpacked.general.alignment", "u32", 0),
        _set("gemmule.unpacked.general.alignment", "f32", 32.0),
        _set("gemmule.unpacked.gemmule.checksum.metadata", "u64", 1),
        _set("gemmule.unpacked.gemmule.checksum.metadata", "string", ""),
        _set("general.alignment", "u32", 32),
    ],
)
def test_lies_are_refused(tmp_path: Path, change: Change) -> None:
    """A packed file written key by key; unchanged it unpacks."""
    tensors = [("a.weight", "Q8_0", (32, 16)), ("b.weight", "Q4_0", (32, 8))]
    path = round_trip(foreign_file(tmp_path / "a.gguf", tensors))
    header, raw = read_header(path), path.read_bytes()
    entries = {key: (entry.type, header.value(key)) for key, entry in header.entries.items()}
    assert with_keys(header, raw, entries) == raw
    gemmule.unpack(path, tmp_path / "fine.gguf")
    change(entries)
    path.write_bytes(with_keys(header, raw, entries))
    with pytest.raises(gemmule.Error) as caught:
        gemmule.unpack(path, tmp_path / "out.gguf")
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def with_keys(header: Header, raw: bytes, entries: dict[str, tuple[str, Any]]) -> bytes:
    out = header.raw[:16] + struct.pack("<Q", len(entries))
    for key, (kind, value) in entries.items():
        out += _string(key.encode()) + gguf_writer.encode_value(key, kind, value)
    last = max(entry.end for entry in header.entries.values())
    out += header.raw[last:].rstrip(b"\0")
    return out + bytes(-len(out) % 4096) + raw[header.data_offset :]


def test_packed_files_are_sources(whole: Path, packed: Path, tmp_path: Path) -> None:
    """quantize, split and bundle give the same files from both layouts."""
    folders = [tmp_path / "a", tmp_path / "b"]
    texts = []
    for folder, source in zip(folders, (whole, packed), strict=True):
        folder.mkdir()
        one = folder / "whole.gguf"
        one.write_bytes(source.read_bytes())
        gemmule.quantize_file(one, folder / "q8.gguf", "Q8_0")
        text, media, drafter = gemmule.split(one, folder / "parts")
        assert gemmule.inspect(text).layout == "gguf"
        gemmule.bundle(text, mmproj=media, drafter=drafter, dst=folder / "again.gguf")
        gemmule.bundle(one, mmproj=media, dst=folder / "more.gguf")
        texts.append([path.read_bytes() for path in (text, media, drafter)])
        for name in ("q8", "again", "more"):
            texts[-1].append((folder / f"{name}.gguf").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0][4] == whole.read_bytes()
    gemmule.quantize_file(packed, tmp_path / "repacked.gguf", "Q8_0", layout="packed")
    assert gemmule.inspect(tmp_path / "repacked.gguf").layout == "r8p64"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_a_packed_file_gives_the_same_logits(golden: Path, tmp_path: Path, kind: str) -> None:
    for name in ("tiny-gemma3-f32", "tiny-gemma4-f32", "tiny-gemma4-e2b-f16", "tiny-gemma4-26b-f16"):
        plain, packed = tmp_path / f"{name}.gguf", tmp_path / f"{name}.packed.gguf"
        gemmule.quantize_file(golden / f"{name}.gguf", plain, kind)
        gemmule.pack(plain, packed)
        logits = []
        for path in (plain, packed):
            with gemmule.Model(path, n_ctx=64) as model:
                logits.append([model.logits(list(range(4, 4 + n))) for n in (1, 3, 40)])
        assert all(np.array_equal(a, b) for a, b in zip(*logits, strict=True)), name


def test_the_real_model(demo_model_path: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.gguf"
    seen: list[tuple[int, int, str]] = []
    gemmule.pack(demo_model_path, there, progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] <= demo_model_path.stat().st_size
    gemmule.unpack(there, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == demo_model_path.read_bytes()
    (tmp_path / "back.gguf").unlink()
    logits = []
    for path in (demo_model_path, there):
        with gemmule.Model(path, n_ctx=64) as model:
            logits.append(model.logits(model.tokenizer.encode("The capital of France is")))
    assert np.array_equal(*logits)


def command(*arguments: object) -> int:
    return run_command_line([str(argument) for argument in arguments])


def test_commands(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("pack", whole) == 0
    assert "Q4_K_M packed" in capsys.readouterr().out
    assert command("pack", whole) == 2
    assert "exists" in capsys.readouterr().err
    assert command("pack", whole, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "r8p64"
    assert command("pack", "whole.packed.gguf", "other.gguf") == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert command("show", "whole.packed.gguf") == 0
    assert "packed (r8p64" in capsys.readouterr().out
    assert command("show", "whole.packed.gguf", "--tensors") == 0
    assert capsys.readouterr().out.count("  packed\n") == len(read_header(Path("whole.packed.gguf")).packed)
    assert command("verify", "whole.packed.gguf") == 0
    assert command("unpack", "whole.packed.gguf") == 0
    assert Path("whole.gguf").read_bytes() == whole.read_bytes()
    assert command("unpack", "whole.gguf") == 3
    Path("renamed.gguf").write_bytes(Path("whole.packed.gguf").read_bytes())
    assert command("unpack", "renamed.gguf", tmp_path) == 0
    assert Path("renamed.unpacked.gguf").read_bytes() == whole.read_bytes()
    assert command("quantize", whole, "-q", "Q8_0", "--layout", "packed") == 0
    assert gemmule.inspect("whole-Q8_0.packed.gguf").layout == "r8p64"
    assert command("convert", whole.with_name("one.gguf"), "--layout", "odd") == 2


def test_importance_is_measured_on_a_packed_file(tiny_gemma4_path: Path, tmp_path: Path) -> None:
    gemmule.quantize_file(tiny_gemma4_path, tmp_path / "plain.gguf", "Q8_0")
    gemmule.pack(tmp_path / "plain.gguf", tmp_path / "packed.gguf")
    (tmp_path / "text.txt").write_text("ab cd " * 40, encoding="utf-8")
    for name in ("plain", "packed"):
        gemmule.imatrix(
            tmp_path / f"{name}.gguf", tmp_path / "text.txt", tmp_path / f"{name}.imatrix", n_ctx=32
        )
    assert (tmp_path / "plain.imatrix").read_bytes() == (tmp_path / "packed.imatrix").read_bytes()
