"""convert() and quantize_file(): types, sections, keys, quality, arguments, several files at once."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

import gemmule
from gemmule import _core
from gemmule._checks import byte_size
from gemmule._convert import planning, stream
from gemmule._convert.bundle import verify
from gemmule._convert.convert import convert, quantize_file
from gemmule._convert.gguf_source import load_gguf, read_header, sections_of
from gemmule._convert.gguf_writer import encode_value, lay_out
from gemmule._convert.image import Image, Kv
from gemmule._convert.imatrix import Imatrix, ImatrixEntry
from gguf_parts import drafter_image, image, normal, spec, text_image, write_bundle, write_image


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model in BF16."""
    return write_image(tmp_path_factory.mktemp("source") / "small-BF16.gguf", text_image(), "BF16")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a media part and a drafter."""
    return write_bundle(tmp_path_factory.mktemp("whole") / "whole.gguf")


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor, as the gguf package reads them."""
    reader = GGUFReader(path)
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in reader.tensors}


def test_floats_come_out_bit_for_bit(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "f32.gguf", type="F32")
    convert(tmp_path / "f32.gguf", tmp_path / "bf16.gguf", type="BF16")
    assert tensors_of(tmp_path / "bf16.gguf") == tensors_of(source)
    assert {kind for kind, _ in tensors_of(tmp_path / "f32.gguf").values()} == {"F32"}


def test_blocks_are_those_of_the_encoder(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out.gguf", type="Q8_0")
    stored, before = tensors_of(tmp_path / "out.gguf"), tensors_of(source)
    kind, raw = stored["blk.0.ffn_down.weight"]
    numbers = (np.frombuffer(before["blk.0.ffn_down.weight"][1], "<u2").astype(np.uint32) << 16).view(
        np.float32
    )
    assert kind == "Q8_0"
    assert raw == gemmule.quantize(numbers, "Q8_0").tobytes()
    assert report.tensor_types == dict(Counter(kind for kind, _ in stored.values()))
    error = gemmule.dequantize(np.frombuffer(raw, np.uint8), "Q8_0", numbers.shape) - numbers
    header = read_header(tmp_path / "out.gguf")
    index = [name for name, *_ in header.tensors].index("blk.0.ffn_down.weight")
    expected = np.sqrt((error.astype(np.float64) ** 2).sum() / (numbers.astype(np.float64) ** 2).sum())
    assert header.value("gemmule.quality.tensor_rms_error")[index] == pytest.approx(expected, rel=1e-5)
    assert report.rms_error == pytest.approx(header.value("gemmule.quality.rms_error"))


def test_converted_model_runs(tiny_gemma4_path: Path, tmp_path: Path) -> None:
    convert(tiny_gemma4_path, tmp_path / "out.gguf", type="F32")
    with gemmule.Model(tiny_gemma4_path) as a, gemmule.Model(tmp_path / "out.gguf") as b:
        assert np.array_equal(a.logits([2, 5, 7, 9], all=True), b.logits([2, 5, 7, 9], all=True))
    assert verify(tmp_path / "out.gguf", full=True).ok


def test_layout_is_what_llama_cpp_demands(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "out.gguf", type="Q4_K_M")
    header = read_header(tmp_path / "out.gguf")
    images = [header]
    for section in sections_of(header):
        assert section.offset % 4096 == 0
        raw = (tmp_path / "out.gguf").read_bytes()[section.offset : section.offset + section.size]
        assert hashlib.sha256(raw).hexdigest() == section.sha256
        images.append(read_header(tmp_path / "out.gguf", offset=section.offset, size=section.size))
    assert [image.value("general.architecture") for image in images] == ["gemma4", "clip", "gemma4-assistant"]
    for parsed in images:
        at = parsed.data_offset
        for _, _, _, offset, n_bytes in parsed.tensors:
            assert offset == at
            at += -(-n_bytes // 32) * 32
        assert parsed.value("general.quantization_version") == 2
    assert [image.value("general.file_type") for image in images] == [15, 1, 7]


def test_every_key_keeps_its_type_and_value(source: Path, tmp_path: Path) -> None:
    keys = [
        *text_image().metadata,
        Kv("a.nan", "f32", float("nan")),
        Kv("a.negative", "i8", -128),
        Kv("a.bools", "array[bool]", [True, False]),
        Kv("a.bytes", "string", b"\xff\xfe"),
        Kv("a.nested", "array[array]", struct.pack("<IQIQI", 9, 1, 4, 1, 7)),
        Kv("a.empty", "array[string]", []),
        Kv("a.large", "array[u64]", [2**64 - 1, 0]),
        Kv("a.double", "f64", 0.1),
    ]
    path = write_image(tmp_path / "in.gguf", image(keys, text_image().tensors))
    convert(path, tmp_path / "out.gguf", type="F32")
    before, after = read_header(path), read_header(tmp_path / "out.gguf")
    for key, entry in before.entries.items():
        new = after.entries[key]
        assert entry.type == new.type, key
        assert before.raw[entry.position : entry.end] == after.raw[new.position : new.end], key


def test_own_keys_of_the_source_are_written_anew(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "a.gguf", type="Q8_0")
    report = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", type="Q4_0")
    header = read_header(tmp_path / "b.gguf")
    assert header.value("gemmule.convert.type") == "Q4_0"
    assert header.value("gemmule.source.dtype") == "Q8_0"
    assert header.value("general.file_type") == 2
    assert any("quantized already" in warning for warning in report.warnings)


def test_several_types_from_one_read(whole: Path, tmp_path: Path) -> None:
    kinds = ["Q4_K_M", "Q8_0", "BF16"]
    reports = convert(whole, tmp_path, type=kinds)
    assert [Path(report.path).name for report in reports] == [f"whole-{kind}.gguf" for kind in kinds]
    for kind in kinds:
        convert(whole, tmp_path / "alone.gguf", type=kind, overwrite=True)
        assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / f"whole-{kind}.gguf").read_bytes()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_same_bytes_for_any_number_of_threads(source: Path, tmp_path: Path, n_threads: int) -> None:
    convert(source, tmp_path / "a.gguf", type="Q4_K_M")
    convert(source, tmp_path / "b.gguf", type="Q4_K_M", n_threads=n_threads)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_chunks_do_not_show_in_the_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "a.gguf", type="Q4_K_M")
    monkeypatch.setattr("gemmule._convert.stream.CHUNK_BYTES", 3000)
    convert(source, tmp_path / "b.gguf", type="Q4_K_M")
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert verify(tmp_path / "b.gguf").ok


def test_drafter_type_follows_the_text(whole: Path, tmp_path: Path) -> None:
    def kinds(**options: Any) -> set[str]:
        convert(whole, tmp_path / "out.gguf", overwrite=True, **options)
        drafter = load_gguf(tmp_path / "out.gguf").sections["drafter"]
        return {tensor.rows.dtype for tensor in drafter.tensors if len(tensor.shape) > 1}

    assert kinds(type="Q4_K_M") == {"Q8_0"}
    assert kinds(type="BF16") == {"BF16"}
    assert kinds(type="Q4_K_M", drafter_type="F16") == {"F16"}


def test_parts_can_be_left_out(whole: Path, tmp_path: Path) -> None:
    report = convert(whole, tmp_path / "a.gguf", drafter=None, vision=False, audio=False)
    assert report.sections == {}
    assert verify(tmp_path / "a.gguf").ok
    with pytest.raises(gemmule.UnsupportedError, match="one part"):
        convert(whole, tmp_path / "b.gguf", vision=False)


def test_drafter_may_be_a_gguf_file(source: Path, tmp_path: Path) -> None:
    drafter = write_image(tmp_path / "drafter.gguf", drafter_image())
    report = convert(source, tmp_path / "out.gguf", drafter=drafter)
    assert list(report.sections) == ["drafter"]
    other = write_image(tmp_path / "other.gguf", drafter_image(width=512))
    with pytest.raises(gemmule.FormatError, match="width 512"):
        convert(source, tmp_path / "no.gguf", drafter=other)
    assert not (tmp_path / "no.gguf").exists()


def test_each_expert_has_its_own_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[n_cols, n_rows, n_experts]: the rows of expert e are encoded with row e of the importance."""
    n_experts, n_rows, n_cols = 3, 10, 256
    experts = spec("blk.0.ffn_down_exps.weight", normal(n_experts, n_rows, n_cols))
    small = text_image(1)
    path = write_image(tmp_path / "in.gguf", Image(small.metadata, (*small.tensors, experts)))
    weights = np.abs(normal(n_experts, n_cols, seed=3)) + 0.01
    entry = ImatrixEntry(weights, np.ones(n_experts, np.int64))
    monkeypatch.setattr("gemmule._convert.stream.CHUNK_BYTES", 4 * n_cols * 4)
    imatrix = Imatrix({experts.name: entry}, ("text.txt",))
    report = convert(path, tmp_path / "out.gguf", type="Q4_0", imatrix=imatrix)
    raw = np.frombuffer(tensors_of(tmp_path / "out.gguf")[experts.name][1], np.uint8).reshape(n_experts, -1)
    encoder = _core.Encoder(1)
    data = normal(n_experts, n_rows, n_cols)
    for e in range(n_experts):
        out = np.empty(raw.shape[1], np.uint8)
        encoder.encode(data[e].reshape(-1).view(np.uint8), "F32", n_cols, "Q4_0", out, importance=weights[e])
        assert np.array_equal(out, raw[e])
    assert report.imatrix == "text.txt"
    assert any("says nothing about" in warning for warning in report.warnings)


def test_low_bits_without_importance_warn(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out.gguf", type="Q2_K")
    assert any("importance matrix" in warning for warning in report.warnings)


def test_weights_trained_for_q4_0_are_noticed(tmp_path: Path) -> None:
    keys = text_image().metadata
    tensors = []
    for tensor in text_image().tensors:
        numbers = tensor.rows.make().reshape(tuple(reversed(tensor.shape)))  # type: ignore[attr-defined]
        if numbers.ndim > 1:
            flat = gemmule.dequantize(gemmule.quantize(numbers, "Q4_0"), "Q4_0", numbers.shape)
            numbers = flat.astype(np.float32)
        tensors.append(spec(tensor.name, numbers))
    path = write_image(tmp_path / "in.gguf", image(keys, tensors))
    report = convert(path, tmp_path / "a.gguf", type="Q4_K_M")
    assert any("trained for Q4_0" in warning for warning in report.warnings)
    report = convert(path, tmp_path / "b.gguf", type="Q4_0")
    assert not report.warnings


def test_dry_run_writes_nothing_and_knows_the_size(whole: Path, tmp_path: Path) -> None:
    plan = convert(whole, tmp_path / "out.gguf", dry_run=True)
    assert not (tmp_path / "out.gguf").exists()
    report = convert(whole, tmp_path / "out.gguf")
    assert plan.size == report.size == (tmp_path / "out.gguf").stat().st_size
    assert plan.tensor_types == report.tensor_types
    assert plan.dry_run
    assert "nothing was written" in str(plan)
    assert plan.to_dict()["plan"]


def test_size_and_bpw_choose_the_types(whole: Path, tmp_path: Path) -> None:
    report = convert(whole, tmp_path / "out.gguf", size="1300kB")
    assert report.size <= 1_300_000
    assert report.type == "1.3MB"
    report = convert(whole, tmp_path / "out.gguf", bpw=5.0, overwrite=True)
    assert report.bits_per_weight <= 5.0
    assert verify(tmp_path / "out.gguf").ok


def test_size_out_of_reach_speaks_of_the_file(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1,000 bytes cannot be reached") as caught:
        convert(whole, tmp_path / "out.gguf", size=1000)
    low, high = (int(found.replace(",", "")) for found in re.findall(r"[\d,]{5,}", str(caught.value))[-2:])
    for size in (low, high):
        convert(whole, tmp_path / f"{size}.gguf", size=size)
        assert size - 16384 < (tmp_path / f"{size}.gguf").stat().st_size <= size


@pytest.mark.parametrize(
    ("text", "n"),
    [(7, 7), ("7", 7), ("7.5GB", 7_500_000_000), ("6 GiB", 6 << 30), (".5k", 500), (" 2TB ", 2 * 10**12)],
)
def test_sizes_as_people_write_them(text: int | str, n: int) -> None:
    assert byte_size("size", text) == n


@pytest.mark.parametrize(
    "text", ["", "GB", "0", "0.0GB", "-1", "1e3", "7,5GB", "9" * 400, "1 pounds", 0, 1.5]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"^size must be a number of bytes"):
        byte_size("size", text)


def test_source_of_floats_and_blocks(tmp_path: Path) -> None:
    """Most bytes are floats, but the first tensors are blocks: what llama.cpp makes of narrow rows."""
    rng = np.random.default_rng(3)
    narrow = [spec(f"blk.0.{name}.weight", rng.standard_normal((8, 32), np.float32)) for name in ("a", "b")]
    mixed = image(text_image(1).metadata, [*narrow, *text_image(1).tensors])
    plain = write_image(tmp_path / "plain.gguf", mixed, "F16")
    convert(plain, tmp_path / "mixed.gguf", type="F16", tensor_types={r"blk\.0\.(a|b)": "Q5_0"})
    assert load_gguf(tmp_path / "mixed.gguf").source_dtype == "F16"
    report = convert(tmp_path / "mixed.gguf", tmp_path / "out.gguf", type="Q8_0")
    assert report.tensor_types["Q8_0"] == 7


def test_default_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(source, type="Q8_0").path == "small-Q8_0.gguf"
    assert (tmp_path / "small-Q8_0.gguf").exists()
    (tmp_path / "folder").mkdir()
    assert convert(source, "folder", type="Q8_0").path == "folder/small-Q8_0.gguf"
    assert convert(source, "folder/", type=["Q4_0"])[0].path == "folder/small-Q4_0.gguf"


def test_words_that_are_no_output(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'q4_k_m' is a type.*-q"):
        convert(source, "q4_k_m")
    with pytest.raises(NotADirectoryError, match="create it"):
        convert(source, "missing/")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_checkpoint_points_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(gemmule.FormatError, match=f"{name} is one file of a checkpoint.* {tmp_path}$"):
            convert(tmp_path / name, tmp_path / "out.gguf")


def test_names_that_are_not_utf8(source: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.gguf")
    with pytest.raises(ValueError, match="not UTF-8"):
        convert(source, odd)
    odd.write_bytes(source.read_bytes())
    for action in (verify, gemmule.inspect, gemmule.Model, lambda path: convert(path, tmp_path / "out.gguf")):
        with pytest.raises(ValueError, match="not UTF-8"):
            action(odd)


def test_a_cancelled_token_stops_even_a_short_conversion(source: Path, tmp_path: Path) -> None:
    stop = gemmule.StopToken()
    stop.cancel()
    with pytest.raises(gemmule.Cancelled):
        convert(source, tmp_path / "out.gguf", stop=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_end(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = convert(source, tmp_path / "out.gguf", progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == report.bytes_read


def test_wrong_arguments(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for options, error in (
        ({"type": "Q9"}, ValueError),
        ({"type": []}, ValueError),
        ({"type": ["Q8_0", "q8_0"]}, ValueError),
        ({"layout": "dense"}, ValueError),
        ({"size": "much"}, ValueError),
        ({"size": 10**6, "bpw": 4.0}, ValueError),
        ({"n_threads": 0}, ValueError),
        ({"tensor_types": {"(": "Q8_0"}}, ValueError),
        ({"tensor_types": {"no_such_tensor": "Q8_0"}}, ValueError),
        ({"type": ["Q8_0", "Q4_0"]}, NotADirectoryError),
        ({"drafter": tmp_path / "none"}, gemmule.ModelNotFoundError),
    ):
        with pytest.raises(error):
            convert(source, out, **options)  # type: ignore[call-overload]
    for name, value in (
        ("type", None),
        ("type", 5),
        ("type", [None]),
        ("bpw", "4.5"),
        ("tensor_types", "ffn=Q8_0"),
        ("tensor_types", [("ffn", "Q8_0", 1)]),
        ("tensor_types", {"ffn": 8}),
        ("size", 1.5e9),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{name} must be "):
            convert(source, out, **{name: value})  # type: ignore[call-overload]
    with pytest.raises(gemmule.ModelNotFoundError):
        convert(tmp_path / "none", out)
    with pytest.raises(IsADirectoryError):
        quantize_file(tmp_path, out, "Q8_0")
    with pytest.raises(ValueError, match="also the input"):
        convert(source, source, overwrite=True)
    out.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        convert(source, out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.gguf"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("type_name", "value"),
    [("u8", 256), ("u32", -1), ("i32", 1.5), ("bool", 2), ("array[u16]", [1, 70000]), ("u64", "x")],
)
def test_values_that_do_not_fit_their_type(type_name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.key"):
        encode_value("a.key", type_name, value)


def test_names_must_be_unique() -> None:
    small = text_image(1)
    types = {tensor.name: "F32" for tensor in small.tensors}
    with pytest.raises(ValueError, match="twice"):
        lay_out(Image((*small.metadata, small.metadata[0]), small.tensors), types)
    with pytest.raises(ValueError, match="twice"):
        lay_out(Image(small.metadata, (*small.tensors, small.tensors[0])), types)


def test_estimate_counts_every_block_type(source: Path) -> None:
    loaded = load_gguf(source)
    encoder = _core.Encoder(1)
    plan = planning.make_plan(loaded, Path("x"), "Q4_K_M", "Q4_K_M", planning.Request(), encoder)
    report = planning.dry_report(loaded, plan, encoder, 0)
    assert report.seconds > 0
    assert report.peak_memory < 400e6


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_scales_are_searched_without_an_importance_matrix_too(kind: str) -> None:
    numbers = np.random.default_rng(3).standard_normal((4, 512)).astype(np.float32)
    encoder = _core.Encoder(1)
    errors = []
    for weights in (None, stream.search_weights(kind, None, 512)):
        out = np.empty(gemmule.quantize(numbers, kind).size, np.uint8)
        error2, *_ = encoder.encode(
            numbers.reshape(-1).view(np.uint8), "F32", 512, kind, out, importance=weights
        )
        errors.append(error2)
    assert errors[1] < 0.999 * errors[0]
